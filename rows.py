"""Files → rows: JSON, JSON lines, CSV, Parquet and datasets of the Hugging Face hub, read one row at a time.

However large a file is, only a part of it is in memory. What is wrong with it is said with the file, the row, line or byte, and the fix.
"""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LONGEST_ROW = 64 * 2**20  # bytes of a row or line; a longer one is no row of a dataset
LARGEST_TEXT = 2**30  # bytes of a text file, which is read whole
CHUNK = 2**22  # bytes
ROWS_NAMED = 5  # how many bad rows a message names before it only counts them

Row = dict[str, Any]
_HUB = re.compile(
    r"^(?P<id>[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)(?::(?P<first>[^:\[\]]+(?:\[[^\]]*\])?))?(?::(?P<second>[^:\[\]]+(?:\[[^\]]*\])?))?$"
)


class DataError(ValueError):
    """Data that cannot be trained; `problems` has a sentence for each fault, with the file, the place and what to do."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


class Rows:
    """The rows of one source, to be gone through once. `share` is how much of it has been read, from 0 to 1.

    Iterating yields (number, row): the row's number from 1 in the order of the file.

    Raises:
        DataError: while iterating, when the end is reached or reading cannot go on.
    """

    def __init__(self, name: str, read: Callable[[Rows], Iterator[Any]]):
        self.name, self.share = name, 0.0
        self._read = read

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        wrong: list[int] = []
        number = 0
        for number, row in enumerate(self._read(self), 1):
            if not isinstance(row, dict):
                wrong.append(number)
            elif not wrong:  # after a fault, only further faults are looked for
                yield number, row
        if not number:
            raise DataError([f"“{self.name}” holds no rows."])
        if wrong:
            raise DataError([f'“{self.name}”: {numbers(wrong)} must be an object with keys, like {{"instruction": …, "output": …}}.'])
        self.share = 1.0


def open_rows(path: Path | str) -> Rows:
    """The rows of a file, or of a dataset on the hub, whose name is “owner/name”, “owner/name:split” or “owner/name:config:split”."""
    if isinstance(path, str):
        return Rows(path, lambda rows: _hub(path))
    if path.suffix.lower() == ".parquet":
        return Rows(path.name, lambda rows: _parquet(path, rows))
    if path.suffix.lower() == ".csv":
        return Rows(path.name, lambda rows: _csv(path, rows))
    return Rows(path.name, lambda rows: _json_rows(path, rows))


def read_rows(path: Path | str) -> list[Row]:
    """All rows at once."""
    return [row for _, row in open_rows(path)]


def is_hub_name(name: str) -> bool:
    return bool(_HUB.match(name))


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without byte order mark and with CRLF folded.

    Raises:
        DataError: it cannot be read, is not UTF-8 (names the byte), or is larger than `LARGEST_TEXT`.
    """
    size = _check(path)
    if size > LARGEST_TEXT:
        raise DataError(
            [f"“{path.name}” has {size / 1e9:.1f} GB; a text file is read whole, up to {LARGEST_TEXT / 1e9:.1f} GB. Part it into files in a folder."]
        )
    text = path.read_bytes().decode("utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n")


# What is wrong with a file


def _check(path: Path) -> int:
    """See that a file can be read and is UTF-8 text; its size in bytes."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    done = 0
    try:
        with open(path, "rb") as file:
            while piece := file.read(CHUNK):
                waiting = len(decoder.getstate()[0])
                try:
                    decoder.decode(piece)
                except UnicodeDecodeError as error:
                    raise DataError([_not_utf8(path, done - waiting + error.start, (error.object[error.start]))]) from error
                if (nul := piece.find(0)) >= 0:
                    raise DataError(
                        [f"“{path.name}” is no text: byte {done + nul} is NUL. It may be UTF-16 or another kind of file; save it as UTF-8."]
                    )
                done += len(piece)
        if waiting := len(decoder.getstate()[0]):
            raise DataError([_not_utf8(path, done - waiting, decoder.getstate()[0][0])])
    except OSError as error:
        raise DataError([f"“{path.name}” cannot be read: {error.strerror or error}."]) from error
    return done


def _not_utf8(path: Path, place: int, byte: int) -> str:
    return f"“{path.name}” is not UTF-8 text: byte {place} is 0x{byte:02x}. Save the file as UTF-8."


def first_few(problems: list[str]) -> list[str]:
    more = len(problems) - ROWS_NAMED
    return problems[:ROWS_NAMED] + ([f"… and {more} more of this kind."] if more > 0 else [])


def numbers(rows: list[int]) -> str:
    """row 3; rows 1, 2, 5 and 7 more"""
    named = ", ".join(str(number) for number in rows[:ROWS_NAMED])
    return f"row{'s' if len(rows) > 1 else ''} {named}" + (f" and {len(rows) - ROWS_NAMED} more" if len(rows) > ROWS_NAMED else "")


# JSON


def _json_rows(path: Path, rows: Rows) -> Iterator[Any]:
    """The rows of a JSON array, or of one JSON object a line; which of the two is seen from the file."""
    size = _check(path)
    with open(path, "rb") as file:
        start = file.read(CHUNK).decode("utf-8-sig", "ignore").lstrip()
    if not start:
        if size > CHUNK:
            raise DataError([f"“{path.name}” begins with {CHUNK // 2**20} MB of white space; it holds no rows."])
        raise DataError([f"“{path.name}” is empty."])
    yield from _array(path, size, rows) if start[0] == "[" else _lines(path, size, rows)


class _Window:
    """A part of a file's text that moves on; `line` and `column` count from 1 at `at`."""

    def __init__(self, path: Path):
        self.file = open(path, encoding="utf-8-sig", newline="")  # noqa: SIM115 - closed by whoever reads
        self.text, self.at, self.line, self.column, self.ended = "", 0, 1, 1, False

    def more(self, size: int = 0) -> None:
        """Forget what lies behind, and read on."""
        self._count(self.text[: self.at])
        piece = self.file.read(max(size, CHUNK))
        self.ended = not piece
        self.text, self.at = self.text[self.at :] + piece, 0

    def _count(self, passed: str) -> None:
        if newlines := passed.count("\n"):
            self.line, self.column = self.line + newlines, len(passed) - passed.rfind("\n")
        else:
            self.column += len(passed)

    def place(self, at: int) -> str:
        passed = self.text[:at]
        newlines = passed.count("\n")
        column = len(passed) - passed.rfind("\n") if newlines else self.column + len(passed)
        return f"line {self.line + newlines}, column {column}"

    def skip_space(self) -> str:
        """Move to the next character that is not white space, and return it; "" at the end."""
        while True:
            match = _SPACE.match(self.text, self.at)
            self.at = match.end()
            if self.at < len(self.text):
                return self.text[self.at]
            if self.ended:
                return ""
            self.more()


_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def _array(path: Path, size: int, rows: Rows) -> Iterator[Any]:
    window = _Window(path)
    with window.file:
        window.skip_space()
        window.at += 1  # [
        if window.skip_space() == "]":
            window.at += 1
            return _nothing_behind(path, window)
        number = 0
        while True:
            number += 1
            window.skip_space()
            yield _value(path, window, number)
            rows.share = min(1.0, window.file.buffer.tell() / max(1, size))
            mark = window.skip_space()
            window.at += 1
            if mark == "]":
                return _nothing_behind(path, window)
            if mark != ",":
                raise DataError([_broken(path, window, window.at - 1, "a comma or ] must stand here")])


def _value(path: Path, window: _Window, number: int) -> Any:
    while True:
        try:
            value, end = _DECODER.raw_decode(window.text, window.at)
            # A number may go on behind the window; an object or a text may not.
            if end < len(window.text) or window.ended:
                window.at = end
                return value
        except json.JSONDecodeError as error:
            if window.ended:
                raise DataError([_broken(path, window, error.pos, error.msg)]) from error
        except RecursionError as error:
            raise DataError([f"“{path.name}”, row {number}, is nested too deeply to be read."]) from error
        except ValueError as error:  # an integer of more digits than Python converts
            raise DataError([f"“{path.name}”, row {number}: {error}."]) from error
        if len(window.text) - window.at > LONGEST_ROW:
            try:
                _DECODER.raw_decode(window.text, window.at)
            except json.JSONDecodeError as error:
                if error.pos < len(window.text) - CHUNK and "Unterminated string" not in error.msg:
                    raise DataError([_broken(path, window, error.pos, error.msg)]) from error
            raise DataError([_too_long(path, f"row {number}")])
        window.more(len(window.text) - window.at)


def _nothing_behind(path: Path, window: _Window) -> None:
    if window.skip_space():
        raise DataError([_broken(path, window, window.at, "there is something behind the end of the list")])


def _broken(path: Path, window: _Window, at: int, what: str) -> str:
    return f"“{path.name}” is broken JSON at {window.place(at)}: {what}."


def _too_long(path: Path, what: str) -> str:
    return f"“{path.name}”: {what} is longer than {LONGEST_ROW // 2**20} MB. Part it into rows, or use the file as a Text file."


def _lines(path: Path, size: int, rows: Rows) -> Iterator[Any]:
    problems: list[str] = []
    done = 0
    with open(path, "rb") as file:
        number = 0
        while line := file.readline(LONGEST_ROW + 1):
            number += 1
            done += len(line)
            if len(line) > LONGEST_ROW:
                raise DataError(first_few([*problems, _too_long(path, f"line {number}")]))
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if not text:
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                if number == 1 and size <= LONGEST_ROW:  # one object over several lines; a broken one is named with its own line
                    yield _whole(path)
                    return
                problems.append(f"“{path.name}” is broken JSON at line {number}, column {error.colno}: {error.msg}.")
            except RecursionError:
                problems.append(f"“{path.name}”, line {number}, is nested too deeply to be read.")
            except ValueError as error:
                problems.append(f"“{path.name}”, line {number}: {error}.")
            else:
                rows.share = done / size
                if not problems:
                    yield row
    if problems:
        raise DataError(first_few(problems))


def _whole(path: Path) -> Any:
    window = _Window(path)
    with window.file:
        window.skip_space()
        value = _value(path, window, 1)
        _nothing_behind(path, window)
        return value


def read_json(path: Path) -> Any:
    """A JSON file that is not a dataset, whole.

    Raises:
        DataError: it cannot be read or is broken; names line and column.
    """
    if _check(path) > LONGEST_ROW:
        raise DataError([_too_long(path, "the file")])
    return _whole(path)


# Tables


def _csv(path: Path, rows: Rows) -> Iterator[Row]:
    import csv

    size = _check(path)
    if not size:
        raise DataError([f"“{path.name}” is empty."])
    csv.field_size_limit(LONGEST_ROW)
    done = 0

    def lines(file: Any) -> Iterator[str]:
        nonlocal done
        while line := file.readline(LONGEST_ROW + 1):
            if len(line) > LONGEST_ROW:
                raise DataError([_too_long(path, "a line")])
            done += len(line)
            yield line

    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(lines(file), strict=True)
        try:
            for number, row in enumerate(reader, 1):
                if None in row or None in row.values():
                    cells = sum(value is not None for key, value in row.items() if key is not None) + len(row.get(None, []))
                    raise DataError(
                        [f"“{path.name}”, row {number}: it has {cells} cells, and the first line names {len(reader.fieldnames or [])} columns."]
                    )
                rows.share = min(1.0, done / size)
                yield row
        except csv.Error as error:
            raise DataError(
                [f"“{path.name}” is broken CSV at line {reader.line_num}: {error}. Cells with commas, quotes or new lines stand in quotes."]
            ) from error


def _parquet(path: Path, rows: Rows) -> Iterator[Row]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            total, done = file.metadata.num_rows, 0
            for batch in file.iter_batches(1000):
                found = batch.to_pylist()
                done += len(found)
                rows.share = done / max(1, total)
                yield from found
    except Exception as error:  # pyarrow raises many kinds; each means that the file is no good
        raise DataError([f"“{path.name}” cannot be read as Parquet: {(str(error).splitlines() or [type(error).__name__])[0][:200]}."]) from error


def _hub(name: str) -> Iterator[Row]:
    """The rows of a dataset on the hub, downloaded once into the cache of `datasets`."""
    import datasets

    match = _HUB.match(name)
    config, split = (match["first"], match["second"]) if match["second"] else (None, match["first"] or "train")
    if os.path.exists(match["id"]):  # the library would read that folder, wherever it leads
        raise DataError(
            [f"“{match['id']}” could be a dataset of huggingface.co or a folder of this machine; only files of the datasets folder are read."]
        )
    try:
        yield from datasets.load_dataset(match["id"], config, split=split)
    except DataError:
        raise
    except Exception as error:  # the hub, the network, the cache and the dataset's own files may each raise their own
        raise DataError([_why_not_from_the_hub(name, split, error)]) from error


def _why_not_from_the_hub(name: str, split: str, error: Exception) -> str:
    said = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    if re.search(r"offline|couldn't reach|connection|resolve|timed? ?out|unreachable", f"{type(error).__name__} {error}", re.IGNORECASE):
        return (
            f"“{name}” could not be loaded, since huggingface.co cannot be reached from here. Connect this machine, "
            "or download the dataset's files elsewhere and put them into the datasets folder (.json, .jsonl, .csv or .parquet)."
        )
    return f"“{name}” could not be loaded from huggingface.co (split “{split}”): {said}. Check its name, or write owner/name:split."
