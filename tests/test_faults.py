"""A few of the faults of faults/harness.py; every one of them by hand: `python tests/faults/harness.py`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).parent / "faults" / "harness.py"
WORKS = ["train", "train over an old one", "prepare", "split", "convert", "table of evaluations", "preset", "download"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the harness forks, and this system cannot")
def test_nothing_is_lost_where_a_write_is_the_last(tmp_path):
    command = [sys.executable, "-W", "ignore", str(HARNESS), "--most", "1", "--seed", "3", "--json", "--only", *WORKS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)
    assert [loss for row in found for loss in row["lost"]] == [] and done.returncode == 0
    assert {(row["work"], row["fault"]) for row in found} == {
        (work, fault) for work in WORKS for fault in ("killed", "disk full", "file size limited")
    }
    assert all(row["hit"] == 1 and row["writes"] >= 3 for row in found)
