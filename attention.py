"""The way attention is computed during a run: what is chosen, where the loaded model can do it, and as it was before afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

AUTO, FLASH = "auto", "flash_attention_2"


def attention_of(model: Any) -> str:
    """sdpa, eager, flash_attention_2 …; “its own” where the model does not say."""
    return str(getattr(model.config, "_attn_implementation", None) or "its own")


@contextlib.contextmanager
def attention(model: Any, wanted: str) -> Iterator[None]:
    """Let `model` compute attention so inside the block (`set_attn_implementation`, in transformers 4.53 and later).

    Raises:
        ValueError: it cannot; the message says why.
    """
    configs = list({id(config): config for module in model.modules() for config in _configs(module)}.values())
    before = [(config, dict(config.__dict__)) for config in configs]
    try:
        if wanted not in (AUTO, attention_of(model)):
            _set(model, wanted)
        yield
    finally:
        for config, kept in before:
            config.__dict__.clear()
            config.__dict__.update(kept)


def attention_problem(model: Any, wanted: str) -> str | None:
    """Why the model cannot be trained with this choice, with what to do; None where it can."""
    try:
        with attention(model, wanted):
            return None
    except ValueError as error:
        return f"Attention “{wanted}” cannot be used here: {error}. Choose another, or auto, which leaves it as it is ({attention_of(model)})."


def _set(model: Any, wanted: str) -> None:
    import torch

    if not hasattr(model, "set_attn_implementation"):
        raise ValueError("the installed transformers cannot change it once a model is loaded")
    if wanted == FLASH:
        from transformers.utils import is_flash_attn_2_available

        if not is_flash_attn_2_available():
            raise ValueError("the package flash-attn is not installed, or no graphics card is here that it works on")
        if model.device.type == "cpu" or model.dtype not in (torch.bfloat16, torch.float16):
            raise ValueError(
                f"it needs a model in bfloat16 or float16 on the graphics card, and this one is in {_word(model.dtype)} on {model.device.type}"
            )
    try:
        model.set_attn_implementation(wanted)
    except Exception as error:  # an architecture that lacks it says so in its own way
        raise ValueError((str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")) from error
    if attention_of(model) != wanted:
        raise ValueError(f"{type(model).__name__} cannot change it once it is loaded")


def _configs(module: Any) -> list[Any]:
    config = getattr(module, "config", None)
    if not hasattr(config, "_attn_implementation"):
        return []
    parts = [getattr(config, name, None) for name in getattr(config, "sub_configs", None) or {}]
    return [config, *(part for part in parts if part is not None)]


def _word(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
