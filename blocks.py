"""Prepared blocks as flat integers: what the trainer reads, and where each block came from.

One list of Python objects a block would take a hundred times the memory of its tokens.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

IGNORED = -100  # the label that no loss is computed on (torch.nn.CrossEntropyLoss)
KINDS = ("json", "jsonl", "text", "overlapping")


@dataclass
class Item:
    """One block before it is put into a dataset.

    `row` is the number of its row in the file, from 1, and 0 where it was cut from a text file; `start` and `end` are characters
    of the text that it was cut from.
    """

    input_ids: list[int]
    labels: list[int]
    kind: str  # one of KINDS
    trimmed: bool = False
    row: int = 0
    start: int = 0
    end: int = 0

    @property
    def trained(self) -> int:
        return sum(label != IGNORED for label in self.labels)


class Blocks:
    """Any number of blocks. `kinds`, `trimmed`, `rows`, `starts`, `ends` are parallel to them."""

    def __init__(self) -> None:
        self._ids, self._labels, self._offsets = array("i"), array("i"), array("q", [0])
        self.kinds, self.trimmed, self.rows = array("b"), array("b"), array("q")
        self.starts, self.ends = array("q"), array("q")

    def __len__(self) -> int:
        return len(self.kinds)

    def add(self, item: Item) -> None:
        self._ids.extend(item.input_ids)
        self._labels.extend(item.labels)
        self._offsets.append(len(self._ids))
        self.kinds.append(KINDS.index(item.kind))
        self.trimmed.append(item.trimmed)
        self.rows.append(item.row)
        self.starts.append(item.start)
        self.ends.append(item.end)

    def __getitem__(self, number: int) -> Item:
        begin, end = self._offsets[number], self._offsets[number + 1]
        return Item(
            self._ids[begin:end].tolist(), self._labels[begin:end].tolist(), KINDS[self.kinds[number]], bool(self.trimmed[number]),
            self.rows[number], self.starts[number], self.ends[number],
        )  # fmt: skip

    @property
    def total_tokens(self) -> int:
        return len(self._ids)

    @property
    def trained_tokens(self) -> int:
        import numpy

        return int((numpy.frombuffer(self._labels, dtype=numpy.int32) != IGNORED).sum()) if self._labels else 0

    def of_kind(self, kind: str) -> list[int]:
        """The numbers of the blocks of a kind."""
        wanted = KINDS.index(kind)
        return [number for number, found in enumerate(self.kinds) if found == wanted]

    def count(self) -> dict[str, int]:
        """How many blocks of each kind there are."""
        return {kind: found for index, kind in enumerate(KINDS) if (found := self.kinds.count(index))}

    def dataset(self) -> Any:
        """A `datasets.Dataset` with `input_ids` and `labels`, lists of int32."""
        import numpy
        import pyarrow

        import datasets

        offsets = pyarrow.array(numpy.frombuffer(self._offsets, dtype=numpy.int64))

        def column(values: array) -> Any:
            flat = pyarrow.array(numpy.frombuffer(values, dtype=numpy.int32)) if values else pyarrow.array([], pyarrow.int32())
            return pyarrow.LargeListArray.from_arrays(offsets, flat).cast(pyarrow.list_(pyarrow.int32()))

        return datasets.Dataset(pyarrow.table({"input_ids": column(self._ids), "labels": column(self._labels)}))
