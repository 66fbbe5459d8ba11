"""The state of a run: progress, history and the user's commands.

Written by the trainer's thread, read by any number of viewers. It lives as long as the process (a page may come and go), and
every event of it is also appended to `run.jsonl` in the adapter's folder.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .paths import reason

logger = logging.getLogger(__name__)

PREPARING, TRAINING, SAVING = "preparing", "training", "saving"
DONE, INTERRUPTED, FAILED = "done", "interrupted", "failed"
ELSEWHERE = "elsewhere"  # told by its diary, and by its lock: another process is at it
ACTIVE = (PREPARING, TRAINING, SAVING)

# What can be asked of a run beside the fields that are set (see `TrainingRun.request`); saved with its checkpoints
SCALE_RATE, COOL_DOWN, ADD_EPOCH, EVALUATE = "scale the learning rate", "cool down", "add an epoch", "evaluate"
COMMANDS = ("command", "refused")  # the events of `run.jsonl` that tell what the user asked for
DIARY = "run.jsonl"


class Stopped(Exception):
    """The user interrupted; raised where the trainer would go on for long otherwise (while preparing or evaluating)."""


class Diverged(RuntimeError):
    """A loss or gradient that is not a number any more, or a loss far above its spread, found after this optimizer step."""

    def __init__(self, said: str, optimizer_step: int):
        super().__init__(said)
        self.optimizer_step = optimizer_step


class RunFailed(RuntimeError):
    """A run that cannot go on; the message is for the user: what happened and what to change."""


class Busy(RuntimeError):
    """A second run was asked for while one is going on."""


@dataclass
class TrainingRun:
    """One run. `step`, `total_steps` are steps as the user counts them; `history` has one entry for each logged step."""

    name: str
    settings: Any = None
    status: str = PREPARING
    message: str = "Preparing"
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    adapter: Path | None = None
    report: Any = None

    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    loss: float | None = None
    eval_loss: float | None = None
    train_loss: float | None = None  # mean over the run
    learning_rate: float | None = None
    started: float = field(default_factory=time.time)
    ended: float | None = None
    # On the clock that nobody sets: seconds since some moment of this process
    clock: float = field(default_factory=time.monotonic, repr=False)
    training_since: float | None = None
    lasted: float | None = None
    stopped_because: str = ""  # why it ended before its last step, where a stop of the user's was reached
    memory: str = ""
    history: list[dict[str, float]] = field(default_factory=list)
    saved: bool = False  # whether the finished adapter is on disk
    checkpoints: list[dict[str, Any]] = field(default_factory=list)  # of this run, oldest first: `name`, and `eval_loss` of its step or None
    samples: list[dict[str, Any]] = field(default_factory=list)  # answers to the sample prompts, as `samples.read` gives them
    kept_best: str = ""  # the checkpoint that became the result, where it is not the last step that did
    resumed_at: int = 0  # the step from which an earlier run is gone on with exactly; 0: it is none
    half_rate_offered: bool = False  # it diverged, and a checkpoint is there: `start(settings, host, rate_factor=0.5)` goes on from it

    # Of the finished adapter that training goes on from: its graph, and the numbers that this run's are added to
    earlier: list[dict[str, float]] = field(default_factory=list)
    earlier_steps: int = 0
    earlier_epochs: float = 0.0

    # The user's commands: set by any page, looked at by the callbacks
    stop_requested: bool = False
    checkpoint_requested: bool = False
    stop_at_loss: float = 0.0
    stop_at_epoch: int = 0
    time_budget_minutes: float = 0.0
    steering: list[dict[str, Any]] = field(default_factory=list)  # requests that changed the schedule: `at` (optimizer step), `kind`, `value`
    commands: list[dict[str, Any]] = field(default_factory=list)  # what was carried out or refused, as in `run.jsonl`
    evaluate_requested: bool = False
    time_is_up: bool = False

    def __post_init__(self) -> None:
        self._changed = itertools.count(1)
        self.version = 0  # goes up with each change, so that a viewer knows whether to draw again
        self._file: Path | None = None
        self._unwritten: list[str] = []
        self._requests: deque[tuple[str, Any]] = deque()

    @property
    def active(self) -> bool:
        return self.status in ACTIVE

    @property
    def succeeded(self) -> bool:
        return self.status in (DONE, INTERRUPTED)

    @property
    def elapsed(self) -> float:
        if self.ended is not None and self.lasted is None:  # as its diary tells
            return max(0.0, self.ended - self.started)
        return time.monotonic() - self.clock if self.lasted is None else self.lasted

    @property
    def trained_for(self) -> float | None:
        """Seconds since its first step began; None before."""
        return None if self.training_since is None else self.clock + self.elapsed - self.training_since

    @property
    def steps_per_second(self) -> float | None:
        if self.trained_for is None or self.step <= self.resumed_at:
            return None
        return (self.step - self.resumed_at) / max(1e-9, self.trained_for)

    @property
    def remaining(self) -> float | None:
        """Seconds to the last step, at the speed so far."""
        speed = self.steps_per_second
        return (self.total_steps - self.step) / speed if speed and self.active else None

    def update(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)
        self.version = next(self._changed)

    def request(self, kind: str, value: Any = None) -> None:
        """Ask for something that is done after the current optimizer step, from any thread.

        Args:
            kind: SCALE_RATE (`value`: what it is multiplied with), COOL_DOWN (`value`: steps until the rate is 0 and the run ends),
                ADD_EPOCH or EVALUATE. What cannot be done becomes a notice.
        """
        self._requests.append((kind, value))
        self.version = next(self._changed)

    @property
    def waiting_requests(self) -> list[tuple[str, Any]]:
        """What was asked for and is not done yet."""
        return list(self._requests.copy())

    def taken_requests(self) -> list[tuple[str, Any]]:
        """What was asked for since the last call, in order."""
        return [self._requests.popleft() for _ in range(len(self._requests))]

    def record(self, event: str, **values: Any) -> None:
        """Append an event to `run.jsonl`: what, when, at which step, and its figures."""
        entry = {"event": event, "time": round(time.time(), 3), "step": self.step, **values}
        self._unwritten.append(json.dumps(entry, default=str, ensure_ascii=False))
        self._write()
        if event in COMMANDS:
            self.commands.append(entry)
            self.version = next(self._changed)

    def write_to(self, folder: Path | None) -> None:
        """From now on events go to `run.jsonl` in this folder, those that were kept until now first; None: nowhere."""
        self._file = folder / DIARY if folder else None
        if self._file is not None and _ends_within_a_line(self._file):
            self._unwritten.insert(0, "")  # a killed process left it so; what follows must not become part of that line
        self._write()

    def _write(self) -> None:
        if self._file is None:
            return
        lines, self._unwritten = self._unwritten, []
        try:
            with open(self._file, "a", encoding="utf-8") as file:
                file.write("".join(line + "\n" for line in lines))
        except OSError as error:  # the run matters more than its diary
            logger.warning("run.jsonl cannot be written: %s", error)

    def log(self, entry: dict[str, float]) -> None:
        """One logged step: `current_steps`, `epoch` and what was measured (`loss`, `learning_rate`, `grad_norm`, `eval_loss`)."""
        entry = {
            **entry,
            "current_steps": self.earlier_steps + entry["current_steps"],
            "epoch": round(self.earlier_epochs + entry["epoch"], 4),
        }
        self.history.append(entry)
        if "loss" in entry:
            self.loss, self.learning_rate = entry["loss"], entry.get("learning_rate")
        if "eval_loss" in entry:
            self.eval_loss = entry["eval_loss"]
        self.version = next(self._changed)
        self.record("log", **entry)

    def end(self, status: str, message: str, problems: list[str] | None = None) -> None:
        self.ended, self.lasted = time.time(), time.monotonic() - self.clock
        self.update(status=status, message=message, problems=problems or [])
        self.record("end", status=status, message=message, problems=self.problems, half_rate_offered=self.half_rate_offered)

    def graph(self) -> list[dict[str, float]]:
        """The training losses as `training_graph.json` has them."""
        keys = ("current_steps", "loss", "learning_rate", "epoch")
        return [{key: entry.get(key) for key in keys} for entry in self.whole_history if "loss" in entry]

    @property
    def whole_history(self) -> list[dict[str, float]]:
        """What was logged, with that of the adapter which training went on from before it."""
        return [*self.earlier, *self.history]

    def recent_losses(self, count: int) -> list[float]:
        """The last finite losses that are not 0, newest last."""
        found = []
        for entry in reversed(self.history):
            loss = entry.get("loss")
            if loss is not None and math.isfinite(loss) and loss > 0:
                found.append(loss)
                if len(found) == count:
                    break
        return found[::-1]


def first_line(error: Exception) -> str:
    """What an error says, short enough to stand in a sentence."""
    lines = reason(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:300]


def _ends_within_a_line(path: Path) -> bool:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(-1, 2)  # of an empty file: an OSError
        return file.read() != b"\n"
    return False


# One run at a time in a process

_lock = threading.Lock()
_current: TrainingRun | None = None


def current() -> TrainingRun | None:
    """The run that is going on, else the last one of this process."""
    return _current


def busy_message(run: TrainingRun) -> str:
    return f"“{run.name}” is being trained ({_place(run)}); interrupt it or wait for its end."


def _place(run: TrainingRun) -> str:
    return f"step {run.step} of {run.total_steps}" if run.total_steps else "its data is being prepared"


def waiting_message() -> str | None:
    """What a chat that waits for the model is told; None when no run holds it."""
    run = _current
    if run is None or not run.active:
        return None
    left = "" if run.remaining is None else f", about {max(1, round(run.remaining / 60))} min left"
    return (
        f"Training PRO is training “{run.name}” with this model ({_place(run)}{left}). The answer comes when the run "
        "has ended; Interrupt in the Training PRO tab ends it now and saves it."
    )


def claim(run: TrainingRun) -> TrainingRun:
    """Make `run` the process's run.

    Raises:
        Busy: another one is going on.
    """
    global _current
    with _lock:
        if _current is not None and _current.active:
            raise Busy(busy_message(_current))
        _current = run
    return run


def in_background(run: TrainingRun, work: Callable[[], Any]) -> threading.Thread:
    """Do a claimed run's work in a thread of its own, which needs no page to go on."""

    def job() -> None:
        with contextlib.suppress(Exception):  # `work` ends the run with its reason itself; this only keeps the thread quiet
            work()

    thread = threading.Thread(target=job, name=f"training {run.name}", daemon=True)
    thread.start()
    return thread
