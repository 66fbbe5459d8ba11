"""start.py without installing anything: what it decides, and what it says. Each test loads a copy that lies in a folder of its own."""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

HERE = Path(__file__).resolve().parent.parent


def wait_for(happens, seconds=10):
    end = time.time() + seconds
    while time.time() < end:
        if happens():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def start(tmp_path):
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    for name in ("start.py", "pyproject.toml", "constraints.txt", "constraints-webui.txt"):
        shutil.copyfile(HERE / name, folder / name)
    spec = importlib.util.spec_from_file_location("start_under_test", folder / "start.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def calls(start, monkeypatch):
    """Every program that start.py would call to change something, in order; venv and pip succeed."""
    made = []

    def run(command, **_):
        if command[1:] == ["-m", "pip", "--version"]:  # a question
            if not start.environment_python().exists():
                raise FileNotFoundError(command[0])
            return SimpleNamespace(returncode=1 if start.environment_python().read_text() == "half-made" else 0)
        made.append(command)
        if command[1:3] == ["-m", "venv"]:
            python = start.environment_python()
            python.parent.mkdir(parents=True, exist_ok=True)
            python.write_text("whole")
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


def test_an_environment_whose_making_was_interrupted_is_made_anew(start, calls):
    python = start.environment_python()
    python.parent.mkdir(parents=True)
    python.write_text("half-made")
    start.main([])
    assert calls[0][1:] == ["-m", "venv", "--clear", str(start.ENVIRONMENT)] and start.is_installed("app")


def test_a_half_installed_package_is_installed_again(start, calls):
    start.main([])
    for name, mark in (("whole-1.dist-info", True), ("half-1.dist-info", False)):
        described = start.ENVIRONMENT / "lib" / "python3.11" / "site-packages" / name
        described.mkdir(parents=True)
        (described / "METADATA").touch()
        if mark:
            (described / "INSTALLER").write_text("pip\n")
    start.STAMP.unlink()
    start.main([])
    assert [described.name for described in start.site_packages().iterdir()] == ["whole-1.dist-info"]


def test_ctrl_c_while_it_installs_ends_pip_and_is_no_failure(start, calls, monkeypatch, capsys):
    def stop(command):
        raise KeyboardInterrupt

    monkeypatch.setattr(start, "install", stop)
    assert start.main([]) == 130
    assert "The next start goes on from here" in capsys.readouterr().out and not start.STAMP.exists()


def test_what_is_asked_for_decides_whether_to_install_again(start, calls, monkeypatch):
    monkeypatch.setattr(start, "make_webui_environment", lambda: None)
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


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "The disk is full"),
        ("ERROR: No matching distribution found for torch==2.13.0", "PyTorch has no build for"),
        ("ERROR: No matching distribution found for setuptools>=77", "Check the connection"),
    ],
)
def test_a_failed_install_says_what_to_do(start, said, told):
    assert told in start.advice(said)


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
        (["--listen", "--auth-file", "f"], ["ui", "--listen", "--auth-file", "f"]),
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

    commands = _parser()._subparsers._group_actions[0].choices
    told, taken = (
        {(*action.option_strings, *sorted(action.choices or ())) for action in parser._actions} for parser in (start.page_options(), commands["ui"])
    )
    assert told == taken
    assert set(start.COMMANDS) == set(commands)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("Collecting torch==2.13.0", None),
        ("  Downloading gradio-6.31.0-py3-none-any.whl (23.1 MB)\n", "downloading gradio (23.1 MB)"),
        ("Installing collected packages: a, b, c", "installing 3 packages …"),
        ("Installing collected packages: training-pro", "installing 1 package …"),
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


def test_what_pip_unpacks_lies_beside_the_environment_and_is_removed(start, monkeypatch):
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    start.ENVIRONMENT.mkdir()
    start.install([sys.executable, "-c", "import os; print(os.environ.get('TMPDIR'), os.environ.get('PYTHONPATH'))"])
    inside = None if os.name == "nt" else start.ENVIRONMENT / "tmp"
    assert start.LOG.read_text(encoding="utf-8").strip() == f"{inside} None" and not (start.ENVIRONMENT / "tmp").exists()


def test_a_long_step_is_told_again(start, capsys):
    with start.Progress("asking", silence=0.1) as progress:
        progress.show("unpacking")
        assert wait_for(lambda: capsys.readouterr().out.count("still unpacking"))


def test_pip_is_ended_when_the_installation_is(start, monkeypatch):
    def stop(line):
        raise KeyboardInterrupt

    start.ENVIRONMENT.mkdir()
    monkeypatch.setattr(start, "progress_line", stop)
    began = time.time()
    with pytest.raises(KeyboardInterrupt):
        start.install([sys.executable, "-uc", "import time; print('x'); time.sleep(60)"])
    assert time.time() - began < 30


def test_the_programs_exit_code_is_passed_on(start):
    assert start.call([sys.executable, "-c", "raise SystemExit(5)"], cwd=None) == 5


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
def test_told_to_end_it_tells_the_program(start):
    program = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(9)); print('up', flush=True); time.sleep(60)"
    source = f"import runpy, sys; call = runpy.run_path({str(start.HERE / 'start.py')!r})['call']; sys.exit(call([sys.executable, '-c', {program!r}], None))"
    outer = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, text=True)
    assert outer.stdout.readline() == "up\n"
    outer.terminate()
    assert outer.wait(30) == 9


def test_a_python_without_venv_says_what_to_install(start):
    said = "The virtual environment was not created successfully because ensurepip is not\navailable.  On Debian/Ubuntu systems, …"
    assert f"sudo apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv" in start.venv_problem(said)
    assert "Permission denied" in start.venv_problem("Error: [Errno 13] Permission denied: '.venv'\n")


def test_a_full_disk_is_refused_and_a_small_one_is_told(start, monkeypatch, capsys):
    monkeypatch.setattr(start.sys, "platform", "linux")
    for free, refused, warned in ((0.5, True, False), (5, False, True), (50, False, False)):
        monkeypatch.setattr(start.shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free * 2**30))
        assert ("Free some space" in (start.disk_problem(start.HERE) or "")) is refused
        assert ("CUDA" in capsys.readouterr().out) is warned


@pytest.mark.parametrize(("cuda", "hinted"), [("cuda: Optional[str] = None", True), ("cuda = None", True), ("cuda: Optional[str] = '13.0'", False)])
def test_a_card_that_pytorch_cannot_use_is_told(start, monkeypatch, capsys, cuda, hinted):
    build = start.ENVIRONMENT / "lib" / "python3.11" / "site-packages" / "torch" / "version.py"
    build.parent.mkdir(parents=True)
    build.write_text(f"__version__ = '2.13.0+cpu'\n{cuda}\nhip: Optional[str] = None\n", encoding="utf-8")
    monkeypatch.setattr(start.shutil, "which", lambda name: None)
    start.hint_at_card()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(start.shutil, "which", lambda name: name)
    start.hint_at_card()
    said = capsys.readouterr().out
    assert ("-m pip install --force-reinstall" in said and "torch==2.13.0 --index-url <the address shown there>" in said) is hinted
    assert bool(said) is hinted


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


def test_the_web_uis_versions_have_an_environment_of_their_own(start, calls, monkeypatch):
    assert start.webui_python_problem((3, 11)) is None and "this is 3.13" in start.webui_python_problem((3, 13))
    installed = []

    def install(command, log):
        installed.append((command, log))
        log.parent.mkdir(exist_ok=True)
        log.write_text("ERROR: no such version\n", encoding="utf-8")
        return len(installed) // 2  # the first succeeds

    monkeypatch.setattr(start, "install", install)
    assert start.make_webui_environment() is None and start.make_webui_environment() is None
    assert calls == [[sys.executable, "-m", "venv", "--clear", str(start.WEBUI_ENVIRONMENT)]]
    ((command, log),) = installed
    assert command[-2:] == ["-r", str(start.HERE / "constraints-webui.txt")] and log == start.WEBUI_ENVIRONMENT / "install.log"
    (start.HERE / "constraints-webui.txt").write_text("gradio==4", encoding="utf-8")
    assert "Installing the web UI's versions failed: ERROR: no such version" in start.make_webui_environment()


def test_the_tests_are_not_run_with_half_an_environment(start, calls, monkeypatch, capsys):
    monkeypatch.setattr(start, "webui_python_problem", lambda version: None)
    monkeypatch.setattr(start, "make_webui_environment", lambda: "Installing failed.")
    assert start.main(["test"]) == 2 and "Installing failed." in capsys.readouterr().err
    assert not any("pytest" in command for command in calls)
    monkeypatch.setattr(start, "webui_python_problem", lambda version: "Too new.")
    assert start.main(["test"]) == 7 and "Too new. The tests in the stand-in" in capsys.readouterr().out
