"""The learning rate over a run before it starts: schedule, warmup, epochs, and where it will save and evaluate.

Plain functions from numbers to an SVG. All numbers here are steps as the user counts them; `settings.Plan` converts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from .custom_scheduler import SCHEDULERS, curve, warmup_used
from .matplotgraph import HEIGHT, LEFT, MOST_EPOCHS, TOP, WIDTH, Frame, Points, drawing, nice_range, rate_words
from .settings import Plan, TrainingSettings

HEAD = TOP + 12  # room for the epochs' numbers and the value at the top
LANE = 11  # height of a row of marks below the chart
RIGHT = 62  # room for the values at the end
CLOSEST = 2.0  # marks nearer than this (drawing's units) are drawn as one


def preview(settings: TrainingSettings, plan: Plan, beside: str | None = None) -> str:
    """The schedule of these settings as an SVG, with another one laid over it.

    Args:
        settings: as typed; what cannot be drawn is said in the picture's place.
        beside: the name of the other schedule.
    """
    problem = _problem(settings, plan)
    if problem:
        return f'<div class="tp-chart tp-chart-empty">{escape(problem)}</div>'
    names = [settings.lr_scheduler_type] + ([beside] if beside and beside != settings.lr_scheduler_type else [])
    return schedule_svg([(name, points_of(name, settings, plan)) for name in names], **schedule_of(settings, plan))


def points_of(name: str, settings: TrainingSettings, plan: Plan) -> list[tuple[int, float]]:
    """(step, multiplier) of a schedule with these settings' warmup and lengths."""
    found = curve(name, **plan.schedule_lengths(settings), learning_rate=settings.rate)
    return [(plan.steps_at(step), value) for step, value in found]


def schedule_of(settings: TrainingSettings, plan: Plan) -> dict[str, Any]:
    """All that `schedule_svg` needs beside the curves.

    Saves that depend on the loss cannot be known before. The evaluation at the end is one of the evaluations.
    """
    used = min(plan.optimizer_steps, warmup_used(settings.lr_scheduler_type, **plan.schedule_lengths(settings)))
    evaluated, every = settings.evaluation
    saves = _multiples(plan.to_optimizer_steps(settings.save_steps), plan)
    if settings.save_steps:
        saves = sorted({*saves, *_multiples(plan.optimizer_steps_per_epoch, plan)})
    evaluations = _multiples(plan.to_optimizer_steps(every), plan) if evaluated else []
    if evaluated and plan.optimizer_steps:
        evaluations = sorted({*evaluations, plan.optimizer_steps})
    return {
        "learning_rate": settings.rate,
        "steps_per_epoch": plan.steps_per_epoch,
        "total_steps": plan.total_steps,
        "warmup": plan.steps_at(used),
        "saves": [plan.steps_at(step) for step in saves],
        "evaluations": [plan.steps_at(step) for step in evaluations],
    }


def schedule_svg(
    curves: Sequence[tuple[str, Points]],
    *,
    learning_rate: float,
    steps_per_epoch: int,
    total_steps: int,
    warmup: int,
    saves: Sequence[int] = (),
    evaluations: Sequence[int] = (),
) -> str:
    """The learning rate over the run.

    Args:
        curves: (name, [(step, multiplier), …]) each, none empty, at most two: the second is dashed. The value before the last is the last
            optimizer step's; the last is where the schedule arrives.
        learning_rate: the rate that the multipliers multiply; above 0.
        total_steps: above 0.
        steps_per_epoch: for the marks at the epochs' ends; 0: none.
        warmup: steps that the first curve warms up for; shaded.
        saves: steps at which a checkpoint is saved.
        evaluations: steps at which the evaluation data is measured.
    """
    lanes = [lane for lane in (("tp-save", "saved", saves), ("tp-measure", "evaluated", evaluations)) if lane[2]]
    frame = Frame(total_steps, 0, learning_rate * 1.06, top=HEAD, bottom=HEIGHT - 100, right=WIDTH - RIGHT)
    floor = frame.bottom + LANE * len(lanes)
    ticks = [tick for tick in nice_range([0, learning_rate])[2] if tick <= frame.high]
    parts = [_shade(frame, warmup), frame.grid(ticks, rate_words), frame.below(floor, "step"), _epochs(frame, steps_per_epoch)]
    for place, (_, points) in enumerate(curves[:2]):
        drawn = [(step, value * learning_rate) for step, value in points]
        parts.append(frame.line("tp-plan" if place == 0 else "tp-plan-second", drawn))
    parts += _values(frame, [points for _, points in curves[:2]], learning_rate)
    for row, (name, word, steps) in enumerate(lanes):
        parts.append(_marks(frame, name, word, steps, frame.bottom + LANE * row + 2))
    legend = [
        ("tp-plan" if place == 0 else "tp-plan-second", f"{name}: {summary(points, learning_rate)}")
        for place, (name, points) in enumerate(curves[:2])
    ]
    legend += [("tp-warm", f"warmup {_steps(warmup)}")] if warmup else []
    legend += [(name, f"{word} {_times(len(steps))}") for name, word, steps in lanes]
    return drawing(parts, legend, "Learning rate by step", height=floor + 38)


def summary(points: Points, learning_rate: float) -> str:
    """What a schedule does in words: the rate at the first step, the highest with its step, the rate of the last step.

    >>> summary([(0, 0.0), (5, 1.0), (9, 0.2), (10, 0.0)], 1e-4)
    '0 → 1e-4 (step 5) → 2e-5'
    """
    first, peak, last = _landmarks(points)
    words = [rate_words(first[1] * learning_rate)]
    if peak[1] > max(first[1], last[1]):
        words.append(f"{rate_words(peak[1] * learning_rate)} (step {peak[0]:,})")
    words.append(rate_words(last[1] * learning_rate))
    return " → ".join(words) if len(set(words)) > 1 else words[0]


def _problem(settings: TrainingSettings, plan: Plan) -> str:
    """Why there is nothing to draw; empty where there is."""
    try:
        usable = 0 < settings.rate < math.inf
    except ValueError:
        usable = False
    if not usable:
        return f"Learning Rate is “{settings.learning_rate}”; with a number above 0, such as 3e-4, its course is drawn here."
    if settings.lr_scheduler_type not in SCHEDULERS:
        return f"LR Scheduler is “{settings.lr_scheduler_type}”; choose one of the list."
    return "" if plan.total_steps > 0 else "The learning rate will be drawn here once data is chosen."


def _multiples(every: int, plan: Plan) -> list[int]:
    return list(range(every, plan.optimizer_steps + 1, every)) if every else []


def _landmarks(points: Points) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
    """The first point, the first of the highest, and that of the last optimizer step."""
    trained = points[:-1] or points
    return trained[0], max(trained, key=lambda point: point[1]), trained[-1]


def _values(frame: Frame, curves: Sequence[Points], learning_rate: float) -> list[str]:
    """Dots with their values: the first curve's start and peak in the picture, the ends of all beside it, apart from each other."""
    parts, ends = [], []
    for place, points in enumerate(curves):
        first, peak, last = ((step, value * learning_rate) for step, value in _landmarks(points))
        kind = "tp-plan" if place == 0 else "tp-plan-second"
        dots = [last] if place else list(dict.fromkeys([first, peak, last]))
        parts += [f'<circle class="{kind}-dot" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="2.6"/>' for x, y in dots]
        ends.append(last[1])
        if place == 0 and first[1] < 0.97 * peak[1]:
            parts.append(_value(frame.x(first[0]) + 7, frame.y(first[1]) - 5, first[1], "start"))
        if place == 0 and last[1] < 0.97 * peak[1]:
            near_axis = frame.x(peak[0]) < LEFT + 24
            parts.append(_value(frame.x(peak[0]) + (7 if near_axis else 0), frame.y(peak[1]) - 6, peak[1], "start" if near_axis else "middle"))
    above = math.inf
    for rate in sorted({rate_words(rate): rate for rate in ends}.values()):
        above = min(frame.y(rate) + 4, above - 11)
        parts.append(_value(frame.right + 6, above, rate, "start"))
    return parts


def _value(x: float, y: float, rate: float, anchor: str) -> str:
    return f'<text class="tp-value" text-anchor="{anchor}" x="{x:.1f}" y="{y:.1f}">{rate_words(rate)}</text>'


def _shade(frame: Frame, warmup: int) -> str:
    if warmup <= 0:
        return ""
    return f'<rect class="tp-warm" x="{LEFT}" y="{frame.top}" width="{frame.x(min(warmup, frame.last)) - LEFT:.1f}" height="{frame.bottom - frame.top}"/>'


def _epochs(frame: Frame, steps_per_epoch: int) -> str:
    """The epochs' ends, with their numbers where there is room; of very many only every n-th."""
    if not steps_per_epoch:
        return ""
    count = int(frame.last / steps_per_epoch)
    each = -(-count // MOST_EPOCHS) or 1
    parts = [frame.epochs(steps_per_epoch * each)]
    for epoch in range(each, count + 1, each * (2 if count // each > 12 else 1)):
        words = f"epoch {epoch:,}" if count <= 5 else f"{epoch:,}"
        parts.append(f'<text class="tp-below tp-epoch-number" x="{frame.x(epoch * steps_per_epoch):.1f}" y="{TOP - 3}">{words}</text>')
    return "".join(parts)


def _marks(frame: Frame, kind: str, word: str, steps: Sequence[int], top: float) -> str:
    """A mark below the axis for each step; marks too near each other are drawn as one, which says what it stands for."""
    groups: list[list[int]] = []
    for step in steps:
        if groups and frame.x(step) - frame.x(groups[-1][0]) < CLOSEST:
            groups[-1].append(step)
        else:
            groups.append([step])
    return "".join(
        f'<line class="{kind}" x1="{frame.x(group[0]):.1f}" x2="{frame.x(group[0]):.1f}" y1="{top:.1f}" y2="{top + LANE - 4:.1f}">'
        f"<title>{escape(_said(word, group))}</title></line>"
        for group in groups
    )


def _said(word: str, group: Sequence[int]) -> str:
    return f"{word} at step {group[0]:,}" if len(group) == 1 else f"{word} {len(group):,} times from step {group[0]:,} to {group[-1]:,}"


def _steps(count: int) -> str:
    return f"{count:,} step{'' if count == 1 else 's'}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"
