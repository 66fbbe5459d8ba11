import json

import pytest
from training_pro.dataset_tools import DataError, prepare, read_rows
from training_pro.file_tools import ToolError, dump, json_to_jsonl, split, text_to_jsonl

ROWS = [{"instruction": f"ask {n}", "input": "", "output": f"say {n}"} for n in range(20)]


def written(folder, name, content):
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_split_parts_every_row_once_in_the_files_order(tmp_path, name):
    path = written(tmp_path, name, ROWS if name.endswith("json") else "".join(json.dumps(row) + "\n" for row in ROWS))
    train, held = split(path, 10, seed=42, overwrite=False)
    assert (train.name, held.name) == (name.replace("rows", "rows_train"), name.replace("rows", "rows_eval"))
    parts = read_rows(train), read_rows(held)
    assert (len(parts[0]), len(parts[1])) == (18, 2) and sorted(map(str, parts[0] + parts[1])) == sorted(map(str, ROWS))
    assert [ROWS.index(row) for row in parts[0]] == sorted(ROWS.index(row) for row in parts[0])
    with pytest.raises(ToolError, match=r"“rows_train.* and “rows_eval.* are there already. Tick Overwrite"):
        split(path, 10, seed=42, overwrite=False)
    before = held.read_bytes()
    assert split(path, 10, seed=42, overwrite=True)[1].read_bytes() == before  # the same seed, the same rows
    assert split(path, 10, seed=43, overwrite=True)[1].read_bytes() != before


@pytest.mark.parametrize("percent", [0, 100, -1])
def test_split_needs_a_part_of_the_rows(tmp_path, percent):
    with pytest.raises(ToolError, match="is not between 0 and 100"):
        split(written(tmp_path, "a.json", ROWS), percent, 1, False)


def test_a_split_leaves_a_row_on_each_side(tmp_path):
    train, held = split(written(tmp_path, "a.json", ROWS[:2]), 99, 1, False)
    assert (len(read_rows(train)), len(read_rows(held))) == (1, 1)
    with pytest.raises(ToolError, match="has one row"):
        split(written(tmp_path, "b.json", ROWS[:1]), 50, 1, False)


def test_instruction_rows_become_chats(tmp_path):
    rows = [{"instruction": "add", "input": "1 + 1", "output": "2"}, {"instruction": "hi", "input": " ", "output": "hé"}]
    path, count = json_to_jsonl(written(tmp_path, "a.json", rows), "be kind", False)
    assert (path.name, count) == ("a.jsonl", 2)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    system = {"role": "system", "content": "be kind"}
    assert lines == [
        {"messages": [system, {"role": "user", "content": "add\n\n1 + 1"}, {"role": "assistant", "content": "2"}]},
        {"messages": [system, {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hé"}]},
    ]
    assert "hé" in path.read_text(encoding="utf-8")


def test_rows_that_are_no_instructions_are_named_and_nothing_is_written(tmp_path):
    path = written(tmp_path, "a.json", [*ROWS, {"instruction": "x"}, {"text": "y"}])
    with pytest.raises(ToolError, match="row 21, 22: each row needs text under instruction and output"):
        json_to_jsonl(path, "", False)
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_the_items_of_a_text_become_answers(tmp_path):
    path, count = text_to_jsonl(written(tmp_path, "a.txt", "One.\nTwo.\r\n\r\n\r\nThree.\n\n\n\n"), "Tell me", "", False)
    lines = [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert count == 2 and [[turn["content"] for turn in chat] for chat in lines] == [["Tell me", "One.\nTwo."], ["Tell me", "Three."]]
    with pytest.raises(ToolError, match="Prompt is empty"):
        text_to_jsonl(tmp_path / "a.txt", " ", "", True)
    with pytest.raises(DataError, match="not UTF-8"):
        (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
        text_to_jsonl(tmp_path / "b.txt", "x", "", True)


def test_the_dump_is_what_is_trained(host, settings):
    prepared = prepare(settings(), host.tokenizer, host)
    whole = json.loads(dump(prepared, host.tokenizer, host.logs_dir, "rows", False).read_text(encoding="utf-8"))
    with pytest.raises(ToolError, match=r"“rows_train_dataset.json” is there already. Tick Overwrite"):
        dump(prepared, host.tokenizer, host.logs_dir, "rows", True)
    bare = json.loads(dump(prepared, host.tokenizer, host.logs_dir, "rows", True, overwrite=True).read_text(encoding="utf-8"))
    assert len(whole) == 40 and whole[3] == "<s>Q: say 3\nA: hello 3 world</s>" and bare[3] == "Q: say 3\nA: hello 3 world"
    assert (host.logs_dir / "rows_train_dataset.json").is_file()
