"""Prepared data that was made before in this process and would come out the same: Start after Verify has nothing to prepare again.

What decides is the content: the settings that the data depends on, the bytes of every file that is read, and the tokenizer.
"""

from __future__ import annotations

import hashlib
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .rows import is_hub_name
from .settings import BUILT_IN, OPTIONS, TrainingSettings

MOST = 2  # what Verify made, and what the slices are shown of

# Settings that the prepared data does not depend on; a new one counts until it is named here
WITHOUT_DATA = {
    "lora_name", "always_override", "lora_rank", "lora_alpha", "lora_RS", "lora_RS_alpha", "micro_batch_size", "grad_accumulation", "batch_size",
    "epochs", "learning_rate", "lr_scheduler_type", "save_steps", "save_steps_under_loss", "save_total_limit", "stop_at_loss", "stop_at_epoch",
    "time_budget_minutes", "early_stopping_patience", "load_best_at_end", "warmup_steps", "warmup_ratio", "neft_noise_alpha",
    "training_projection", "lora_modulessave", "use_grad_checkpoint", "lora_dropout", "optimizer", "group_by_length", "higher_rank_limit",
    "report_to", "weight_decay", "max_grad_norm", "eval_steps", "eval_stepsJSONL", "packing", "auto_batch", "adapter_kind", "loraplus_ratio",
    "attention", "use_liger_kernel", "torch_compile", "sample_prompts", "sample_steps",
}  # fmt: skip
FILES = ("dataset", "eval_dataset", "format", "datasetJSONL", "eval_datasetJSONL", "instruction_template", "raw_text_file")


@dataclass(frozen=True)
class Mark:
    """What tells prepared data from other data."""

    tokenizer: weakref.ref[Any]
    told: tuple[Any, ...]


def mark_of(settings: TrainingSettings, tokenizer: Any, host: Any) -> Mark | None:
    """The mark of what `prepare` would make now; None where that cannot be told (a dataset of the hub, a file that is not there)."""
    files = []
    for key in FILES:
        name = getattr(settings, key)
        if not name or name in BUILT_IN.get(key, ()):
            continue
        if OPTIONS[key].files in ("json", "jsonl") and is_hub_name(name):
            return None
        try:
            path = host.data_file(OPTIONS[key].files, name)
            files += [(key, str(file), _digest(file)) for file in (sorted(path.glob("*.txt")) if path.is_dir() else [path])]
        except (OSError, ValueError):
            return None
    chosen = tuple((key, value) for key, value in settings.model_dump().items() if key not in WITHOUT_DATA)
    names = ("chat_template", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "add_bos_token", "add_eos_token")
    known = (len(tokenizer), *(str(getattr(tokenizer, name, None)) for name in names))
    today = time.strftime("%Y-%m-%d")  # which some chat templates write
    try:
        return Mark(weakref.ref(tokenizer), (chosen, tuple(files), known, host.instruction_template(), str(host.scratch_dir), today))
    except TypeError:  # a tokenizer of a kind that takes no references
        return None


def _digest(path: Path) -> str:
    found = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


class Kept:
    """The last few; safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[tuple[Mark, Any]] = []

    def find(self, mark: Mark | None) -> Any:
        with self._lock:
            return next((data for known, data in reversed(self._entries) if known == mark), None) if mark else None

    def keep(self, mark: Mark, data: Any) -> None:
        with self._lock:
            self._entries = [*(entry for entry in self._entries if entry[0] != mark), (mark, data)][-MOST:]

    def clear(self) -> None:
        with self._lock:
            self._entries = []
