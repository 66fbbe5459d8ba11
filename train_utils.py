"""One run from top to bottom: check, prepare, attach the LoRA, train, save, give the base model back."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import continued, needs, resume, training_run
from .custom_scheduler import FP_SCHEDULERS, lr_multiplier
from .dataset_tools import Collator, DataError, Prepared, prepare
from .host import Host, ModelError, NotFree, model_facts, quantization_of
from .matplotgraph import save_png
from .paths import name_problem, path_in, whole_folder, write_json, write_whole
from .settings import ALL_LINEAR, OPTIONS, PROJECTIONS, Plan, SettingsError, TrainingSettings
from .training_run import DONE, FAILED, INTERRUPTED, SAVING, SCALE_RATE, TRAINING, Diverged, Stopped, TrainingRun
from .untouched import Changed, random_state_kept, untouched
from .versions import training_arguments

logger = logging.getLogger(__name__)

SPARE_DISK = 16 * 2**20  # bytes for the small files of a run, and so that the disk is never filled to the brim


CHANGED_MEANWHILE = (
    "The model was unloaded, or another model or LoRA was loaded, outside this tab while the run used it; the run went on with the one it had."
)


@dataclass(frozen=True)
class Base:
    """What a run is trained on."""

    model: Any
    tokenizer: Any
    name: str


class RunFailed(RuntimeError):
    """A run that cannot go on; the message is for the user: what happened and what to change."""


# Check


def check(settings: TrainingSettings, host: Host) -> list[str]:
    """Everything that keeps the run from starting, each as a sentence with the control's label and what to do."""
    if broken := needs.broken():
        return broken
    problems = settings.problems(host)
    if busy := host.busy():
        problems.append(busy)
    has_model = host.model_problem() is None
    if has_model:
        problems += _target_problems(settings, host.model)
    if name_problem(settings.lora_name) is None:
        problems += _folder_problems(settings, host)
        if has_model and settings.lora_rank > 0 and settings.training_projection in OPTIONS["training_projection"].offered():
            problems += _disk_problems(settings, host)
    return problems + _optimizer_problems(settings, host.model.device if has_model else "cpu") + _log_problems(settings)


def check_data(settings: TrainingSettings, host: Host) -> list[str]:
    """What keeps the data from being prepared: the name, which Verify does not need, is not looked at."""
    return needs.broken() or settings.model_copy(update={"lora_name": "verified"}).problems(host)


def target_modules(settings: TrainingSettings) -> str | list[str]:
    """What PEFT's `LoraConfig.target_modules` gets."""
    return ALL_LINEAR if settings.training_projection == ALL_LINEAR else PROJECTIONS[settings.training_projection]


def _target_problems(settings: TrainingSettings, model: Any) -> list[str]:
    if settings.training_projection not in PROJECTIONS:  # all-linear, or a value that is named as a problem already
        return []
    wanted = PROJECTIONS[settings.training_projection]
    there = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    missing = [name for name in wanted if name not in there]
    if len(missing) < len(wanted):
        return []
    return [
        f"Target Projections “{settings.training_projection}” means {', '.join(wanted)}, and {type(model).__name__} has no layer of these names. "
        "Choose all-linear, which fits every architecture."
    ]


def _folder_problems(settings: TrainingSettings, host: Host) -> list[str]:
    try:
        folder = path_in(host.lora_dir, settings.lora_name)
    except ValueError as error:
        return [f"Name: {error}"]
    if folder.exists() and not folder.is_dir():
        return [f"Name: “{settings.lora_name}” is a file in the LoRA folder; choose another name."]
    if not _holds_a_run(folder) or settings.always_override:
        return []
    going_on = resume.plan(settings, host)
    if going_on is not None and (going_on.fits or not going_on.adapter_saved):
        return [problem] if (problem := going_on.problem()) else []
    old = continued.finished(folder)
    if old is None:
        return [
            f"Name: “{settings.lora_name}” holds a run that was not finished. Choose another name, or tick Override Existing Files: "
            "what is there is then put away and goes only when the new LoRA is saved."
        ]
    return continued.differences(old, settings, host.model, host.model_name) if host.model_problem() is None else []


def _disk_problems(settings: TrainingSettings, host: Host) -> list[str]:
    """What can be said before the data is known: room for the LoRA, and for one checkpoint where any may be made."""
    needed = adapter_bytes(settings, host.model) + SPARE_DISK
    if settings.save_steps or settings.save_steps_under_loss:
        needed += checkpoint_bytes(settings, host.model)
    free = shutil.disk_usage(_existing(host.lora_dir)).free
    if free < needed:
        return [
            f"Disk: the LoRA needs about {_megabytes(needed)}, and {_megabytes(free)} are free where LoRAs are saved. Free some space or lower LoRA Rank."
        ]
    return []


def _disk_problem(settings: TrainingSettings, model: Any, plan: Plan, folder: Path) -> str | None:
    """Whether all checkpoints that this run is known to make fit on the disk, beside the finished adapter."""
    count = planned_checkpoints(settings, plan)
    needed = (count + 1) * adapter_bytes(settings, model) + SPARE_DISK
    if count:
        needed += 2 * (checkpoint_bytes(settings, model) - adapter_bytes(settings, model))  # the older state goes when the newer is whole
    free = shutil.disk_usage(_existing(folder)).free
    if free >= needed:
        return None
    return (
        f"Failed before the first step: the run makes {count} checkpoints, which need about {_megabytes(needed)} with the LoRA, and {_megabytes(free)} "
        "are free where LoRAs are saved. Raise Save every n steps, lower Checkpoints to keep, or free some space."
    )


def planned_checkpoints(settings: TrainingSettings, plan: Plan) -> int:
    """How many checkpoints of a run are on the disk at its end; those by loss and those that the user asks for cannot be known."""
    if not settings.save_steps:
        return 0
    count = plan.optimizer_steps // plan.to_optimizer_steps(settings.save_steps) + plan.optimizer_steps // plan.optimizer_steps_per_epoch
    return min(count, settings.save_total_limit + 2) if settings.save_total_limit else count  # the best one, and the newest before one goes


def checkpoint_bytes(settings: TrainingSettings, model: Any) -> int:
    """Size of a checkpoint that a run can go on from: the adapter, and the optimizer's two moments of each weight."""
    return 3 * adapter_bytes(settings, model)


def _optimizer_problems(settings: TrainingSettings, device: Any) -> list[str]:
    import torch
    from transformers import Trainer

    if settings.optimizer not in OPTIONS["optimizer"].offered():
        return []  # named as a problem already
    arguments = training_arguments(use_cpu=True, group_by_length=False, output_dir="unused", optim=settings.optimizer, report_to="none")
    try:
        # One step on a weight of its own: an optimizer may be there and have no code for this device.
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
        weight = torch.nn.Parameter(torch.zeros(128, 64, device=device))
        weight.grad = torch.zeros_like(weight)
        kind([weight], **options).step()
    except Exception as error:  # a missing package, or an optimizer that needs more than a name: whatever it says is the reason
        return [f"Optimizer “{settings.optimizer}” cannot be used here: {_first_line(error)}. Choose another, such as adamw_torch."]
    return []


LOG_PACKAGES = {"wandb": ("wandb",), "tensorboard": ("tensorboard", "tensorboardX")}


def _log_problems(settings: TrainingSettings) -> list[str]:
    import importlib.util

    packages = LOG_PACKAGES.get(settings.report_to or "", ())
    if not packages or any(importlib.util.find_spec(package) for package in packages):
        return []
    return [
        f"Save detailed logs with “{settings.report_to}”: the package is not installed. Install it with “pip install {packages[0]}”, or choose None."
    ]


def adapter_bytes(settings: TrainingSettings, model: Any) -> int:
    """Size of the adapter's weights in float32, from the shapes of the layers that get LoRA weights."""
    wanted = target_modules(settings)
    total = 0
    for name, module in model.named_modules():
        if wanted == ALL_LINEAR or name.rsplit(".", 1)[-1] in wanted:
            sides = [getattr(module, side, None) for side in ("in_features", "out_features")]
            if type(module).__name__ == "Conv1D":  # GPT-2's linear layer
                sides = list(module.weight.shape)
            if None not in sides:
                total += sum(sides) * settings.lora_rank * 4
    return total


def _holds_a_run(folder: Path) -> bool:
    """Whether there is something in the folder that would be a loss: an adapter or a checkpoint, not just the diary of a run that failed."""
    return any(next(folder.glob(pattern), None) for pattern in ("adapter_config.json", "adapter_model.*", "checkpoint-*"))


def _is_backup(entry: Path) -> bool:
    return entry.name.startswith("Backup-")


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


# Start


def start(settings: TrainingSettings, host: Host, rate_factor: float = 1.0) -> TrainingRun:
    """Check, then train in a thread of its own. The page's way.

    Args:
        rate_factor: as in `begin`.

    Raises:
        SettingsError: with all problems; nothing was begun.
        training_run.Busy: another run is going on.
    """
    run = begin(settings, host, rate_factor)
    training_run.in_background(run, lambda: train(settings, host, run))
    return run


def begin(settings: TrainingSettings, host: Host, rate_factor: float = 1.0) -> TrainingRun:
    """Check the settings and claim the process's one place for a run.

    Args:
        rate_factor: what the learning rate is multiplied with from the checkpoint on that the run goes on from: 0.5 after a loss that
            went astray, which would do so again.

    Raises:
        SettingsError: with all problems, also where the rate is to be changed and there is no unfinished run.
        training_run.Busy: another run is going on.
    """
    running = training_run.current()
    if running is not None and running.active:
        raise training_run.Busy(training_run.busy_message(running))
    if problems := check(settings, host):
        raise SettingsError(problems)
    if rate_factor != 1 and ((going_on := resume.plan(settings, host)) is None or not going_on.fits):
        raise SettingsError([f"Name: “{settings.lora_name}” holds no unfinished run that could go on with another learning rate."])
    run = TrainingRun(
        settings.lora_name,
        settings=settings,
        stop_at_loss=settings.stop_at_loss,
        stop_at_epoch=settings.stop_at_epoch,
        time_budget_minutes=settings.time_budget_minutes,
    )
    if rate_factor != 1:
        run.request(SCALE_RATE, rate_factor)
    return training_run.claim(run)


def train(settings: TrainingSettings, host: Host, run: TrainingRun) -> TrainingRun:
    """The run from top to bottom, in this thread. It always ends `run` with what happened; it does not raise for a failed run."""
    run.update(message="Waiting until the model is free: a text is being generated with it")
    try:
        with host.using_model(give_up=lambda: run.stop_requested), random_state_kept():
            run.update(message="Preparing")
            if host.dirty:
                run.update(message="Loading the base model again, since an earlier run left it changed")
                host.reload_model()
            if problem := host.model_problem():
                raise RunFailed(f"Failed: the model went away before the run could begin. {problem}")
            # Held on to until the end: the host's own controls may unload the model or load another one in mid-run.
            base = Base(host.model, host.tokenizer, host.model_name)
            try:
                prepared = _prepare(settings, host, base.tokenizer, run)
                with untouched(base.model):
                    _train_and_save(settings, host, run, prepared, base)
            except Changed as error:
                if host.model is base.model:
                    host.mark_dirty()
                run.notices.append(f"The base model is not as it was ({error}). Reload it before you chat; the next run reloads it by itself.")
            finally:
                if host.model is not base.model:
                    run.notices.append(CHANGED_MEANWHILE)
                del base
                _free_memory()
        run.end(*_outcome(run))
    except (DataError, SettingsError) as error:
        run.end(FAILED, "The data cannot be trained.", error.problems)
    except _Astray as error:
        run.end(FAILED, failure_message(error.found, run), error.batch)
    except (Stopped, NotFree):
        run.end(INTERRUPTED, "Interrupted before the first step; nothing was trained or saved.")
    except Exception as error:  # the end of a run is told by the run: whatever happened becomes its outcome
        logger.exception("The run “%s” failed", run.name)
        run.end(FAILED, failure_message(error, run))
    return run


def _outcome(run: TrainingRun) -> tuple[str, str]:
    where = f"The LoRA is saved in {run.adapter}."
    later = " Start with the same settings goes on from there." if run.adapter and resume.unfinished(run.adapter) else ""
    if run.stop_requested:
        return INTERRUPTED, f"Interrupted at step {run.step} of {run.total_steps}. {where}{later}"
    if run.time_is_up:
        return DONE, f"Done: {run.stopped_because}, so the run ended at step {run.step} of {run.total_steps}. {where}{later}"
    if run.stopped_because:
        return DONE, f"Done: {run.stopped_because}, so the run ended at step {run.step} of {run.total_steps}. {where}"
    return DONE, f"Done. {where}"


def failure_message(error: Exception, run: TrainingRun) -> str:
    """What happened in a sentence, with what to change."""
    said = str(error)
    place = f" at step {run.step} of {run.total_steps}" if run.total_steps else ""
    kept = " Checkpoints that were saved before are kept." if run.adapter and any(run.adapter.glob("checkpoint-*")) else ""
    if isinstance(error, RunFailed):
        return said + kept
    if isinstance(error, ModelError):
        return f"Failed: the base model had to be loaded again, and {said}"
    going_on = resume.unfinished(run.adapter) if kept else None
    if isinstance(error, Diverged):
        offer = "Lower the Learning Rate (a half or a third), or raise Warmup Steps."
        if run.half_rate_offered and going_on is not None:
            offer = f"Go on from {going_on.folder.name} (step {going_on.step}) with half the learning rate, or start afresh with a lower one."
        return f"Failed: {said}. Nothing was saved over it. {offer}{kept}"
    if going_on is not None:
        kept += f" Start with the same settings goes on from {going_on.folder.name} (step {going_on.step})."
    if "out of memory" in said.lower() or type(error).__name__ == "OutOfMemoryError":
        return f"Failed: out of memory{place}. Lower True Batch Size or the cutoff, tick Use Gradient Checkpoint, or load the model in 4-bit.{kept}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"Failed: the disk is full{place}. Free some space, or raise Save every n steps so that fewer checkpoints are made.{kept}"
    if isinstance(error, OSError):
        return f"Failed{place}: {error.strerror or said} ({Path(error.filename).name if error.filename else 'a file'}).{kept}"
    return f"Failed{place}: {_first_line(error)} ({type(error).__name__}). The log has the details.{kept}"


# Prepare


def _prepare(settings: TrainingSettings, host: Host, tokenizer: Any, run: TrainingRun) -> Prepared:
    def progress(doing: str, share: float) -> None:
        if run.stop_requested:
            raise Stopped
        run.update(message=f"{doing} ({share:.0%})")

    prepared = prepare(settings, tokenizer, host, progress)
    run.notices.extend(prepared.report.notices)
    run.update(report=prepared.report, total_steps=prepared.plan.total_steps, message="Loading the trainer")
    if run.stop_requested:
        raise Stopped
    return prepared


# Train


def _train_and_save(settings: TrainingSettings, host: Host, run: TrainingRun, prepared: Prepared, base: Base) -> None:
    import transformers

    transformers.set_seed(settings.seed)
    folder = path_in(host.lora_dir, settings.lora_name)
    facts = model_facts(base.model, base.name)
    data = resume.print_of(prepared.train)
    unfinished = _unfinished(settings, folder, facts, data, run)
    if unfinished is None and (problem := _disk_problem(settings, base.model, prepared.plan, folder)):
        raise RunFailed(problem)
    needed = checkpoint_bytes(settings, base.model)
    model = attach_lora(base.model, settings)
    old = None if settings.always_override or unfinished is not None else continued.finished(folder)
    if old is not None:
        _go_on_from(old, model, run)
    with _room_for(folder, run, going_on=old is not None, unfinished=unfinished) as (backup, backup_goes):
        run.write_to(folder)
        run.record("start", settings=settings.entered(), model=base.name, report=prepared.report.as_dict(), earlier_steps=run.earlier_steps)
        settings.save(folder / "training_parameters.json")

        def save_checkpoint(name: str) -> None:
            at = trainer.state.global_step
            if (folder / name / resume.NUMBERS).exists() and unfinished is not None and unfinished.folder.name == name:
                return  # the one that the run went on from
            if (free := shutil.disk_usage(folder).free) < needed + SPARE_DISK // 2:
                run.notices.append(f"{name} was not saved: it needs about {_megabytes(needed)}, and {_megabytes(free)} are free. Free some space.")
                run.record("not saved", name=name, free=free, needed=needed)
                return
            measured = [
                entry["eval_loss"] for entry in run.history[-2:] if "eval_loss" in entry and entry["current_steps"] == run.earlier_steps + run.step
            ]
            before = [each for each in run.checkpoints if each["name"] != name]
            run.checkpoints = [*before, {"name": name, "eval_loss": measured[-1] if measured else None}]
            resume.remove_whole(folder / name)  # of a run whose state is lost
            with whole_folder(folder / name) as part:
                _write_adapter(model, part)
                resume.write(
                    part, tensors=resume.tensors_of(trainer, trainer.random_numbers), run=run, optimizer_step=at, step=prepared.plan.steps_at(at),
                    epoch=prepared.plan.steps_at(at) / prepared.plan.steps_per_epoch, settings=settings, facts=facts, data=data, counters=trainer.counters(),
                    backup=backup.name if backup else "", backup_goes=backup_goes,
                )  # fmt: skip
            resume.forget(folder, but=name)
            run.record("checkpoint", name=name)
            for gone in removed_checkpoints(run.checkpoints, settings.save_total_limit):
                resume.remove_whole(folder / gone)
                run.checkpoints = [each for each in run.checkpoints if each["name"] != gone]
                run.record("removed", name=gone)

        from .callbacks import checkpoint_name, removed_checkpoints

        trainer = _trainer(model, settings, run, prepared, folder, save_checkpoint, unfinished)
        try:
            result = _until_stopped(trainer)
        except Diverged as error:
            run.update(half_rate_offered=resume.unfinished(folder) is not None)
            raise _Astray(error, _batch(trainer, error, prepared, base.tokenizer)) from error
        if trainer.passing is not None:
            raise Stopped  # before it had caught up with its checkpoint
        run.update(status=SAVING, message="Saving", train_loss=result)
        goes_on = (run.stop_requested or run.time_is_up) and 0 < trainer.state.global_step < trainer.end()
        if goes_on:
            saved = resume.unfinished(folder)
            if saved is None or saved.optimizer_step != trainer.state.global_step:
                save_checkpoint(checkpoint_name(run.earlier_steps + prepared.plan.steps_at(trainer.state.global_step), "user"))
        _save_all(model, settings, base.name, run, prepared, folder)
        if not goes_on:
            resume.forget(folder)


class _Astray(RuntimeError):
    """A run that diverged, with the batch that it did so at in words."""

    def __init__(self, found: Diverged, batch: list[str]):
        super().__init__(str(found))
        self.found, self.batch = found, batch


def _unfinished(settings: TrainingSettings, folder: Path, facts: Any, data: resume.DataPrint, run: TrainingRun) -> resume.Unfinished | None:
    """The unfinished run in this folder that this one goes on from.

    Raises:
        SettingsError: there is one, and it cannot be gone on from; names both values of everything that does not fit.
    """
    found = None if settings.always_override else resume.unfinished(folder)
    if found is None:
        return None
    plan = resume.compare(found, settings, facts, data)
    run.notices += plan.notices
    if plan.fits:
        run.notices.append(f"The run goes on from {found.folder.name}: step {found.step} of {found.total_steps}, epoch {found.epoch:.2f}.")
        return found
    if plan.adapter_saved:
        differences = "; ".join(f"{item.name} was {item.saved} and is {item.now}" for item in plan.misfits)
        run.notices.append(f"The interrupted run cannot go on exactly ({differences}), so its LoRA is trained on with a new schedule.")
        return None
    raise SettingsError([plan.problem()])


BATCH_ROWS, BATCH_TEXT = 8, 300  # blocks that are named, and characters of each


def _batch(trainer: Any, found: Diverged, prepared: Prepared, tokenizer: Any) -> list[str]:
    """The blocks of the optimizer step at which a run diverged, in words; of an accumulated step only those of the steps that did."""
    plan = prepared.plan
    epoch, place = divmod(found.optimizer_step - 1, plan.optimizer_steps_per_epoch)
    losses = [float(loss) for loss in trainer.step_losses]
    parts = range(len(losses))
    if broken := [part for part in parts if not math.isfinite(losses[part])]:
        parts = broken
    elif "far above" in str(found):
        parts = [max(parts, key=losses.__getitem__)]
    order, size = trainer.order.of(epoch), plan.micro_batch_size
    steps = [place * plan.accumulation + part for part in parts]
    numbers = [number for step in steps for number in order[step * size : (step + 1) * size]]
    said = []
    for number in numbers[:BATCH_ROWS]:
        item = prepared.blocks[number]
        text = " ".join(tokenizer.decode(item.input_ids).split())
        where = f"row {item.row}" if item.row else f"text from character {item.start}"
        said.append(f"In its batch: block {number + 1} ({where}): “{text if len(text) <= BATCH_TEXT else text[:BATCH_TEXT] + '…'}”")
    if len(numbers) > BATCH_ROWS:
        said.append(f"In its batch: {len(numbers) - BATCH_ROWS} more blocks.")
    return said


def attach_lora(model: Any, settings: TrainingSettings) -> Any:
    """Put LoRA layers into `model` (in place, as PEFT does) and return the `PeftModel`; a quantised model is made ready first."""
    import peft

    if quantization_of(model) in ("4-bit", "8-bit"):
        model = peft.prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=settings.use_grad_checkpoint, gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    config = peft.LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.alpha,
        use_rslora=settings.lora_RS,
        lora_dropout=settings.lora_dropout,
        target_modules=target_modules(settings),
        bias="none",
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, config)


def _go_on_from(old: continued.Finished, model: Any, run: TrainingRun) -> None:
    try:
        continued.put_weights(model, old)
    except Exception as error:  # a broken file raises whatever its reader likes
        raise RunFailed(
            f"Failed: the LoRA “{old.folder.name}” cannot be gone on from ({_first_line(error)}). Nothing was changed. Choose another Name, "
            "or tick Override Existing Files to start afresh."
        ) from error
    run.update(earlier=old.history, earlier_steps=old.step, earlier_epochs=old.epoch)
    run.notices.append(f"Training goes on from the LoRA “{old.folder.name}” (step {old.step}, epoch {old.epoch:.2f}) with a new schedule.")


class Order:
    """The order of the blocks: a pure function of the seed and the epoch, so that a run that goes on finds its place.

    A `torch.utils.data.Sampler`: each iteration is the next epoch.
    """

    def __init__(self, lengths: Any, seed: int, group_by: int = 0):
        """
        Args:
            lengths: of the blocks, in tokens.
            group_by: blocks of like length stand together in groups of this many (transformers' `LengthGroupedSampler`); 0: not.
        """
        self.lengths, self.seed, self.group_by, self.epoch = list(lengths), seed, group_by, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return iter(self.of(epoch))

    def of(self, epoch: int) -> list[int]:
        import torch
        from transformers.trainer_pt_utils import LengthGroupedSampler

        numbers = torch.Generator().manual_seed((self.seed << 16) + epoch)
        if self.group_by:
            return list(LengthGroupedSampler(self.group_by, lengths=self.lengths, generator=numbers))
        return torch.randperm(len(self), generator=numbers).tolist()


def _schedule(settings: TrainingSettings, plan: Plan) -> Callable[[float], float]:
    """The multiplier of the learning rate at an optimizer step, without the user's commands."""
    if settings.lr_scheduler_type in FP_SCHEDULERS:
        lengths = {
            "total_steps": plan.optimizer_steps,
            "epoch_steps": min(plan.optimizer_steps, plan.optimizer_steps_per_epoch),
            "warmup_steps": plan.warmup(settings),
        }
        return lambda step: lr_multiplier(settings.lr_scheduler_type, step, **lengths)
    import torch
    import transformers

    # transformers' own, taken out of a schedule for an optimizer of its own: they are functions of the step, and ours are laid around them
    unused = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=settings.rate)
    own = transformers.get_scheduler(
        settings.lr_scheduler_type, unused, num_warmup_steps=plan.warmup(settings), num_training_steps=plan.optimizer_steps
    )
    return own.lr_lambdas[0]


def _trainer(
    model: Any,
    settings: TrainingSettings,
    run: TrainingRun,
    prepared: Prepared,
    folder: Path,
    save_checkpoint: Any,
    unfinished: resume.Unfinished | None,
) -> Any:
    import torch
    import transformers
    from transformers.trainer_callback import PrinterCallback

    from .callbacks import MOST_ADDED_EPOCHS, Checkpoints, Evaluation, Guard, Progress, Steering, Stops, steered

    plan = prepared.plan
    device = model.device.type
    arguments = training_arguments(
        output_dir=str(folder),
        # More than there are: Stops ends the run, since epochs can be added. In steps, because transformers before 4.51 leaves the last,
        # smaller optimizer step of each epoch out of its count.
        max_steps=plan.optimizer_steps + MOST_ADDED_EPOCHS * plan.optimizer_steps_per_epoch,
        per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=plan.accumulation,
        learning_rate=settings.rate,
        lr_scheduler_type="constant",  # ours is made in create_scheduler
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim=settings.optimizer,
        neftune_noise_alpha=settings.neft_noise_alpha or None,
        gradient_checkpointing=settings.use_grad_checkpoint,
        gradient_checkpointing_kwargs={"use_reentrant": False} if settings.use_grad_checkpoint else None,
        bf16=device == "cuda" and model.dtype == torch.bfloat16,
        fp16=device == "cuda" and model.dtype == torch.float16,
        use_cpu=device == "cpu",
        group_by_length=False,  # Order does it
        seed=settings.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,  # it would hide what the run must stop for
        save_strategy="no",  # checkpoints are ours: whole or absent
        report_to=settings.report_to or "none",
        run_name=settings.lora_name,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device == "cuda",
    )
    collator = Collator(prepared.pad_id, multiple=8 if device == "cuda" else 1)
    base = _schedule(settings, plan)

    def multiplier(step: int) -> float:
        return steered(step, base, plan.optimizer_steps, plan.optimizer_steps_per_epoch, run.steering)

    class OurTrainer(transformers.Trainer):
        """The library's Trainer with an order of the data and a schedule that are functions of the step, and with a way to go on.

        To go on from a checkpoint, the trainer passes over the steps that were done: each gives back its loss as it was logged, with
        nothing computed. After the last of them the checkpoint is put back. (The library's own `resume_from_checkpoint` is exact only
        in some of the versions that the hosts bring: before 4.54 it loses the last optimizer step of an epoch with accumulation.)
        """

        passing = unfinished
        step_losses: list[Any] = []
        random_numbers: dict[str, Any] = {}

        def get_train_dataloader(self) -> Any:
            self.order = Order(
                prepared.blocks.lengths, settings.seed, self.args.train_batch_size * plan.accumulation if settings.group_by_length else 0
            )
            return self.accelerator.prepare(
                torch.utils.data.DataLoader(
                    self.train_dataset,
                    batch_size=self.args.train_batch_size,
                    sampler=self.order,
                    collate_fn=collator,
                    pin_memory=self.args.dataloader_pin_memory,
                )
            )

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            if self.lr_scheduler is None:
                self.lr_scheduler = self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer if optimizer is None else optimizer, multiplier)
            return self.lr_scheduler

        def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            if self.at != self.state.global_step:
                self.at, self.step_losses = self.state.global_step, []
            loss = super().training_step(model, inputs, *rest, **named) if self.passing is None else self._passed()
            self.step_losses.append(loss)
            return loss

        at = -1

        def _passed(self) -> Any:
            if run.stop_requested:
                raise Stopped
            first = next(parameter for parameter in self.model.parameters() if parameter.requires_grad)
            first.grad = torch.zeros_like(first)  # the scaler of half precision wants to see a gradient
            logged = self.passing.losses
            known = not self.step_losses and self.at < len(logged)
            return torch.tensor(logged[self.at] if known else 0.0, device=self.args.device)

        def floating_point_ops(self, inputs: Any) -> int:
            return 0  # nobody asks for the sum, and counting the parameters of a large model takes milliseconds

        def log(self, logs: dict[str, float], *rest: Any, **named: Any) -> None:
            if self.passing is None:
                if "loss" in logs:
                    self.random_numbers = resume.random_state()
                super().log(logs, *rest, **named)
            elif self.state.global_step == self.passing.optimizer_step:
                self.go_on()

        def go_on(self) -> None:
            old, self.passing = self.passing, None
            try:
                resume.put_back(self, old)
            except Exception as error:  # a broken file raises whatever its reader likes
                raise RunFailed(
                    f"Failed: {old.folder.name} cannot be gone on from ({_first_line(error)}). Nothing was changed. Remove that folder, choose another "
                    "Name, or tick Override Existing Files to start afresh."
                ) from error
            self.random_numbers = resume.random_state()
            checkpoints.by_loss.saved_at, checkpoints.by_loss.below = old.counters["loss_saved_at"], old.counters["loss_below"]
            if evaluation is not None:
                evaluation.measured_at = old.counters["measured_at"]
            run.update(step=old.step, epoch=self.state.epoch, **old.progress)
            run.update(resumed_at=old.step, total_steps=plan.steps_at(steering.end()))
            run.record("resume", checkpoint=old.folder.name, optimizer_step=old.optimizer_step)
            self.begin()
            steering.look(self.state)
            if evaluation is not None:
                evaluation.look(self.state)
            stops.look(self.state, self.control)

        def begin(self) -> None:
            """From here on the steps count."""
            run.update(status=TRAINING, message="Training", training_since=time.time())
            for callback in (Guard(run, lambda: self.accelerator.optimizer_step_was_skipped), progress, steering, evaluation, checkpoints, stops):
                if callback is not None:
                    self.add_callback(callback)

        def set_rate(self) -> None:
            """Let the next step use the schedule as it is after a command."""
            state = self.schedule.state_dict()
            rates = [rate * multiplier(state["last_epoch"]) for rate in self.schedule.base_lrs]
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            self.schedule.load_state_dict({**state, "_last_lr": rates})

        def end(self) -> int:
            return steering.end()

        def counters(self) -> dict[str, Any]:
            return {
                "loss_saved_at": checkpoints.by_loss.saved_at,
                "loss_below": checkpoints.by_loss.below,
                "measured_at": evaluation.measured_at if evaluation is not None else 0,
            }

    trainer = OurTrainer(model=model, args=arguments, train_dataset=prepared.train, data_collator=collator)
    trainer.remove_callback(PrinterCallback)
    progress, steering = Progress(run, plan), Steering(run, plan, trainer.set_rate)
    checkpoints, stops = Checkpoints(run, plan, settings, save_checkpoint), Stops(run, plan, steering.end)
    evaluation = None
    if prepared.eval is not None:
        every = plan.to_optimizer_steps(settings.evaluation[1])

        def evaluate() -> float:
            return evaluation_loss(trainer, prepared.eval, collator, settings.micro_batch_size, run)

        evaluation = Evaluation(run, every, evaluate, trainer.log)
    if unfinished is None:
        trainer.begin()
    else:
        run.update(message=f"Going on from step {unfinished.step}")
    return trainer


def _until_stopped(trainer: Any) -> float | None:
    """Train; the mean loss of the run, or None when it was stopped in the middle of an evaluation."""
    try:
        return trainer.train().training_loss
    except Stopped:
        return None


def evaluation_loss(trainer: Any, dataset: Any, collator: Collator, batch_size: int, run: TrainingRun) -> float:
    """Mean loss of a trained token of `dataset`: every token weighs the same, in whatever batch it stands.

    Raises:
        Stopped: the user interrupted.
    """
    import torch

    model = trainer.model
    total, tokens = 0.0, 0
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), trainer.compute_loss_context_manager():
            for first in range(0, len(dataset), batch_size):
                if run.stop_requested:
                    raise Stopped
                batch = collator([dataset[row] for row in range(first, min(first + batch_size, len(dataset)))])
                batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
                counted = int((batch["labels"][:, 1:] != -100).sum())
                total += float(model(**batch).loss) * counted
                tokens += counted
    finally:
        model.train(was_training)
    return total / tokens


# Save


@contextlib.contextmanager
def _room_for(folder: Path, run: TrainingRun, going_on: bool, unfinished: resume.Unfinished | None = None) -> Iterator[tuple[Path | None, bool]]:
    """The adapter's folder, ready for the run, with what lay in it safe in `Backup-{date}`.

    Starting afresh moves everything there, and it goes when the new adapter is saved. Going on from a finished adapter copies
    its files there, to stay. A run that fails before it saved anything leaves the folder as it was. An unfinished run that goes on
    finds its folder as it left it, with the backup that it made.

    Yields:
        The backup, or None where there was nothing to keep, and whether it goes when the new adapter is saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run.update(adapter=folder)
    resume.remove_leftovers(folder)
    if unfinished is not None:
        backup, goes = _backup_of(unfinished, folder, run)
        yield backup, goes
        if goes and backup is not None:
            shutil.rmtree(backup, ignore_errors=True)
        return
    old = [entry for entry in folder.iterdir() if not _is_backup(entry)] if _holds_a_run(folder) else []
    if not old:
        (folder / "run.jsonl").unlink(missing_ok=True)
    backup = _free_name(folder / time.strftime("Backup-%Y-%m-%d-%H%M%S"))
    if old:
        backup.mkdir()
        for entry in old:
            if not going_on:
                entry.rename(backup / entry.name)
            elif entry.is_file():
                shutil.copy2(entry, backup / entry.name)
    if going_on:
        run.notices.append(f"The LoRA as it was is kept in {backup.name}.")
    try:
        yield (backup if old else None), bool(old and not going_on)
    except BaseException:
        if going_on and not run.saved:
            _put_back(folder, backup, [entry.name for entry in old])
        elif old and not _holds_a_run(folder):
            run.write_to(None)
            _put_back(folder, backup)
        raise
    if old and not going_on:
        shutil.rmtree(backup, ignore_errors=True)


def _backup_of(unfinished: resume.Unfinished, folder: Path, run: TrainingRun) -> tuple[Path | None, bool]:
    """The backup that the unfinished run made; a new one where it is gone and another adapter lies on top."""
    if unfinished.backup and (folder / unfinished.backup).is_dir():
        return folder / unfinished.backup, unfinished.backup_goes
    adapter = continued.finished(folder)
    if adapter is None or resume.is_that_of(unfinished, adapter):
        return None, False
    backup = _free_name(folder / time.strftime("Backup-%Y-%m-%d-%H%M%S"))
    backup.mkdir()
    for entry in folder.iterdir():
        if entry.is_file():
            shutil.copy2(entry, backup / entry.name)
    run.notices.append(f"The LoRA as it was is kept in {backup.name}.")
    return backup, False


def _free_name(path: Path) -> Path:
    number = itertools.count(2)
    free = path
    while free.exists():
        free = path.with_name(f"{path.name}-{next(number)}")
    return free


def _put_back(folder: Path, backup: Path, stays: list[str] | None = None) -> None:
    """Give the folder what is in `backup`; what else the run left there goes, but for the names that stay (and checkpoints of theirs)."""
    for entry in list(folder.iterdir()):
        if not _is_backup(entry) and not (stays and (entry.name in stays or entry.is_dir())):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for entry in list(backup.iterdir()):
        entry.replace(folder / entry.name)
    backup.rmdir()


def save_adapter(model: Any, folder: Path) -> None:
    """Save the adapter in PEFT's format (safetensors) as `folder`, whole or not at all.

    Raises:
        RunFailed: a weight is not a finite number.
    """
    with whole_folder(folder) as part:
        _write_adapter(model, part)


def _write_adapter(model: Any, folder: Path) -> None:
    import torch

    for name, weight in model.named_parameters():
        if weight.requires_grad and not torch.isfinite(weight).all():
            raise RunFailed(f"Failed: the LoRA's weights are not numbers any more ({name}), so they were not saved. Lower the Learning Rate.")
    model.save_pretrained(str(folder), safe_serialization=True, selected_adapters=[model.active_adapter])
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def _save_all(model: Any, settings: TrainingSettings, base_name: str, run: TrainingRun, prepared: Prepared, folder: Path) -> None:
    """The finished adapter and everything that is told about it."""
    whole = folder / ".adapter"
    save_adapter(model, whole)
    for file in whole.iterdir():
        file.replace(folder / file.name)
    whole.rmdir()
    for file in folder.glob("adapter_model.bin"):
        file.unlink()  # an older run's, whose copy is in the backup: beside the new one it would only mislead
    run.update(saved=True)
    facts = model_facts(model.get_base_model(), base_name)
    write_json(folder / "training_prompt.json", prepared.formatting)
    write_json(folder / "training_graph.json", run.graph())
    write_json(folder / "training_log.json", _last_values(settings, run, facts))
    write_whole(folder / "README.md", model_card(settings, run, prepared, facts))
    try:
        save_png(run.whole_history, folder / "training_graph.png", title=run.name)
    except ImportError:
        run.notices.append(
            f"The picture of the loss was not saved, since matplotlib is missing; training_graph.json has its figures. {needs.install_command('matplotlib')} installs it."
        )


def _last_values(settings: TrainingSettings, run: TrainingRun, facts: Any) -> dict[str, Any]:
    return {
        "base_model_name": facts.name,
        "base_model_class": facts.architecture,
        "base_loaded_in_4bit": facts.quantization == "4-bit",
        "base_loaded_in_8bit": facts.quantization == "8-bit",
        "projections": settings.training_projection,
        "loss": run.loss,
        "eval_loss": run.eval_loss,
        "learning_rate": run.learning_rate,
        "epoch": run.earlier_epochs + run.epoch,
        "current_steps": run.earlier_steps + run.step,
        "train_loss": run.train_loss,
        "train_runtime": round(time.time() - run.training_since, 2) if run.training_since else None,
    }


def model_card(settings: TrainingSettings, run: TrainingRun, prepared: Prepared, facts: Any) -> str:
    """The README.md of an adapter: base, data, settings, losses."""
    data = settings.dataset or settings.datasetJSONL or settings.raw_text_file
    evaluation = settings.evaluation[0]
    report = prepared.report
    first = next((entry["loss"] for entry in run.history if "loss" in entry), None)

    def figure(value: float | None) -> str:
        return "–" if value is None else f"{value:.4f}"

    changed = "\n".join(
        f"| {key} | {value} |"
        for key, value in settings.entered().items()
        if value != TrainingSettings().entered()[key] and key not in ("lora_name", "always_override")
    )
    return f"""---
library_name: peft
base_model: {facts.name}
tags: [lora, training-pro]
---

# {settings.lora_name}

A LoRA for {facts.name} ({facts.architecture}, {facts.quantization} quantisation), trained with Training PRO.

| | |
|---|---|
| data | {data} ({report.blocks} blocks, {report.total_tokens} tokens, {report.trained_tokens} of them trained) |
| evaluation data | {f"{evaluation} ({report.eval_blocks} blocks)" if evaluation else "none"} |
| steps | {run.step} of {run.total_steps} ({run.epoch:.2f} epochs) |
| first loss | {figure(first)} |
| last loss | {figure(run.loss)} |
| mean loss | {figure(run.train_loss)} |
| evaluation loss | {figure(run.eval_loss)} |

Settings that are not the defaults:

| setting | value |
|---|---|
{changed}
"""


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:300]


def _megabytes(size: int) -> str:
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size / 2**20:.0f} MB"
