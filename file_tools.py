"""The tools of the page: split, convert and dump. Each writes whole files or none, and never over one unless asked to."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .dataset_tools import read_rows, read_text
from .paths import path_for_new, write_whole


class ToolError(ValueError):
    """Why a tool did nothing, and what to do."""


def split(path: Path, percent: float, seed: int, overwrite: bool) -> tuple[Path, Path]:
    """Part the rows of a JSON or JSONL file into `NAME_train` and `NAME_eval`, drawn by chance with the seed; both keep the order of the file.

    Args:
        percent: how many of 100 rows are held out for evaluation; at least one row stays on each side.

    Raises:
        ToolError: a file of these names is there, or there are too few rows.
        dataset_tools.DataError: the file cannot be read.
    """
    if not 0 < percent < 100:
        raise ToolError(f"Split: {percent:g} percent is not between 0 and 100.")
    rows = read_rows(path)
    if len(rows) < 2:
        raise ToolError(f"Split: “{path.name}” has one row; at least two are needed.")
    held_out = min(len(rows) - 1, max(1, round(len(rows) * percent / 100)))
    held = set(random.Random(seed).sample(range(len(rows)), held_out))
    parts = {"train": [row for n, row in enumerate(rows) if n not in held], "eval": [row for n, row in enumerate(rows) if n in held]}
    targets = {part: _target(path.parent, f"{path.stem}_{part}", path.suffix) for part in parts}
    must_be_free(targets.values(), overwrite)
    for part, target in targets.items():
        write_whole(target, as_json_lines(parts[part]) if path.suffix == ".jsonl" else json.dumps(parts[part], indent=1, ensure_ascii=False) + "\n")
    return targets["train"], targets["eval"]


def json_to_jsonl(path: Path, system: str, overwrite: bool) -> tuple[Path, int]:
    """Instruction rows (instruction, input, output) → chats, as `NAME.jsonl`; the number of rows.

    Raises:
        ToolError: rows that have no instruction or no output; nothing is written.
    """
    chats, wrong = [], []
    for number, row in enumerate(read_rows(path), 1):
        asked, more, said = (row.get(key) for key in ("instruction", "input", "output"))
        if not (isinstance(asked, str) and asked.strip() and isinstance(said, str) and said.strip()):
            wrong.append(number)
            continue
        prompt = f"{asked}\n\n{more}" if isinstance(more, str) and more.strip() else asked
        chats.append(_chat(prompt, said, system))
    if wrong:
        named = ", ".join(map(str, wrong[:5])) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise ToolError(f"Convert: “{path.name}”, row {named}: each row needs text under instruction and output. Nothing was written.")
    return _written(path, chats, overwrite)


def text_to_jsonl(path: Path, prompt: str, system: str, overwrite: bool) -> tuple[Path, int]:
    """Items of a text, parted by three newlines → chats in which each is the answer to `prompt`, as `NAME.jsonl`; the number of items."""
    items = [item.strip() for item in read_text(path).split("\n\n\n") if item.strip()]
    if not items:
        raise ToolError(f"Convert: “{path.name}” holds no text.")
    if not prompt.strip():
        raise ToolError("Convert: Prompt is empty; type what each item of the text answers, such as “Write a story.”")
    return _written(path, [_chat(prompt, item, system) for item in items], overwrite)


def dump(prepared: Any, tokenizer: Any, folder: Path, name: str, remove_special: bool, overwrite: bool = False) -> Path:
    """The blocks as they are trained, decoded, as JSON in the logs folder.

    Args:
        remove_special: without BOS and EOS.

    Raises:
        ToolError: a file of this name is there.
    """
    target = _target(folder, f"{name}_train_dataset", ".json")
    must_be_free([target], overwrite)
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id} if remove_special else set()
    texts = []
    for number in range(len(prepared.blocks)):
        ids = prepared.blocks[number].input_ids
        while ids and ids[0] in ends:
            ids = ids[1:]
        while ids and ids[-1] in ends:
            ids = ids[:-1]
        texts.append(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    write_whole(target, json.dumps(texts, indent=1, ensure_ascii=False) + "\n")
    return target


def as_json_lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _chat(prompt: str, said: str, system: str) -> dict[str, Any]:
    before = [{"role": "system", "content": system}] if system.strip() else []
    return {"messages": [*before, {"role": "user", "content": prompt}, {"role": "assistant", "content": said}]}


def _written(path: Path, rows: list[Any], overwrite: bool) -> tuple[Path, int]:
    if path.suffix == ".jsonl":
        raise ToolError(f"Convert: “{path.name}” is JSONL already.")
    target = _target(path.parent, path.stem, ".jsonl")
    must_be_free([target], overwrite)
    write_whole(target, as_json_lines(rows))
    return target, len(rows)


def _target(folder: Path, name: str, ending: str) -> Path:
    try:
        return path_for_new(folder, name, ending)
    except ValueError as error:  # such as a name that is too long with what is added to it
        raise ToolError(str(error)) from error


def must_be_free(targets: Iterable[Path], overwrite: bool) -> None:
    """Raise a ToolError when one of the files is there and may not be replaced."""
    there = [f"“{target.name}”" for target in targets if target.exists()]
    if there and not overwrite:
        are, them = ("is", "it") if len(there) == 1 else ("are", "them")
        raise ToolError(f"{' and '.join(there)} {are} there already. Tick Overwrite to replace {them}.")
