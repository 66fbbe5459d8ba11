"""Pictures of a run: loss, learning rate and gradient norm, as SVG for the page and as PNG beside the adapter.

The page's chart is drawn here as SVG: it follows the theme's colours, needs nothing that a host may lack (the web UI brings no
matplotlib), and both generations of Gradio show it the same. Gradio's own LinePlot differs between them and fails above 5,000
rows. The PNG is matplotlib's.

A history is a list of entries as `TrainingRun.log` makes them: `current_steps`, `epoch`, and of `loss`, `learning_rate`,
`grad_norm` and `eval_loss` what was measured. It may come from a file, so an entry may lack anything or hold no number.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Points = list[tuple[float, float]]
History = Sequence[Mapping[str, Any]]

WIDTH, HEIGHT = 640, 300  # of the drawing, in its own units: it is scaled to the page
LEFT, RIGHT, TOP, BOTTOM = 46, 48, 14, 34
STRIP, GAP = 44, 16  # height of the gradient norm's strip below the chart, and of the space above it
MOST_POINTS = 400  # of one line; more cannot be told apart, and a page asks for the picture every second
MOST_EPOCHS = 30  # epoch marks; more would be a fence
SMOOTHING = 0.9  # share of the past in the exponential mean
RUN_HEX = ("#2f7fd1", "#e07b2c", "#2e9e5b", "#b05cc6", "#c9a227", "#d9483b", "#17a2a2", "#8a8a8a")  # tp-run-0 … of page.css
PNG_POINTS = 2000  # of one line
FIRST_OTHER = 2  # a run's own lines have the blue and the orange
X_AXES = {"step": "current_steps", "epoch": "epoch"}


def series(history: History, figure: str, *, by: str = "current_steps") -> Points:
    """(x, y) of each logged entry that has both and whose both are finite numbers."""
    return [(entry[by], entry[figure]) for entry in history if is_number(entry.get(by)) and is_number(entry.get(figure))]


def is_number(value: Any) -> bool:
    """Whether it is a finite number that can be drawn; a file may hold anything in its place."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300


def smoothed(points: Points, past: float = SMOOTHING) -> Points:
    """Exponential moving mean, corrected for its start (Kingma & Ba 2015, section 3), so that it begins at the first value."""
    mean, result = 0.0, []
    for count, (x, y) in enumerate(points, 1):
        mean = past * mean + (1 - past) * y
        result.append((x, mean / (1 - past**count)))
    return result


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """At most `most` points that keep the shape: of each bucket its lowest and its highest, in order; the ends stay."""
    if len(points) <= most:
        return points
    size = len(points) / (most / 2)
    kept = [points[0]]
    for bucket in range(most // 2):
        part = points[int(bucket * size) : max(int(bucket * size) + 1, int((bucket + 1) * size))]
        kept += sorted({min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])})
    kept.append(points[-1])
    return sorted(set(kept))


def without_spikes(points: Points) -> Points:
    """The points with what `robust_range` leaves out brought to its edge, so that a single spike does not lift the mean for long."""
    if not points:
        return points
    low, high = robust_range([y for _, y in points])
    return [(x, min(high, max(low, y))) for x, y in points]


def trend(history: History, by: str) -> Points:
    """The smoothed loss, over the key `by`."""
    return smoothed(without_spikes(series(history, "loss", by=by)))


def robust_range(values: Sequence[float]) -> tuple[float, float]:
    """(low, high) of the values, without the few at an end (at most one in 200, and at least one) that alone would flatten the rest.

    They are left out only where they take more than three quarters of the height, and never of fewer than ten values.
    """
    ordered = sorted(values)
    few = max(1, len(ordered) // 200)
    if len(ordered) >= 10:
        for inner in (ordered[:-few], ordered[few:], ordered[few:-few]):
            if ordered[-1] - ordered[0] > 4 * (inner[-1] - inner[0]) > 0:
                return inner[0], inner[-1]
    return ordered[0], ordered[-1]


@dataclass(frozen=True)
class Frame:
    """Where figures lie in a drawing: x from 0 to `last`, y from `low` to `high`. The edges are in the drawing's units."""

    last: float
    low: float
    high: float
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM
    right: float = WIDTH - RIGHT

    def x(self, value: float) -> float:
        return LEFT + (self.right - LEFT) * value / self.last

    def y(self, value: float) -> float:
        """A value beyond the range lies on its edge."""
        return self.top + (self.bottom - self.top) * (1 - (min(self.high, max(self.low, value)) - self.low) / (self.high - self.low))

    def line(self, name: str, points: Points) -> str:
        """A line of this class; a point where there is but one."""
        if len(points) == 1:
            (x, y), *_ = points
            return f'<circle class="tp-point {name}" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="1.5"/>'
        drawn = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        return f'<polyline class="{name}" points="{drawn}"/>' if points else ""

    def grid(self, ticks: Sequence[float], words: Callable[[float], str] = "{:g}".format) -> str:
        return "".join(
            f'<line class="tp-grid" x1="{LEFT}" x2="{self.right}" y1="{self.y(tick):.1f}" y2="{self.y(tick):.1f}"/>'
            f'<text class="tp-left" x="{LEFT - 6}" y="{self.y(tick) + 4:.1f}">{words(tick)}</text>'
            for tick in ticks
        )

    def below(self, floor: float, words: str, whole: bool = True) -> str:
        """The figures of the x axis and what they are; `floor` is the lower edge of all that is drawn."""
        ticks = whole_ticks(self.last) if whole else fraction_ticks(self.last)
        figures = "".join(f'<text class="tp-below" x="{self.x(tick):.1f}" y="{floor + 16:.1f}">{tick:,}</text>' for tick in ticks)
        return f'{figures}<text class="tp-below" x="{(LEFT + self.right) / 2}" y="{floor + 32:.1f}">{words}</text>'

    def epochs(self, length: float, floor: float | None = None) -> str:
        """A line at each epoch's end; `length` is that of an epoch on the x axis, 0 where it is not known."""
        count = int(self.last / length + 1e-6) if length else 0
        if count > MOST_EPOCHS:
            return ""
        places = [self.x(epoch * length) for epoch in range(1, count + 1)]
        return "".join(f'<line class="tp-epoch" x1="{x:.1f}" x2="{x:.1f}" y1="{self.top}" y2="{floor or self.bottom}"/>' for x in places)


def chart_svg(
    history: History,
    total_steps: int = 0,
    steps_per_epoch: int = 0,
    *,
    by: str = "step",
    others: Sequence[tuple[str, History]] = (),
) -> str:
    """The run so far as an SVG: loss, smoothed loss, evaluation loss on the left axis, learning rate on the right, and the
    gradient norm in a strip of its own below, where it is known.

    Args:
        total_steps: steps of the whole run, so that the line grows into the picture; 0: as far as the history goes.
        steps_per_epoch: for the marks at the epochs' ends; 0: none by step.
        by: "step" or "epoch": the x axis. A history that knows no epochs is drawn by step.
        others: earlier runs or checkpoints, (name, history) each, laid over it: their smoothed loss.
    """
    if not series(history, "loss"):
        return _empty("The loss will be drawn here once training has begun.")
    if by == "epoch" and not series(history, "loss", by="epoch"):
        by = "step"
    axis = X_AXES[by]
    loss, rate, measured, gradient = (series(history, figure, by=axis) for figure in ("loss", "learning_rate", "eval_loss", "grad_norm"))
    smooth, beside = trend(history, axis), [(name, trend(other, axis)) for name, other in others]
    last = _last_x([loss, measured, *(points for _, points in beside)], total_steps, steps_per_epoch, by)
    spread = [robust_range([y for _, y in points]) for points in (loss, *(points for _, points in beside)) if points]
    low, high, ticks = nice_range([end for ends in spread for end in ends] + [y for _, y in measured])
    top_rate = max((y for _, y in rate), default=0) or 1.0
    frame, rates = Frame(last, low, high), Frame(last, 0, top_rate * 1.05)
    floor = frame.bottom + (GAP + STRIP if gradient else 0)

    parts = [frame.grid(ticks)]
    parts += [f'<text class="tp-right" x="{frame.right + 6}" y="{rates.y(value) + 4:.1f}">{value:.1e}</text>' for value in (top_rate, top_rate / 2)]
    parts += [frame.below(floor, by, whole=by == "step"), frame.epochs(1 if by == "epoch" else steps_per_epoch, floor)]
    parts += [frame.line(f"tp-other {_colour(place + FIRST_OTHER)}", thinned(points)) for place, (_, points) in enumerate(beside)]
    parts += [
        rates.line("tp-rate", thinned(rate)),
        frame.line("tp-loss", thinned(loss)),
        frame.line("tp-smooth", thinned(smooth)),
        frame.line("tp-eval", thinned(measured)) if len(measured) > 1 else "",
        *(f'<circle class="tp-eval-dot" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3"/>' for x, y in thinned(measured, 60)),
        _beyond(frame, loss, by),
        _strip(last, floor, gradient) if gradient else "",
    ]
    legend = [("tp-loss", f"loss {loss[-1][1]:.3f}"), ("tp-smooth", f"smoothed {smooth[-1][1]:.3f}")]
    if measured:
        legend.append(("tp-eval", f"evaluation {measured[-1][1]:.3f}"))
    legend.append(("tp-rate", f"learning rate {rate[-1][1]:.2e}" if rate else "learning rate"))
    if gradient:
        legend.append(("tp-gradient", f"gradient norm {gradient[-1][1]:.3g}"))
    legend += [(f"tp-other {_colour(place + FIRST_OTHER)}", _named(name, points)) for place, (name, points) in enumerate(beside)]
    return drawing(parts, legend, f"Loss by {by}", height=floor + BOTTOM)


def overlay_svg(runs: Sequence[tuple[str, History]], figure: str, title: str, *, by: str = "step") -> str:
    """One figure of several runs over each other, each in a colour of its own; empty where no run has it.

    Args:
        runs: (name, history) of each.
        figure: loss (smoothed), eval_loss, learning_rate or grad_norm.
        title: what the figure is called.
        by: "step" or "epoch": the x axis. By step where no run knows its epochs.
    """
    if by == "epoch" and not any(series(history, figure, by="epoch") for _, history in runs):
        by = "step"
    axis = X_AXES[by]
    lines = [(name, trend(history, axis) if figure == "loss" else series(history, figure, by=axis)) for name, history in runs]
    known = [points for _, points in lines if points]
    if not known:
        return ""
    zero = [0.0] if figure in ("learning_rate", "grad_norm") else []
    low, high, ticks = nice_range(zero + [end for points in known for end in robust_range([y for _, y in points])])
    frame = Frame(_last_x(known, 0, 0, by), low, high)
    parts = [frame.grid(ticks, rate_words if figure == "learning_rate" else "{:g}".format)]
    parts += [frame.below(frame.bottom, by, whole=by == "step"), frame.epochs(1 if by == "epoch" else 0)]
    for place, (_, points) in enumerate(lines):
        parts.append(frame.line(f"tp-run {_colour(place)}", thinned(points)))
        if figure == "eval_loss" and len(points) > 1:
            parts += [
                f'<circle class="tp-run-dot {_colour(place)}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="2.5"/>' for x, y in thinned(points, 60)
            ]
    legend = [
        (f"tp-run {_colour(place)}", _named(name, points, ".2e" if figure == "learning_rate" else ".3f"))
        for place, (name, points) in enumerate(lines)
    ]
    return drawing(parts, legend, f"{title} by {by}", heading=title)


def drawing(parts: Sequence[str], legend: Sequence[tuple[str, str]], label: str, *, heading: str = "", height: float = HEIGHT) -> str:
    """An SVG with its legend: (classes of the line, words) each. `heading`, `label` and the words are escaped here, the parts are not."""
    keys = "".join(_key(*names.split(), words=words) for names, words in legend)
    above = f'<div class="tp-chart-title">{html.escape(heading)}</div>' if heading else ""
    return (
        f'<div class="tp-chart">{above}<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{html.escape(label)}">{"".join(parts)}</svg>'
        f'<div class="tp-legend">{keys}</div></div>'
    )


def _key(line: str, *colour: str, words: str) -> str:
    return f'<span class="{" ".join(["tp-key", f"{line}-key", *colour])}">{html.escape(words)}</span>'


def _last_x(lines: Sequence[Points], total_steps: int, steps_per_epoch: int, by: str) -> float:
    planned = total_steps if by == "step" else total_steps / steps_per_epoch if steps_per_epoch else 0
    furthest = max(x for points in lines for x, _ in points)
    return max(planned, furthest) if max(planned, furthest) > 0 else 1


def _colour(place: int) -> str:
    return f"tp-run-{place % len(RUN_HEX)}"


def _named(name: str, points: Points, digits: str = ".3f") -> str:
    return f"{name} {points[-1][1]:{digits}}" if points else f"{name} (not known)"


def _beyond(frame: Frame, points: Points, by: str) -> str:
    """What lies above the picture, at its upper edge: the highest with its place."""
    above = [point for point in points if point[1] > frame.high]
    if not above:
        return ""
    x, y = max(above, key=lambda point: point[1])
    side = "start" if frame.x(x) < WIDTH / 2 else "end"
    more = f" and {len(above) - 1} more" if len(above) > 1 else ""
    return f'<text class="tp-beyond" text-anchor="{side}" x="{frame.x(x):.1f}" y="{TOP - 4}">▲ {y:.3g} at {by} {x:,g}{more}</text>'


def _strip(last: float, floor: float, gradient: Points) -> str:
    high = robust_range([y for _, y in gradient])[1]
    frame = Frame(last, 0, high if high > 0 else 1, top=floor - STRIP, bottom=floor)
    return frame.grid([0, frame.high], "{:.2g}".format) + frame.line("tp-gradient", thinned(gradient))


def _empty(words: str) -> str:
    return f'<div class="tp-chart tp-chart-empty">{html.escape(words)}</div>'


def nice_range(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """(low, high, ticks) around the values, at numbers one would write by hand."""
    low, high = min(values), max(values)
    largest = max(abs(low), abs(high))
    if high - low < max(1e-12, 1e-7 * largest):
        half = max(min(0.5, largest / 2), 1e-6 * largest) or 0.5
        low, high = low - half, high + half
    size = _nice_step((high - low) / 5)
    first, last = math.floor(low / size), math.ceil(high / size)
    return first * size, last * size, [float(f"{n * size:.10g}") for n in range(first, last + 1)]


def rate_words(value: float) -> str:
    """A learning rate as one types it, to three digits: 3e-4, 1.25e-5, 0.02, 0"""
    if value == 0 or 0.01 <= value < 100:
        return f"{float(f'{value:.3g}'):g}"
    digits, exponent = f"{value:.2e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def whole_ticks(last: float, count: int = 6) -> list[int]:
    """Whole numbers from 0 to `last`, about `count` of them."""
    size = max(1, round(_nice_step(last / count)))
    return list(range(0, int(last) + 1, size))


def fraction_ticks(last: float, count: int = 6) -> list[float]:
    """Numbers from 0 to `last` as one would write them by hand, about `count` of them."""
    size = _nice_step(last / count)
    ticks = [float(f"{n * size:.10g}") for n in range(int(last / size + 1e-6) + 1)]
    return [int(tick) if tick.is_integer() else tick for tick in ticks]


def _nice_step(rough: float) -> float:
    power = 10 ** math.floor(math.log10(rough)) if rough > 0 else 1
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * 0.999)


def save_png(history: History, path: Path, title: str = "", *, by: str = "step", others: Sequence[tuple[str, History]] = ()) -> None:
    """Draw the whole run with matplotlib: as `chart_svg`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # without pyplot, whose state is shared by all threads

    if by == "epoch" and not series(history, "loss", by="epoch"):
        by = "step"
    loss, rate, measured, gradient = (series(history, figure, by=X_AXES[by]) for figure in ("loss", "learning_rate", "eval_loss", "grad_norm"))
    smooth, beside = trend(history, X_AXES[by]), [(name, trend(other, X_AXES[by])) for name, other in others]
    figure = Figure(figsize=(9, 6 if gradient else 5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, *below = figure.subplots(2 if gradient else 1, sharex=True, squeeze=False, height_ratios=[5, 1] if gradient else [1])[:, 0]
    right = left.twinx()
    lines = []
    for place, (name, points) in enumerate(beside):
        lines += left.plot(*_columns(points), color=RUN_HEX[(place + FIRST_OTHER) % len(RUN_HEX)], linewidth=1.2, alpha=0.6, label=f"“{name}”")
    lines += left.plot(*_columns(loss), color="#9ec5e8", linewidth=0.8, label="loss")
    lines += left.plot(*_columns(smooth), color="#1f6fb2", linewidth=1.8, label="smoothed")
    if measured:
        lines += left.plot(*_columns(measured), color="#d1641c", marker="o", markersize=3, label="evaluation")
    lines += right.plot(*_columns(rate), color="#999999", linewidth=1, linestyle="--", label="learning rate")
    spread = [robust_range([y for _, y in points]) for points in (loss, *(points for _, points in beside)) if points]
    if spread:
        low, high, _ = nice_range([end for ends in spread for end in ends] + [y for _, y in measured])
        left.set_ylim(low, high)
    for axes in below:
        axes.plot(*_columns(gradient), color="#17a2a2", linewidth=0.8)
        axes.set_ylim(0, robust_range([y for _, y in gradient])[1] * 1.05 or 1)
        axes.set_ylabel("gradient norm", fontsize=8)
        axes.grid(alpha=0.3)
    (below or [left])[-1].set_xlabel(by)
    left.set_ylabel("loss")
    right.set_ylabel("learning rate")
    left.set_title(title, parse_math=False)  # a name may hold dollar signs
    left.grid(alpha=0.3)
    for text in left.legend(handles=lines, loc="upper right").get_texts():
        text.set_parse_math(False)
    figure.savefig(path)


def _columns(points: Points) -> tuple[list[float], list[float]]:
    drawn = thinned(points, PNG_POINTS)
    return [x for x, _ in drawn], [y for _, y in drawn]
