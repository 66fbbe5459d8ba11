import json
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from training_pro.custom_scheduler import FP_SCHEDULERS, SCHEDULERS, curve, lr_multiplier, multiplier, schedule_notices, warmup_used

# T = 6, E = 2, W = 1: steps 0 to 6
TABLE = {
    "FP_low_epoch_annealing": [0, 1, 1, 0.853553, 0.5, 0.146447, 0],
    "FP_half_time_annealing": [0, 1, 1, 1, 0.75, 0.25, 0],
    "FP_raise_fall_creative": [0, 0.25, 0.75, 1, 0.75, 0.25, 0],
    "FP_3epoch_raise_hold_fall": [0, 0.707107, 1, 1, 1, 0.707107, 0],
    "FP_step_decay_with_warmup": [0, 1, 0.5, 0.5, 0.25, 0.25, 0.125],
}


@pytest.mark.parametrize("name", TABLE)
def test_against_the_table(name):
    found = [lr_multiplier(name, step, total_steps=6, epoch_steps=2, warmup_steps=1) for step in range(7)]
    assert found == pytest.approx(TABLE[name], abs=1e-6)


# (T, E, W): name → multipliers of the steps 0 to T
LOW, HALF, HUMP, THREE, HALVING = TABLE
EDGES = {
    "one step": ((1, 1, 0), {LOW: [1, 0], HALF: [1, 0], HUMP: [1, 0], THREE: [0, 1], HALVING: [1, 0.5]}),
    "one step and a warmup of five": ((1, 1, 5), {LOW: [0, 0], HALF: [1, 0], HUMP: [1, 0], THREE: [0, 1], HALVING: [0, 0.5]}),
    "one epoch": (
        (4, 4, 2),
        {
            LOW: [0, 0.5, 1, 1, 0],
            HALF: [0, 0.5, 1, 0.5, 0],
            HUMP: [0, 0.5, 1, 0.5, 0],
            THREE: [0, 0.382683, 0.707107, 0.92388, 1],
            HALVING: [0, 0.5, 1, 1, 0.5],
        },
    ),
    "two epochs": (
        (8, 4, 2),
        {
            LOW: [0, 0.5, 1, 1, 1, 0.853553, 0.5, 0.146447, 0],
            HALF: [0, 0.5, 1, 1, 1, 0.853553, 0.5, 0.146447, 0],
            HUMP: [0, 0.146447, 0.5, 0.853553, 1, 0.853553, 0.5, 0.146447, 0],
            THREE: [0, 0.382683, 0.707107, 0.92388, 1, 1, 1, 1, 0],
            HALVING: [0, 0.5, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25],
        },
    ),
    "two epochs and a half": (
        (10, 4, 0),
        {
            LOW: [1, 1, 1, 1, 1, 0.933013, 0.75, 0.5, 0.25, 0.066987, 0],
            HALF: [1, 1, 1, 1, 1, 1, 0.904508, 0.654508, 0.345492, 0.095492, 0],
            HUMP: [0, 0.095492, 0.345492, 0.654508, 0.904508, 1, 0.904508, 0.654508, 0.345492, 0.095492, 0],
            THREE: [0, 0.382683, 0.707107, 0.92388, 1, 1, 1, 1, 1, 0.707107, 0],
            HALVING: [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25],
        },
    ),
    "half an epoch of four": ((2, 4, 0), {LOW: [1, 1, 1], HALF: [1, 1, 0], HUMP: [0, 1, 0], THREE: [0, 0.382683, 0.707107], HALVING: [1, 1, 1]}),
    "half an epoch, taken for a whole one": (
        (2, 2, 0),
        {LOW: [1, 1, 0], HALF: [1, 1, 0], HUMP: [0, 1, 0], THREE: [0, 0.707107, 1], HALVING: [1, 1, 0.5]},
    ),
    "a warmup longer than its phase": (
        (8, 4, 100),
        {
            LOW: [0, 0.25, 0.5, 0.75, 1, 0.853553, 0.5, 0.146447, 0],
            HALF: [0, 0.25, 0.5, 0.75, 1, 0.853553, 0.5, 0.146447, 0],
            HUMP: [0, 0.146447, 0.5, 0.853553, 1, 0.853553, 0.5, 0.146447, 0],
            THREE: [0, 0.382683, 0.707107, 0.92388, 1, 1, 1, 1, 0],
            HALVING: [0, 0.25, 0.5, 0.75, 0.5, 0.5, 0.5, 0.5, 0.25],
        },
    ),
}

# T = 8, W = 2, a learning rate of 1e-6
TRANSFORMERS = {
    "linear": [0, 0.5, 1, 0.833333, 0.666667, 0.5, 0.333333, 0.166667, 0],
    "constant": [1, 1, 1, 1, 1, 1, 1, 1, 1],
    "constant_with_warmup": [0, 0.5, 1, 1, 1, 1, 1, 1, 1],
    "cosine": [0, 0.5, 1, 0.933013, 0.75, 0.5, 0.25, 0.066987, 0],
    "cosine_with_restarts": [0, 0.5, 1, 0.933013, 0.75, 0.5, 0.25, 0.066987, 0],
    "polynomial": [0, 0.5, 1, 0.85, 0.7, 0.55, 0.4, 0.25, 0.1],
    "inverse_sqrt": [0, 0.5, 1, 0.816497, 0.707107, 0.632456, 0.57735, 0.534522, 0.5],
}


@pytest.mark.parametrize("case", EDGES)
@pytest.mark.parametrize("name", TABLE)
def test_edges(case, name):
    (T, E, W), expected = EDGES[case]
    found = [lr_multiplier(name, step, total_steps=T, epoch_steps=E, warmup_steps=W) for step in range(T + 1)]
    assert found == pytest.approx(expected[name], abs=1e-6)
    assert curve(name, total_steps=T, epoch_steps=E, warmup_steps=W) == list(enumerate(found))


@pytest.mark.parametrize("name", TABLE)
def test_saved_and_loaded_in_the_middle(name):
    """The multiplier depends on the step alone, so a schedule that goes on from a file gives what the whole one gives."""
    import torch

    def schedule():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        made = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_multiplier(name, step, total_steps=8, epoch_steps=4, warmup_steps=2))
        return optimizer, made

    def rates(optimizer, made, count):
        found = []
        for _ in range(count):
            found += made.get_last_lr()
            optimizer.step()
            made.step()
        return found

    first, second = schedule(), schedule()
    begun = rates(*first, 3)
    saved = json.loads(json.dumps({key: value for key, value in first[1].state_dict().items() if key != "lr_lambdas"}))
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict({**saved, "lr_lambdas": [None]})
    assert begun + rates(*second, 6) == pytest.approx(EDGES["two epochs"][1][name], abs=1e-6)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_own_against_the_table(name):
    assert [value for _, value in curve(name, total_steps=8, epoch_steps=4, warmup_steps=2, learning_rate=1e-6)] == pytest.approx(
        TRANSFORMERS[name], abs=1e-6
    )


@pytest.mark.parametrize("name", TRANSFORMERS)
@hypothesis_settings(deadline=None, max_examples=40)
@given(total=st.integers(1, 300), warmup=st.integers(0, 320), rate=st.sampled_from([1e-2, 3e-4, 2e-7]))
@example(total=5, warmup=5, rate=3e-4)
@example(total=5, warmup=4, rate=3e-4)
@example(total=5, warmup=6, rate=3e-4)
@example(total=1, warmup=0, rate=3e-4)
def test_transformers_own_are_what_transformers_has(name, total, warmup, rate):
    import torch
    import transformers

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    theirs = transformers.get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total).lr_lambdas[0]
    used = total - (name == "polynomial" and warmup == total)  # transformers divides by zero there
    found = curve(name, total_steps=total, epoch_steps=total, warmup_steps=warmup, learning_rate=rate)[: used + 1]
    assert found == [(step, pytest.approx(theirs(step), abs=1e-9)) for step in range(used + 1)]


def test_all_names_have_a_curve_and_others_none():
    assert set(TRANSFORMERS) | set(TABLE) == set(SCHEDULERS)
    with pytest.raises(KeyError):
        multiplier("no_such", 0, total_steps=1, epoch_steps=1, warmup_steps=0)


def test_a_long_curve_is_short_and_keeps_its_corners():
    found = dict(curve("FP_step_decay_with_warmup", total_steps=100_003, epoch_steps=9_973, warmup_steps=777))
    assert len(found) <= 430 and min(found) == 0 and max(found) == 100_003 and 100_002 in found
    assert (found[777], found[9_972], found[9_973], found[19_945], found[19_946]) == (1, 1, 0.5, 0.5, 0.25)
    assert curve("linear", total_steps=0, epoch_steps=0, warmup_steps=0) == [(0, 0.0)]


@hypothesis_settings(deadline=None)
@given(st.sampled_from(SCHEDULERS), st.integers(0, 100_000), st.integers(1, 100_000), st.integers(0, 200_000), st.integers(2, 400))
def test_a_curve_is_the_schedule_itself(name, total, epoch, warmup, points):
    lengths = {"total_steps": total, "epoch_steps": epoch, "warmup_steps": warmup}
    found = curve(name, **lengths, points=points)
    assert len(found) <= points + 30 and found[0][0] == 0 and found[-1][0] == total
    assert [step for step, _ in found] == sorted({step for step, _ in found})
    assert all(0 <= value <= 1 and value == multiplier(name, step, **lengths) for step, value in found)


def test_a_curve_needs_no_transformers():
    code = "import sys; from training_pro.custom_scheduler import curve; curve('cosine', total_steps=9, epoch_steps=3, warmup_steps=1); sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "used"),
    [("linear", 9), ("constant", 0), ("constant_with_warmup", 9), ("FP_low_epoch_annealing", 4), ("FP_half_time_annealing", 5),
     ("FP_raise_fall_creative", 0), ("FP_3epoch_raise_hold_fall", 0), ("FP_step_decay_with_warmup", 4)],
)  # fmt: skip
def test_the_warmup_that_is_used(name, used):
    assert warmup_used(name, total_steps=10, epoch_steps=4, warmup_steps=9) == used


def test_the_five_are_there_and_in_the_dropdown():
    assert set(FP_SCHEDULERS) == set(TABLE) < set(SCHEDULERS)


@pytest.mark.parametrize("name", ["FP_low_epoch_annealing", "FP_step_decay_with_warmup"])
def test_a_warmup_longer_than_its_phase_is_clamped(name):
    found = [lr_multiplier(name, step, total_steps=8, epoch_steps=4, warmup_steps=100) for step in range(4)]
    assert found == [0, 0.25, 0.5, 0.75]
    assert "longer than the phase" in schedule_notices(name, total_steps=8, epoch_steps=4, warmup_steps=100, epochs=2)[0]


def test_fewer_than_three_epochs_is_said():
    assert "3 epochs" in schedule_notices("FP_3epoch_raise_hold_fall", total_steps=8, epoch_steps=4, warmup_steps=0, epochs=2)[0]
    assert schedule_notices("FP_3epoch_raise_hold_fall", total_steps=12, epoch_steps=4, warmup_steps=0, epochs=3) == []


def test_a_warmup_as_long_as_the_run_is_said():
    assert "never reaches" in schedule_notices("linear", total_steps=45, epoch_steps=15, warmup_steps=100, epochs=3)[0]
    assert schedule_notices("linear", total_steps=450, epoch_steps=150, warmup_steps=100, epochs=3) == []


@hypothesis_settings(deadline=None)
@given(st.sampled_from(sorted(FP_SCHEDULERS)), st.integers(1, 5000), st.floats(0.05, 20), st.integers(0, 6000), st.data())
def test_never_below_zero_never_above_one_never_a_fault(name, total, epochs, warmup, data):
    epoch = -(-total // max(1, int(epochs)))
    step = data.draw(st.integers(0, total + 3))
    assert 0 <= lr_multiplier(name, step, total_steps=total, epoch_steps=epoch, warmup_steps=warmup) <= 1


@pytest.mark.parametrize("name", FP_SCHEDULERS)
def test_a_single_step(name):
    assert 0 <= lr_multiplier(name, 0, total_steps=1, epoch_steps=1, warmup_steps=0) <= 1
