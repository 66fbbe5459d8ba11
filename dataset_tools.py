"""Files → rows → texts → tokens and labels. Verify and Start both call `prepare`, so what is shown is what is trained."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .custom_scheduler import schedule_notices
from .paths import natural_key
from .settings import OPTIONS, Plan, TrainingSettings
from .slicer import slice_text, with_bos_eos, without_small_blocks

logger = logging.getLogger(__name__)

IGNORED = -100  # the label that no loss is computed on (torch.nn.CrossEntropyLoss)
ROWS_NAMED = 5  # how many bad rows a message names before it only counts them
BATCH = 1000  # rows that are tokenized at once

Progress = Callable[[str, float], None]  # what is being done, and which share of it


class DataError(ValueError):
    """Data that cannot be trained; `problems` has a sentence for each fault, with the file, the place and what to do."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass
class Item:
    """One block before it is put into a dataset."""

    input_ids: list[int]
    labels: list[int]
    kind: str  # json, jsonl, text or overlapping
    trimmed: bool = False

    @property
    def trained(self) -> int:
        return sum(label != IGNORED for label in self.labels)


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
    saved as training_prompt.json. `pad_id` fills up a batch.
    """

    train: Any
    eval: Any | None
    report: Report
    plan: Plan
    formatting: dict[str, Any]
    pad_id: int


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
    items = _keep(_items(settings, tokenizer, host, False, report, formatting, progress), settings, report)
    evaluation, _ = settings.evaluation
    evaluated: list[Item] = []
    if evaluation:
        side = Report()
        evaluated = _keep(_items(settings, tokenizer, host, True, side, formatting, progress), settings, side)
        report.eval_blocks, report.eval_left_out = len(evaluated), side.dropped_rows + side.untrained_rows
        if not evaluated:
            raise DataError([f"{_evaluation_label(settings)}: no row of “{evaluation}” is left to measure; {_why_none(side, settings)}"])
    if not items:
        raise DataError([f"Nothing is left to train; {_why_none(report, settings)}"])

    plan = Plan.of(settings, len(items))
    _measure(items, settings, plan, report, getattr(host, "context_length", None))
    return Prepared(_dataset(items), _dataset(evaluated) if evaluated else None, report, plan, formatting, choose_pad_id(tokenizer))


def _evaluation_label(settings: TrainingSettings) -> str:
    return OPTIONS["eval_datasetJSONL" if settings.datasetJSONL else "eval_dataset"].label


def _items(settings, tokenizer, host, evaluation: bool, report: Report, formatting: dict, progress: Progress) -> Iterator[Item]:
    """The blocks of the chosen training or evaluation data, tokenized and masked, before anything is left out."""
    if settings.datasetJSONL:
        key = "eval_datasetJSONL" if evaluation else "datasetJSONL"
        path = _find(host, key, settings)
        return chat_items(read_rows(path), path.name, settings, tokenizer, host.instruction_template(), formatting, progress)
    if settings.dataset or evaluation:
        key = "eval_dataset" if evaluation else "dataset"
        path = _find(host, key, settings)
        if not settings.format:
            raise DataError(["Data Format is not chosen: a JSON Dataset needs one, such as alpaca-format."])
        template = read_format(_find(host, "format", settings))
        formatting["format"] = template
        return json_items(read_rows(path), path.name, template, settings, tokenizer, progress)
    return text_items(_find(host, "raw_text_file", settings), settings, tokenizer, report, progress)


def _find(host: Any, key: str, settings: TrainingSettings) -> Path:
    try:
        return host.data_file(OPTIONS[key].files, getattr(settings, key))
    except (ValueError, OSError) as error:
        raise DataError([f"{OPTIONS[key].label}: {error}"]) from error


def _keep(items: Iterable[Item], settings: TrainingSettings, report: Report) -> list[Item]:
    """Trim or leave out what is longer than the cutoff, leave out what has no trained token, and count both.

    The longest lengths are those before trimming: they tell which cutoff would hold everything.
    """
    kept = []
    for item in items:
        report.second_longest_block, report.longest_block = sorted((report.second_longest_block, report.longest_block, len(item.input_ids)))[1:]
        if len(item.input_ids) > settings.cutoff_len:
            if settings.eliminate_long_blocks:
                report.dropped_rows += 1
                continue
            report.trimmed_rows += 1
            item = Item(item.input_ids[: settings.cutoff_len], item.labels[: settings.cutoff_len], item.kind, trimmed=True)
        if not item.trained:
            report.untrained_rows += 1  # its loss would be 0 / 0
            continue
        kept.append(item)
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


def _measure(items: list[Item], settings: TrainingSettings, plan: Plan, report: Report, model_context: int | None) -> None:
    for item in items:
        report.kinds[item.kind] = report.kinds.get(item.kind, 0) + 1
    report.blocks = len(items)
    report.total_tokens = sum(len(item.input_ids) for item in items)
    report.trained_tokens = sum(item.trained for item in items)
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


def _dataset(items: list[Item]) -> Any:
    import datasets

    columns = {"input_ids": [item.input_ids for item in items], "labels": [item.labels for item in items]}
    integers = datasets.Sequence(datasets.Value("int32"))
    return datasets.Dataset.from_dict(columns, features=datasets.Features(input_ids=integers, labels=integers))


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
    """The rows of a JSON array, or of a file with one JSON object a line; which of the two is seen from the file.

    Raises:
        DataError: broken JSON (with line and column), or rows that are not objects (with their numbers).
    """
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
    for ids, starts, text in _tokenized(texts, tokenizer, bool(marker), f"Tokenizing {file}", progress):
        if not marker:
            mask = [True] * len(ids)
        else:
            place = text.find(marker)
            learned_from = place + len(marker) if place >= 0 else len(text) + 1
            mask = [start >= learned_from for start in starts]
        yield _item(ids, mask, bos, eos, "json", eos_trained=not marker or marker in text)


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


def chat_items(rows, file, settings, tokenizer, fallback: str | None, formatting: dict, progress: Progress) -> Iterator[Item]:
    """Render chats with the chat template and tokenize them; without Train on Inputs only the assistant's turns are trained."""
    if not getattr(tokenizer, "chat_template", None) and not fallback:
        raise DataError(["JSONL Dataset: the model's tokenizer has no chat template; choose a model with one, or a JSON Dataset with a Data Format."])
    template = None if getattr(tokenizer, "chat_template", None) else fallback
    formatting["chat_template"] = template or tokenizer.chat_template
    chats = [messages_of(row) for row in rows]
    if wrong := [number for number, chat in enumerate(chats, 1) if chat is None]:
        raise DataError(
            [f"“{file}”: {_numbers(wrong)} have no chat; each row needs “messages” with role and content, or “conversations” with from and value."]
        )

    texts, spans, problems = [], [], []
    for number, chat in enumerate(chats, 1):
        try:
            text = _render(tokenizer, chat, template)
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
            mask = [any(begin <= start < end for begin, end in spans[number]) for start in starts]
            _end_with_turn(mask, ids, starts, text, spans[number], special)
        yield _item(ids, mask, [], [], "jsonl")


def _render(tokenizer: Any, chat: list[dict], template: str | None, *, prompt: bool = False) -> str:
    return tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, add_generation_prompt=prompt)


def _template_fault(error: Exception) -> str:
    said = str(error).strip().splitlines()
    return f"the chat template refuses it: {said[0] if said else type(error).__name__}. Change the row's roles or their order."


def assistant_spans(tokenizer: Any, chat: list[dict], template: str | None, text: str) -> list[tuple[int, int]]:
    """(start, end) in `text` of what the assistant says in each of its turns, up to the end of the turn.

    A turn is what the template adds when it is given one message more. That holds only where the chat so far is a prefix of
    the whole chat, which is checked for each turn.

    Raises:
        ValueError: the template writes earlier turns differently once later ones follow.
    """
    spans = []
    for number, message in enumerate(chat):
        if message["role"] != "assistant":
            continue
        before = _render(tokenizer, chat[:number], template, prompt=True) if number else ""
        upto = text if number == len(chat) - 1 else _render(tokenizer, chat[: number + 1], template)
        if not (text.startswith(upto) and upto.startswith(before)):
            raise ValueError(
                "it writes earlier turns differently once later ones follow, so the assistant's turns cannot be told apart; tick Train on Inputs"
            )
        spans.append((len(before), len(upto)))
    return spans


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
        blocks = slice_text(
            read_text(file),
            tokenizer,
            cutoff_len=settings.cutoff_len,
            overlap=settings.precize_slicing_overlap,
            sliding_window=settings.sliding_window,
            hard_cut_string=settings.hard_cut_string,
            add_bos=settings.add_bos_token,
            add_eos=settings.add_eos_token,
            eos_on_hard_cut_only=settings.add_eos_token_type == "Hard Cut Blocks Only",
        )
        large = without_small_blocks(blocks, settings.min_chars)
        report.small_blocks += len(blocks) - len(large)
        for block in large:
            yield _item(block.input_ids, [True] * len(block.input_ids), [], [], "overlapping" if block.overlapping else "text")


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


def _item(ids: list[int], mask: list[bool], bos: list[int], eos: list[int], kind: str, *, eos_trained: bool = True) -> Item:
    """Add BOS and EOS and make the labels. The first token is never predicted, so its label is always ignored."""
    whole = with_bos_eos(ids, bos, eos)
    added_before = bool(bos) and ids[:1] != bos
    added_behind = len(whole) - len(ids) - added_before
    learned = [False] * added_before + list(mask) + [eos_trained] * added_behind
    labels = [token if learn else IGNORED for token, learn in zip(whole, learned, strict=True)]
    if labels:
        labels[0] = IGNORED
    return Item(list(whole), labels, kind)


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
