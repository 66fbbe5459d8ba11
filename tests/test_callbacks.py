import math

import pytest
from training_pro.callbacks import LossCheckpoints, checkpoint_name, stop_at_loss, whole_epochs
from training_pro.settings import Plan


@pytest.mark.parametrize(
    ("losses", "limit", "stops"),
    [
        ([1.0, 1.0, 1.0], 1.0, True),
        ([3.0, 0.5, 0.5, 0.5], 0.5, True),
        ([0.4, 0.5, 0.7], 0.5, False),
        ([0.1, 0.1], 0.5, False),  # fewer than three
        ([0.1, 0.1, 0.1], 0.0, False),  # switched off
        ([], 1.0, False),
    ],
)
def test_stop_at_loss(losses, limit, stops):
    assert stop_at_loss(losses, limit) is stops


def saved_at(losses, threshold=1.8, patience=4, epoch=1.0):
    rule = LossCheckpoints(threshold, patience)
    return [place for place, loss in enumerate(losses) if rule.should_save(loss, epoch)]


@pytest.mark.parametrize(
    ("losses", "saves"),
    [
        ([2, 2, 1.7, 1.7, 1.7, 1.7, 1.7], [5]),
        ([1.7, 1.7, 2.0, 1.7, 1.7, 1.7, 1.7], [6]),  # it has to stay below
        ([1.7] * 4 + [1.6] * 9, [3]),  # less than 10% lower
        ([1.7] * 4 + [1.5] * 4, [3, 7]),
        ([1.7, 1.7, math.nan, 1.7, 1.7, 1.7, 1.7], [6]),
        ([1.7, 1.7, 0.0, 1.7, 1.7], []),  # a single 0 does not count
        ([1.7, 1.7, 1.7], []),
    ],
)
def test_save_at_ten_percent(losses, saves):
    assert saved_at(losses) == saves


def test_save_at_ten_percent_off_early_and_with_accumulation():
    assert saved_at([1.0] * 9, threshold=0) == []
    assert saved_at([1.0] * 9, epoch=0.05) == []
    assert saved_at([1.7] * 4, patience=3) == [2]


def test_checkpoint_names():
    assert checkpoint_name(120) == "checkpoint-120"
    assert checkpoint_name(120, "epoch", "2") == "checkpoint-120-epoch-2"
    assert checkpoint_name(120, "loss", "1.75") == "checkpoint-120-loss-1_75"
    assert checkpoint_name(120, "user") == "checkpoint-120-user"


def test_the_end_of_an_epoch_is_told_from_the_middle_of_one():
    plan = Plan(blocks=100, micro_batch_size=4, accumulation=4, epochs=3)  # 7 optimizer steps an epoch
    assert [whole_epochs(step, plan) for step in (6, 7, 8, 14, 21)] == [0, 1, 0, 2, 3]
