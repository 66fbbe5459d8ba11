import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from training_pro.dataset_tools import DataError, prepare, read_rows
from training_pro.file_tools import ToolError, download, download_target, dump, json_to_jsonl, split, text_to_jsonl

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
    bare = json.loads(dump(prepared, host.tokenizer, host.logs_dir, "rows", True).read_text(encoding="utf-8"))
    assert len(whole) == 40 and whole[3] == "<s>Q: say 3\nA: hello 3 world</s>" and bare[3] == "Q: say 3\nA: hello 3 world"
    assert (host.logs_dir / "rows_train_dataset.json").is_file()


@contextlib.contextmanager
def served(content=b"hello", status=200, length=None):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("content-length", str(length or len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def fetched(url, folder, overwrite):
    target = download_target(url, folder, overwrite)
    return target, list(download(url, target))


def test_a_download_arrives_whole_and_is_not_written_over_unasked(tmp_path):
    with served(b"x" * 3_000_000) as address:
        path, seen = fetched(f"{address}/folder/my%20data.txt?download=true", tmp_path, False)
        assert path.name == "my data.txt" and path.stat().st_size == 3_000_000 and seen[-1] == (3_000_000, 3_000_000)
        with pytest.raises(ToolError, match="Tick Overwrite to replace it"):
            download_target(f"{address}/my%20data.txt", tmp_path, False)
    with served(b"new") as address:
        assert fetched(f"{address}/my%20data.txt", tmp_path, True)[0].read_bytes() == b"new"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://example.org/a.txt", "not an address that begins with http"),
        ("file:///etc/passwd.txt", "not an address that begins with http"),
        ("", "not an address"),
        ("https://example.org/a.exe", "must end with a file name"),
        ("https://example.org/", "must end with a file name"),
        ("https://example.org/..%2F..%2Fa.txt", "holds “/”"),
        ("https://example.org/con.txt", "Windows keeps for itself"),
    ],
)
def test_what_is_no_data_file_is_refused_before_anything_is_fetched(tmp_path, url, words):
    with pytest.raises(ToolError, match=words):
        download_target(url, tmp_path, False)
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_breaks_leaves_nothing(tmp_path):
    with served(b"x", status=404) as address, pytest.raises(ToolError, match="the server answers 404"):
        fetched(f"{address}/a.txt", tmp_path, False)
    with served(b"short", length=1000) as address, pytest.raises(ToolError, match="the connection broke"):
        fetched(f"{address}/a.txt", tmp_path, False)
    with pytest.raises(ToolError, match="could not be reached"):
        fetched("http://127.0.0.1:1/a.txt", tmp_path, False)
    assert list(tmp_path.iterdir()) == []
