"""Pictures of perplexities: by checkpoint, by dataset, and those of “Did it learn?”; and the tables beside them. Plain functions from
figures to HTML.

A bar's length is the loss per token, which is the logarithm of the perplexity: a perplexity of 2,000 beside one of 20 would leave
nothing of the smaller one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from .evaluation import DONE, FAILED, INTERRUPTED, RUNNING, WAITING, Evaluation, Measured, ranking
from .learned import CHANGED_NOTHING, LEARNED, Learned
from .matplotgraph import LEFT, RUN_HEX, TOP, WIDTH, Frame, drawing, is_number, nice_range
from .views import duration, said_list, status_card

BAR, BETWEEN, GROUP = 15, 3, 26  # height of a bar, of the space below it, and of a group's name above its bars
ROOM = 92  # for a bar's figure, at its end
MOST_BARS = 60
MOST_LAYERS = 160
WORDS = {WAITING: "Waiting", RUNNING: "Measuring", DONE: "Done", INTERRUPTED: "Interrupted", FAILED: "Failed"}


def figure(value: float) -> str:
    """A perplexity with the digits that mean something: 12.3457, 2,290.7, 1.2e+09

    >>> figure(12.345678), figure(2290.68), figure(1.23e9), figure(float("inf"))
    ('12.3457', '2,290.7', '1.23e+09', 'not a number')
    """
    if not math.isfinite(value):
        return "not a number"
    return f"{value:.4f}" if value < 1000 else f"{value:,.1f}" if value < 1e6 else f"{value:.2e}"


# The job


def status(job: Evaluation | None) -> str:
    """What the evaluation does, how far it is and how long it still takes, or how it ended."""
    if job is None:
        return '<div class="tp-status tp-idle">Nothing is being measured. Choose an input dataset, then what to evaluate.</div>'
    kind = "tp-running" if job.active else "tp-ok" if job.status == DONE and not job.problems else "tp-bad"
    message = "Interrupting" if job.active and job.stop_requested else job.message
    figures = [("Done", f"{job.share:.0%}"), ("Elapsed", duration(job.elapsed)), ("Left", duration(job.remaining) if job.active else "–")]
    return status_card(kind, WORDS[job.status], job.title, job.share, message=message, figures=figures, problems=job.problems, notices=job.notices)


def results(job: Evaluation | None) -> str:
    """What was measured: the table and the picture, of checkpoints in their rank; of “Did it learn?” its page."""
    if job is None:
        return ""
    if job.learned is not None:
        return learned_page(job.learned)
    if not job.results:
        return ""
    if job.request is not None and job.request.run:
        return f'<div class="tp-compare">{checkpoints_svg(job)}{ranking_table(job)}</div>'
    return f'<div class="tp-compare">{results_table(job.results)}{datasets_svg(job.results)}</div>'


def results_table(found: Sequence[Measured]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Model", "LoRA", "Dataset", "Perplexity", "Tokens"))
    body = "".join(
        f"<tr><td>{escape(each.model)}</td><td>{escape(', '.join(each.loras) or '-')}</td><td>{escape(each.dataset)}</td>{_cell(each)}"
        f"<td>{_tokens(each)}</td></tr>"
        for each in found
    )
    return _table(head, body)


def _tokens(each: Measured) -> str:
    return f"{each.scored_tokens:,} of {each.total_tokens:,}" if each.partial else f"{each.scored_tokens:,}"


def _cell(each: Measured | None) -> str:
    if each is None:
        return "<td>–</td>"
    mark = ' <span class="tp-mark">partial</span>' if each.partial else ""
    if each.before:
        mark = f' <span class="tp-mark" title="measured {escape(each.before)}">earlier</span>'
    return f'<td class="tp-number">{figure(each.value)}{mark}</td>'


def _table(head: str, body: str, name: str = "") -> str:
    return f'<div class="tp-scroll"><table class="tp-runs {name}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def ranking_table(job: Evaluation) -> str:
    """The run's adapters, the best first, each beside its losses; the base model on top, without a rank."""
    datasets = list(dict.fromkeys(each.dataset for each in job.results))
    names = ["", "Checkpoint", "Step", "Epoch", *datasets, "Training loss", "Evaluation loss"]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body, place = "", 0
    for name, checkpoint, measured in ranking(job):
        place += bool(name)
        shown = escape(name.partition("/")[2] or f"{name} (the LoRA)") if name else "base model"
        if checkpoint is not None and checkpoint.adapter and "/" in name:
            shown += ' <span class="tp-mark">is the LoRA</span>'
        facts = ["–"] * 4
        if checkpoint is not None:
            values = ((checkpoint.step, ",.0f"), (checkpoint.epoch, ".2f"), (checkpoint.loss, ".4f"), (checkpoint.eval_loss, ".4f"))
            facts = ["–" if value is None else f"{value:{digits}}" for value, digits in values]
        cells = "".join(_cell(measured.get(dataset)) for dataset in datasets)
        body += (
            f"<tr{'' if name else ' class=tp-base'}><td>{place if name else ''}</td><td>{shown}</td><td>{facts[0]}</td><td>{facts[1]}</td>{cells}"
            f"<td>{facts[2]}</td><td>{facts[3]}</td></tr>"
        )
    return _table(head, body, "tp-ranking")


def checkpoints_svg(job: Evaluation) -> str:
    """Perplexity by the checkpoints' steps, a line for each dataset, that of the base model dashed; empty where fewer than two are known."""
    found = ranking(job)
    datasets = list(dict.fromkeys(each.dataset for each in job.results))
    lines: dict[str, list[tuple[float, float]]] = {name: [] for name in datasets}
    base = {}
    for name, checkpoint, measured in found:
        for dataset, each in measured.items():
            if not is_number(each.value) or each.partial:
                continue
            if not name:
                base[dataset] = each.value
            elif checkpoint is not None and is_number(checkpoint.step):
                lines[dataset].append((checkpoint.step, each.value))
    points = [point for line in lines.values() for point in line]
    if len({x for x, _ in points}) < 2:
        return ""
    top = max(y for _, y in points)
    shown_base = {dataset: value for dataset, value in base.items() if value <= 3 * top}
    low, high, ticks = nice_range([y for _, y in points] + list(shown_base.values()))
    frame = Frame(max(x for x, _ in points) or 1, low, high, right=WIDTH - 14)
    parts = [frame.grid(ticks, "{:,g}".format), frame.below(frame.bottom, "step")]
    legend = []
    for place, dataset in enumerate(datasets):
        colour = f"tp-run-{place % len(RUN_HEX)}"
        line = sorted(lines[dataset])
        parts.append(frame.line(f"tp-run {colour}", line))
        parts += [f'<circle class="tp-run-dot {colour}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3"/>' for x, y in line]
        if dataset in shown_base:
            y = frame.y(shown_base[dataset])
            parts.append(f'<line class="tp-base-line {colour}" x1="{LEFT}" x2="{frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        best = min(line, key=lambda point: point[1], default=None)
        words = f"{dataset}: best {figure(best[1])} at step {best[0]:,.0f}" if best else f"{dataset}: not known"
        legend.append((f"tp-run {colour}", words + (f", base model {figure(base[dataset])}" if dataset in base else "")))
    return drawing(parts, legend, "Perplexity by checkpoint", heading="Perplexity by checkpoint")


def datasets_svg(found: Sequence[Measured]) -> str:
    """A bar for each figure, in groups by dataset; empty where there is but one."""
    usable = [each for each in found if is_number(each.value) and each.value >= 1][:MOST_BARS]
    if len(usable) < 2:
        return ""
    names = list(dict.fromkeys(each.name for each in usable))
    groups = []
    for dataset in dict.fromkeys(each.dataset for each in usable):
        bars = [
            (names.index(each.name), each.value, figure(each.value) + (" (partial)" if each.partial else ""))
            for each in usable
            if each.dataset == dataset
        ]
        groups.append((dataset, bars))
    parts, height = _bars(groups, TOP)
    legend = [(f"tp-run tp-run-{place % len(RUN_HEX)}", name) for place, name in enumerate(names)]
    return drawing(parts, legend, "Perplexity by dataset", heading="Perplexity by dataset (length: loss per token)", height=height)


def _bars(groups: Sequence[tuple[str, Sequence[tuple[int, float, str]]]], top: float) -> tuple[list[str], float]:
    """Bars from the left, (colour, perplexity, words) each, and the lower edge of the last."""
    longest = max((math.log(value) for _, bars in groups for _, value, _ in bars), default=0) or 1
    parts, y = [], top
    for name, bars in groups:
        parts.append(f'<text class="tp-group" x="{LEFT}" y="{y + GROUP - 9:.1f}">{escape(name)}</text>')
        y += GROUP
        for colour, value, words in bars:
            width = max(1.0, (WIDTH - LEFT - ROOM) * math.log(value) / longest)
            parts.append(
                f'<rect class="tp-run-bar tp-run-{colour % len(RUN_HEX)}" x="{LEFT}" y="{y:.1f}" width="{width:.1f}" height="{BAR}" rx="2"/>'
            )
            parts.append(f'<text class="tp-bar-figure" x="{LEFT + width + 6:.1f}" y="{y + BAR - 3.5:.1f}">{escape(words)}</text>')
            y += BAR + BETWEEN
    return parts, y + 8


# Did it learn?


def learned_page(found: Learned) -> str:
    """One page: the sentence of judgement, the picture, the figures, the answers."""
    kind = "tp-ok" if found.verdict == LEARNED else "tp-idle" if found.verdict in ("", CHANGED_NOTHING) else "tp-bad"
    sentence = escape(found.sentence or "Not all is measured yet, so there is no judgement.")
    verdict = f'<div class="tp-status {kind} tp-verdict"><b>{sentence}</b>{said_list(found.notices, "tp-notices")}</div>'
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Prompt", "Base model", f"With {escape(found.adapter)}"))
    body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in each)}</tr>" for each in found.answers)
    answers = _table(head, body, "tp-answers") if found.answers else ""
    return f'<div class="tp-compare">{verdict}{learned_svg(found)}{_lines_table(found)}{answers}</div>'


def _lines_table(found: Learned) -> str:
    if not found.lines:
        return ""
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Perplexity on", "Base model", "With the LoRA", "Change", "Tokens"))
    body = "".join(
        f'<tr><td>{line.text}</td><td class="tp-number">{figure(line.base)}</td><td class="tp-number">{figure(line.adapter)}</td>'
        f"<td>{_change(line)}</td><td>{line.tokens:,}</td></tr>"
        for line in found.lines
    )
    return _table(head, body)


def _change(line: Any) -> str:
    return "–" if math.isnan(line.gain) else f"{math.exp(-line.gain) - 1:+.1%}"


def learned_svg(found: Learned) -> str:
    """One picture: the three texts before and after, and below it how much each layer was changed."""
    groups = []
    for line in found.lines:
        bars = [(0, line.base, figure(line.base)), (1, line.adapter, figure(line.adapter))]
        groups.append((line.text, [bar for bar in bars if is_number(bar[1]) and bar[1] >= 1]))
    if not groups and not found.changes:
        return ""
    parts, height = _bars(groups, TOP)
    legend = [("tp-run tp-run-0", "base model"), ("tp-run tp-run-1", f"with {found.adapter}")]
    if found.changes:
        drawn, height, words = _layers(found.changes, height + 6)
        parts += drawn
        legend.append(("tp-run tp-run-2", words))
    return drawing(parts, legend, "Did it learn?", heading=f"{found.base} before and after {found.adapter}", height=height)


def _layers(changes: Sequence[tuple[str, float]], top: float) -> tuple[list[str], float, str]:
    """A column for each changed weight: ‖ΔW‖ / ‖W‖; of very many, neighbours share one, as high as the highest of them."""
    size = math.ceil(len(changes) / MOST_LAYERS)
    columns = [max(changes[at : at + size], key=lambda each: each[1]) for at in range(0, len(changes), size)]
    usable = [value for _, value in columns if is_number(value)]
    _, high, ticks = nice_range([0, max(usable, default=0) or 1e-6])
    frame = Frame(len(columns), 0, high, top=top + GROUP, bottom=top + GROUP + 90, right=WIDTH - 14)
    width = (frame.right - LEFT) / len(columns)
    parts = [f'<text class="tp-group" x="{LEFT}" y="{top + GROUP - 9:.1f}">how much each layer was changed, ‖ΔW‖ / ‖W‖</text>']
    parts.append(frame.grid(ticks[:: max(1, len(ticks) // 4)], "{:.3g}".format))
    for place, (name, value) in enumerate(columns):
        y = frame.y(value) if is_number(value) else frame.top
        parts.append(
            f'<rect class="tp-run-bar tp-run-2" x="{LEFT + place * width:.1f}" y="{y:.1f}" width="{max(1.0, width - 1.5):.1f}" height="{frame.bottom - y:.1f}">'
            f"<title>{escape(name)}: {value:.3g}</title></rect>"
        )
    most = max(changes, key=lambda each: each[1] if is_number(each[1]) else -1)
    mean = sum(value for _, value in changes if is_number(value)) / max(1, len(changes))
    parts.append(f'<text class="tp-below" x="{(LEFT + frame.right) / 2}" y="{frame.bottom + 16:.1f}">first layer to last</text>')
    return parts, frame.bottom + 26, f"{len(changes)} changed weights, {mean:.2%} on average, most {most[0]} ({most[1]:.2%})"


# The history

SHOWN = 300  # rows of the table on the page; the filter and the export reach all


def history(rows: Sequence[dict[str, str]], columns: Sequence[str]) -> str:
    """The table of evaluations, in the order given."""
    if not rows:
        return '<div class="tp-status tp-idle">No evaluation is in the table yet, or none holds the words of the filter.</div>'
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(f"<tr>{''.join(_history_cell(row, name) for name in columns)}</tr>" for row in rows[:SHOWN])
    more = f'<div class="tp-more">{len(rows) - SHOWN:,} more rows: filter them, or export them all.</div>' if len(rows) > SHOWN else ""
    return f'<div class="tp-history">{_table(head, body)}{more}</div>'


def _history_cell(row: dict[str, str], name: str) -> str:
    text = str(row.get(name, ""))
    if name != "Perplexity":
        return f"<td>{escape(text)}</td>"
    try:
        shown = figure(float(text))
    except ValueError:
        shown = text
    return f'<td class="tp-number" title="{escape(text)}">{escape(shown)}</td>'
