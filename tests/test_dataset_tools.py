import errno
import json
import os
import shutil

import pytest
from tiny import CHATS, ROWS
from training_pro import blocks, dataset_tools, rows
from training_pro.dataset_tools import (
    IGNORED,
    Collator,
    DataError,
    by_key_set,
    choose_pad_id,
    format_row,
    messages_of,
    prepare,
    read_format,
    read_rows,
    read_text,
)


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def trained_text(tokenizer, row):
    return tokenizer.decode([token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED])


def problems_of(settings, host):
    with pytest.raises(DataError) as caught:
        prepare(settings, host.tokenizer, host)
    return caught.value.problems


def whole_text(tokenizer, row):
    return tokenizer.decode(row["input_ids"])


# Reading


def test_text_is_utf8_with_bom_and_crlf_folded(tmp_path):
    assert read_text(write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree")) == "one\ntwo\nthree"
    with pytest.raises(DataError, match=r"“b.txt” is not UTF-8 text: byte 3 is 0xff"):
        read_text(write(tmp_path / "b.txt", b"abc\xff"))


@pytest.mark.parametrize("text", ['[{"a": "1"}, {"a": "2"}]', '{"a": "1"}\n\n{"a": "2"}\n', '\n[\n{"a":"1"},{"a":"2"}]'])
def test_rows_come_from_an_array_or_from_lines(tmp_path, text):
    assert read_rows(write(tmp_path / "x.json", text)) == [{"a": "1"}, {"a": "2"}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "“x.json” is empty"),
        ("[]", "holds no rows"),
        ('[\n{"a": 1},\n{"b" 2}]', "line 3, column 6"),
        ('{"a": 1}\n{"b" 2}', "line 2, column 6"),
        ('[{"a": 1}, 5, "x"]', "rows 2, 3 must be an object"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_broken_rows_are_named_with_their_place(tmp_path, text, words):
    with pytest.raises(DataError) as caught:
        read_rows(write(tmp_path / "x.json", text))
    assert words in str(caught.value)


def test_a_row_takes_the_entry_of_its_own_keys_and_values_are_not_substituted_again():
    entries = by_key_set({"q, a": "Q: %q% A: %a%", "q,i,a": "%q% [%i%] %a%"})
    assert format_row({"q": "is %a% text?", "a": "yes", "i": "", "n": 3}, entries) == "Q: is %a% text? A: yes"
    assert format_row({"q": "1", "a": "2", "i": "3"}, entries) == "1 [3] 2"
    assert format_row({"q": "1"}, entries) is None


def test_a_format_file_is_checked(tmp_path):
    with pytest.raises(DataError, match="must be one JSON object"):
        read_format(write(tmp_path / "f.json", '{"a": 1}'))


# JSON


def test_json_rows_get_bos_eos_and_labels(host, settings):
    prepared = prepare(settings(), host.tokenizer, host)
    row = prepared.train[3]
    assert whole_text(host.tokenizer, row) == "<s>Q: say 3\nA: hello 3 world</s>"
    assert row["labels"] == [IGNORED, *row["input_ids"][1:]]  # the first token is never predicted
    assert prepared.report.blocks == len(prepared.train) == 40
    assert prepared.report.total_tokens == sum(len(one["input_ids"]) for one in prepared.train)
    assert prepared.report.trained_tokens == prepared.report.total_tokens - 40
    assert (prepared.report.steps_per_epoch, prepared.report.total_steps) == (10, 10)


def test_train_only_after_masks_by_position(host, settings):
    prepared = prepare(settings(train_on_inputs=False, train_only_after="A:"), host.tokenizer, host)
    assert trained_text(host.tokenizer, prepared.train[0]) == " hello 0 world</s>"


def test_a_marker_that_stands_nowhere_refuses(host, settings):
    with pytest.raises(DataError, match="40 rows have no trained token: “ZZZ”"):
        prepare(settings(train_on_inputs=False, train_only_after="ZZZ"), host.tokenizer, host)


def test_rows_without_the_marker_are_left_out_and_counted(host, settings):
    rows = [*ROWS[:3], {"instruction": "x", "output": "END y"}]
    write(host.datasets_dir / "rows.json", json.dumps(rows))
    prepared = prepare(settings(train_on_inputs=False, train_only_after="END"), host.tokenizer, host)
    assert (prepared.report.blocks, prepared.report.untrained_rows) == (1, 3)


def test_bos_and_eos_as_asked_and_never_doubled(host, settings):
    write(host.datasets_dir / "rows.json", json.dumps([{"instruction": "a", "output": "b</s>"}]))
    assert whole_text(host.tokenizer, prepare(settings(), host.tokenizer, host).train[0]) == "<s>Q: a\nA: b</s>"
    bare = prepare(settings(add_bos_token=False, add_eos_token=False), host.tokenizer, host).train[0]
    assert whole_text(host.tokenizer, bare) == "Q: a\nA: b</s>"


def test_long_rows_are_trimmed_or_left_out_and_counted(host, settings):
    rows = [*ROWS[:2], {"instruction": "x " * 100, "output": "y"}]
    write(host.datasets_dir / "rows.json", json.dumps(rows))
    trimmed = prepare(settings(cutoff_len=32), host.tokenizer, host)
    assert (trimmed.report.trimmed_rows, trimmed.report.blocks, len(trimmed.train[2]["input_ids"])) == (1, 3, 32)
    whole = prepare(settings(), host.tokenizer, host)
    assert trimmed.report.longest_block == whole.report.longest_block == len(whole.train[2]["input_ids"]) > 32
    assert trimmed.report.second_longest_block == len(whole.train[0]["input_ids"])
    assert trimmed.report.cutoff_suggested == whole.report.cutoff_suggested == -(-whole.report.longest_block // 32) * 32
    dropped = prepare(settings(cutoff_len=32, eliminate_long_blocks=True), host.tokenizer, host)
    assert (dropped.report.dropped_rows, dropped.report.blocks) == (1, 2)


def test_rows_with_other_keys_are_named(host, settings):
    rows = [ROWS[0], {"question": "x", "output": "y"}, *[{"text": "z"}] * 6]
    write(host.datasets_dir / "rows.json", json.dumps(rows))
    with pytest.raises(DataError) as caught:
        prepare(settings(), host.tokenizer, host)
    problems = caught.value.problems
    assert problems[0].startswith("“rows.json”, row 2: it has text under question, output; the Data Format knows “instruction,output”.")
    assert problems[-2:] == ["… and 2 more rows.", "Or tick “Skip rows that do not fit” to leave such rows out."]
    skipped = prepare(settings(skip_unfit_rows=True), host.tokenizer, host)
    assert (skipped.report.blocks, skipped.report.unfit_rows) == (1, 7)
    write(host.datasets_dir / "rows.json", json.dumps(rows[1:]))
    with pytest.raises(DataError, match=r"Nothing is left to train; 7 rows do not fit"):
        prepare(settings(skip_unfit_rows=True), host.tokenizer, host)


def test_a_file_that_vanishes_while_it_is_read_is_named(host, settings, monkeypatch):
    check = rows._check

    def looked_at(path):
        size = check(path)
        if path.name == "rows.json":
            path.unlink()
        return size

    monkeypatch.setattr(rows, "_check", looked_at)
    said = "“rows.json” cannot be read: No such file or directory. See that it is there and stays as it is until its blocks are made, then try again."
    assert problems_of(settings(), host) == [said]


def test_a_cache_of_the_hub_that_is_full(host, settings, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/home/anna/.cache/huggingface/x.arrow")

    monkeypatch.setattr(dataset_tools, "open_rows", full)
    said = "The disk is full: No space left on device (x.arrow). Free some space, then try again."
    assert problems_of(settings(), host) == [said]


def test_a_folder_for_the_prepared_data_that_cannot_be_written(host, settings, monkeypatch):
    monkeypatch.setattr(blocks, "IN_MEMORY", 100)
    shutil.rmtree(host.user_data / "cache", ignore_errors=True)
    (host.user_data / "cache").write_text("a file of that name", encoding="utf-8")
    (said,) = problems_of(settings(), host)
    assert said.startswith(f"The prepared data cannot be written into {host.scratch_dir}: ") and "make the folder writable" in said


def test_an_evaluation_dataset_is_prepared_the_same_way(host, settings):
    prepared = prepare(settings(eval_dataset="held"), host.tokenizer, host)
    assert len(prepared.eval) == prepared.report.eval_blocks == 8
    assert prepared.eval[0]["input_ids"] == prepared.train[0]["input_ids"]


# Chats


def test_messages_and_conversations_are_the_same_chat():
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    shares = [{"from": "system", "value": "s"}, {"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]
    assert messages_of({"messages": chat}) == chat == messages_of({"conversations": shares})
    assert messages_of({"text": "x"}) is None and messages_of({"messages": [{"role": "user"}]}) is None


def chats(host, rows):
    write(host.datasets_dir / "chats.jsonl", "".join(json.dumps({"messages": row}) + "\n" for row in rows))


def test_the_template_decides_bos_and_eos(host, settings):
    prepared = prepare(settings(dataset=None, datasetJSONL="chats"), host.tokenizer, host)
    expected = "<|im_start|>user\nsay 0<|im_end|>\n<|im_start|>assistant\nhello 0<|im_end|>\n"
    assert whole_text(host.tokenizer, prepared.train[0]) == expected
    assert prepared.report.kinds == {"jsonl": len(CHATS)}


def test_only_the_assistants_turns_with_their_end_are_trained(host, settings):
    turns = [("system", "be kind"), ("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")]
    chats(host, [[{"role": role, "content": content} for role, content in turns]])
    prepared = prepare(settings(dataset=None, datasetJSONL="chats", train_on_inputs=False), host.tokenizer, host)
    assert trained_text(host.tokenizer, prepared.train[0]) == "two<|im_end|>four<|im_end|>"


def test_a_json_array_of_chats_works_the_same(host, settings):
    (host.datasets_dir / "chats.jsonl").unlink()
    write(host.datasets_dir / "chats.json", json.dumps(CHATS))
    assert prepare(settings(dataset=None, datasetJSONL="chats"), host.tokenizer, host).report.blocks == len(CHATS)


def test_without_a_template_the_hosts_is_used_and_the_tokenizer_stays(host, settings, monkeypatch):
    monkeypatch.setattr(host.tokenizer, "chat_template", None)
    chosen = settings(dataset=None, datasetJSONL="chats")
    with pytest.raises(DataError, match="no chat template"):
        prepare(chosen, host.tokenizer, host)
    monkeypatch.setattr(host, "instruction_template", lambda: "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}")
    assert whole_text(host.tokenizer, prepare(chosen, host.tokenizer, host).train[0]) == "[user] say 0[assistant] hello 0"
    assert host.tokenizer.chat_template is None


def test_a_template_that_rewrites_earlier_turns_is_refused_with_the_reason(host, settings, monkeypatch):
    rewriting = (
        "{% for m in messages %}{% if loop.last or m['role'] == 'user' %}{{ m['role'] }}: {{ m['content'] }}\n{% else %}cut\n{% endif %}{% endfor %}"
    )
    monkeypatch.setattr(host.tokenizer, "chat_template", rewriting)
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    chats(host, [[{"role": role, "content": content} for role, content in turns]])
    with pytest.raises(DataError, match=r"row 1: .*earlier turns differently"):
        prepare(settings(dataset=None, datasetJSONL="chats", train_on_inputs=False), host.tokenizer, host)


def test_a_template_that_raises_names_the_row(host, settings, monkeypatch):
    strict = "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}{{ m['content'] }}{% endfor %}"
    monkeypatch.setattr(host.tokenizer, "chat_template", strict)
    chats(host, [[{"role": "user", "content": "a"}], [{"role": "system", "content": "b"}]])
    with pytest.raises(DataError, match=r"“chats.jsonl”, row 2: .*No system role"):
        prepare(settings(dataset=None, datasetJSONL="chats"), host.tokenizer, host)


# Text


def test_text_is_cut_into_blocks(host, settings):
    write(host.datasets_dir / "tale.txt", "The fox lives in a den. " * 20)
    prepared = prepare(settings(dataset=None, raw_text_file="tale", cutoff_len=32), host.tokenizer, host)
    assert set(prepared.report.kinds) == {"text", "overlapping"}
    assert all(len(row["input_ids"]) <= 32 for row in prepared.train)


def test_a_folder_of_texts_is_read_in_natural_order(host, settings):
    (host.datasets_dir / "book").mkdir()
    for number in (10, 2, 1):
        write(host.datasets_dir / "book" / f"part {number}.txt", f"Part {number}.")
    assert "book" in host.data_files("text")
    prepared = prepare(settings(dataset=None, raw_text_file="book"), host.tokenizer, host)
    assert [whole_text(host.tokenizer, row) for row in prepared.train] == ["<s>Part 1.</s>", "<s>Part 2.</s>", "<s>Part 10.</s>"]


def test_small_blocks_are_counted(host, settings):
    write(host.datasets_dir / "tale.txt", "Aa.\n\n\nA longer one.")
    prepared = prepare(settings(dataset=None, raw_text_file="tale", min_chars=5), host.tokenizer, host)
    assert (prepared.report.blocks, prepared.report.small_blocks) == (1, 1)


# Notices and padding


def test_accumulation_that_the_data_cannot_fill_is_lowered_and_said(host, settings):
    report = prepare(settings(grad_accumulation=64), host.tokenizer, host).report
    assert report.accumulation == 10 and "10 is the highest" in " ".join(report.notices)


def test_train_only_after_that_is_not_used_is_said(host, settings):
    assert "not used" in " ".join(prepare(settings(train_only_after="A:"), host.tokenizer, host).report.notices)


def test_padding_is_masked_by_position_so_that_eos_stays_trained():
    import torch

    batch = Collator(pad_id=2)([{"input_ids": [1, 5, 2], "labels": [-100, 5, 2]}, {"input_ids": [1, 2], "labels": [-100, 2]}])
    assert batch["input_ids"].tolist() == [[1, 5, 2], [1, 2, 2]]
    assert batch["labels"].tolist() == [[-100, 5, 2], [-100, 2, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert Collator(0, multiple=8)([{"input_ids": [1], "labels": [1]}])["input_ids"].shape == (1, 8)
    assert batch["labels"].dtype == torch.int64


class Vocabulary:
    pad_token_id = unk_token_id = eos_token_id = None

    def __init__(self, vocabulary, **ids):
        self.vocabulary = vocabulary
        for name, value in ids.items():
            setattr(self, name, value)

    def get_vocab(self):
        return self.vocabulary


@pytest.mark.parametrize(
    ("tokenizer", "pad"),
    [
        (Vocabulary({"<pad>": 4}, pad_token_id=9), 9),
        (Vocabulary({"<|end_of_text|>": 3, "<|finetune_right_pad_id|>": 7}, eos_token_id=3), 7),
        (Vocabulary({"<|end_of_text|>": 3}, eos_token_id=1), 3),
        (Vocabulary({}, unk_token_id=0, eos_token_id=2), 0),
        (Vocabulary({}, eos_token_id=2), 2),
        (Vocabulary({}), 0),
    ],
)
def test_the_pad_token_is_chosen_in_order(tokenizer, pad):
    assert choose_pad_id(tokenizer) == pad


def test_the_tokenizer_is_not_changed(host, settings):
    before = host.tokenizer.backend_tokenizer.to_str(), dict(host.tokenizer.special_tokens_map), host.tokenizer.padding_side
    prepare(settings(), host.tokenizer, host)
    assert (host.tokenizer.backend_tokenizer.to_str(), dict(host.tokenizer.special_tokens_map), host.tokenizer.padding_side) == before
