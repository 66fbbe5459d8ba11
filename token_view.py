"""Which token of a block is trained: the blocks that Verify prepared, one at a time, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .blocks import IGNORED, Blocks, Item

ALL, TRIMMED, OVERLAPPING = "All blocks", "Trimmed at the cutoff", "Overlapping"
UNTRAINED, TOO_LONG = "Left out: nothing trained", "Left out: longer than the cutoff"
LEFT_OUT = (UNTRAINED, TOO_LONG)
CHOICES = [ALL, TRIMMED, OVERLAPPING, *LEFT_OUT]


@dataclass(frozen=True)
class Token:
    """One token: its text as it stands in the block, its id, whether it is learned, whether it is one of the tokenizer's special ones."""

    text: str
    id: int
    trained: bool
    special: bool


def chosen(prepared: Any, which: str) -> tuple[Blocks, Sequence[int]]:
    """The blocks of a choice: where they are kept, and their numbers there. `prepared` is a `dataset_tools.Prepared`."""
    if which == UNTRAINED:
        blocks = prepared.left_out["nothing trained"]
        return blocks, range(len(blocks))
    if which == TOO_LONG:
        blocks = prepared.left_out["too long"]
        return blocks, range(len(blocks))
    blocks = prepared.blocks
    if which == TRIMMED:
        return blocks, [number for number, trimmed in enumerate(blocks.trimmed) if trimmed]
    if which == OVERLAPPING:
        return blocks, blocks.of_kind("overlapping")
    return blocks, range(len(blocks))


def tokens(item: Item, tokenizer: Any) -> list[Token]:
    """The tokens of a block with their texts.

    A character may take several tokens (an emoji is four bytes): its text stands at the last of them, and the others have none.
    """
    special = set(tokenizer.all_special_ids)
    found, waiting = [], []
    for id_, label in zip(item.input_ids, item.labels, strict=True):
        waiting.append(id_)
        text = _decoded(tokenizer, waiting)
        if id_ in special or "\ufffd" not in text or len(waiting) >= 4:
            waiting = []
        else:
            text = ""
        found.append(Token(text, id_, label != IGNORED, id_ in special))
    return found


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    # A tokenizer of SentencePiece drops the space before the first word that it decodes; the piece itself shows it.
    piece = tokenizer.convert_ids_to_tokens(ids[0])
    return f" {text}" if isinstance(piece, str) and piece.startswith("\u2581") and not text.startswith(" ") else text
