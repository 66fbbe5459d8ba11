"""An adapter's folder: room for a run with what lay there put away, and everything that is told about the finished adapter."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import continued, needs, resume
from .adapters import save_adapter
from .dataset_tools import Prepared
from .folder_lock import LOCK
from .host import model_facts
from .matplotgraph import save_png
from .paths import whole_folder, write_json, write_whole
from .settings import TrainingSettings
from .training_run import TrainingRun


def holds_a_run(folder: Path) -> bool:
    """Whether there is something in the folder that would be a loss: an adapter or a checkpoint, not just the diary of a run that failed."""
    return any(next(folder.glob(pattern), None) for pattern in ("adapter_config.json", "adapter_model.*", "checkpoint-*"))


def _stays(entry: Path) -> bool:
    """What is no part of the run that lies in the folder: earlier backups, and the lock of the run that begins."""
    return entry.name.startswith("Backup-") or entry.name == LOCK


@contextlib.contextmanager
def room_for(folder: Path, run: TrainingRun, going_on: bool, unfinished: resume.Unfinished | None = None) -> Iterator[tuple[Path | None, bool]]:
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
    old = [entry for entry in folder.iterdir() if not _stays(entry)] if holds_a_run(folder) else []
    if not old:
        (folder / "run.jsonl").unlink(missing_ok=True)
    backup = _free_name(folder / time.strftime("Backup-%Y-%m-%d-%H%M%S"))
    if old and going_on:
        _copy_files(old, backup)
    elif old:
        _move(old, backup)
    if going_on:
        run.notices.append(f"The LoRA as it was is kept in {backup.name}.")
    try:
        yield (backup if old else None), bool(old and not going_on)
    except BaseException:
        if going_on and not run.saved:
            _put_back(folder, backup, [entry.name for entry in old])
        elif old and not holds_a_run(folder):
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
    _copy_files([entry for entry in folder.iterdir() if not _stays(entry)], backup)
    run.notices.append(f"The LoRA as it was is kept in {backup.name}.")
    return backup, False


def _copy_files(entries: list[Path], backup: Path) -> None:
    """A backup is whole or not there: half of one would be taken for all of it."""
    with whole_folder(backup) as part:
        for entry in entries:
            if entry.is_file():
                shutil.copy2(entry, part / entry.name)


def _move(entries: list[Path], backup: Path) -> None:
    """All of them or none."""
    backup.mkdir()
    try:
        for entry in entries:
            entry.rename(backup / entry.name)
    except OSError:
        for entry in list(backup.iterdir()):
            entry.rename(backup.parent / entry.name)
        backup.rmdir()
        raise


def _free_name(path: Path) -> Path:
    number = itertools.count(2)
    free = path
    while free.exists():
        free = path.with_name(f"{path.name}-{next(number)}")
    return free


def _put_back(folder: Path, backup: Path, stays: list[str] | None = None) -> None:
    """Give the folder what is in `backup`; what else the run left there goes, but for the names that stay (and checkpoints of theirs)."""
    for entry in list(folder.iterdir()):
        if not _stays(entry) and not (stays and (entry.name in stays or entry.is_dir())):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for entry in list(backup.iterdir()):
        entry.replace(folder / entry.name)
    backup.rmdir()


def save_all(model: Any, settings: TrainingSettings, base_name: str, run: TrainingRun, prepared: Prepared, folder: Path) -> None:
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
        "kept_best": run.kept_best or None,
        "learning_rate": run.learning_rate,
        "epoch": run.earlier_epochs + run.epoch,
        "current_steps": run.earlier_steps + run.step,
        "train_loss": run.train_loss,
        "train_runtime": None if run.trained_for is None else round(run.trained_for, 2),
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
| result | {f"{run.kept_best}, with the lowest evaluation loss" if run.kept_best else "the last step"} |

Settings that are not the defaults:

| setting | value |
|---|---|
{changed}
"""
