"""What differs between the versions of transformers, peft and gradio that the hosts bring, each in one place.

Always asked of a signature or an attribute, never of a version number.
"""

from __future__ import annotations

import inspect
from typing import Any


def dtype_argument(dtype: Any) -> dict[str, Any]:
    """The argument of `from_pretrained` that sets the weights' type: `dtype` from transformers 4.56, `torch_dtype` before."""
    from transformers import PretrainedConfig

    return {"dtype" if hasattr(PretrainedConfig(), "dtype") else "torch_dtype": dtype}


def hidden_from_api(event: Any) -> dict[str, Any]:
    """The argument of a gradio event that keeps it out of the page's public API: `api_visibility` in 6, `api_name=False` before."""
    return {"api_visibility": "private"} if "api_visibility" in inspect.signature(event).parameters else {"api_name": False}


def page_arguments(blocks: Any, launch: Any, **looks: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split what a page looks like (theme, css, head …) between `gr.Blocks` (gradio 4 and 5) and `launch` (6)."""
    taken = inspect.signature(launch).parameters
    return {name: value for name, value in looks.items() if name not in taken}, {name: value for name, value in looks.items() if name in taken}


def optimizer_of(name: str) -> tuple[Any, dict[str, Any]]:
    """The class of an optimizer by transformers' name for it, and its arguments.

    Not by way of `TrainingArguments`: making one forgets what accelerate knows in this process, and a run of another thread may be using it.
    """
    import dataclasses
    from types import SimpleNamespace

    from transformers import Trainer, TrainingArguments
    from transformers.training_args import OptimizerNames

    plain = [field for field in dataclasses.fields(TrainingArguments) if field.default is not dataclasses.MISSING]
    arguments = SimpleNamespace(**{**{field.name: field.default for field in plain}, "optim": OptimizerNames(name)})
    return Trainer.get_optimizer_cls_and_kwargs(arguments)


def training_arguments(*, use_cpu: bool, group_by_length: bool, **arguments: Any) -> Any:
    """`transformers.TrainingArguments` with the names that the installed version uses."""
    from transformers import TrainingArguments

    names = inspect.signature(TrainingArguments.__init__).parameters
    arguments["use_cpu" if "use_cpu" in names else "no_cuda"] = use_cpu
    if "train_sampling_strategy" in names:  # transformers 5
        arguments["train_sampling_strategy"] = "group_by_length" if group_by_length else "random"
    else:
        arguments["group_by_length"] = group_by_length
    if "activation_checkpointing" in names:  # the newer name of the same
        for name in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
            if name in arguments:
                arguments[name.replace("gradient", "activation")] = arguments.pop(name)
    return TrainingArguments(**arguments)
