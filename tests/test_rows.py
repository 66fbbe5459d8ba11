"""Reading: rows and texts, whole and broken, and files that are too large."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_pro import rows
from training_pro.rows import DataError, is_hub_name, open_rows, read_rows, read_text


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def problems(read, *arguments):
    with pytest.raises(DataError) as caught:
        read(*arguments)
    return caught.value.problems


def test_text_is_utf8_with_bom_and_crlf_folded(tmp_path):
    assert read_text(write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree")) == "one\ntwo\nthree"


@pytest.mark.parametrize(
    "text", ['[{"a": "1"}, {"a": "2"}]', '{"a": "1"}\n\n{"a": "2"}\n', '\n[\n{"a":"1"},{"a":"2"}]', '\ufeff[{"a":"1"},{"a":"2"}]']
)
def test_rows_come_from_an_array_or_from_lines(tmp_path, text):
    assert read_rows(write(tmp_path / "x.json", text)) == [{"a": "1"}, {"a": "2"}]


def test_one_object_over_several_lines_is_a_row(tmp_path):
    assert read_rows(write(tmp_path / "x.json", json.dumps({"a": "1", "b": [1, 2]}, indent=2))) == [{"a": "1", "b": [1, 2]}]


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3), max_leaves=5)  # fmt: skip
OBJECTS = st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), min_size=1, max_size=8)


@settings(deadline=None)
@given(OBJECTS, st.integers(1, 40), st.sampled_from([None, 0, 2]), st.booleans())
def test_however_a_file_is_parted_its_rows_are_the_same(tmp_path_factory, found, chunk, indent, ascii_):
    folder = tmp_path_factory.mktemp("rows")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "CHUNK", chunk)
        array = write(folder / "a.json", json.dumps(found, indent=indent, ensure_ascii=ascii_).encode("utf-8", "surrogatepass"))
        try:
            array.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            assert "not UTF-8" in problems(read_rows, array)[0]
            return
        assert read_rows(array) == found
        lines = write(folder / "l.jsonl", "".join(json.dumps(row, ensure_ascii=ascii_) + "\n" for row in found))
        source = open_rows(lines)
        assert [number for number, _ in source] == list(range(1, len(found) + 1)) and source.share == 1
        assert read_rows(lines) == found


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.json", "", "“x.json” is empty"),
        ("x.json", " \n ", "“x.json” is empty"),
        ("x.json", "[]", "“x.json” holds no rows"),
        ("x.json", "[ ]\n", "“x.json” holds no rows"),
        ("x.json", '[\n{"a": 1},\n{"b" 2}]', "broken JSON at line 3, column 6"),
        ("x.json", '[\n{"a": 1},\n{"b": 2}', "line 3, column 9: a comma or ] must stand here"),
        ("x.json", '[{"a": 1} {"b": 2}]', "line 1, column 11: a comma or ] must stand here"),
        ("x.json", '[{"a": 1}]\n{"b": 2}', "line 2, column 1: there is something behind the end of the list"),
        ("x.json", '{"a": 1}\n{"b" 2}', "line 2, column 6"),
        ("x.json", '{"a": \n"b" 2}', "line 2, column 5"),
        ("x.json", '[{"a": 1}, 5, "x", null]', "rows 2, 3, 4 must be an object with keys"),
        ("x.json", "[" * 100_000, "nested too deeply"),
        ("x.jsonl", '{"a": ' + "[" * 100_000 + "\n", "nested too deeply"),
        ("x.json", '[{"a": ' + "1" * 5000 + "}]", "row 1: Exceeds the limit"),
        ("x.json", '[{"a": "\\ud800"}]', None),
        ("x.json", b'[{"a": "\xff"}]', "not UTF-8 text: byte 8 is 0xff"),
        ("x.json", '[{"a": "1"}]'.encode("utf-16"), "not UTF-8 text: byte 0 is 0xff"),
        ("x.json", '[{"a": "1"}]'.encode("utf-16-le"), "byte 1 is NUL. It may be UTF-16"),
        ("x.jsonl", b"\xf0\x9f\xa6", "not UTF-8 text: byte 0 is 0xf0"),
        ("x.csv", "a,b\n1\n", "row 1: it has 1 cells"),
        ("x.csv", b"a,b\n1,\xff\n", "byte 6 is 0xff"),
        ("x.parquet", b"PAR1", "cannot be read as Parquet"),
        ("x.parquet", b"", "cannot be read as Parquet"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path, name, content, words):
    path = write(tmp_path / name, content)
    if words is None:
        assert read_rows(path) == [{"a": "\ud800"}]
        return
    said = problems(read_rows, path)
    assert words in said[0] and name in said[0]


def test_many_broken_lines_are_counted(tmp_path):
    said = problems(read_rows, write(tmp_path / "x.jsonl", '{"a": 1}\n' + "{\n" * 12))
    assert len(said) == 6 and "line 2, column 2" in said[0] and said[-1] == "… and 7 more of this kind."


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.csv", "x.parquet", "x.txt"])
def test_a_folder_and_what_is_not_there_are_named(tmp_path, name):
    (tmp_path / name).mkdir()
    read = read_text if name == "x.txt" else read_rows
    assert f"“{name}” cannot be read" in problems(read, tmp_path / name)[0]
    (tmp_path / name).rmdir()
    assert f"“{name}” cannot be read" in problems(read, tmp_path / name)[0]


@pytest.mark.parametrize(("name", "words"), [("x.jsonl", "line 1 is longer than 64 MB"), ("x.csv", "a line is longer than 64 MB"), ("x.txt", "a text file is read whole, up to 1.1 GB")])  # fmt: skip
def test_a_line_of_two_gigabytes_is_refused_before_it_is_in_memory(tmp_path, monkeypatch, name, words):
    """The file has holes, and its check for UTF-8 is left away: NULs are no text."""
    path = tmp_path / name
    with open(path, "wb") as file:
        file.write(b'{"a": "')
        file.truncate(2 * 2**30)
    monkeypatch.setattr(rows, "_check", lambda path: path.stat().st_size)
    assert words in problems(read_text if name == "x.txt" else read_rows, path)[0]


def test_a_row_of_an_array_that_is_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "CHUNK", 100)
    monkeypatch.setattr(rows, "LONGEST_ROW", 1000)
    path = write(tmp_path / "x.json", json.dumps([{"a": "b"}, {"a": "c" * 5000}]))
    assert problems(read_rows, path) == ["“x.json”: row 2 is longer than 0 MB. Part it into rows, or use the file as a Text file."]


def test_names_of_the_hub():
    for name in ("tatsu-lab/alpaca", "a/b.c:train", "a/b:config:test[:100]"):
        assert is_hub_name(name)
    for name in ("alpaca", "../alpaca", "/etc/passwd", "a/b/c", "a/..", "a\\b", "a/b:", "http://a/b", ""):
        assert not is_hub_name(name)


def test_a_dataset_of_the_hub_is_read_from_the_cache_and_offline_is_said(tmp_path, monkeypatch):
    """The real loading code, with a dataset that another program has put into the cache."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True, raising=False)
    found = [{"instruction": f"say {n}", "output": f"hello {n}"} for n in range(5)]
    builder = tmp_path / "cache" / "owner___name" / "default" / "0.0.0" / "abc"
    made = datasets.load_dataset("json", data_files=str(write(tmp_path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in found))))
    source = next((tmp_path / "cache" / "json").glob("*/*/*/dataset_info.json")).parent
    builder.parent.mkdir(parents=True)
    source.rename(builder)
    for file in builder.glob("json-*"):
        file.rename(builder / file.name.replace("json-", "name-"))
    info = builder / "dataset_info.json"
    info.write_text(info.read_text().replace('"dataset_name": "json"', '"dataset_name": "name"'))
    assert made["train"].num_rows == 5
    assert read_rows("owner/name") == found == read_rows("owner/name:train")
    said = problems(read_rows, "owner/gone")
    assert "huggingface.co cannot be reached from here" in said[0] and "datasets folder" in said[0]
    assert "split “test”" in problems(read_rows, "owner/name:test")[0]
