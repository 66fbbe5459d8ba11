"""The house's own rules that a program can look at."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff_has_nothing_to_say(command):
    done = subprocess.run([sys.executable, "-m", "ruff", *command, "--no-cache", str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_module_has_the_name_of_a_package_that_a_library_looks_for():
    """Python's path begins with this folder where a program is run in it, and transformers would take ours for the package."""
    import importlib.metadata
    import inspect
    import re

    import transformers.utils.import_utils as looked_for

    ours = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    wanted = set(re.findall(r'_is_package_available\(\s*"([\w-]+)"', inspect.getsource(looked_for)))
    assert len(wanted) > 20 and not ours & wanted
    assert not (ours & set(importlib.metadata.packages_distributions())) - {"training_pro"}
