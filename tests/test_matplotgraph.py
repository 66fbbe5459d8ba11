import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_pro.matplotgraph import (
    MOST_POINTS,
    chart_svg,
    fraction_ticks,
    nice_range,
    overlay_svg,
    rate_words,
    robust_range,
    save_png,
    series,
    smoothed,
    thinned,
    whole_ticks,
    without_spikes,
)

HISTORY = [{"current_steps": n, "epoch": n / 10, "loss": 3 / n, "learning_rate": 1e-4 * n} for n in range(1, 30)]
HISTORY.insert(10, {"current_steps": 10, "epoch": 1.0, "eval_loss": 0.5})


def test_series_leave_out_what_is_missing_or_no_number():
    history = [{"current_steps": 1, "loss": 2.0}, {"current_steps": 2, "loss": math.nan}, {"current_steps": 3, "eval_loss": 1.0}]
    assert series(history, "loss") == [(1, 2.0)] and series(history, "eval_loss") == [(3, 1.0)]


def test_series_take_what_a_file_may_hold():
    graph = [{"current_steps": 1, "loss": 2.0, "learning_rate": None}, {"loss": 3.0}, {"current_steps": "2", "loss": 1.0}, {"current_steps": 3, "loss": 10**400},
             {"current_steps": True, "loss": 1.0}, {"current_steps": 4, "epoch": 0.5, "loss": 1.5}]  # fmt: skip
    assert (
        series(graph, "loss") == [(1, 2.0), (4, 1.5)] and series(graph, "learning_rate") == [] and series(graph, "loss", by="epoch") == [(0.5, 1.5)]
    )
    assert "loss 1.500" in chart_svg(graph)


def test_smoothing_begins_at_the_first_value():
    assert smoothed([(1, 4.0), (2, 4.0)]) == [(1, pytest.approx(4.0)), (2, pytest.approx(4.0))]
    assert smoothed([(1, 0.0), (2, 1.0)], past=0.5)[1][1] == pytest.approx(2 / 3)


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3000))
def test_thinning_keeps_the_ends_and_the_extremes(values):
    points = [(float(place), value) for place, value in enumerate(values)]
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS + 2 and kept[0] == points[0] and kept[-1] == points[-1] and kept == sorted(kept)
    assert min(values) in [y for _, y in kept] and max(values) in [y for _, y in kept]


def test_a_spike_does_not_set_the_range():
    calm = [1.0, 1.5, 2.0] * 10
    assert (
        robust_range([*calm, 55.0]) == (1.0, 2.0) and robust_range([*calm, -55.0]) == (1.0, 2.0) and robust_range([*calm, 55.0, -55.0]) == (1.0, 2.0)
    )
    assert robust_range([*calm, 4.5]) == (1.0, 4.5)  # no spike: it leaves the rest a quarter of the height and more
    assert robust_range([*calm, 55.0, 54.0]) == (1.0, 55.0)  # two of 32 are no longer a spike
    assert robust_range([1.0, 55.0]) == (1.0, 55.0) and robust_range([2.0] * 20) == (2.0, 2.0)
    assert without_spikes([(n, y) for n, y in enumerate([*calm, 55.0])])[-1] == (30, 2.0) and without_spikes([]) == []


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=500))
def test_the_robust_range_leaves_out_one_in_two_hundred_at_each_end_at_most(values):
    low, high = robust_range(values)
    few = max(1, len(values) // 200)
    assert min(values) <= low <= high <= max(values) and sum(value < low for value in values) <= few and sum(value > high for value in values) <= few


@settings(deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20))
def test_the_axis_holds_all_values(values):
    low, high, ticks = nice_range(values)
    assert low <= min(values) + 1e-9 and max(values) - 1e-9 <= high and low < high and 2 <= len(ticks) <= 13


def test_ticks_are_whole_numbers():
    assert fraction_ticks(3) == [0, 0.5, 1, 1.5, 2, 2.5, 3] and fraction_ticks(0.3) == [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]
    assert whole_ticks(100) == [0, 20, 40, 60, 80, 100] and whole_ticks(3) == [0, 1, 2, 3]


def drawn(svg):
    return ElementTree.fromstring(svg)


def test_the_chart_has_each_line_once():
    root = drawn(chart_svg(HISTORY, total_steps=60, steps_per_epoch=10))
    lines = [line.get("class") for line in root.iter("polyline")]
    assert lines == ["tp-rate", "tp-loss", "tp-smooth"] and len(list(root.iter("circle"))) == 1
    assert len([line for line in root.iter("line") if line.get("class") == "tp-epoch"]) == 6
    assert "evaluation 0.500" in "".join(root.itertext())


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (3e-4, "3e-4"), (1.25e-5, "1.25e-5"), (0.02, "0.02"), (0.009999, "1e-2"), (2.96999e-6, "2.97e-6"), (1e-10, "1e-10")],
)
def test_rates_as_one_types_them(value, words):
    assert rate_words(value) == words


def classes(root, kind):
    return [element.get("class") for element in root.iter(kind)]


def texts(root, kind):
    return [element.text for element in root.iter("text") if element.get("class") == kind]


def test_the_gradient_norm_has_a_strip_of_its_own():
    plain = drawn(chart_svg(HISTORY, 60)).find("svg")
    with_norm = drawn(chart_svg([{**entry, "grad_norm": 2.0 + n % 2} for n, entry in enumerate(HISTORY)], 60))
    svg = with_norm.find("svg")
    assert plain.get("viewBox") == "0 0 640 300" and svg.get("viewBox") == "0 0 640 360"
    assert classes(svg, "polyline") == ["tp-rate", "tp-loss", "tp-smooth", "tp-gradient"] and "gradient norm 3" in "".join(with_norm.itertext())
    line = next(element for element in svg.iter("polyline") if element.get("class") == "tp-gradient")
    heights = [float(point.split(",")[1]) for point in line.get("points").split()]
    assert min(heights) == 282.0 and 296 < max(heights) < 297  # 3 at the strip's top, 2 at two thirds of its 44


def test_by_epoch():
    root = drawn(chart_svg(HISTORY, total_steps=60, steps_per_epoch=10, by="epoch"))
    assert texts(root, "tp-below") == ["0", "1", "2", "3", "4", "5", "6", "epoch"]
    assert classes(root, "line").count("tp-epoch") == 6 and root.find("svg").get("aria-label") == "Loss by epoch"
    line = next(element for element in root.iter("polyline") if element.get("class") == "tp-loss")
    assert line.get("points").split()[-1].startswith("309.9,")  # epoch 2.9 of 6 on an axis from 46 to 592
    steps_only = [{"current_steps": n, "loss": 1.0} for n in range(1, 5)]
    assert "step" in texts(drawn(chart_svg(steps_only, by="epoch")), "tp-below")


def test_other_runs_lie_over_it_and_are_named():
    others = [("old <b>", [{"current_steps": n, "loss": 5.0} for n in range(1, 101)]), ("empty", []), ("one", [{"current_steps": 3, "loss": 1.0}])]
    root = drawn(chart_svg(HISTORY, others=others))
    assert classes(root, "polyline")[:1] == ["tp-other tp-run-2"] and "tp-point tp-other tp-run-4" in classes(root, "circle")
    assert [key.text for key in root.iter("span")][-3:] == ["old <b> 5.000", "empty (not known)", "one 1.000"]
    assert [key.get("class") for key in root.iter("span")][-3:] == [f"tp-key tp-other-key tp-run-{n}" for n in (2, 3, 4)]
    assert texts(root, "tp-below")[-2:] == ["100", "step"]  # as far as the longest


def test_a_spike_is_said_and_not_drawn_to_scale():
    history = [{"current_steps": n, "loss": 55.0 if n == 1_500 else 2.0 + n % 2} for n in range(1, 2001)]
    root = drawn(chart_svg(history))
    assert texts(root, "tp-beyond") == ["▲ 55 at step 1,500"] and texts(root, "tp-left")[-1] == "3"
    smooth = next(element for element in root.iter("polyline") if element.get("class") == "tp-smooth")
    assert all(30 < float(point.split(",")[1]) < 250 for point in smooth.get("points").split()[2:])


def test_runs_over_each_other():
    runs = [("a", HISTORY), ("b", [{"current_steps": 50, "loss": 1.0, "learning_rate": 1e-4}])]
    root = drawn(overlay_svg(runs, "loss", "Smoothed <loss>"))
    assert classes(root, "polyline") == ["tp-run tp-run-0"] and classes(root, "circle") == ["tp-point tp-run tp-run-1"]
    assert "Smoothed <loss>" in list(root.itertext()) and texts(root, "tp-below")[-2:] == ["50", "step"]
    rates = drawn(overlay_svg(runs, "learning_rate", "Learning rate", by="epoch"))
    assert texts(rates, "tp-left") == ["0", "1e-3", "2e-3", "3e-3"] and [key.text for key in rates.iter("span")] == ["a 2.90e-03", "b (not known)"]
    assert overlay_svg(runs, "grad_norm", "Gradient norm") == "" and overlay_svg([], "loss", "Loss") == ""


def test_a_long_run_stays_small():
    history = [{"current_steps": n, "loss": 1 + math.sin(n), "learning_rate": 1e-4} for n in range(1, 20_001)]
    history[4_321]["loss"] = 2.5  # kept, wherever in the run it is
    svg = chart_svg(history, 20_000)
    line = next(element for element in drawn(svg).iter("polyline") if element.get("class") == "tp-loss")
    places = [float(point.split(",")[0]) for point in line.get("points").split()]
    heights = {point.split(",")[0]: float(point.split(",")[1]) for point in line.get("points").split()}
    assert len(svg) < 60_000 and (places[0], places[-1]) == (46.0, 592.0) and min(heights, key=heights.get) == "164.0"


def test_an_empty_run_says_so():
    assert "will be drawn" in chart_svg([])


def test_the_picture(tmp_path):
    save_png(HISTORY, tmp_path / "a.png", title="a <run>")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "a.png").stat().st_size > 5000
    norms = [{**entry, "grad_norm": 1.0} for entry in HISTORY]
    save_png(norms, tmp_path / "all.png", title="$x_{$", by="epoch", others=[("_y $", HISTORY), ("none", [])])
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "all.png").stat().st_size > 5000
    save_png([], tmp_path / "empty.png")
    assert (tmp_path / "empty.png").is_file()
