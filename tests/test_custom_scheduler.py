import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_pro.custom_scheduler import FP_SCHEDULERS, SCHEDULERS, lr_multiplier, schedule_notices

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


@given(st.sampled_from(sorted(FP_SCHEDULERS)), st.integers(1, 5000), st.floats(0.05, 20), st.integers(0, 6000), st.data())
def test_never_below_zero_never_above_one_never_a_fault(name, total, epochs, warmup, data):
    epoch = -(-total // max(1, int(epochs)))
    step = data.draw(st.integers(0, total + 3))
    assert 0 <= lr_multiplier(name, step, total_steps=total, epoch_steps=epoch, warmup_steps=warmup) <= 1


@pytest.mark.parametrize("name", FP_SCHEDULERS)
def test_a_single_step(name):
    assert 0 <= lr_multiplier(name, 0, total_steps=1, epoch_steps=1, warmup_steps=0) <= 1
