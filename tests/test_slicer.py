from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_other_tokenizer, make_tokenizer
from training_pro import slicer
from training_pro.seams import Seams
from training_pro.sentences import sentence_spans
from training_pro.slicer import fold_newlines, slice_fixed, slice_text


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


def fixed(text, tokenizer, **options):
    return list(slice_fixed(text, Seams(tokenizer), **options))


def units(text, hard_cut_string):
    return list(slicer.units(text, hard_cut_string))


def texts(blocks, overlapping=None):
    return [block.text for block in blocks if overlapping is None or block.overlapping == overlapping]


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


# The rules against a plain slicer that counts every text anew, for each kind of tokenizer.

TOKENIZERS = {"bytes": make_tokenizer(), **{kind: make_other_tokenizer(kind) for kind in ("tiktoken", "sentencepiece", "metaspace")}}
PIECES = st.sampled_from(
    ["The fox ran. ", "“No!” she said. ", "Dr. Who left at 3.14. ", "你好。", "你是谁？", "🦊🦊 ", "👩‍👩‍👧", "\n\n\n", "\n\n", "\n", "\r\n", "\t", "  ",
     "- item\n", "x" * 70, "word ", "Ünï… ", ". ", "?!", "E\u0301t\u00e9. ", "</s>", "שלום. ", "def f(x):\n    return x\n", "e.g. ", "A.\n\nB. "]
)  # fmt: skip


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


class Plain:
    """The eight rules, one text at a time."""

    def __init__(self, text, tokenizer, cutoff, eos_on_hard_cut_only=False):
        self.text, self.tokenizer, self.cutoff, self.eos_last = fold_newlines(text), tokenizer, cutoff, eos_on_hard_cut_only

    def ids(self, start, end, unit_end):
        ids = ids_of(self.tokenizer, self.text[start:end])
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        wants_eos = (not self.eos_last or end == unit_end) and ids[-1:] != [eos]
        return [*([bos] if ids[:1] != [bos] else []), *ids, *([eos] if wants_eos else [])]

    def fits(self, start, end, unit_end):
        return len(self.ids(start, end, unit_end)) <= self.cutoff

    def fill(self, found, first, unit_end):
        after = first + 1
        while after < len(found) and self.fits(found[first][0], found[after][1], unit_end):
            after += 1
        return after

    def primary(self):
        """(start, end) of each block, and whether its unit has a sentence that is longer than a block."""
        blocks = []
        for start, end in units(self.text, "\\n\\n\\n"):
            found = sentence_spans(self.text, start, end)
            long = any(not self.fits(*sentence, end) for sentence in found)
            first = 0
            while first < len(found) and not long:
                after = self.fill(found, first, end)
                blocks.append((found[first][0], found[after - 1][1]))
                first = after
            if long:
                blocks.append((start, end))
        return blocks

    def sliding(self):
        blocks = []
        for start, end in units(self.text, "\\n\\n\\n"):
            found = sentence_spans(self.text, start, end)
            if any(not self.fits(*sentence, end) for sentence in found):
                continue
            reached = 0
            for first in range(len(found)):
                after = self.fill(found, first, end)
                if after > reached:
                    blocks.append((found[first][0], found[after - 1][1]))
                reached = after
        return blocks


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(sorted(TOKENIZERS)),
    st.lists(PIECES, max_size=25),
    st.integers(12, 60),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 15, 60]),
)
def test_the_rules_hold_for_any_text_and_tokenizer(kind, pieces, cutoff, sliding, eos_last, piece):
    tokenizer, source = TOKENIZERS[kind], "".join(pieces)
    text = fold_newlines(source)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(slicer, "PIECE", piece)
        patched.setattr(Seams, "wants_check", lambda _: False)  # what is put together wrongly is not to be mended by the look at a sample
        blocks = slice_text(source, tokenizer, cutoff_len=cutoff, sliding_window=sliding, eos_on_hard_cut_only=eos_last)
    plain = Plain(source, tokenizer, cutoff, eos_last)
    spans = units(text, "\\n\\n\\n")
    unit_of = {place: end for start, end in spans for place in range(start, end)}
    for block in blocks:
        assert block.text == text[block.start : block.end] and "\n\n\n" not in block.text  # 3
        assert block.input_ids == plain.ids(block.start, block.end, unit_of[block.start])  # 8, and the tokens are those of the text
        assert len(block.input_ids) <= cutoff  # 1
        assert block.end <= unit_of[block.start]  # 3
    primary = [block for block in blocks if not block.overlapping]
    assert all(first.end <= second.start for first, second in pairwise(primary))
    seen = {place for block in (blocks if sliding else primary) for place in range(block.start, block.end)}
    assert all(place in seen for start, end in spans for place in range(start, end) if not text[place].isspace())  # 2
    whole = [span for start, end in units(text, "\\n\\n\\n") for span in sentence_spans(text, start, end)]
    long = [sentence for sentence in whole if not plain.fits(*sentence, unit_of[sentence[0]])]
    for block in blocks:  # 4
        for place, edges in ((block.start, {start for start, _ in whole}), (block.end, {end for _, end in whole})):
            assert place in edges or any(start < place < end for start, end in long)
    if sliding:  # 7
        free = [(block.start, block.end) for block in blocks if not any(block.start <= end and start <= block.end for start, end in long)]
        assert [span for span in plain.sliding() if span in free] == plain.sliding() or long
        if not long:
            assert [(block.start, block.end) for block in blocks] == plain.sliding()
    elif not long:  # 5
        assert [(block.start, block.end) for block in primary] == plain.primary()
    if not sliding:  # 6
        for number, block in enumerate(blocks):
            if block.overlapping:
                before = blocks[number - 1]
                after = blocks[number + 1]
                assert before.start < block.start < before.end < block.end and not after.overlapping and after.start < block.end


def test_one_word_of_100000_characters_and_only_hard_cuts():
    for tokenizer in TOKENIZERS.values():
        blocks = slice_text("x" * 100_000, tokenizer, cutoff_len=256)
        assert "".join(block.text for block in blocks) == "x" * 100_000 and max(len(block.input_ids) for block in blocks) <= 256
        assert sum(len(block.input_ids) < 200 for block in blocks) <= 1  # each is full but the last
        assert slice_text("\n" * 500, tokenizer, cutoff_len=16) == []


def test_a_text_of_many_windows_is_sliced_as_one_of_one(monkeypatch):
    text = "".join(
        f"Sentence number {n} of Mr. J. R. Smith. “Is it?” he said…\n" + "\n" * (n % 7 == 0) + "\n\n\n" * (n % 50 == 0) for n in range(600)
    )
    spans = [(block.start, block.end, block.overlapping) for block in slice_text(text, TOKENIZERS["bytes"], cutoff_len=64)]
    monkeypatch.setattr(slicer, "WINDOW", 60)
    monkeypatch.setattr(slicer, "STRETCH", 500)
    monkeypatch.setattr(slicer, "BATCH", 90)
    monkeypatch.setattr(slicer, "PIECE", 40)
    assert [(block.start, block.end, block.overlapping) for block in slice_text(text, TOKENIZERS["bytes"], cutoff_len=64)] == spans


def test_a_tokenizer_that_joins_across_sentences_is_found_out():
    """A normalizer that changes the whole text by its first letter: nothing can be put together from parts."""
    from tokenizers import Regex, normalizers

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex(r"den\. The owl"), "ox")
    text = "The fox lives in a den. The owl eats seeds! " * 40
    blocks = slice_text(text, tokenizer, cutoff_len=40)
    assert all(len(block.input_ids) <= 40 for block in blocks)
    exact = [block.input_ids[1:-1] == ids_of(tokenizer, block.text) for block in blocks]
    assert sum(exact) >= len(exact) - 8


def test_a_tokenizer_that_changes_the_text_is_asked_sentence_by_sentence():
    from tokenizers import normalizers

    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    text = "The fox lives in a de\u0301n. The owl eats seeds!\n\n" * 40
    blocks = slice_text(text, tokenizer, cutoff_len=40)
    seams = Seams(tokenizer)
    assert seams.token_begins(text, [(0, len(text), True)], [seams.alone(text)]) is None and len(blocks) > 20
    assert all(len(block.input_ids) <= 40 and block.input_ids[1:-1] == ids_of(tokenizer, block.text) for block in blocks)


def test_a_slow_tokenizer_gives_the_same_blocks():
    text = "Aa. Bb. Cc. Dd. Ee. Ff. Gg hh ii jj kk ll. Mm."
    assert texts(slice_text(text, Slow(), cutoff_len=14)) == texts(slice_text(text, Characters(), cutoff_len=14))


@settings(deadline=None)
@given(st.text(alphabet="ab .\n🦊é", max_size=400), st.integers(12, 40), st.integers(1, 6), st.integers(0, 12))
def test_fixed_length_slicing_keeps_the_cutoff_and_loses_nothing(tokenizer, text, cutoff, overlap, favor):
    folded = fold_newlines(text)
    blocks = fixed(text, tokenizer, cutoff_len=cutoff, overlap_len=overlap, newline_favor_len=favor, hard_cut_string="")
    assert all(len(block.input_ids) <= cutoff and folded[block.start : block.end] == block.text for block in blocks)
    seen = set()
    for block in blocks:
        seen |= set(range(block.start, block.end))
    assert all(place in seen for place, letter in enumerate(folded) if not letter.isspace())


def test_fixed_length_blocks_share_their_overlap(tokenizer):
    text = "The fox lives in a den. The owl eats seeds! " * 12
    ids = tokenizer(text.strip(), add_special_tokens=False)["input_ids"]
    blocks = fixed(text, tokenizer, cutoff_len=34, overlap_len=8, add_bos=True, add_eos=True)
    assert len(blocks) == -(-(len(ids) - 8) // 24) and len(blocks[0].input_ids) == 34
    assert blocks[0].end > blocks[1].start and "".join(text[a.start : b.start] for a, b in pairwise(blocks)) + blocks[-1].text == text.strip()
    with pytest.raises(ValueError, match=r"Overlap Length \(32\) must be smaller than the cutoff"):
        fixed(text, tokenizer, cutoff_len=34, overlap_len=32)


def test_ends_move_to_a_newline_that_is_near(tokenizer):
    text = "one two three four\nfive six seven eight nine\nten eleven twelve thirteen"
    blocks = fixed(text, tokenizer, cutoff_len=24, overlap_len=4, newline_favor_len=40, add_bos=False, add_eos=False)
    assert blocks[0].text == "one two three four" and all("\n" not in block.text[:1] for block in blocks)
