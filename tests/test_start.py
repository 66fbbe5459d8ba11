"""start.py without installing anything: what it decides, and what it says. Each test loads a copy that lies in a folder of its own."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

HERE = Path(__file__).resolve().parent.parent


@pytest.fixture
def start(tmp_path):
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    for name in ("start.py", "pyproject.toml", "constraints.txt"):
        shutil.copyfile(HERE / name, folder / name)
    spec = importlib.util.spec_from_file_location("start_under_test", folder / "start.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def calls(start, monkeypatch):
    """Every program that start.py would call, in order; venv and pip succeed."""
    made = []

    def run(command, **_):
        made.append(command)
        if command[1:3] == ["-m", "venv"]:
            python = start.environment_python()
            python.parent.mkdir(parents=True)
            python.touch()
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(start.subprocess, "run", run)
    monkeypatch.setattr(start, "install", lambda command: made.append(command) or 0)
    monkeypatch.setattr(start, "call", lambda command, cwd: made.append(command) or 7)
    monkeypatch.setattr(start, "disk_problem", lambda folder: None)
    monkeypatch.setenv("TRAINING_PRO_BROWSER", "/some/browser")
    return made


def test_the_first_start_installs_and_the_second_does_not(start, calls):
    assert start.main(["--port", "8000", "--quantization", "4bit"]) == 7
    assert [command[1:3] for command in calls[:2]] == [["-m", "venv"], ["-m", "pip"]]
    assert calls[1][-2:] == ["-e", f"{start.HERE}[app]"] and "-c" in calls[1]
    assert calls[2][1:] == ["-m", "training_pro", "ui", "--port", "8000", "--quantization", "4bit"]
    assert start.main([]) == 7 and calls[3][1:] == ["-m", "training_pro", "ui"] and len(calls) == 4


def test_an_interrupted_install_is_mended(start, calls):
    start.main([])
    start.STAMP.unlink()
    start.main([])
    assert [command[1:3] for command in calls] == [["-m", "venv"], ["-m", "pip"], ["-m", "training_pro"], ["-m", "pip"], ["-m", "training_pro"]]


def test_what_is_asked_for_decides_whether_to_install_again(start, calls):
    start.main(["test", "-k", "x"])
    assert calls[1][-1].endswith("[app,dev]") and calls[2][1:] == ["-m", "pytest", "-k", "x"]
    start.main([])
    assert len(calls) == 4  # the tests' set has all that the page needs
    (start.HERE / "constraints.txt").write_text("newer", encoding="utf-8")
    assert not start.is_installed("app")


def test_a_failed_install_says_what_pip_said_and_leaves_no_stamp(start, calls, monkeypatch, capsys):
    def fail(command):
        start.LOG.write_text("one\nERROR: no space left\n", encoding="utf-8")
        return 1

    monkeypatch.setattr(start, "install", fail)
    assert start.main([]) == 2
    assert "ERROR: no space left" in capsys.readouterr().err and not start.STAMP.exists()


@pytest.mark.parametrize("version", [(3, 9), (2, 7)])
def test_an_old_python_is_refused(start, version):
    assert f"This is Python {version[0]}.{version[1]}" in start.python_problem(version)
    assert start.python_problem((3, 10)) is None and start.python_problem((3, 14)) is None


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ([], ["ui"]),
        (["ui", "--listen"], ["ui", "--listen"]),
        (["--model", "a/b", "--auth", "u:p"], ["ui", "--model", "a/b", "--auth", "u:p"]),
        (["train", "run.yaml", "--set", "epochs=1"], ["train", "run.yaml", "--set", "epochs=1"]),
        (["perplexity", "--help"], ["perplexity", "--help"]),
    ],
)
def test_arguments_are_passed_on(start, given, passed):
    assert start.program_arguments(given) == passed


def test_help_and_wrong_words_need_no_install(start, calls, capsys):
    for arguments in (["--help"], ["--port", "many"]):
        with pytest.raises(SystemExit):
            start.main(arguments)
    assert start.main(["trian"]) == 2 and "no command “trian”" in capsys.readouterr().err
    assert calls == []


def test_the_page_knows_the_same_options(start):
    from training_pro.__main__ import _parser

    for action in start.page_options()._actions[1:]:
        value = {"quantization": ["4bit"], "port": ["1"]}.get(action.dest, ["x"]) if action.nargs is None else []
        assert hasattr(_parser().parse_args(["ui", action.option_strings[0], *value]), action.dest)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("Collecting torch==2.13.0", None),
        ("  Downloading gradio-6.31.0-py3-none-any.whl (23.1 MB)\n", "downloading gradio (23.1 MB)"),
        ("Installing collected packages: a, b, c", "installing 3 packages …"),
        ("ERROR: nothing found\n", "ERROR: nothing found"),
    ],
)
def test_what_is_shown_of_pips_output(start, line, shown):
    assert start.progress_line(line) == shown


def test_pip_really_runs_with_its_output_in_the_log(start, capsys):
    start.ENVIRONMENT.mkdir()
    code = start.install([sys.executable, "-c", "print('Downloading x-1.whl (2 MB)'); print('quiet'); raise SystemExit(3)"])
    assert code == 3 and "downloading x (2 MB)" in capsys.readouterr().out
    assert start.LOG.read_text(encoding="utf-8").split("\n")[:2] == ["Downloading x-1.whl (2 MB)", "quiet"]


def test_a_python_without_venv_and_a_full_disk_say_what_to_do(start, monkeypatch):
    assert "-venv" in start.venv_problem("ensurepip is not available")
    monkeypatch.setattr(start.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    assert "Free some space" in start.disk_problem(start.HERE)


def test_why_there_is_no_browser(start, monkeypatch):
    monkeypatch.delenv("TRAINING_PRO_BROWSER", raising=False)
    monkeypatch.setattr(start.shutil, "which", lambda name: None)
    assert start.find_browser() is None and "name one in TRAINING_PRO_BROWSER" in start.install_browser()
    monkeypatch.setattr(start.shutil, "which", lambda name: "/usr/bin/" + name)
    monkeypatch.setattr(start.os, "geteuid", lambda: 1000, raising=False)
    assert "is not root" in start.install_browser()
    monkeypatch.setattr(start.os, "geteuid", lambda: 0, raising=False)
    monkeypatch.setattr(start.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=100, stdout="", stderr="E: no network"))
    assert start.install_browser() == "“apt-get update” failed: E: no network."


def test_it_needs_nothing_but_the_standard_library():
    code = f"import runpy; runpy.run_path(r'{HERE / 'start.py'}', run_name='not_main')"
    assert subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True).returncode == 0
