"""What training needs that a host may lack: which packages are missing or broken, and the command that mends it.

Looking for a package is cheap and done when the page is built; importing it is slow and done when a run is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

# name of the import → name of the package
REQUIRED = {
    "torch": "torch",
    "transformers": "transformers",
    "peft": "peft",
    "accelerate": "accelerate",
    "datasets": "datasets",
    "safetensors": "safetensors",
    "pydantic": "pydantic",
    "yaml": "pyyaml",
}
# Not needed, but PEFT and transformers import them as soon as they are installed, so that a broken one breaks every run.
IMPORTED_WHEN_THERE = {"bitsandbytes": "bitsandbytes"}


def missing() -> list[str]:
    """The packages without which nothing can be trained and that are not installed, by the names that pip knows."""
    return [package for name, package in REQUIRED.items() if not _is_there(name)]


def install_command(*packages: str) -> str:
    """The command that installs packages into the very Python that runs this."""
    return f'"{sys.executable}" -m pip install {" ".join(packages)}'


def broken() -> list[str]:
    """A sentence with the command for each package that is missing or cannot be imported."""
    found = []
    wanted = {**REQUIRED, **{name: package for name, package in IMPORTED_WHEN_THERE.items() if _is_there(name)}}
    for name, package in wanted.items():
        if not _is_there(name):
            found.append(f"The package {package} is missing. Install it with this command, then start again: {install_command(package)}")
            continue
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken package raises whatever it likes
            said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
            found.append(
                f"The package {package} is installed but cannot be imported ({said}). "
                f"Mend it with this command, then start again: {install_command('--force-reinstall', '--no-deps', package)}"
            )
    return found


def _is_there(name: str) -> bool:
    if name in sys.modules:
        return sys.modules[name] is not None
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
