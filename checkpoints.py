"""The checkpoints of a run: how far each was trained, and making one of them the adapter."""

from __future__ import annotations

import contextlib
import filecmp
import itertools
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import continued, training_run
from .compare import load_run
from .host import Host
from .paths import whole_folder, write_json, write_whole

CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Checkpoint:
    """An adapter of a run. `name` is that of the folder in the host's adapters' directory: “run/checkpoint-40”, or “run” for what
    lies on top. The losses are None where the run's files do not tell them. `adapter`: its weights are those of the adapter on top."""

    name: str
    step: int | None
    epoch: float | None
    loss: float | None  # mean of the last ten logged steps up to here
    eval_loss: float | None  # the last one measured up to here
    adapter: bool


def adapters_of(host: Host, run: str) -> list[str]:
    """The names of a run's adapters: its checkpoints in the order of their steps, then the one on top.

    Raises:
        ValueError: the name is not a plain name.
    """
    folder = host.run_folder(run)
    found = [path.parent for path in folder.glob(f"checkpoint-*/{CONFIG}") if continued.finished(path.parent) is not None]
    found.sort(key=lambda path: (_step(path.name), path.stat().st_mtime))
    top = [run] if continued.finished(folder) is not None else []
    return [*(f"{run}/{path.name}" for path in found), *top]


def checkpoint(host: Host, name: str) -> Checkpoint:
    """What the files of a run tell about one of its adapters."""
    folder = _folder(host, name)
    facts = load_run(folder).facts
    top = continued.finished(_folder(host, name.split("/")[0]))
    here = continued.finished(folder)
    same = top is not None and here is not None and filecmp.cmp(top.weights, here.weights, shallow=False)
    return Checkpoint(name, facts.get("step"), facts.get("epoch"), facts.get("loss"), facts.get("eval_loss"), same)


def _step(name: str) -> int:
    number = name.removeprefix("checkpoint-").partition("-")[0]
    return int(number) if number.isdecimal() and len(number) < 16 else 0


def _folder(host: Host, name: str) -> Path:
    return host.adapter_folder(name)


# Using one


class NotUsed(RuntimeError):
    """Why a checkpoint was not made the adapter, and what to do; then everything is as it was."""


def use(host: Host, name: str) -> str:
    """Make a checkpoint the adapter of its run: its weights, and the numbers and the graph up to its step. Gives back what was done.

    What lay on top is copied to `Backup-{date}` in the run's folder before. Either all of it is done or nothing.

    Raises:
        NotUsed: there is no such checkpoint, its run is going on, or a file cannot be written.
    """
    name = str(name)  # a request made by hand may hold anything
    run, slash, _ = name.partition("/")
    active = training_run.current()
    if active is not None and active.active and active.name == run:
        raise NotUsed(f"“{run}” is being trained; interrupt it or wait for its end.")
    try:
        folder, chosen = host.run_folder(run), _folder(host, name)
    except ValueError as error:
        raise NotUsed(f"Checkpoint: {error}") from error
    adapter = continued.finished(chosen) if slash else None
    if adapter is None:
        raise NotUsed(f"“{name}” is no whole checkpoint any more. Refresh the lists and choose another.")
    top = continued.finished(folder)
    numbers = _numbers(host, name)
    if top is not None and filecmp.cmp(top.weights, adapter.weights, shallow=False) and top.step == (numbers["current_steps"] or top.step):
        return f"“{run}” is {chosen.name} already; nothing was changed."
    ready = folder / ".used"
    try:
        with whole_folder(ready) as part:
            _fill(part, folder, adapter, numbers)
        backup = _back_up(folder)
        with _as_before(folder, backup):
            _swap(ready, folder, adapter.weights.name)
    except OSError as error:
        raise NotUsed(f"“{name}” was not made the adapter: {error.strerror or error}. Everything is as it was.") from error
    finally:
        shutil.rmtree(ready, ignore_errors=True)
    kept = f" What was there is kept in {backup.name}." if backup else ""
    return f"“{run}” is {chosen.name} now.{kept}{_unfinished(folder)}"


def _unfinished(folder: Path) -> str:
    from .resume import unfinished

    found = unfinished(folder)
    if found is None:
        return ""
    return f" The run in this folder is not finished: Start goes on from {found.folder.name}; to train on from the adapter, remove that checkpoint."


def _numbers(host: Host, name: str) -> dict[str, Any]:
    """The run's numbers at this checkpoint, by the keys of training_log.json."""
    facts = load_run(_folder(host, name)).facts
    known = {"current_steps": facts.get("step"), "epoch": facts.get("epoch"), "eval_loss": facts.get("eval_loss")}
    return {**known, "loss": facts.get("loss")}


def _back_up(folder: Path) -> Path | None:
    """A copy of the folder's files, whole or not at all."""
    files = _files(folder)
    if not files:
        return None
    wanted = folder / time.strftime("Backup-%Y-%m-%d-%H%M%S")
    number = itertools.count(2)
    backup = wanted
    while backup.exists():
        backup = wanted.with_name(f"{wanted.name}-{next(number)}")
    with whole_folder(backup) as part:
        for file in files:
            shutil.copy2(file, part / file.name)
    return backup


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")]


@contextlib.contextmanager
def _as_before(folder: Path, backup: Path | None) -> Iterator[None]:
    """Whatever goes wrong inside, the folder's files are those of the backup again, which goes."""
    try:
        yield
    except BaseException:
        there = {file.name for file in backup.iterdir()} if backup else set()
        for file in _files(folder):
            if file.name not in there:
                file.unlink()
        for name in there:
            (backup / name).replace(folder / name)
        if backup:
            backup.rmdir()
        raise


def _fill(part: Path, folder: Path, adapter: continued.Finished, numbers: dict[str, Any]) -> None:
    """The files of the new adapter, ready to be put on top."""
    for file in (adapter.folder / CONFIG, adapter.weights):
        shutil.copyfile(file, part / file.name)
    step = numbers["current_steps"]
    log, graph = _json(folder / "training_log.json", dict), _json(folder / "training_graph.json", list)
    if log is not None:
        write_json(part / "training_log.json", {**log, **numbers, "train_loss": None, "train_runtime": None})
    if graph is not None and step is not None:
        kept = [entry for entry in graph if isinstance(entry, dict) and _at_most(entry.get("current_steps"), step)]
        write_json(part / "training_graph.json", kept)
    card = folder / "README.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace")
        write_whole(
            part / "README.md", f"{text.rstrip()}\n\nThe weights are those of {adapter.folder.name}; the figures above are of the whole run.\n"
        )


def _swap(part: Path, folder: Path, weights: str) -> None:
    """Put the files on top, the weights last: they are what makes it another adapter."""
    for file in sorted(part.iterdir(), key=lambda file: file.name == weights):
        file.replace(folder / file.name)
    for other in continued.WEIGHTS:
        if other != weights:
            (folder / other).unlink(missing_ok=True)  # beside the new weights it would only mislead; its copy is in the backup


def _at_most(value: Any, step: float) -> bool:
    return isinstance(value, (int, float)) and value <= step


def _json(path: Path, kind: type) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, kind) else None
