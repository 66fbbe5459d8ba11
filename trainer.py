"""The library's Trainer with our order of the data, our schedule and our callbacks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import resume
from .auto_batch import AutoBatch, halved
from .custom_scheduler import multiplier
from .dataset_tools import Collator, Prepared
from .packing import PackedCollator, PackedRows, Packing, noise_by_block
from .samples import Sampler
from .settings import Plan, TrainingSettings
from .step_kernels import compile_layers
from .training_run import TRAINING, RunFailed, Stopped, TrainingRun, first_line
from .versions import training_arguments


class Order:
    """The order of the blocks: a pure function of the seed and the epoch, so that a run that goes on finds its place.

    A `torch.utils.data.Sampler`: each iteration is the next epoch.
    """

    def __init__(self, lengths: Any, seed: int, group_by: int = 0, packing: Packing | None = None):
        """
        Args:
            lengths: of the blocks, in tokens.
            group_by: blocks of like length stand together in groups of this many (transformers' `LengthGroupedSampler`); 0: not.
            packing: blocks share rows; then the order is that of the rows, each a tuple of the numbers of its blocks.
        """
        self.lengths, self.seed, self.group_by, self.packing, self.epoch = list(lengths), seed, group_by, packing, 0

    def __len__(self) -> int:
        return len(self.packing or self.lengths)

    def __iter__(self) -> Iterator[Any]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return iter(self.of(epoch))

    def of(self, epoch: int) -> list[Any]:
        if self.packing is not None:
            return self.packing.of(epoch)
        import torch
        from transformers.trainer_pt_utils import LengthGroupedSampler

        numbers = torch.Generator().manual_seed((self.seed << 16) + epoch)
        if self.group_by:
            return list(LengthGroupedSampler(self.group_by, lengths=self.lengths, generator=numbers))
        return torch.randperm(len(self), generator=numbers).tolist()


def _schedule(settings: TrainingSettings, plan: Plan) -> Callable[[float], float]:
    """The multiplier of the learning rate at an optimizer step, without the user's commands."""
    lengths = plan.schedule_lengths(settings)
    return lambda step: multiplier(settings.lr_scheduler_type, step, **lengths, learning_rate=settings.rate)


def make_trainer(
    model: Any,
    settings: TrainingSettings,
    run: TrainingRun,
    prepared: Prepared,
    folder: Path,
    save_checkpoint: Any,
    unfinished: resume.Unfinished | None,
    layout: str | None = None,
    sampler: Sampler | None = None,
    order: list[Any] | None = None,
) -> Any:
    """Args:
    layout: how packed rows are given to the model; None where blocks have rows of their own.
    sampler: answers the sample prompts; None where there are none.
    order: of the rows, in the place of an `Order`; for a dry run.
    """
    import torch
    import transformers
    from transformers.trainer_callback import PrinterCallback

    from . import chunked_loss
    from .callbacks import MOST_ADDED_EPOCHS, Checkpoints, Evaluation, Guard, LiveLog, Progress, Samples, Steering, Stops, steered

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
        neftune_noise_alpha=settings.neft_noise_alpha or None if layout is None else None,
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
        use_liger_kernel=settings.use_liger_kernel,
    )
    multiple = 8 if device == "cuda" else 1
    collator = row_collator = Collator(prepared.pad_id, multiple)
    rows = prepared.train
    if layout is not None:
        row_collator, rows = PackedCollator(prepared.pad_id, layout, multiple, model.dtype), PackedRows(prepared.train, prepared.packing)
        model.config.use_cache = False  # with a cache, transformers 4 does not look at where the positions begin again
        if settings.neft_noise_alpha:
            noise_by_block(model, settings.neft_noise_alpha)
    base = _schedule(settings, plan)

    def rate_at(step: int) -> float:
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
            group_by = self.args.train_batch_size * plan.accumulation if settings.group_by_length else 0
            self.order = order or Order(prepared.blocks.lengths, settings.seed, group_by, prepared.packing)
            return self.accelerator.prepare(
                torch.utils.data.DataLoader(
                    self.train_dataset,
                    batch_size=self.args.train_batch_size,
                    sampler=self.order,
                    collate_fn=row_collator if losses is None else lambda items: chunked_loss.with_places(row_collator(items)),
                    pin_memory=self.args.dataloader_pin_memory,
                )
            )

        def create_optimizer(self, *rest: Any, **named: Any) -> Any:
            begun = self.optimizer is not None
            super().create_optimizer(*rest, **named)
            if settings.loraplus_ratio and not begun:
                let_b_learn_faster(self.optimizer, self.model, settings.loraplus_ratio)
            return self.optimizer

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            if self.lr_scheduler is None:
                self.lr_scheduler = self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer if optimizer is None else optimizer, rate_at)
            return self.lr_scheduler

        def training_step(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
            if self.at != self.state.global_step:
                self.at, self.step_losses = self.state.global_step, []
            if self.passing is None:
                loss = batches.step(self, super().training_step, model, inputs, *rest, **named)
            else:
                loss = self._passed()
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

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None, **named: Any) -> Any:
            if losses is None or return_outputs:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch=num_items_in_batch, **named)
            with self.accelerator.autocast():
                total = losses.sum(model, inputs)
            by_tokens = num_items_in_batch is not None and self.model_accepts_loss_kwargs  # else the Trainer divides by the accumulation
            return total / (num_items_in_batch if by_tokens else len(inputs["targets"]))

        def summed_loss(self, batch: dict[str, Any], counted: int) -> Any:
            """Of a batch that is not trained on, over its `counted` tokens with labels."""
            batch = batch if losses is None else chunked_loss.with_places(batch)
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            return model(**batch).loss * counted if losses is None else losses.sum(model, batch)

        def floating_point_ops(self, inputs: Any) -> int:
            return 0  # nobody asks for the sum, and counting the parameters of a large model takes milliseconds

        def log(self, logs: dict[str, float], *rest: Any, **named: Any) -> None:
            if self.passing is None:
                if "loss" in logs:
                    self.random_numbers = resume.random_state()
                super().log(logs, *rest, **named)
                del self.state.log_history[:-1]  # the run has its own, and nobody reads the library's
            elif self.state.global_step == self.passing.optimizer_step:
                self.go_on()

        def go_on(self) -> None:
            old, self.passing = self.passing, None
            try:
                resume.put_back(self, old)
            except Exception as error:  # a broken file raises whatever its reader likes
                raise RunFailed(
                    f"Failed: {old.folder.name} cannot be gone on from ({first_line(error)}). Nothing was changed. Remove that folder, choose another "
                    "Name, or tick Override Existing Files to start afresh."
                ) from error
            self.random_numbers = resume.random_state()
            batches.passes = old.counters.get("passes", 1)
            checkpoints.by_loss.saved_at, checkpoints.by_loss.below = old.counters["loss_saved_at"], old.counters["loss_below"]
            run.update(step=old.step, epoch=self.state.epoch, **old.progress)
            if evaluation is not None:
                self.evaluated_before(old)
            run.update(resumed_at=old.step, total_steps=plan.steps_at(steering.end()))
            run.record("resume", checkpoint=old.folder.name, optimizer_step=old.optimizer_step)
            self.begin()
            steering.look(self.state)
            if any(command["at"] >= old.optimizer_step for command in run.steering):
                # Told at this very step, now or when the run went on from here before: it stays so if the run comes to nothing again.
                self.set_rate()
                resume.keep_commands(old.folder, run.steering)
            if evaluation is not None:
                evaluation.look(self.state)
            if samples is not None:
                samples.look(self.state)
            stops.look(self.state, self.control)

        def evaluated_before(self, old: resume.Unfinished) -> None:
            if old.settings.evaluation[0] == settings.evaluation[0]:
                evaluation.measured_at = old.counters["measured_at"]
                vars(evaluation.best).update(old.counters.get("best") or {})
            else:  # losses on other data say nothing about these
                run.checkpoints = [{**each, "eval_loss": None} for each in run.checkpoints]

        def begin(self) -> None:
            """From here on the steps count."""
            run.update(status=TRAINING, message="Training", training_since=time.monotonic())
            if sampler is not None:
                sampler.begin()
            guard = Guard(run, lambda: self.accelerator.optimizer_step_was_skipped)
            for callback in (guard, progress, steering, evaluation, samples, checkpoints, stops):
                if callback is not None:
                    self.add_callback(callback)

        def set_rate(self) -> None:
            """Let the next step use the schedule as it is after a command."""
            state = self.schedule.state_dict()
            rates = [rate * rate_at(state["last_epoch"]) for rate in self.schedule.base_lrs]
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            self.schedule.load_state_dict({**state, "_last_lr": rates})

        def end(self) -> int:
            return steering.end()

        def counters(self) -> dict[str, Any]:
            return {
                "loss_saved_at": checkpoints.by_loss.saved_at,
                "loss_below": checkpoints.by_loss.below,
                "passes": batches.passes,
                "measured_at": evaluation.measured_at if evaluation is not None else 0,
                "best": vars(evaluation.best) if evaluation is not None and evaluation.best.at else None,
            }

    losses = chunked_loss.chunked_loss(model)
    trainer = OurTrainer(model=model, args=arguments, train_dataset=rows, data_collator=row_collator)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(LiveLog(run, trainer.callback_handler))
    if settings.torch_compile:
        run.update(message="Compiling the layers")
        if why := compile_layers(trainer.model, trainer.accelerator.autocast):
            run.notices.append(f"The layers could not be compiled here ({why}), so they run as they are.")
    batches = AutoBatch(settings, run)
    progress, steering = Progress(run, plan), Steering(run, plan, trainer.set_rate)
    evaluation = None
    if prepared.eval is not None:
        every = plan.to_optimizer_steps(settings.evaluation[1])

        def evaluate() -> float:
            return halved(lambda size: evaluation_loss(trainer, prepared.eval, collator, size, run), settings.micro_batch_size)

        evaluation = Evaluation(run, every, evaluate, trainer.log)
    best = evaluation.best if evaluation is not None else None
    checkpoints = Checkpoints(run, plan, settings, save_checkpoint, best if settings.load_best_at_end else None)
    stops = Stops(run, plan, steering.end, best, settings.early_stopping_patience)
    samples = None
    if sampler is not None:
        samples = Samples(run, plan.to_optimizer_steps(settings.sample_steps), lambda: sampler.answer(trainer))
    if unfinished is None:
        trainer.begin()
    else:
        run.update(message=f"Going on from step {unfinished.step}")
    return trainer


def let_b_learn_faster(optimizer: Any, model: Any, ratio: float) -> None:
    """LoRA+ (Hayou et al. 2024, arXiv:2402.12354): the B matrices, and what has one dimension, learn at `ratio` times the rate.

    The groups of PEFT's `create_loraplus_optimizer`, for every optimizer that the Trainer makes, and with its weight decay.
    """
    faster = {id(weight) for name, weight in model.named_parameters() if weight.requires_grad and ("lora_B" in name or weight.ndim == 1)}
    for group in list(optimizer.param_groups):
        its = [weight for weight in group["params"] if id(weight) in faster]
        if its:
            group["params"] = [weight for weight in group["params"] if id(weight) not in faster]
            optimizer.add_param_group({**group, "params": its, "lr": group["lr"] * ratio})


def close_logs(trainer: Any) -> None:
    """End what TensorBoard and Weights & Biases have open, also after a failure; the next run of this process has logs of its own."""
    for callback in trainer.callback_handler.callbacks:
        if (writer := getattr(callback, "tb_writer", None)) is not None:
            writer.close()
        if (wandb := getattr(callback, "_wandb", None)) is not None and wandb.run is not None:
            wandb.finish()


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
                counted = int((batch["labels"][:, 1:] != -100).sum())
                total += float(trainer.summed_loss(batch, counted))
                tokens += counted
    finally:
        model.train(was_training)
    return total / tokens
