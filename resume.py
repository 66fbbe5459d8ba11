"""A run that was not finished: what its newest checkpoint holds beside the adapter, whether that fits what is chosen now, and putting it back.

Two files lie in the newest checkpoint, and nowhere else: `resume.json` (settings, base model, data, numbers, history) and
`resume_state.pt` (optimizer, schedule, random numbers; read with `weights_only`, so that no code in it runs). A folder holds an
unfinished run exactly when they are there: they go when the run is finished.
"""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import json
import random
import shutil
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from . import continued
from .host import Host, ModelFacts, model_facts
from .paths import name_problem, write_whole
from .settings import OPTIONS, TrainingSettings

NUMBERS, TENSORS = "resume.json", "resume_state.pt"
FORMAT = 1
THE_DATA = "The data"  # an item's name
LIBRARIES = ("torch", "transformers", "peft", "accelerate")

# Settings that may differ: they decide what is saved, shown or stopped for, not what is learned
FREE = {
    "lora_name", "always_override", "save_steps", "save_steps_under_loss", "save_total_limit", "stop_at_loss", "stop_at_epoch",
    "time_budget_minutes", "early_stopping_patience", "load_best_at_end", "eval_dataset", "eval_datasetJSONL", "eval_steps", "eval_stepsJSONL",
    "report_to", "higher_rank_limit", "sample_prompts", "sample_steps", "use_grad_checkpoint", "batch_size", "auto_batch",
}  # fmt: skip


@dataclass(frozen=True)
class DataPrint:
    """What tells prepared data from other data: the SHA-256 of its tokens, labels and lengths in order."""

    blocks: int
    tokens: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.blocks} blocks of {self.tokens} tokens ({self.sha256[:8]})"


@dataclass(frozen=True)
class Unfinished:
    """The newest checkpoint of a run that was not finished. Steps are those of this run, without an earlier adapter's."""

    folder: Path
    optimizer_step: int
    step: int
    total_steps: int
    epoch: float
    settings: TrainingSettings
    base: dict[str, str]  # the labels and values of `_base_facts`
    data: DataPrint
    libraries: dict[str, str]
    progress: dict[str, Any]  # `progress_of` the run
    counters: dict[str, Any]  # of the callbacks
    backup: str = ""  # folder of what lay there before the run
    backup_goes: bool = False  # whether it is removed when the new adapter is saved

    @property
    def losses(self) -> list[float]:
        """The training loss of each optimizer step that was done."""
        return [entry["loss"] for entry in self.progress["history"] if "loss" in entry]


@dataclass(frozen=True)
class Item:
    """One thing that an exact resume needs to be as it was."""

    name: str
    saved: str
    now: str
    fits: bool


@dataclass(frozen=True)
class ResumePlan:
    """What Start does with an unfinished run.

    `restored` says what is put back. `adapter_saved`: the folder also holds the adapter as it was when the run was interrupted, so that
    where something does not fit training can go on from its weights with a new schedule.
    """

    unfinished: Unfinished
    items: list[Item]
    restored: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    adapter_saved: bool = False

    @property
    def checkpoint(self) -> Path:
        return self.unfinished.folder

    @property
    def step(self) -> int:
        return self.unfinished.step

    @property
    def total_steps(self) -> int:
        return self.unfinished.total_steps

    @property
    def epoch(self) -> float:
        return self.unfinished.epoch

    @property
    def misfits(self) -> list[Item]:
        return [item for item in self.items if not item.fits]

    @property
    def fits(self) -> bool:
        return not self.misfits

    def problem(self) -> str:
        """Why Start cannot go on, with what can be done; empty where it can."""
        if self.fits:
            return ""
        differences = "; ".join(f"{item.name} was {item.saved} and is {item.now}" for item in self.misfits)
        return (
            f"Name: “{self.checkpoint.parent.name}” holds a run that was not finished ({self.checkpoint.name}, step {self.step} of {self.total_steps}), "
            f"and it cannot go on with what is chosen: {differences}. Use its values (Copy parameters from fills them in), choose another Name, "
            "or tick Override Existing Files to start afresh."
        )


# Looking


def unfinished(folder: Path) -> Unfinished | None:
    """The newest checkpoint in an adapter's folder that a run can go on from exactly, or None."""
    found = [each for path in folder.glob(f"checkpoint-*/{NUMBERS}") if (each := _read(path)) is not None]
    return max(found, key=lambda each: (each.optimizer_step, (each.folder / NUMBERS).stat().st_mtime_ns), default=None)


def _read(path: Path) -> Unfinished | None:
    """None where it is not whole, or of a format that is not ours."""
    folder = path.parent
    if not (folder / TENSORS).is_file() or continued.finished(folder) is None:
        return None
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved.pop("format") != FORMAT:
            return None
        if not all(isinstance(saved["progress"][name], list) for name in ("history", "earlier", "steering", "checkpoints")):
            return None
        if not all(isinstance(entry, dict) for name in ("history", "checkpoints") for entry in saved["progress"][name]):
            return None
        if not all(isinstance(saved[name], dict) for name in ("base", "libraries", "counters")):
            return None
        numbers = [saved["progress"]["earlier_steps"], *(saved[name] for name in ("optimizer_step", "step", "total_steps", "epoch"))]
        if not all(continued.is_plain(number) for number in numbers):
            return None
        if saved["backup"] and (name_problem(saved["backup"]) or not saved["backup"].startswith("Backup-")):
            return None  # it may be removed at the run's end
        settings, _, _ = TrainingSettings.from_saved(saved.pop("settings"))
        return Unfinished(folder=folder, settings=settings, data=DataPrint(**saved.pop("data")), **saved)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def plan(settings: TrainingSettings, host: Host, data: DataPrint | None = None) -> ResumePlan | None:
    """What Start would do with the unfinished run of this name: for a page to show before the start.

    Args:
        data: of the prepared data (`print_of`), where it is known; otherwise it is compared when the run has prepared it.

    Returns:
        None where there is no unfinished run, where Override Existing Files starts afresh, and where no name is typed.
    """
    try:
        folder = host.run_folder(settings.lora_name)
    except ValueError:
        return None
    found = None if settings.always_override else unfinished(folder)
    if found is None:
        return None
    facts = model_facts(host.model, host.model_name) if host.model_problem() is None else None
    return compare(found, settings, facts, data)


def compare(old: Unfinished, settings: TrainingSettings, facts: ModelFacts | None, data: DataPrint | None) -> ResumePlan:
    """Item by item, what the run was begun with and what is chosen now; what is not known yet (None) is left out."""
    items = [_item(key, old.settings, settings) for key in OPTIONS if key not in FREE | {"grad_accumulation", _unused_alpha(settings)}]
    label = OPTIONS["grad_accumulation"].label
    before, now = old.settings.accumulation, settings.accumulation
    items.append(Item(label, str(before), str(now), before == now))
    if facts is not None:
        current = _base_facts(facts)
        items += [Item(name, value, current.get(name, "unknown"), value == current.get(name)) for name, value in old.base.items()]
    if data is not None:
        items.append(Item(THE_DATA, str(old.data), str(data), old.data == data))
    installed = libraries()
    newer = [f"{name} {version}, now {installed.get(name)}" for name, version in old.libraries.items() if installed.get(name) != version]
    notices = [f"The run was begun with other libraries ({'; '.join(newer)}): the result may differ in its last digits."] if newer else []
    return ResumePlan(
        unfinished=old,
        items=items,
        restored=[
            f"the weights of {old.folder.name}",
            f"the optimizer ({old.settings.optimizer}) and the schedule ({old.settings.lr_scheduler_type})",
            "the random numbers (dropout, noise, order of the data)",
            f"the place in the data: step {old.step} of {old.total_steps}, epoch {old.epoch:.2f}",
            f"the graph of {sum('loss' in entry for entry in old.progress['history'])} logged steps",
        ],
        notices=notices,
        adapter_saved=_adapter_saved(old),
    )


def _item(key: str, before: TrainingSettings, now: TrainingSettings) -> Item:
    shown = [_shown(each.entered()[key]) for each in (before, now)]
    if key == "learning_rate":
        with contextlib.suppress(ValueError):  # a rate that is no number is named by the settings' own check
            return Item(OPTIONS[key].label, *shown, before.rate == now.rate)
    return Item(OPTIONS[key].label, *shown, getattr(before, key) == getattr(now, key))


def _unused_alpha(settings: TrainingSettings) -> str:
    return "lora_alpha" if settings.lora_RS else "lora_RS_alpha"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value) or "empty"


def _base_facts(facts: ModelFacts) -> dict[str, str]:
    return {
        "Base model": facts.name,
        "Its architecture": f"{facts.architecture} of {facts.size} parameters",
        "Its weights": facts.weights,
        "The device": facts.device.partition(":")[0],
    }


def _adapter_saved(old: Unfinished) -> bool:
    adapter = continued.finished(old.folder.parent)
    return adapter is not None and adapter.step >= old.progress["earlier_steps"] + old.step


def is_that_of(old: Unfinished, adapter: continued.Finished) -> bool:
    """Whether the adapter on top of the folder is the very one of a checkpoint of the run: of the newest, where the run was interrupted, or of
    the best, where that becomes the result."""
    checkpoints = {old.folder, *(old.folder.with_name(each["name"]) for each in old.progress["checkpoints"])}
    there = [weights for folder in checkpoints if (weights := folder / continued.WEIGHTS[0]).is_file()]
    return any(filecmp.cmp(weights, adapter.weights, shallow=False) for weights in there)


def libraries() -> dict[str, str]:
    return {name: metadata.version(name) for name in LIBRARIES}


def print_of(dataset: Any) -> DataPrint:
    """Of a `datasets.Dataset` with `input_ids` and `labels`. Independent of how its table is cut into parts."""
    digests = {name: hashlib.sha256() for name in ("input_ids", "labels", "lengths")}
    tokens = 0
    for name in ("input_ids", "labels"):
        for chunk in dataset.data.column(name).chunks:
            values = chunk.flatten().to_numpy(zero_copy_only=False).astype("<i4", copy=False)
            digests[name].update(values.tobytes())
            if name == "input_ids":
                tokens += len(values)
                digests["lengths"].update(chunk.value_lengths().to_numpy(zero_copy_only=False).astype("<i4", copy=False).tobytes())
    return DataPrint(len(dataset), tokens, hashlib.sha256("".join(each.hexdigest() for each in digests.values()).encode()).hexdigest())


# Saving


def random_state() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's random numbers, as they give them. Taken at every optimizer step, so it costs microseconds."""
    import numpy
    import torch

    return {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _as_tensors(state: dict[str, Any]) -> dict[str, Any]:
    """A `random_state` in types that `torch.load(weights_only=True)` reads."""
    import torch

    version, internal, gauss = state["python"]
    kind, keys, place, has_gauss, cached = state["numpy"]
    return {
        **state,
        "python": [version, torch.tensor(internal, dtype=torch.int64), gauss],
        "numpy": [str(kind), torch.tensor(keys.astype("int64")), int(place), int(has_gauss), float(cached)],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    import numpy
    import torch

    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))
    kind, keys, place, has_gauss, cached = state["numpy"]
    numpy.random.set_state((kind, keys.numpy().astype("uint32"), place, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def tensors_of(trainer: Any, random_numbers: dict[str, Any]) -> dict[str, Any]:
    """What `resume_state.pt` holds of a `transformers.Trainer` that is training."""
    scaler = getattr(trainer.accelerator, "scaler", None)
    return {
        "optimizer": trainer.optimizer.state_dict(),
        "schedule": {key: value for key, value in trainer.lr_scheduler.state_dict().items() if key != "lr_lambdas"},
        "scaler": scaler.state_dict() if scaler is not None else None,
        "random": _as_tensors(random_numbers),
    }


def progress_of(run: Any) -> dict[str, Any]:
    """What a `TrainingRun` gets back: its numbers, its graph, and the commands that changed its schedule."""
    names = ("history", "loss", "eval_loss", "learning_rate", "earlier", "earlier_steps", "earlier_epochs", "steering", "checkpoints")
    return {name: getattr(run, name) for name in names}


def write(
    folder: Path,
    *,
    tensors: dict[str, Any],
    run: Any,
    optimizer_step: int,
    step: int,
    epoch: float,
    settings: TrainingSettings,
    facts: ModelFacts,
    data: DataPrint,
    counters: dict[str, Any],
    backup: str,
    backup_goes: bool,
) -> None:
    """Write both files into a checkpoint that is being made."""
    import torch

    torch.save(tensors, folder / TENSORS)
    numbers = {
        "format": FORMAT, "optimizer_step": optimizer_step, "step": step, "total_steps": run.total_steps, "epoch": epoch,
        "settings": settings.entered(), "base": _base_facts(facts), "data": asdict(data), "libraries": libraries(), "progress": progress_of(run),
        "counters": counters, "backup": backup, "backup_goes": backup_goes,
    }  # fmt: skip
    _write_numbers(folder, numbers)


class Encoded:
    """Lists that only grow, in JSON: what was encoded once is not again. A run of one epoch in 64 steps saves often, and the losses of 20,000
    steps took longer to write, each time, than all 64."""

    def __init__(self) -> None:
        self.lists: dict[str, tuple[list[Any], list[str]]] = {}  # name → (the list, its entries in JSON)

    def object(self, values: dict[str, Any], growing: dict[str, list[Any]]) -> str:
        """An object in JSON: `values`, then `growing`."""
        parts = [f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
        parts += [f"{json.dumps(name)}: {self._list(name, entries)}" for name, entries in growing.items()]
        return "{" + ", ".join(parts) + "}"

    def _list(self, name: str, entries: list[Any]) -> str:
        known, texts = self.lists.get(name, ([], []))
        if known is not entries or len(texts) > len(entries):
            texts = []
        texts += [json.dumps(entry, ensure_ascii=False) for entry in entries[len(texts) :]]
        self.lists[name] = (entries, texts)
        return "[" + ", ".join(texts) + "]"


_encoded = Encoded()


def _write_numbers(folder: Path, numbers: dict[str, Any]) -> None:
    progress = dict(numbers["progress"])
    growing = {name: progress.pop(name) for name in ("history", "earlier")}
    whole = {name: value for name, value in numbers.items() if name != "progress"}
    text = json.dumps(whole, ensure_ascii=False)[:-1] + f', "progress": {_encoded.object(progress, growing)}}}\n'
    write_whole(folder / NUMBERS, text)


def keep_commands(folder: Path, steering: list[dict[str, Any]]) -> None:
    """Let a checkpoint remember what a run was told when it went on from there, such as half the learning rate."""
    saved = json.loads((folder / NUMBERS).read_text(encoding="utf-8"))
    saved["progress"]["steering"] = steering
    _write_numbers(folder, saved)


def forget(folder: Path, but: str = "") -> None:
    """Remove both files from all checkpoints of an adapter's folder, but from the one of this name."""
    for name in (NUMBERS, TENSORS):  # the first is what makes it an unfinished run
        for file in folder.glob(f"checkpoint-*/{name}"):
            if file.parent.name != but:
                file.unlink(missing_ok=True)


def remove_whole(path: Path) -> None:
    """Remove a folder so that at no moment half of it can be seen."""
    if path.exists():
        hidden = path.with_name(f".{path.name}.removed.part")
        shutil.rmtree(hidden, ignore_errors=True)
        path.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """What a killed process left half-done in an adapter's folder; its names begin with a dot and end with .part."""
    for part in folder.glob(".*.part"):
        shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)


# Going on


def put_back(trainer: Any, old: Unfinished) -> None:
    """Give the trainer the weights, the optimizer, the schedule and the random numbers of the checkpoint.

    Raises:
        Exception: whatever the readers of a broken file raise.
    """
    import torch

    adapter = continued.finished(old.folder)
    if adapter is None:
        raise ValueError("its adapter is not whole")
    saved = torch.load(old.folder / TENSORS, map_location="cpu", weights_only=True)
    continued.put_weights(trainer.model, adapter)
    trainer.optimizer.load_state_dict(saved["optimizer"])
    trainer.lr_scheduler.load_state_dict({**trainer.lr_scheduler.state_dict(), **saved["schedule"]})
    scaler = getattr(trainer.accelerator, "scaler", None)
    if scaler is not None and saved["scaler"]:
        scaler.load_state_dict(saved["scaler"])
    _set_random_state(saved["random"])
