"""The tests of the rooms that touch transformers and peft, once more under the versions that the web UI of 2026-01 brings.

They take minutes, and most of what the other tests do is waiting for a page: so they are begun with the session, at low priority, and
their end is waited for by test_webui_versions.py, which comes last.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from homes import HERE, ROOT, WEBUI_PYTHON

ROOMS = ["untouched", "adapters", "train_utils", "continued", "dataset_tools", "try_it", "perplexity", "host", "callbacks", "needs", "step_kernels"]
_begun: list[tuple[subprocess.Popen, Path]] = []


def begin() -> None:
    """Begin, unless it was begun already."""
    if _begun:
        return
    folder = Path(tempfile.mkdtemp(prefix="older-"))
    (folder / "training_pro").symlink_to(ROOT, target_is_directory=True)  # the package, without installing anything there
    files = [str(HERE / f"test_{room}.py") for room in ROOMS]
    command = [str(WEBUI_PYTHON), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), *files]
    if nice := shutil.which("nice"):
        command = [nice, "-n", "10", *command]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    with open(folder / "said.txt", "w", encoding="utf-8") as said:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=subprocess.STDOUT)
    _begun.append((process, folder))
    atexit.register(_forget, process, folder)


def ended(seconds: float) -> tuple[int, str]:
    """Wait for the end: the exit code and what was said."""
    process, folder = _begun[0]
    try:
        code = process.wait(seconds)
    finally:
        said = (folder / "said.txt").read_text(encoding="utf-8", errors="replace")
    return code, said


def _forget(process: subprocess.Popen, folder: Path) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)
