import json
import os
import random
import subprocess
import sys
import tracemalloc
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_pro import hygiene
from training_pro.hygiene import (
    EMPTY,
    EXACT,
    IDENTICAL,
    LEAKED,
    NEAR,
    Entry,
    Example,
    Finding,
    Findings,
    Hygiene,
    look_through,
)  # fmt: skip

WORDS = [
    f"{start}{middle}{end}" for start in ("ba", "ko", "mi", "su", "re") for middle in ("lan", "tor", "vek", "pin") for end in ("", "a", "um", "ist")
]
TEMPLATE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{}\n\n### Response:\n"
)


def words(seed: int, count: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def changed(text: str, place: int, word: str = "other") -> str:
    parts = text.split(" ")
    parts[place] = word
    return " ".join(parts)


def rows(*texts: str) -> list[Entry]:
    return [Entry(number, text) for number, text in enumerate(texts, 1)]


def alpaca(row: int, question: str, answer: str, evaluation: bool = False) -> Entry:
    return Entry(row, TEMPLATE.format(question) + answer, answer, evaluation)


@pytest.fixture(params=[True, False], ids=["rensa", "without rensa"])
def maybe_rensa(request, monkeypatch):
    if not request.param:
        monkeypatch.setitem(sys.modules, "rensa", None)


# Exact


def test_equal_texts_are_found_all_but_the_first(maybe_rensa):
    found = look_through(rows("one two", "three", "one two", "Three", "one\n two ", "four"))
    assert found.of(EXACT) == Finding(EXACT, [3, 5], (Example(3, 1, "one two"), Example(5, 1, "one two")))
    assert found.of(EXACT).count == 2
    assert found.leave_out() == {3, 5}


@pytest.mark.parametrize(
    ("one", "two", "equal"),
    [
        ("caf\u00e9", "cafe\u0301", True),
        ("a\u3000b", "a b", True),
        ("a\r\nb", "a\nb", True),
        ("ﬁ", "fi", False),  # NFKC would fold more than how a text is written
        ("A", "a", False),
        ("a.", "a", False),
        ("ab", "a b", False),
    ],
)
def test_what_counts_as_equal(one, two, equal):
    assert look_through(rows(one, two)).of(EXACT).rows == ([2] if equal else [])


def test_examples_are_three_and_short():
    found = look_through(rows(*["word " * 200] * 9)).of(EXACT)
    assert (found.count, len(found.examples)) == (8, 3)
    assert all(len(example.excerpt) <= 120 and example.excerpt.endswith("…") for example in found.examples)


def test_an_example_shows_the_row_not_the_template():
    entries = [alpaca(number, words(number, 10), words(-number, 10)) for number in range(1, 10)]
    found = look_through([*entries, alpaca(10, words(4, 10), words(-4, 10))])
    assert found.of(EXACT).examples[0][:2] == (10, 4)
    assert words(4, 5) in found.of(EXACT).examples[0].excerpt


# Near


def test_a_row_with_one_other_word_is_near():
    text = words(1, 40)
    found = look_through(rows(words(2, 40), text, words(3, 40), changed(text, 11), changed(text, 30).upper()))
    assert found.of(NEAR).rows == [4, 5]
    assert [example[:2] for example in found.of(NEAR).examples] == [(4, 2), (5, 2)]
    assert found.of(NEAR).near == 2
    assert not found.of(EXACT).rows


def test_chinese_and_thai_are_compared_by_characters():
    text = "人工智能正在改变我们的生活方式，从医疗诊断到自动驾驶，它的应用几乎无处不在，而且发展得越来越快。"
    other = "春天来了，花园里的桃树开满了粉红色的花朵，孩子们在草地上奔跑，老人们坐在长椅上晒太阳聊天。"
    assert look_through(rows(text, other, text.replace("快", "好"))).of(NEAR).rows == [3]
    thai = "วันนี้อากาศดีมากฉันเลยออกไปเดินเล่นที่สวนสาธารณะกับเพื่อนของฉัน"
    assert look_through(rows(thai, thai.replace("ดี", "ร้"))).of(NEAR).rows == [2]


def test_short_texts_count_only_when_equal():
    assert not look_through(rows("one two three four", "one two three four!", "one two three"))
    assert look_through(rows("one two three four five", "one two three four five!")).of(NEAR).rows == [2]


def test_a_long_template_does_not_make_rows_alike():
    system = words(9, 300) + "\n"
    assert not look_through(rows(*[system + words(number, 12) for number in range(10, 40)]))
    assert not look_through(alpaca(number, f"What is the capital of {word}?", word.title()) for number, word in enumerate(WORDS[:9], 1))
    assert (
        look_through(alpaca(number, f"What is the capital of {word}?", "It has none.") for number, word in enumerate(WORDS, 1)).leave_out() == set()
    )


def test_one_prompt_with_many_answers_is_not_near_nor_one_answer_to_many_prompts():
    context = words(1, 300)
    entries = [Entry(number, f"{context} {answer}", answer) for number, answer in enumerate([words(2, 12), words(3, 12), "yes", "no"], 1)]
    assert not look_through(entries)
    refusal = words(5, 100)
    assert look_through(Entry(number, f"{words(number, 6)} {refusal}", refusal) for number in range(1, 9)).leave_out() == set()
    answer = words(4, 30)
    again = [Entry(1, f"{context} {answer}", answer), Entry(2, f"{context} {changed(answer, 9)}", changed(answer, 9))]
    assert look_through(again).of(NEAR).rows == [2]


def test_a_group_keeps_its_first_row_only():
    text = words(1, 60)
    answers = [*[changed(text, place) for place in range(10, 40)], words(2, 60)]
    found = look_through(alpaca(number, words(3, 10), answer) for number, answer in enumerate(answers, 1))
    assert found.of(NEAR).rows == list(range(2, 31))
    assert {example.other for example in found.of(NEAR).examples} == {1}


def test_the_threshold_can_be_set():
    text = words(1, 40)
    entries = rows(text, changed(changed(changed(changed(text, 5), 13), 21), 33))
    assert not look_through(entries).of(NEAR).rows
    assert look_through(entries, threshold=0.6).of(NEAR).rows == [2]


def test_half_of_a_surrogate_pair_breaks_nothing():
    text = words(1, 30)
    found = look_through(rows(json.loads('"\\ud83d ' + text + '"'), json.loads('"\\ud83d ' + changed(text, 9) + '"')))
    assert found.of(NEAR).rows == [2]
    assert not found.not_looked


# Training and evaluation


def test_rows_that_are_also_in_the_evaluation_data():
    text = words(1, 40)
    entries = [Entry(1, "a b"), Entry(2, text), Entry(3, "c d"), Entry(4, "c d"), Entry(5, words(5, 40))]
    evaluation = [Entry(1, "new", None, True), Entry(2, changed(text, 7), None, True), Entry(3, "c  d", None, True), Entry(4, "c d", None, True)]
    for given_rows in (entries + evaluation, evaluation + entries):
        found = look_through(given_rows)
        assert found.of(LEAKED) == Finding(
            LEAKED, [2, 3, 4], (Example(2, 2, found.of(LEAKED).examples[0].excerpt), Example(3, 3, "c d"), Example(4, 3, "c d")), near=1
        )
        assert found.of(EXACT).rows == [4]
        assert not found.of(NEAR).rows
        assert found.leave_out() == {2, 3, 4}
        assert found.leave_out([EXACT]) == {4}


def test_repeats_within_the_evaluation_data_are_its_own_matter():
    assert not look_through([Entry(1, "a"), Entry(1, words(1, 30), None, True), Entry(2, words(1, 30), None, True), Entry(3, "", "", True)])


# Answers


def test_empty_answers():
    found = look_through([Entry(1, "q a", "a"), Entry(2, "question ", " \n"), Entry(3, "x"), Entry(4, "other", "")])
    assert found.of(EMPTY) == Finding(EMPTY, [2, 4], (Example(2, None, "question"), Example(4, None, "other")))
    assert found.leave_out() == {2, 4}


def test_an_answer_that_many_rows_share_is_reported_and_kept():
    entries = [Entry(number, f"{words(number, 9)} No idea.", "No idea.") for number in range(1, 6)]
    entries += [Entry(number, words(number, 20), words(number, 9)) for number in range(6, 101)]
    found = look_through(entries)
    assert found.of(IDENTICAL) == Finding(IDENTICAL, [1, 2, 3, 4, 5], (Example(2, 1, "No idea."),))
    assert found.leave_out() == set()
    assert found.leave_out([IDENTICAL]) == set()
    assert not look_through(entries[1:]).of(IDENTICAL).rows, "four rows"
    more = [Entry(number, words(number, 20), words(number, 9)) for number in range(101, 110)]
    assert not look_through(entries + more).of(IDENTICAL).rows, "fewer than 5 %"


def test_repeats_of_one_row_are_no_identical_answers():
    assert not look_through([Entry(number, "q yes", "yes") for number in range(1, 30)]).of(IDENTICAL).rows


def test_a_frequent_answer_is_shown_also_where_it_comes_late():
    entries = [Entry(number, words(number, 12), words(-number, 12)) for number in range(1, 3000)]
    entries += [Entry(number, words(number, 12) + " Sorry.", "Sorry.") for number in range(3000, 3400)]
    assert look_through(entries, near=False).of(IDENTICAL).examples == (Example(3001, 3000, "Sorry."),)


# What the user reads


def test_sentences():
    text = words(1, 40)
    entries = [
        Entry(1, "a b", "b"),
        Entry(2, "a b", "b"),
        Entry(3, text),
        Entry(4, changed(text, 20)),
        Entry(5, "gone", ""),
        Entry(1, "a b", "b", True),
    ]
    entries += [Entry(number, f"{words(number, 9)} yes", "yes") for number in range(6, 12)]
    assert look_through(entries).sentences("mine.json", "test.json") == [
        "“mine.json”: 1 row repeats an earlier one word for word (row 2 repeats row 1: “a b”).",
        f"“mine.json”: 1 row differs from an earlier one in a few words only (row 4 is like row 3: “{hygiene._cut(text)}”).",
        "“mine.json”: 2 rows are also in “test.json” (row 1 is row 1 there: “a b”). What was trained cannot measure what was learned: "
        "leave them out of one of the two.",
        "“mine.json”: 1 row has an empty answer (row 5: “gone”). The model learns to say nothing there: fill it in or leave it out.",
        "“mine.json”: 6 rows have an answer that many others have too (row 7 and row 6: “yes”). That is right where there are few answers to "
        "choose from; otherwise the model learns to give it to everything.",
    ]


def test_clean_rows_say_nothing(maybe_rensa):
    found = look_through([], near=False)
    assert (list(found), found.sentences("mine.json"), found.leave_out()) == ([], [], set())
    assert Findings([]).of(NEAR).rows == []
    assert not look_through(rows("one", "two"), near=False).sentences("mine.json")


def test_without_the_package_exact_ones_are_found_and_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "rensa", None)
    text = words(1, 40)
    found = look_through([*rows(text, changed(text, 3), text), Entry(1, text, None, True)])
    assert [finding.kind for finding in found] == [EXACT, LEAKED]
    said = found.sentences("mine.json")[-1]
    assert said.startswith("“mine.json”: rows that differ in a few words only were not looked for: the package rensa is missing. Install it")
    assert said.endswith("-m pip install rensa")


@pytest.mark.parametrize("error", [OSError("DLL load failed"), AttributeError("digest_matrix"), SystemError()])
def test_a_broken_package_breaks_nothing(monkeypatch, error):
    class Broken:
        def __getattr__(self, name):
            raise error

    monkeypatch.setitem(sys.modules, "rensa", Broken())
    text = words(1, 40)
    found = look_through(rows(text, changed(text, 3), text))
    assert found.leave_out() == {3}
    assert "the package rensa does not work (" in found.sentences("mine.json")[-1]
    assert "--force-reinstall --no-deps rensa" in found.sentences("mine.json")[-1]


def test_near_repeats_can_be_left_alone():
    text = words(1, 40)
    found = look_through(rows(text, changed(text, 3)), near=False)
    assert (len(found), found.not_looked) == (0, "")


def test_it_can_be_asked_twice():
    text = words(1, 40)
    seen = Hygiene()
    seen.see(1, text)
    assert not seen.findings()
    seen.see(2, changed(text, 3))
    seen.see(3, text)
    assert seen.findings().leave_out() == {2, 3}


def test_the_same_is_found_in_every_process():
    program = (
        "from training_pro.hygiene import *; text = ' '.join(f'word{n}' for n in range(60));"
        "print(sorted(look_through(Entry(n + 1, text.replace(f'word{n} ', 'x ').replace(f'word{n * 2} ', 'y ')) for n in range(25)).leave_out()))"
    )
    outputs = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": seed}
        outputs.add(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment).stdout)
    assert len(outputs) == 1


# For all data

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), max_size=30)


def seen_row(seed: int, place: int, evaluation: bool) -> tuple[str, str | None, bool]:
    answer = (None, "", "yes", words(9, 20))[seed]
    return f"{changed(words(seed, 25), place)} {answer or ''}", answer, evaluation


SEEN = st.lists(st.builds(seen_row, st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=30)


def folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


@settings(deadline=None)
@given(TEXTS)
def test_distinct_texts_have_no_repeats_and_each_planted_one_is_found(texts):
    distinct = list({folded(text): text for text in texts}.values())
    assert not look_through(rows(*distinct), near=False).of(EXACT).rows
    found = look_through(rows(*distinct, *reversed(distinct)), near=False).of(EXACT)
    count = len(distinct)
    assert found.rows == list(range(count + 1, 2 * count + 1))
    assert all(example.other == 2 * count + 1 - example.row for example in found.examples)


@settings(deadline=None)
@given(SEEN, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_no_number_of_repeats(seen, chance):
    shuffled = chance.sample(seen, len(seen))
    one, two = (look_through(Entry(number, *row) for number, row in enumerate(some, 1)) for some in (seen, shuffled))
    for kind in (EXACT, NEAR, LEAKED, EMPTY, IDENTICAL):
        assert one.of(kind).count == two.of(kind).count
    fed_backwards = look_through(Entry(number, *row) for number, row in reversed(list(enumerate(seen, 1))))
    assert [(finding.kind, finding.rows) for finding in one] == [(finding.kind, finding.rows) for finding in fed_backwards]


@settings(deadline=None)
@given(SEEN)
def test_what_is_left_out_is_never_the_first_of_its_group_nor_an_evaluation_row(seen):
    trained = [row for row in seen if not row[2]]
    evaluated = [row for row in seen if row[2]]
    entries = [Entry(number, *row) for number, row in enumerate(trained, 1)]
    entries += [Entry(number, *row) for number, row in enumerate(evaluated, 1001)]  # numbers that tell the two apart
    found = look_through(entries)
    assert found.leave_out() <= set(range(1, len(trained) + 1))
    repeats = found.leave_out([EXACT, NEAR])
    assert len(repeats) == found.of(EXACT).count + found.of(NEAR).count, "a row is the one or the other"
    first = {folded(text): number for number, (text, _, _) in reversed(list(enumerate(trained, 1)))}
    assert not set(found.of(EXACT).rows) & set(first.values())
    assert 1 not in repeats
    assert not {example.other for example in found.of(EXACT).examples} & set(found.of(EXACT).rows)
    assert not {example.other for example in found.of(NEAR).examples} & repeats
    assert {first[folded(text)] for text, _, _ in evaluated if folded(text) in first} <= set(found.of(LEAKED).rows)


@settings(deadline=None)
@given(st.text(st.characters(max_codepoint=127)))
def test_the_fast_way_for_plain_letters_finds_the_same_words(text):
    assert hygiene._words(text) == hygiene._WORD.findall(text.casefold())


@settings(deadline=None)
@given(st.text(max_size=300))
def test_an_excerpt_is_short_and_a_beginning(text):
    short = hygiene._cut(text)
    assert len(short.encode()) <= hygiene.EXCERPT_BYTES
    assert short == text or short.endswith("…") or "?" in short


# Size


def test_10_000_rows_take_little_memory_and_the_planted_ones_are_found():
    tracemalloc.start()
    seen, expected = Hygiene(), set()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(1, 10_001):
        text = words(number, 50)
        if number > 9900:
            text = changed(words(number - 5000, 50), number % 50)
            expected.add(number)
        seen.see(number, text)
    seen._digest()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 10_000 * 400
    assert seen.findings().of(NEAR).rows == sorted(expected)
