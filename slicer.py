"""Raw text → blocks: cut at hard cuts first, then at sentence ends, and filled as far as the cutoff allows.

A unit is a run of text between two hard cuts. Every block lies in one unit, begins where a sentence begins and ends where
one ends; only a sentence that is longer than a block is itself split, at a word boundary where there is one.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Block:
    """One training item cut from a text.

    `text` is what is trained, without BOS and EOS; `input_ids` has them. `start` and `end` are characters of the source
    text with CRLF already folded, so that `source[start:end] == text`. An overlapping block repeats what other blocks hold.
    """

    text: str
    input_ids: list[int] = field(repr=False)
    overlapping: bool
    start: int
    end: int


def slice_text(
    text: str,
    tokenizer: Any,
    *,
    cutoff_len: int,
    overlap: bool = True,
    sliding_window: bool = False,
    hard_cut_string: str = "\\n\\n\\n",
    min_chars: int = 0,
    add_bos: bool = True,
    add_eos: bool = True,
    eos_on_hard_cut_only: bool = False,
) -> list[Block]:
    """Cut `text` into blocks of at most `cutoff_len` tokens, BOS and EOS included.

    Args:
        text: the source; CRLF and a byte order mark are folded away first.
        tokenizer: a transformers tokenizer; only called, never changed.
        cutoff_len: longest block in tokens, with BOS and EOS.
        overlap: also make blocks that begin about half-way through their neighbour.
        sliding_window: DEMENTOR: a block begins at every sentence and runs as far as the cutoff allows (instead of `overlap`).
        hard_cut_string: as typed by the user, with \\n and \\t for newline and tab. Empty: the text is one unit.
        min_chars: blocks with this many characters or fewer are dropped (0: none).
        add_bos, add_eos: add the tokenizer's tokens; never doubled where the text has them already.
        eos_on_hard_cut_only: EOS only on the last block of each unit.

    Returns:
        The blocks in the order of the text; an overlapping block stands behind the one it starts in.

    Raises:
        ValueError: `cutoff_len` leaves no room for text.
    """
    text = fold_newlines(text)
    bos = [tokenizer.bos_token_id] if add_bos and tokenizer.bos_token_id is not None else []
    eos = [tokenizer.eos_token_id] if add_eos and tokenizer.eos_token_id is not None else []
    if cutoff_len <= len(bos) + len(eos):
        raise ValueError(f"The cutoff of {cutoff_len} tokens leaves no room for text.")

    blocks = []
    for start, end in units(text, hard_cut_string):
        unit = _Unit(text, start, end, tokenizer, cutoff_len, bos, eos, eos_on_hard_cut_only)
        blocks += unit.sliding_blocks() if sliding_window else unit.blocks(overlap)
    return without_small_blocks(blocks, min_chars)


def slice_fixed(
    text: str,
    tokenizer: Any,
    *,
    cutoff_len: int,
    overlap_len: int,
    newline_favor_len: int = 0,
    hard_cut_string: str = "\\n\\n\\n",
    add_bos: bool = True,
    add_eos: bool = True,
    eos_on_hard_cut_only: bool = False,
) -> list[Block]:
    """The older slicing of the web UI's own tab: blocks of a fixed number of tokens, whatever stands there.

    Args:
        overlap_len: tokens that a block shares with the one before.
        newline_favor_len: a block's ends move inwards by up to this many characters to fall on a line's end.
        The others are those of `slice_text`.

    Returns:
        The blocks in the order of the text; `start` and `end` are characters of the folded text.

    Raises:
        ValueError: the overlap leaves no room for anything new in a block.
    """
    text = fold_newlines(text)
    bos = [tokenizer.bos_token_id] if add_bos and tokenizer.bos_token_id is not None else []
    eos = [tokenizer.eos_token_id] if add_eos and tokenizer.eos_token_id is not None else []
    room = cutoff_len - len(bos) - len(eos)
    if overlap_len >= room:
        raise ValueError(f"Overlap Length ({overlap_len}) must be smaller than the cutoff ({cutoff_len} tokens, {room} of them for text).")
    blocks = []
    for unit_start, unit_end in units(text, hard_cut_string):
        unit = _Unit(text, unit_start, unit_end, tokenizer, cutoff_len, bos, eos, eos_on_hard_cut_only)
        starts = [*unit.token_starts, unit_end]
        first, covered = 0, unit_start
        while first < len(starts) - 1:
            begin = starts[first]
            end = max(starts[min(first + room, len(starts) - 1)], min(begin + 1, unit_end))
            while end > begin + 1 and not unit.fits(begin, end):  # cut out of its surroundings, a text may take a token more
                end -= 1
            begin, end = _at_newlines(text, begin, end, newline_favor_len, covered, unit_end)
            if span := _stripped(text, begin, end):
                blocks.append(unit.block(*span))
            if end >= unit_end:
                break
            covered = end
            first = max(first + 1, bisect_left(starts, end) - overlap_len)
    return blocks


def _at_newlines(text: str, start: int, end: int, favor: int, covered: int, unit_end: int) -> tuple[int, int]:
    """The span with its ends moved inwards to a line's end, where one is within `favor` characters; no text before `start` that
    the block before does not hold is skipped."""
    if favor > 0:
        newline = text.find("\n", start, min(end, start + favor, covered))
        if newline >= 0:
            start = newline + 1
        newline = text.rfind("\n", max(start + 1, end - favor), end)
        if end < unit_end and newline >= 0:
            end = newline
    return start, end


def without_small_blocks(blocks: list[Block], min_chars: int) -> list[Block]:
    return [block for block in blocks if len(block.text) > min_chars] if min_chars > 0 else blocks


def fold_newlines(text: str) -> str:
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def units(text: str, hard_cut_string: str) -> list[tuple[int, int]]:
    """(start, end) of each run of text between hard cuts, without the white space around it; empty runs are left out."""
    cut = hard_cut_string.replace("\\n", "\n").replace("\\t", "\t")
    edges = [(match.start(), match.end()) for match in re.finditer(re.escape(cut), text)] if cut else []
    starts = [0, *(end for _, end in edges)]
    ends = [*(start for start, _ in edges), len(text)]
    return [span for start, end in zip(starts, ends, strict=True) if (span := _stripped(text, start, end))]


class _Unit:
    """The sentences of one unit with what it takes to count their tokens."""

    def __init__(self, text: str, start: int, end: int, tokenizer: Any, cutoff: int, bos: list[int], eos: list[int], eos_last: bool):
        self.text, self.tokenizer, self.cutoff, self.bos, self.eos, self.eos_last = text, tokenizer, cutoff, bos, eos, eos_last
        self.token_starts = self._token_starts(start, end)
        self.unit_start, self.unit_end = start, end

    @cached_property
    def sentences(self) -> list[tuple[int, int]]:
        """(start, end) of each sentence; one that is longer than a block is there in pieces."""
        found: list[tuple[int, int]] = []
        for sentence in sentence_spans(self.text, self.unit_start, self.unit_end):
            found += [sentence] if self.fits(*sentence) else self._pieces(*sentence)
        return found

    def blocks(self, overlap: bool) -> Iterator[Block]:
        first = 0
        while first < len(self.sentences):
            after = self._fill(first)
            yield self._block(first, after, overlapping=False)
            if overlap and after < len(self.sentences):
                half = self._half_way(first, after)
                if first < half < after and (reach := self._fill(half)) > after:
                    yield self._block(half, reach, overlapping=True)
            first = after

    def sliding_blocks(self) -> Iterator[Block]:
        last_reach = chain = 0
        for first in range(len(self.sentences)):
            reach = self._fill(first)
            if reach != last_reach:
                yield self._block(first, reach, overlapping=first != chain)
                if first == chain:
                    chain = reach
            last_reach = reach

    def _fill(self, first: int) -> int:
        """The index behind the last sentence that still fits into a block beginning with sentence `first`; at least first + 1.

        The tokens of the whole unit give a guess, and counting the very text that will be trained decides.
        """
        begin = self.sentences[first][0]
        room = self.cutoff - len(self.bos) - len(self.eos)
        first_token = bisect_left(self.token_starts, begin)
        after = first + 1
        while after < len(self.sentences) and bisect_left(self.token_starts, self.sentences[after][1]) - first_token <= room:
            after += 1
        while after > first + 1 and not self.fits(begin, self.sentences[after - 1][1]):
            after -= 1
        while after < len(self.sentences) and self.fits(begin, self.sentences[after][1]):
            after += 1
        return after

    def _half_way(self, first: int, after: int) -> int:
        """The sentence whose start is nearest to the middle of a block, in tokens."""
        begin, end = (bisect_left(self.token_starts, place) for place in (self.sentences[first][0], self.sentences[after - 1][1]))
        middle = (begin + end) / 2
        return min(range(first, after), key=lambda n: abs(bisect_left(self.token_starts, self.sentences[n][0]) - middle))

    def _block(self, first: int, after: int, overlapping: bool) -> Block:
        return self.block(self.sentences[first][0], self.sentences[after - 1][1], overlapping)

    def block(self, start: int, end: int, overlapping: bool = False) -> Block:
        return Block(self.text[start:end], self._ids(start, end), overlapping, start, end)

    def fits(self, start: int, end: int) -> bool:
        # No token is longer than a few dozen characters, but many are one character or less: a short text needs no counting
        # only where it cannot reach the cutoff even at four tokens a character (bytes of an emoji).
        if 4 * (end - start) + len(self.bos) + len(self.eos) <= self.cutoff:
            return True
        return len(self._ids(start, end)) <= self.cutoff

    def _ids(self, start: int, end: int) -> list[int]:
        ids = tokens_of(self.tokenizer, [self.text[start:end]])[0]
        wants_eos = not self.eos_last or end == self.unit_end
        return with_bos_eos(ids, self.bos, self.eos if wants_eos else [])

    def _token_starts(self, start: int, end: int) -> list[int]:
        """Where in the text each token of the unit starts, for guesses; every fourth character where the tokenizer cannot say."""
        if not getattr(self.tokenizer, "is_fast", False):
            return list(range(start, end, 4))
        encoded = self.tokenizer(self.text[start:end], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [start + begin for begin, _ in encoded["offset_mapping"]]

    def _pieces(self, start: int, end: int) -> list[tuple[int, int]]:
        """Split a sentence that is longer than a block, at word boundaries where there are any."""
        pieces = []
        while not self.fits(start, end):
            cut = self._longest_prefix(start, end)
            pieces.append(_stripped(self.text, start, cut))
            start = _stripped(self.text, cut, end)[0]
        return [*pieces, (start, end)]

    def _longest_prefix(self, start: int, end: int) -> int:
        """The furthest place, preferably behind a word, up to which the text from `start` fits into a block."""
        low, high = start + 1, end  # low is taken to fit: a single character that does not is a block of its own
        guess = bisect_left(self.token_starts, start) + self.cutoff
        if guess < len(self.token_starts):
            high = min(end, max(start + 2, self.token_starts[guess] + 1))
            while high < end and self.fits(start, high):
                low, high = high, min(end, high + (high - start))
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.fits(start, middle) else (low, middle)
        word_end = max((match.start() for match in re.finditer(r"\s+", self.text[start : low + 1])), default=0)
        return start + word_end if word_end and self.fits(start, start + word_end) else low


def tokens_of(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each text without the tokenizer's own BOS and EOS."""
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def with_bos_eos(ids: list[int], bos: list[int], eos: list[int]) -> list[int]:
    """Put BOS before and EOS behind the ids, unless they stand there already."""
    before = bos if bos and ids[:1] != bos else []
    behind = eos if eos and ids[-1:] != eos else []
    return [*before, *ids, *behind]


# Sentences

_CLOSERS = "\"'”’»›)\\]}」』）】〉》"
_OPENERS = "\"'“‘„«‹(\\[{¿¡「『（【〈《"
_END = re.compile(
    rf"""
    (?P<wide>[。！？｡]+[{_CLOSERS}]*)              # scripts that put no space behind a sentence
  | (?P<mark>[.!?…‽؟۔।॥։]+[{_CLOSERS}]*)(?=\s|$)   # a mark, what closes behind it, and space
  | (?P<gap>[^\S\n]*\n[^\S\n]*\n)                  # an empty line
  | (?P<item>\n)(?=[^\S\n]*(?:[-*•–—]\s|\(?\d{{1,3}}[.)]\s|\#{{1,6}}\s|\|))  # the next line is an item of a list, a heading or a table's row
    """,
    re.VERBOSE,
)
_NEXT = re.compile(rf"\s*[{_OPENERS}—–-]*\s*(\S)?")
_WORD = re.compile(r"(\S+)$")
_INITIALS = re.compile(r"^(?:[^\W\d_]\.)*[^\W\d_]$")  # J or U.S or z.B, without the last dot

# Words whose dot does not end a sentence: titles, written with a capital; words that stand before a number; and others.
_TITLES = frozenset(
    """
    mr mrs ms mx dr prof st sr jr rev hon gen col lt sgt capt cmdr maj gov sen rep pres messrs mt ft hr fr frl mme mlle mm sra srta sig
    dott avv
    """.split()
)
_BEFORE_NUMBERS = frozenset(
    """
    no nos art fig figs eq vol vols ch chap sec p pp para nr abb bd kap s jan feb mar apr jun jul aug sept sep oct nov dec tel str n núm
    pág vgl
    """.split()
)
_OTHERS = frozenset(
    """
    vs viz cf ca approx bzw evtl ggf inkl exkl vgl geb gest mio mrd sog v.chr n.chr ph.d c.-à-d ee.uu
    """.split()
)
_MONTHS = frozenset(["januar", "februar", "märz", "april", "mai", "juni", "juli", "august", "september", "oktober", "november", "dezember", "jänner"])


def sentence_spans(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """(start, end) of each sentence of `text[start:end]`, in order, without the white space between them."""
    spans, begin = [], start
    for match in _END.finditer(text, start, end):
        if match["mark"] and not _ends_sentence(text, begin, match, end):
            continue
        if span := _stripped(text, begin, match.end()):
            spans.append(span)
        begin = match.end()
    if span := _stripped(text, begin, end):
        spans.append(span)
    return spans


def _ends_sentence(text: str, begin: int, match: re.Match[str], end: int) -> bool:
    following = _NEXT.match(text, match.end(), end)
    next_character = following[1] if following else None
    if next_character is None:
        return True
    if next_character.islower():  # “Stop!” he said.  Wait … what?
        return False
    mark = match["mark"]
    if not mark.startswith(".") or mark.startswith(".."):
        return True
    word = _WORD.search(text, begin, match.start())
    if word is None:
        return True
    bare = word[1].lstrip("\"'“‘„«‹([{¿¡—–-")
    if _INITIALS.match(bare) or _is_abbreviation(bare, next_character):
        return False
    if bare.isdecimal() and len(bare) <= 3:
        line_start = text.rfind("\n", begin, match.start()) + 1 or begin
        if not text[line_start : match.start() - len(bare)].strip(" \t("):
            return False  # “1. Take the bread”: the number of a list's item
        next_word = re.match(r"\s*(\w+)", text[match.end() : match.end() + 40])
        if next_word and next_word[1].lower() in _MONTHS:
            return False  # “am 3. Mai”
    return True


def _is_abbreviation(word: str, next_character: str) -> bool:
    lower = word.lower()
    return (lower in _TITLES and word[0].isupper()) or (lower in _BEFORE_NUMBERS and next_character.isdecimal()) or lower in _OTHERS


def _stripped(text: str, start: int, end: int) -> tuple[int, int] | None:
    piece = text[start:end]
    stripped = piece.strip()
    if not stripped:
        return None
    start += len(piece) - len(piece.lstrip())
    return start, start + len(stripped)
