"""Bad input for every reader: out comes a result or a sentence, never another exception, a hang, or memory without bound.

The suite's round is short; `python tests/test_fuzz.py 2000` tries that many inputs on each reader, or on those that are named after it, and prints the
table of docs/reliability.md.
"""

import gzip
import io
import json
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed
from hypothesis import settings as rounds
from hypothesis import strategies as st
from training_pro import compare, continued, diary, evaluations, presets, resume, samples, views
from training_pro.__main__ import read_run
from training_pro.chat_templates import TemplateError, read_template
from training_pro.dataset_tools import by_key_set, format_row, messages_of, read_format
from training_pro.presets import PresetError
from training_pro.rows import DataError, read_rows, read_text
from training_pro.settings import OPTIONS, SettingsError, TrainingSettings

SAID = (DataError, SettingsError, PresetError, TemplateError)  # our own sentences
SHORT = 40


# Each reader, with what the page makes of its result


def _settings(folder, data):
    found, problems, notices = TrainingSettings.load_leniently(_write(folder / "training_parameters.json", data))
    _shown([*problems, *notices, json.dumps(found.on_the_page())])


def _run_file(folder, data):
    found, others, notices = read_run(_write(folder / "run.yaml", data), [])
    _shown([*notices, str(others), json.dumps(found.entered())])


def _format(folder, data):
    entries = by_key_set(read_format(_write(folder / "format.json", data)))
    _shown([str(format_row({"instruction": "a%output%", "output": "b"}, entries))])


def _rows(ending):
    def read(folder, data):
        rows = read_rows(_write(folder / f"rows{ending}", data))
        _shown([str(messages_of(row)) for row in rows[:50]])

    return read


def _text(folder, data):
    _shown([read_text(_write(folder / "text.txt", data))])


def _adapter(folder, data):
    import torch

    _write(folder / "adapter_config.json", data)
    (folder / "adapter_model.safetensors").touch()
    if (old := continued.finished(folder)) is not None:
        model = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(1, 1)})
        _shown([*continued.differences(old, TrainingSettings(), model, "model"), views.trained_on(old, [], None)])


def _saved_run(name):
    def read(folder, data):
        _write(folder / name, data)
        run = compare.load_run(folder)
        _shown([compare.compare_html([run, run]), compare.compare_html([run], by="epoch")])
        _write(folder / "adapter_config.json", b"{}")
        (folder / "adapter_model.safetensors").touch()
        _shown([str(continued.finished(folder).step)])

    return read


def _diary(folder, data):
    _write(folder / "run.jsonl", data)
    _shown([views.status(diary.read_back(folder)), str(diary.diverged(folder))])


def _evaluations(name):
    def read(folder, data):
        _write(folder / name, data)
        table = folder / "evaluations.csv"
        rows = evaluations.read(table)
        _shown([evaluations.export_csv(evaluations.chosen(rows, "a", sort)) for sort in evaluations.SORTS])
        _shown([str(evaluations.lost(table)), str(evaluations.measured_before(table, {"model": "a"}))])

    return read


def _template(ending):
    return lambda folder, data: _shown([read_template(_write(folder / f"template{ending}", data))])


def _preset(folder, data):
    _write(folder / "preset.json", data)
    found, said = presets.load_preset(folder, "preset")
    _shown([*said, json.dumps(found.on_the_page())])


def _samples(folder, data):
    _write(folder / samples.FILE, data)
    _shown([samples.samples_html(samples.read(folder))])


def _unfinished(folder, data):
    (part := folder / "checkpoint-5").mkdir(exist_ok=True)
    _write(part / "adapter_config.json", b"{}")
    for name in ("adapter_model.safetensors", resume.TENSORS):
        (part / name).touch()
    _write(part / resume.NUMBERS, data)
    if (found := resume.unfinished(folder)) is not None:
        plan = resume.compare(found, TrainingSettings(), None, None)
        _shown([views.outlook(plan, False), plan.problem(), str(found.losses)])


READERS = {
    "settings": _settings, "a run's file": _run_file, "format": _format, "JSON rows": _rows(".json"), "JSONL rows": _rows(".jsonl"),
    "CSV rows": _rows(".csv"), "Parquet rows": _rows(".parquet"), "text": _text, "adapter_config.json": _adapter,
    "training_log.json": _saved_run("training_log.json"), "training_graph.json": _saved_run("training_graph.json"), "run.jsonl": _diary,
    "evaluations.csv": _evaluations("evaluations.csv"), "evaluations.details.json": _evaluations("evaluations.details.json"),
    "template (Jinja)": _template(".jinja"), "template (YAML)": _template(".yaml"), "preset": _preset, "samples.jsonl": _samples,
    "resume.json": _unfinished,
}  # fmt: skip


def _write(path, data):
    path.write_bytes(data)
    return path


def _shown(texts):
    """A page can send it, and it says something in a bearable length."""
    for text in texts:
        text.encode("utf-8")


def attempt(reader, data):
    """Read these bytes; True where they were taken, False where a sentence said why not. Whatever else is raised, is a fault."""
    with tempfile.TemporaryDirectory() as folder:
        (inner := Path(folder) / "run").mkdir()
        try:
            READERS[reader](inner, data)
            return True
        except (*SAID, ValueError) as error:
            if not isinstance(error, SAID) and not (type(error) is ValueError and reader.startswith("evaluations")):
                raise
            assert str(error).strip() and len(str(error)) < 5000, str(error)[:200]
            _shown([str(error)])
            assert folder not in str(error), str(error)  # the page shows it
            return False


# What comes in


def _parquet(rows):
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, compression="zstd")
    return file.getvalue()


CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
LOGGED = {"current_steps": 3, "loss": 1.5, "learning_rate": 3e-4, "epoch": 0.5, "base_model_name": "base", "train_runtime": 3}
EVENTS = [{"event": "start", "step": 0, "time": 1.0, "settings": {"lora_name": "a"}, "report": {"blocks": 3}},
          {"event": "log", "step": 1, "time": 2.0, **LOGGED}, {"event": "end", "step": 3, "time": 3.0, "status": "done", "message": "Saved"}]  # fmt: skip
TABLE = "Model,LoRAs,Dataset,Perplexity,stride,max_length,Date,Comment\nbase,-,tale,3.5,512,0,2026-01-01 10:00:00,=1+1\n"
DETAILS = {'["base"]': {"row": dict.fromkeys(evaluations.COLUMNS, "a"), "identity": {"model": "a"}}}
NUMBERS = {
    "format": 1, "optimizer_step": 2, "step": 4, "total_steps": 8, "epoch": 0.5, "settings": {"lora_rank": 8}, "base": {"Base model": "a"},
    "data": {"blocks": 3, "tokens": 4, "sha256": "aa"}, "libraries": {"torch": "2"}, "counters": {}, "backup": "", "backup_goes": False,
    "progress": {"history": [LOGGED], "earlier": [], "steering": [], "checkpoints": [], "earlier_steps": 0, "earlier_epochs": 0},
}  # fmt: skip
ADAPTER = {"peft_type": "LORA", "r": 32, "lora_alpha": 64, "target_modules": ["q_proj"], "modules_to_save": None, "base_model_name_or_path": "a/base"}
WHOLE = [TrainingSettings().entered(), {"instruction,output": "Q: %instruction%"}, [{"instruction": "a", "output": "b"}], [CHAT], LOGGED, [LOGGED],
         DETAILS, NUMBERS, ADAPTER, {"instruction_template": "{{ messages }}"}]  # fmt: skip
FILES = [
    *(json.dumps(each).encode() for each in WHOLE),
    "".join(json.dumps(each) + "\n" for each in [CHAT, *EVENTS, {"step": None, "prompt": "a", "answer": "b"}]).encode(),
    TABLE.encode(), _parquet([{"instruction": "a", "output": "b", "n": 1}] * 3), b"lora_name: a\nmodel: demo\nepochs: 1\n", "“Ä” 日本\n\n\n".encode(),
]  # fmt: skip

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
NASTY = [
    b'{"\\ud800": 1}',
    b"", b"\0", b"\xff\xfe{\0}\0", b"\xef\xbb\xbf", b"null", b"[" * 200_000, b'{"a":' * 200_000, b"9" * 100_000, b"[" + b"9" * 5_000 + b"]", b"1e999",
    b'{"epochs": 1e999, "lora_rank": 1e300}', b'{"lora_name": "\\ud800"}', b'{"add_bos_token": "\\ud800"}', b'{"\\ud800lora_name": ""}',
    b'{"instruction_template": "\\ud800"}', b'{"instruction_template": "\\udbff\\udbff"}', b'{"instruction_template": "\\udc00\\ud800"}',
    b'["\\ud800"]', b'{"a": NaN, "b": -Infinity}', b"- " * 20_000,
    b'{"dataset": {"a": ["b"]}, "optimizer": [1], "learning_rate": {"a": 1}}', b"\xed\xa0\x80", b"\r" * 1000, b'"' * 100_001, b"a,b\n" + b'"x' * 99_999,
    LAUGHS.encode(), (LAUGHS + "instruction_template: *i\nlora_name: *i\nepochs: *i\n").encode(), b"!!python/object/apply:os.system [ls]", b"? " * 5000,
    b"PAR1" + b"\0" * 100 + b"PAR1", gzip.compress(b"\0" * 10**7), b"{{" * 10_000, b"[" + b"1," * 100_000 + b"1]", b"a: *b", b"\x1b[31m<script>",
    _parquet([{"text": "x" * 10_000_000}] * 50), json.dumps([{"current_steps": 10**400, "loss": 10**400, "epoch": 1e308}] * 2).encode(),
    json.dumps({**ADAPTER, "r": 10**400, "lora_alpha": 10**400, "target_modules": {"a": None}, "modules_to_save": 5}).encode(),
    json.dumps({**NUMBERS, "step": "x", "total_steps": None, "libraries": [], "base": 5}).encode(),
    "".join(json.dumps({**each, "step": 10**400, "time": 1e308, "total_steps": 10**400, "epoch": 10**400}) + "\n" for each in EVENTS).encode(),
]  # fmt: skip

KEYS = sorted({*OPTIONS, *LOGGED, *ADAPTER, *NUMBERS, *EVENTS[1], "messages", "role", "content", "instruction", "output", "text", "row", "identity",
               "instruction_template", "history", "prompt", "answer", "status", "commands", "kind", "value"})  # fmt: skip
ATOMS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([10**19, -(10**400), 2**63, 1e308, 1e-320, float("nan"), float("inf"), -0.0]),
    st.floats(), st.text(max_size=8), st.sampled_from(["None", "\ud800", "\0", "../x", "1e999", "start", "log", "end", "checkpoint-5", "Backup-x", "=1"]),
)  # fmt: skip
VALUES = st.recursive(
    ATOMS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=6), max_leaves=12
)


@st.composite
def _changed(draw):
    """A whole file of some reader, one of whose values is another."""
    value = json.loads(json.dumps(draw(st.sampled_from([*WHOLE, *EVENTS]))))
    spot = value
    while True:
        inner = [key for key in (spot if isinstance(spot, dict) else range(len(spot))) if isinstance(spot[key], (dict, list)) and spot[key]]
        if not inner or draw(st.booleans()):
            break
        spot = spot[draw(st.sampled_from(inner))]
    for key in draw(st.lists(st.sampled_from(list(spot) if isinstance(spot, dict) else list(range(len(spot)))), max_size=4)):
        spot[key] = draw(VALUES)
    return json.dumps(value).encode() + draw(st.sampled_from([b"", b"\n", b"\n{}"]))


@st.composite
def _broken(draw):
    """A whole file with some bytes lost, doubled or others."""
    data = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, len(data))), draw(st.integers(0, 8))
        data[at : at + length] = draw(
            st.binary(max_size=8) | st.sampled_from([b"", b"\0", b"\xff", b'"', b"{", b"[", b"9" * 30, b",", b"\n", b"\\ud800"])
        )
    return bytes(data)


BYTES = st.one_of(
    _changed(), _broken(), VALUES.map(lambda value: json.dumps(value).encode()), st.binary(max_size=60), st.sampled_from(FILES),
    st.lists(VALUES, max_size=4).map(lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode()),
)  # fmt: skip


def fuzz(reader, count, number=1):
    """Try so many inputs, and all of NASTY; how many were taken and how many refused with a sentence."""
    taken = [attempt(reader, data) for data in NASTY]

    @seed(number)
    @rounds(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(BYTES)
    def one(data):
        taken.append(attempt(reader, data))

    one()
    return sum(taken), len(taken) - sum(taken)


@pytest.mark.parametrize("reader", READERS)
def test_bad_input_is_a_result_or_a_sentence(reader):
    fuzz(reader, SHORT)


if __name__ == "__main__":
    import resource
    import traceback

    failed = 0
    print("| reader | inputs | taken | refused with a sentence | seconds | peak of the process, MB |\n|---|---|---|---|---|---|")
    for name in sys.argv[2:] or READERS:
        began = time.monotonic()
        try:
            taken, refused = fuzz(name, int(sys.argv[1]))
        except Exception:  # the other readers have their turn too
            traceback.print_exc()
            print(f"| {name} | **a defect**, see above | | | {time.monotonic() - began:.0f} | |", flush=True)
            failed += 1
            continue
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(f"| {name} | {taken + refused:,} | {taken:,} | {refused:,} | {time.monotonic() - began:.0f} | {peak:,} |", flush=True)
    sys.exit(1 if failed else 0)
