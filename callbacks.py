"""When to stop, when to save and what to report: pure rules first, then the thin TrainerCallbacks around them.

Needs transformers as soon as it is imported, so it is imported where a run begins.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from .settings import Plan, TrainingSettings
from .training_run import ADD_EPOCH, COOL_DOWN, EVALUATE, SCALE_RATE, Diverged, TrainingRun

MOST_ADDED_EPOCHS = 100

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


class BestEvaluation:
    """Which evaluation loss is the lowest so far, and how many evaluations came after it without a lower one."""

    def __init__(self):
        self.loss = math.inf
        self.at = 0  # its optimizer step
        self.since = 0

    def add(self, loss: float, optimizer_step: int, asked: bool = False) -> None:
        """`asked`: the user had it measured beside the schedule, which uses up no patience."""
        if loss < self.loss:
            self.loss, self.at, self.since = loss, optimizer_step, 0
        elif not asked:
            self.since += 1

    def exhausted(self, patience: int) -> bool:
        """Whether there were `patience` evaluations without a lower loss; 0 switches it off."""
        return 0 < patience <= self.since


class Ordinary:
    """Which loss is still ordinary, from the losses before it (a Hampel filter, one-sided: median and median absolute deviation, which a few
    odd values do not move).

    A loss is far above its spread when it exceeds both the median of the last 64 by 12 standard deviations (1.4826 × the median absolute
    deviation, and at least a twentieth of the median), and one and a half times the highest of the first 10. The second keeps a run that
    has learned its data by heart from ending at one row that it has not. The first 32 losses are always ordinary.
    """

    LAST, FIRST, NEEDED, DEVIATIONS, ABOVE_FIRST = 64, 10, 32, 12.0, 1.5

    def __init__(self, losses: list[float] | None = None):
        self.last: deque[float] = deque(maxlen=self.LAST)
        self.highest_of_first, self.count = 0.0, 0
        for loss in losses or []:
            self.add(loss)

    def add(self, loss: float) -> None:
        if self.count < self.FIRST:
            self.highest_of_first = max(self.highest_of_first, loss)
        self.last.append(loss)
        self.count += 1

    @property
    def limit(self) -> float:
        """The highest ordinary loss."""
        if self.count < self.NEEDED:
            return math.inf
        middle = statistics.median(self.last)
        spread = max(1.4826 * statistics.median(abs(loss - middle) for loss in self.last), 0.05 * middle)
        return max(middle + self.DEVIATIONS * spread, self.ABOVE_FIRST * self.highest_of_first)


def steered(step: int, base: Callable[[float], float], total: int, epoch_steps: int, commands: list[dict[str, Any]]) -> float:
    """What the learning rate is multiplied by at an optimizer step, with the user's commands.

    SCALE_RATE multiplies it from its step on. ADD_EPOCH stretches what is left of the schedule over what is left of the longer run, so
    that the rate does not jump. COOL_DOWN lets it fall from where it is, in a line, to 0 at the run's end.

    Args:
        base: the multiplier without commands; takes fractions of a step when epochs were added.
        total: optimizer steps of the run as it was started.
        epoch_steps: optimizer steps of an epoch.
        commands: in the order in which they were given, with `at` (the optimizer step after which it was given), `kind` and `value`.
    """
    place, since, pace, factor, cooled = 0, 0, 1, 1.0, 1.0
    for number, command in enumerate(commands):
        at, kind = command["at"], command["kind"]
        if at > step:
            break
        place, since = place + pace * (at - since), at
        if kind == SCALE_RATE:
            factor *= command["value"]
        elif kind == ADD_EPOCH:
            left = steered_end(total, epoch_steps, commands[: number + 1]) - at
            pace = (total - place) / left if left > 0 else 0
        elif kind == COOL_DOWN:
            pace, cooled = 0, max(0.0, 1 - (step - at) / command["value"])
    return base(place + pace * (step - since)) * factor * cooled


def steered_end(total: int, epoch_steps: int, commands: list[dict[str, Any]]) -> int:
    """Optimizer steps of the run with the user's commands."""
    for command in commands:
        if command["kind"] == ADD_EPOCH:
            total += epoch_steps
        elif command["kind"] == COOL_DOWN:
            total = command["at"] + command["value"]
    return total


def removed_checkpoints(checkpoints: list[dict[str, Any]], limit: int) -> list[str]:
    """The names of the checkpoints beyond the newest `limit` (0: all are kept), and of those that were only made because they were the best.

    That with the lowest evaluation loss is spared, and so are those that the user asked for.

    Args:
        checkpoints: oldest first, with `name` and `eval_loss` (None where it was not measured at its step).
    """
    best = best_checkpoint(checkpoints)
    own = [each["name"] for each in checkpoints if not each["name"].endswith(("-user", "-best"))]
    beyond = own[:-limit] if limit > 0 else []
    beaten = [each["name"] for each in checkpoints if each["name"].endswith("-best")]
    return [name for name in [*beyond, *beaten] if best is None or name != best["name"]]


def best_checkpoint(checkpoints: list[dict[str, Any]]) -> dict[str, Any] | None:
    """That with the lowest evaluation loss, the newest of equal ones; None where none was measured."""
    measured = [each for each in checkpoints if each["eval_loss"] is not None]
    return min(reversed(measured), key=lambda each: each["eval_loss"], default=None)


def whole_epochs(optimizer_step: int, plan: Plan) -> int:
    """The epoch that ends with this optimizer step; 0 where none does (a run may also end in the middle of one)."""
    epochs, rest = divmod(optimizer_step, plan.optimizer_steps_per_epoch)
    return 0 if rest else epochs


def checkpoint_name(step: int, kind: str = "", detail: str = "") -> str:
    """checkpoint-120, checkpoint-120-epoch-2, checkpoint-120-loss-1_75, checkpoint-120-best, checkpoint-120-user"""
    return "-".join(part for part in (f"checkpoint-{step}", kind, detail.replace(".", "_")) if part)


# Callbacks, in the order in which a run has them


class Guard(TrainerCallback):
    """Ends the run when a figure is not a number or the loss is far above its spread, before anything else looks at the step."""

    SKIPPED_IN_A_ROW = 30  # the half-precision scaler halves at each overflow, so this many are no search for the right scale

    def __init__(self, run: TrainingRun, was_skipped: Callable[[], bool]):
        self.run, self.was_skipped, self.skipped = run, was_skipped, 0
        self.ordinary = Ordinary([entry["loss"] for entry in run.history if "loss" in entry])

    def on_log(self, args, state, control, logs=None, **_):
        if not logs:
            return
        self.skipped = self.skipped + 1 if self.was_skipped() else 0
        for figure in ("loss", "grad_norm", "eval_loss"):
            value = logs.get(figure, 0.0)
            overflow = figure == "grad_norm" and 0 < self.skipped <= self.SKIPPED_IN_A_ROW
            if not math.isfinite(value) and not overflow:
                raise Diverged(f"{figure} is {value} at step {self.run.step}", state.global_step)
        if (loss := float(logs.get("loss", 0.0))) > 0:
            if loss > (limit := self.ordinary.limit):
                raise Diverged(f"loss is {loss:.4g} at step {self.run.step}, far above its spread (up to {limit:.4g})", state.global_step)
            self.ordinary.add(loss)


class Progress(TrainerCallback):
    """Writes where the run is."""

    def __init__(self, run: TrainingRun, plan: Plan):
        self.run, self.plan, self.substeps = run, plan, 0

    def on_substep_end(self, args, state, control, **_):
        self.substeps += 1
        self.run.update(step=min(self.run.total_steps, self.plan.steps_at(state.global_step) + self.substeps))

    def on_step_end(self, args, state, control, **_):
        self.substeps = 0
        self.run.update(step=self.plan.steps_at(state.global_step), epoch=state.epoch)

    def on_log(self, args, state, control, logs=None, **_):
        if not logs or ("loss" not in logs and "eval_loss" not in logs):
            return  # the summary at the end
        figures = {name: float(logs[name]) for name in ("loss", "eval_loss", "learning_rate", "grad_norm") if name in logs}
        figures = {name: value for name, value in figures.items() if math.isfinite(value)}  # a step that half precision skipped
        self.run.log({"current_steps": self.run.step, "epoch": round(state.epoch, 4), **figures})


class Steering(TrainerCallback):
    """Carries out what the user asks for while the run goes on, and writes it into the run's history."""

    def __init__(self, run: TrainingRun, plan: Plan, set_rate: Callable[[], None]):
        self.run, self.plan, self.set_rate = run, plan, set_rate
        self.seen = self._watched()

    def _watched(self) -> dict[str, Any]:
        return {name: getattr(self.run, name) for name in ("stop_at_loss", "stop_at_epoch", "time_budget_minutes")}

    def end(self) -> int:
        return steered_end(self.plan.optimizer_steps, self.plan.optimizer_steps_per_epoch, self.run.steering)

    def on_log(self, args, state, control, logs=None, **_):
        if logs and "loss" in logs:
            self.look(state)

    def look(self, state: Any) -> None:
        for name, value in self._watched().items():
            if value != self.seen[name]:
                self.seen[name] = value
                self.run.record("command", kind=name, value=value)
        for kind, value in self.run.taken_requests():
            if kind == EVALUATE:
                self.run.evaluate_requested = True
                self.run.record("command", kind=kind)
            elif problem := self._problem(kind, value, state.global_step):
                self.run.notices.append(problem)
                self.run.record("refused", kind=kind, value=value, why=problem)
            else:
                self._obey(kind, value, state.global_step)

    def _problem(self, kind: str, value: Any, at: int) -> str | None:
        cooling = any(command["kind"] == COOL_DOWN for command in self.run.steering)
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if kind == SCALE_RATE and not (number and 0 < value <= 1000):
            return f"The learning rate was not changed: {value!r} is no number above 0 and up to 1000 to multiply it with."
        if kind == COOL_DOWN and (cooling or not (number and value >= 1)):
            return "The run is cooling down already." if cooling else f"The run does not cool down: {value!r} is no number of steps from 1 on."
        if kind == ADD_EPOCH and cooling:
            return "No epoch was added: the run is cooling down to its end."
        if kind == ADD_EPOCH and sum(command["kind"] == ADD_EPOCH for command in self.run.steering) >= MOST_ADDED_EPOCHS:
            return f"No epoch was added: {MOST_ADDED_EPOCHS} were added already."
        if kind == ADD_EPOCH and at >= self.end():
            return "No epoch was added: the run had reached its end."
        return None

    def _obey(self, kind: str, value: Any, at: int) -> None:
        if kind == COOL_DOWN:
            most = self.plan.optimizer_steps + MOST_ADDED_EPOCHS * self.plan.optimizer_steps_per_epoch  # the trainer knows no more steps
            value = min(self.plan.to_optimizer_steps(int(value)), most - at)
            if value < 1:
                return
        self.run.steering.append({"at": at, "kind": kind, "value": value})
        self.set_rate()
        self.run.update(total_steps=self.plan.steps_at(self.end()))
        self.run.record("command", kind=kind, value=value, optimizer_step=at, total_steps=self.run.total_steps)


class Evaluation(TrainerCallback):
    """Measures the evaluation loss every `every` optimizer steps, when the user asks for it, and once at the end."""

    def __init__(self, run: TrainingRun, every: int, evaluate: Callable[[], float], log: Callable[[dict[str, float]], None]):
        self.run, self.every, self.evaluate, self.log = run, every, evaluate, log
        self.measured_at = 0
        self.best = BestEvaluation()

    def on_log(self, args, state, control, logs=None, **_):
        # Not at the step's end: logging the evaluation there would make the trainer forget to log the step's own loss.
        if logs and "loss" in logs:
            self.look(state)

    def look(self, state: Any) -> None:
        asked, self.run.evaluate_requested = self.run.evaluate_requested, False
        due = state.global_step % self.every == 0
        if (asked or due) and state.global_step > self.measured_at:
            self._measure(state, asked=not due)

    def on_train_end(self, args, state, control, **_):
        if state.global_step > self.measured_at and not self.run.stop_requested:
            self._measure(state)

    def _measure(self, state: Any, asked: bool = False) -> None:
        self.run.update(message="Evaluating")
        loss = self.evaluate()
        self.measured_at = state.global_step
        self.log({"eval_loss": loss})
        self.best.add(loss, state.global_step, asked)
        self.run.update(message="Training")


class Samples(TrainerCallback):
    """Has the sample prompts answered before the first step, every `every` optimizer steps, and at the end; `answer` does so once a step."""

    def __init__(self, run: TrainingRun, every: int, answer: Callable[[], None]):
        self.run, self.every, self.answer = run, every, answer

    def on_train_begin(self, args, state, control, **_):
        self.answer()

    def on_log(self, args, state, control, logs=None, **_):
        if logs and "loss" in logs:
            self.look(state)
            if self.run.stop_requested:  # meanwhile
                control.should_training_stop = True

    def look(self, state: Any) -> None:
        if state.global_step % self.every == 0:
            self.answer()

    def on_train_end(self, args, state, control, **_):
        if not self.run.stop_requested:
            self.answer()


class LiveLog(TrainerCallback):
    """Says where the detailed logs of the run can be looked at while it goes on, where any were chosen."""

    def __init__(self, run: TrainingRun, handler: Any):
        self.run, self.handler = run, handler

    def on_train_begin(self, args, state, control, **_):
        for callback in self.handler.callbacks:
            if (writer := getattr(callback, "tb_writer", None)) is not None:
                self.run.notices.append(f'TensorBoard\'s logs lie in {writer.log_dir}. To look at them: tensorboard --logdir "{writer.log_dir}"')
            wandb = getattr(callback, "_wandb", None)
            if wandb is not None and wandb.run is not None:
                self.run.notices.append(self._wandb_said(wandb.run))

    @staticmethod
    def _wandb_said(run: Any) -> str:
        if run.url:
            return f"Weights & Biases shows the run at {run.url}"
        folder = Path(run.dir).parent
        return f'Weights & Biases is offline: the run\'s logs lie in {folder}. To send them later: wandb sync "{folder}"'


class Checkpoints(TrainerCallback):
    """Saves by SPEC's four rules, and at each new best evaluation where that becomes the result; `save` makes a whole checkpoint of the name
    it is given.

    All of them after the step was logged: what a checkpoint holds then includes the step's own loss and evaluation.
    """

    def __init__(self, run: TrainingRun, plan: Plan, settings: TrainingSettings, save: Callable[[str], None], best: BestEvaluation | None = None):
        """
        Args:
            best: of the evaluations, where “Keep the best” is on.
        """
        self.run, self.plan, self.save, self.best = run, plan, save, best
        self.every = plan.to_optimizer_steps(settings.save_steps)
        self.by_loss = LossCheckpoints(settings.save_steps_under_loss, patience=3 if plan.accumulation > 1 else 4)

    @property
    def step(self) -> int:
        return self.run.earlier_steps + self.run.step

    def on_log(self, args, state, control, logs=None, **_):
        if not logs or "loss" not in logs:
            return
        if self.every and state.global_step % self.every == 0:
            self.save(checkpoint_name(self.step))
        if self.by_loss.should_save(float(logs["loss"]), state.epoch):
            self.save(checkpoint_name(self.step, "loss", f"{logs['loss']:.2f}"))
        if self.run.checkpoint_requested:
            self.run.update(checkpoint_requested=False)
            self.run.record("command", kind="checkpoint")
            self.save(checkpoint_name(self.step, "user"))
        if self.best is not None and self.best.at == state.global_step and self._best_is_not_saved():
            self.save(checkpoint_name(self.step, "best"))

    def _best_is_not_saved(self) -> bool:
        saved = best_checkpoint(self.run.checkpoints)
        return saved is None or saved["eval_loss"] > self.best.loss

    def on_epoch_end(self, args, state, control, **_):
        first_of_the_next = self.run.step != self.plan.steps_at(state.global_step)  # interrupted there, and the epoch's end was seen before
        if self.every and not first_of_the_next and (epoch := whole_epochs(state.global_step, self.plan)):
            self.save(checkpoint_name(self.step, "epoch", str(epoch)))


class Stops(TrainerCallback):
    """Last in the list, so that what happened in a step is written and saved before the run ends."""

    def __init__(self, run: TrainingRun, plan: Plan, end: Callable[[], int], best: BestEvaluation | None = None, patience: int = 0):
        self.run, self.plan, self.end, self.best, self.patience = run, plan, end, best, patience

    def on_substep_end(self, args, state, control, **_):
        self._if_asked(control)

    def on_step_end(self, args, state, control, **_):
        self._if_asked(control)

    def on_log(self, args, state, control, logs=None, **_):
        if logs and "loss" in logs:
            self.look(state, control)

    def look(self, state: Any, control: Any) -> None:
        """After a step was logged, and once where a run goes on: a stop that was reached may not have been carried out."""
        if state.global_step >= self.end():
            control.should_training_stop = True
        elif stop_at_loss(self.run.recent_losses(3), self.run.stop_at_loss):
            self._stop(control, f"the loss reached {self.run.stop_at_loss:g}")
        elif self.best is not None and self.best.exhausted(self.patience):
            self._stop(control, f"the evaluation loss did not fall below {self.best.loss:.4g} in {self.best.since} evaluations")

    def on_epoch_end(self, args, state, control, **_):
        epoch = whole_epochs(state.global_step, self.plan)
        if 0 < self.run.stop_at_epoch <= epoch and state.global_step < self.end():
            self._stop(control, f"epoch {epoch} ended")

    def _if_asked(self, control: Any) -> None:
        budget = self.run.time_budget_minutes
        if self.run.stop_requested:
            self.run.record("command", kind="interrupt")
            self._stop(control)
        elif budget > 0 and (self.run.trained_for or 0) >= budget * 60:
            self.run.update(time_is_up=True)
            self._stop(control, f"the time budget of {budget:g} minute{'' if budget == 1 else 's'} was used up")

    def _stop(self, control: Any, reason: str | None = None) -> None:
        control.should_training_stop = True
        if reason:
            self.run.update(stopped_because=reason)
