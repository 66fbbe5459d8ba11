"""Names become paths here and nowhere else, and files are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

# Windows refuses these as file names whatever their ending, so a run named so could not be moved there.
_RESERVED = {"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)}
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
_LONGEST_NAME = 200  # bytes: 255 is the usual limit of a file system, and endings such as "-epoch-3" are added


def name_problem(name: str) -> str | None:
    """Say in half a sentence why `name` cannot be one file or folder name on every platform; None when it can."""
    if not name.strip():
        return "is empty; type a name"
    if name != name.strip() or name.endswith("."):
        return f"“{name}” begins or ends with a space or ends with a dot; remove it"
    if name in (".", "..") or name.startswith("~"):
        return f"“{name}” leads out of its folder; type a plain name"
    if forbidden := _FORBIDDEN.search(name):
        shown = forbidden.group() if forbidden.group().isprintable() else f"character number {ord(forbidden.group())}"
        return f"“{name}” holds “{shown}”, which no file name may hold; use letters, digits, “-”, “_”, spaces and dots"
    if name.split(".")[0].rstrip().lower() in _RESERVED:
        return f"“{name}” is a name that Windows keeps for itself; type another"
    if len(name.encode("utf-8", "surrogatepass")) > _LONGEST_NAME:
        return f"is {len(name)} characters long; shorten it to at most {_LONGEST_NAME}"
    return None


def path_in(folder: Path, name: str, ending: str = "") -> Path:
    """The path of `name + ending` directly inside `folder`.

    Raises:
        ValueError: the name is not a single component, or a link of that name leads out of the folder.
    """
    if problem := name_problem(name):
        raise ValueError(f"The name {problem}.")
    path = Path(folder) / f"{name}{ending}"
    if path.is_symlink() and not path.resolve().is_relative_to(Path(folder).resolve()):
        raise ValueError(f"“{name}” is a link that leads out of {Path(folder).name}; use the file itself.")
    return path


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader, or the next start after a power cut, finds the old file or the new one."""
    with whole_file(path) as file:
        file.write(text.encode("utf-8"))


@contextlib.contextmanager
def whole_file(path: Path):
    """Yield a binary file to write; it takes the place of `path` only when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def whole_folder(path: Path):
    """Yield a folder beside `path` to fill; it takes the place of `path` only when the block ends without an error.

    The name begins with a dot, so that neither a list of adapters nor a list of checkpoints ever shows half a one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    try:
        yield part
        for file in part.rglob("*"):
            if file.is_file():
                _flush_to_disk(file)
        if path.exists():
            shutil.rmtree(path)
        part.chmod(0o755)  # mkdtemp makes it readable by its owner alone
        os.replace(part, path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _flush_to_disk(file: Path) -> None:
    with open(file, "rb+") as handle:
        os.fsync(handle.fileno())


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sort key that puts “part 2” before “part 10”."""
    return [(0, int(piece)) if piece.isdecimal() else (1, piece.lower()) for piece in re.split(r"(\d+)", name) if piece]
