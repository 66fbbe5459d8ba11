"""Short blocks share a row, so that next to nothing of what is computed is padding, and no block sees another.

Which blocks share a row is best-fit decreasing (each block, longest first, goes where it leaves the least room); the method that TRL uses,
from “Fewer Truncations Improve Language Modeling” (arXiv 2404.10830). How the model is told where a block ends depends on its attention
and on the installed transformers, so it is tried before a run begins: see `layout_of`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any

from .attention import attention_of
from .blocks import IGNORED
from .perplexity import evaluating, takes
from .training_run import first_line

ROWS, FLAT, MASK = "rows", "flat", "mask"  # see PackedCollator


class CannotPack(RuntimeError):
    """The model would let blocks of one row see each other; the message says what was tried."""


class Packing:
    """Which blocks share a row, a pure function of the seed and the epoch.

    The number of rows depends on the lengths alone, so it is the same in each epoch. Which of the blocks of one length goes into which row
    is drawn anew for each epoch, and so is the order of the rows.
    """

    def __init__(self, lengths: Sequence[int], capacity: int, seed: int):
        """
        Args:
            lengths: of the blocks, in tokens; none above `capacity`.
            capacity: tokens of a row.
        """
        self.lengths, self.capacity, self.seed = list(lengths), capacity, seed
        self.count = len(best_fit(sorted(self.lengths, reverse=True), capacity))

    def __len__(self) -> int:
        """Rows."""
        return self.count

    def of(self, epoch: int) -> list[tuple[int, ...]]:
        """The rows of an epoch (from 0) in their order, each with the numbers of its blocks."""
        import torch

        numbers = torch.Generator().manual_seed((self.seed << 16) + epoch)
        blocks = torch.randperm(len(self.lengths), generator=numbers).tolist()
        blocks.sort(key=self.lengths.__getitem__, reverse=True)  # stable: blocks of one length stay shuffled
        rows = best_fit([self.lengths[block] for block in blocks], self.capacity)
        return [tuple(blocks[place] for place in rows[row]) for row in torch.randperm(len(rows), generator=numbers).tolist()]


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put lengths, in the order in which they are given, each into the row where it leaves the least room.

    >>> best_fit([6, 5, 3, 2], 8)
    [[0, 3], [1, 2]]
    """
    rows: list[list[int]] = []
    open_rows: list[list[int]] = [[] for _ in range(capacity + 1)]  # by the room that is left in them
    rooms = 0  # bit n is set where a row with room n is open
    for place, length in enumerate(lengths):
        if fitting := rooms >> length:
            room = length + (fitting & -fitting).bit_length() - 1
            row = open_rows[room].pop()
            if not open_rows[room]:
                rooms ^= 1 << room
            rows[row].append(place)
        else:
            room, row = capacity, len(rows)
            rows.append([place])
        left = room - length
        open_rows[left].append(row)
        rooms |= 1 << left
    return rows


def padding_share(lengths: Sequence[int], rows_at_once: int, order: Sequence[int]) -> float:
    """Which share of what is computed is padding, where batches of so many are taken in this order and padded to their longest."""
    import numpy

    if not len(lengths):
        return 0.0
    ordered = numpy.asarray(lengths, dtype=numpy.int64)[numpy.asarray(order)]
    edges = numpy.arange(0, len(ordered), rows_at_once)
    sizes = numpy.diff(numpy.append(edges, len(ordered)))
    return 1 - float(ordered.sum()) / float((numpy.maximum.reduceat(ordered, edges) * sizes).sum())


class PackedRows:
    """A dataset of blocks, asked for rows: `rows[(3, 17)]` is the list of blocks 3 and 17."""

    def __init__(self, blocks: Any, packing: Packing):
        self.blocks, self.packing = blocks, packing

    def __len__(self) -> int:
        return len(self.packing)

    def __getitem__(self, numbers: tuple[int, ...]) -> list[dict[str, Any]]:
        found = self.blocks[list(numbers)]
        return [{name: found[name][place] for name in ("input_ids", "labels")} for place in range(len(numbers))]


class PackedCollator:
    """Makes a batch of packed rows. Positions begin again with each block; its first token is not learned, since nothing of it stands before.

    ROWS: shape (rows, longest row), and nothing but the positions says where a block ends: transformers 4.53 and later make the
    attention's mask from them (masking_utils.find_packed_sequence_indices), as long as no other mask is given. What fills a row up is a block of its own.
    FLAT: shape (1, all tokens), with the blocks' borders as FlashAttention's kernels for sequences of any length take them
    (cu_seq_lens: int32, from 0); nothing is padded but to the multiple.
    MASK: as ROWS, with the mask itself, shape (rows, 1, length, length), 0 where a token may look and the type's lowest number elsewhere.
    """

    def __init__(self, pad_id: int, layout: str, multiple: int = 1, dtype: Any = None):
        """
        Args:
            multiple: lengths are rounded up to it (8 suits CUDA's matrix units).
            dtype: of the model, for MASK.
        """
        self.pad_id, self.layout, self.multiple, self.dtype = pad_id, layout, multiple, dtype

    def __call__(self, rows: list[list[dict[str, Any]]]) -> dict[str, Any]:
        import torch

        if self.layout == FLAT:
            rows = [list(chain.from_iterable(rows))]
        longest = max(sum(len(block["input_ids"]) for block in row) for row in rows)
        length = -(-longest // self.multiple) * self.multiple
        input_ids = torch.full((len(rows), length), self.pad_id, dtype=torch.long)
        labels = torch.full((len(rows), length), IGNORED, dtype=torch.long)
        position_ids = torch.zeros((len(rows), length), dtype=torch.long)
        edges = []
        for number, row in enumerate(rows):
            begins = [0]
            for block in row:
                begin, end = begins[-1], begins[-1] + len(block["input_ids"])
                input_ids[number, begin:end] = torch.as_tensor(block["input_ids"])
                labels[number, begin:end] = torch.as_tensor(block["labels"])
                labels[number, begin] = IGNORED
                begins.append(end)
            if begins[-1] < length:
                begins.append(length)
            for begin, end in pairwise(begins):
                position_ids[number, begin:end] = torch.arange(end - begin)
            edges.append(begins)
        batch = {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}
        if self.layout == FLAT:
            borders = torch.tensor(edges[0], dtype=torch.int32)
            widest = int((borders[1:] - borders[:-1]).max())
            batch |= {"cu_seq_lens_q": borders, "cu_seq_lens_k": borders, "max_length_q": widest, "max_length_k": widest}
        if self.layout == MASK:
            batch["attention_mask"] = block_mask(position_ids, self.dtype or torch.float32)
        return batch


def block_mask(position_ids: Any, dtype: Any) -> Any:
    """What is added to the attention's scores, shape (rows, 1, length, length): each token sees its own block up to itself."""
    import torch

    blocks = (position_ids == 0).cumsum(-1)
    alike = blocks[:, :, None] == blocks[:, None, :]
    length = position_ids.shape[1]
    seen = alike & torch.ones(length, length, dtype=torch.bool).tril()
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


# Which layout the model keeps apart


SAMPLE = (9, 7, 11)  # tokens of the blocks that are tried
APART = 0.2  # of the difference that seeing the other blocks makes; a layout that works is below a hundredth of it


def layout_of(model: Any, capacity: int) -> str:
    """The layout by which this model, as it is, keeps the blocks of a row apart, found by trying.

    The last of a few short blocks goes through the model alone, behind the others as if it were one block with them, and packed with them. Packed
    is right where its logits are those of the block alone, measured by what seeing the others does to them.

    Args:
        model: a causal language model, also one with LoRA layers; left as it was.
        capacity: tokens of a row.

    Raises:
        CannotPack: no layout does.
    """
    import torch

    tried: list[str] = []
    vocabulary = model.get_input_embeddings().num_embeddings
    chance = torch.Generator().manual_seed(1)
    blocks = [torch.randint(0, vocabulary, (size,), generator=chance).tolist() for size in SAMPLE]
    with evaluating(model):
        alone, crossed = (_last(model, {"input_ids": torch.tensor([ids])}) for ids in (blocks[-1], list(chain.from_iterable(blocks))))
        effect = float((crossed - alone).abs().mean())
        for layout in _layouts(model, capacity):
            collator = PackedCollator(0, layout, 1, model.dtype)
            batch = collator([[{"input_ids": ids, "labels": ids} for ids in blocks]])
            del batch["labels"]
            try:
                off = float((_last(model, batch) - alone).abs().mean())
            except Exception as error:  # any architecture may come: what it says of a layout that it does not take is the reason
                tried.append(f"{WORDS[layout]}: {first_line(error)}")
                continue
            if off <= APART * effect:
                return layout
            tried.append(f"{WORDS[layout]}: a block sees the one before it")
    raise CannotPack(f"{type(model).__name__} with {attention_of(model)} attention does not keep blocks of one row apart ({'; '.join(tried)})")


WORDS = {ROWS: "by positions", FLAT: "by borders", MASK: "by a mask"}


def _layouts(model: Any, capacity: int) -> list[str]:
    if "flash" in attention_of(model):
        return [FLAT]
    # Our mask would let every layer see the whole block; where layers look back a limited way, it must not be shorter than a row.
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
    return [ROWS] if any(isinstance(window, int) and window < capacity for window in windows) else [ROWS, MASK]


def _last(model: Any, batch: dict[str, Any]) -> Any:
    """Log-probabilities at the positions of the last block of the sample, in 32 bits."""
    batch = {name: value.to(model.device) if hasattr(value, "to") else value for name, value in batch.items()}
    if takes(model, "use_cache"):
        batch["use_cache"] = False
    found = model(**batch)
    return (found.logits if hasattr(found, "logits") else found[0])[0, -SAMPLE[-1] :].float().log_softmax(-1)


# NEFTune


def noise_by_block(model: Any, alpha: float) -> None:
    """NEFTune (arXiv 2310.05914) on packed rows: uniform noise of at most alpha / √(tokens of the block · width) on the embeddings in training.

    transformers' own takes the row's length for the block's, which would make the noise smaller the more blocks share a row. The hooks
    stay; `untouched` removes them with all else.
    """
    import torch

    sizes: list[Any] = []

    def measure(module: Any, arguments: Any, named: dict[str, Any]) -> None:
        sizes[:] = [block_sizes(named["position_ids"])] if module.training and named.get("position_ids") is not None else []

    def disturb(module: Any, arguments: Any, output: Any) -> Any:
        if not (module.training and sizes):
            return output
        most = alpha / (sizes[0] * output.shape[-1]).sqrt()
        return output + torch.empty_like(output).uniform_(-1, 1) * most[..., None].to(output.dtype)

    model.register_forward_pre_hook(measure, with_kwargs=True)
    model.get_input_embeddings().register_forward_hook(disturb)


def block_sizes(position_ids: Any) -> Any:
    """How many tokens the block of each position has, float32 of the positions' shape.

    >>> import torch
    >>> block_sizes(torch.tensor([[0, 1, 2, 0, 1]])).tolist()
    [[3.0, 3.0, 3.0, 2.0, 2.0]]
    """
    import torch

    rows, length = position_ids.shape
    blocks = (position_ids == 0).cumsum(-1)  # from 1
    counts = torch.zeros(rows, length + 1, device=position_ids.device).scatter_add_(1, blocks, torch.ones_like(blocks, dtype=torch.float32))
    return counts.gather(1, blocks)
