"""Pictures of a run: loss and learning rate, as SVG for the page and as PNG beside the adapter.

The page's chart is drawn here as SVG: it follows the theme's colours, needs nothing that a host may lack (the web UI brings no
matplotlib), and both generations of Gradio show it the same. Gradio's own LinePlot differs between them and fails above 5,000
rows. The PNG is matplotlib's.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path

Points = list[tuple[float, float]]

WIDTH, HEIGHT = 640, 300  # of the drawing, in its own units: it is scaled to the page
LEFT, RIGHT, TOP, BOTTOM = 46, 48, 14, 34
MOST_POINTS = 400  # of one line; more cannot be told apart, and a page asks for the picture every second
SMOOTHING = 0.9  # share of the past in the exponential mean


def series(history: Sequence[dict[str, float]], figure: str, *, by: str = "current_steps") -> Points:
    """(x, y) of each logged entry that has this figure and is finite."""
    return [(entry[by], entry[figure]) for entry in history if figure in entry and math.isfinite(entry[figure])]


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


def chart_svg(history: Sequence[dict[str, float]], total_steps: int = 0, steps_per_epoch: int = 0) -> str:
    """The run so far as an SVG: loss, smoothed loss, evaluation loss on the left axis, learning rate on the right."""
    loss, rate, measured = (series(history, figure) for figure in ("loss", "learning_rate", "eval_loss"))
    if not loss:
        return _empty("The loss will be drawn here once training has begun.")
    last = max(total_steps, loss[-1][0], 1)
    low, high, ticks = nice_range([y for _, y in loss + measured])
    top_rate = max((y for _, y in rate), default=0) or 1.0

    def x_of(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def y_of(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / (high - low))

    def rate_y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / (top_rate * 1.05))

    parts = [f'<line class="tp-grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_of(tick):.1f}" y2="{y_of(tick):.1f}"/>'
             f'<text class="tp-left" x="{LEFT - 6}" y="{y_of(tick) + 4:.1f}">{tick:g}</text>' for tick in ticks]  # fmt: skip
    parts += [f'<text class="tp-right" x="{WIDTH - RIGHT + 6}" y="{rate_y(value) + 4:.1f}">{value:.1e}</text>'
              for value in (top_rate, top_rate / 2)]  # fmt: skip
    for tick in whole_ticks(last):
        parts.append(f'<text class="tp-below" x="{x_of(tick):.1f}" y="{HEIGHT - BOTTOM + 16}">{tick:,}</text>')
    if steps_per_epoch and last / steps_per_epoch <= 30:
        for epoch in range(1, int(last / steps_per_epoch) + 1):
            place = x_of(epoch * steps_per_epoch)
            parts.append(f'<line class="tp-epoch" x1="{place:.1f}" x2="{place:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    parts += [
        _path("tp-rate", thinned(rate), x_of, rate_y),
        _path("tp-loss", thinned(loss), x_of, y_of),
        _path("tp-smooth", thinned(smoothed(loss)), x_of, y_of),
        _path("tp-eval", thinned(measured), x_of, y_of),
        *(f'<circle class="tp-eval-dot" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3"/>' for x, y in thinned(measured, 60)),
        f'<text class="tp-below" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 2}">step</text>',
    ]
    legend = [("tp-loss", f"loss {loss[-1][1]:.3f}"), ("tp-smooth", f"smoothed {smoothed(loss)[-1][1]:.3f}")]
    if measured:
        legend.append(("tp-eval", f"evaluation {measured[-1][1]:.3f}"))
    legend.append(("tp-rate", f"learning rate {rate[-1][1]:.2e}" if rate else "learning rate"))
    keys = "".join(f'<span class="tp-key {name}-key">{html.escape(label)}</span>' for name, label in legend)
    return (
        f'<div class="tp-chart"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Loss by step">{"".join(parts)}</svg>'
        f'<div class="tp-legend">{keys}</div></div>'
    )


def _empty(words: str) -> str:
    return f'<div class="tp-chart tp-chart-empty">{html.escape(words)}</div>'


def _path(name: str, points: Points, x_of, y_of) -> str:
    if len(points) < 2:
        return ""
    drawn = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
    return f'<polyline class="{name}" points="{drawn}"/>'


def nice_range(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """(low, high, ticks) around the values, at numbers one would write by hand."""
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    size = _nice_step((high - low) / 5)
    first, last = math.floor(low / size), math.ceil(high / size)
    return first * size, last * size, [round(n * size, 10) for n in range(first, last + 1)]


def whole_ticks(last: float, count: int = 6) -> list[int]:
    """Whole numbers from 0 to `last`, about `count` of them."""
    size = max(1, round(_nice_step(last / count)))
    return list(range(0, int(last) + 1, size))


def _nice_step(rough: float) -> float:
    power = 10 ** math.floor(math.log10(rough)) if rough > 0 else 1
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * 0.999)


def save_png(history: Sequence[dict[str, float]], path: Path, title: str = "") -> None:
    """Draw the whole run with matplotlib.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # without pyplot, whose state is shared by all threads

    loss, rate, measured = (series(history, figure) for figure in ("loss", "learning_rate", "eval_loss"))
    figure = Figure(figsize=(9, 5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.add_subplot()
    right = left.twinx()
    right.plot(*_columns(rate), color="#999999", linewidth=1, label="learning rate")
    left.plot(*_columns(loss), color="#9ec5e8", linewidth=0.8, label="loss")
    left.plot(*_columns(smoothed(loss)), color="#1f6fb2", linewidth=1.8, label="smoothed")
    if measured:
        left.plot(*_columns(measured), color="#d1641c", marker="o", markersize=3, label="evaluation")
    left.set_xlabel("step")
    left.set_ylabel("loss")
    right.set_ylabel("learning rate")
    left.set_title(title)
    left.grid(alpha=0.3)
    lines, labels = left.get_legend_handles_labels()
    more_lines, more_labels = right.get_legend_handles_labels()
    left.legend(lines + more_lines, labels + more_labels, loc="upper right")
    figure.savefig(path)


def _columns(points: Points) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
