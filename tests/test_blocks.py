import gc
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_pro import blocks as blocks_
from training_pro.blocks import IGNORED, KINDS, Blocks, Item, spans_of

INT32 = st.integers(0, 2**31 - 1)


@st.composite
def items(draw):
    ids = draw(st.lists(INT32, max_size=20))
    spans = spans_of(draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))))
    row = draw(st.integers(0, 2**40))
    return Item(ids, spans, draw(st.sampled_from(KINDS)), draw(st.booleans()), row, row, row + 1, row % 1000)


@settings(deadline=None)  # the first example imports datasets
@given(st.lists(items(), max_size=12), st.sampled_from([1, 7, 30, 10**6]))
def test_what_goes_in_comes_out_of_memory_and_of_disk(tmp_path_factory, items, in_memory):
    folder = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks_, "IN_MEMORY", in_memory)
        blocks = Blocks(folder)
        for item in items:
            blocks.add(item)
    assert blocks.total_tokens == sum(len(item.input_ids) for item in items)
    assert blocks.trained_tokens == sum(item.trained for item in items)
    assert blocks.lengths.tolist() == [len(item.input_ids) for item in items]
    assert blocks.count() == {kind: n for kind in KINDS if (n := sum(item.kind == kind for item in items))}
    dataset = blocks.dataset()
    assert dataset.column_names == ["input_ids", "labels"]
    assert [(row["input_ids"], row["labels"]) for row in dataset] == [(item.input_ids, item.labels) for item in items]
    assert [blocks[number] for number in range(len(blocks))] == items
    for kind in KINDS:
        assert blocks.of_kind(kind) == [number for number, item in enumerate(items) if item.kind == kind]


def test_labels_are_the_tokens_that_are_learned():
    item = Item([5, 6, 7, 8, 9], [(1, 2), (3, 5)], "json")
    assert item.labels == [IGNORED, 6, IGNORED, 8, 9] and item.trained == 3
    item.cut(4)
    assert item.labels == [IGNORED, 6, IGNORED, 8] and item.trimmed
    item.cut(1)
    assert item.labels == [IGNORED] and item.trained == 0


def test_what_lies_on_disk_goes_with_the_blocks_and_what_a_killed_program_left(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks_, "IN_MEMORY", 3)
    left = tmp_path / "prepared-old.arrow"
    left.write_bytes(b"x")
    os.utime(left, (0, 0))
    blocks = Blocks(tmp_path)
    blocks.add(Item([1, 2, 3, 4], [(1, 4)], "text"))
    dataset = blocks.dataset()
    assert len(list(tmp_path.glob("prepared-*.arrow"))) == 1 and not left.exists()
    del blocks
    gc.collect()
    if os.name != "nt":
        assert list(tmp_path.iterdir()) == [] and dataset[0]["input_ids"] == [1, 2, 3, 4]  # what is mapped stays readable


def test_blocks_that_were_read_do_not_grow(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks_, "IN_MEMORY", 3)
    blocks = Blocks(tmp_path)
    blocks.add(Item([1, 2, 3, 4], [], "text"))
    blocks.dataset()
    with pytest.raises(ValueError, match="cannot grow"):
        blocks.add(Item([1, 2, 3, 4], [], "text"))
