"""A stranger calls the page's endpoints with payloads made by hand: no widget, no browser, whatever a program can send.

What is counted: no handler of ours raises, nothing outside `user_data` is read, named, made or changed, and the server goes on.
The suite sends three values to each event; TRAINING_PRO_STRANGERS=few sends every one to the events of some fields and four to those of
many, TRAINING_PRO_STRANGERS=all every one everywhere.
"""

import json
import os
import re
import uuid

import httpx
import pytest
from homes import NO_WEBUI, ROOT, WEBUI_PYTHON, Standalone, Webui

SECRET = "Xq7-secret-of-the-house"
TOKEN = "hf_Xq7TokenOfTheHouse"
PASSWORD = "Xq7-password"

SENT = ["../secret", "/etc/passwd", "~/.ssh/id_rsa", "~nobody", "C:\\Windows\\win.ini", "\\\\server\\share\\x", "nul", "a\0b", "a\ud800b", "x" * 300,
        ["../secret"], {"a": 1}, 5, True, None, "<img src=x onerror=alert(1)>", "user_data/logs", "out", "=1+1", ""]  # fmt: skip
NUMBERS = [None, -1, 10**300, -1e308, 0.5, True]
FEW = 4
ROUND = os.environ.get("TRAINING_PRO_STRANGERS", "suite")
# What may be made by somebody who may use the page: he may measure, and keep settings under a name
MADE = ("user_data/logs/evaluations", "user_data/training/presets/5.json")


class Stranger:
    """Somebody who has the page's address, and nothing else."""

    def __init__(self, home, auth=None):
        self.home, self.client = home, httpx.Client(base_url=home.url, timeout=60, trust_env=False)
        if auth:
            assert self.client.post("/login", data=dict(zip(("username", "password"), auth, strict=True))).status_code == 200
        answer = self.client.get("/config")
        self.page = answer.text
        self.config = answer.json()
        self.prefix = self.config.get("api_prefix", "")
        self.parts = {part["id"]: part for part in self.config["components"]}
        self.calls, self.shown = 0, []  # what was handed to the page's parts of HTML

    def handlers(self):
        """Every event of ours that takes values and comes to an end; of events that do the same with the same fields, one."""
        seen = set()
        for handler in self.config["dependencies"]:
            ours = any(str(self.parts[part]["props"].get("elem_id") or "").startswith("tp-") for part in [*handler["inputs"], *handler["outputs"]])
            same = (re.sub(r"_\d+$", "", str(handler["api_name"] or handler["id"])), tuple(handler["inputs"]))
            if ours and handler["inputs"] and handler.get("backend_fn", True) and not handler.get("js") and same not in seen:
                seen.add(same)
                yield handler

    def named(self, *inputs):
        """The event whose first fields have these ids."""
        for handler in self.handlers():
            if [self.parts[part]["props"].get("elem_id") for part in handler["inputs"]][: len(inputs)] == list(inputs):
                return handler
        raise AssertionError(f"no event takes {inputs}")

    def values(self, handler, **changed):
        """What a browser would send, with these fields changed by id."""
        parts = [self.parts[part] for part in handler["inputs"]]
        return [changed.get(part["props"].get("elem_id"), part["props"].get("value")) for part in parts]

    def call(self, handler, values, session=None):
        """The text of everything that is answered; each call is of a page of its own, unless one is named."""
        self.calls += 1
        session = session or uuid.uuid4().hex
        body = {"data": values, "fn_index": handler["id"], "session_hash": session, "event_data": None, "trigger_id": None}
        asked = self.client.post(f"{self.prefix}/queue/join", content=json.dumps(body), headers={"content-type": "application/json"})
        if asked.status_code != 200:
            return asked.text
        said = []
        try:
            with self.client.stream("GET", f"{self.prefix}/queue/data", params={"session_hash": session}) as answer:
                for line in answer.iter_lines():
                    said.append(line)
                    if '"msg":"process_completed"' in line.replace(" ", "") or '"msg":"close_stream"' in line.replace(" ", ""):
                        break
        except httpx.RemoteProtocolError as error:
            shown = [self.parts[part]["props"].get("elem_id") for part in handler["outputs"]]
            raise AssertionError(f"the answer for {shown} to {values!r} broke off after {said!r}:\n{self.home.said()[-3000:]}") from error
        told = [json.loads(line[5:]) for line in said if line.startswith("data:")]
        for part, value in ((self.parts[part], value) for each in told for part, value in zip(handler["outputs"], _data(each), strict=False)):
            value = value.get("value") if isinstance(value, dict) else value
            if part["type"] == "html" and isinstance(value, str):
                self.shown.append(value)
        return json.dumps(told, ensure_ascii=False)


def faults_of_ours(log):
    """The tracebacks that go through our code; what Gradio itself refuses, it writes down without us."""
    found = re.findall(r"Traceback \(most recent call last\):\n(?:[ \t].*\n|\n)+.*", log)
    package = "training_pro/|" + re.escape(str(ROOT)) + r"/(?!\.venv|tests/standin)"
    return [each for each in found if re.search(rf'File "(?:[^"]*{package})[^"]*\.py"', each) and "site-packages" not in each.splitlines()[-3]]


def everything(folder):
    """What stands on the disk around and in `user_data`, but for logs and caches."""
    kept = {}
    for path in folder.rglob("*"):
        if path.is_file() and not {"cache", "__pycache__", "server.log"} & set(path.relative_to(folder).parts) and not path.name.endswith(".lock"):
            kept[str(path.relative_to(folder))] = path.read_bytes()
    return kept


def plant(home):
    """Things that a stranger must not get at, and doors that lead to them."""
    (home.folder / "secret.txt").write_text(SECRET, encoding="utf-8")
    (home.folder / "secret.json").write_text(json.dumps([{"instruction": SECRET, "output": SECRET}]), encoding="utf-8")
    outside = home.folder / "outside"
    outside.mkdir()
    for name in ("training_parameters.json", "adapter_config.json"):
        (outside / name).write_text(json.dumps({"lora_name": SECRET, "train_only_after": SECRET}), encoding="utf-8")
    (outside / "samples.jsonl").write_text(json.dumps({"step": None, "prompt": SECRET, "answer": SECRET}) + "\n", encoding="utf-8")
    (outside / "secret.txt").write_text(SECRET, encoding="utf-8")
    (home.user_data / "logs").mkdir(exist_ok=True)
    (home.user_data / "logs" / "chat.json").write_text(json.dumps([{"instruction": SECRET, "output": SECRET}]), encoding="utf-8")
    os.symlink(home.folder / "secret.txt", home.datasets / "out.txt")
    os.symlink(home.folder / "secret.json", home.datasets / "out.json")
    (home.datasets / "tales").mkdir()
    os.symlink(home.folder / "secret.txt", home.datasets / "tales" / "out.txt")
    os.symlink(outside, home.loras / "out")
    (home.loras / "within").mkdir()
    for file in outside.iterdir():
        os.symlink(file, home.loras / "within" / file.name)


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
@pytest.mark.parametrize("kind", ["standalone", pytest.param("webui", marks=pytest.mark.skipif(not WEBUI_PYTHON.exists(), reason=NO_WEBUI))])
def test_a_stranger_gets_nothing_and_breaks_nothing(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    if kind == "standalone":
        home = Standalone(tmp_path, "--listen", "--auth", f"anna:{PASSWORD}")
    else:
        home = Webui(tmp_path)
    try:
        plant(home)
        if kind == "standalone":
            assert httpx.get(f"{home.url}/config", trust_env=False).status_code == 401
        stranger = Stranger(home, ("anna", PASSWORD) if kind == "standalone" else None)
        if kind == "standalone":  # the web UI's own tabs are its own matter
            _doors_of_the_server(stranger)
            _a_typed_path(stranger)
        before = everything(home.folder)
        told = [stranger.page]
        for handler in stranger.handlers():
            told += _payloads(stranger, handler)
        print(f"\n{stranger.calls} calls of {len(list(stranger.handlers()))} events in {kind}")
        after, log = everything(home.folder), home.said()
        assert home.process.poll() is None
        assert faults_of_ours(log) == []
        assert {name for name in before if before[name] != after.get(name)} == set()
        assert {name for name in set(after) - set(before) if not name.startswith(MADE)} == set()
        for words in (SECRET, "root:x:0", PASSWORD, TOKEN, *([str(home.folder)] if kind == "standalone" else [])):
            assert not [answer[max(0, answer.find(words) - 300) :][:600] for answer in told if words in answer]
        for words in (SECRET, PASSWORD, TOKEN):
            assert words not in log
        assert [
            shown[max(0, shown.find("<img src=x") - 300) :][:600] for shown in [*stranger.shown, *map(_html, told)] if "<img src=x" in shown
        ] == []
    finally:
        home.stop()


def _payloads(stranger, handler):
    """Each value in the place of every field that a name may stand in, and numbers in that of every number; Gradio refuses what is no choice."""
    parts = [stranger.parts[part] for part in handler["inputs"]]
    takes_names = [part["type"] == "textbox" or part["props"].get("allow_custom_value", False) for part in parts]
    takes_numbers = [part["type"] == "number" for part in parts]
    sent, numbers = SENT, NUMBERS
    if ROUND == "suite":
        sent, numbers = SENT[handler["id"] % 7 :: 7], NUMBERS[handler["id"] % 3 :: 3]
    elif ROUND == "few" and len(parts) > 20:
        sent = SENT[handler["id"] % 3 :: len(SENT) // FEW]
    plain = stranger.values(handler)
    for places, values in ((takes_names, sent), (takes_numbers, numbers)):
        for value in values if any(places) else []:
            given = [[value] if part["props"].get("multiselect") else value for part in parts]
            yield stranger.call(handler, [new if here else old for here, new, old in zip(places, given, plain, strict=True)])
    yield stranger.call(handler, ["../secret" for _ in parts])
    yield stranger.call(handler, [])


def _data(told):
    """The outputs' values, of what is answered in one piece; a later piece of an event may hold what is new alone."""
    output = told.get("output")
    data = output.get("data") if isinstance(output, dict) else None
    return data if isinstance(data, list) else []


def _html(answer):
    """The parts of an answer that look like HTML, also in pieces; what was sent and comes back as the value of its own field does too."""
    return " ".join(piece for piece in re.findall(r'"<(?:[^"\\]|\\.)*"', answer) if piece[1:-1] not in SENT)


def _doors_of_the_server(stranger):
    folder = stranger.home.folder
    for path in (folder / "secret.txt", "/etc/passwd", folder / "user_data" / "logs" / "chat.json", folder / "server.log"):
        answer = stranger.client.get(f"{stranger.prefix}/file={path}")
        assert answer.status_code in (403, 404) and SECRET not in answer.text
    sent = stranger.client.post(f"{stranger.prefix}/upload", files={"files": ("x.bin", b"x" * 100_000)})
    assert sent.status_code == 413


def _a_typed_path(stranger):
    """A model's folder outside `user_data`, by each of the names that lead to it."""
    os.symlink(ROOT / "demo" / "model", stranger.home.folder / "base")
    handler = stranger.named("tp-load-model", "tp-load-quantization")
    for name in (str(ROOT / "demo" / "model"), str(stranger.home.folder / "base"), "base", "./base", "../base", "~"):
        assert "is none of the models that are offered" in stranger.call(handler, [name, "none"])
