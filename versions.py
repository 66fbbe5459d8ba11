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


def training_arguments(*, use_cpu: bool, group_by_length: bool, **arguments: Any) -> Any:
    """`transformers.TrainingArguments` with the names that the installed version uses."""
    from transformers import TrainingArguments

    names = inspect.signature(TrainingArguments.__init__).parameters
    arguments["use_cpu" if "use_cpu" in names else "no_cuda"] = use_cpu
    if "train_sampling_strategy" in names:  # transformers 5
        arguments["train_sampling_strategy"] = "group_by_length" if group_by_length else "random"
    else:
        arguments["group_by_length"] = group_by_length
    return TrainingArguments(**arguments)
