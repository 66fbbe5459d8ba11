"""The LoRA layers: what they are put on, how large they are, how they get into a model and onto the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .host import quantization_of
from .paths import whole_folder
from .settings import ALL_LINEAR, PROJECTIONS, TrainingSettings
from .training_run import RunFailed


def target_modules(settings: TrainingSettings) -> str | list[str]:
    """What PEFT's `LoraConfig.target_modules` gets."""
    return ALL_LINEAR if settings.training_projection == ALL_LINEAR else PROJECTIONS[settings.training_projection]


def adapter_bytes(settings: TrainingSettings, model: Any) -> int:
    """Size of the adapter's weights in float32, from the shapes of the layers that get LoRA weights."""
    wanted = target_modules(settings)
    total = 0
    for name, module in model.named_modules():
        if wanted == ALL_LINEAR or name.rsplit(".", 1)[-1] in wanted:
            sides = [getattr(module, side, None) for side in ("in_features", "out_features")]
            if type(module).__name__ == "Conv1D":  # GPT-2's linear layer
                sides = list(module.weight.shape)
            if None not in sides:
                total += sum(sides) * settings.lora_rank * 4
    return total


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
        lora_dropout=settings.lora_dropout,
        target_modules=target_modules(settings),
        bias="none",
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, config)


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
    model.save_pretrained(str(folder), safe_serialization=True, selected_adapters=[model.active_adapter])
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
