"""Perplexity of a model on a text, by strided windows: each token is scored once, with as much context as its window gives.

The same measure on prepared blocks is `perplexity_of_blocks`: only the tokens that a block's labels name, each block on its own.

A token's loss needs the logits of one position, and a whole window's logits are most of the memory where the vocabulary is large.
So the hidden states are caught before the model's head, and the head runs on some scored positions at a time; a model that does
more to its logits than its head does (Gemma 2 caps them, Cohere scales them) is asked for the logits of the scored positions.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from .blocks import IGNORED

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Perplexity:
    """`value` is exp(`nll` / `scored_tokens`); `nll` is the total negative log-likelihood in nats.

    `value` is inf or nan where the model's logits are not finite, and nan where nothing was scored. `partial`: the measure was
    interrupted, and the numbers are of what was scored until then.
    """

    value: float
    scored_tokens: int
    nll: float
    partial: bool = False

    @property
    def finite(self) -> bool:
        return math.isfinite(self.value)


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


def encode(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text as the web UI's evaluation has them: BOS once at the beginning where the tokenizer knows one, no EOS.

    A text that begins with BOS keeps one. Source: `calculate_perplexity` in the web UI's modules/evaluate.py and `encode` in its
    modules/text_generation.py.
    """
    ids = list(tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"])
    bos = tokenizer.bos_token_id
    if bos is None:
        return ids
    while ids[:1] == [bos]:
        ids = ids[1:]
    return [bos, *ids]


def context_of(model: Any) -> int:
    """Tokens of the model's context; 2048 where its config does not say."""
    return getattr(_text_config(model), "max_position_embeddings", None) or 2048


def positions_of(model: Any) -> int | None:
    """Tokens that a model with learned positions (GPT-2, OPT) can read at once; None where positions are computed.

    A longer window would be an index out of range, after which a GPU cannot be used by this process any more.
    """
    context = getattr(_text_config(model), "max_position_embeddings", None)
    if context is None:
        return None
    named = ("wpe", "embed_positions", "position_embeddings", "position_embedding")
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in named and (getattr(module, "num_embeddings", None) or 0) >= context:
            return context
    return None


def perplexity(
    model: Any,
    input_ids: Sequence[int],
    *,
    stride: int,
    max_length: int,
    batch_size: int | None = None,
    labels: Sequence[int] | None = None,
    progress: Progress | None = None,
    interrupted: Callable[[], bool] | None = None,
) -> Perplexity:
    """Score a text (Hugging Face's “Perplexity of fixed-length models”, with the mean taken over tokens, not over windows).

    Args:
        model: a causal language model; it is left as it was, also after a failure.
        input_ids: the text's tokens: a list, or a tensor of shape (length,) or (1, length).
        stride: by how many tokens the window moves, from 1 to `max_length`.
        max_length: tokens of a window; 0 is the model's context.
        batch_size: windows that go through the model at once; None chooses. Halved where the memory does not suffice.
        labels: as long as `input_ids`; only tokens whose label is not −100 are scored. None scores all.
        progress: called after each batch with the tokens scored so far and those to be scored in all.
        interrupted: asked before each batch; once it says yes, the result is `partial`.

    Raises:
        ValueError: fewer than two tokens, a stride that would leave tokens out, a window longer than the model's learned positions,
            nothing to score, or a token that the model lacks.
    """
    import torch

    ids = torch.as_tensor(input_ids, dtype=torch.long).reshape(-1).cpu()
    max_length = max_length or context_of(model)
    if len(ids) < 2:
        raise ValueError(f"The text has {len(ids)} token{'' if len(ids) == 1 else 's'}; at least 2 are needed, since the first has no context.")
    if max_length < 2:
        raise ValueError(f"max_length is {max_length}; it must be at least 2 tokens.")
    if not 1 <= stride <= max_length:
        raise ValueError(f"Stride is {stride}; it must be between 1 and max_length ({max_length}), or tokens would be left out.")
    if (most := positions_of(model)) is not None and min(max_length, len(ids)) > most:
        raise ValueError(f"max_length is {max_length}; this model has positions for {most} tokens and cannot read more at once.")
    wanted = ids if labels is None else torch.as_tensor(labels, dtype=torch.long).reshape(-1).cpu()
    if len(wanted) != len(ids):
        raise ValueError(f"There are {len(wanted)} labels for {len(ids)} tokens.")

    def load(window: Window) -> tuple[Any, Any]:
        asked = wanted[window.begin : window.end].clone()
        asked[: window.first_scored - window.begin] = IGNORED
        return ids[window.begin : window.end], asked

    pieces = [_Piece.of(window, *load(window)) for window in windows(len(ids), stride=stride, max_length=max_length)]
    return _measure(model, pieces, load, padded=False, at_once=batch_size, progress=progress, interrupted=interrupted)


def perplexity_of_blocks(
    model: Any,
    blocks: Sequence[Any],
    *,
    batch_tokens: int | None = None,
    progress: Progress | None = None,
    interrupted: Callable[[], bool] | None = None,
) -> Perplexity:
    """Score prepared blocks, each on its own: the tokens that are trained, as the trainer's loss counts them.

    Args:
        model: a causal language model; it is left as it was, also after a failure.
        blocks: rows (mappings or objects) with `input_ids` and `labels` of one length; −100 is not scored, nor is a block's first token.
        batch_tokens: tokens, padding counted, that go through the model at once; None chooses. Halved where the memory does not suffice.
        progress, interrupted: as in `perplexity`.

    Raises:
        ValueError: no block has a labelled token behind its first, or a token that the model lacks.
    """
    import torch

    def load(place: int) -> tuple[Any, Any]:
        block = blocks[place]
        ids, labels = (block[name] if isinstance(block, Mapping) else getattr(block, name) for name in ("input_ids", "labels"))
        ids, labels = torch.as_tensor(ids, dtype=torch.long).cpu(), torch.as_tensor(labels, dtype=torch.long).cpu().clone()
        if ids.shape != labels.shape:
            raise ValueError(f"Block {place + 1} has {len(labels)} labels for {len(ids)} tokens.")
        labels[:1] = IGNORED
        return ids, labels

    pieces = [_Piece.of(place, *load(place)) for place in range(len(blocks))]
    # Like beside like, so that little is padded; by the thousand, so that what was scored at an interrupt is not only the short blocks.
    near = [piece for at in range(0, len(pieces), 1000) for piece in sorted(pieces[at : at + 1000], key=lambda piece: piece.length)]
    return _measure(model, near, load, padded=True, tokens_at_once=batch_tokens, progress=progress, interrupted=interrupted)


# The pieces, and how many go at once


@dataclass(frozen=True)
class _Piece:
    """What goes through the model by itself: a window or a block. `key` loads it; the logits of its last `kept` positions are needed."""

    key: Any
    length: int
    scored: int
    kept: int

    @classmethod
    def of(cls, key: Any, ids: Any, labels: Any) -> _Piece:
        places = (labels != IGNORED).nonzero()
        return cls(key, len(ids), len(places), len(ids) - int(places[0]) + 1 if len(places) else 0)


def _measure(
    model: Any,
    pieces: list[_Piece],
    load: Callable[[Any], tuple[Any, Any]],
    *,
    padded: bool,
    at_once: int | None = None,
    tokens_at_once: int | None = None,
    progress: Progress | None,
    interrupted: Callable[[], bool] | None,
) -> Perplexity:
    from accelerate.utils.memory import should_reduce_batch_size

    pieces = [piece for piece in pieces if piece.scored]
    if not pieces:
        raise ValueError("There is nothing to score: no token behind the first has a label.")
    if padded and _length_matters(model):
        pieces = sorted(pieces, key=lambda piece: piece.length)
        padded = False
    total, nll, scored, place, partial = sum(piece.scored for piece in pieces), 0.0, 0, 0, False
    with evaluating(model):
        scorer = _Scorer(model, load(pieces[0].key)[0])
        limits = _Limits(scorer, at_once or len(pieces), tokens_at_once, by_memory=not (at_once or tokens_at_once))
        while place < len(pieces):
            if interrupted is not None and interrupted():
                partial = True
                break
            batch = _batch(pieces, place, padded, limits)
            try:
                found = scorer.nll([load(piece.key) for piece in batch])
            except RuntimeError as error:
                if len(batch) == 1 or not should_reduce_batch_size(error):
                    raise
                found = None
            if found is None:  # outside of the handler: the error holds on to the tensors of the failed pass
                limits = replace(limits, tokens=len(batch) * max(piece.length for piece in batch) // 2)
                _free_memory()
                continue
            nll += found
            scored += sum(piece.scored for piece in batch)
            place += len(batch)
            if progress is not None:
                progress(scored, total)
    return Perplexity(_exp(nll / scored) if scored else math.nan, scored, nll, partial)


@dataclass(frozen=True)
class _Limits:
    """What may go through the model at once: pieces, tokens with padding (None: any), and what the scorer has memory for."""

    scorer: _Scorer
    pieces: int
    tokens: int | None
    by_memory: bool

    def allow(self, count: int, length: int, kept: int) -> bool:
        if count > self.pieces or (self.tokens is not None and count * length > self.tokens):
            return False
        return not self.by_memory or count * self.scorer.bytes_of(length, kept) <= self.scorer.budget


def _batch(pieces: list[_Piece], place: int, padded: bool, limits: _Limits) -> list[_Piece]:
    """The pieces from `place` on that go together: of one length, or, where padding is allowed, none twice as long as another."""
    batch = [pieces[place]]
    shortest = longest = batch[0].length
    least = most = batch[0].kept
    while place + len(batch) < len(pieces):
        piece = pieces[place + len(batch)]
        shortest, longest = min(shortest, piece.length), max(longest, piece.length)
        least, most = min(least, piece.kept), max(most, piece.kept)
        alike = longest < 2 * shortest if padded else longest == shortest
        wasteful = limits.scorer.head is None and most > 2 * least  # as many logits are computed for each as for the one with the most
        if not alike or wasteful or not limits.allow(len(batch) + 1, longest, most + longest - shortest):
            break
        batch.append(piece)
    return batch


def _length_matters(model: Any) -> bool:
    """Whether a token's logits hang on how long its batch is (rotary embeddings that change with the length): then nothing is padded."""
    config = _text_config(model)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return any(kind in str(rope) for kind in ("dynamic", "longrope"))


def _free_memory() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _exp(mean: float) -> float:
    try:
        return math.exp(mean)
    except OverflowError:
        return math.inf


# The model


def _text_config(model: Any) -> Any:
    return model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Without gradients and dropout; then every module's mode is as it was, which need not be one mode for all."""
    import torch

    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():  # not inference_mode: what a model keeps from it (rotary tables) could not be trained with later
            yield
    finally:
        for module, training in modes:
            module.training = training


def takes(model: Any, name: str) -> bool:
    """Whether the model's forward, or that of the model which a wrapper with **kwargs holds (PEFT, a compiler), names this argument."""
    for _ in range(8):
        names = inspect.signature(model.forward).parameters
        if name in names:
            return True
        if not any(each.kind is each.VAR_KEYWORD for each in names.values()):
            return False
        inside = getattr(model, "_modules", {})
        held = [inside[child] for child in ("base_model", "_orig_mod", "module", "model") if inside.get(child) is not None]
        if not held:
            return False
        model = held[0]
    return False


class _Scorer:
    """Losses of batches of one model.

    `budget` is the bytes that a batch may take beside the weights, `bytes_of(length, kept)` what a sequence takes of it.
    """

    def __init__(self, model: Any, sample: Any) -> None:
        """`sample`: tokens of shape (length,), at least 2; the first few go through the model to see what it does."""
        import torch

        self.model, self.device = model, torch.device(model.device)
        self.fixed = {"use_cache": False} if takes(model, "use_cache") else {}
        self.keep = next((name for name in ("logits_to_keep", "num_logits_to_keep") if takes(model, name)), None)
        embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
        self.known = getattr(embeddings, "num_embeddings", None)
        self._check(sample)
        sample = sample[:16][None].to(self.device)
        self.head, self.vocabulary = self._head_alone(sample)
        if self.head is None:
            self.vocabulary = self._logits(sample, 1).shape[-1]
        config = _text_config(model)
        hidden = getattr(config, "hidden_size", None) or 0
        inner = getattr(config, "intermediate_size", None)
        self._per_token = 4 * (8 * hidden + 3 * (inner if isinstance(inner, int) else 4 * hidden))  # of one layer, and a little more
        self.budget, self._chunk = self._memory()

    def _memory(self) -> tuple[int, int]:
        """Bytes for a batch and for a chunk of logits. On a processor more saves no time: benchmarks/perplexity.py."""
        if self.device.type != "cuda":
            return 32 << 20, 64 << 20
        import torch

        free = torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return min(free // 2, 4 << 30), max(min(free // 16, 256 << 20), 8 << 20)

    def bytes_of(self, length: int, kept: int) -> int:
        return length * self._per_token + (0 if self.head is not None else 2 * 4 * kept * self.vocabulary)

    def nll(self, rows: list[tuple[Any, Any]]) -> float:
        """Total negative log-likelihood, in nats, of the labelled tokens of `rows`: pairs (input_ids, labels), each of shape (length,)."""
        from torch.nn.utils.rnn import pad_sequence

        for ids, _ in rows:
            self._check(ids)
        ids = pad_sequence([ids for ids, _ in rows], batch_first=True)
        labels = pad_sequence([labels for _, labels in rows], batch_first=True, padding_value=IGNORED)[:, 1:]
        mask = None
        if any(len(row) != ids.shape[1] for row, _ in rows):  # without padding no mask: attention is faster without
            mask = pad_sequence([row.new_ones(len(row)) for row, _ in rows], batch_first=True).to(self.device)
        wanted = labels != IGNORED
        targets, count = labels[wanted], ids.shape[1]
        for token in (int(targets.min()), int(targets.max())):
            if not 0 <= token < self.vocabulary:
                raise ValueError(f"The labels name token {token}, but the model's vocabulary has {self.vocabulary} tokens.")
        ids = ids.to(self.device)
        if self.head is not None:
            hidden = self._before_head(self.head, ids, mask, kept=1)[0][:, -count:-1]
            hidden = hidden[wanted.to(hidden.device)]
            return self._sum(targets, lambda places: self.head(hidden[places][None])[0])
        kept = count - int(wanted.any(0).nonzero()[0])
        logits = self._logits(ids, kept, mask)[:, -kept:-1]
        rows_and_places = wanted[:, 1 - kept :].nonzero().to(logits.device)
        return self._sum(targets, lambda places: logits[rows_and_places[places, 0], rows_and_places[places, 1]])

    def _sum(self, targets: Any, logits_of: Callable[[slice], Any]) -> float:
        """Cross entropy in 32 bits, summed in 64, over chunks of positions: a whole window's logits would be the largest thing in memory.

        `logits_of` gives a fresh tensor of shape (positions, vocabulary). It is overwritten: torch's cross entropy would make a second.
        """
        import torch

        size, total = max(self._chunk // (4 * self.vocabulary), 16), 0.0
        for begin in range(0, len(targets), size):
            logits = logits_of(slice(begin, begin + size)).float()
            chosen = logits.gather(1, targets[begin : begin + size, None].to(logits.device))
            highest = logits.amax(1, keepdim=True)
            losses = logits.sub_(highest).exp_().sum(1, keepdim=True).log_() + (highest - chosen)
            total += float(losses.sum(dtype=torch.float64))
        return total

    def _check(self, ids: Any) -> None:
        # A GPU answers a token out of range with an error that leaves it unusable for the process.
        if self.known is None:
            return
        for token in (int(ids.min()), int(ids.max())):
            if not 0 <= token < self.known:
                raise ValueError(f"The text has token {token}, but the model knows {self.known} tokens; is the tokenizer of another model?")

    def _forward(self, ids: Any, mask: Any, **keep: int) -> Any:
        """Logits of shape (batch, positions, vocabulary)."""
        found = self.model(input_ids=ids, **self.fixed, **keep, **({} if mask is None else {"attention_mask": mask}))
        return found.logits if hasattr(found, "logits") else found[0]

    def _logits(self, ids: Any, kept: int, mask: Any = None) -> Any:
        """At least the logits of the last `kept` positions."""
        return self._forward(ids, mask, **({self.keep: kept} if self.keep else {}))

    # The head by itself

    def _head_alone(self, sample: Any) -> tuple[Any, int]:
        """The module whose output is the model's logits to the last bit, and the vocabulary's size; (None, 0) where there is none."""
        import torch

        try:
            head = self.model.get_output_embeddings()
            kept = max(sample.shape[1] // 2, 1)
            hidden, raw, logits = self._before_head(head, sample, None, kept)
            if hidden.shape[1] >= sample.shape[1] and logits.shape[1] == kept and torch.equal(raw.to(logits), logits):
                return head, logits.shape[-1]
        except Exception:  # any architecture may come; what this way cannot do the other can, and an error of its own comes again there
            pass
        return None, 0

    def _before_head(self, head: Any, ids: Any, mask: Any, kept: int) -> tuple[Any, Any, Any]:
        """The hidden states of all positions as they reach the head; what the head and the model make of the last `kept` ones."""
        caught, made = [], []

        def shorten(module: Any, arguments: tuple) -> tuple:
            caught.append(arguments[0])
            return (arguments[0][:, -kept:], *arguments[1:])

        hooks = [head.register_forward_pre_hook(shorten), head.register_forward_hook(lambda module, arguments, output: made.append(output))]
        try:
            logits = self._forward(ids, mask)
        finally:
            for hook in hooks:
                hook.remove()
        if len(caught) != 1:
            raise RuntimeError(f"the head ran {len(caught)} times")
        return caught[0], made[0], logits
