"""What computes a run's steps in another way than the model's own code: Liger's fused kernels, and layers compiled by torch.

Both change the model in place, as PEFT does; `untouched` gives the model back. What Liger changes outside the model is put back here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from typing import Any

from .settings import TrainingSettings
from .training_run import first_line
from .untouched import random_state_kept

LIGER_DEVICES = ("cuda", "xpu")  # Triton has no processors
BACKEND = "inductor"


@contextlib.contextmanager
def put_back(model: Any, settings: TrainingSettings) -> Iterator[None]:
    """What the chosen kernels change beside the model is as it was at the end."""
    with contextlib.ExitStack() as stack:
        if settings.use_liger_kernel:
            stack.enter_context(functions_kept(model))
        if settings.torch_compile:
            stack.enter_context(compiling_may_fail())
        yield


# Liger (Triton kernels for norms, rotary positions and gates, arXiv 2410.10989), by way of transformers' `use_liger_kernel`


def liger_problem(model: Any) -> str | None:
    """Why Liger's kernels cannot be used with this model, with what to do; None where they can."""
    if model.device.type not in LIGER_DEVICES:
        return f"Liger kernels run on a graphics card, and the model is on {model.device.type}. Untick Liger kernels."
    if importlib.util.find_spec("liger_kernel") is None:
        return "Liger kernels: the package is not installed. Install it with “pip install liger-kernel”, or untick Liger kernels."
    try:
        from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as known
    except Exception as error:  # a package that does not fit this torch or Triton fails in its own way
        return f"Liger kernels cannot be loaded ({first_line(error)}). Untick Liger kernels, or install a liger-kernel that fits."
    if model.config.model_type not in known:
        return f"Liger kernels: the installed liger-kernel has none for {type(model).__name__}. Untick it."
    return None


@contextlib.contextmanager
def functions_kept(model: Any) -> Iterator[None]:
    """Functions and classes that Liger replaces in the model's modules of code, in its classes and in torch are put back at the end."""
    import torch

    classes = {type(module) for module in model.modules()}
    places = [vars(sys.modules[name]) for name in {each.__module__ for each in classes} if name.startswith("transformers.")]
    kept = [(place, dict(place)) for place in [*places, vars(torch.nn.functional)]]
    methods = [(each, each.__dict__["forward"]) for each in classes if "forward" in each.__dict__]
    try:
        yield
    finally:
        for place, before in kept:
            place.update(before)
        for each, forward in methods:
            each.forward = forward


# Compiled layers (torch.compile of each repeated layer, “regional compilation”: the layers share one compiled code)


def compile_layers(model: Any, autocast: Callable[[], Any] = contextlib.nullcontext) -> str | None:
    """Compile the layers of which the model has many, in place, and try a step; lengths of batches may differ.

    Args:
        autocast: makes the context in which the run computes its loss.

    Returns:
        None, or why it cannot be done here; then the layers are as they were.
    """
    import torch

    layers = repeated_layers(model)
    if not layers:
        return f"{type(model).__name__} has no layers that repeat"
    try:
        for layer in layers:
            layer.compile(dynamic=True, backend=BACKEND)
        with torch._dynamo.config.patch(suppress_errors=False):
            _try_a_step(model, autocast)
        return None
    except Exception as error:  # no compiler on this machine, an operation that cannot be traced: each in its own way
        for layer in layers:
            layer._compiled_call_impl = None
        torch._dynamo.reset()
        return first_line(getattr(error, "inner_exception", error))  # torch names the backend that failed first, then why


@contextlib.contextmanager
def compiling_may_fail() -> Iterator[None]:
    """Code that cannot be compiled in mid-run is run as it is; afterwards torch forgets what it compiled, which holds on to the model."""
    import torch

    dynamo = torch._dynamo
    before = dynamo.config.suppress_errors
    dynamo.config.suppress_errors = True
    try:
        yield
    finally:
        dynamo.config.suppress_errors = before
        dynamo.reset()


def repeated_layers(model: Any) -> list[Any]:
    """The modules of the outermost lists that hold several of one class: the decoder layers."""
    import torch

    found: list[Any] = []
    inside: set[int] = set()
    for module in model.modules():  # parents come first
        if isinstance(module, torch.nn.ModuleList) and len(module) > 1 and len({type(each) for each in module}) == 1 and id(module) not in inside:
            found += module
            inside.update(id(each) for each in module.modules())
    return found


def _try_a_step(model: Any, autocast: Callable[[], Any]) -> None:
    import torch

    words = model.get_input_embeddings().num_embeddings
    try:
        with random_state_kept():
            for length in (16, 24):
                ids = (torch.arange(2 * length, device=model.device) * 7919 % words).reshape(2, length)
                with autocast():
                    loss = model(input_ids=ids, labels=ids).loss
                loss.backward()
    finally:  # also where the second length fails: the first has left its gradients
        for weight in model.parameters():
            if weight.requires_grad:
                weight.grad = None
