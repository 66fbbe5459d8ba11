"""A few of the faults of faults/harness.py; every one of them by hand: `python tests/faults/harness.py`."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_pro import resume

HARNESS = Path(__file__).parent / "faults" / "harness.py"
PART = "1/3"  # of all pairs of a work and a fault


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the harness forks, and this system cannot")
def test_nothing_is_lost_whatever_happens_at_a_write_a_read_or_a_step(tmp_path):
    command = [sys.executable, "-W", "ignore", str(HARNESS), "--most", "1", "--seed", "3", "--json", "--part", PART]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert [loss for row in found for loss in row["lost"]] == [] and done.returncode == 0
    assert {row["fault"] for row in found} - {"disk really full"} == {
        "killed", "disk full", "folder read-only", "drive gone", "file vanishes", "file cut in mid-read", "loss no number", "out of memory",
        "callback crashes", "file size limited",
    }  # fmt: skip
    assert len({row["work"] for row in found}) == 11 and all(row["hit"] == 1 and row["places"] >= 1 for row in found)


@pytest.fixture
def server(tmp_path):
    from homes import Standalone

    # A shell lets what it begins with “&” ignore Ctrl-C, and so do the processes that are begun by that; the server is to hear it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    home = Standalone(tmp_path, faults=True)
    yield home
    if home.process.poll() is None:
        home.stop()
    signal.signal(signal.SIGINT, before)


def in_mid_run(home, name="mine"):
    """Begin a run by the page's own event, and wait until it is well on its way."""
    from load import event, logged
    from test_strangers import Stranger

    page = Stranger(home)
    handler = event(page, "tp-start", "click")
    page.call(handler, page.values(handler, **{"tp-lora_name": name, "tp-dataset": "sample-alpaca", "tp-format": "alpaca-format", "tp-epochs": 30}))
    for _ in range(600):
        diary = home.loras / name / "run.jsonl"
        if diary.exists() and sum(entry["event"] == "log" for entry in logged(home, name)) > 5:
            return
        time.sleep(0.1)
    raise AssertionError(home.said())


def shown_after_a_restart(home):
    """What the status of the page says when it is opened: the events of a page that loads."""
    from load import opened
    from test_strangers import Stranger

    home.start()
    page = Stranger(home)
    return "".join(page.call(handler, page.values(handler)) for handler in opened(page)[0])


def test_ctrl_c_in_mid_run_ends_it_after_its_step_and_saves_it(server):
    in_mid_run(server)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 0
    said = server.said()
    assert "Ending the run after this step and saving it" in said and "Traceback" not in said
    assert (server.loras / "mine" / "adapter_model.safetensors").is_file() and resume.unfinished(server.loras / "mine") is not None
    shown = shown_after_a_restart(server)
    assert "Interrupted" in shown and "can go on from step" in shown


def test_ctrl_c_twice_leaves_at_once_and_what_was_saved_can_go_on(server):
    in_mid_run(server)
    for _ in range(2):
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.7)
    assert server.process.wait(60) is not None
    assert "Traceback" not in server.said()
    whole = resume.unfinished(server.loras / "mine")
    shown = shown_after_a_restart(server)
    assert ("can go on from step" in shown) == (whole is not None)
    assert "Cut off at step" in shown or "Interrupted" in shown
