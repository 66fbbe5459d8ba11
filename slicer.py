"""Raw text → blocks: cut at hard cuts first, then at sentence ends, and filled as far as the cutoff allows.

A unit is a run of text between two hard cuts. Every block lies in one unit, begins where a sentence begins and ends where
one ends; only a sentence that is longer than a block is itself split, at a word boundary where there is one.

The text is tokenized once, in batches of many sentences, and a block's tokens are put together from them (see seams.py).
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import numpy

from .seams import Seams
from .sentences import sentence_spans

STRETCH = 1_000_000  # characters of neighbouring units that are worked on together
BATCH = 250_000  # characters that are tokenized at once
PIECE = 2_000  # characters of one text among them: of very short and of very long ones the tokenizer takes longer
WINDOW = 100_000  # characters in which sentences are looked for at once
LONGEST_TOKEN = 12  # characters a token has at most on average: a sentence longer than so many a token is surely longer than a block
MARGIN = 16  # tokens by which a sentence may grow when it stands at the beginning of a block


class Block:
    """One training item cut from a text.

    `text` is what is trained, without BOS and EOS; `input_ids` has them. `start` and `end` are characters of the source
    text with CRLF already folded, so that `source[start:end] == text`. An overlapping block repeats what other blocks hold.
    """

    # Blocks share the source and the tokens of their stretch of it: a book has many of them.
    __slots__ = ("_after", "_ends", "_first", "_head", "_source", "_tail", "_tokens", "end", "overlapping", "start")

    def __init__(self, source: str, start: int, end: int, overlapping: bool, tokens: tuple[Any, int, int], head: Any, tail: Any, ends: Any):
        self._source, self.start, self.end, self.overlapping = source, start, end, overlapping
        self._tokens, self._first, self._after = tokens
        self._head, self._tail, self._ends = head, tail, ends

    @property
    def text(self) -> str:
        return self._source[self.start : self.end]

    @property
    def input_ids(self) -> list[int]:
        ids = self._tokens[self._first : self._after].tolist()
        return with_bos_eos([*self._head, *ids, *self._tail], *self._ends)

    def __repr__(self) -> str:
        return f"Block({self.text!r}, overlapping={self.overlapping}, start={self.start}, end={self.end})"


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
    blocks = iter_blocks(
        text, Seams(tokenizer), cutoff_len=cutoff_len, overlap=overlap, sliding_window=sliding_window, hard_cut_string=hard_cut_string,
        add_bos=add_bos, add_eos=add_eos, eos_on_hard_cut_only=eos_on_hard_cut_only,
    )  # fmt: skip
    return [block for block in blocks if not is_small(block, min_chars)]


def iter_blocks(
    text: str,
    seams: Seams,
    *,
    cutoff_len: int,
    overlap: bool = True,
    sliding_window: bool = False,
    hard_cut_string: str = "\\n\\n\\n",
    add_bos: bool = True,
    add_eos: bool = True,
    eos_on_hard_cut_only: bool = False,
) -> Iterator[Block]:
    """The blocks of `slice_text` one by one, small ones too, with the tokens of one stretch of the text in memory."""
    text = fold_newlines(text)
    ends = _Ends(seams.tokenizer, cutoff_len, add_bos, add_eos, eos_on_hard_cut_only)
    for stretch in _ahead(_Stretch(text, spans, seams, ends) for spans in _together(units(text, hard_cut_string))):
        for first, after in stretch.units:
            yield from stretch.sliding_blocks(first, after) if sliding_window else stretch.blocks(first, after, overlap)


def _ahead(items: Iterator[Any]) -> Iterator[Any]:
    """The items, the next one being made in a thread while one is used: the tokenizer works outside of Python's lock."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, items, None)
        while (item := waiting.result()) is not None:
            waiting = pool.submit(next, items, None)
            yield item


def slice_fixed(
    text: str,
    seams: Seams,
    *,
    cutoff_len: int,
    overlap_len: int,
    newline_favor_len: int = 0,
    hard_cut_string: str = "\\n\\n\\n",
    add_bos: bool = True,
    add_eos: bool = True,
    eos_on_hard_cut_only: bool = False,
) -> Iterator[Block]:
    """The older slicing of the web UI's own tab: blocks of a fixed number of tokens, whatever stands there.

    Args:
        seams: of the tokenizer.
        overlap_len: tokens that a block shares with the one before.
        newline_favor_len: a block's ends move inwards by up to this many characters to fall on a line's end.
        The others are those of `slice_text`.

    Yields:
        The blocks in the order of the text; `start` and `end` are characters of the folded text.

    Raises:
        ValueError: the overlap leaves no room for anything new in a block.
    """
    text = fold_newlines(text)
    ends = _Ends(seams.tokenizer, cutoff_len, add_bos, add_eos, eos_on_hard_cut_only)
    room = cutoff_len - len(ends.bos) - len(ends.eos)
    if overlap_len >= room:
        raise ValueError(f"Overlap Length ({overlap_len}) must be smaller than the cutoff ({cutoff_len} tokens, {room} of them for text).")

    def fits(begin: int, end: int) -> bool:
        return ends.fit(seams.alone(text[begin:end]), end == unit_end)

    for unit_start, unit_end in units(text, hard_cut_string):
        starts = seams.token_starts(text, unit_start, unit_end)
        starts.append(unit_end)
        first, covered = 0, unit_start
        while first < len(starts) - 1:
            begin = starts[first]
            end = max(starts[min(first + room, len(starts) - 1)], min(begin + 1, unit_end))
            while end > begin + 1 and not fits(begin, end):  # cut out of its surroundings, a text may take a token more
                end -= 1
            begin, end = _at_newlines(text, begin, end, newline_favor_len, covered, unit_end)
            if span := _stripped(text, begin, end):
                ids = array("i", seams.alone(text[span[0] : span[1]]))
                yield Block(text, *span, False, (ids, 0, len(ids)), (), (), ends.of(span[1] == unit_end))
            if end >= unit_end:
                break
            covered = end
            first = max(first + 1, bisect_left(starts, end) - overlap_len)


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


def is_small(block: Block, min_chars: int) -> bool:
    return block.end - block.start <= min_chars


def fold_newlines(text: str) -> str:
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def hard_cut(typed: str) -> str:
    """The hard cut string as it stands in the text."""
    return typed.replace("\\n", "\n").replace("\\t", "\t")


def units(text: str, hard_cut_string: str) -> Iterator[tuple[int, int]]:
    """(start, end) of each run of text between hard cuts, without the white space around it; empty runs are left out."""
    cut = hard_cut(hard_cut_string)
    start = 0
    while start <= len(text):
        end = text.find(cut, start) if cut else -1
        end = len(text) if end < 0 else end
        if span := _stripped(text, start, end):
            yield span
        start = end + max(1, len(cut))


def _together(spans: Iterator[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Neighbouring units, so that many short ones are tokenized in one batch."""
    waiting: list[tuple[int, int]] = []
    for span in spans:
        waiting.append(span)
        if span[1] - waiting[0][0] >= STRETCH:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def with_bos_eos(ids: list[int], bos: list[int], eos: list[int]) -> list[int]:
    """Put BOS before and EOS behind the ids, unless they stand there already."""
    before = bos if bos and ids[:1] != bos else []
    behind = eos if eos and ids[-1:] != eos else []
    return [*before, *ids, *behind]


class _Ends:
    """What stands before and behind a block's text, and how much room that leaves."""

    def __init__(self, tokenizer: Any, cutoff: int, add_bos: bool, add_eos: bool, eos_last: bool):
        self.bos = [tokenizer.bos_token_id] if add_bos and tokenizer.bos_token_id is not None else []
        self.eos = [tokenizer.eos_token_id] if add_eos and tokenizer.eos_token_id is not None else []
        self.cutoff, self.eos_last = cutoff, eos_last
        if cutoff <= len(self.bos) + len(self.eos):
            raise ValueError(f"The cutoff of {cutoff} tokens leaves no room for text.")
        self._inside, self._last = (self.bos, [] if eos_last else self.eos), (self.bos, self.eos)

    def of(self, last: bool) -> tuple[list[int], list[int]]:
        """BOS and EOS of a block, which is the last of its unit or is not."""
        return self._last if last else self._inside

    def fit(self, ids: list[int], last: bool) -> bool:
        return len(with_bos_eos(ids, *self.of(last))) <= self.cutoff


@dataclass(slots=True)
class _Batch:
    """Neighbouring sentences, `text[starts[n]:ends[n]]` each, in units that end at `unit_ends[n]`; `firsts` are those that begin a unit.

    `pieces` are the runs of them that are tokenized at once, from one seam to another, and whether a unit begins there.
    """

    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    unit_ends: list[int] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)
    pieces: list[tuple[int, int, bool]] = field(default_factory=list)

    @property
    def size(self) -> int:
        return self.pieces[-1][1] - self.pieces[0][0] if self.pieces else 0


@dataclass(slots=True)
class _Placed:
    """Where the sentences of a batch stand among its tokens, an array of each; see `_Stretch`."""

    cuts: Any
    places: Any
    stops: Any
    tails: Any
    crossed: Any

    @classmethod
    def at(cls, batch: _Batch, begins: Any, numbers: Any) -> _Placed:
        """By the characters at which tokens begin and which those are; the last is the end of the text, and how many there are."""
        starts, ends = numpy.array(batch.starts), numpy.array(batch.ends)
        before = numpy.concatenate([[batch.pieces[0][0]], ends[:-1]])
        last = numpy.searchsorted(begins, starts, "right") - 1
        last[batch.firsts] = numpy.searchsorted(begins, starts[batch.firsts])  # with the space that SentencePiece puts there as a token
        crossed = begins[last] < before
        last += crossed
        behind = numpy.searchsorted(begins, ends)
        return cls(begins[last], numbers[last], begins[behind], numbers[behind], crossed.astype("int64"))


class _Stretch:
    """The sentences of neighbouring units with their tokens.

    Sentence n is `text[starts[n]:ends[n]]`. Token `places[n]` is the last that begins at its start or in the white space before it, at
    character `cuts[n]`, and token `tails[n]` the first that begins at its end or behind it, at character `stops[n]`. `crossed` counts the
    gaps so far in which none begins, `special` the sentences so far that hold a special token. `units` holds the first sentence of each unit
    and the one behind its last.
    """

    def __init__(self, text: str, spans: list[tuple[int, int]], seams: Seams, limits: _Ends):
        self.text, self.seams, self.limits = text, seams, limits
        self.starts, self.ends, self.tokens = array("q"), array("q"), array("i")
        self.cuts, self.places, self.stops, self.tails = array("q"), array("q"), array("q"), array("q")
        self.crossed, self.special = array("q", [0]), array("q", [0])
        self._specials = seams.special if seams.special and seams.special.search(text, spans[0][0], spans[-1][1]) else None
        self.unit_firsts: list[int] = []
        self._last: tuple[tuple[int, int], Any] = ((-1, -1), None)
        self._tokenize_all(spans)
        self.places.append(len(self.tokens))
        self.crossed.append(self.crossed[-1])
        self.units = list(pairwise([*self.unit_firsts, len(self.starts)]))

    # Reading

    def _tokenize_all(self, spans: list[tuple[int, int]]) -> None:
        """Find the sentences and tokenize them, about `BATCH` characters at a time; the next are looked for while the last are tokenized."""
        with ThreadPoolExecutor(1) as pool:
            before: tuple[_Batch, Any] | None = None
            for batch in self._batches(spans):
                after = batch, pool.submit(self._ids, batch.pieces) if self._can_tell(batch) else None
                if before:
                    self._add(*before)
                before = after
            self._add(*before)

    def _can_tell(self, batch: _Batch) -> bool:
        """Whether the tokens of whole pieces tell where they stand: behind a special token, a tokenizer may begin anew."""
        if self.seams.lengths is None:
            return False
        return self._specials is None or self._specials.search(self.text, batch.pieces[0][0], batch.pieces[-1][1]) is None

    def _batches(self, spans: list[tuple[int, int]]) -> Iterator[_Batch]:
        text, cut = self.text, self.seams.cut
        longest = LONGEST_TOKEN * self.limits.cutoff
        batch = _Batch()
        for start, end in spans:
            if batch.size >= BATCH:
                yield batch
                batch = _Batch()
            batch.firsts.append(len(batch.starts))
            piece, is_first, before = start, True, start
            for begin, stop in sentences(text, start, end):
                if begin - piece >= PIECE and (place := cut(text[before - 1], text[before:begin], text[begin])) is not None:
                    batch.pieces.append((piece, before + place, is_first))
                    piece, is_first = before + place, False
                    if batch.size >= BATCH:
                        yield batch
                        batch = _Batch()
                parts = self._pieces(begin, stop, end) if stop - begin > longest else [(begin, stop)]
                for begin, stop in parts:
                    batch.starts.append(begin)
                    batch.ends.append(stop)
                    batch.unit_ends.append(end)
                before = stop
            batch.pieces.append((piece, end, is_first))
        yield batch

    def _ids(self, pieces: list[tuple[int, int, bool]]) -> list[list[int]]:
        return self.seams.in_context([self.text[start:end] for start, end, _ in pieces], [is_first for *_, is_first in pieces])

    def _add(self, batch: _Batch, tokenized: Any) -> None:
        """Add sentences with their tokens. What turns out longer than a block is parted."""
        ids = tokenized.result() if tokenized else []
        begins = self.seams.token_begins(self.text, batch.pieces, ids) if tokenized else None
        if begins is None:
            batch, placed, ids = self._one_by_one(batch)
        else:
            placed = _Placed.at(batch, *begins)
            counts = numpy.diff(placed.places, append=begins[1][-1])
            if counts.max() > self.room - MARGIN:
                batch = self._parted(batch, counts)
                placed = _Placed.at(batch, *begins)
        so_far = len(self.tokens)
        for one in ids:
            self.tokens.extend(one)
        self.unit_firsts += [len(self.starts) + number for number in batch.firsts]
        self.starts.extend(batch.starts)
        self.ends.extend(batch.ends)
        self.cuts.frombytes(placed.cuts.tobytes())
        self.stops.frombytes(placed.stops.tobytes())
        self.places.frombytes((placed.places + so_far).tobytes())
        self.tails.frombytes((placed.tails + so_far).tobytes())
        self.crossed.frombytes((numpy.cumsum(placed.crossed) + self.crossed[-1]).tobytes())
        special = numpy.zeros(len(batch.starts), "int64")
        if self._specials is not None:
            special[:] = [self._specials.search(self.text, *sentence) is not None for sentence in zip(batch.starts, batch.ends, strict=True)]
        self.special.frombytes((numpy.cumsum(special) + self.special[-1]).tobytes())

    @property
    def room(self) -> int:
        """Tokens of text that a block inside a unit has."""
        return self.limits.cutoff - len(self.limits.bos) - len(self.limits.of(False)[1])

    def _parted(self, batch: _Batch, counts: Any) -> _Batch:
        """The batch with its sentences of too many tokens parted where they do not fit."""
        parted = _Batch(pieces=batch.pieces)
        firsts = set(batch.firsts)
        most = self.room - MARGIN
        for number, (start, end, unit_end, count) in enumerate(zip(batch.starts, batch.ends, batch.unit_ends, counts.tolist(), strict=True)):
            if number in firsts:
                parted.firsts.append(len(parted.starts))
            for begin, stop in self._pieces(start, end, unit_end) if count > most else [(start, end)]:
                parted.starts.append(begin)
                parted.ends.append(stop)
                parted.unit_ends.append(unit_end)
        return parted

    def _one_by_one(self, batch: _Batch) -> tuple[_Batch, _Placed, list[list[int]]]:
        """The same of a batch whose tokens do not tell where they stand: its sentences are tokenized each for itself."""
        ids = self._ids(self._sentences(batch)[0])
        counts = numpy.array([len(one) for one in ids])
        if counts.max() > self.room - MARGIN:
            batch = self._parted(batch, counts)
            ids = self._ids(self._sentences(batch)[0])
        pieces, crossed = self._sentences(batch)
        places = numpy.array([0, *accumulate(map(len, ids))])
        bounds = numpy.array([(start, end) for start, end, _ in pieces])
        return batch, _Placed(bounds[:, 0], places[:-1], bounds[:, 1], places[1:], numpy.array(crossed, "int64")), ids

    def _sentences(self, batch: _Batch) -> tuple[list[tuple[int, int, bool]], list[bool]]:
        """Each sentence of a batch with the white space that goes with it, and whether a token may cross its beginning."""
        text, firsts = self.text, set(batch.firsts)
        cuts, crossed = [], []
        for number, start in enumerate(batch.starts):
            before = batch.ends[number - 1] if number else batch.pieces[0][0]
            place: int | None = 0
            if number not in firsts and number:
                place = self.seams.cut(text[before - 1], text[before:start], text[start])
            cuts.append(start if number in firsts else before + (place or 0))
            crossed.append(place is None)
        stops = [batch.unit_ends[number] if number + 1 in firsts else cut for number, cut in enumerate([*cuts[1:], batch.pieces[-1][1]])]
        return [(cut, stop, number in firsts) for number, (cut, stop) in enumerate(zip(cuts, stops, strict=True))], crossed

    def _pieces(self, start: int, end: int, unit_end: int) -> list[tuple[int, int]]:
        """A sentence parted where a block is full, at word boundaries where there are any; whole where it fits."""
        pieces = []
        while not self._fits_alone(start, end, unit_end):
            cut = self._full(start, end, unit_end)
            pieces.append(_stripped(self.text, start, cut))
            start = _stripped(self.text, cut, end)[0]
        return [*pieces, (start, end)]

    def _fits_alone(self, start: int, end: int, unit_end: int) -> bool:
        if end - start > LONGEST_TOKEN * self.limits.cutoff and self._reach(start, end) is not None:
            return False  # the tokens of its beginning fill a block already
        return self.limits.fit(self.seams.alone(self.text[start:end]), end == unit_end)

    def _reach(self, start: int, end: int) -> int | None:
        """The character up to which the text from `start` fills a block; None where it does not, or where the tokenizer cannot say."""
        size = LONGEST_TOKEN * self.limits.cutoff
        reach = self.seams.reach(self.text[start : min(end, start + size)], self.room)
        return None if reach is None else start + reach

    def _full(self, start: int, end: int, unit_end: int) -> int:
        """The furthest place, preferably behind a word, up to which the text from `start` fits into a block."""

        def fits(stop: int) -> bool:
            return self.limits.fit(self.seams.alone(self.text[start:stop]), stop == unit_end)

        full = self._reach(start, end)
        if full is None:  # a tokenizer that cannot say where its tokens stand, or a long run of white space
            full, beyond = start + 1, start + 2
            while beyond < end and fits(beyond):
                full, beyond = beyond, min(end, beyond + 2 * (beyond - start))
            while beyond - full > 1:
                middle = (full + beyond) // 2
                full, beyond = (middle, beyond) if fits(middle) else (full, middle)
        cut = full
        while (cut := _word_end(self.text, start, cut)) > start:
            if fits(cut):
                return cut
        while full > start + 1 and not fits(full):
            full -= 1
        return max(full, start + 1)  # a single character that does not fit is a block of its own

    # Blocks

    def blocks(self, first: int, last: int, overlap: bool) -> Iterator[Block]:
        """The blocks of the unit whose sentences are `first` up to `last`."""
        unit = (first, last)
        while first < last:
            after = self._fill(first, unit)
            yield self._block(first, after, unit, overlapping=False)
            if overlap and after < last:
                half = self._half_way(first, after)
                if first < half < after and (reach := self._fill(half, unit)) > after:
                    yield self._block(half, reach, unit, overlapping=True)
            first = after

    def sliding_blocks(self, first: int, last: int) -> Iterator[Block]:
        unit = (first, last)
        reached = chain = first
        for begin in range(first, last):
            after = self._fill(begin, unit)
            if after != reached:
                yield self._block(begin, after, unit, overlapping=begin != chain)
                if begin == chain:
                    chain = after
            reached = after

    def _fill(self, first: int, unit: tuple[int, int]) -> int:
        """The sentence behind the last one that still fits into a block beginning with sentence `first`; at least first + 1."""
        limit = self.places[first] + self.room
        after = max(first + 1, bisect_right(self.places, limit, first + 1, unit[1] + 1) - 1)
        while after > first + 1 and not self._fits(first, after, unit):
            after -= 1
        while after < unit[1] and self.places[after + 1] <= limit + MARGIN and self._fits(first, after + 1, unit):
            after += 1
        return after if self._as_tokenized(first, after, unit) else self._fill(first, unit)

    def _as_tokenized(self, first: int, after: int, unit: tuple[int, int]) -> bool:
        """Look at a sample of the blocks whether the tokens put together are those of the text; if not, none is put together any more."""
        if not self.seams.wants_check():
            return True
        (tokens, begin, stop), head, tail = self._composed(first, after, unit)
        fine = self.seams.check(self.text[self.starts[first] : self.ends[after - 1]], [*head, *tokens[begin:stop], *tail])
        if not fine:
            self._last = ((-1, -1), None)
        return fine

    def _half_way(self, first: int, after: int) -> int:
        """The sentence whose start is nearest to the middle of a block, in tokens."""
        middle = (self.places[first] + self.places[after]) / 2
        behind = min(bisect_left(self.places, middle, first, after), after - 1)
        return min((max(first, behind - 1), behind), key=lambda n: abs(self.places[n] - middle))

    def _fits(self, first: int, after: int, unit: tuple[int, int]) -> bool:
        (_, begin, stop), head, tail = found = self._composed(first, after, unit)
        bos, eos = self.limits.of(after == unit[1])
        count = len(head) + stop - begin + len(tail)
        if bos and _first(found) != bos[0]:
            count += 1
        if eos and _last(found) != eos[0]:
            count += 1
        return count <= self.limits.cutoff

    def _block(self, first: int, after: int, unit: tuple[int, int], overlapping: bool) -> Block:
        start, end = self.starts[first], self.ends[after - 1]
        tokens, head, tail = self._composed(first, after, unit)
        return Block(self.text, start, end, overlapping, tokens, head, tail, self.limits.of(after == unit[1]))

    def _composed(self, first: int, after: int, unit: tuple[int, int]) -> _Composed:
        """The tokens of sentences `first` up to `after` as they are when they stand alone: (array, from, to), tokens before, tokens behind."""
        if self._last[0] != (first, after):
            self._last = ((first, after), self._compose(first, after, unit))
        return self._last[1]

    def _compose(self, first: int, after: int, unit: tuple[int, int]) -> _Composed:
        if self.seams.trusted and self.crossed[after + 1] == self.crossed[first] and self.special[after] == self.special[first]:
            head, begin, head_end = self._head(first, unit)
            tail, stop, tail_start = self._tail(after - 1, unit[1])
            if after - first > 1 or head_end <= tail_start:
                return (self.tokens, begin, stop), head, tail
        ids = array("i", self.seams.alone(self.text[self.starts[first] : self.ends[after - 1]]))
        return (ids, 0, len(ids)), (), ()

    def _head(self, n: int, unit: tuple[int, int]) -> tuple[Sequence[int], int, int]:
        """What stands at the beginning of a block before which token of sentence n, and the character up to which it goes."""
        start, end, place = self.starts[n], self.ends[n], self.places[n]
        lead = self.text[self.cuts[n] : start]
        if n == unit[0] or not (lead or self.seams.anchor):
            return (), place, start
        if (space := _SPACE.search(self.text, start, end)) is None or not self._seam_at(*space.span()):
            if n == unit[1] - 1:
                return self.seams.alone(self.text[start:end]), self.places[n + 1], end
            return self.seams.alone(self.text[start : self.stops[n]]), self.tails[n], self.stops[n]
        ids, count = self.seams.at_beginning(lead, self.text[start : space.start()])
        return ids, place + count, space.start()

    def _tail(self, n: int, unit_after: int) -> tuple[Sequence[int], int, int]:
        """What stands at the end of a block from which token of sentence n on, and the character from which on it stands there."""
        start, end = self.starts[n], self.ends[n]
        if n == unit_after - 1:
            return (), self.places[n + 1], end
        trail = self.text[end : self.stops[n]]
        if not trail:
            return (), self.tails[n], end
        word = _word_end(self.text, start, end)
        gap = _SPACE.match(self.text, word, end) if word > start else None
        if gap is None or not self._seam_at(*gap.span()):
            return self.seams.in_context([self.text[self.cuts[n] : end]], [False])[0], self.places[n], start
        ids, count = self.seams.at_end(self.text[word:end], trail)
        return ids, self.tails[n] - count, word

    def _seam_at(self, before: int, after: int) -> bool:
        return self.seams.cut(self.text[before - 1], self.text[before:after], self.text[after]) == 0


_Composed = tuple[tuple[Any, int, int], Sequence[int], Sequence[int]]


def _first(composed: _Composed) -> int | None:
    (tokens, begin, stop), head, tail = composed
    return head[0] if head else tokens[begin] if stop > begin else tail[0] if tail else None


def _last(composed: _Composed) -> int | None:
    (tokens, begin, stop), head, tail = composed
    return tail[-1] if tail else tokens[stop - 1] if stop > begin else head[-1] if head else None


_SPACE = re.compile(r"\s+")


def _word_end(text: str, start: int, end: int) -> int:
    """Where the white space begins that stands last in `text[start:end]`; `start` where there is none."""
    space = max(text.rfind(" ", start, end), text.rfind("\n", start, end), text.rfind("\t", start, end))
    return start + len(text[start : space + 1].rstrip()) if space > start else start


def sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """(start, end) of each sentence of `text[start:end]`, found window by window, so that their list is never long."""
    size = WINDOW
    while start < end:
        stop = min(end, start + size)
        found = sentence_spans(text, start, stop)
        if stop < end:  # where the last two end may depend on what follows
            if len(found) < 3:
                size *= 2
                continue
            found, start = found[:-2], found[-2][0]
        else:
            start = end
        yield from found
        size = WINDOW


def _stripped(text: str, start: int, end: int) -> tuple[int, int] | None:
    piece = text[start:end]
    stripped = piece.strip()
    if not stripped:
        return None
    start += len(piece) - len(piece.lstrip())
    return start, start + len(stripped)
