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
