"""One run from top to bottom: check, prepare, attach the LoRA, train, save, give the base model back."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import continued, evaluation, needs, resume, training_run
from .adapters import adapter_bytes, attach_lora, kind_notices, kind_problems, trained_bytes, write_adapter
from .attention import AUTO, attention, attention_problem
from .auto_batch import is_out_of_memory, what_to_change
from .background import in_a_thread_that_ends
from .dataset_tools import DataError, Prepared, prepare
from .folder_lock import Taken, alone_in, is_taken
from .host import Host, ModelError, NotFree, free_memory, model_facts
from .packing import CannotPack, layout_of
from .paths import name_problem, path_for_new, path_in, reason, refuse_links_out, whole_folder
from .samples import sampler_of
from .saving import holds_a_run, room_for, save_all
from .settings import OPTIONS, PROJECTIONS, Plan, SettingsError, TrainingSettings
from .step_kernels import liger_problem, put_back
from .trainer import close_logs, make_trainer
from .training_run import DONE, FAILED, INTERRUPTED, SAVING, SCALE_RATE, Diverged, RunFailed, Stopped, TrainingRun, first_line
from .untouched import Changed, optimizer_overrides_forgotten, random_state_kept, tensor_cores_used, untouched
from .versions import optimizer_of

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
        problems += _target_problems(settings, host.model) + _computing_problems(settings, host)
    if fitting := has_model and settings.lora_rank > 0 and settings.training_projection in OPTIONS["training_projection"].offered():
        problems += kind_problems(settings, host.model)
    if name_problem(settings.lora_name) is None:
        problems += _folder_problems(settings, host)
        if fitting:
            problems += _disk_problems(settings, host)
    problems += _measuring_problems(settings)
    return problems + _optimizer_problems(settings, host.model.device if has_model else "cpu") + _log_problems(settings)


def check_data(settings: TrainingSettings, host: Host) -> list[str]:
    """What keeps the data from being prepared: the name, which Verify does not need, is not looked at."""
    return needs.broken() or settings.model_copy(update={"lora_name": "verified"}).problems(host)


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


def _computing_problems(settings: TrainingSettings, host: Host) -> list[str]:
    """What only the model itself can tell, asked of it where it is free; else the run asks again once it is."""
    if not settings.packing and settings.attention == AUTO and not settings.use_liger_kernel:
        return []
    try:
        with host.using_model(give_up=lambda: True):
            if settings.use_liger_kernel and (problem := liger_problem(host.model)):
                return [problem]
            if problem := attention_problem(host.model, settings.attention):
                return [problem]
            with attention(host.model, settings.attention):
                _layout(settings, host.model)
    except RunFailed as error:
        return [str(error)]
    except NotFree:
        pass
    return []


def _layout(settings: TrainingSettings, model: Any) -> str | None:
    """How packed rows are given to the model; None without Packing."""
    try:
        return layout_of(model, settings.cutoff_len) if settings.packing else None
    except CannotPack as error:
        raise RunFailed(f"Packing cannot be used here: {error}. Untick it; Group Samples by Length saves most of the padding too.") from error


def _folder_problems(settings: TrainingSettings, host: Host) -> list[str]:
    try:
        folder = path_for_new(host.lora_dir, settings.lora_name)
        refuse_links_out(folder)
    except ValueError as error:
        return [f"Name: {error}"]
    if folder.exists() and not folder.is_dir():
        return [f"Name: “{settings.lora_name}” is a file in the LoRA folder; choose another name."]
    if is_taken(folder):
        return [str(Taken(folder))]
    if not holds_a_run(folder) or settings.always_override:
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
    if settings.save_steps or settings.save_steps_under_loss or settings.load_best_at_end:
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
    best = 2 if settings.load_best_at_end else 0  # the newer is whole before the older goes
    if not settings.save_steps:
        return best
    count = plan.optimizer_steps // plan.to_optimizer_steps(settings.save_steps) + plan.optimizer_steps // plan.optimizer_steps_per_epoch
    if settings.save_total_limit:
        count = min(count, settings.save_total_limit + 2)  # the best one, and the newest before one goes
    return count + best


def checkpoint_bytes(settings: TrainingSettings, model: Any) -> int:
    """Size of a checkpoint that a run can go on from: the adapter, and the optimizer's two moments of each weight that is trained."""
    return adapter_bytes(settings, model) + 2 * trained_bytes(settings, model)


def _optimizer_problems(settings: TrainingSettings, device: Any) -> list[str]:
    import torch

    if settings.optimizer not in OPTIONS["optimizer"].offered():
        return []  # named as a problem already
    try:
        # One step on a weight of its own: an optimizer may be there and have no code for this device.
        kind, options = optimizer_of(settings.optimizer)
        weight = torch.nn.Parameter(torch.zeros(128, 64, device=device))
        weight.grad = torch.zeros_like(weight)
        kind([weight], **options).step()
    except Exception as error:  # a missing package, or an optimizer that needs more than a name: whatever it says is the reason
        return [f"Optimizer “{settings.optimizer}” cannot be used here: {first_line(error)}. Choose another, such as adamw_torch."]
    return []


def _measuring_problems(settings: TrainingSettings) -> list[str]:
    """Settings that look at the evaluation loss, without anything to measure it on."""
    if settings.evaluation[0]:
        return []
    data = OPTIONS["eval_datasetJSONL" if settings.datasetJSONL else "eval_dataset"].label
    wanting = [OPTIONS[key].label for key in ("early_stopping_patience", "load_best_at_end") if getattr(settings, key)]
    return [f"{label} looks at the evaluation loss, and no {data} is chosen. Choose one, or switch {label} off." for label in wanting]


LOG_PACKAGES = {"wandb": ("wandb",), "tensorboard": ("tensorboard", "tensorboardX")}


def _log_problems(settings: TrainingSettings) -> list[str]:
    import importlib.util

    packages = LOG_PACKAGES.get(settings.report_to or "", ())
    if not packages or any(importlib.util.find_spec(package) for package in packages):
        return []
    return [
        f"Save detailed logs with “{settings.report_to}”: the package is not installed. Install it with “pip install {packages[0]}”, or choose None."
    ]


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
    run = in_a_thread_that_ends(lambda: begin(settings, host, rate_factor))
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
    measuring = evaluation.busy_message()
    waiting = f"Waiting: {measuring}" if measuring else f"Waiting until the model is free: {host.used_for or 'a text is being generated with it'}"
    run.update(message=waiting)
    try:
        with host.using_model(give_up=lambda: run.stop_requested), random_state_kept(), optimizer_overrides_forgotten(), tensor_cores_used():
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
                if problem := attention_problem(base.model, settings.attention) or (settings.use_liger_kernel and liger_problem(base.model)):
                    raise RunFailed(f"Failed before the first step: {problem}")
                with untouched(base.model), put_back(base.model, settings), attention(base.model, settings.attention):
                    _train_and_save(settings, host, run, prepared, base)
            except Changed as error:
                if host.model is base.model:
                    host.mark_dirty()
                run.notices.append(f"The base model is not as it was ({error}). Reload it before you chat; the next run reloads it by itself.")
            finally:
                if host.model is not base.model:
                    run.notices.append(CHANGED_MEANWHILE)
                del base
                free_memory()
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
    where = f"The LoRA is saved in {run.adapter}{f', as it was at {run.kept_best}' if run.kept_best else ''}."
    later = " Start with the same settings goes on from there." if _kept(run)[1] is not None else ""
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
    place = "" if not run.total_steps else f" at step {run.step} of {run.total_steps}" if run.step else " before the first step was done"
    kept, going_on = _kept(run)
    if isinstance(error, (RunFailed, Taken)):
        return said + kept
    if type(error).__module__.partition(".")[0] == "wandb":
        return f"Failed: Weights & Biases could not be used ({first_line(error)}). Log in with “wandb login”, set WANDB_MODE to offline, or choose None.{kept}"
    if isinstance(error, ModelError):
        return f"Failed: the base model had to be loaded again, and {said}"
    if isinstance(error, Diverged):
        offer = "Lower the Learning Rate (a half or a third), or raise Warmup Steps."
        if run.half_rate_offered and going_on is not None:
            offer = f"Go on from {going_on.folder.name} (step {going_on.step}) with half the learning rate, or start afresh with a lower one."
        return f"Failed: {said}. Nothing was saved over it. {offer}{kept}"
    if going_on is not None:
        kept += f" Start with the same settings goes on from {going_on.folder.name} (step {going_on.step})."
    if is_out_of_memory(error):
        return f"Failed: out of memory{place}. {what_to_change(run.settings)}{kept}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"Failed: the disk is full{place}. Free some space, or raise Save every n steps so that fewer checkpoints are made.{kept}"
    if isinstance(error, OSError) and error.strerror:
        return f"Failed{place}: {reason(error)}.{kept}"
    return f"Failed{place}: {first_line(error)} ({type(error).__name__}). The log has the details.{kept}"


def _kept(run: TrainingRun) -> tuple[str, resume.Unfinished | None]:
    """What a run that has ended has on the disk: a sentence, and what can be gone on from. A drive that is gone cannot be asked: nothing."""
    with contextlib.suppress(OSError):
        if run.adapter and any(run.adapter.glob("checkpoint-*")):
            return " Checkpoints that were saved before are kept.", resume.unfinished(run.adapter)
    return "", None


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
    with alone_in(path_in(host.lora_dir, settings.lora_name)):
        _train_alone(settings, host, run, prepared, base)


def _train_alone(settings: TrainingSettings, host: Host, run: TrainingRun, prepared: Prepared, base: Base) -> None:
    folder = path_in(host.lora_dir, settings.lora_name)
    facts = model_facts(base.model, base.name)
    data = resume.print_of(prepared.train)
    unfinished = _unfinished(settings, folder, facts, data, run)
    if unfinished is None and (problem := _disk_problem(settings, base.model, prepared.plan, folder)):
        raise RunFailed(problem)
    needed = checkpoint_bytes(settings, base.model)
    run.notices += kind_notices(settings)
    layout = _layout(settings, base.model)
    model = attach_lora(base.model, settings)
    old = None if settings.always_override or unfinished is not None else continued.finished(folder)
    if old is not None:
        _go_on_from(old, model, run)
    with room_for(folder, run, going_on=old is not None, unfinished=unfinished) as (backup, backup_goes):
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
            before = [each for each in run.checkpoints if each["name"] != name]
            run.checkpoints = [*before, {"name": name, "eval_loss": _measured(run)}]
            resume.remove_whole(folder / name)  # of a run whose state is lost
            with whole_folder(folder / name) as part:
                write_adapter(model, part)
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

        sampler = sampler_of(settings, host, base.tokenizer, prepared.formatting, run, folder)
        trainer = make_trainer(model, settings, run, prepared, folder, save_checkpoint, unfinished, layout, sampler)
        try:
            result = _until_stopped(trainer)
        except Diverged as error:
            run.update(half_rate_offered=resume.unfinished(folder) is not None)
            raise _Astray(error, _batch(trainer, error, prepared, base.tokenizer)) from error
        finally:
            close_logs(trainer)
        if trainer.passing is not None:
            raise Stopped  # before it had caught up with its checkpoint
        if result is None:  # in an evaluation, which ends without a step's end
            run.record("command", kind="interrupt")
        run.update(status=SAVING, message="Saving", train_loss=result)
        goes_on = (run.stop_requested or run.time_is_up) and 0 < trainer.state.global_step < trainer.end()
        if goes_on:
            saved = resume.unfinished(folder)
            if saved is None or saved.optimizer_step != trainer.state.global_step:
                save_checkpoint(checkpoint_name(run.earlier_steps + prepared.plan.steps_at(trainer.state.global_step), "user"))
        if settings.load_best_at_end:
            _take_best(model, run, folder)
        save_all(model, settings, base.name, run, prepared, folder)
        run.record("saved", goes_on=goes_on)
        if not goes_on:
            try:
                resume.forget(folder)
            except OSError as error:  # the adapter is saved
                run.notices.append(f"The state of the run could not be removed from its checkpoints: {reason(error)}. It is of no use any more.")


def _measured(run: TrainingRun) -> float | None:
    """The evaluation loss of the step that the run is at; None where it was not measured there."""
    here = run.earlier_steps + run.step
    return next((entry["eval_loss"] for entry in reversed(run.history[-3:]) if "eval_loss" in entry and entry["current_steps"] == here), None)


def _take_best(model: Any, run: TrainingRun, folder: Path) -> None:
    """Let the checkpoint with the lowest evaluation loss become the result, unless the last step's is as low."""
    from .callbacks import best_checkpoint

    best, last = best_checkpoint(run.checkpoints), _measured(run)
    if best is None or (last is not None and last <= best["eval_loss"]):
        return
    try:
        adapter = continued.finished(folder / best["name"])
        if adapter is None:
            raise ValueError("it is not there any more")
        continued.put_weights(model, adapter)
    except Exception as error:  # a broken file raises whatever its reader likes; the weights as they are now are still a result
        run.notices.append(f"{best['name']}, which has the lowest evaluation loss, could not become the result ({first_line(error)}).")
        return
    at_the_end = "" if last is None else f", which is {last:.4g} at the end"
    run.notices.append(f"The result is {best['name']}, which has the lowest evaluation loss: {best['eval_loss']:.4g}{at_the_end}.")
    run.update(eval_loss=best["eval_loss"], kept_best=best["name"])
    run.record("best", **best)


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
    if prepared.packing is not None:
        numbers = [number for row in numbers for number in row]
    said = []
    for number in numbers[:BATCH_ROWS]:
        item = prepared.blocks[number]
        text = " ".join(tokenizer.decode(item.input_ids).split())
        where = f"row {item.row}" if item.row else f"text from character {item.start}"
        said.append(f"In its batch: block {number + 1} ({where}): “{text if len(text) <= BATCH_TEXT else text[:BATCH_TEXT] + '…'}”")
    if len(numbers) > BATCH_ROWS:
        said.append(f"In its batch: {len(numbers) - BATCH_ROWS} more blocks.")
    return said


def _go_on_from(old: continued.Finished, model: Any, run: TrainingRun) -> None:
    try:
        continued.put_weights(model, old)
    except Exception as error:  # a broken file raises whatever its reader likes
        raise RunFailed(
            f"Failed: the LoRA “{old.folder.name}” cannot be gone on from ({first_line(error)}). Nothing was changed. Choose another Name, "
            "or tick Override Existing Files to start afresh."
        ) from error
    run.update(earlier=old.history, earlier_steps=old.step, earlier_epochs=old.epoch)
    run.notices.append(f"Training goes on from the LoRA “{old.folder.name}” (step {old.step}, epoch {old.epoch:.2f}) with a new schedule.")


def _until_stopped(trainer: Any) -> float | None:
    """Train; the mean loss of the run, or None when it was stopped in the middle of an evaluation."""
    try:
        return trainer.train().training_loss
    except Stopped:
        return None


def _megabytes(size: int) -> str:
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size / 2**20:.0f} MB"
