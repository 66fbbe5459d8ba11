"""When to stop, when to save and what to report: pure rules first, then the thin TrainerCallbacks around them.

Needs transformers as soon as it is imported, so it is imported where a run begins.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from .settings import Plan, TrainingSettings
from .training_run import TRAINING, TrainingRun


class NonFinite(RuntimeError):
    """The loss or the gradient is not a number any more."""


# Rules


def stop_at_loss(losses: list[float], limit: float) -> bool:
    """Whether the mean of the last 3 finite losses is at or below the limit. 0 switches it off; `losses` holds none that is 0."""
    return limit > 0 and len(losses) >= 3 and sum(losses[-3:]) / 3 <= limit


class LossCheckpoints:
    """“Save at 10% Loss change”: first when the loss has stayed below `threshold` for `patience` logged steps, then each time
    it has stayed at least 10% below the loss of the last such save; never in the first 10% of the first epoch."""

    def __init__(self, threshold: float, patience: int):
        self.threshold, self.patience = threshold, patience
        self.saved_at: float | None = None
        self.below = 0

    def should_save(self, loss: float, epoch: float) -> bool:
        limit = self.threshold if self.saved_at is None else self.saved_at * 0.9
        if self.threshold <= 0 or epoch < 0.1 or not math.isfinite(loss) or not 0 < loss <= limit:
            self.below = 0
            return False
        self.below += 1
        if self.below < self.patience:
            return False
        self.saved_at, self.below = loss, 0
        return True


def whole_epochs(optimizer_step: int, plan: Plan) -> int:
    """The epoch that ends with this optimizer step; 0 where none does (a run may also end in the middle of one)."""
    epochs, rest = divmod(optimizer_step, plan.optimizer_steps_per_epoch)
    return 0 if rest else epochs


def checkpoint_name(step: int, kind: str = "", detail: str = "") -> str:
    """checkpoint-120, checkpoint-120-epoch-2, checkpoint-120-loss-1_75, checkpoint-120-user"""
    return "-".join(part for part in (f"checkpoint-{step}", kind, detail.replace(".", "_")) if part)


# Callbacks, in the order in which a run has them


class Progress(TrainerCallback):
    """Writes where the run is, and ends it when a figure is not a number."""

    def __init__(self, run: TrainingRun, plan: Plan):
        self.run, self.plan, self.substeps = run, plan, 0

    def on_train_begin(self, args, state, control, **_):
        self.run.update(status=TRAINING, message="Training", training_since=time.time())

    def on_substep_end(self, args, state, control, **_):
        self.substeps += 1
        self.run.update(step=min(self.plan.total_steps, self.plan.steps_at(state.global_step) + self.substeps))

    def on_step_end(self, args, state, control, **_):
        self.substeps = 0
        self.run.update(step=self.plan.steps_at(state.global_step), epoch=state.epoch)

    def on_log(self, args, state, control, logs=None, **_):
        if not logs or ("loss" not in logs and "eval_loss" not in logs):
            return  # the summary at the end
        for figure in ("loss", "grad_norm", "eval_loss"):
            if figure in logs and not math.isfinite(logs[figure]):
                raise NonFinite(f"{figure} is {logs[figure]} at step {self.run.step}")
        figures = {name: float(logs[name]) for name in ("loss", "eval_loss", "learning_rate", "grad_norm") if name in logs}
        self.run.log({"current_steps": self.run.step, "epoch": round(state.epoch, 4), **figures})


class Evaluation(TrainerCallback):
    """Measures the evaluation loss every `every` optimizer steps and once at the end."""

    def __init__(self, run: TrainingRun, every: int, evaluate: Callable[[], float], log: Callable[[dict[str, float]], None]):
        self.run, self.every, self.evaluate, self.log = run, every, evaluate, log
        self.measured_at = 0

    def on_log(self, args, state, control, logs=None, **_):
        # Not at the step's end: logging the evaluation there would make the trainer forget to log the step's own loss.
        if logs and "loss" in logs and state.global_step % self.every == 0:
            self._measure(state)

    def on_train_end(self, args, state, control, **_):
        if state.global_step > self.measured_at and not self.run.stop_requested:
            self._measure(state)

    def _measure(self, state: Any) -> None:
        self.measured_at = state.global_step
        self.run.update(message="Evaluating")
        self.log({"eval_loss": self.evaluate()})
        self.run.update(message="Training")


class Checkpoints(TrainerCallback):
    """Saves by SPEC's four rules; `save` makes a whole checkpoint of the name it is given."""

    def __init__(self, run: TrainingRun, plan: Plan, settings: TrainingSettings, save: Callable[[str], None]):
        self.run, self.plan, self.save = run, plan, save
        self.every = plan.to_optimizer_steps(settings.save_steps)
        self.by_loss = LossCheckpoints(settings.save_steps_under_loss, patience=3 if plan.accumulation > 1 else 4)

    @property
    def step(self) -> int:
        return self.run.earlier_steps + self.run.step

    def on_log(self, args, state, control, logs=None, **_):
        if logs and "loss" in logs and self.by_loss.should_save(float(logs["loss"]), state.epoch):
            self.save(checkpoint_name(self.step, "loss", f"{logs['loss']:.2f}"))

    def on_step_end(self, args, state, control, **_):
        if self.every and state.global_step % self.every == 0:
            self.save(checkpoint_name(self.step))
        if self.run.checkpoint_requested:
            self.run.update(checkpoint_requested=False)
            self.save(checkpoint_name(self.step, "user"))

    def on_epoch_end(self, args, state, control, **_):
        if self.every and (epoch := whole_epochs(state.global_step, self.plan)):
            self.save(checkpoint_name(self.step, "epoch", str(epoch)))


class Stops(TrainerCallback):
    """Last in the list, so that what happened in a step is written and saved before the run ends."""

    def __init__(self, run: TrainingRun, plan: Plan):
        self.run, self.plan = run, plan

    def on_substep_end(self, args, state, control, **_):
        self._stop_if(self.run.stop_requested, control)

    def on_step_end(self, args, state, control, **_):
        self._stop_if(self.run.stop_requested, control)

    def on_log(self, args, state, control, logs=None, **_):
        if logs and "loss" in logs:
            reached = stop_at_loss(self.run.recent_losses(3), self.run.stop_at_loss)
            self._stop_if(reached, control, f"the loss reached {self.run.stop_at_loss:g}")

    def on_epoch_end(self, args, state, control, **_):
        epoch = whole_epochs(state.global_step, self.plan)
        self._stop_if(0 < self.run.stop_at_epoch <= epoch, control, f"epoch {epoch} ended")

    def _stop_if(self, stop: bool, control: Any, reason: str | None = None) -> None:
        if stop:
            control.should_training_stop = True
            if reason:
                self.run.update(stopped_because=reason)
