"""The benchmarks that nobody here can run as they are meant still run at toy size."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_table_for_graphics_cards_at_toy_size():
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--toy"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| none | 64 | ours | 2 |")]
    assert len(rows) == 1 and float(rows[0][5].replace(",", "")) > 0, done.stdout


def test_one_command_knows_every_table():
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks"), "--list"], capture_output=True, text=True, timeout=60)
    listed = set(done.stdout.split())
    assert listed == {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"__main__", "corpus"}
