"""The rooms that touch transformers and peft, tested once more under the versions that the web UI of 2026-01 brings."""

import os
import subprocess

import pytest
from homes import HERE, NO_WEBUI, ROOT, WEBUI_PYTHON

ROOMS = ["untouched", "adapters", "train_utils", "continued", "dataset_tools", "try_it", "perplexity", "host", "callbacks", "needs"]


@pytest.mark.skipif(not WEBUI_PYTHON.exists(), reason=NO_WEBUI)
@pytest.mark.timeout(1200)
def test_the_same_tests_pass_under_the_web_uis_versions(tmp_path):
    (tmp_path / "training_pro").symlink_to(ROOT, target_is_directory=True)  # the package, without installing anything there
    files = [str(HERE / f"test_{room}.py") for room in ROOMS]
    done = subprocess.run(
        [str(WEBUI_PYTHON), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), *files],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True, timeout=1100,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
