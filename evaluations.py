"""The table of perplexity evaluations, `logs/evaluations.csv`: the very file that the web UI's own tab reads and writes.

A change is made to what lies on disk at that moment, under a lock (filelock, which huggingface_hub brings), and the file is
replaced as a whole, so that two writers of ours lose no row of each other.

What the web UI has no column for (of which weights, which text, how many tokens) lies beside the table in `evaluations.details.json`,
found by `key`: the web UI shows every column of the table on its page and writes back what stands there, so a column of ours would be
in its users' way. It writes the table as its page showed it, without asking what was added since; a row of ours that is lost that way
is still in the details, and can be put back.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .paths import write_json, write_whole

COLUMNS = ["Model", "LoRAs", "Dataset", "Perplexity", "stride", "max_length", "Date", "Comment"]
KEY = [name for name in COLUMNS if name not in ("Perplexity", "Comment")]  # pandas writes a number its own way, and comments are edited
LOCK_SECONDS = 30
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # what a spreadsheet may begin a formula with (OWASP, “CSV Injection”)

Row = dict[str, str]


class Gone(RuntimeError):
    """The row is not in the table any more."""


def read(path: Path) -> list[Row]:
    """The rows, oldest first; each has all of `COLUMNS`, and others that somebody added. No file: no rows.

    Raises:
        ValueError: the file is no table of evaluations; the message says what to do.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except FileNotFoundError:
        return []
    reader = csv.DictReader(io.StringIO(text.replace("\0", "")), restval="")
    if not text.strip():
        return []
    if not {"Model", "Perplexity"} <= set(reader.fieldnames or []):
        raise ValueError(f"{path.name} is not the table of evaluations: its first line must name {', '.join(COLUMNS)}. Move the file away.")
    return [{**dict.fromkeys(COLUMNS, ""), **{name: value for name, value in row.items() if name is not None}} for row in reader]


def key(row: Mapping[str, str]) -> str:
    """What tells a row from the others: everything but its value and its comment."""
    return json.dumps([row.get(name, "") for name in KEY], ensure_ascii=False)


def add(path: Path, *, details: Mapping[str, Any] | None = None, **values: Any) -> Row:
    """Add a row; `values` by the names of `evaluation_row`. Gives the row back.

    Args:
        details: what was measured beside the columns, as JSON; with `identity` the row is found by `measured_before`.
    """
    row = evaluation_row(**values)
    with _changing(path) as (rows, known):
        rows.append(row)
        if details is not None:
            known[key(row)] = {"row": row, **details}
    return row


def evaluation_row(
    *, model: str, loras: list[str], dataset: str, perplexity: float, stride: int, max_length: int, comment: str = ""
) -> dict[str, str]:
    """One row as the web UI writes it: LoRAs joined by commas, “-” for none, the local date and time."""
    return {
        "Model": model,
        "LoRAs": ", ".join(loras) or "-",
        "Dataset": dataset,
        "Perplexity": repr(float(perplexity)),
        "stride": str(stride),
        "max_length": str(max_length),
        "Date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "Comment": comment,
    }


def comment(path: Path, wanted: str, text: str) -> None:
    """Give the row of this key another comment.

    Raises:
        Gone: no such row is there any more.
    """
    with _changing(path) as (rows, known):
        for row in rows:
            if key(row) == wanted:
                row["Comment"] = text.strip()
                if wanted in known:
                    known[wanted]["row"] = row
                return
        raise Gone("The row is not in the table any more; refresh it.")


def delete(path: Path, wanted: str) -> None:
    """Remove the row of this key.

    Raises:
        Gone: no such row is there any more.
    """
    with _changing(path) as (rows, known):
        kept = [row for row in rows if key(row) != wanted]
        if len(kept) == len(rows):
            raise Gone("The row is not in the table any more; refresh it.")
        rows[:] = kept
        known.pop(wanted, None)


def lost(path: Path) -> list[Row]:
    """Rows of ours that somebody has written over."""
    there = {key(row) for row in read(path)}
    return [each["row"] for wanted, each in details_of(path).items() if wanted not in there]


def put_back(path: Path) -> int:
    """Add the rows of ours that somebody has written over; how many."""
    with _changing(path) as (rows, known):
        there = {key(row) for row in rows}
        back = [each["row"] for wanted, each in known.items() if wanted not in there]
        rows += back
        rows.sort(key=lambda row: row["Date"])
    return len(back)


def let_go(path: Path) -> None:
    """Forget the rows of ours that are not in the table."""
    with _changing(path) as (rows, known):
        there = {key(row) for row in rows}
        for wanted in [wanted for wanted in known if wanted not in there]:
            del known[wanted]


def measured_before(path: Path, identity: Mapping[str, Any], ignoring: Sequence[str] = ()) -> tuple[Row, dict[str, Any]] | None:
    """The newest row of just this identity, with its details, that was measured to its end; None where none is in the table.

    Args:
        identity: see `evaluation.identity_of`. A value of None is not known, and then nothing was measured before.
        ignoring: keys that are not known yet and may differ.
    """
    wanted = {name: value for name, value in identity.items() if name not in ignoring}
    if any(value is None for value in wanted.values()):
        return None
    try:
        there = {key(row): row for row in read(path)}
    except ValueError:
        return None
    for name, each in reversed(details_of(path).items()):
        known = each.get("identity")
        if name not in there or each.get("partial") or not isinstance(known, dict):
            continue
        if {name: value for name, value in known.items() if name not in ignoring} == wanted:
            return there[name], each
    return None


def details_of(path: Path) -> dict[str, dict[str, Any]]:
    """What is known of the rows beyond the table's columns, by their key; what cannot be read is not known."""
    try:
        found = json.loads(_beside(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: each for name, each in found.items() if isinstance(each, dict) and isinstance(each.get("row"), dict)}


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.stem}.details.json")


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[tuple[list[Row], dict[str, dict[str, Any]]]]:
    """The rows and the details to change, while no other writer of ours does; both are written when the block ends without an error."""
    import filelock

    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=LOCK_SECONDS):
        rows, known = read(path), details_of(path)
        before = json.dumps(known)
        yield rows, known
        write_whole(path, _csv(rows))
        if json.dumps(known) != before:
            write_json(_beside(path), known)


def _csv(rows: Sequence[Mapping[str, str]]) -> str:
    columns = [*COLUMNS, *(name for name in dict.fromkeys(name for found in rows for name in found) if name not in COLUMNS)]
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


# Looking at it

SORTS = {"Newest first": "Date", "Lowest perplexity first": "Perplexity", "Model": "Model", "LoRA": "LoRAs", "Dataset": "Dataset"}


def chosen(rows: Sequence[Row], words: str = "", sort: str = "Newest first") -> list[Row]:
    """The rows that hold all of these words (in any column, in any case), in this order of `SORTS`.

    >>> rows = [{"Model": "a", "Perplexity": "9"}, {"Model": "b", "Perplexity": "nan"}, {"Model": "A", "Perplexity": "3.5"}]
    >>> [row["Perplexity"] for row in chosen(rows, "a", "Lowest perplexity first")]
    ['3.5', '9', 'nan']
    """
    asked = words.lower().split()
    found = [row for row in rows if all(any(word in str(value).lower() for value in row.values()) for word in asked)]
    column = SORTS.get(sort, "Date")
    if column == "Date":
        return sorted(found, key=lambda row: row.get("Date", ""))[::-1]
    if column == "Perplexity":
        return sorted(found, key=lambda row: _number(row.get("Perplexity", "")))
    return sorted(found, key=lambda row: (str(row.get(column, "")).lower(), _number(row.get("Perplexity", ""))))


def _number(text: str) -> tuple[bool, float]:
    try:
        value = float(text)
    except ValueError:
        return True, 0.0
    return value != value, 0.0 if value != value else value


def export_csv(rows: Sequence[Mapping[str, str]]) -> str:
    """The rows as CSV for a spreadsheet: what it would take for a formula is a text there."""
    return _csv([{name: _harmless(value) for name, value in row.items()} for row in rows])


def _harmless(value: Any) -> str:
    """
    >>> [_harmless(text) for text in ("=1+1", "-", "-3.5", "+49", "@a", "a=b", " =1")]
    ["'=1+1", '-', '-3.5', "'+49", "'@a", 'a=b', "' =1"]
    """
    text = str(value)
    begins = text.lstrip(" ")[:1]
    if text == "-" or begins not in FORMULA or not begins:
        return text
    if begins == "-":
        with contextlib.suppress(ValueError):
            float(text)
            return text
    return f"'{text}"


def as_link(text: str) -> str:
    """A text as the address of a link that hands it out as a file, without a server's files."""
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(("\ufeff" + text).encode("utf-8")).decode("ascii")
