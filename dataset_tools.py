"""Rows and text files → texts → tokens and labels. Verify and Start both call `prepare`, so what is shown is what is trained."""

from __future__ import annotations

import copy
import errno
import logging
import random
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

from .blocks import IGNORED, Blocks, Item, spans_of
from .chat_templates import TemplateError, assistant_spans, render, template_for
from .custom_scheduler import schedule_notices
from .encoding import Encoder
from .hygiene import Hygiene
from .kept import Kept, mark_of
from .packing import Packing, padding_share
from .paths import natural_key, reason
from .rows import ROWS_NAMED, DataError, Row, Rows, is_hub_name, open_rows, read_json, read_rows, read_text
from .seams import Seams
from .settings import OPTIONS, TEXT_ROWS, Plan, TrainingSettings
from .slicer import Block, is_small, iter_blocks, slice_fixed, with_bos_eos

__all__ = ["Collator", "DataError", "Prepared", "Progress", "Report", "prepare", "read_rows", "read_text"]

logger = logging.getLogger(__name__)

LEFT_OUT = ("nothing trained", "too long")
LEFT_OUT_KEPT = 1000  # of each reason, to be looked at
BATCH = 1000  # rows that are tokenized at once
SLICED = 200  # blocks between two reports of progress

Progress = Callable[[str, float], None]  # what is being done, and which share of it; may raise to stop the work


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
    unfit_rows: int = 0
    repeated_rows: int = 0
    eval_blocks: int = 0
    eval_left_out: int = 0
    steps_per_epoch: int = 0
    total_steps: int = 0
    accumulation: int = 1
    padding: float = 0.0  # share of what is computed, as it is chosen
    packed_rows: int = 0  # rows that the blocks share, or would share, with Packing; 0: not looked at
    packed_padding: float = 0.0  # and the share then
    packed_steps_per_epoch: int = 0
    warmup_suggested: int = 0
    save_suggested: int = 0
    cutoff_suggested: int = 0
    notices: list[str] = field(default_factory=list)
    hygiene: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Prepared:
    """What a run trains on.

    `train` and `eval` are `datasets.Dataset`s with `input_ids` and `labels` (lists of int of equal length, `IGNORED` where no
    loss is computed; the first token of a block is never predicted, so it is never trained). `formatting` is what the texts were made with,
    saved as training_prompt.json. `pad_id` fills up a batch. `blocks` are those of `train` with where they came from;
    `left_out` are the first that are not trained, by the reason (keys of LEFT_OUT); `text_files` are the files that text blocks were
    cut from; `repeats` are the numbers of the rows that “Leave out repeats” leaves out. With `packing`, blocks share rows, and the steps of
    `plan` are of rows.
    """

    train: Any
    eval: Any | None
    report: Report
    plan: Plan
    formatting: dict[str, Any]
    pad_id: int
    blocks: Blocks
    left_out: dict[str, Blocks]
    text_files: list[Path] = field(default_factory=list)
    repeats: set[int] = field(default_factory=set)
    packing: Packing | None = None


@dataclass
class _Gathered:
    """What the data alone decides, whatever the run does with it. `looked`: repeats were looked for."""

    blocks: Blocks
    evaluated: Blocks
    report: Report
    formatting: dict[str, Any]
    left_out: dict[str, Blocks]
    text_files: list[Path]
    repeats: set[int]
    looked: bool


_kept = Kept()


def prepare(settings: TrainingSettings, tokenizer: Any, host: Any, progress: Progress | None = None, *, look: bool = False) -> Prepared:
    """Read, format, tokenize, mask and cut the chosen data.

    Args:
        settings: which data and how; checked with `problems` before.
        tokenizer: the model's; only called, never changed.
        host: a `host.Host`, for the folders and for its chat template.
        progress: called with what is being done and the share of it that is done; what it raises ends the work.
        look: also look for repeated rows where they are not left out.

    Raises:
        DataError: with every problem that was found.
    """
    try:
        mark = mark_of(settings, tokenizer, host)
        found = _kept.find(mark)
        if found is None or look > found.looked:
            found = _Work(settings, tokenizer, host, progress or (lambda doing, share: None)).gathered(look)
            if mark is not None and mark == mark_of(settings, tokenizer, host):  # no file was changed meanwhile
                _kept.keep(mark, found)
        return _for_the_run(found, settings, tokenizer, host, look)
    except OSError as error:
        raise DataError([_unreadable(error, host.scratch_dir)]) from error


def _unreadable(error: OSError, scratch: Path) -> str:
    """Whether a file went away while it was read, or our own cannot be written (whose errors may name no file)."""
    if isinstance(error.filename, str) and not error.filename.startswith(str(scratch.parent)):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):  # the hub's cache
            return f"The disk is full: {reason(error)}. Free some space, then try again."
        said = f"“{Path(error.filename).name}” cannot be read: {error.strerror or error}."
        return f"{said} See that it is there and stays as it is until its blocks are made, then try again."
    return f"The prepared data cannot be written into {scratch}: {error.strerror or error}. Free some space, or make the folder writable."


def forget_prepared() -> None:
    """Prepare everything anew from now on; for measuring."""
    _kept.clear()


def _for_the_run(found: _Gathered, settings: TrainingSettings, tokenizer: Any, host: Any, look: bool) -> Prepared:
    """What was gathered, with the steps and the numbers that these settings make of it."""
    blocks, report = found.blocks, copy.deepcopy(found.report)
    packing = Packing(blocks.lengths, settings.cutoff_len, settings.seed) if settings.packing or look else None
    plan = Plan.of(settings, len(packing) if settings.packing else len(blocks))
    _measure(blocks, settings, plan, report, getattr(host, "context_length", None))
    if packing is not None:
        _measure_packing(packing, settings, report)
    return Prepared(
        blocks.dataset(), found.evaluated.dataset() if found.evaluated else None, report, plan, dict(found.formatting), choose_pad_id(tokenizer),
        blocks, found.left_out, list(found.text_files), set(found.repeats), packing if settings.packing else None,
    )  # fmt: skip


class _Work:
    """One preparation: what is needed everywhere, and what is found on the way."""

    def __init__(self, settings: TrainingSettings, tokenizer: Any, host: Any, progress: Progress):
        self.settings, self.tokenizer, self.host, self.progress = settings, tokenizer, host, progress
        self.encoder, self.seams = Encoder(tokenizer), Seams(tokenizer)
        self.bos, self.eos = bos_eos(tokenizer, settings)
        self.report = Report()
        self.formatting: dict[str, Any] = {}
        self.text_files: list[Path] = []
        self.repeats: set[int] = set()

    def gathered(self, look: bool) -> _Gathered:
        settings, report = self.settings, self.report
        if (look or settings.leave_out_repeats) and (settings.dataset or settings.datasetJSONL):
            self._look_for_repeats()
        left_out = {reason: Blocks() for reason in LEFT_OUT}
        blocks = self._keep(self._items(False, report), report, left_out)
        evaluation, _ = settings.evaluation
        evaluated = Blocks(self.host.scratch_dir)
        if evaluation:
            side = Report()
            evaluated = self._keep(self._items(True, side), side, {})
            report.eval_blocks, report.eval_left_out = len(evaluated), side.dropped_rows + side.untrained_rows + side.unfit_rows
            if not evaluated:
                raise DataError([f"{_evaluation_label(settings)}: no row of “{evaluation}” is left to measure; {_why_none(side, settings)}"])
        if not blocks:
            raise DataError([f"Nothing is left to train; {_why_none(report, settings)}"])
        return _Gathered(blocks, evaluated, report, self.formatting, left_out, self.text_files, self.repeats, look)

    # Which data

    def _items(self, evaluation: bool, report: Report) -> Iterator[Item]:
        """The blocks of the chosen training or evaluation data, tokenized and masked, before anything is left out."""
        settings = self.settings
        if settings.hybrid_training and not evaluation:
            rows = self._share(self._row_items(False, report), settings.hybrid_data_ratio)
            return chain(rows, self._share(self._text_items(report), settings.hybrid_text_ratio))
        if settings.dataset or settings.datasetJSONL or evaluation:
            return self._row_items(evaluation, report)
        return self._text_items(report)

    def _rows(self, evaluation: bool) -> Iterator[tuple[int, Row]]:
        """The chosen rows with their columns named as the formats know them, without those that are left out as repeats."""
        settings = self.settings
        if settings.datasetJSONL:
            key = "eval_datasetJSONL" if evaluation else "datasetJSONL"
        else:
            key = "eval_dataset" if evaluation else "dataset"
        self.source = open_rows(self._find(key))
        without = self.repeats if settings.leave_out_repeats and not evaluation else set()
        return ((number, row) for number, row in map_columns(self.source, settings.column_mapping, self.source.name) if number not in without)

    def _row_items(self, evaluation: bool, report: Report) -> Iterator[Item]:
        rows = self._rows(evaluation)
        if self.settings.datasetJSONL:
            return self._chat_items(rows, report)
        if self._format() == TEXT_ROWS:
            return self._text_row_items(rows, report)
        return self._json_items(rows, report)

    def _format(self) -> str | dict[str, str]:
        """The format file's entries, or TEXT_ROWS."""
        chosen = self.settings.format
        if not chosen:
            raise DataError(
                [f"Data Format is not chosen: a JSON Dataset needs one, such as alpaca-format, or “{TEXT_ROWS}” for rows that hold a whole text."]
            )
        if chosen == TEXT_ROWS:
            self.formatting["text_rows"] = "text"
            return TEXT_ROWS
        if "format" not in self.formatting:
            self.formatting["format"] = read_format(self._find("format"))
        return self.formatting["format"]

    def _template(self) -> str:
        if "chat_template" not in self.formatting:
            try:
                self.formatting["chat_template"] = template_for(self.settings, self.tokenizer, self.host)
            except (TemplateError, OSError, ValueError) as error:
                raise DataError([reason(error)]) from error
        return self.formatting["chat_template"]

    def _find(self, key: str) -> Path | str:
        name = getattr(self.settings, key)
        if OPTIONS[key].files in ("json", "jsonl") and is_hub_name(name):
            return name
        try:
            return self.host.data_file(OPTIONS[key].files, name)
        except (ValueError, OSError) as error:
            raise DataError([f"{OPTIONS[key].label}: {reason(error)}"]) from error

    def _share(self, items: Iterable[Item], percent: int) -> Iterator[Item]:
        """So many of 100 blocks, drawn with the seed evenly across the data."""
        if percent >= 100:
            return iter(items)
        found = Blocks(self.host.scratch_dir)
        for item in items:
            found.add(item)
        return (found[number] for number in share(len(found), percent, self.settings.seed))

    def _keep(self, items: Iterable[Item], report: Report, left_out: dict[str, Blocks]) -> Blocks:
        """Trim or leave out what is longer than the cutoff, leave out what has no trained token, and count both.

        The longest lengths are those before trimming: they tell which cutoff would hold everything.
        """
        cutoff, eliminate = self.settings.cutoff_len, self.settings.eliminate_long_blocks

        def leave_out(item: Item, reason: str) -> None:
            if reason in left_out and len(left_out[reason]) < LEFT_OUT_KEPT:
                left_out[reason].add(item)

        kept = Blocks(self.host.scratch_dir)
        for item in items:
            length = len(item.input_ids)
            if length > report.second_longest_block:
                report.second_longest_block, report.longest_block = sorted((report.longest_block, length))
            if length > cutoff:
                if eliminate:
                    report.dropped_rows += 1
                    leave_out(item, "too long")
                    continue
                report.trimmed_rows += 1
                item.cut(cutoff)
            if not item.spans:
                report.untrained_rows += 1  # its loss would be 0 / 0
                leave_out(item, "nothing trained")
                continue
            kept.add(item)
        return kept

    # Repeats

    def _look_for_repeats(self) -> None:
        """Find rows that stand in the data more than once, or in the evaluation data too, and what is wrong with answers."""
        found = Hygiene()
        evaluation, _ = self.settings.evaluation
        names = []
        for side in [False, True] if evaluation else [False]:
            rows = self._rows(side)
            names.append(self.source.name)
            for number, text, answer in self._read_texts(rows):
                found.see(number, text, answer, evaluation=side)
                if number % BATCH == 0:
                    self.progress(f"Looking for repeats in {self.source.name}", self.source.share)
        self.progress("Comparing rows", 0.0)
        findings = found.findings()
        self.repeats = findings.leave_out()
        self.report.hygiene = findings.sentences(names[0], names[1] if evaluation else None)
        if self.settings.leave_out_repeats:
            self.report.repeated_rows = len(self.repeats)

    def _read_texts(self, rows: Iterator[tuple[int, Row]]) -> Iterator[tuple[int, str, str | None]]:
        """Each row's number, its text as a person reads it, and its answer where it has one. Rows that do not fit are left to the preparation."""
        if self.settings.datasetJSONL:
            for number, row in rows:
                if chat := messages_of(row):
                    answers = [turn["content"] for turn in chat if turn["role"] == "assistant"]
                    yield number, "\n".join(f"{turn['role']}: {turn['content']}" for turn in chat), answers[-1] if answers else None
            return
        template = self._format()
        entries = by_key_set(template) if isinstance(template, dict) else {}
        marker = self.settings.train_only_after
        for number, row in rows:
            text = row.get("text") if template == TEXT_ROWS else format_row(row, entries)
            answer = next((row[key] for key in ANSWERS if isinstance(row.get(key), str)), None)
            if not isinstance(text, str):
                text = "\n".join(str(value) for value in row.values())
            if answer is None and marker and marker in text:
                answer = text.partition(marker)[2]
            yield number, text, answer

    # Rows with a format file

    def _json_items(self, rows: Iterator[tuple[int, Row]], report: Report) -> Iterator[Item]:
        """Format and tokenize flat rows; without Train on Inputs only what follows Train Only After is trained."""
        marker = "" if self.settings.train_on_inputs else self.settings.train_only_after
        for batch in self._batches(self._formatted(rows, report)):
            texts = [text for _, text in batch]
            if not marker:
                for (number, _), ids in zip(batch, self.encoder.ids(texts), strict=True):
                    yield self._item(ids, 0, number)
                continue
            for (number, text), (ids, starts) in zip(batch, self.encoder.ids_and_starts(texts), strict=True):
                place = text.find(marker)
                first = bisect_left(starts, place + len(marker)) if place >= 0 else len(ids)
                yield self._item(ids, first, number, eos_trained=place >= 0)

    def _formatted(self, rows: Iterator[tuple[int, Row]], report: Report) -> Iterator[tuple[int, str]]:
        template, name = self._format(), self.source.name
        entries = by_key_set(template)
        misfits = _Misfits(name, self.settings, report)
        for number, row in rows:
            text = format_row(row, entries)
            if text is None:
                misfits.add(_unfit(name, number, row, template))
            elif misfits.go_on:
                yield number, text
        misfits.end()

    def _batches(self, pairs: Iterator[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
        source = self.source
        while batch := list(islice(pairs, BATCH)):
            self.progress(f"Tokenizing {source.name}", source.share)
            yield batch

    def _item(self, ids: list[int], first: int, row: int, *, eos_trained: bool = True) -> Item:
        """A row whose tokens are learned from `first` on, with BOS and EOS. The first token is never predicted, so it is never learned."""
        before = 1 if self.bos and ids[:1] != self.bos else 0
        whole = with_bos_eos(ids, self.bos, self.eos)
        begin = max(1, first + before)
        end = len(whole) if eos_trained else before + len(ids)
        return Item(whole, [(begin, end)] if begin < end else [], "json", row=row)

    # Chats

    def _chat_items(self, rows: Iterator[tuple[int, Row]], report: Report) -> Iterator[Item]:
        """Render chats with the chat template and tokenize them; without Train on Inputs only the assistant's turns are trained."""
        special = set(self.tokenizer.all_special_ids)
        for batch in self._batches(self._rendered(rows, report)):
            texts = [text for _, (text, _) in batch]
            if self.settings.train_on_inputs:
                for (number, _), ids in zip(batch, self.encoder.ids(texts), strict=True):
                    yield Item(ids, [(1, len(ids))] if len(ids) > 1 else [], "jsonl", row=number)
                continue
            for (number, (text, turns)), (ids, starts) in zip(batch, self.encoder.ids_and_starts(texts), strict=True):
                mask = [False] * len(ids)
                for begin, end in turns:
                    first, after = _turn(begin, end, ids, starts, text, special)
                    mask[first:after] = [True] * (after - first)
                yield Item(ids, spans_of(mask), "jsonl", row=number)

    def _rendered(self, rows: Iterator[tuple[int, Row]], report: Report) -> Iterator[tuple[int, tuple[str, list[tuple[int, int]]]]]:
        """Each chat's text, and the characters of it that the assistant says."""
        template, name = self._template(), self.source.name
        misfits = _Misfits(name, self.settings, report)
        for number, row in rows:
            chat = messages_of(row)
            if chat is None:
                misfits.add(f"“{name}”, row {number} has no chat; it needs “messages” with role and content, or “conversations” with from and value.")
                continue
            try:
                text = render(self.tokenizer, chat, template)
                spans = [] if self.settings.train_on_inputs else assistant_spans(self.tokenizer, chat, template, text)
            except TemplateError as error:  # it would take as long for each row
                raise DataError([str(error)]) from error
            except Exception as error:  # a template is a program of the model's maker: it may raise anything
                misfits.add(f"“{name}”, row {number}: {_template_fault(error)}")
                continue
            if misfits.go_on:
                yield number, (text, spans)
        misfits.end()

    # Text

    def _text_items(self, report: Report) -> Iterator[Item]:
        """Cut a .txt, or each .txt of a folder in natural order, into blocks."""
        path = self._find("raw_text_file")
        files = sorted(path.glob("*.txt"), key=lambda file: natural_key(file.name)) if path.is_dir() else [path]
        if not files:
            raise DataError([f"Text file: the folder “{path.name}” holds no .txt files."])
        self.text_files = files
        for number, file in enumerate(files):
            self.progress(f"Reading {file.name}", number / len(files))
            text = read_text(file)
            for count, block in enumerate(self._sliced(text)):
                if count % SLICED == 0:
                    self.progress(f"Slicing {file.name}", (number + block.end / max(1, len(text))) / len(files))
                if self.settings.min_chars > 0 and is_small(block, self.settings.min_chars):
                    report.small_blocks += 1
                else:
                    yield _text_item(block, file=number)

    def _text_row_items(self, rows: Iterator[tuple[int, Row]], report: Report) -> Iterator[Item]:
        """Rows that hold a whole text under “text”: each is a unit of its own, cut into blocks where it is longer than the cutoff."""
        name, source = self.source.name, self.source
        misfits = _Misfits(name, self.settings, report)
        for number, row in rows:
            text = row.get("text")
            if not isinstance(text, str) or not text.strip():
                misfits.add(f"“{name}”, row {number} has no text under “text”. Mend the row, or say in Column mapping which column it is (text=…).")
                continue
            if number % BATCH == 1:
                self.progress(f"Slicing {name}", source.share)
            if misfits.go_on:
                for block in self._sliced(text, hard_cut_string=""):
                    yield _text_item(block, row=number)
        misfits.end()

    def _sliced(self, text: str, **changes: Any) -> Iterator[Block]:
        """The blocks of a text, by the older fixed-length slicing where that is chosen."""
        settings = self.settings
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
                fixed = {"overlap_len": settings.overlap_len, "newline_favor_len": settings.newline_favor_len}
                yield from slice_fixed(text, self.seams, **fixed, **common)
            else:
                more = {"overlap": settings.precize_slicing_overlap, "sliding_window": settings.sliding_window}
                yield from iter_blocks(text, self.seams, **more, **common)
        except ValueError as error:
            raise DataError([str(error)]) from error


def _text_item(block: Block, row: int = 0, file: int = 0) -> Item:
    ids = block.input_ids
    kind = "overlapping" if block.overlapping else "text"
    return Item(ids, [(1, len(ids))] if len(ids) > 1 else [], kind, row=row, start=block.start, end=block.end, file=file)


class _Misfits:
    """Rows that cannot be made into a text: named all together at the end, or left out where the user says so."""

    def __init__(self, name: str, settings: TrainingSettings, report: Report):
        self.name, self.skip, self.report = name, settings.skip_unfit_rows, report
        self.found = 0
        self.sentences: list[str] = []

    def add(self, sentence: str) -> None:
        self.found += 1
        if len(self.sentences) < ROWS_NAMED:
            self.sentences.append(sentence)

    @property
    def go_on(self) -> bool:
        """Whether the rows behind are still prepared; else they are only looked at for further faults."""
        return self.skip or not self.found

    def end(self) -> None:
        if self.found and not self.skip:
            more = [f"… and {self.found - ROWS_NAMED} more rows."] if self.found > ROWS_NAMED else []
            raise DataError([*self.sentences, *more, f"Or tick “{OPTIONS['skip_unfit_rows'].label}” to leave such rows out."])
        self.report.unfit_rows += self.found


def _evaluation_label(settings: TrainingSettings) -> str:
    return OPTIONS["eval_datasetJSONL" if settings.datasetJSONL else "eval_dataset"].label


def share(count: int, percent: int, seed: int) -> list[int]:
    """The numbers of so many of 100 blocks: one drawn by chance from each of as many equal stretches, so that all parts of the data are there."""
    wanted = round(count * percent / 100)
    chance = random.Random(seed)
    edges = [number * count // wanted for number in range(wanted + 1)] if wanted else []
    return [chance.randrange(first, after) for first, after in pairwise(edges)]


def _why_none(report: Report, settings: TrainingSettings) -> str:
    reasons = []
    if report.untrained_rows:
        reason = f"{report.untrained_rows} rows have no trained token"
        if settings.dataset and not settings.train_on_inputs:
            reason += f": “{settings.train_only_after}” (Train Only After) stands in none of them, or only behind the cutoff"
        reasons.append(reason)
    if report.unfit_rows:
        reasons.append(f"{report.unfit_rows} rows do not fit (Skip rows that do not fit is on)")
    if report.repeated_rows:
        reasons.append(f"{report.repeated_rows} rows are repeats (Leave out repeats is on)")
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
    report.notices += schedule_notices(settings.lr_scheduler_type, **plan.schedule_lengths(settings), epochs=settings.epochs)


def _measure_packing(packing: Packing, settings: TrainingSettings, report: Report) -> None:
    """What Packing makes of the blocks, and how much padding there is with and without it."""
    import numpy

    lengths = numpy.asarray(packing.lengths)
    size = settings.micro_batch_size
    order = numpy.argsort(lengths) if settings.group_by_length else numpy.random.default_rng(settings.seed).permutation(len(lengths))
    rows = [sum(packing.lengths[block] for block in row) for row in packing.of(0)]
    report.packed_rows = len(packing)
    report.packed_steps_per_epoch = -(-len(packing) // size)
    report.packed_padding = padding_share(rows, size, range(len(rows)))
    report.padding = report.packed_padding if settings.packing else padding_share(lengths, size, order)
    if settings.packing and settings.group_by_length:
        report.notices.append("Group Samples by Length changes nothing with Packing: the rows are of like length already.")


# Rows


ANSWERS = ("output", "response", "answer", "completion")


def map_columns(rows: Rows | Iterable[tuple[int, Row]], mapping: str, file: str) -> Iterator[tuple[int, Row]]:
    """Give columns the names that the Data Format knows: “instruction=question, output=answer”.

    Raises:
        DataError: the mapping is not of that form, or names a column that no row has.
    """
    if not mapping.strip():
        yield from rows
        return
    names = {}
    for part in mapping.split(","):
        ours, sign, theirs = (piece.strip() for piece in part.partition("="))
        if not (ours and sign and theirs):
            raise DataError([f"Column mapping: “{part.strip()}” is not of the form instruction=question."])
        names[theirs] = ours
    known: dict[str, None] = {}
    for number, row in rows:
        known.update(dict.fromkeys(row))
        yield number, {names.get(key, key): value for key, value in row.items() if key in names or key not in names.values()}
    if missing := [name for name in names if name not in known]:
        raise DataError([f"Column mapping: “{file}” has no column {' or '.join(missing)}; it has {', '.join(known)}."])


# JSON rows with a format file


def read_format(path: Path) -> dict[str, str]:
    """A format file: a comma-separated list of keys → a text with %key% in it.

    Raises:
        DataError: it is not such a file.
    """
    read = read_json(path)
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


def _unfit(file: str, number: int, row: Row, template: dict[str, str]) -> str:
    known = " or ".join(f"“{keys}”" for keys in template)
    keys = ", ".join(key for key, value in row.items() if isinstance(value, str) and value.strip()) or "nothing"
    return f"“{file}”, row {number}: it has text under {keys}; the Data Format knows {known}. Mend the row or choose another Data Format."


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


def _template_fault(error: Exception) -> str:
    said = str(error).strip().splitlines()
    return f"the chat template refuses it: {said[0] if said else type(error).__name__}. Change the row's roles or their order."


def _token_begin(starts: list[int], text: str, begin: int) -> int:
    """Where the token starts that holds the span's first character: one that begins with the space before a word is learned whole."""
    place = bisect_right(starts, begin) - 1
    return starts[place] if place >= 0 and text[starts[place] : begin].isspace() else begin


def _turn(begin: int, end: int, ids: list[int], starts: list[int], text: str, special: set[int]) -> tuple[int, int]:
    """The tokens of what the assistant says, without the white space that a template puts behind the end-of-turn token: the model never
    has to write it."""
    first, after = bisect_left(starts, _token_begin(starts, text, begin)), bisect_left(starts, end)
    last = max((place for place in range(first, after) if ids[place] in special), default=None)
    if last is not None and not text[starts[last + 1] if last + 1 < len(ids) else len(text) : end].strip():
        after = last + 1
    return first, after


# Tokens


def bos_eos(tokenizer: Any, settings: TrainingSettings) -> tuple[list[int], list[int]]:
    """What a block begins and ends with."""
    bos = [tokenizer.bos_token_id] if settings.add_bos_token and tokenizer.bos_token_id is not None else []
    eos = [tokenizer.eos_token_id] if settings.add_eos_token and tokenizer.eos_token_id is not None else []
    return bos, eos


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
