"""The LoRA layers and their relatives: what they are put on, how large they are, how they get into a model and onto the disk.

DoRA is PEFT's. So are LoRA and rsLoRA, and the decomposition that PiSSA begins with (Meng et al. 2024, arXiv:2404.02948). PEFT takes PiSSA's
principal part out of the base's weights; here they stay as they are, and the part is taken off what a layer gives out. That is the same
function, the base can be asked at any moment, and what is trained is what is saved: a plain LoRA of twice the rank, that fits the base as it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .host import quantization_of
from .paths import whole_folder, write_json
from .settings import ALL_LINEAR, PROJECTIONS, TrainingSettings
from .training_run import RunFailed

LORA, DORA, PISSA = "LoRA", "DoRA", "PiSSA"
PISSA_INIT = "pissa_niter_16"  # the fast decomposition: seconds for a model where the full one takes minutes, with next to the same result
NAME = "default"  # PEFT's name of the adapter within the model


def target_modules(settings: TrainingSettings) -> str | list[str]:
    """What PEFT's `LoraConfig.target_modules` gets."""
    return ALL_LINEAR if settings.training_projection == ALL_LINEAR else PROJECTIONS[settings.training_projection]


def head_modules(model: Any) -> list[str]:
    """The names of the modules that “Train Head” trains in full, as `LoraConfig.modules_to_save` gets them: mostly lm_head and embed_tokens.

    Empty where the model does not tell them. A name is the last part of the module's, or the whole where several end with it.
    """
    names = [name for name, _ in model.named_modules()]
    wanted = [module for module in _ends(model) if module is not None]
    found = [name for name, module in model.named_modules() if any(module is each for each in wanted)]
    return [short if sum(name.endswith(short) for name in names) == 1 else name for name in found if (short := name.rsplit(".", 1)[-1])]


def _ends(model: Any) -> list[Any]:
    """The modules that tokens come in by and that logits leave by; None for one that the model does not tell."""
    found = []
    for ask in ("get_input_embeddings", "get_output_embeddings"):
        try:
            found.append(getattr(model, ask)())
        except (AttributeError, NotImplementedError):
            found.append(None)
    return found


def kind_problems(settings: TrainingSettings, model: Any) -> list[str]:
    """Why this model cannot be trained with the chosen kind of adapter or with its head, with what to do."""
    problems = []
    quantization = quantization_of(model)
    if settings.adapter_kind == PISSA and quantization != "none":
        problems.append(
            f"Adapter kind PiSSA begins with the largest parts of the base's weights, and these are rounded in the loaded model ({quantization}). "
            "Choose LoRA or DoRA, or load the model without quantisation."
        )
    elif settings.adapter_kind == PISSA and settings.lora_rank > (smallest := min((min(sides) for sides in _targets(settings, model)), default=0)):
        problems.append(
            f"LoRA Rank is {settings.lora_rank}; Adapter kind PiSSA takes at most {smallest} here, the smaller side of the smallest layer."
        )
    if settings.adapter_kind == DORA and quantization == "8-bit" and model.device.type == "cpu":
        problems.append(
            "Adapter kind DoRA does not work with an 8-bit model on the CPU (PEFT loses the scales of its weights there). Choose LoRA, or load the model "
            "in 4-bit or without quantisation."
        )
    if settings.lora_modulessave:
        ends = _ends(model)
        if None in ends:
            problems.append(f"Train Head cannot be used: {type(model).__name__} does not tell where its head is. Untick it.")
        elif any(not end.weight.is_floating_point() for end in ends):
            problems.append(
                "Train Head cannot be used: the head of the loaded model is quantised. Untick it, or load the model without quantisation."
            )
    return problems


def kind_notices(settings: TrainingSettings) -> list[str]:
    """What should be known before a run with these settings."""
    if settings.lora_modulessave and "8bit" not in settings.optimizer:
        return [
            f"Train Head trains lm_head and embed_tokens in full, and the optimizer “{settings.optimizer}” needs two more numbers for each of their weights. "
            "If the memory is short, choose adamw_8bit or paged_adamw_8bit."
        ]
    return []


# Sizes


def trained_bytes(settings: TrainingSettings, model: Any) -> int:
    """Size in float32 of the weights that are trained, from the shapes of the layers that get LoRA weights."""
    total = 0
    for inputs, outputs in _targets(settings, model):
        total += (inputs + outputs) * settings.lora_rank * 4
        if settings.adapter_kind == DORA:
            total += outputs * 4  # the magnitudes
    heads = {id(end.weight): end.weight for end in _heads(settings, model)}  # tied ones are trained as one
    return total + sum(weight.numel() * 4 for weight in heads.values())


def adapter_bytes(settings: TrainingSettings, model: Any) -> int:
    """Size of the saved adapter, in float32."""
    heads = sum(end.weight.numel() * 4 for end in _heads(settings, model))
    once = {id(end.weight): end.weight.numel() * 4 for end in _heads(settings, model)}
    return trained_bytes(settings, model) - sum(once.values()) + beginning_bytes(settings, model) + heads


def beginning_bytes(settings: TrainingSettings, model: Any) -> int:
    """Size of what PiSSA's layers began with, in float32: it stays in memory, and is saved beside the trained weights."""
    if settings.adapter_kind != PISSA:
        return 0
    return sum((inputs + outputs) * settings.lora_rank * 4 for inputs, outputs in _targets(settings, model))


def _targets(settings: TrainingSettings, model: Any) -> Iterator[tuple[int, int]]:
    """(inputs, outputs) of each layer that gets LoRA weights."""
    wanted, head = target_modules(settings), _ends(model)[1]
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in wanted if wanted != ALL_LINEAR else module is not head:
            if type(module).__name__ == "Conv1D":  # GPT-2's linear layer
                yield module.weight.shape[0], module.weight.shape[1]
            elif hasattr(module, "in_features") and hasattr(module, "out_features"):
                yield module.in_features, module.out_features


def _heads(settings: TrainingSettings, model: Any) -> list[Any]:
    return [end for end in _ends(model) if end is not None] if settings.lora_modulessave else []


# Into the model


def attach_lora(model: Any, settings: TrainingSettings) -> Any:
    """Put LoRA layers into `model` (in place, as PEFT does) and return the `PeftModel`; a quantised model is made ready first."""
    import peft

    if quantization_of(model) in ("4-bit", "8-bit"):
        model = peft.prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=settings.use_grad_checkpoint, gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    config = peft.LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.alpha,
        use_rslora=settings.lora_RS,
        use_dora=settings.adapter_kind == DORA,
        lora_dropout=settings.lora_dropout,
        target_modules=target_modules(settings),
        modules_to_save=head_modules(model) if settings.lora_modulessave else None,
        bias="none",
        task_type="CAUSAL_LM",
    )
    ends, dtype = _ends(model), model.dtype
    attached = peft.get_peft_model(model, config)
    if settings.adapter_kind == PISSA:
        _begin_with_principal_parts(attached)
    if settings.lora_modulessave:
        _ready_the_head(attached, tied=ends[0].weight is ends[1].weight, dtype=dtype)
    return attached


def _ready_the_head(model: Any, tied: bool, dtype: Any) -> None:
    """The copies that are trained: in float32, since a half-precision weight does not hold a small step, between activations of the model's
    own type; and one weight where the base has one."""
    import torch

    embedding, head = (end.modules_to_save[NAME] for end in _ends(model.get_base_model()))
    for copy in (embedding, head):
        copy.to(torch.float32)
    if tied:
        head.weight = embedding.weight
    if dtype != torch.float32:
        embedding.register_forward_hook(lambda module, inputs, result: result.to(dtype))
        head.register_forward_pre_hook(lambda module, inputs: (inputs[0].to(torch.float32), *inputs[1:]))


# PiSSA


def _begin_with_principal_parts(model: Any) -> None:
    for _, layer in _lora_layers(model):
        base = layer.get_base_layer().weight
        kept = base.data
        try:
            layer.pissa_init(NAME, PISSA_INIT)
        finally:
            base.data = kept
        _take_off(layer, layer.lora_A[NAME].weight.detach().clone(), layer.lora_B[NAME].weight.detach().clone())


def _lora_layers(model: Any) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and NAME in module.lora_A:
            yield name, module


def _take_off(layer: Any, A: Any, B: Any) -> None:
    """From now on the layer gives out its result without `scaling · B A x`: the part that its LoRA weights began with, which the base has already."""
    if not hasattr(layer, "began_with"):
        layer.register_forward_hook(_without_the_beginning)
    layer.began_with = (A, B)


def _without_the_beginning(layer: Any, inputs: Any, result: Any) -> Any:
    from torch.nn.functional import linear

    if layer.disable_adapters:
        return result
    A, B = layer.began_with
    return result - (linear(linear(inputs[0].to(A.dtype), A), B) * layer.scaling[NAME]).to(result.dtype)


def _pissa_layers(model: Any) -> list[tuple[str, Any]]:
    return [(name, layer) for name, layer in _lora_layers(model) if hasattr(layer, "began_with")]


def _with_the_beginning(model: Any, state: dict[str, Any]) -> dict[str, Any]:
    """The weights as a plain LoRA's of twice the rank: B A − B₀ A₀ = [B, −B₀] [A; A₀] (as PEFT's `subtract_mutated_init` has it)."""
    import torch

    state = dict(state)
    for name, layer in _pissa_layers(model):
        A, B = (weight.to("cpu") for weight in layer.began_with)
        state[f"{name}.lora_A.weight"] = torch.cat([state[f"{name}.lora_A.weight"], A.to(state[f"{name}.lora_A.weight"].dtype)], dim=0)
        state[f"{name}.lora_B.weight"] = torch.cat([state[f"{name}.lora_B.weight"], -B.to(state[f"{name}.lora_B.weight"].dtype)], dim=1)
    return state


def take_beginning(model: Any, state: dict[str, Any]) -> dict[str, Any]:
    """The other way round: PiSSA layers begin with what a saved adapter began with; returns the weights that are trained.

    Where `model` has no PiSSA layers, or the weights do not have twice their rank, they are given back as they are.
    """
    state = dict(state)
    for name, layer in _pissa_layers(model):
        rank, A, B = layer.r[NAME], state.get(f"{name}.lora_A.weight"), state.get(f"{name}.lora_B.weight")
        if A is None or B is None or A.shape[0] != 2 * rank or B.shape[1] != 2 * rank:
            continue
        before = layer.began_with
        _take_off(layer, *(began.to(old) for began, old in zip((A[rank:].clone(), -B[:, rank:]), before, strict=True)))
        state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"] = A[:rank].clone(), B[:, :rank].clone()
    return state


# Onto the disk


def save_adapter(model: Any, folder: Path) -> None:
    """Save the adapter in PEFT's format (safetensors) as `folder`, whole or not at all.

    Raises:
        RunFailed: a weight is not a finite number.
    """
    with whole_folder(folder) as part:
        write_adapter(model, part)


def write_adapter(model: Any, folder: Path) -> None:
    import torch

    for name, weight in model.named_parameters():
        if weight.requires_grad and not torch.isfinite(weight).all():
            raise RunFailed(f"Failed: the LoRA's weights are not numbers any more ({name}), so they were not saved. Lower the Learning Rate.")
    # PEFT would read the base's configuration, from the hub or the disk, to see whether the vocabulary was resized: a run never does that.
    model.save_pretrained(str(folder), safe_serialization=True, selected_adapters=[model.active_adapter], save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    if _pissa_layers(model):
        _write_as_plain_lora(model, folder)
    for file in folder.glob("adapter_*"):
        file.chmod(0o644)  # safetensors makes it readable by its owner alone, and a server may run under another name than the trainer


def _write_as_plain_lora(model: Any, folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    save_file(_with_the_beginning(model, load_file(str(weights))), str(weights), metadata={"format": "pt"})
    said = json.loads(config.read_text(encoding="utf-8"))
    said["r"] *= 2
    said["lora_alpha"] *= 2**0.5 if said["use_rslora"] else 2  # the scale stays
    write_json(config, said)
