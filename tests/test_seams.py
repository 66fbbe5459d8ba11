import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_other_tokenizer, make_tokenizer
from training_pro.encoding import Encoder
from training_pro.seams import Seams

TOKENIZERS = {"bytes": make_tokenizer(), **{kind: make_other_tokenizer(kind) for kind in ("tiktoken", "sentencepiece", "metaspace")}}


@pytest.mark.parametrize(("kind", "anchor", "cut"), [("bytes", "", 0), ("tiktoken", "", 2), ("sentencepiece", "x", 0), ("metaspace", "x", 0)])
def test_where_a_token_begins_between_two_sentences(kind, anchor, cut):
    seams = Seams(TOKENIZERS[kind])
    assert seams.trusted and seams.anchor == anchor
    assert seams.cut(".", " ", "T") == 0
    assert seams.cut(".", "\n\n", "T") == cut  # “.\n\n” is one token for those of Llama 3 and Qwen


@settings(deadline=None)
@given(st.sampled_from(sorted(TOKENIZERS)), st.sampled_from(["The owl", "Nobody", "é🦊", "(who)"]), st.sampled_from([" ", "\n", "\n\n", "  "]))
def test_a_word_at_the_beginning_and_behind_another(kind, word, gap):
    tokenizer = TOKENIZERS[kind]
    seams = Seams(tokenizer)
    alone, inside = seams.at_beginning(gap, word)
    assert alone == tokenizer(word, add_special_tokens=False)["input_ids"]
    whole = tokenizer(f"x{gap}{word}", add_special_tokens=False)["input_ids"]
    assert len(whole) - len(tokenizer("x", add_special_tokens=False)["input_ids"]) == inside


@settings(deadline=None)
@given(st.sampled_from(sorted(TOKENIZERS)), st.text(alphabet="ab .\n🦊é你Ü", min_size=1, max_size=40).filter(str.strip))
def test_tokens_tell_where_they_begin(kind, text):
    """Read back from there, each is what the tokenizer says of itself: as many as one reads of a beginning up to there."""
    tokenizer, text = TOKENIZERS[kind], text.strip()
    seams = Seams(tokenizer)
    ids = seams.alone(text)
    begins, numbers = seams.token_begins("xx" + text, [(2, 2 + len(text), True)], [ids])
    assert (begins[-1], numbers[-1]) == (2 + len(text), len(ids))
    for begin, number in zip(begins - 2, numbers, strict=True):
        assert tokenizer.decode(ids[:number], clean_up_tokenization_spaces=False) == text[:begin]


def test_tokens_of_a_text_that_was_changed_do_not_tell():
    seams = Seams(TOKENIZERS["bytes"])
    assert seams.token_begins("The fox", [(0, 7, True)], [seams.alone("The foxes")]) is None
    assert seams.token_begins("The fox", [(0, 7, True)], [seams.alone("The")]) is None
    begins, numbers = seams.token_begins("The fox. Who?", [(0, 8, True), (8, 13, False)], [seams.alone("The fox."), seams.alone(" Who?")])
    assert begins[0] == 0 and 8 in begins and begins[-1] == 13 and list(numbers) == list(range(len(begins)))


def test_a_tokenizer_that_is_found_out_is_not_trusted_any_more():
    seams = Seams(TOKENIZERS["bytes"])
    ids = seams.alone("The fox")
    assert seams.check("The fox", ids) and seams.trusted
    assert not seams.check("The fox", ids[:-1]) and not seams.trusted and not seams.wants_check()


def test_how_far_the_first_tokens_reach():
    seams = Seams(TOKENIZERS["bytes"])
    text = "The fox lives in a den."
    ids = seams.alone(text)
    for count in range(1, len(ids)):
        reach = seams.reach(text, count)
        assert seams.alone(text[:reach])[: count - 1] == ids[: count - 1]
    assert seams.reach(text, len(ids)) is None


def test_the_starts_of_tokens_are_the_same_window_by_window(monkeypatch):
    seams = Seams(TOKENIZERS["bytes"])
    text = "The fox lives in a den. The owl eats seeds! " * 20
    whole = seams.token_starts(text, 5, len(text) - 3)
    monkeypatch.setattr("training_pro.seams.WINDOW", 50)
    assert seams.token_starts(text, 5, len(text) - 3) == whole


class Slow:
    """A tokenizer in Python, which cannot say where its tokens stand."""

    is_fast = False

    def __call__(self, texts, **_):
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}

    def decode(self, ids, **_):
        return "".join(map(chr, ids))


def test_without_a_backend_the_tokenizer_itself_is_asked():
    encoder = Encoder(Slow())
    assert encoder.backend is None and encoder.ids(["ab"]) == [[97, 98]]
    assert encoder.ids_and_starts(["abc"]) == [([97, 98, 99], [0, 1, 2])]
    assert not Seams(Slow()).trusted and list(Seams(Slow()).token_starts("abcdefgh", 0, 8)) == [0, 4]


def test_truncation_left_by_another_call_is_not_used_and_not_changed():
    tokenizer = make_tokenizer()
    tokenizer("The fox lives in a den.", truncation=True, max_length=2, padding="max_length")
    assert tokenizer.backend_tokenizer.truncation is not None
    encoder = Encoder(tokenizer)
    found = encoder.ids(["The fox lives in a den.", "Who"])
    assert len(found[0]) > 2 and tokenizer.decode(found[0]) == "The fox lives in a den."
    assert tokenizer.backend_tokenizer.truncation is not None and tokenizer.backend_tokenizer.padding is not None
    assert encoder.ids_and_starts(["Who is there? "])[0][0] == encoder.ids(["Who is there? "])[0]
