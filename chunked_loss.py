"""The loss of a step without the logits of a whole batch: cross entropy over some positions at a time, and only where a token is learned.

At a vocabulary of 128,000 the logits of one batch, their copy in 32 bits and their gradient are most of a run's memory. The hidden states are
caught before the model's head, and the head runs on some of them at a time; since it is not trained, the gradient is known at once and the
logits are dropped (the way of Liger's fused linear cross entropy, arXiv 2410.10989, in plain torch, for any device and any kind of head).

Needs torch as soon as it is imported, so it is imported where a run begins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .blocks import IGNORED
from .perplexity import evaluating

CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}  # of one chunk's logits in 32 bits; on a processor what fits its cache is fastest


class _Losses(torch.autograd.Function):
    """Sum of the cross entropies of hidden states (positions, width) that a head, which is not trained, turns into logits."""

    @staticmethod
    def forward(ctx: Any, hidden: Any, targets: Any, head: Any, rows: int) -> Any:
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wanted else None
        total = torch.zeros((), device=hidden.device, dtype=torch.float32)
        for begin in range(0, len(hidden), rows):
            part = hidden[begin : begin + rows].detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                loss = torch.nn.functional.cross_entropy(head(part[None])[0].float(), targets[begin : begin + rows], reduction="sum")
            total += loss.detach()
            if wanted:
                gradient[begin : begin + rows] = torch.autograd.grad(loss, part)[0]
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, above: Any) -> tuple[Any, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * above.to(gradient.dtype), None, None, None


class ChunkedLoss:
    """Computes the summed loss of batches that `with_places` made ready. Its hook on the head stays; `untouched` removes it with all else."""

    def __init__(self, model: Any, head: Any):
        self.model, self.head = model, head
        self.caught: list[Any] = []
        self.catching = False
        head.register_forward_pre_hook(self._catch)

    def _catch(self, module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not self.catching:
            return None
        self.catching = False
        self.caught.append(arguments[0])
        return (arguments[0][:1, :1], *arguments[1:])  # the model makes logits of something, which nobody looks at

    def sum(self, forward: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        """Summed cross entropy of the learned tokens, a scalar in 32 bits.

        Args:
            forward: the model, or what wraps it.
            inputs: what `with_places` gave, on the model's device.
        """
        places, targets = inputs["places"], inputs["targets"]
        self.catching = True
        try:
            forward(**{name: value for name, value in inputs.items() if name not in ("places", "targets", "labels")})
        finally:
            self.catching = False
        hidden = self.caught.pop()
        hidden = hidden.reshape(-1, hidden.shape[-1]).index_select(0, places.to(hidden.device))
        return _Losses.apply(hidden, targets.to(hidden.device), self.head, self._rows(hidden.device.type))

    def _rows(self, device: str) -> int:
        words = getattr(self.head, "out_features", None) or self.head.weight.shape[0]
        return max(16, CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // (4 * words))


def with_places(batch: dict[str, Any]) -> dict[str, Any]:
    """Add `places` (of the positions that predict a learned token, counted through the batch) and `targets` (those tokens).

    Done while the batch is still on the processor: asking a graphics card where labels are would make it wait.
    """
    labels = batch["labels"]
    rows, columns = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
    return {**batch, "places": rows * labels.shape[1] + columns, "targets": labels[rows, columns + 1]}


def chunked_loss(model: Any) -> ChunkedLoss | None:
    """A `ChunkedLoss` for this model, LoRA layers included; None where its own loss must be used.

    That is where the head is trained, where the model does more to its logits than its head does (Gemma 2 caps them), or where its loss
    is more than the cross entropy (a mixture of experts that balances them). It is found out by trying.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = causal.get_output_embeddings()
    if head is None or not hasattr(head, "weight") or any(weight.requires_grad for weight in head.parameters()):
        return None
    hooks = dict(head._forward_pre_hooks)
    found = ChunkedLoss(model, head)
    ids = (torch.arange(48) * 7919 % causal.get_input_embeddings().num_embeddings).reshape(2, 24)
    batch = with_places({"input_ids": ids, "labels": ids.masked_fill(torch.arange(24) % 5 == 3, IGNORED)})
    batch = {name: value.to(model.device) for name, value in batch.items()}
    try:
        with evaluating(model):
            own = float(model(input_ids=batch["input_ids"], labels=batch["labels"]).loss)
            ours = float(found.sum(model, batch)) / len(batch["targets"])
        usable = abs(ours - own) <= 1e-4 * abs(own)
    except Exception:  # any architecture may come; what this way cannot do its own loss can, and an error of its own comes again there
        usable = False
    if usable:
        return found
    head._forward_pre_hooks.clear()
    head._forward_pre_hooks.update(hooks)
    return None
