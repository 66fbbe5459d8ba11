"""Perplexity of a model on a text, by strided windows: each token is scored once, with as much context as its window gives."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Perplexity:
    """`value` is exp(`nll` / `scored_tokens`); `nll` is the total negative log-likelihood in nats."""

    value: float
    scored_tokens: int
    nll: float


@dataclass(frozen=True)
class Window:
    """Tokens [begin, end) go through the model; those of [first_scored, end) are scored."""

    begin: int
    end: int
    first_scored: int


def windows(length: int, *, stride: int, max_length: int) -> Iterator[Window]:
    """Windows of at most `max_length` tokens, each moved by `stride`; every token is scored once.

    The text's first token has no context and is not scored; nor is a window's first token where `stride` equals `max_length`,
    so that the windows do not overlap.

    >>> [(w.begin, w.end, w.first_scored) for w in windows(7, stride=2, max_length=4)]
    [(0, 4, 1), (2, 6, 4), (4, 7, 6)]
    """
    scored = 1  # the first token has no context
    for begin in range(0, length, stride):
        end = min(begin + max_length, length)
        if (first := max(scored, begin + 1)) < end:
            yield Window(begin, end, first)
        scored = max(scored, end)
        if end == length:
            return


def perplexity(model: Any, input_ids: Sequence[int], *, stride: int, max_length: int, batch_size: int | None = None) -> Perplexity:
    """Score a text (Hugging Face's “Perplexity of fixed-length models”, with the mean taken over tokens, not over windows).

    Args:
        model: a causal language model.
        input_ids: the text's tokens: a list, or a tensor of shape (length,) or (1, length).
        stride: by how many tokens the window moves, from 1 to `max_length`.
        max_length: tokens of a window; 0 is the model's context.
        batch_size: windows that go through the model at once; None chooses 4 at most.

    Raises:
        ValueError: fewer than two tokens, or a stride that would leave tokens out.
    """
    import torch

    ids = torch.as_tensor(input_ids).reshape(-1).to(model.device)
    max_length = max_length or context_of(model)
    if len(ids) < 2:
        raise ValueError(f"The text has {len(ids)} tokens; at least 2 are needed, since the first has no context.")
    if max_length < 2:
        raise ValueError(f"max_length is {max_length}; it must be at least 2 tokens.")
    if not 1 <= stride <= max_length:
        raise ValueError(f"Stride is {stride}; it must be between 1 and max_length ({max_length}), or tokens would be left out.")

    was_training = model.training
    model.eval()
    try:
        total, scored = 0.0, 0
        with torch.no_grad():
            for batch in _batches(windows(len(ids), stride=stride, max_length=max_length), batch_size or 4):
                total += _nll(model, ids, batch)
                scored += sum(window.end - window.first_scored for window in batch)
    finally:
        model.train(was_training)
    return Perplexity(_exp(total / scored), scored, total)


def context_of(model: Any) -> int:
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return getattr(config, "max_position_embeddings", None) or 2048


def _exp(mean: float) -> float:
    try:
        return math.exp(mean)
    except OverflowError:
        return math.inf


def _batches(found: Iterator[Window], size: int) -> Iterator[list[Window]]:
    """Neighbouring windows of the same shape, so that no padding is needed."""
    batch: list[Window] = []
    for window in found:
        same = batch and _shape(window) == _shape(batch[0])
        if batch and (not same or len(batch) == size):
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _shape(window: Window) -> tuple[int, int]:
    return window.end - window.begin, window.end - window.first_scored


def _nll(model: Any, ids: Any, batch: list[Window]) -> float:
    """Total negative log-likelihood of the scored tokens of windows of one shape."""
    import torch

    length, scored = _shape(batch[0])  # scored < length: the first token of a window is never scored
    inputs = torch.stack([ids[window.begin : window.end] for window in batch])
    # Only the logits that predict a scored token are needed; most of a long window's need not be computed at all.
    keep = {"logits_to_keep": scored + 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    logits = model(input_ids=inputs, use_cache=False, **keep).logits[:, -(scored + 1) : -1]
    targets = inputs[:, length - scored :]
    losses = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), targets.reshape(-1), reduction="none")
    return float(losses.double().sum())
