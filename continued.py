"""A finished adapter that training goes on from: whether it fits, its numbers, its weights.

Reads adapters of ours, of older Training PRO and of the web UI's own tab: `adapter_model.safetensors`, or `adapter_model.bin` (read
with `weights_only`, so that no code in it runs); of the two the newer, since an old one may lie beside what was trained last.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .adapters import DORA, LORA, PISSA, head_modules, take_beginning
from .settings import ALL_LINEAR, PROJECTIONS, TrainingSettings

WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Finished:
    """An adapter on disk. `step` and `epoch` are where its training ended; `history` is its graph; `kind` is how it was trained."""

    folder: Path
    config: dict[str, Any]
    weights: Path
    step: int = 0
    epoch: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    base_names: tuple[str, ...] = ()
    kind: str = LORA

    @property
    def rank(self) -> Any:
        """As it was chosen: a PiSSA is saved as a LoRA of twice its rank."""
        rank = self.config.get("r")
        return rank // 2 if self.kind == PISSA else rank

    @property
    def alpha(self) -> Any:
        alpha = self.config.get("lora_alpha")
        return alpha / (2**0.5 if self.config.get("use_rslora") else 2) if self.kind == PISSA else alpha


def finished(folder: Path) -> Finished | None:
    """The adapter in this folder, or None where none is whole."""
    config = _json(folder / "adapter_config.json")
    there = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not isinstance(config, dict) or not there:
        return None
    log, graph = _json(folder / "training_log.json"), _json(folder / "training_graph.json")
    log = log if isinstance(log, dict) else {}
    history = [entry for entry in graph if isinstance(entry, dict) and "loss" in entry] if isinstance(graph, list) else []
    last = history[-1] if history else {}
    names = [name for name in (config.get("base_model_name_or_path"), log.get("base_model_name")) if isinstance(name, str) and name]
    return Finished(
        folder=folder,
        config=config,
        weights=max(there, key=lambda file: file.stat().st_mtime),
        step=int(_number(last.get("current_steps"), log.get("current_steps"))),
        epoch=_number(last.get("epoch"), log.get("epoch")),
        history=history,
        base_names=tuple(dict.fromkeys(Path(name.replace("\\", "/")).name for name in names)),
        kind=_kind(config, _json(folder / "training_parameters.json")),
    )


def _kind(config: dict[str, Any], entered: Any) -> str:
    if config.get("use_dora"):
        return DORA
    rank, chosen = config.get("r"), entered if isinstance(entered, dict) else {}
    if chosen.get("adapter_kind") == PISSA and isinstance(rank, int) and rank == 2 * _number(chosen.get("lora_rank")):
        return PISSA
    return LORA


def differences(old: Finished, settings: TrainingSettings, model: Any, model_name: str) -> list[str]:
    """What keeps training from going on from `old`, each with both values; looked at before anything is loaded."""
    found = []
    if (kind := old.config.get("peft_type")) not in (None, "LORA"):
        return [f"Name: “{old.folder.name}” is an adapter of the kind {kind}, not a LoRA; choose another name."]
    if odd := _odd(old.config):
        return [
            f"Name: “{old.folder.name}” cannot be trained on, since its adapter_config.json holds no usable {' and '.join(odd)}; choose another name."
        ]
    if old.base_names and model_name not in old.base_names:
        found.append(f"its base model is {old.base_names[0]} and {model_name} is loaded")
    rslora = bool(old.config.get("use_rslora", False))
    if old.kind != settings.adapter_kind:
        found.append(f"its Adapter kind is {old.kind} and {settings.adapter_kind} is chosen")
    if old.rank is not None and old.rank != settings.lora_rank:
        found.append(f"its LoRA Rank is {old.rank} and {settings.lora_rank} is chosen")
    if rslora != settings.lora_RS:
        found.append(f"Use rsLoRA is {_on(rslora)} in it and {_on(settings.lora_RS)} here")
    elif old.alpha is not None and not math.isclose(old.alpha, settings.alpha):
        found.append(f"its {'rsLoRA' if rslora else 'LoRA'} Alpha is {old.alpha:g} and {settings.alpha:g} is chosen")
    theirs, ours = targets(old.config.get("target_modules"), model), targets(_chosen(settings), model)
    if theirs != ours:
        found.append(
            f"it trains {', '.join(sorted(theirs)) or 'nothing'} and Target Projections “{settings.training_projection}” trains {', '.join(sorted(ours))}"
        )
    found += _head_differences(old, settings, model)
    if not found:
        return []
    return [
        f"Name: training cannot go on from the LoRA “{old.folder.name}”: {'; '.join(found)}. Use its values (Copy parameters from fills them in), "
        "choose another Name, or tick Override Existing Files to start afresh."
    ]


def _odd(config: dict[str, Any]) -> list[str]:
    """The keys whose values are not of the kind that PEFT writes."""
    numbers = [key for key in ("r", "lora_alpha") if config.get(key) is not None and not is_plain(config[key])]
    return numbers + [key for key in ("target_modules", "modules_to_save") if not isinstance(config.get(key), (str, list, type(None)))]


def _head_differences(old: Finished, settings: TrainingSettings, model: Any) -> list[str]:
    theirs, ours = ({str(name).rsplit(".", 1)[-1] for name in names} for names in (old.config.get("modules_to_save") or [], head_modules(model)))
    if bool(theirs) != settings.lora_modulessave:
        return [f"Train Head is {_on(bool(theirs))} in it and {_on(settings.lora_modulessave)} here"]
    if theirs and theirs != ours:
        return [f"it trains {', '.join(sorted(theirs))} in full and Train Head trains {', '.join(sorted(ours))}"]
    return []


def _chosen(settings: TrainingSettings) -> str | list[str]:
    return ALL_LINEAR if settings.training_projection == ALL_LINEAR else PROJECTIONS.get(settings.training_projection, [])


def targets(modules: Any, model: Any) -> set[str]:
    """The names of the layers that `LoraConfig.target_modules` means in this model, without what stands before their last dot."""
    import torch

    if modules == ALL_LINEAR:
        head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        return {
            name.removesuffix(".base_layer").rsplit(".", 1)[-1]  # a model that another training left with LoRA layers in it
            for name, module in model.named_modules()
            if module is not head and ".lora_" not in name and (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D")
        }
    if isinstance(modules, str):
        return {modules}  # a pattern: only the very same one fits
    there = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    return {name for module in modules or [] if (name := str(module).rsplit(".", 1)[-1]) in there}


def put_weights(model: Any, old: Finished) -> None:
    """Load the adapter's weights into `model`, a `PeftModel` with a LoRA of the same shape.

    Raises:
        ValueError: weights are missing, or do not fit.
    """
    import peft
    import torch
    from safetensors.torch import load_file

    if old.weights.suffix == ".bin":
        state = torch.load(old.weights, map_location="cpu", weights_only=True)
    else:
        state = load_file(str(old.weights))
    state = take_beginning(model, state)
    wanted = peft.get_peft_model_state_dict(model, save_embedding_layers=False)  # as it is saved
    missing = sorted(set(wanted) - set(state))
    wrong = sorted(name for name in set(wanted) & set(state) if wanted[name].shape != state[name].shape)
    if missing or wrong:
        raise ValueError(
            f"{old.weights.name} does not fit: {len(missing)} weights are missing and {len(wrong)} have another shape ({(missing + wrong)[0]})"
        )
    peft.set_peft_model_state_dict(model, state)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None


def _number(*candidates: Any) -> float:
    return next((value for value in candidates if is_plain(value) and value >= 0), 0)


def is_plain(value: Any) -> bool:
    """Whether it is a number that can be counted with and shown."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -(2**53) < value < 2**53


def _on(value: bool) -> str:
    return "on" if value else "off"
