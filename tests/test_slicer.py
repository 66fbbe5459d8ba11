from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_pro.slicer import fold_newlines, sentence_spans, slice_fixed, slice_text, units


class Characters:
    """One token a character, so that every count can be done by hand."""

    bos_token_id, eos_token_id, is_fast = 1, 2, True

    def __call__(self, text, return_offsets_mapping=False, **_):
        if isinstance(text, list):
            return {"input_ids": [[ord(character) + 10 for character in one] for one in text]}
        found = {"input_ids": [ord(character) + 10 for character in text]}
        if return_offsets_mapping:
            found["offset_mapping"] = [(place, place + 1) for place in range(len(text))]
        return found


class Slow(Characters):
    """A tokenizer that cannot say where its tokens stand."""

    is_fast = False


def texts(blocks, overlapping=None):
    return [block.text for block in blocks if overlapping is None or block.overlapping == overlapping]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Mr. Smith met Dr. J. R. Jones in the U.S. Army.", ["Mr. Smith met Dr. J. R. Jones in the U.S. Army."]),
        ("It cost 3.14 euros, e.g. too much. He left.", ["It cost 3.14 euros, e.g. too much.", "He left."]),
        ("“Stop!” he said. “Why?” She ran.", ["“Stop!” he said.", "“Why?”", "She ran."]),
        ("Wait ... what? Yes... He knew.", ["Wait ... what?", "Yes...", "He knew."]),
        ("See Fig. 3 for more. I said no. Then I left.", ["See Fig. 3 for more.", "I said no.", "Then I left."]),
        ("Am 3. Mai kam er z. B. heim. Es war spät.", ["Am 3. Mai kam er z. B. heim.", "Es war spät."]),
        ("你好。你是谁？我是。", ["你好。", "你是谁？", "我是。"]),
        ("Shopping\n- milk\n- bread\n\nThe end", ["Shopping", "- milk", "- bread", "The end"]),
        ("1. Take it.\n2. Eat it.", ["1. Take it.", "2. Eat it."]),
        ("A line that goes\non in the next. Done (really.) Yes.", ["A line that goes\non in the next.", "Done (really.)", "Yes."]),
        ("no marks at all", ["no marks at all"]),
        ("   ", []),
    ],
)
def test_sentences(text, sentences):
    assert [text[start:end] for start, end in sentence_spans(text, 0, len(text))] == sentences


def test_blocks_are_filled_as_far_as_the_next_sentence_allows():
    blocks = slice_text("Aa. Bb. Cc. Dd.", Characters(), cutoff_len=9, overlap=False)  # 7 characters and BOS, EOS
    assert texts(blocks) == ["Aa. Bb.", "Cc. Dd."]
    assert blocks[0].input_ids == [1, *(ord(character) + 10 for character in "Aa. Bb."), 2]
    assert [(block.start, block.end) for block in blocks] == [(0, 7), (8, 15)]


def test_no_block_crosses_a_hard_cut():
    blocks = slice_text("Aa. Bb.\n\n\nCc.", Characters(), cutoff_len=100)
    assert texts(blocks) == ["Aa. Bb.", "Cc."]
    assert texts(slice_text("Aa.|Bb.", Characters(), cutoff_len=100, hard_cut_string="|")) == ["Aa.", "Bb."]
    assert texts(slice_text("Aa.\n\n\nBb.", Characters(), cutoff_len=100, hard_cut_string="")) == ["Aa.\n\n\nBb."]


def test_units_are_trimmed_and_empty_ones_left_out():
    assert units("\n\n\n A \n\n\n\n\n\nB", "\\n\\n\\n") == [(4, 5), (12, 13)]


def test_overlapping_blocks_start_half_way_and_reach_into_the_next():
    blocks = slice_text("Aa. Bb. Cc. Dd. Ee. Ff.", Characters(), cutoff_len=18)
    assert texts(blocks, overlapping=False) == ["Aa. Bb. Cc. Dd.", "Ee. Ff."]
    assert texts(blocks, overlapping=True) == ["Cc. Dd. Ee. Ff."]


def test_dementor_begins_at_every_sentence_but_not_twice_to_the_same_end():
    blocks = slice_text("Aa. Bb. Cc. Dd.\n\n\nEe.", Characters(), cutoff_len=9, sliding_window=True)
    assert texts(blocks) == ["Aa. Bb.", "Bb. Cc.", "Cc. Dd.", "Ee."]


def test_a_sentence_longer_than_a_block_is_split_at_a_word():
    blocks = slice_text("one two three four. Five.", Characters(), cutoff_len=11, overlap=False)
    assert texts(blocks) == ["one two", "three", "four.", "Five."] or texts(blocks) == ["one two", "three", "four. Five."[:9], "Five."]
    assert "".join(texts(slice_text("x" * 50, Characters(), cutoff_len=12))) == "x" * 50


def test_eos_on_hard_cuts_only():
    blocks = slice_text("Aa. Bb. Cc.\n\n\nDd.", Characters(), cutoff_len=9, overlap=False, eos_on_hard_cut_only=True)
    assert texts(blocks) == ["Aa. Bb.", "Cc.", "Dd."]
    assert [block.input_ids[-1] == 2 for block in blocks] == [False, True, True]


def test_bos_and_eos_can_be_left_away_and_are_never_doubled(tokenizer):
    plain = slice_text("Hello.", tokenizer, cutoff_len=32, add_bos=False, add_eos=False)[0].input_ids
    assert 1 not in plain and 2 not in plain
    assert slice_text("<s>Hello.</s>", tokenizer, cutoff_len=32)[0].input_ids == [1, *plain, 2]


def test_small_blocks_are_left_out():
    assert texts(slice_text("Aa.\n\n\nBbbbb.", Characters(), cutoff_len=50, min_chars=3)) == ["Bbbbb."]


def test_a_cutoff_without_room_is_refused():
    with pytest.raises(ValueError, match="no room"):
        slice_text("x", Characters(), cutoff_len=2)


PIECES = st.sampled_from(
    [
        "The fox ran. ",
        "“No!” she said. ",
        "Dr. Who left at 3.14. ",
        "你好。",
        "🦊🦊 ",
        "\n\n\n",
        "\n\n",
        "\r\n",
        "- item\n",
        "x" * 70,
        "word ",
        "Ünï… ",
        ". ",
        "?!",
    ]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(PIECES, max_size=25), st.integers(8, 60), st.booleans())
def test_rules_1_to_3_hold_for_any_text(tokenizer, pieces, cutoff, overlap):
    source = "".join(pieces)
    folded = source.replace("\r\n", "\n").replace("\r", "\n")
    blocks = slice_text(source, tokenizer, cutoff_len=cutoff, overlap=overlap)
    assert all(len(block.input_ids) <= cutoff for block in blocks)
    assert all(block.text == folded[block.start : block.end] and "\n\n\n" not in block.text for block in blocks)
    primary = [block for block in blocks if not block.overlapping]
    assert "".join("".join(text.split()) for text in texts(primary)) == "".join(folded.split())
    assert all(first.end <= second.start for first, second in pairwise(primary))


def test_a_slow_tokenizer_gives_the_same_blocks():
    text = "Aa. Bb. Cc. Dd. Ee. Ff. Gg hh ii jj kk ll. Mm."
    assert texts(slice_text(text, Slow(), cutoff_len=14)) == texts(slice_text(text, Characters(), cutoff_len=14))


@settings(deadline=None)
@given(st.text(alphabet="ab .\n🦊é", max_size=400), st.integers(12, 40), st.integers(1, 6), st.integers(0, 12))
def test_fixed_length_slicing_keeps_the_cutoff_and_loses_nothing(tokenizer, text, cutoff, overlap, favor):
    folded = fold_newlines(text)
    blocks = slice_fixed(text, tokenizer, cutoff_len=cutoff, overlap_len=overlap, newline_favor_len=favor, hard_cut_string="")
    assert all(len(block.input_ids) <= cutoff and folded[block.start : block.end] == block.text for block in blocks)
    seen = set()
    for block in blocks:
        seen |= set(range(block.start, block.end))
    assert all(place in seen for place, letter in enumerate(folded) if not letter.isspace())


def test_fixed_length_blocks_share_their_overlap(tokenizer):
    text = "The fox lives in a den. The owl eats seeds! " * 12
    ids = tokenizer(text.strip(), add_special_tokens=False)["input_ids"]
    blocks = slice_fixed(text, tokenizer, cutoff_len=34, overlap_len=8, add_bos=True, add_eos=True)
    assert len(blocks) == -(-(len(ids) - 8) // 24) and len(blocks[0].input_ids) == 34
    assert blocks[0].end > blocks[1].start and "".join(text[a.start : b.start] for a, b in pairwise(blocks)) + blocks[-1].text == text.strip()
    with pytest.raises(ValueError, match=r"Overlap Length \(32\) must be smaller than the cutoff"):
        slice_fixed(text, tokenizer, cutoff_len=34, overlap_len=32)


def test_ends_move_to_a_newline_that_is_near(tokenizer):
    text = "one two three four\nfive six seven eight nine\nten eleven twelve thirteen"
    blocks = slice_fixed(text, tokenizer, cutoff_len=24, overlap_len=4, newline_favor_len=40, add_bos=False, add_eos=False)
    assert blocks[0].text == "one two three four" and all("\n" not in block.text[:1] for block in blocks)
