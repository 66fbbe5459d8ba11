"""The diary of a run (`run.jsonl`), read back: what the last run of an earlier process came to.

A diary may be cut off anywhere, as the process that wrote it was; it holds every run of its folder, one after another.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from .dataset_tools import Report
from .folder_lock import is_taken
from .matplotgraph import is_number
from .settings import TrainingSettings
from .training_run import COMMANDS, DIARY, DONE, ELSEWHERE, FAILED, INTERRUPTED, TrainingRun

OUTCOMES = (DONE, INTERRUPTED, FAILED)
LAST_BYTES = 100_000  # an end names some blocks of text at most


def last_of(lora_dir: Path) -> TrainingRun | None:
    """The run whose diary was written last of all in this folder of adapters; None where none is told."""
    written: list[tuple[int, Path]] = []
    with contextlib.suppress(OSError):
        for path in lora_dir.glob(f"*/{DIARY}"):
            with contextlib.suppress(OSError):  # removed meanwhile
                written.append((path.stat().st_mtime_ns, path.parent))
    return read_back(max(written)[1]) if written else None


def read_back(folder: Path) -> TrainingRun | None:
    """The last run of an adapter's folder, ended, as far as its diary tells; None where it tells none.

    `history` also has the losses of the runs that it went on from. A run whose end is not told failed: its process ended before it,
    unless that process is still at it.
    """
    run = before = None
    for event in _events(folder / DIARY):
        if event["event"] == "start":
            run, before = _begun(folder, event, run), run
        elif run is None:
            continue
        elif event["event"] == "resume" and before is not None:
            run.earlier_steps = before.earlier_steps
            run.history = [entry for entry in before.history if entry["current_steps"] <= run.earlier_steps + event["step"]]
        _take_in(run, event)
    if run is not None and run.active and is_taken(folder):
        run.update(status=ELSEWHERE, message="Another program on this machine is training it. Open that program's page to watch or end it.")
    elif run is not None and run.active and run.saved:
        run.update(status=DONE, message="Done: the LoRA is saved. The program ended right after it.")
    elif run is not None and run.active:
        place = f" at step {run.step} of {run.total_steps}" if run.total_steps else ""
        run.update(status=FAILED, message=f"Cut off{place}: the program ended before the run did.")
    return run


def diverged(folder: Path) -> bool:
    """Whether the last run of this folder ended since its loss or gradient went astray, with a checkpoint left to go on from."""
    *_, last = [None, *_events(folder / DIARY, LAST_BYTES)]
    return last is not None and last["event"] == "end" and last.get("half_rate_offered") is True


def _events(path: Path, last_bytes: int | None = None) -> Iterator[dict[str, Any]]:
    """The entries in order, all or those in the last bytes; lines that are torn or no entries of ours are left out."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if last_bytes is not None:
            file.seek(max(0, path.stat().st_size - last_bytes))
        for line in file:
            with contextlib.suppress(ValueError, RecursionError):  # torn, or no JSON
                event = json.loads(line)
                if isinstance(event, dict) and isinstance(event.get("event"), str) and is_number(event.get("step")) and is_number(event.get("time")):
                    yield event


def _begun(folder: Path, event: dict[str, Any], before: TrainingRun | None) -> TrainingRun:
    """A run at its start. One that trains on a finished adapter keeps the losses up to that adapter's step."""
    saved, told = (event.get(name) if isinstance(event.get(name), dict) else {} for name in ("settings", "report"))
    settings, _, _ = TrainingSettings.from_saved(saved)
    report = Report(**{each.name: told[each.name] for each in fields(Report) if type(told.get(each.name)) is type(each.default)})
    earlier = int(event["earlier_steps"]) if is_number(event.get("earlier_steps")) else 0
    run = TrainingRun(folder.name, settings=settings, report=report, adapter=folder, started=event["time"], total_steps=report.total_steps)
    run.earlier_steps = earlier
    run.history = [entry for entry in before.history if entry["current_steps"] <= earlier] if before is not None else []
    return run


def _take_in(run: TrainingRun, event: dict[str, Any]) -> None:
    run.step, run.ended = int(event["step"]), event["time"]
    kind = event["event"]
    if is_number(event.get("total_steps")):  # a command that changed it
        run.total_steps = int(event["total_steps"])
    if kind in COMMANDS:
        run.commands.append(event)
    elif kind == "log" and is_number(event.get("current_steps")):
        run.history.append({key: value for key, value in event.items() if key not in ("event", "time", "step") and is_number(value)})
        for name in ("loss", "eval_loss", "learning_rate", "epoch"):
            if is_number(event.get(name)):
                setattr(run, name, event[name])
    elif kind == "saved":
        run.saved = event.get("goes_on") is False
    elif kind == "end" and event.get("status") in OUTCOMES:
        problems = event.get("problems")
        run.update(status=event["status"], message=str(event.get("message", "")), half_rate_offered=event.get("half_rate_offered") is True)
        run.problems = [str(problem) for problem in problems] if isinstance(problems, list) else []
