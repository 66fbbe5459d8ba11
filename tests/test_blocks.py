from hypothesis import given, settings
from hypothesis import strategies as st
from training_pro.blocks import IGNORED, KINDS, Blocks, Item

INT32 = st.integers(0, 2**31 - 1)
ITEMS = st.builds(
    lambda ids, trained, kind, trimmed, row: Item(
        ids, [i if t else IGNORED for i, t in zip(ids, trained, strict=False)], kind, trimmed, row, row, row + 1
    ),
    st.lists(INT32, max_size=20),
    st.lists(st.booleans(), min_size=20, max_size=20),
    st.sampled_from(KINDS),
    st.booleans(),
    st.integers(0, 2**40),
)


@settings(deadline=None)  # the first example imports datasets
@given(st.lists(ITEMS, max_size=12))
def test_what_goes_in_comes_out(items):
    blocks = Blocks()
    for item in items:
        blocks.add(item)
    assert [blocks[number] for number in range(len(blocks))] == items
    assert blocks.total_tokens == sum(len(item.input_ids) for item in items)
    assert blocks.trained_tokens == sum(item.trained for item in items)
    assert blocks.count() == {kind: n for kind in KINDS if (n := sum(item.kind == kind for item in items))}
    dataset = blocks.dataset()
    assert dataset.column_names == ["input_ids", "labels"]
    assert [(row["input_ids"], row["labels"]) for row in dataset] == [(item.input_ids, item.labels) for item in items]
    for kind in KINDS:
        assert blocks.of_kind(kind) == [number for number, item in enumerate(items) if item.kind == kind]
