"""What differs between the versions of transformers, peft and gradio that the hosts bring, each in one place.

Always asked of a signature or an attribute, never of a version number.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def accepted(function: Callable, **arguments: Any) -> dict[str, Any]:
    """The arguments that `function` takes by name; the others are left out."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in arguments.items() if name in names}


def dtype_argument(dtype: Any) -> dict[str, Any]:
    """The argument of `from_pretrained` that sets the weights' type: `dtype` from transformers 4.56, `torch_dtype` before."""
    from transformers import PretrainedConfig

    return {"dtype" if hasattr(PretrainedConfig(), "dtype") else "torch_dtype": dtype}


def training_arguments(*, use_cpu: bool, group_by_length: bool, evaluate: bool, **arguments: Any) -> Any:
    """`transformers.TrainingArguments` with the names that the installed version uses."""
    from transformers import TrainingArguments

    names = inspect.signature(TrainingArguments.__init__).parameters
    arguments["use_cpu" if "use_cpu" in names else "no_cuda"] = use_cpu
    if "train_sampling_strategy" in names:  # transformers 5
        arguments["train_sampling_strategy"] = "group_by_length" if group_by_length else "random"
    else:
        arguments["group_by_length"] = group_by_length
    arguments["eval_strategy" if "eval_strategy" in names else "evaluation_strategy"] = "steps" if evaluate else "no"
    # Only what one of the versions lacks may be dropped; a misspelt name must fail.
    for optional in ("average_tokens_across_devices", "save_safetensors"):
        if optional not in names:
            arguments.pop(optional, None)
    return TrainingArguments(**arguments)


def trainer_tokenizer(trainer_class: type, tokenizer: Any) -> dict[str, Any]:
    """The Trainer's argument for the tokenizer: `processing_class` from transformers 4.46, `tokenizer` before."""
    names = inspect.signature(trainer_class.__init__).parameters
    return {"processing_class" if "processing_class" in names else "tokenizer": tokenizer}
