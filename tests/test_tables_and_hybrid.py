"""Rows from CSV and Parquet, column mapping, rows of whole texts, and text and rows together."""

import json

import pytest
from training_pro.dataset_tools import DataError, map_columns, prepare, read_rows, share
from training_pro.settings import SettingsError
from training_pro.train_utils import begin


def test_csv_and_parquet_are_the_same_rows(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"instruction": 'say, "x"', "output": "a\nb"}, {"instruction": "é", "output": ""}]
    (tmp_path / "a.csv").write_text('instruction,output\r\n"say, ""x""","a\nb"\r\né,\r\n', encoding="utf-8-sig")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert read_rows(tmp_path / "a.csv") == rows == read_rows(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", "“a.csv” is empty"),
        ("a.csv", b"x,y\n", "holds no rows"),
        ("a.csv", b"x,y\n1\n", "row 1: it has 1 cells, and the first line names 2 columns"),
        ("a.csv", b"x,y\n1,2\n1,2,3\n", "row 2: it has 3 cells"),
        ("a.csv", b'x,y\n"1,2\n', "broken CSV at line"),
        ("a.csv", b"\xff\xfe", "not UTF-8"),
        ("a.parquet", b"PAR1", "cannot be read as Parquet"),
    ],
)
def test_a_broken_table_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path / name)
    assert len(caught.value.problems) == 1 and words in caught.value.problems[0]


def test_columns_get_the_names_of_the_format():
    rows = [(1, {"question": "q", "answer": "a", "output": "old", "id": "1"})]
    assert list(map_columns(rows, "instruction=question, output = answer", "f.csv")) == [(1, {"instruction": "q", "output": "a", "id": "1"})]
    assert list(map_columns(rows, " ", "f.csv")) == rows
    with pytest.raises(DataError, match=r"“f.csv” has no column prompt; it has question, answer, output, id"):
        list(map_columns(rows, "instruction=prompt", "f.csv"))
    with pytest.raises(DataError, match="“instruction” is not of the form instruction=question"):
        list(map_columns(rows, "instruction", "f.csv"))


def test_a_csv_is_trained_with_its_columns_mapped(host, settings):
    (host.datasets_dir / "quiz.csv").write_text("q,a\nsay 1,hello 1\nsay 2,hello 2\n", encoding="utf-8")
    assert "quiz" in host.data_files("json")
    prepared = prepare(settings(dataset="quiz", column_mapping="instruction=q, output=a"), host.tokenizer, host)
    assert [host.tokenizer.decode(row["input_ids"]) for row in prepared.train] == ["<s>Q: say 1\nA: hello 1</s>", "<s>Q: say 2\nA: hello 2</s>"]


def test_rows_of_whole_texts_are_cut_where_they_are_long(host, settings):
    long = "The fox lives in a den. The owl eats seeds! " * 10
    (host.datasets_dir / "tales.json").write_text(json.dumps([{"text": "Nobody knows."}, {"text": long}]), encoding="utf-8")
    prepared = prepare(settings(dataset="tales", format="text rows", cutoff_len=64, precize_slicing_overlap=False), host.tokenizer, host)
    texts = [host.tokenizer.decode(row["input_ids"], skip_special_tokens=True) for row in prepared.train]
    assert texts[0] == "Nobody knows." and " ".join(texts[1:]) == long.strip() and prepared.report.trimmed_rows == 0
    assert [prepared.blocks[n].row for n in range(len(texts))] == [1] + [2] * (len(texts) - 1)
    (host.datasets_dir / "tales.json").write_text(json.dumps([{"text": "x"}, {"text": " "}, {"story": "y"}]), encoding="utf-8")
    with pytest.raises(DataError, match="row 2 has no text under “text”"):
        prepare(settings(dataset="tales", format="text rows"), host.tokenizer, host)


def test_the_older_slicing_is_used_where_it_is_chosen(host, settings):
    (host.datasets_dir / "tale.txt").write_text("The fox lives in a den. " * 40, encoding="utf-8")
    chosen = settings(dataset=None, format=None, raw_text_file="tale", cutoff_len=64, overlap_len=16, precize_slicing_overlap=False)
    prepared = prepare(chosen, host.tokenizer, host)
    assert {len(row["input_ids"]) for row in list(prepared.train)[:-1]} == {64}
    with pytest.raises(DataError, match="Overlap Length"):
        prepare(chosen.model_copy(update={"overlap_len": 64}), host.tokenizer, host)


def test_text_and_rows_together_in_their_shares(host, settings):
    both = settings(raw_text_file="tale", hybrid_training=True)
    whole = prepare(both, host.tokenizer, host).report.kinds
    assert whole["json"] == 40 and whole["text"] > 0
    half = prepare(settings(raw_text_file="tale", hybrid_training=True, hybrid_data_ratio=50, hybrid_text_ratio=0), host.tokenizer, host)
    assert half.report.kinds == {"json": 20}
    numbers = [half.blocks[n].row for n in range(20)]
    assert numbers == sorted(numbers)
    again = prepare(settings(raw_text_file="tale", hybrid_training=True, hybrid_data_ratio=50, hybrid_text_ratio=0), host.tokenizer, host)
    assert [half.blocks[n].input_ids for n in range(20)] == [again.blocks[n].input_ids for n in range(20)]


@pytest.mark.parametrize("percent", [0, 1, 25, 50, 99, 100])
def test_a_share_is_drawn_evenly(percent):
    found = share(200, percent, 7)
    assert len(found) == 2 * percent and found == sorted(set(found))
    for first in range(0, 200, 100):  # each half of the data gives half of the share
        assert abs(sum(first <= n < first + 100 for n in found) - percent) <= 1
    assert percent in (0, 100) or found != share(200, percent, 8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hybrid_training": True}, "Hybrid Training needs a Text file and one of Dataset and JSONL Dataset; chosen is Dataset “rows”"),
        ({"hybrid_training": True, "dataset": None, "format": None}, "chosen is neither"),
        ({"raw_text_file": "tale"}, "or tick Hybrid Training for a text and a dataset together"),
    ],
)
def test_what_hybrid_training_needs_is_said(host, settings, changes, words):
    with pytest.raises(SettingsError) as caught:
        begin(settings(**changes), host)
    assert words in "\n".join(caught.value.problems)
