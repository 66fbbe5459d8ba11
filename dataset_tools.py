"""Files → rows → texts → tokens and labels. Verify and Start both call `prepare`, so what is shown is what is trained."""

from __future__ import annotations

import json
import logging
import random
import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

from .blocks import IGNORED, Blocks, Item
from .chat_templates import TemplateError, assistant_spans, render, template_for
from .custom_scheduler import schedule_notices
from .paths import natural_key
from .settings import OPTIONS, TEXT_ROWS, Plan, TrainingSettings
from .slicer import Block, slice_fixed, slice_text, with_bos_eos, without_small_blocks

logger = logging.getLogger(__name__)

ROWS_NAMED = 5  # how many bad rows a message names before it only counts them
LEFT_OUT = ("nothing trained", "too long")
LEFT_OUT_KEPT = 1000  # of each reason, to be looked at
BATCH = 1000  # rows that are tokenized at once

Progress = Callable[[str, float], None]  # what is being done, and which share of it


class DataError(ValueError):
    """Data that cannot be trained; `problems` has a sentence for each fault, with the file, the place and what to do."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass
class Report:
    """The numbers that Verify shows. Lengths are in tokens, steps as the user counts them."""

    blocks: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    longest_block: int = 0
    second_longest_block: int = 0
    total_tokens: int = 0
    trained_tokens: int = 0
    dropped_rows: int = 0
    trimmed_rows: int = 0
    untrained_rows: int = 0
    small_blocks: int = 0
    eval_blocks: int = 0
    eval_left_out: int = 0
    steps_per_epoch: int = 0
    total_steps: int = 0
    accumulation: int = 1
    warmup_suggested: int = 0
    save_suggested: int = 0
    cutoff_suggested: int = 0
    notices: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Prepared:
    """What a run trains on.

    `train` and `eval` are `datasets.Dataset`s with `input_ids` and `labels` (lists of int of equal length, `IGNORED` where no
    loss is computed; the first token of a block is never predicted, so it is never trained). `formatting` is what the texts were made with,
    saved as training_prompt.json. `pad_id` fills up a batch. `blocks` are those of `train` with where they came from;
    `left_out` are the first that are not trained, by the reason (keys of LEFT_OUT).
    """

    train: Any
    eval: Any | None
    report: Report
    plan: Plan
    formatting: dict[str, Any]
    pad_id: int
    blocks: Blocks
    left_out: dict[str, Blocks]


def prepare(settings: TrainingSettings, tokenizer: Any, host: Any, progress: Progress | None = None) -> Prepared:
    """Read, format, tokenize, mask and cut the chosen data.

    Args:
        settings: which data and how; checked with `problems` before.
        tokenizer: the model's; only called, never changed.
        host: a `host.Host`, for the folders and for its chat template.
        progress: called with what is being done and the share of it that is done.

    Raises:
        DataError: with every problem that was found.
    """
    progress = progress or (lambda doing, share: None)
    report = Report()
    formatting: dict[str, Any] = {}
    left_out = {reason: Blocks() for reason in LEFT_OUT}
    blocks = _keep(_items(settings, tokenizer, host, False, report, formatting, progress), settings, report, left_out)
    evaluation, _ = settings.evaluation
    evaluated = Blocks()
    if evaluation:
        side = Report()
        evaluated = _keep(_items(settings, tokenizer, host, True, side, formatting, progress), settings, side, {})
        report.eval_blocks, report.eval_left_out = len(evaluated), side.dropped_rows + side.untrained_rows
        if not evaluated:
            raise DataError([f"{_evaluation_label(settings)}: no row of “{evaluation}” is left to measure; {_why_none(side, settings)}"])
    if not blocks:
        raise DataError([f"Nothing is left to train; {_why_none(report, settings)}"])

    plan = Plan.of(settings, len(blocks))
    _measure(blocks, settings, plan, report, getattr(host, "context_length", None))
    evaluation_data = evaluated.dataset() if evaluated else None
    return Prepared(blocks.dataset(), evaluation_data, report, plan, formatting, choose_pad_id(tokenizer), blocks, left_out)


def _evaluation_label(settings: TrainingSettings) -> str:
    return OPTIONS["eval_datasetJSONL" if settings.datasetJSONL else "eval_dataset"].label


def _items(settings, tokenizer, host, evaluation: bool, report: Report, formatting: dict, progress: Progress) -> Iterator[Item]:
    """The blocks of the chosen training or evaluation data, tokenized and masked, before anything is left out."""
    if settings.hybrid_training and not evaluation:
        rows = _row_items(settings, tokenizer, host, False, formatting, progress)
        text = text_items(_find(host, "raw_text_file", settings), settings, tokenizer, report, progress)
        return chain(_share(rows, settings.hybrid_data_ratio, settings.seed), _share(text, settings.hybrid_text_ratio, settings.seed))
    if settings.dataset or settings.datasetJSONL or evaluation:
        return _row_items(settings, tokenizer, host, evaluation, formatting, progress)
    return text_items(_find(host, "raw_text_file", settings), settings, tokenizer, report, progress)


def _row_items(settings, tokenizer, host, evaluation: bool, formatting: dict, progress: Progress) -> Iterator[Item]:
    if settings.datasetJSONL:
        path = _find(host, "eval_datasetJSONL" if evaluation else "datasetJSONL", settings)
        try:
            template = formatting["chat_template"] = template_for(settings, tokenizer, host)
        except (TemplateError, OSError, ValueError) as error:
            raise DataError([str(error)]) from error
        return chat_items(map_columns(read_rows(path), settings.column_mapping, path.name), path.name, template, settings, tokenizer, progress)
    path = _find(host, "eval_dataset" if evaluation else "dataset", settings)
    if not settings.format:
        raise DataError(
            [f"Data Format is not chosen: a JSON Dataset needs one, such as alpaca-format, or “{TEXT_ROWS}” for rows that hold a whole text."]
        )
    rows = map_columns(read_rows(path), settings.column_mapping, path.name)
    if settings.format == TEXT_ROWS:
        formatting["text_rows"] = "text"
        return text_row_items(rows, path.name, settings, tokenizer, progress)
    template = read_format(_find(host, "format", settings))
    formatting["format"] = template
    return json_items(rows, path.name, template, settings, tokenizer, progress)


def _share(items: Iterable[Item], percent: int, seed: int) -> list[Item]:
    """So many of 100 blocks, one drawn by chance from each of as many equal stretches of the data, so that all parts of it are there."""
    items = list(items)
    wanted = round(len(items) * percent / 100)
    chance = random.Random(seed)
    edges = [number * len(items) // wanted for number in range(wanted + 1)] if wanted else []
    return [items[chance.randrange(first, after)] for first, after in pairwise(edges)]


def _find(host: Any, key: str, settings: TrainingSettings) -> Path:
    try:
        return host.data_file(OPTIONS[key].files, getattr(settings, key))
    except (ValueError, OSError) as error:
        raise DataError([f"{OPTIONS[key].label}: {error}"]) from error


def _keep(items: Iterable[Item], settings: TrainingSettings, report: Report, left_out: dict[str, Blocks]) -> Blocks:
    """Trim or leave out what is longer than the cutoff, leave out what has no trained token, and count both.

    The longest lengths are those before trimming: they tell which cutoff would hold everything.
    """

    def leave_out(item: Item, reason: str) -> None:
        if reason in left_out and len(left_out[reason]) < LEFT_OUT_KEPT:
            left_out[reason].add(item)

    kept = Blocks()
    for item in items:
        report.second_longest_block, report.longest_block = sorted((report.second_longest_block, report.longest_block, len(item.input_ids)))[1:]
        if len(item.input_ids) > settings.cutoff_len:
            if settings.eliminate_long_blocks:
                report.dropped_rows += 1
                leave_out(item, "too long")
                continue
            report.trimmed_rows += 1
            item = replace(item, input_ids=item.input_ids[: settings.cutoff_len], labels=item.labels[: settings.cutoff_len], trimmed=True)
        if not item.trained:
            report.untrained_rows += 1  # its loss would be 0 / 0
            leave_out(item, "nothing trained")
            continue
        kept.add(item)
    return kept


def _why_none(report: Report, settings: TrainingSettings) -> str:
    reasons = []
    if report.untrained_rows:
        reason = f"{report.untrained_rows} rows have no trained token"
        if settings.dataset and not settings.train_on_inputs:
            reason += f": “{settings.train_only_after}” (Train Only After) stands in none of them, or only behind the cutoff"
        reasons.append(reason)
    if report.dropped_rows:
        reasons.append(f"{report.dropped_rows} rows are longer than the cutoff of {settings.cutoff_len} tokens (Eliminate cutoff blocks is on)")
    if report.small_blocks:
        reasons.append(f"{report.small_blocks} blocks have {settings.min_chars} characters or fewer (Ignore small blocks)")
    return "; ".join(reasons or ["the data is empty"]) + "."


def _measure(blocks: Blocks, settings: TrainingSettings, plan: Plan, report: Report, model_context: int | None) -> None:
    report.kinds = blocks.count()
    report.blocks = len(blocks)
    report.total_tokens = blocks.total_tokens
    report.trained_tokens = blocks.trained_tokens
    report.steps_per_epoch = plan.steps_per_epoch
    report.total_steps = plan.total_steps
    report.accumulation = plan.accumulation
    report.warmup_suggested = plan.suggested_warmup()
    report.save_suggested = plan.suggested_save_steps()
    report.cutoff_suggested = -(-report.longest_block // 32) * 32
    if plan.accumulation < settings.accumulation:
        report.notices.append(
            f"Gradient Accumulation Steps is {settings.accumulation}, but an epoch has only {plan.steps_per_epoch} steps; "
            f"{plan.accumulation} is the highest that the data can fill, and is used."
        )
    if model_context and settings.cutoff_len > model_context:
        report.notices.append(f"The cutoff of {settings.cutoff_len} is longer than the model's context of {model_context} tokens.")
    if settings.dataset and settings.train_on_inputs and settings.train_only_after:
        report.notices.append("Train Only After is set but not used, since Train on Inputs is on; tick it off to learn only the answers.")
    if settings.dataset and not settings.train_on_inputs and not settings.train_only_after:
        report.notices.append("Train on Inputs is off but Train Only After is empty, so every token is learned; type what stands before the answers.")
    report.notices += schedule_notices(
        settings.lr_scheduler_type,
        total_steps=plan.optimizer_steps,
        epoch_steps=-(-plan.optimizer_steps // max(1, settings.epochs)) if settings.epochs >= 1 else plan.optimizer_steps,
        warmup_steps=plan.warmup(settings),
        epochs=settings.epochs,
    )


# Reading


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without byte order mark and with CRLF folded.

    Raises:
        DataError: it cannot be read or is not UTF-8; names the byte.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError([f"“{path.name}” cannot be read: {error.strerror or error}."]) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError([f"“{path.name}” is not UTF-8 text: byte {error.start} is 0x{raw[error.start]:02x}. Save the file as UTF-8."]) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON array, of a file with one JSON object a line (which of the two is seen from the file), of CSV or of Parquet.

    Raises:
        DataError: broken JSON (with line and column), rows that are not objects (with their numbers), or a broken table.
    """
    if path.suffix.lower() == ".csv":
        return _csv(path)
    if path.suffix.lower() == ".parquet":
        return _parquet(path)
    text = read_text(path)
    if not text.strip():
        raise DataError([f"“{path.name}” is empty."])
    rows = _json(path, text) if text.lstrip().startswith("[") else _json_lines(path, text)
    if not isinstance(rows, list):
        raise DataError([f"“{path.name}” must hold a list of rows: [ {{…}}, {{…}} ]."])
    if not rows:
        raise DataError([f"“{path.name}” holds no rows."])
    if wrong := [number for number, row in enumerate(rows, 1) if not isinstance(row, dict)]:
        raise DataError([f'“{path.name}”: {_numbers(wrong)} must be an object with keys, like {{"instruction": …, "output": …}}.'])
    return rows


def _csv(path: Path) -> list[dict[str, Any]]:
    import csv
    import io

    text = read_text(path)
    if not text.strip():
        raise DataError([f"“{path.name}” is empty."])
    rows = []
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():
                cells = sum(value is not None for key, value in row.items() if key is not None) + len(row.get(None, []))
                raise DataError(
                    [f"“{path.name}”, row {number}: it has {cells} cells, and the first line names {len(reader.fieldnames or [])} columns."]
                )
            rows.append(row)
    except csv.Error as error:
        raise DataError(
            [f"“{path.name}” is broken CSV at line {reader.line_num}: {error}. Cells with commas, quotes or new lines stand in quotes."]
        ) from error
    if not rows:
        raise DataError([f"“{path.name}” holds no rows under its first line."])
    return rows


def _parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except Exception as error:  # pyarrow raises many kinds; each means that the file is no good
        raise DataError([f"“{path.name}” cannot be read as Parquet: {str(error).splitlines()[0][:200]}."]) from error
    if not rows:
        raise DataError([f"“{path.name}” holds no rows."])
    return rows


def map_columns(rows: list[dict[str, Any]], mapping: str, file: str) -> list[dict[str, Any]]:
    """Give columns the names that the Data Format knows: “instruction=question, output=answer”.

    Raises:
        DataError: the mapping is not of that form, or names a column that no row has.
    """
    if not mapping.strip():
        return rows
    names = {}
    for part in mapping.split(","):
        ours, sign, theirs = (piece.strip() for piece in part.partition("="))
        if not (ours and sign and theirs):
            raise DataError([f"Column mapping: “{part.strip()}” is not of the form instruction=question."])
        names[theirs] = ours
    known = list(dict.fromkeys(key for row in rows for key in row))
    if missing := [name for name in names if name not in known]:
        raise DataError([f"Column mapping: “{file}” has no column {' or '.join(missing)}; it has {', '.join(known)}."])
    return [{names.get(key, key): value for key, value in row.items() if key in names or key not in names.values()} for row in rows]


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError([f"“{path.name}” is broken JSON at line {error.lineno}, column {error.colno}: {error.msg}."]) from error
    except RecursionError as error:
        raise DataError([f"“{path.name}” is nested too deeply to be read."]) from error


def _json_lines(path: Path, text: str) -> list[Any]:
    rows, problems = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if not problems and number == 1:
                return [_json(path, text)]  # one object over several lines; a broken one is named with its own line
            problems.append(f"“{path.name}” is broken JSON at line {number}, column {error.colno}: {error.msg}.")
        except RecursionError:
            problems.append(f"“{path.name}”, line {number}, is nested too deeply to be read.")
    if problems:
        raise DataError(_first_few(problems))
    return rows


def _first_few(problems: list[str]) -> list[str]:
    more = len(problems) - ROWS_NAMED
    return problems[:ROWS_NAMED] + ([f"… and {more} more of this kind."] if more > 0 else [])


def _numbers(rows: list[int]) -> str:
    named = ", ".join(str(number) for number in rows[:ROWS_NAMED])
    return f"row{'s' if len(rows) > 1 else ''} {named}" + (f" and {len(rows) - ROWS_NAMED} more" if len(rows) > ROWS_NAMED else "")


# JSON rows with a format file


def read_format(path: Path) -> dict[str, str]:
    """A format file: a comma-separated list of keys → a text with %key% in it.

    Raises:
        DataError: it is not such a file.
    """
    read = _json(path, read_text(path))
    if not isinstance(read, dict) or not read or not all(isinstance(text, str) for text in read.values()):
        raise DataError([f'Data Format “{path.stem}” must be one JSON object that maps keys to texts: {{"instruction,output": "…%instruction%…"}}.'])
    return read


def format_row(row: dict[str, Any], template: dict[frozenset[str], str]) -> str | None:
    """The text of a row by the entry whose keys are the row's non-empty string keys; None when no entry is.

    >>> format_row({"q": "1 + 1?", "a": "2", "note": ""}, {frozenset({"q", "a"}): "Q: %q%\\nA: %a%"})
    'Q: 1 + 1?\\nA: 2'
    """
    filled = {key: value for key, value in row.items() if isinstance(value, str) and value.strip()}
    text = template.get(frozenset(filled))
    if text is None:
        return None
    # One pass over the format's text: a value that itself holds %key% is not touched.
    return re.sub("|".join(re.escape(f"%{key}%") for key in filled), lambda match: filled[match[0][1:-1]], text)


def by_key_set(template: dict[str, str]) -> dict[frozenset[str], str]:
    return {frozenset(key.strip() for key in keys.split(",")): text for keys, text in template.items()}


def json_items(
    rows: list[dict], file: str, template: dict[str, str], settings: TrainingSettings, tokenizer: Any, progress: Progress
) -> Iterator[Item]:
    """Format and tokenize flat rows; without Train on Inputs only what follows Train Only After is trained."""
    entries = by_key_set(template)
    texts = [format_row(row, entries) for row in rows]
    if wrong := [(number, row) for number, (row, text) in enumerate(zip(rows, texts, strict=True), 1) if text is None]:
        raise DataError(_wrong_rows(file, wrong, template))
    marker = "" if settings.train_on_inputs else settings.train_only_after
    bos, eos = bos_eos(tokenizer, settings)
    for number, (ids, starts, text) in enumerate(_tokenized(texts, tokenizer, bool(marker), f"Tokenizing {file}", progress), 1):
        if not marker:
            mask = [True] * len(ids)
        else:
            place = text.find(marker)
            learned_from = place + len(marker) if place >= 0 else len(text) + 1
            mask = [start >= learned_from for start in starts]
        yield _item(ids, mask, bos, eos, "json", row=number, eos_trained=not marker or marker in text)


def _wrong_rows(file: str, wrong: list[tuple[int, dict]], template: dict[str, str]) -> list[str]:
    known = " or ".join(f"“{keys}”" for keys in template)
    said = []
    for number, row in wrong:
        keys = ", ".join(key for key, value in row.items() if isinstance(value, str) and value.strip()) or "nothing"
        said.append(f"“{file}”, row {number}: it has text under {keys}; the Data Format knows {known}. Mend the row or choose another Data Format.")
    return _first_few(said)


# Chats


ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant", "bot": "assistant",
         "chatgpt": "assistant", "system": "system", "tool": "tool"}  # fmt: skip


def messages_of(row: dict[str, Any]) -> list[dict[str, str]] | None:
    """The row's chat as `role` and `content`, from `messages` or from ShareGPT's `conversations`; None when it has none."""
    turns = row.get("messages") or row.get("conversations")
    if not isinstance(turns, list) or not turns:
        return None
    messages = []
    for turn in turns:
        if not isinstance(turn, dict):
            return None
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            return None
        messages.append({"role": ROLES.get(role.lower(), role), "content": content})
    return messages


def chat_items(rows, file, template: str, settings, tokenizer, progress: Progress) -> Iterator[Item]:
    """Render chats with the chat template and tokenize them; without Train on Inputs only the assistant's turns are trained."""
    chats = [messages_of(row) for row in rows]
    if wrong := [number for number, chat in enumerate(chats, 1) if chat is None]:
        raise DataError(
            [f"“{file}”: {_numbers(wrong)} have no chat; each row needs “messages” with role and content, or “conversations” with from and value."]
        )

    texts, spans, problems = [], [], []
    for number, chat in enumerate(chats, 1):
        try:
            text = render(tokenizer, chat, template)
            spans.append([] if settings.train_on_inputs else assistant_spans(tokenizer, chat, template, text))
            texts.append(text)
        except Exception as error:  # a template is a program of the model's maker: it may raise anything
            problems.append(f"“{file}”, row {number}: {_template_fault(error)}")
    if problems:
        raise DataError(_first_few(problems))

    special = set(tokenizer.all_special_ids)
    masked = not settings.train_on_inputs
    for number, (ids, starts, text) in enumerate(_tokenized(texts, tokenizer, masked, f"Tokenizing {file}", progress)):
        mask = [True] * len(ids)
        if masked:
            spans[number] = [(_token_begin(starts, text, begin), end) for begin, end in spans[number]]
            mask = [any(begin <= start < end for begin, end in spans[number]) for start in starts]
            _end_with_turn(mask, ids, starts, text, spans[number], special)
        yield _item(ids, mask, [], [], "jsonl", row=number + 1)


def _template_fault(error: Exception) -> str:
    said = str(error).strip().splitlines()
    return f"the chat template refuses it: {said[0] if said else type(error).__name__}. Change the row's roles or their order."


def _token_begin(starts: list[int], text: str, begin: int) -> int:
    """Where the token starts that holds the span's first character: one that begins with the space before a word is learned whole."""
    place = bisect_right(starts, begin) - 1
    return starts[place] if place >= 0 and text[starts[place] : begin].isspace() else begin


def _end_with_turn(mask: list[bool], ids: list[int], starts: list[int], text: str, spans: list[tuple[int, int]], special: set[int]) -> None:
    """Take back the white space that a template puts behind the end-of-turn token: the model never has to write it."""
    for begin, end in spans:
        inside = [place for place, start in enumerate(starts) if begin <= start < end]
        last = max((place for place in inside if ids[place] in special), default=None)
        if last is not None and not text[starts[last + 1] if last + 1 < len(ids) else len(text) : end].strip():
            for place in inside:
                if place > last:
                    mask[place] = False


# Text


def text_items(path: Path, settings: TrainingSettings, tokenizer: Any, report: Report, progress: Progress) -> Iterator[Item]:
    """Cut a .txt, or each .txt of a folder in natural order, into blocks."""
    files = sorted(path.glob("*.txt"), key=lambda file: natural_key(file.name)) if path.is_dir() else [path]
    if not files:
        raise DataError([f"Text file: the folder “{path.name}” holds no .txt files."])
    for number, file in enumerate(files):
        progress(f"Slicing {file.name}", number / len(files))
        blocks = _sliced(read_text(file), settings, tokenizer)
        large = without_small_blocks(blocks, settings.min_chars)
        report.small_blocks += len(blocks) - len(large)
        for block in large:
            yield _text_item(block)


def _sliced(text: str, settings: TrainingSettings, tokenizer: Any, **changes: Any) -> list[Block]:
    """The blocks of a text, by the older fixed-length slicing where that is chosen."""
    common = {
        "cutoff_len": settings.cutoff_len,
        "hard_cut_string": settings.hard_cut_string,
        "add_bos": settings.add_bos_token,
        "add_eos": settings.add_eos_token,
        "eos_on_hard_cut_only": settings.add_eos_token_type == "Hard Cut Blocks Only",
        **changes,
    }
    try:
        if settings.overlap_len > 0 and not settings.precize_slicing_overlap and not settings.sliding_window:
            return slice_fixed(text, tokenizer, overlap_len=settings.overlap_len, newline_favor_len=settings.newline_favor_len, **common)
        return slice_text(text, tokenizer, overlap=settings.precize_slicing_overlap, sliding_window=settings.sliding_window, **common)
    except ValueError as error:
        raise DataError([str(error)]) from error


def text_row_items(rows: list[dict], file: str, settings: TrainingSettings, tokenizer: Any, progress: Progress) -> Iterator[Item]:
    """Rows that hold a whole text under “text”: each is a unit of its own, cut into blocks where it is longer than the cutoff."""
    if wrong := [number for number, row in enumerate(rows, 1) if not isinstance(row.get("text"), str) or not row["text"].strip()]:
        raise DataError(
            [f"“{file}”: {_numbers(wrong)} have no text under “text”. Mend the rows, or say in Column mapping which column it is (text=…)."]
        )
    for number, row in enumerate(rows, 1):
        if number % BATCH == 1:
            progress(f"Slicing {file}", number / len(rows))
        for block in _sliced(row["text"], settings, tokenizer, hard_cut_string=""):
            yield _text_item(block, row=number)


def _text_item(block: Block, row: int = 0) -> Item:
    item = _item(block.input_ids, [True] * len(block.input_ids), [], [], "overlapping" if block.overlapping else "text", row=row)
    return replace(item, start=block.start, end=block.end)


# Tokens


def bos_eos(tokenizer: Any, settings: TrainingSettings) -> tuple[list[int], list[int]]:
    bos = [tokenizer.bos_token_id] if settings.add_bos_token and tokenizer.bos_token_id is not None else []
    eos = [tokenizer.eos_token_id] if settings.add_eos_token and tokenizer.eos_token_id is not None else []
    return bos, eos


def _tokenized(texts: list[str], tokenizer: Any, want_starts: bool, doing: str, progress: Progress) -> Iterator[tuple[list[int], list[int], str]]:
    """(ids, where each token starts in the text, text) of each text; the starts only where they are wanted."""
    fast = getattr(tokenizer, "is_fast", False)
    for first in range(0, len(texts), BATCH):
        progress(doing, first / len(texts))
        batch = texts[first : first + BATCH]
        offsets = {"return_offsets_mapping": True} if want_starts and fast else {}
        encoded = tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False, **offsets)
        for number, text in enumerate(batch):
            ids = encoded["input_ids"][number]
            starts = []
            if offsets:
                starts = [begin for begin, _ in encoded["offset_mapping"][number]]
            elif want_starts:
                starts = _starts_by_prefix(ids, text, tokenizer)
            yield ids, starts, text


def _starts_by_prefix(ids: list[int], text: str, tokenizer: Any) -> list[int]:
    """Where each token starts, for a tokenizer that cannot say: by the length of what the ids before it decode to."""
    return [min(len(tokenizer.decode(ids[:n], clean_up_tokenization_spaces=False)), len(text)) for n in range(len(ids))]


def _item(ids: list[int], mask: list[bool], bos: list[int], eos: list[int], kind: str, *, row: int = 0, eos_trained: bool = True) -> Item:
    """Add BOS and EOS and make the labels. The first token is never predicted, so its label is always ignored."""
    whole = with_bos_eos(ids, bos, eos)
    added_before = bool(bos) and ids[:1] != bos
    added_behind = len(whole) - len(ids) - added_before
    learned = [False] * added_before + list(mask) + [eos_trained] * added_behind
    labels = [token if learn else IGNORED for token, learn in zip(whole, learned, strict=True)]
    if labels:
        labels[0] = IGNORED
    return Item(list(whole), labels, kind, row=row)


PAD_TOKENS = ("<|finetune_right_pad_id|>", "<|vision_pad|>", "<pad>", "[PAD]", "<|pad|>", "<PAD>", "<|padding|>", "<|end_of_text|>")


def choose_pad_id(tokenizer: Any) -> int:
    """The id that fills up a batch: the tokenizer's own, a reserved padding token, <|end_of_text|>, unk, EOS, else 0.

    Padding is masked by position, so an id that also means something else does no harm; the tokenizer is not changed.
    """
    if tokenizer.pad_token_id is not None:
        return tokenizer.pad_token_id
    vocabulary = tokenizer.get_vocab()
    for token in PAD_TOKENS:
        if token in vocabulary:
            return vocabulary[token]
    for candidate in (tokenizer.unk_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return candidate
    return 0


class Collator:
    """Pads a batch to its longest block; attention and labels are cut off by position, never by the pad id.

    `multiple` rounds the length up (8 suits CUDA's matrix units). Returns int64 tensors of shape (batch, length).
    """

    def __init__(self, pad_id: int, multiple: int = 1):
        self.pad_id, self.multiple = pad_id, multiple

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        longest = max(len(item["input_ids"]) for item in items)
        length = -(-longest // self.multiple) * self.multiple
        input_ids = torch.full((len(items), length), self.pad_id, dtype=torch.long)
        labels = torch.full((len(items), length), IGNORED, dtype=torch.long)
        attention_mask = torch.zeros((len(items), length), dtype=torch.long)
        for row, item in enumerate(items):
            size = len(item["input_ids"])
            input_ids[row, :size] = torch.as_tensor(item["input_ids"])
            labels[row, :size] = torch.as_tensor(item["labels"])
            attention_mask[row, :size] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
