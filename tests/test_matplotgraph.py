import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_pro.matplotgraph import MOST_POINTS, chart_svg, nice_range, save_png, series, smoothed, thinned, whole_ticks

HISTORY = [{"current_steps": n, "epoch": n / 10, "loss": 3 / n, "learning_rate": 1e-4 * n} for n in range(1, 30)]
HISTORY.insert(10, {"current_steps": 10, "epoch": 1.0, "eval_loss": 0.5})


def test_series_leave_out_what_is_missing_or_no_number():
    history = [{"current_steps": 1, "loss": 2.0}, {"current_steps": 2, "loss": math.nan}, {"current_steps": 3, "eval_loss": 1.0}]
    assert series(history, "loss") == [(1, 2.0)] and series(history, "eval_loss") == [(3, 1.0)]


def test_smoothing_begins_at_the_first_value():
    assert smoothed([(1, 4.0), (2, 4.0)]) == [(1, pytest.approx(4.0)), (2, pytest.approx(4.0))]
    assert smoothed([(1, 0.0), (2, 1.0)], past=0.5)[1][1] == pytest.approx(2 / 3)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3000))
def test_thinning_keeps_the_ends_and_the_extremes(values):
    points = [(float(place), value) for place, value in enumerate(values)]
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS + 2 and kept[0] == points[0] and kept[-1] == points[-1] and kept == sorted(kept)
    assert min(values) in [y for _, y in kept] and max(values) in [y for _, y in kept]


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20))
def test_the_axis_holds_all_values(values):
    low, high, ticks = nice_range(values)
    assert low <= min(values) + 1e-9 and max(values) - 1e-9 <= high and low < high and 2 <= len(ticks) <= 13


def test_ticks_are_whole_numbers():
    assert whole_ticks(100) == [0, 20, 40, 60, 80, 100] and whole_ticks(3) == [0, 1, 2, 3]


def drawn(svg):
    return ElementTree.fromstring(svg)


def test_the_chart_has_each_line_once():
    root = drawn(chart_svg(HISTORY, total_steps=60, steps_per_epoch=10))
    lines = [line.get("class") for line in root.iter("polyline")]
    assert lines == ["tp-rate", "tp-loss", "tp-smooth"] and len(list(root.iter("circle"))) == 1
    assert len([line for line in root.iter("line") if line.get("class") == "tp-epoch"]) == 6
    assert "evaluation 0.500" in "".join(root.itertext())


def test_a_long_run_stays_small():
    history = [{"current_steps": n, "loss": 1 + math.sin(n), "learning_rate": 1e-4} for n in range(1, 20_001)]
    assert len(chart_svg(history, 20_000)) < 60_000


def test_an_empty_run_says_so():
    assert "will be drawn" in chart_svg([])


def test_the_picture(tmp_path):
    save_png(HISTORY, tmp_path / "a.png", title="a <run>")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "a.png").stat().st_size > 5000
    save_png([], tmp_path / "empty.png")
    assert (tmp_path / "empty.png").is_file()
