"""What the page shows, made from data: plain functions from data to HTML or Markdown, so that they are tested without a page.

Everything that came from a file or a user is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from .blocks import Item
from .continued import Finished
from .dataset_tools import Report
from .host import Host
from .paths import whole_letters, without_folders
from .resume import THE_DATA, ResumePlan
from .resume import Item as ResumeItem
from .settings import BUILT_IN, NOT_CHOSEN, OPTIONS, SECTIONS
from .slicer_view import Piece, Slices, histogram
from .token_view import LEFT_OUT, Token
from .training_run import ADD_EPOCH, COOL_DOWN, DONE, ELSEWHERE, EVALUATE, FAILED, INTERRUPTED, PREPARING, SAVING, SCALE_RATE, TRAINING, TrainingRun

STATUS_WORDS = {
    PREPARING: "Preparing",
    TRAINING: "Training",
    SAVING: "Saving",
    DONE: "Done",
    INTERRUPTED: "Interrupted",
    FAILED: "Failed",
    ELSEWHERE: "Training elsewhere",
}


def model_line(host: Host, said: str = "") -> str:
    """The line on top: the loaded model with what there is to say about it, or why it cannot be trained and what to do."""
    if problem := host.model_problem():
        hint = f'<span class="tp-hint">{_said(said)}</span>' if said else ""
        return f'<div class="tp-model tp-bad"><b>No model to train</b><span>{_said(problem)}</span>{hint}</div>'
    facts = host.facts
    context = f"{facts.context:,} tokens of context" if facts.context else "context length unknown"
    parts = [facts.architecture, f"{facts.size} parameters", facts.weights, facts.device, context]
    hint = "".join(f'<span class="tp-hint">{_said(text)}</span>' for text in (said, facts.hint) if text)
    return f'<div class="tp-model"><b>{escape(facts.name)}</b>{"".join(f"<span>{escape(part)}</span>" for part in parts)}{hint}</div>'


def duration(seconds: float | None) -> str:
    """0:42, 3:07, 1:02:09"""
    if seconds is None:
        return "–"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def speed(steps_per_second: float | None) -> str:
    if not steps_per_second:
        return "–"
    return f"{steps_per_second:.1f} steps/s" if steps_per_second >= 1 else f"{1 / steps_per_second:.1f} s/step"


def status(run: TrainingRun | None) -> str:
    """The state of a run: what it does, how far it is, its figures, what it has to say."""
    if run is None:
        return '<div class="tp-status tp-idle">Nothing is being trained. Choose data, then Verify or Start LoRA Training.</div>'
    share = run.step / run.total_steps if run.total_steps else 0.0
    figures = [
        ("Step", f"{run.step:,} / {run.total_steps:,}" if run.total_steps else "–"),
        ("Epoch", f"{run.epoch:.2f}"),
        ("Loss", "–" if run.loss is None else f"{run.loss:.4f}"),
        ("Learning rate", "–" if run.learning_rate is None else f"{run.learning_rate:.2e}"),
        ("Speed", speed(run.steps_per_second)),
        ("Elapsed", duration(run.elapsed)),
        ("Remaining", duration(run.remaining) if run.active else "–"),
    ]
    if run.eval_loss is not None:
        figures.insert(3, ("Evaluation loss", f"{run.eval_loss:.4f}"))
    kind = "tp-running" if run.active else "tp-ok" if run.succeeded else "tp-idle" if run.status == ELSEWHERE else "tp-bad"
    message = run.message
    if run.stop_requested and run.active:
        message = "Interrupting: the current step is finished, then the LoRA is saved"
    elif run.checkpoint_requested and run.active:
        message = "A checkpoint will be saved after this step"
    return status_card(
        kind,
        STATUS_WORDS[run.status],
        f"“{run.name}”",
        share,
        message=message if message != STATUS_WORDS[run.status] else "",
        figures=figures,
        problems=run.problems,
        notices=run.notices,
        more="" if run.active else _carried_out(run),
    )


def status_card(
    kind: str,
    word: str,
    title: str,
    share: float,
    *,
    message: str = "",
    figures: Sequence[tuple[str, str]] = (),
    problems: Sequence[str] = (),
    notices: Sequence[str] = (),
    more: str = "",
) -> str:
    """What something does or how it ended: a word, its name, a bar of its share (0 to 1), figures with their labels, what it has to say.
    `more` is HTML."""
    cells = "".join(f"<div><dt>{label}</dt><dd>{escape(value)}</dd></div>" for label, value in figures)
    return (
        f'<div class="tp-status {kind}"><div class="tp-head"><i class="tp-dot"></i><b>{escape(word)}</b><span>{_said(title)}</span></div>'
        f'<div class="tp-message">{_said(message)}</div>{bar(share)}'
        f"<dl>{cells}</dl>{said_list(problems, 'tp-problems')}{said_list(notices, 'tp-notices')}{more}</div>"
    )


def bar(share: float) -> str:
    """How far something is, also for those who do not see it: of a progressbar, a number is read out."""
    percent = round(100 * min(1.0, max(0.0, share)), 1)
    return f'<div class="tp-bar" role="progressbar" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent:g}"><i style="width:{percent:g}%"></i></div>'


# Commands to a run

MOST_TOLD = 30  # commands that every page shows of a run
NO_EVALUATION = "Evaluate now needs an Evaluation Dataset, and this run was started without one."
STOP_WORDS = {"stop_at_loss": "stop at loss {:g}", "stop_at_epoch": "stop at epoch {:g}", "time_budget_minutes": "time budget of {:g} minutes"}
COMMAND_WORDS = {"interrupt": "interrupt", "checkpoint": "save a checkpoint", EVALUATE: "evaluate", ADD_EPOCH: "an epoch more"}


def commands(run: TrainingRun) -> str:
    """What a run was told while it runs, each with its step, the newest first; what waits for the step's end; what cannot be asked of it."""
    waiting = [f"{_command(kind, value)}: after this step" for kind, value in run.waiting_requests]
    lacking = [NO_EVALUATION] if run.report is not None and not run.report.eval_blocks else []
    stops = [STOP_WORDS[key].format(value) for key in STOP_WORDS if (value := getattr(run, key))]
    set_now = [f"It ends early by: {', '.join(stops)}."] if stops else []
    told = [*waiting, *(_told(entry) for entry in run.commands[: -MOST_TOLD - 1 : -1])]
    if (earlier := len(run.commands) - MOST_TOLD) > 0:
        told.append(f"{earlier:,} earlier ones are in run.jsonl")
    return f'<div class="tp-commands">{said_list(told, "tp-told")}{said_list(set_now + lacking, "tp-notices")}</div>'


def _carried_out(run: TrainingRun) -> str:
    if not run.commands:
        return ""
    told = [_told(entry) for entry in run.commands[-MOST_TOLD:]]
    if (earlier := len(run.commands) - MOST_TOLD) > 0:
        told.insert(0, f"{earlier:,} earlier ones are in run.jsonl")
    return f'<details class="tp-fold"><summary>What it was told ({len(run.commands)})</summary>{said_list(told, "tp-told")}</details>'


def _told(entry: dict[str, Any]) -> str:
    if entry["event"] == "refused":
        return f"step {entry['step']:,} · refused: {entry.get('why', '')}"
    more = f": it ends at step {entry['total_steps']:,}" if isinstance(entry.get("total_steps"), int) and entry.get("kind") != SCALE_RATE else ""
    return f"step {entry['step']:,} · {_command(entry.get('kind'), entry.get('value'))}{more}"


def _command(kind: Any, value: Any) -> str:
    number = value if isinstance(value, (int, float)) else 0
    if kind in STOP_WORDS:
        return STOP_WORDS[kind].format(number) if number else f"{OPTIONS[kind].label} off"
    if kind == SCALE_RATE:
        return f"learning rate × {number:g}"
    if kind == COOL_DOWN:
        return "cool down and finish"
    return COMMAND_WORDS.get(kind, str(kind))


# What Start does with what is there


ASTRAY = "Its loss went astray after that, and at the same learning rate would do so again. Half of it may carry it over that place."


def outlook(plan: ResumePlan, astray: bool, asked: bool = True) -> str:
    """What Start does with an unfinished run: what it puts back, and item by item what does not fit.

    Args:
        astray: the run ended since its loss or gradient went astray.
        asked: its name is typed; otherwise it is offered as the last run.
    """
    name, place = plan.checkpoint.parent.name, f"step {plan.step:,} of {plan.total_steps:,}"
    if plan.fits:
        head = f"Start goes on with the unfinished run “{name}” from" if asked and not astray else f"“{name}” can go on from"
        head, todo = f"{head} {place}, epoch {plan.epoch:.2f}", ASTRAY if astray else ""
    elif asked:
        head = f"“{name}” was not finished ({place}), and Start cannot go on with what is chosen"
        todo = "Use its settings, choose another Name, or tick Override Existing Files to start afresh."
    else:
        head = f"“{name}” was not finished ({place}), and cannot go on with what is loaded"
        todo = "Load the base model that it was begun with."
    restored = f'<div class="tp-look">Put back exactly{said_list(plan.restored, "tp-notices")}</div>' if plan.fits else ""
    return _outlook(plan.fits, head, todo, plan, restored)


def trained_on(adapter: Finished, differences: list[str], plan: ResumePlan | None) -> str:
    """What Start does with a finished adapter, or with that of an interrupted run which cannot go on exactly (`plan`)."""
    name, place = adapter.folder.name, f"from step {adapter.step:,}, epoch {adapter.epoch:.2f}"
    if differences:
        return _outlook(False, f"Start cannot train on with the LoRA “{name}”", " ".join(differences), plan)
    todo = "A copy of it as it is now is kept in a backup beside it. Tick Override Existing Files to start afresh instead."
    if plan is not None:
        todo = f"The interrupted run cannot go on exactly with what is chosen; use its settings for that. {todo}"
    return _outlook(True, f"Start trains on with the LoRA “{name}”, {place}, with a new schedule", todo, plan)


def _outlook(good: bool, head: str, todo: str, plan: ResumePlan | None, more: str = "") -> str:
    message = f'<div class="tp-message">{escape(todo)}</div>' if todo else ""
    notices = said_list(plan.notices, "tp-notices") if plan is not None else ""
    return (
        f'<div class="tp-status {"tp-ok" if good else "tp-bad"}"><div class="tp-head"><i class="tp-dot"></i><b>{escape(head)}</b></div>'
        f"{message}{more}{_items(plan) if plan is not None else ''}{notices}</div>"
    )


def _items(plan: ResumePlan) -> str:
    """What an exact resume needs to be as it was: what does not fit, and folded up what does."""
    fitting = [item for item in plan.items if item.fits]
    known = any(item.name == THE_DATA for item in plan.items)
    rest = "" if known else " The data is compared when it is prepared: Verify does so now."
    folded = f'<details class="tp-fold"><summary>{len(fitting)} settings and facts fit.{rest}</summary>{_table_of(fitting)}</details>'
    return (_table_of(plan.misfits) if plan.misfits else "") + folded


def _table_of(items: list[ResumeItem]) -> str:
    rows = "".join(
        f"<tr><th>{escape(item.name)}</th><td>{escape(item.saved)}</td><td>{escape(item.now)}</td><td>{'fits' if item.fits else 'does not fit'}</td></tr>"
        for item in items
    )
    return f'<div class="tp-scroll"><table class="tp-fits"><thead><tr><th></th><th>saved</th><th>now</th><th></th></tr></thead><tbody>{rows}</tbody></table></div>'


def problems(found: list[str], heading: str = "Not started") -> str:
    """Everything that keeps a run from starting, at once."""
    things = "this has" if len(found) == 1 else f"these {len(found)} things have"
    return f'<div class="tp-status tp-bad"><div class="tp-head"><i class="tp-dot"></i><b>{escape(heading)}: {things} to be changed</b></div>{said_list(found, "tp-problems")}</div>'


def heading(words: str) -> str:
    return f'<div class="tp-heading">{escape(words)}</div>'


def bytes_of(done: int, size: int | None) -> str:
    """3.1 of 12.0 MB; 3.1 MB where the whole is not known"""
    return f"{done / 1e6:,.1f} of {size / 1e6:,.1f} MB" if size else f"{done / 1e6:,.1f} MB"


def notice(text: str, kind: str = "tp-idle") -> str:
    return f'<div class="tp-status {kind}">{_said(text)}</div>'


def said_list(items: Sequence[str], name: str) -> str:
    return f'<ul class="{name}">{"".join(f"<li>{_said(item)}</li>" for item in items)}</ul>' if items else ""


def _said(text: str) -> str:
    """A message as the page can hold it. What a library said tells nobody where on this machine the program lies, and half of a surrogate
    pair, which a request made by hand may hold, breaks no answer."""
    return escape(without_folders(whole_letters(text)))


def copied(name: str, said: list[str]) -> str:
    """What “Copy parameters from” did: all settings of the run, and what could not be taken as it was."""
    head = f"The settings of “{name}” are filled in." + (" These could not be taken as they were:" if said else "")
    return f'<div class="tp-status tp-idle">{escape(head)}{said_list(said, "tp-notices")}</div>'


KIND_NAMES_ONE = {"json": "JSON row", "jsonl": "chat", "text": "text block", "overlapping": "overlapping text block"}
KIND_NAMES = {"json": "JSON rows", "jsonl": "chats", "text": "text blocks", "overlapping": "overlapping text blocks"}


def report(found: Report, settings: Any, lengths: Any = ()) -> str:
    """Verify's report: the very numbers of what Start would train. `lengths` are those of the blocks in tokens."""
    kinds = ", ".join(f"{count:,} {KIND_NAMES.get(kind, kind)}" for kind, count in found.kinds.items())
    share = found.trained_tokens / found.total_tokens if found.total_tokens else 0
    cutoff = f"a cutoff of {found.cutoff_suggested} holds them all"
    if found.cutoff_suggested == settings.cutoff_len:
        cutoff = "the cutoff fits"
    rows = [
        ("Blocks", f"{found.blocks:,}", kinds),
        ("Longest block", f"{found.longest_block:,} tokens", f"second longest {found.second_longest_block:,}; {cutoff}"),
        ("Tokens", f"{found.total_tokens:,}", f"{found.trained_tokens:,} of them trained ({share:.0%})"),
        ("Steps", f"{found.total_steps:,}", f"{found.steps_per_epoch:,} per epoch × {settings.epochs:g} epochs, True Batch Size {settings.micro_batch_size}"),
        ("Save every n steps", f"{found.save_suggested:,}", "suggested: a tenth to a fifth of the steps"),
        ("Warmup Steps", f"{found.warmup_suggested:,}", "suggested: at most a tenth of the steps and an epoch"),
    ]  # fmt: skip
    if packed := packing_words(found, settings):
        rows.insert(3, ("Packing", "on" if settings.packing else "off", packed))
    left_out = [
        (found.trimmed_rows, f"trimmed at the cutoff of {settings.cutoff_len} tokens: their ends are not learned"),
        (found.dropped_rows, f"left out as longer than the cutoff of {settings.cutoff_len} tokens"),
        (found.untrained_rows, "left out, since no token of them would be trained"),
        (found.unfit_rows, "left out, since no entry of the Data Format fits or the chat template refuses it"),
        (found.repeated_rows, "left out as repeats, as rows of the evaluation data, or for an empty answer"),
        (found.small_blocks, f"left out, since they have {settings.min_chars} characters or fewer"),
    ]
    if found.eval_blocks:
        rows.insert(1, ("Evaluation blocks", f"{found.eval_blocks:,}", f"{found.eval_left_out:,} left out"))
    body = "".join(f"<tr><th>{label}</th><td>{value}</td><td>{escape(more)}</td></tr>" for label, value, more in rows)
    warnings = [f"{count:,} row{'' if count == 1 else 's'} {why}." for count, why in left_out if count] + found.notices
    heading = "What is left out" if settings.leave_out_repeats else "Worth a look"
    look = f'<div class="tp-look">{heading}{said_list(found.hygiene, "tp-notices")}</div>' if found.hygiene else ""
    bars = bars_of_lengths(lengths, settings.cutoff_len)
    return (
        '<div class="tp-status tp-ok"><div class="tp-head"><i class="tp-dot"></i><b>Verified: this is what Start will train</b></div>'
        f'<table class="tp-report">{body}</table>{bars}{said_list(warnings, "tp-notices")}{look}</div>'
    )


def packing_words(found: Report, settings: Any) -> str:
    """What Packing does to this data, or would; empty where it would do next to nothing."""
    if settings.packing:
        return f"{found.packed_rows:,} rows of {found.blocks / found.packed_rows:.1f} blocks each; {found.packed_padding:.0%} of what is computed is padding"
    if found.packed_rows > 0.8 * found.blocks or not found.packed_rows:
        return ""
    return (
        f"on, the blocks would share {found.packed_rows:,} rows: {found.packed_steps_per_epoch:,} steps per epoch instead of "
        f"{found.steps_per_epoch:,}, and {found.packed_padding:.0%} of what is computed would be padding instead of {found.padding:.0%}. "
        f"With True Batch Size {max(1, round(settings.micro_batch_size * found.packed_rows / found.blocks))} a step learns about as many tokens as now"
    )


def bars_of_lengths(lengths: Any, cutoff: int) -> str:
    """How many blocks there are of each length, up to the cutoff."""
    counts = histogram(lengths, cutoff)
    if not len(lengths):
        return ""
    highest = max(count for *_, count in counts)
    bars = "".join(
        f'<i style="height:{max(2, round(100 * count / highest)) if count else 0}%" title="{first} to {last} tokens: {count:,} blocks"></i>'
        for first, last, count in counts
    )
    return f'<div class="tp-bars"><div>{bars}</div><span>1</span><span>length of the blocks in tokens</span><span>cutoff {cutoff:,}</span></div>'


def working(doing: str, share: float) -> str:
    """What a preparation does and how far it is."""
    return (
        f'<div class="tp-status tp-running"><div class="tp-head"><i class="tp-dot"></i><b>{escape(doing)}</b><span>{share:.0%}</span></div>'
        f"{bar(share)}</div>"
    )


def slicer_view(slices: Slices, number: int, settings: Any) -> str:
    """A part of the sliced text: each block in a colour of its own, overlapping ones underlined, hard cuts and what is never trained marked."""
    part = slices.part(number - 1)
    total = max(1, slices.characters)
    facts = [
        f"Part {number:,} of {slices.parts:,}", part.file, f"characters {part.begin:,} to {part.end:,}",
        f"{slices.never / total:.1%} of the text is never trained", f"{slices.twice / total:.1%} more than once",
    ]  # fmt: skip
    shown = "".join(_piece(piece) for piece in part.pieces)
    words = (("tp-s0", "a block"), ("tp-s1", "the next"), ("tp-s2", "and the next"), ("tp-over", "overlapping too"), ("tp-never", "never trained"))
    legend = "".join(f'<span class="tp-s {kind}">{word}</span>' for kind, word in words)
    return (
        f'<div class="tp-tokens"><div class="tp-head">{"".join(f"<span>{escape(fact)}</span>" for fact in facts)}</div>'
        f'{bars_of_lengths(slices.blocks.lengths, settings.cutoff_len)}<div class="tp-block">{shown}</div><div class="tp-keys">{legend}</div></div>'
    )


def _piece(piece: Piece) -> str:
    if piece.is_cut:
        return '<span class="tp-cut">✂ hard cut</span>'
    held = [f"block {piece.block:,}"] if piece.block else []
    held += [f"overlapping block {number:,}" for number in piece.overlapping]
    if not held:
        return escape(piece.text) if not piece.text.strip() else f'<span class="tp-s tp-never" title="never trained">{escape(piece.text)}</span>'
    colour = f"tp-s{piece.block % 3}" if piece.block else "tp-s-none"
    return f'<span class="tp-s {colour}{" tp-over" if piece.overlapping else ""}" title="{" · ".join(held)}">{escape(piece.text)}</span>'


def token_view(item: Item, found: list[Token], number: int, count: int, which: str) -> str:
    """One block, each token coloured: learned, masked, special. The id and the place show where the mouse is."""
    trained = sum(token.trained for token in found)
    row = [f"row {item.row:,}"] if item.row else []
    place = [f"characters {item.start:,} to {item.end:,}"] if item.end else []
    facts = [f"{number:,} of {count:,}", KIND_NAMES_ONE[item.kind], *row, *place, f"{len(found):,} tokens, {trained:,} trained"]
    if item.trimmed:
        facts.append("trimmed at the cutoff")
    if which in LEFT_OUT:
        facts.append("not trained")
    shown = "".join(_token(place_, token) for place_, token in enumerate(found))
    legend = "".join(
        f'<span class="tp-t {kind}">{word}</span>' for kind, word in (("tp-learned", "trained"), ("tp-masked", "masked"), ("tp-special", "special"))
    )
    return f'<div class="tp-tokens"><div class="tp-head">{"".join(f"<span>{escape(fact)}</span>" for fact in facts)}</div><div class="tp-block">{shown}</div><div class="tp-keys">{legend}</div></div>'


def _token(place: int, token: Token) -> str:
    state = "trained" if token.trained else "masked"
    kind = ("tp-learned" if token.trained else "tp-masked") + (" tp-special" if token.special else "")
    text = escape(token.text).replace("\n", "⏎\n") if token.text else "·"
    return f'<span class="tp-t {kind}" title="id {token.id} · position {place} · {state}{" · special" if token.special else ""}">{text}</span>'


def no_block(which: str) -> str:
    return f'<div class="tp-tokens"><div class="tp-head"><span>No block here: {escape(which)}.</span></div></div>'


# docs/controls.md


def controls_markdown() -> str:
    """docs/controls.md, made from the settings so that it cannot drift; `python -m training_pro controls` prints it."""
    lines = [
        "# The controls",
        "",
        "Made from the settings by `python -m training_pro controls`; a test compares the two. The key is the name in",
        "`training_parameters.json`, in a run's YAML file and behind `--set`.",
    ]
    for section, title in SECTIONS.items():
        shown = [kind for kind in OPTIONS.values() if kind.section == section and kind.works]
        if shown:
            lines += ["", f"## {title}", "", "| control | key | default | range | what it does |", "|---|---|---|---|---|"]
            lines += [f"| {kind.label} | `{kind.key}` | {_default(kind)} | {_range(kind)} | {kind.help} |" for kind in shown]
    kept = [f"`{kind.key}`" for kind in OPTIONS.values() if not kind.works]
    lines += ["", "## Only read from old files", "", ", ".join(kept) + "."]
    return "\n".join(lines).replace("\\n", "\\\\n") + "\n"


def _default(kind: Any) -> str:
    if isinstance(kind.default, bool):
        return "on" if kind.default else "off"
    return NOT_CHOSEN if kind.default is None else f"{kind.default}" or "(empty)"


def _range(kind: Any) -> str:
    if kind.files:
        listed = BUILT_IN.get(kind.key)
        folder = {"format": "formats", "template": "instruction-templates"}.get(kind.files, "datasets")
        return f"{', '.join(listed)}, or a file of the {folder} folder" if listed else f"a file of the {folder} folder"
    if kind.key == "optimizer":
        return "every name that the installed transformers accepts"
    if kind.choices:
        return ", ".join(kind.offered())
    if kind.low is not None:
        return f"{'above ' if kind.positive else ''}{kind.low:g} to {kind.high:,.15g}"
    return "on, off" if kind.widget == "checkbox" else "text"
