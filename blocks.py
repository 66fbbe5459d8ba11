"""Prepared blocks as flat integers: what the trainer reads, and where each block came from.

One list of Python objects a block would take a hundred times the memory of its tokens. Tokens beyond `IN_MEMORY` are written to disk
as Arrow and mapped, so that memory does not grow with the data.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import weakref
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

IGNORED = -100  # the label that no loss is computed on (torch.nn.CrossEntropyLoss)
KINDS = ("json", "jsonl", "text", "overlapping")
IN_MEMORY = 4_000_000  # tokens, 32 MB with their labels; more are written to disk in parts of this size
STALE = 2 * 86_400  # seconds after which a file of a program that was killed is removed


@dataclass(slots=True)
class Item:
    """One block before it is put into a dataset.

    `trained` are the stretches [from, to) of tokens that are learned, in order. The first token of a block is never predicted, so it is
    never learned. `row` is the number of its row in the file, from 1, and 0 where it was cut from a text file; `file` is the number of the text file in its folder;
    `start` and `end` are characters of the text that it was cut from.
    """

    input_ids: list[int]
    spans: list[tuple[int, int]]
    kind: str  # one of KINDS
    trimmed: bool = False
    row: int = 0
    start: int = 0
    end: int = 0
    file: int = 0

    @property
    def trained(self) -> int:
        """How many tokens are learned."""
        return sum(after - first for first, after in self.spans)

    @property
    def labels(self) -> list[int]:
        labels = [IGNORED] * len(self.input_ids)
        for first, after in self.spans:
            labels[first:after] = self.input_ids[first:after]
        return labels

    def cut(self, length: int) -> None:
        """Keep the first tokens only."""
        self.input_ids = self.input_ids[:length]
        self.spans = [(first, min(after, length)) for first, after in self.spans if first < length]
        self.trimmed = True


def spans_of(mask: list[bool]) -> list[tuple[int, int]]:
    """The stretches of a mask, without the first token.

    >>> spans_of([True, True, False, True, True])
    [(1, 2), (3, 5)]
    """
    spans, begin = [], None
    for place, learned in enumerate(mask):
        if learned and place and begin is None:
            begin = place
        elif not learned and begin is not None:
            spans.append((begin, place))
            begin = None
    return spans if begin is None else [*spans, (begin, len(mask))]


@dataclass
class Blocks:
    """Any number of blocks. `kinds`, `trimmed`, `rows`, `starts`, `ends`, `files` and `lengths` are parallel to them.

    Args:
        folder: where tokens are written that are too many for memory; None keeps them all in memory.
    """

    folder: Path | None = None
    total_tokens: int = 0
    trained_tokens: int = 0
    kinds: array = field(default_factory=lambda: array("b"))
    trimmed: array = field(default_factory=lambda: array("b"))
    rows: array = field(default_factory=lambda: array("q"))
    starts: array = field(default_factory=lambda: array("q"))
    ends: array = field(default_factory=lambda: array("q"))
    files: array = field(default_factory=lambda: array("i"))
    lengths: array = field(default_factory=lambda: array("i"))

    def __post_init__(self) -> None:
        self._ids, self._labels, self._offsets = array("i"), array("i"), array("i", [0])
        self._table: Any = None  # what lies on disk
        self._written = 0  # blocks in it
        self._writer: Any = None
        self._path: str | None = None

    def __len__(self) -> int:
        return len(self.kinds)

    def add(self, item: Item) -> None:
        begin, length = len(self._labels), len(item.input_ids)
        self._ids.extend(item.input_ids)
        self._labels.extend(item.input_ids)
        masked_from = 0
        for first, after in (*item.spans, (length, length)):
            if first > masked_from:
                self._labels[begin + masked_from : begin + first] = array("i", (IGNORED,)) * (first - masked_from)
            masked_from = after
        self._offsets.append(len(self._ids))
        self.kinds.append(KINDS.index(item.kind))
        self.trimmed.append(item.trimmed)
        self.rows.append(item.row)
        self.starts.append(item.start)
        self.ends.append(item.end)
        self.files.append(item.file)
        self.lengths.append(length)
        self.total_tokens += length
        self.trained_tokens += item.trained
        if self.folder is not None and len(self._ids) >= IN_MEMORY:
            self._write()

    def __getitem__(self, number: int) -> Item:
        number = range(len(self))[number]
        if number < self._written:
            self._map()
            row = self._table.slice(number, 1).to_pylist()[0]
            ids, labels = row["input_ids"], row["labels"]
        else:
            begin, end = self._offsets[number - self._written], self._offsets[number - self._written + 1]
            ids, labels = self._ids[begin:end].tolist(), self._labels[begin:end].tolist()
        spans = spans_of([label != IGNORED for label in labels])
        return Item(
            ids, spans, KINDS[self.kinds[number]], bool(self.trimmed[number]), self.rows[number], self.starts[number], self.ends[number],
            self.files[number],
        )  # fmt: skip

    def of_kind(self, kind: str) -> list[int]:
        """The numbers of the blocks of a kind."""
        wanted = KINDS.index(kind)
        return [number for number, found in enumerate(self.kinds) if found == wanted]

    def count(self) -> dict[str, int]:
        """How many blocks of each kind there are."""
        return {kind: found for index, kind in enumerate(KINDS) if (found := self.kinds.count(index))}

    def dataset(self) -> Any:
        """A `datasets.Dataset` with `input_ids` and `labels`, lists of int32."""
        import datasets

        if not self._written:
            return datasets.Dataset(datasets.table.InMemoryTable(_table(self._ids, self._labels, self._offsets)))
        if len(self) > self._written:
            self._write()
        self._map()
        return datasets.Dataset.from_file(self._path)

    # On disk

    def _write(self) -> None:
        """Write the blocks that are in memory, and forget them."""
        import pyarrow

        table = _table(self._ids, self._labels, self._offsets)
        if self._writer is None:
            if self._table is not None:
                raise ValueError("Blocks that were read already cannot grow.")
            self._path = _new_file(self.folder)
            weakref.finalize(self, _remove, self._path)
            self._writer = pyarrow.ipc.new_stream(self._path, table.schema)
        self._writer.write_table(table)
        self._written += len(table)
        self._ids, self._labels, self._offsets = array("i"), array("i"), array("i", [0])

    def _map(self) -> None:
        """End the writing, and map what was written into memory."""
        import pyarrow

        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._table is None:
            self._table = pyarrow.ipc.open_stream(pyarrow.memory_map(self._path)).read_all()


def _table(ids: array, labels: array, offsets: array) -> Any:
    import pyarrow

    kind, places = pyarrow.int32(), pyarrow.array(offsets, pyarrow.int32())
    columns = [pyarrow.ListArray.from_arrays(places, pyarrow.array(_numbers(values), kind)) for values in (ids, labels)]
    return pyarrow.table({"input_ids": columns[0], "labels": columns[1]})


def _numbers(values: array) -> Any:
    import numpy

    return numpy.frombuffer(values, dtype=numpy.int32) if values else numpy.empty(0, numpy.int32)


def _new_file(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("prepared-*.arrow"):
        with contextlib.suppress(OSError):  # in use on Windows, or removed by another program
            if time.time() - old.stat().st_mtime > STALE:
                old.unlink()
    handle, path = tempfile.mkstemp(dir=folder, prefix="prepared-", suffix=".arrow")
    os.close(handle)
    return path


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):  # on Windows a mapped file cannot be removed; it goes when it is stale
        os.unlink(path)
