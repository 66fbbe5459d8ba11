"""The suite in two processes counts, shows and fails as in one."""

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = """
import sys
sys.path.insert(0, {tests!r})
import beside

def pytest_addoption(parser):
    parser.addoption("--reports")

def pytest_configure(config):
    config.pluginmanager.register(beside.Reporter(config, config.option.reports) if config.option.reports else beside.Beside())
"""
HERE = """
import os
def test_here():
    with open("here", "w") as file:
        file.write(str(os.getpid()))
"""
BESIDE = """
import os
import pytest

def test_there():
    with open("there", "w") as file:
        file.write(str(os.getpid()))

@pytest.mark.parametrize("shown", ["a", "ä\\u2028\\0"])
def test_that_fails(shown):
    assert shown == "a", "words of the other process"

@pytest.mark.skip(reason="not today")
def test_skipped():
    pass

@pytest.fixture
def broken():
    yield
    raise ValueError("in the end")

def test_whose_end_fails(broken):
    pass
"""


@pytest.fixture
def suite(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[tool.pytest.ini_options]\ntestpaths = ["."]\n', encoding="utf-8")
    (tmp_path / "conftest.py").write_text(CONFTEST.format(tests=str(Path(__file__).parent)), encoding="utf-8")
    (tmp_path / "test_here.py").write_text(HERE, encoding="utf-8")

    def run(beside):
        (tmp_path / "test_page.py").write_text(beside, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-ra"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=120)
        return done.returncode, done.stdout

    return run


def test_the_reports_of_both_are_one(suite, tmp_path):
    code, said = suite(BESIDE)
    assert code == 1 and "1 failed, 4 passed, 1 skipped, 1 error in" in said.rstrip().split("\n")[-1]
    assert "words of the other process" in said and "ValueError: in the end" in said and "not today" in said
    assert (tmp_path / "here").read_text() != (tmp_path / "there").read_text()


def test_all_is_well(suite):
    code, said = suite("def test_there():\n    pass\n")
    assert code == 0 and "2 passed in" in said.rstrip().split("\n")[-1]


def test_an_end_before_the_end_is_a_failure(suite):
    code, said = suite("import os\n\ndef test_first():\n    pass\n\ndef test_that_dies():\n    os._exit(0)\n")
    assert code == 1 and "the tests beside ended with 0, 1 of 2 of them done" in said
