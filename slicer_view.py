"""Where a text was cut: its blocks, part by part, and how much of it is trained never, once or twice."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .blocks import KINDS
from .rows import read_text
from .slicer import hard_cut

PART = 4000  # characters that are shown at once
COUNTED = 1_000_000  # characters that are counted at once
BINS = 16
_OVERLAPPING = KINDS.index("overlapping")


@dataclass(frozen=True)
class Piece:
    """A stretch of a text that the same blocks hold: their numbers from 1, of those that follow each other and of the overlapping ones."""

    text: str
    block: int | None
    overlapping: tuple[int, ...]
    is_cut: bool = False  # a hard cut


@dataclass(frozen=True)
class Part:
    """One part of the sliced text, `begin` and `end` in characters of the file."""

    file: str
    begin: int
    end: int
    pieces: list[Piece]


class Slices:
    """The text files of a preparation with their blocks.

    Args:
        prepared: a `dataset_tools.Prepared` of a text file or a folder of them.
        settings: what it was prepared with.
    """

    def __init__(self, prepared: Any, settings: Any):
        self.files, self.blocks, self.cut = prepared.text_files, prepared.blocks, hard_cut(settings.hard_cut_string)
        self.sizes = []
        self.characters = self.never = self.twice = 0
        for number, file in enumerate(self.files):
            text = read_text(file)
            self.sizes.append(len(text))
            self._count(text, number)
        self._last: tuple[int, str] = (-1, "")

    @property
    def parts(self) -> int:
        return sum(-(-size // PART) for size in self.sizes)

    def part(self, number: int) -> Part:
        """Part `number` from 0 of all files, one after the other."""
        file = 0
        while number >= -(-self.sizes[file] // PART):
            number -= -(-self.sizes[file] // PART)
            file += 1
        if self._last[0] != file:
            self._last = (file, read_text(self.files[file]))
        text = self._last[1]
        begin, end = number * PART, min(len(text), (number + 1) * PART)
        return Part(self.files[file].name, begin, end, pieces(text, begin, end, self._blocks_of(file, begin, end), self.cut))

    def _blocks_of(self, file: int, begin: int = 0, end: int | None = None) -> list[tuple[int, int, int, bool]]:
        """(number from 1, start, end, overlapping) of the blocks of a file that have something between two characters."""
        import numpy

        starts, ends, files = (
            numpy.frombuffer(values, kind) for values, kind in ((self.blocks.starts, "i8"), (self.blocks.ends, "i8"), (self.blocks.files, "i4"))
        )
        rows, kinds = numpy.frombuffer(self.blocks.rows, "i8"), numpy.frombuffer(self.blocks.kinds, "i1")
        wanted = (files == file) & (rows == 0) & (ends > begin)
        if end is not None:
            wanted &= starts < end
        return [(int(n) + 1, int(starts[n]), int(ends[n]), int(kinds[n]) == _OVERLAPPING) for n in numpy.flatnonzero(wanted)]

    def _count(self, text: str, file: int) -> None:
        """Count the characters, white space and hard cuts aside, that no block holds and that more than one does."""
        import numpy

        found = self._blocks_of(file)
        edges = numpy.zeros(len(text) + 1, numpy.int32)
        for _, start, end, _ in found:
            edges[start] += 1
            edges[end] -= 1
        held = numpy.cumsum(edges)[:-1]
        space = numpy.array([ord(letter) for letter in " \t\n\x0b\x0c\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"], numpy.uint32)
        for begin in range(0, len(text), COUNTED):
            letters = numpy.frombuffer(text[begin : begin + COUNTED].encode("utf-32-le", "surrogatepass"), numpy.uint32)
            ink = ~numpy.isin(letters, space)
            of = held[begin : begin + COUNTED][ink]
            self.characters += int(ink.sum())
            self.never += int((of == 0).sum())
            self.twice += int((of > 1).sum())


def pieces(text: str, begin: int, end: int, blocks: list[tuple[int, int, int, bool]], cut: str) -> list[Piece]:
    """The stretches of `text[begin:end]` between the edges of blocks and hard cuts.

    >>> [(piece.text, piece.block) for piece in pieces("One. Two.", 0, 9, [(1, 0, 4, False), (2, 5, 9, False)], "")]
    [('One.', 1), (' ', None), ('Two.', 2)]
    """
    cuts = _cuts(text, begin, end, cut)
    edges = {begin, end}
    for _, start, stop, _ in blocks:
        edges |= {place for place in (start, stop) if begin < place < end}
    for start, stop in cuts:
        edges |= {place for place in (start, stop) if begin < place < end}
    found = []
    places = sorted(edges)
    for start, stop in pairwise(places):
        here = [(number, overlapping) for number, first, last, overlapping in blocks if first <= start and stop <= last]
        primary = next((number for number, overlapping in here if not overlapping), None)
        over = tuple(number for number, overlapping in here if overlapping)
        found.append(Piece(text[start:stop], primary, over, any(first <= start and stop <= last for first, last in cuts)))
    return found


def _cuts(text: str, begin: int, end: int, cut: str) -> list[tuple[int, int]]:
    """(start, end) of the hard cuts that reach into a stretch of text."""
    found = []
    place = text.find(cut, max(0, begin - len(cut))) if cut else -1
    while 0 <= place < end:
        found.append((place, place + len(cut)))
        place = text.find(cut, place + len(cut))
    return found


def histogram(lengths: Any, cutoff: int) -> list[tuple[int, int, int]]:
    """(from, to, how many blocks) for stretches of block lengths in tokens, up to the cutoff."""
    width = -(-cutoff // BINS)
    counts = [0] * BINS
    for length in lengths:
        counts[min(BINS - 1, max(0, length - 1) // width)] += 1
    return [(number * width + 1, min(cutoff, (number + 1) * width), count) for number, count in enumerate(counts) if number * width < cutoff]
