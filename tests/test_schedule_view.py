import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from training_pro import train_utils
from training_pro.custom_scheduler import SCHEDULERS
from training_pro.schedule_view import points_of, preview, schedule_of, schedule_svg, summary
from training_pro.settings import Plan, TrainingSettings
from training_pro.training_run import DONE


def entered(**values):
    return TrainingSettings(**{"learning_rate": "1e-3", "warmup_steps": 4, "micro_batch_size": 2, **values})


def drawn(svg):
    return ElementTree.fromstring(svg)


def of_class(root, name):
    return [element for element in root.iter() if element.get("class") == name]


def words(root):
    return [key.text for key in root.iter("span")]


def test_saves_evaluations_and_warmup_in_steps():
    """20 blocks, 2 at a time: 10 steps an epoch, by 4 three optimizer steps; 2.5 epochs are 8 of them, 28 steps."""
    settings = entered(epochs=2.5, grad_accumulation=4, save_steps=5, dataset="rows", eval_dataset="held", eval_steps=12)
    assert schedule_of(settings, Plan.of(settings, 20)) == {
        "learning_rate": 1e-3,
        "steps_per_epoch": 10,
        "total_steps": 28,
        "warmup": 4,
        "saves": [8, 10, 14, 20, 28],  # every 2 optimizer steps, and the ends of the epochs
        "evaluations": [10, 20, 28],  # every 3 optimizer steps, and the end
    }


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, ([], [], 4)),
        ({"save_steps": 100}, ([10], [], 4)),
        ({"eval_dataset": "held", "eval_steps": 100}, ([], [10], 4)),
        ({"datasetJSONL": "chats", "eval_dataset": "held", "eval_datasetJSONL": "kept", "eval_stepsJSONL": 4}, ([], [4, 8, 10], 4)),
        ({"warmup_steps": 0, "warmup_ratio": 0.2}, ([], [], 2)),
        ({"warmup_steps": 100}, ([], [], 10)),
        ({"warmup_steps": 100, "lr_scheduler_type": "FP_half_time_annealing"}, ([], [], 5)),
        ({"lr_scheduler_type": "FP_raise_fall_creative"}, ([], [], 0)),
        ({"lr_scheduler_type": "constant"}, ([], [], 0)),
    ],
)
def test_what_is_marked_in_one_epoch_of_ten_steps(values, expected):
    settings = entered(epochs=1, **values)
    found = schedule_of(settings, Plan.of(settings, 20))
    assert (found["saves"], found["evaluations"], found["warmup"]) == expected


@pytest.mark.parametrize("scheduler", ["polynomial", "FP_low_epoch_annealing"])
def test_it_is_what_a_run_does(host, settings, scheduler):
    """Every optimizer step's learning rate, the saves and the evaluations of a real run."""
    entered = settings(lr_scheduler_type=scheduler, epochs=1.5, grad_accumulation=3, save_steps=4, eval_dataset="held", eval_steps=6)
    run = train_utils.train(entered, host, train_utils.begin(entered, host))
    assert run.status == DONE, run.message
    plan = Plan.of(entered, run.report.blocks)
    expected = [value * 5e-3 for _, value in points_of(scheduler, entered, plan)]
    assert [entry["learning_rate"] for entry in run.graph()] == pytest.approx(expected[:-1], abs=1e-9)
    view = schedule_of(entered, plan)
    saved = {int(folder.name.split("-")[1]) for folder in run.adapter.glob("checkpoint-*")}
    assert sorted(saved) == view["saves"] and view["total_steps"] == run.total_steps
    assert [entry["current_steps"] for entry in run.history if "eval_loss" in entry] == view["evaluations"]


def test_the_picture():
    settings = entered(epochs=3, save_steps=5, dataset="rows", eval_dataset="held", eval_steps=15)
    root = drawn(preview(settings, Plan.of(settings, 20), beside="FP_raise_fall_creative"))
    (first,), (second,) = of_class(root, "tp-plan"), of_class(root, "tp-plan-second")
    assert first.get("points").split()[0] == "46.0,200.0" and first.get("points").split()[-1] == "578.0,200.0"
    assert min(float(point.split(",")[1]) for point in second.get("points").split()) == 35.8  # the full rate, 6% below the top
    (warm,) = of_class(root, "tp-warm")
    assert (warm.get("x"), warm.get("width")) == ("46", "70.9")  # 4 of 30 steps
    assert len(of_class(root, "tp-epoch")) == 3 and [text.text for text in of_class(root, "tp-below tp-epoch-number")] == [
        "epoch 1",
        "epoch 2",
        "epoch 3",
    ]
    assert [mark[0].text for mark in of_class(root, "tp-save")] == [f"saved at step {step}" for step in (5, 10, 15, 20, 25, 30)]
    assert [mark[0].text for mark in of_class(root, "tp-measure")] == ["evaluated at step 15", "evaluated at step 30"]
    assert [text.text for text in of_class(root, "tp-value")] == ["0", "1e-3", "1.09e-5", "3.85e-5"]  # start, peak, and the ends from below
    assert words(root) == [
        "linear: 0 → 1e-3 (step 4) → 3.85e-5", "FP_raise_fall_creative: 0 → 1e-3 (step 15) → 1.09e-5",
        "warmup 4 steps", "saved 6 times", "evaluated 2 times",
    ]  # fmt: skip


def test_the_same_schedule_is_not_laid_over_itself():
    settings = entered(epochs=1, warmup_steps=0)
    root = drawn(preview(settings, Plan.of(settings, 20), beside="linear"))
    assert of_class(root, "tp-plan-second") == [] and words(root) == ["linear: 1e-3 → 1e-4"] and of_class(root, "tp-warm") == []


@pytest.mark.parametrize(
    ("values", "blocks", "said"),
    [
        ({"learning_rate": "3e<b>"}, 20, "Learning Rate is “3e<b>”; with a number above 0"),
        ({"learning_rate": "0"}, 20, "Learning Rate is “0”"),
        ({"learning_rate": "nan"}, 20, "Learning Rate is “nan”"),
        ({"learning_rate": "inf"}, 20, "Learning Rate is “inf”"),
        ({"lr_scheduler_type": "gone"}, 20, "LR Scheduler is “gone”; choose one of the list."),
        ({}, 0, "will be drawn here once data is chosen"),
    ],
)
def test_what_cannot_be_drawn_is_said(values, blocks, said):
    settings = entered(**values)
    root = drawn(preview(settings, Plan.of(settings, blocks)))
    assert said in root.text and root.get("class") == "tp-chart tp-chart-empty"


def test_names_are_escaped():
    root = drawn(schedule_svg([("<b>&", [(0, 1.0), (1, 0.0)])], learning_rate=1e-3, steps_per_epoch=0, total_steps=1, warmup=0))
    assert words(root) == ["<b>&: 1e-3"]


def test_very_many_marks_stay_few():
    curves = [("linear", [(0, 1.0), (99_999, 0.1), (100_000, 0.0)])]
    lengths = {"learning_rate": 3e-4, "steps_per_epoch": 100, "total_steps": 100_000, "warmup": 0}
    root = drawn(schedule_svg(curves, **lengths, saves=range(1, 100_001), evaluations=[50_000]))
    marks = of_class(root, "tp-save")
    assert 200 < len(marks) <= 267 and marks[0][0].text == "saved 376 times from step 1 to 376" and "saved 100,000 times" in words(root)
    assert len(of_class(root, "tp-epoch")) <= 30 and "evaluated once" in words(root)


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([(0, 1.0), (1, 1.0), (2, 1.0)], "1e-4"),
        ([(0, 1.0), (1, 0.5), (2, 0.0)], "1e-4 → 5e-5"),
        ([(0, 0.0), (5, 1.0), (9, 0.2), (10, 0.0)], "0 → 1e-4 (step 5) → 2e-5"),
        ([(0, 0.0), (1, 0.5), (2, 1.0)], "0 → 5e-5"),
        ([(0, 1.0), (1, 0.0)], "1e-4"),
    ],
)
def test_a_schedule_in_words(points, said):
    assert summary(points, 1e-4) == said


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(SCHEDULERS), st.sampled_from(SCHEDULERS), st.integers(1, 3000), st.floats(0.01, 60), st.integers(1, 8), st.integers(1, 64),
    st.integers(0, 5000), st.integers(0, 500), st.integers(1, 500), st.sampled_from(["1e-7", "3e-4", "0.02", "5", "1e300", "1e-300"]),
)  # fmt: skip
def test_every_plan_can_be_drawn(name, other, blocks, epochs, batch, accumulation, warmup, save, evaluate, rate):
    settings = TrainingSettings(
        lr_scheduler_type=name, epochs=epochs, micro_batch_size=batch, grad_accumulation=accumulation, warmup_steps=warmup,
        save_steps=save, dataset="rows", eval_dataset="held", eval_steps=evaluate, learning_rate=rate,
    )  # fmt: skip
    plan = Plan.of(settings, blocks)
    found = schedule_of(settings, plan)
    for marks in (found["saves"], found["evaluations"]):
        assert marks == sorted(set(marks)) and all(0 < step <= plan.total_steps for step in marks)
    assert found["evaluations"][-1] == plan.total_steps and 0 <= found["warmup"] <= plan.total_steps
    root = drawn(preview(settings, plan, beside=other))
    for line in of_class(root, "tp-plan") + of_class(root, "tp-plan-second"):
        for point in line.get("points").split():
            x, y = map(float, point.split(","))
            assert 46 <= x <= 578 and 26 <= y <= 200 and math.isfinite(y)
