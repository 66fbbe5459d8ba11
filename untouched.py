"""Lend a model out and get it back to the bit: what PEFT, the Trainer and accelerate do to it is undone on leaving.

`get_peft_model` works in place: afterwards the host's own model holds the LoRA layers, is in train mode, has `use_cache` off,
gradient checkpointing on, hooks, casts and replaced methods. Undoing each by its own call would depend on every version's
habits; all of them live in the `__dict__` of modules and of the config, which can be put back whole.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any


class Changed(RuntimeError):
    """A weight of the base model was written to, so that it cannot be given back as it was."""


@contextlib.contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Whatever happens to `model` inside the block is undone at its end, also after an error.

    Weights that were cast meanwhile are cast back, which is exact: a frozen weight that went from 16 to 32 bits holds the
    same number. A weight that was written to cannot be put back.

    Raises:
        Changed: a weight was written to (torch counts the writes of each tensor).
    """
    modules = [(module, _copy(module.__dict__)) for module in model.modules()]
    if not any(".lora_" in name for name, _ in model.named_parameters()):
        # PeftModel.unload() leaves the names of the adapters behind; PEFT would take them up again and save them beside ours.
        model.__dict__.pop("peft_config", None)
    weights = [(name, weight, weight.dtype, weight.requires_grad, weight._version, weight.grad) for name, weight in model.named_parameters()]
    configs = [(config, dict(config.__dict__)) for config in _configs(model)]
    try:
        yield
    finally:
        for module, kept in modules:
            _put_back(module.__dict__, kept)
        for config, kept in configs:
            config.__dict__.clear()
            config.__dict__.update(kept)
        written = []
        for name, weight, dtype, requires_grad, version, grad in weights:
            if weight._version != version:
                written.append(name)
            if weight.dtype != dtype:
                weight.data = weight.data.to(dtype)
            weight.requires_grad_(requires_grad)
            weight.grad = grad
        if written:
            raise Changed(f"{len(written)} weights of the base model were changed, the first is {written[0]}")


def _configs(model: Any) -> list[Any]:
    configs = []
    for owner in (model, *model.modules()):
        for name in ("config", "generation_config"):
            config = getattr(owner, name, None)
            if config is not None and hasattr(config, "__dict__") and not any(config is known for known in configs):
                configs.append(config)
    return configs


def _copy(namespace: dict[str, Any]) -> dict[str, Any]:
    """The namespace with its own containers (children, parameters, buffers, hooks) copied, so that their contents are kept too."""
    return {key: (value, value.copy()) if isinstance(value, (dict, set)) else (value, None) for key, value in namespace.items()}


def _put_back(namespace: dict[str, Any], kept: dict[str, Any]) -> None:
    namespace.clear()
    for key, (value, contents) in kept.items():
        if contents is not None and not _same(value, contents):
            value.clear()
            value.update(contents)
        namespace[key] = value


def _same(now: Any, before: Any) -> bool:
    """Whether two dicts or sets hold the very same things (tensors are not compared, since they answer with a tensor)."""
    if isinstance(now, set):
        return now == before
    return list(now) == list(before) and all(now[key] is value for key, value in before.items())


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """A run seeds the process's random numbers; the host's go on afterwards where they were."""
    import numpy
    import torch

    python, arrays, tensors = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    cards = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        numpy.random.set_state(arrays)
        torch.set_rng_state(tensors)
        if cards is not None:
            torch.cuda.set_rng_state_all(cards)


@contextlib.contextmanager
def tensor_cores_used() -> Iterator[None]:
    """What a run multiplies in 32 bits goes through the card's tensor cores (TF32, cards from Ampere on), as it was for the host afterwards.
    TF32 rounds the factors to 10 bits of mantissa, which is more than bf16 has."""
    import torch

    if not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] < 8:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def optimizer_overrides_forgotten() -> Iterator[None]:
    """bitsandbytes keeps for the whole process which weights have their state in 32 bits, by their place in the optimizer, and the modules
    themselves: the next run's optimizer would take them for its own, and a model that is unloaded would stay in memory."""
    try:
        yield
    finally:
        if (bitsandbytes := sys.modules.get("bitsandbytes")) is not None and hasattr(bitsandbytes, "optim"):
            bitsandbytes.optim.GlobalOptimManager.get_instance().initialize()
