"""Names become paths here and nowhere else, and files are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

# Windows refuses these as file names whatever their ending, so a run named so could not be moved there.
_RESERVED = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {f"{port}{n}" for port in ("com", "lpt") for n in "123456789¹²³"}
_FORBIDDEN = '<>:"/\\|?*'
_LONGEST_NAME = 200  # bytes: 255 is the usual limit of a file system, and endings such as "-epoch-3" are added

# Letters and signs by their category that are drawn as nothing: combining grapheme joiner, fillers of Hangul and Khmer, the empty Braille cell.
_DRAWN_AS_NOTHING = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
_JOINERS = "\u200c\u200d"  # Persian, Indian scripts and emoji are spelled with them


def name_problem(name: str) -> str | None:
    """Say in half a sentence why `name` cannot be one file or folder name on every platform; None when it can."""
    if not isinstance(name, str):  # a request made by hand may hold anything
        return "is not a text; type a name"
    if not name.strip():
        return "is empty; type a name"
    if name != name.strip() or name.endswith("."):
        return f"“{shown_name(name)}” begins or ends with a space or ends with a dot; remove it"
    if name.startswith("~"):
        return f"“{shown_name(name)}” leads out of its folder; type a plain name"
    for place, character in enumerate(name):
        if character in _FORBIDDEN:
            return f"“{shown_name(name)}” holds “{character}”, which no file name may hold; use letters, digits, “-”, “_”, spaces and dots"
        if _is_hidden(name, place):
            return f"“{shown_name(name)}” holds the character U+{ord(character):04X}, which cannot be seen; type the name without it"
    if name.split(".")[0].rstrip().lower() in _RESERVED:
        return f"“{name}” is a name that Windows keeps for itself; type another"
    if len(name.encode("utf-8")) > _LONGEST_NAME:
        return f"is {len(name)} characters long; shorten it to at most {_LONGEST_NAME}"
    return None


def shown_name(name: str) -> str:
    """`name` as a message can hold it: at most 60 characters, and what cannot be seen written as its number."""
    seen = "".join(f"<U+{ord(character):04X}>" if _is_hidden(name, place) else character for place, character in enumerate(name[:61]))
    return seen if len(name) <= 60 else f"{seen}…"


def _is_hidden(name: str, place: int) -> bool:
    """Whether the character is drawn as nothing, changes how its neighbours are drawn, or is none (half of a pair, a noncharacter)."""
    character = name[place]
    if character.isascii():
        return not character.isprintable()
    if character in _JOINERS:
        around = name[place - 1 : place] + name[place + 1 : place + 2]
        return len(around) < 2 or any(other.isascii() or unicodedata.category(other) == "Cf" for other in around)
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") or character in _DRAWN_AS_NOTHING:
        return True
    return ord(character) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(character) <= 0xFDEF


def path_in(folder: Path, name: str, ending: str = "") -> Path:
    """The path of `name + ending` directly inside `folder`. The folder itself may be a link: that is the user's own decision.

    Raises:
        ValueError: the name is not a single component, or a link of that name leads out of the folder, to the folder itself or in a circle.
    """
    if problem := name_problem(name):
        raise ValueError(f"The name {problem}.")
    path = Path(folder) / f"{name}{ending}"
    if os.path.lexists(path):  # not only links: Windows has junctions, which pathlib knows from Python 3.12 on
        try:
            whole, top = path.resolve(), Path(folder).resolve()
        except RuntimeError:  # a circle, until Python 3.12
            whole = path
        if whole.is_symlink():
            raise ValueError(f"“{path.name}” is a link that leads in a circle; remove it.")
        if whole == top or not whole.is_relative_to(top):
            raise ValueError(f"“{path.name}” is a link that leads out of {Path(folder).name}; use the file itself.")
    return path


def refuse_links_out(folder: Path) -> None:
    """See that nothing directly inside `folder` is a link that leads out of it: what comes from somebody else may hold such.

    Raises:
        ValueError: names the first one.
    """
    entries: list[os.DirEntry[str]] = []
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        entries = list(found)
    for entry in entries:
        if entry.is_symlink() or _is_junction(entry):
            path_in(folder, entry.name)


def _is_junction(entry: os.DirEntry[str]) -> bool:
    return hasattr(entry, "is_junction") and entry.is_junction()  # from Python 3.12 on; only Windows has them


def path_for_new(folder: Path, name: str, ending: str = "") -> Path:
    """`path_in` for what is to be made: refuses also what another disk or system would take for a name that is there already.

    Something of exactly this name may be there; whether that is replaced is for the caller to ask.

    Raises:
        ValueError: as in `path_in`, or a name is there that differs only by case, Unicode form or what cannot be seen.
    """
    path = path_in(folder, name, ending)
    there: list[str] = []
    with contextlib.suppress(OSError):  # a folder that is not there yet holds nothing
        there = os.listdir(folder)
    if path.name in there:
        return path
    for other in there:
        if unicodedata.normalize("NFC", other) == unicodedata.normalize("NFC", path.name):
            raise ValueError(f"“{path.name}” is there already, written in another Unicode form. Choose it from the list, or type another name.")
        if _sameness(other) == _sameness(path.name):
            raise ValueError(
                f"“{path.name}” is there already as “{shown_name(other)}”, and on many disks the two are one. "
                "Write it as it is there, or type another name."
            )
    return path


def _sameness(name: str) -> str:
    """Equal for names that a disk which knows no case, no Unicode forms or no dots at the end takes for one."""
    seen = "".join(character for character in name if unicodedata.category(character) != "Cf")
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", seen).casefold()).rstrip(" .")


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
        os.chmod(temporary, 0o644)  # mkstemp makes it readable by its owner alone
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


_PLACE = re.compile(r"(?:[A-Za-z]:[\\/]|\\\\(?=\w)|/(?=[^\s/]+/))[^\s'\"“”,;<>|:]*[^\s'\"“”,;<>|:.)\]]")
_QUOTED_PLACE = re.compile(r"(?<=['\"“])(?:[A-Za-z]:[\\/]|\\\\(?=\w)|/(?=[^/'\"”\n]+/))[^'\"”\n]*(?=['\"”])")


def whole_letters(text: str) -> str:
    """Half of a surrogate pair, which JSON and a request made by hand may hold, can be shown on no page: a question mark takes its place.

    >>> whole_letters("a\\ud800b")
    'a?b'
    """
    return paired(text).encode("utf-8", "replace").decode("utf-8")


def paired(text: str) -> str:
    """Both halves of a surrogate pair, as PyYAML leaves them of what JSON writes with a backslash, become their letter; a half alone stays.

    >>> ascii(paired("\\ud83d\\ude00 \\ude00"))
    "'\\\\U0001f600 \\\\ude00'"
    """
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def without_folders(text: str) -> str:
    """A message as a page that others open can show it: of a path on this machine only what stands below `user_data`, else its name.

    >>> without_folders("[Errno 13] Permission denied: '/home/anna k/webui/user_data/loras/poet'; see /srv/models/base/config.json.")
    "[Errno 13] Permission denied: 'user_data/loras/poet'; see …/config.json."
    >>> without_folders("https://example.org/a/b.json of owner/name in C:\\\\Users\\\\anna\\\\x.json")
    'https://example.org/a/b.json of owner/name in …/x.json'
    """
    text = _QUOTED_PLACE.sub(lambda found: _below(found[0]), text)
    return re.sub(rf"(?<![\w:/.\\…]){_PLACE.pattern}", lambda found: _below(found[0]), text)


def reason(error: Exception) -> str:
    """What an error says; of one of the system the words and the file's name, without number and folders.

    >>> reason(PermissionError(13, "Permission denied", "/home/anna/user_data/loras/poet"))
    'Permission denied (poet)'
    """
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    name = os.path.basename(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes, os.PathLike)) else ""
    return f"{error.strerror} ({name})" if name else str(error.strerror)


def _below(place: str) -> str:
    pieces = [piece for piece in re.split(r"[\\/]+", place) if piece]
    if "user_data" in pieces:
        return "/".join(pieces[pieces.index("user_data") :])
    return f"…/{pieces[-1]}"


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Sort key that puts “part 2” before “part 10”."""
    return [(0, int(piece)) if piece.isdecimal() else (1, piece.lower()) for piece in re.split(r"(\d+)", name) if piece]
