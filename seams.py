"""Tokens of a text's parts, put together from the tokens of the whole.

A text that is cut in many overlapping ways would be tokenized many times over. Instead it is tokenized once, in pieces that
begin and end at seams: places that no token crosses. A block's tokens are those of its part of the text, except for its first word,
which has another token at the beginning of a text than behind a space, and for its last, where the tokenizer joins a mark with the
new line behind it (as those of Llama 3 and Qwen do).

Where the seams lie is asked of the tokenizer, for each pair of neighbouring characters and what stands between them. Where the tokens
of a piece stand is told by how many bytes of text each of them is. That a block's tokens are those of its text is then checked on a
sample of the finished blocks; a tokenizer that does not keep to it is not trusted any more, and the blocks are tokenized one by one, as
they are for tokenizers without a fast backend.
"""

from __future__ import annotations

import logging
import re
from array import array
from itertools import chain
from string import ascii_letters, digits
from typing import Any

import numpy

from .encoding import Encoder, tokens_of

logger = logging.getLogger(__name__)

WINDOW = 50_000  # characters that are tokenized at once where the place of each token is asked for
REMEMBERED = 50_000  # words
_ALIKE = str.maketrans(ascii_letters + digits, "n" * 26 + "T" * 26 + "5" * 10)
CHECKED_FIRST, CHECKED_LATER = 8, 100
_TELLING = " The end.\nÜnï — 你好。 🦊\n\n"  # to see whether lengths are right


class Seams:
    """What is known of a tokenizer. Nothing of it is changed."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.encoder = Encoder(tokenizer)
        self.backend = self.encoder.backend
        self.anchor = self._find_anchor() if self.backend else None
        self._anchor_length = len(self.alone(self.anchor)) if self.anchor else 0
        self.trusted = self.anchor is not None
        self.special = _special(tokenizer) if self.trusted else None  # what is cut out of a text before anything else
        self.lengths = self._find_lengths() if self.trusted else None
        self.places: dict[tuple[str, str, str], int | None] = {}  # what `cut` has found
        self._words: dict[tuple[str, str, bool], tuple[list[int], int]] = {}
        self._made = 0

    def _find_anchor(self) -> str | None:
        """What a piece stands behind so that it gets the tokens that it has inside a text; None where nothing helps.

        A tokenizer of SentencePiece puts a space before whatever text it gets; behind a letter it does not.
        """
        for anchor in ("", "x"):
            before = self.alone(anchor) if anchor else []
            if all(self._joins(anchor, before, piece) for piece in (" y", " The end.", "\nThe end.")):
                return anchor
        return None

    def _joins(self, anchor: str, before: list[int], piece: str) -> bool:
        anchored = self.alone(anchor + piece)
        return anchored[: len(before)] == before and self.alone("y" + piece) == [*self.alone("y"), *anchored[len(before) :]]

    def _find_lengths(self) -> Any:
        """How many bytes of text each token is, an array by id; None where the tokenizer's words do not tell."""
        words = self.backend.get_vocab()
        ids = self.in_context([_TELLING], [False])[0]
        for length in (len, _spaced_length):  # bytes written as letters, as GPT-2 does; words with a mark for the space, as SentencePiece does
            lengths = numpy.zeros(max(words.values()) + 1, "int64")
            lengths[list(words.values())] = [length(word) for word in words]
            if lengths[ids].sum() == len(_TELLING.encode()):
                return lengths
        return None

    def token_begins(self, text: str, pieces: list[tuple[int, int, bool]], ids: list[list[int]]) -> tuple[Any, Any] | None:
        """Where the tokens of pieces of a text begin in it.

        Args:
            pieces: (start, end) of each in the order of the text, and whether it was tokenized as the beginning of a text.
            ids: their tokens.

        Returns:
            The characters at which a token begins, ascending, and the number of that token among all; at last the end of the last piece, and
            how many tokens there are. A token that begins within a character is left out. None where the tokens are not of just as many
            bytes as the text: the tokenizer has changed it before it looked.
        """
        counts = numpy.array([len(one) for one in ids])
        sizes = self.lengths[numpy.fromiter(chain.from_iterable(ids), "int64", counts.sum())]
        source = text[pieces[0][0] : pieces[-1][1]]
        bounds = numpy.array(pieces)[:, :2] - pieces[0][0]
        characters = None
        if not source.isascii():
            written = numpy.frombuffer(source.encode("utf-8", "surrogatepass"), "uint8")
            characters = numpy.append(numpy.flatnonzero((written & 0xC0) != 0x80), len(written))  # the byte at which each begins
            bounds = characters[bounds]
        afters = numpy.cumsum(counts)
        total = numpy.concatenate([[0], numpy.cumsum(sizes)])
        surplus = total[afters] - total[afters - counts] - (bounds[:, 1] - bounds[:, 0])
        spaced = numpy.array([is_first and bool(self.anchor) for *_, is_first in pieces])  # may have a space before it
        if ((surplus != 0) & ~(spaced & (surplus == 1))).any():
            return None
        begins = total[:-1] + numpy.repeat(bounds[:, 0] - total[afters - counts] - surplus, counts)
        begins = numpy.append(numpy.maximum(begins, numpy.repeat(bounds[:, 0], counts)), bounds[-1, 1])
        numbers = numpy.arange(len(begins))
        if characters is not None:
            at = numpy.searchsorted(characters, begins)
            whole = characters[at] == begins
            begins, numbers = at[whole], numbers[whole]
        return begins + pieces[0][0], numbers

    def alone(self, text: str) -> list[int]:
        """Token ids of a text, without the tokenizer's own BOS and EOS."""
        return self.encoder.ids([text])[0]

    def in_context(self, pieces: list[str], at_beginning: list[bool]) -> list[list[int]]:
        """Token ids of pieces of a text as they are inside it, or at its beginning."""
        if not self.anchor:
            return self.encoder.ids(pieces)
        found = self.encoder.ids([piece if first else self.anchor + piece for piece, first in zip(pieces, at_beginning, strict=True)])
        return [ids if first else ids[self._anchor_length :] for ids, first in zip(found, at_beginning, strict=True)]

    def cut(self, before: str, gap: str, after: str) -> int | None:
        """Where in the white space between two characters a token begins, in characters; None where one crosses it all.

        >>> Seams(tokenizer).cut(".", "\\n\\n", "T")  # 0: before it, as for GPT-2; 2: behind it, as for Llama 3
        """
        key = (before, gap, after)
        try:
            return self.places[key]
        except KeyError:
            found = self.places[key] = self._find_cut(*key) if self.trusted else 0
            return found

    def _find_cut(self, before: str, gap: str, after: str) -> int | None:
        # Any letter stands for all: tokenizers part a text by kinds of characters.
        key = (before.translate(_ALIKE), gap, after.translate(_ALIKE))
        if key != (before, gap, after):
            return self.cut(*key)
        left, right = f"a{before}", f"{after}b"
        whole = self.alone(left + gap + right)
        for place in dict.fromkeys((0, gap.rfind("\n") + 1, len(gap))):
            behind = self.in_context([gap[place:] + right], [False])[0]
            if self.alone(left + gap[:place]) + behind == whole:
                return place
        return None

    def at_beginning(self, lead: str, word: str) -> tuple[list[int], int]:
        """The tokens of a word at the beginning of a text, and how many it has behind `lead` inside one."""
        return self._word(lead, word, True)

    def at_end(self, word: str, trail: str) -> tuple[list[int], int]:
        """The tokens of a word (with the space before it) at the end of a text, and how many it has with `trail` behind it."""
        return self._word(word, trail, False)

    def _word(self, first: str, second: str, beginning: bool) -> tuple[list[int], int]:
        key = (first, second, beginning)
        if (found := self._words.get(key)) is None:
            if len(self._words) >= REMEMBERED:
                self._words.clear()
            inside = len(self.in_context([first + second], [False])[0])
            found = self._words[key] = (self.alone(second) if beginning else self.in_context([first], [False])[0], inside)
        return found

    def wants_check(self) -> bool:
        """Whether a block should be checked: the first ones, and then one of a hundred."""
        self._made += 1
        return self.trusted and (self._made <= CHECKED_FIRST or self._made % CHECKED_LATER == 0)

    def check(self, text: str, ids: list[int]) -> bool:
        """Whether these are the tokens of the text; if not, the tokenizer is not trusted any more."""
        if tokens_of(self.tokenizer, [text])[0] == ids:
            return True
        logger.info("Tokens of this tokenizer cross the seams between sentences, as in %r; blocks are tokenized one by one.", text[:80])
        self.trusted = False
        return False

    def reach(self, text: str, count: int) -> int | None:
        """How many characters of a text its first `count` tokens cover; None where the tokenizer cannot say or the text has no more."""
        if self.backend is None:
            return None
        found = self.backend.encode(text, add_special_tokens=False)
        return found.token_to_chars(count)[0] if len(found) > count and found.token_to_chars(count) else None

    def token_starts(self, text: str, start: int, end: int) -> array:
        """Where in `text[start:end]` each token starts; every fourth character where the tokenizer cannot say."""
        if self.backend is None:
            return array("q", range(start, end, 4))
        starts = array("q")
        while start < end:
            stop = end if end - start <= WINDOW else self._seam_before(text, start, start + WINDOW)
            found = self.backend.encode_batch([text[start:stop]], add_special_tokens=False)[0]
            starts.extend(start + begin for begin, _ in found.offsets)
            start = stop
        return starts

    @staticmethod
    def _seam_before(text: str, start: int, stop: int) -> int:
        space = text.rfind(" ", start + 1, stop)
        return space if space > start else stop


def _spaced_length(word: str) -> int:
    return 1 if _BYTE.fullmatch(word) else len(word.replace("\u2581", " ").encode("utf-8", "surrogatepass"))


_BYTE = re.compile("<0x[0-9A-F]{2}>")


def _special(tokenizer: Any) -> re.Pattern[str] | None:
    """What finds the tokenizer's added tokens in a text: behind one of them, a tokenizer of SentencePiece begins anew."""
    texts = sorted((text for text in tokenizer.get_added_vocab() if text.strip()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts))) if texts else None
