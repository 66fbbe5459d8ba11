"""The command line, as a user types it: each call is a process of its own where exit codes and streams matter."""

import json
import os
import subprocess
import sys

import pytest
import yaml
from homes import HERE
from tiny import ROWS
from training_pro.__main__ import _auth, _first_line_of, _free_port, read_run
from training_pro.settings import SettingsError


def call(*arguments, cwd, **environment):
    command = [sys.executable, "-m", "training_pro", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240, env={**os.environ, **environment})
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def run_file(tmp_path, host, models_folder):
    values = {"lora_name": "cli", "dataset": "rows", "eval_dataset": "held", "format": "plain", "epochs": 1, "lora_rank": 8, "learning_rate": 5e-3,
              "model": str(models_folder / "llama"), "user_data": str(host.user_data)}  # fmt: skip
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def test_train_and_verify_and_perplexity(run_file, tmp_path, host, models_folder):
    code, out, err = call("verify", run_file, "--json", cwd=tmp_path)
    assert code == 0, err
    verified = json.loads(out.splitlines()[-1])
    assert {"blocks", "longest_block", "total_tokens", "trained_tokens", "dropped_rows", "trimmed_rows", "untrained_rows", "total_steps",
            "steps_per_epoch", "warmup_suggested", "cutoff_suggested"} <= set(verified)  # fmt: skip
    assert (verified["blocks"], verified["total_steps"]) == (40, 10)

    code, out, err = call("train", run_file, "--json", "--set", "warmup_steps=2", cwd=tmp_path)
    assert code == 0, err
    trained = json.loads(out.splitlines()[-1])
    assert set(trained) == {"status", "adapter", "steps", "train_loss", "eval_loss", "trained_tokens", "seconds"}
    assert (trained["status"], trained["steps"], trained["trained_tokens"]) == ("done", 10, verified["trained_tokens"])
    assert trained["eval_loss"] > 0 and (host.lora_dir / "cli" / "adapter_model.safetensors").is_file()
    assert "Traceback" not in err

    text = tmp_path / "text.txt"
    text.write_text("The fox lives in a den. " * 20, encoding="utf-8")
    arguments = [
        "perplexity",
        "--model",
        models_folder / "llama",
        "--user-data",
        host.user_data,
        "--text",
        text,
        "--stride",
        32,
        "--max-length",
        64,
        "--json",
    ]
    plain, adapted = (json.loads(call(*arguments, *more, cwd=tmp_path)[1].splitlines()[-1]) for more in ([], ["--lora", "cli"]))
    assert set(plain) == {"perplexity", "scored_tokens", "nll", "seconds"} and plain["scored_tokens"] == adapted["scored_tokens"]
    assert plain["perplexity"] != adapted["perplexity"]

    from training_pro import evaluations

    table = evaluations.read(host.evaluations_file)
    assert [(row["Model"], row["LoRAs"], row["Dataset"], float(row["Perplexity"])) for row in table] == [
        ("llama", "-", "text", plain["perplexity"]), ("llama", "cli", "text", adapted["perplexity"]),
    ]  # fmt: skip

    code, _, err = call("train", run_file, "--set", "lora_rank=16", cwd=tmp_path)  # the name is taken by a LoRA of another rank
    assert code == 2 and "its LoRA Rank is 8 and 16 is chosen" in err


def test_wrong_input_says_everything_and_exits_with_2(run_file, tmp_path):
    code, out, err = call("train", run_file, "--json", "--set", "lora_rank=0", "--set", "learning_rate=fast", "--set", "dataset=gone", cwd=tmp_path)
    assert code == 2 and out == ""
    for words in ("LoRA Rank is 0", "Learning Rate is “fast”", "Dataset: “gone.json” is not in the folder"):
        assert words in err
    assert "Traceback" not in err


def test_bad_data_exits_with_2_and_a_json_line(run_file, tmp_path, host):
    (host.datasets_dir / "rows.json").write_text(json.dumps([*ROWS, {"wrong": "x"}]), encoding="utf-8")
    code, out, err = call("train", run_file, "--json", cwd=tmp_path)
    assert code == 2 and json.loads(out.splitlines()[-1])["status"] == "failed" and "row 41" in err


def test_a_loss_that_goes_astray_is_no_wrong_input(run_file, tmp_path):
    (tmp_path / "faults.json").write_text('{"kind": "nan", "at": 3}', encoding="utf-8")
    code, out, err = call(
        "train", run_file, "--json", cwd=tmp_path, PYTHONPATH=str(HERE / "faults"), TRAINING_PRO_FAULTS=str(tmp_path / "faults.json")
    )
    trained = json.loads(out.splitlines()[-1])
    assert (code, trained["status"], trained["steps"]) == (1, "failed", 3) and "In its batch: block" in err


@pytest.mark.parametrize(
    ("text", "changes", "words"),
    [
        ("a: [", [], "not readable YAML: line 1, column 5"),
        ("- a", [], "must hold keys and values"),
        ("lora_name: x", ["lora_rnak=8"], "Did you mean “lora_rank”?"),
        ("lora_name: x", ["lora_rank"], "KEY=VALUE"),
        ("epochs: many", [], "Epochs is “many”"),
        ("model: 5", [], "model must be a text"),
    ],
)
def test_a_runs_file_that_cannot_be_used(tmp_path, text, changes, words):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        read_run(path, changes)
    assert words in str(caught.value)


def test_a_runs_file_and_its_changes(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("lora_name: 2024\nlearning_rate: 0.0001\nquantization: 4bit\nlora_rnk: 8", encoding="utf-8")
    settings, others, notices = read_run(path, ["epochs=0.5", "train_on_inputs=false", "model=demo", "train_only_after=### Response:"])
    assert (settings.lora_name, settings.learning_rate, settings.epochs, settings.train_on_inputs) == ("2024", "0.0001", 0.5, False)
    assert others == {"quantization": "4bit", "model": "demo"} and settings.train_only_after == "### Response:"
    assert any("lora_rnk" in notice for notice in notices) and any("Did you mean “lora_rank”" in notice for notice in notices)


def test_auth_and_ports(tmp_path):
    import socket

    assert _auth(None) is None and _auth("anna:se:cret") == ("anna", "se:cret")
    with pytest.raises(SettingsError):
        _auth("anna")
    kept = tmp_path / "password"
    kept.write_bytes(b"\xef\xbb\xbfanna:se cret\r\nmore\n")
    assert _auth(_first_line_of(kept)) == ("anna", "se cret")
    kept.write_bytes(b"\xff\xfe")
    for file, words in ((kept, "no text in UTF-8"), (tmp_path / "gone", "No such file")):
        with pytest.raises(SettingsError, match=words):
            _first_line_of(file)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert _free_port("127.0.0.1", port) != port
