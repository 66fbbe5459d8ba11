"""“Auto batch”: out of memory halves what goes through the model at once, and the run goes on.

A step stays what the user counts, one True Batch; it is worked through in 2, 4, 8 … passes whose gradients add up to those of the whole.
That is the half True Batch with the double accumulation, with the very blocks that every optimizer step had before, also where a batch
is odd (3 blocks are passes of 2 and 1). So no number of steps changes: intervals, schedule, graph and checkpoints stay as planned.

The optimizer step that ran out of memory is done again from its first batch with no gradients; everything before it was in memory all
along. (accelerate's `find_executable_batch_size`, whose test for such errors is used here, begins the whole run anew.)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from .blocks import IGNORED
from .host import free_memory
from .settings import OPTIONS, TrainingSettings
from .training_run import TrainingRun


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a graphics card's memory, or the processor's, was not enough."""
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    said = str(error)
    return (
        "out of memory" in said.lower() or "CUBLAS_STATUS_ALLOC_FAILED" in said or (isinstance(error, Exception) and should_reduce_batch_size(error))
    )


def what_to_change(settings: TrainingSettings | None, quantization: str = "") -> str:
    """What a user whose memory is not enough can do, the strongest first, in a sentence that names the controls."""
    label = {key: kind.label for key, kind in OPTIONS.items()}
    ways = []
    if settings is None or settings.micro_batch_size > 1:
        ways.append(f"lower {label['micro_batch_size']} (and raise {label['grad_accumulation']} by as much, or tick {label['auto_batch']})")
    if settings is None or not settings.use_grad_checkpoint:
        ways.append(f"tick {label['use_grad_checkpoint']}")
    ways.append(f"lower {label['cutoff_len']}")
    if settings is not None and not any(word in settings.optimizer for word in ("8bit", "adafactor", "sgd")):
        ways.append("choose an 8-bit Optimizer")
    if settings is not None and settings.lora_rank > 32:
        ways.append(f"lower {label['lora_rank']}")
    if quantization in ("", "none"):
        ways.append("load the model in 4-bit")
    said = ", ".join(ways[:-1]) + f" or {ways[-1]}" if len(ways) > 1 else ways[0]
    return f"{said[0].upper()}{said[1:]}."


class AutoBatch:
    """The passes of a run's steps. `passes` is how many there are of a whole batch; it doubles and never falls again."""

    def __init__(self, settings: TrainingSettings, run: TrainingRun):
        self.settings, self.run = settings, run
        self.passes = 1
        self._optimizer_step, self._batches = -1, []

    def step(self, trainer: Any, training_step: Callable[..., Any], model: Any, batch: dict[str, Any], *rest: Any, **named: Any) -> Any:
        """Forward and backward of one batch: `training_step(model, batch, *rest, **named)`, in as many passes as it takes.

        Args:
            trainer: the `transformers.Trainer` whose method `training_step` is.
            rest, named: `num_items_in_batch`, in the versions that have it.

        Returns:
            The batch's loss, as `training_step` gives it.
        """
        if self._optimizer_step != trainer.state.global_step:
            self._optimizer_step, self._batches = trainer.state.global_step, []
        self._batches.append(batch)
        todo = self._batches[-1:]
        while True:
            try:
                for each in todo:
                    loss = self._in_passes(trainer, training_step, model, each, rest, named)
                return loss
            except Exception as error:
                if not self.settings.auto_batch or not is_out_of_memory(error) or self.passes >= max(units(each) for each in todo):
                    raise
            # Not in the clause above: there the error's traceback would hold the tensors of the pass that failed.
            self.passes *= 2
            self._say()
            model.zero_grad(set_to_none=True)
            free_memory()
            todo = self._batches

    def _in_passes(self, trainer: Any, training_step: Callable[..., Any], model: Any, batch: dict[str, Any], rest: Any, named: Any) -> Any:
        if self.passes == 1:
            return training_step(model, batch, *rest, **named)
        count = rest[0] if rest else named.get("num_items_in_batch")
        sums = count is not None and getattr(trainer, "model_accepts_loss_kwargs", False)  # each loss is a part of the sum; else it is a mean
        parts = [part for part in split(batch, self.passes) if trained(part)] or [batch]
        whole, total = trained(batch), 0.0
        for part in parts:
            if not sums and whole:
                own, share = type(trainer).compute_loss, trained(part) / whole
                # training_step asks the trainer for the loss; a mean counts for the share of the tokens that it is the mean of
                trainer.compute_loss = lambda *given, own=own, share=share, **more: own(trainer, *given, **more) * share
            try:
                total = total + training_step(model, part, *rest, **named)
            finally:
                vars(trainer).pop("compute_loss", None)
        return total

    def _say(self) -> None:
        size, accumulation = self.settings.micro_batch_size, self.settings.accumulation
        label = {key: OPTIONS[key].label for key in ("micro_batch_size", "grad_accumulation", "auto_batch")}
        self.run.notices = [said for said in self.run.notices if not said.startswith(label["auto_batch"])]
        self.run.notices.append(
            f"{label['auto_batch']}: out of memory at step {self.run.step + 1}, so each step goes through the model in {self.passes} parts, "
            f"as {label['micro_batch_size']} {-(-size // self.passes)} and {label['grad_accumulation']} {accumulation * self.passes} would; "
            "the numbers of steps stay as they are."
        )
        self.run.record("auto batch", passes=self.passes, optimizer_step=self._optimizer_step)
        self.run.update()


def halved(work: Callable[[int], Any], size: int) -> Any:
    """`work(size)`, and where memory is not enough with half of the size, down to 1. For work whose result does not depend on it."""
    while True:
        try:
            return work(size)
        except Exception as error:
            if size == 1 or not is_out_of_memory(error):
                raise
        free_memory()
        size = -(-size // 2)


def units(batch: dict[str, Any]) -> int:
    """What a batch can be split into: its rows; of packed rows without padding (FlashAttention), which are one row, its blocks."""
    return len(batch["cu_seq_lens_q"]) - 1 if "cu_seq_lens_q" in batch else len(batch["input_ids"])


def trained(batch: dict[str, Any]) -> int:
    """How many tokens of a batch are learned."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())


def split(batch: dict[str, Any], passes: int) -> list[dict[str, Any]]:
    """A batch in at most so many parts, in order, whose sizes differ by at most one (the larger ones first)."""
    count = units(batch)
    passes = min(passes, count)
    sizes = [count // passes + (place < count % passes) for place in range(passes)]
    edges = [sum(sizes[:place]) for place in range(passes + 1)]
    cut = _blocks_of if "cu_seq_lens_q" in batch else _rows_of
    parts = [cut(batch, begin, end) for begin, end in itertools.pairwise(edges)]
    if "places" not in batch:
        return parts
    from .chunked_loss import with_places

    return [with_places(part) for part in parts]


def _rows_of(batch: dict[str, Any], begin: int, end: int) -> dict[str, Any]:
    return {name: value[begin:end] for name, value in batch.items() if name not in ("places", "targets")}


def _blocks_of(batch: dict[str, Any], begin: int, end: int) -> dict[str, Any]:
    borders = batch["cu_seq_lens_q"][begin : end + 1]
    first, last = int(borders[0]), int(borders[-1])
    part = {name: batch[name][:, first:last] for name in ("input_ids", "labels", "position_ids")}
    widest = int((borders[1:] - borders[:-1]).max())
    return {**part, "cu_seq_lens_q": borders - first, "cu_seq_lens_k": borders - first, "max_length_q": widest, "max_length_k": widest}
