import csv
import subprocess
import sys
import time

import pytest
from training_pro import evaluations

FIRST = {"model": "llama", "loras": [], "dataset": "tale", "perplexity": 12.5, "stride": 512, "max_length": 0}


def test_rows_are_added_and_read_as_the_web_ui_has_them(tmp_path):
    table = tmp_path / "logs" / "evaluations.csv"
    assert evaluations.read(table) == []
    evaluations.add(table, **FIRST)
    evaluations.add(table, **{**FIRST, "loras": ["poet", "sailor"], "comment": 'so-so, "quoted"\nand long'})
    pandas = pytest.importorskip("pandas")  # how the web UI reads it
    found = pandas.read_csv(table, dtype=str)
    assert list(found.columns) == ["Model", "LoRAs", "Dataset", "Perplexity", "stride", "max_length", "Date", "Comment"]
    assert found["LoRAs"].tolist() == ["-", "poet, sailor"] and pandas.to_numeric(found["Perplexity"]).tolist() == [12.5, 12.5]
    assert found["stride"].tolist() == ["512", "512"] and found["max_length"].tolist() == ["0", "0"]
    rows = evaluations.read(table)
    assert rows[1]["Comment"] == 'so-so, "quoted"\nand long'
    assert abs(time.mktime(time.strptime(rows[0]["Date"], "%Y-%m-%d %H:%M:%S")) - time.time()) < 120


def test_what_others_wrote_stays(tmp_path):
    table = tmp_path / "evaluations.csv"
    table.write_text("Model,LoRAs,Dataset,Perplexity,stride,max_length,Date,Comment,Mine\na,-,b,3.5,1,2,today,c,own\n", encoding="utf-8")
    evaluations.add(table, **FIRST)
    with open(table, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"Model": "a", "LoRAs": "-", "Dataset": "b", "Perplexity": "3.5", "stride": "1", "max_length": "2", "Date": "today",
                       "Comment": "c", "Mine": "own"} and rows[1]["Mine"] == ""  # fmt: skip


@pytest.mark.parametrize("text", ["", "\n", "\ufeff"])
def test_an_empty_file_is_an_empty_table(tmp_path, text):
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    assert evaluations.read(tmp_path / "t.csv") == []


def test_another_file_is_not_written_over(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="is not the table of evaluations"):
        evaluations.add(tmp_path / "t.csv", **FIRST)
    assert (tmp_path / "t.csv").read_text(encoding="utf-8") == "a,b\n1,2\n"


def test_two_writers_lose_no_row(tmp_path):
    table = tmp_path / "evaluations.csv"
    code = (
        "import sys; from pathlib import Path; from training_pro import evaluations\n"
        "for n in range(10): evaluations.add(Path(sys.argv[1]), model=f'{sys.argv[2]}-{n}', loras=[], dataset='d', perplexity=1, stride=1, max_length=1)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(table), str(number)], cwd=tmp_path) for number in range(3)]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    assert sorted(row["Model"] for row in evaluations.read(table)) == sorted(f"{number}-{n}" for number in range(3) for n in range(10))


def test_comments_and_rows_removed(tmp_path):
    table = tmp_path / "evaluations.csv"
    table.write_text("Model,LoRAs,Dataset,Perplexity,stride,max_length,Date,Comment,Mine\na,-,b,3.5,1,2,today,c,own\n", encoding="utf-8")
    evaluations.add(table, details={"identity": {"model": "1"}, "scored_tokens": 7}, **FIRST)
    theirs, ours = evaluations.read(table)
    evaluations.comment(table, evaluations.key(theirs), " good \n")
    evaluations.comment(table, evaluations.key(ours), "better")
    assert [(row["Comment"], row["Mine"]) for row in evaluations.read(table)] == [("good", "own"), ("better", "")]
    evaluations.delete(table, evaluations.key(theirs))
    with pytest.raises(evaluations.Gone, match="not in the table any more"):
        evaluations.comment(table, evaluations.key(theirs), "x")
    with pytest.raises(evaluations.Gone):
        evaluations.delete(table, evaluations.key(theirs))
    assert [row["Comment"] for row in evaluations.read(table)] == ["better"]


def test_what_the_web_ui_writes_over_can_be_put_back_and_is_known_again(tmp_path):
    table = tmp_path / "evaluations.csv"
    identity = {"model": "1", "adapters": ["2"], "text": "3", "stride": 512}
    evaluations.add(table, details={"identity": {**identity, "model": None}, "scored_tokens": 7}, **FIRST)
    evaluations.add(table, details={"identity": identity, "scored_tokens": 7}, **{**FIRST, "dataset": "other"})
    evaluations.add(table, details={"identity": {**identity, "text": "4"}, "partial": True}, **{**FIRST, "dataset": "third"})
    pandas = pytest.importorskip("pandas")
    read = pandas.read_csv(table, dtype=str)  # as the web UI reads, and writes what its page showed
    read["Perplexity"] = pandas.to_numeric(read["Perplexity"])
    read.to_csv(table, index=False)
    row, details = evaluations.measured_before(table, identity)
    assert (row["Dataset"], details["scored_tokens"]) == ("other", 7)
    assert evaluations.measured_before(table, {**identity, "stride": 1}) is None
    assert evaluations.measured_before(table, {**identity, "stride": 1}, ignoring=("stride",))[0]["Dataset"] == "other"
    assert evaluations.measured_before(table, {**identity, "text": "4"}) is None  # only partial
    assert evaluations.measured_before(table, {**identity, "model": None}) is None  # not known is never the same
    read[:1].to_csv(table, index=False)
    assert evaluations.measured_before(table, identity) is None and [row["Dataset"] for row in evaluations.lost(table)] == ["other", "third"]
    assert evaluations.put_back(table) == 2 and [row["Dataset"] for row in evaluations.read(table)] == ["tale", "other", "third"]
    assert evaluations.lost(table) == [] and evaluations.measured_before(table, identity) is not None
    read[:1].to_csv(table, index=False)
    evaluations.let_go(table)
    assert evaluations.lost(table) == [] and len(evaluations.read(table)) == 1


def test_filter_sort_and_an_export_without_formulas():
    rows = [
        {"Model": "b", "LoRAs": "-", "Dataset": "tale", "Perplexity": "12.5", "Date": "2026-01-02", "Comment": "=HYPERLINK(1)"},
        {"Model": "a", "LoRAs": "poet", "Dataset": "wiki", "Perplexity": "nan", "Date": "2026-01-03", "Comment": "-3"},
        {"Model": "a", "LoRAs": "-", "Dataset": "tale", "Perplexity": "3", "Date": "2026-01-01", "Comment": "@x"},
    ]
    assert [row["Date"][-1] for row in evaluations.chosen(rows)] == ["3", "2", "1"]
    assert [row["Perplexity"] for row in evaluations.chosen(rows, sort="Lowest perplexity first")] == ["3", "12.5", "nan"]
    assert [row["Perplexity"] for row in evaluations.chosen(rows, "TALE a", "Model")] == ["3", "12.5"]
    assert [row["Perplexity"] for row in evaluations.chosen(rows, "poet wiki")] == ["nan"] and evaluations.chosen(rows, "poet b") == []
    lines = evaluations.export_csv(rows).splitlines()
    assert lines[0] == "Model,LoRAs,Dataset,Perplexity,stride,max_length,Date,Comment"
    assert lines[1:] == ["b,-,tale,12.5,,,2026-01-02,'=HYPERLINK(1)", "a,poet,wiki,nan,,,2026-01-03,-3", "a,-,tale,3,,,2026-01-01,'@x"]
    harmless = {"=1+1": "'=1+1", "-": "-", "-3.5": "-3.5", "+49": "'+49", "a=b": "a=b", " =1": "' =1", "\t=1": "'\t=1", "": ""}
    assert {text: evaluations._harmless(text) for text in harmless} == harmless
