"""The demo base model and the shipped data."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_pro.dataset_tools import by_key_set, format_row, messages_of, read_format, read_rows
from training_pro.host import DEMO_MODEL, SHIPPED_DATASETS, SHIPPED_FORMATS, LocalHost
from training_pro.try_it import AS_CHAT, AS_TEXT, answers

FORMATS = ["alpaca-format", "alpaca-chatbot-format", "vicuna-format", "llama2-chat-format", "ChatML-format"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    host = LocalHost(tmp_path_factory.mktemp("demo") / "user_data")
    host.load("demo")
    return host


def test_it_is_small_enough_to_ship(demo):
    assert sum(file.stat().st_size for file in DEMO_MODEL.rglob("*") if file.is_file()) < 4 * 2**20
    assert 500_000 < demo.facts.parameters < 2_000_000


def test_its_special_tokens_differ(demo):
    tokenizer = demo.tokenizer
    ids = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    assert None not in ids and len(set(ids)) == 3
    assert tokenizer.eos_token_id in demo.model.generation_config.eos_token_id


def test_it_loads_with_transformers_4_too(demo):
    config = json.loads((DEMO_MODEL / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast" and "extra_special_tokens" not in config
    assert demo.tokenizer.convert_tokens_to_ids("<|end_of_turn|>") in demo.tokenizer.all_special_ids


def test_its_chat_template(demo):
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    whole = demo.tokenizer.apply_chat_template(chat, tokenize=False)
    assert whole == "<|begin|><|turn|>system\ns<|end_of_turn|>\n<|turn|>user\nu<|end_of_turn|>\n<|turn|>assistant\na<|end_of_turn|>\n"
    assert whole.startswith(demo.tokenizer.apply_chat_template(chat[:2], tokenize=False, add_generation_prompt=True))


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60))
def test_its_tokenizer_holds_any_text(demo, text):
    ids = demo.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert demo.tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("asked", "said"),
    [("Where does the fox live?", "The fox lives in a den under the old oak."), ("What does the bear eat?", "The bear eats honey.")],
)
@pytest.mark.parametrize("style", [AS_CHAT, "alpaca-format"])
def test_it_answers_plainly(demo, asked, said, style):
    assert answers(demo, asked, None, style=style).base == said


def test_it_tells_tales_in_sentences(demo):
    tale = answers(demo, "Once", None, style=AS_TEXT, max_new_tokens=150).base
    assert tale.endswith((".", "”")) and tale.count(".") >= 3
    known = set(
        "".join(
            character if character.isalpha() else " "
            for file in Path(DEMO_MODEL.parent).glob("*.py")
            for character in file.read_text(encoding="utf-8").lower()
        ).split()
    )
    words = "".join(character if character.isalpha() else " " for character in tale.lower()).split()
    assert [word for word in words if word not in known] == []


@pytest.mark.parametrize("name", FORMATS)
def test_the_formats_fit_the_sample_rows(name):
    entries = by_key_set(read_format(SHIPPED_FORMATS / f"{name}.json"))
    rows = read_rows(SHIPPED_DATASETS / "sample-alpaca.json")
    texts = [format_row(row, entries) for row in rows]
    assert all(text and row["instruction"] in text and row["output"] in text and "%" not in text for row, text in zip(rows, texts, strict=True))
    assert frozenset({"instruction", "input", "output"}) in entries


def test_the_sample_chats_are_chats_and_the_held_out_rows_are_new():
    for name, ending in (("sample-alpaca", "json"), ("sample-chat", "jsonl")):
        trained, held = (read_rows(SHIPPED_DATASETS / f"{name}{part}.{ending}") for part in ("", "-eval"))
        assert len(trained) >= 200 and len(held) >= 30
        known = {json.dumps(row, sort_keys=True) for row in trained}
        assert not [row for row in held if json.dumps(row, sort_keys=True) in known]
        if ending == "jsonl":
            assert all(messages_of(row) for row in trained + held)
            assert any(len(messages_of(row)) > 3 for row in trained) and any(messages_of(row)[0]["role"] == "system" for row in trained)
    assert (SHIPPED_DATASETS / "sample-text.txt").read_text(encoding="utf-8").count("\n\n\n") > 50
