"""One run in a folder, over all processes."""

import os
import signal
import subprocess
import sys

import pytest
from training_pro import folder_lock
from training_pro.folder_lock import LOCK, Taken, alone_in, is_taken

HOLDING = """
import sys, time
from pathlib import Path
from training_pro.folder_lock import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDING, str(tmp_path / "sailor")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_nobody_trains_where_another_process_does(tmp_path, other, monkeypatch):
    monkeypatch.setattr(folder_lock, "WAIT", 0.1)
    folder = tmp_path / "sailor"
    assert is_taken(folder)
    with pytest.raises(Taken, match="“sailor” is being trained by another program"), alone_in(folder):
        pass
    assert is_taken(folder)  # having asked took nothing from it
    assert not is_taken(tmp_path / "cook")


def test_a_process_that_was_killed_holds_nothing(tmp_path, other):
    folder = tmp_path / "sailor"
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert (folder / LOCK).exists() and not is_taken(folder)
    with alone_in(folder):
        assert is_taken(folder)
    assert not folder.exists()  # nothing had come into being


def test_a_lock_that_cannot_be_removed_hides_no_reason(tmp_path, monkeypatch):
    def denied(*given, **named):
        raise PermissionError(13, "Permission denied", LOCK)

    with pytest.raises(ZeroDivisionError), alone_in(tmp_path / "sailor"):
        monkeypatch.setattr(os, "unlink", denied)
        raise ZeroDivisionError
    monkeypatch.undo()
    assert (tmp_path / "sailor" / LOCK).exists() and not is_taken(tmp_path / "sailor")


def test_what_came_into_being_stays_and_the_lock_goes(tmp_path):
    folder = tmp_path / "loras" / "sailor"
    with pytest.raises(ValueError), alone_in(folder):
        (folder / "adapter_config.json").write_text("{}")
        raise ValueError
    assert [entry.name for entry in folder.iterdir()] == ["adapter_config.json"] and not is_taken(folder)
