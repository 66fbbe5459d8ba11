"""Saved runs beside each other: their charts, and the settings that differ.

Reads the folders of ours, of older Training PRO and of the web UI's own tab. A comparison never fails for a broken file: what is
missing or cannot be read is said in a sentence of the run it belongs to.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from .matplotgraph import RUN_HEX, chart_svg, is_number, overlay_svg, series
from .settings import NOT_CHOSEN, OPTIONS, TrainingSettings
from .views import duration

FIGURES = ("loss", "learning_rate", "grad_norm", "eval_loss")
NOT_COMPARED = ("lora_name", "always_override", "batch_size")
UNKNOWN = "–"
LAST_LOSSES = 10  # whose mean is a run's last loss: a single one is chance


@dataclass(frozen=True)
class SavedRun:
    """What a folder tells about a run.

    `settings` has every key of `TrainingSettings`, or none where they are not known. `history` is as `TrainingRun.history`, in the
    order of the steps. `facts` has those of base_model, step, epoch, loss, eval_loss, seconds that are known.
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)


def load_run(folder: Path) -> SavedRun:
    """Read the run of an adapter's folder, or of a checkpoint in one: its run up to the checkpoint's step."""
    folder = Path(folder)
    notices: list[str] = []
    step = _checkpoint_step(folder)
    if step is None:
        name, places = folder.name, [folder]
    else:
        name, places = f"{folder.parent.name}/{folder.name}", [folder, folder.parent]
    if not folder.is_dir():
        return SavedRun(name, notices=[f"“{name}” is no folder any more. Refresh the list and choose again."])
    settings = _settings(places, notices)
    log = _read(places, "training_log.json", dict, notices)
    history = _history(places, step, notices)
    last = _entry(log)
    if not history and last is not None and (step is None or last["current_steps"] <= step):
        history = [last]
        notices.append("Its losses by step are not known (training_graph.json); only its last ones are shown.")
    elif not history:
        notices.append("Its losses are not known: neither training_graph.json nor training_log.json tells them.")
    facts = _facts(log or {}, history, whole=step is None)
    return SavedRun(name, settings, history, facts, notices)


def differences(runs: Sequence[SavedRun]) -> list[tuple[str, list[str]]]:
    """(label, [each run's value as it is shown]) of every setting that is not the same in all runs whose settings are known."""
    found = []
    for key, kind in OPTIONS.items():
        values = [_comparable(key, run.settings[key]) for run in runs if key in run.settings]
        if key not in NOT_COMPARED and any(value != values[0] for value in values[1:]):
            found.append((kind.label, [_shown(run.settings[key]) if key in run.settings else UNKNOWN for run in runs]))
    return found


def compare_html(runs: Sequence[SavedRun], by: str = "step") -> str:
    """Charts over each other, what came of each run, and the table of the settings that differ.

    Args:
        by: "step" or "epoch": the x axis of the charts.
    """
    if not runs:
        return '<div class="tp-chart tp-chart-empty">Choose two or more runs to see them over each other.</div>'
    histories = [(run.name, run.history) for run in runs]
    figures = (("loss", "Smoothed loss"), ("eval_loss", "Evaluation loss"), ("learning_rate", "Learning rate"))
    charts = "".join(overlay_svg(histories, figure, title, by=by) for figure, title in figures)
    if not charts:
        charts = chart_svg([])
    said = [f"{run.name}: {notice}" for run in runs for notice in run.notices]
    notices = f'<ul class="tp-notices">{"".join(f"<li>{escape(text)}</li>" for text in said)}</ul>' if said else ""
    return f'<div class="tp-compare">{charts}{_table(runs)}{notices}</div>'


def _table(runs: Sequence[SavedRun]) -> str:
    results = [
        ("Base model", [str(run.facts.get("base_model", UNKNOWN)) for run in runs]),
        ("Steps", [_figure(run, "step", ",.0f") for run in runs]),
        ("Epochs", [_figure(run, "epoch", ".2f") for run in runs]),
        (f"Loss (mean of the last {LAST_LOSSES})", [_figure(run, "loss", ".4f") for run in runs]),
        ("Evaluation loss", [_figure(run, "eval_loss", ".4f") for run in runs]),
        ("Time", [duration(run.facts.get("seconds")) for run in runs]),
    ]
    heads = "".join(f'<th scope="col" class="tp-run tp-run-{place % len(RUN_HEX)}">{escape(run.name)}</th>' for place, run in enumerate(runs))
    differing = differences(runs)
    between = "Settings that differ" if differing else "No setting differs"
    if sum(bool(run.settings) for run in runs) < 2:
        between = "The settings cannot be compared: those of two runs are needed"
    title = f'<tr class="tp-between"><th colspan="{len(runs) + 1}">{between}</th></tr>'
    return (
        f'<div class="tp-scroll"><table class="tp-runs"><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{_rows(results)}{title}{_rows(differing)}</tbody></table></div>"
    )


def _rows(rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    return "".join(
        f'<tr><th scope="row">{escape(label)}</th>{"".join(f"<td>{escape(value)}</td>" for value in values)}</tr>'
        for label, values in rows
        if any(value != UNKNOWN for value in values)
    )


def _figure(run: SavedRun, key: str, digits: str) -> str:
    return f"{run.facts[key]:{digits}}" if key in run.facts else UNKNOWN


def _comparable(key: str, value: Any) -> Any:
    """Equal for values that train the same: a learning rate is a text, and 3e-4 is 0.0003."""
    try:
        return float(value) if key == "learning_rate" else value
    except ValueError:
        return value


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value) or NOT_CHOSEN


# Reading


def _checkpoint_step(folder: Path) -> int | None:
    """120 for checkpoint-120-epoch-2; None for a folder that is no checkpoint."""
    kind, _, rest = folder.name.partition("-")
    number = rest.partition("-")[0]
    return int(number) if kind == "checkpoint" and number.isdecimal() and len(number) < 16 else None


def _read(places: Sequence[Path], name: str, kind: type, notices: list[str]) -> Any:
    """The first of these files that is there and holds such a JSON; None where none does."""
    for place in places:
        file = place / name
        if not file.is_file():
            continue
        try:
            found = json.loads(file.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            notices.append(f"{name} cannot be read as JSON: {error}.")
            continue
        if isinstance(found, kind):
            return found
        notices.append(f"{name} does not hold {'a list' if kind is list else 'one JSON object'}, so it was left out.")
    return None


def _settings(places: Sequence[Path], notices: list[str]) -> dict[str, Any]:
    saved = _read(places, "training_parameters.json", dict, notices)
    if saved is None:
        notices.append("Its settings are not known (training_parameters.json).")
        return {}
    try:
        settings, problems, translated = TrainingSettings.from_saved(saved)
    except (TypeError, ValueError) as error:  # such as a list where a name belongs
        notices.append(f"Its settings cannot be used: {error}.")
        return {}
    notices += [*problems, *translated]
    return settings.model_copy(update={"grad_accumulation": settings.accumulation, "batch_size": 0}).entered()


def _history(places: Sequence[Path], step: int | None, notices: list[str]) -> list[dict[str, float]]:
    """The graph, with the evaluation losses and gradient norms that only `run.jsonl` has; up to `step`, where it is given."""
    graph = _read(places, "training_graph.json", list, notices) or []
    if left_out := sum(_entry(raw) is None for raw in graph):
        notices.append(f"Left out of training_graph.json, since they hold no step or no loss: {left_out:,} of {len(graph):,} entries.")
    by_step: dict[float, dict[str, float]] = {}
    for entry in filter(None, map(_entry, [*graph, *_logged(places)])):
        by_step[entry["current_steps"]] = {**by_step.get(entry["current_steps"], {}), **entry}
    return [entry for at, entry in sorted(by_step.items()) if step is None or at <= step]


def _entry(raw: Any) -> dict[str, float] | None:
    """What can be drawn of a logged entry. Older Training PRO wrote a loss of 0 where it had none, and the steps and epochs of a
    run that went on from another as “adjusted”."""
    if not isinstance(raw, dict):
        return None
    entry = {key: raw[key] for key in FIGURES if is_number(raw.get(key)) and (key != "loss" or raw[key] > 0)}
    for key in ("current_steps", "epoch"):
        value = next((raw[name] for name in (f"{key}_adjusted", key) if is_number(raw.get(name)) and raw[name] >= 0), None)
        if value is not None:
            entry[key] = value
    return entry if "current_steps" in entry and ("loss" in entry or "eval_loss" in entry) else None


def _logged(places: Sequence[Path]) -> list[Any]:
    """The logged figures in `run.jsonl`; a line that a power cut left half is no entry."""
    for place in places:
        try:
            lines = (place / "run.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        return [entry for entry in map(_line, lines) if isinstance(entry, dict) and entry.get("event") == "log"]
    return []


def _line(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _facts(log: dict[str, Any], history: Sequence[dict[str, float]], whole: bool) -> dict[str, Any]:
    """`whole`: whether the log is that of the run's end, which tells nothing of a checkpoint's time and evaluation."""
    facts: dict[str, Any] = {}
    if isinstance(base := log.get("base_model_name"), str) and base:
        facts["base_model"] = base
    if history:
        facts["step"] = history[-1]["current_steps"]
        epochs = [entry["epoch"] for entry in history if "epoch" in entry]
        facts |= {"epoch": epochs[-1]} if epochs else {}
    losses = [loss for _, loss in series(history, "loss")][-LAST_LOSSES:]
    facts |= {"loss": sum(losses) / len(losses)} if losses else {}
    measured = [loss for _, loss in series(history, "eval_loss")]
    if measured or (whole and is_number(log.get("eval_loss"))):
        facts["eval_loss"] = measured[-1] if measured else log["eval_loss"]
    if whole and is_number(log.get("train_runtime")):
        facts["seconds"] = log["train_runtime"]
    return facts
