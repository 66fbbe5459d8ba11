"""The table of perplexity evaluations, `logs/evaluations.csv`: the very file that the web UI's own tab reads and writes.

A row is added to what lies on disk at that moment, under a lock (filelock, which huggingface_hub brings), and the file is
replaced as a whole, so that two writers of ours lose no row of each other.
"""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

from .paths import write_whole

COLUMNS = ["Model", "LoRAs", "Dataset", "Perplexity", "stride", "max_length", "Date", "Comment"]


def read(path: Path) -> list[dict[str, str]]:
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


def add(path: Path, **values: Any) -> dict[str, str]:
    """Add a row; `values` by the names of `evaluation_row`. Gives the row back."""
    import filelock

    row = evaluation_row(**values)
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=30):
        rows = [*read(path), row]
        columns = [*COLUMNS, *(name for name in dict.fromkeys(name for found in rows for name in found) if name not in COLUMNS)]
        file = io.StringIO()
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(path, file.getvalue())
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
