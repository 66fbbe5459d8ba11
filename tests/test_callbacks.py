import math
import random
import time
from types import SimpleNamespace

import pytest
from training_pro.callbacks import (
    BestEvaluation,
    Guard,
    LossCheckpoints,
    Ordinary,
    Steering,
    Stops,
    checkpoint_name,
    removed_checkpoints,
    steered,
    steered_end,
    stop_at_loss,
    whole_epochs,
)
from training_pro.settings import Plan
from training_pro.training_run import ADD_EPOCH, COOL_DOWN, EVALUATE, SCALE_RATE, Diverged, TrainingRun


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


@pytest.mark.parametrize(
    ("losses", "patience", "stops_at", "best_at"),
    [
        ([3, 2, 2.5, 2.4, 2.3], 3, 5, 2),
        ([3, 2, 2.5, 1.9, 2.0, 2.1], 2, 6, 4),
        ([2, 2, 2], 2, 3, 1),  # a plateau is no better loss
        ([3, 2.9, 2.8, 2.7], 1, None, 4),
        ([3, 4, 5, 6, 7], 0, None, 1),  # switched off
        ([3, 4, 5, 6, 7], 1, 2, 1),
        ([math.nan, 2, 3], 2, None, 2),
        ([3, 2, (2.5,), (2.4,), 2.3], 2, None, 2),  # those that were asked for use up no patience
        ([3, 2, 2.5, (1.5,), 2.3], 2, None, 4),
        ([], 1, None, 0),
    ],
)
def test_early_stopping(losses, patience, stops_at, best_at):
    best, found = BestEvaluation(), None
    for place, loss in enumerate(losses, 1):
        best.add(loss[0] if isinstance(loss, tuple) else loss, place, asked=isinstance(loss, tuple))
        if found is None and best.exhausted(patience):
            found = place
    assert (found, best.at) == (stops_at, best_at)


# The guard


@pytest.mark.parametrize(
    ("losses", "loss", "stops"),
    [
        ([2.0] * 40, 3.0, False),  # 1.5 times the highest of the first
        ([2.0] * 40, 3.3, True),
        ([2.0] * 40, 3.1, False),  # within 12 deviations of at least a twentieth
        ([2.0] * 31, 99.0, False),  # too early to know
        ([2.0] * 32, 99.0, True),
        ([2.0, 1.0] * 20, 5.0, False),  # a restless curve
        ([2.0, 1.0] * 20, 11.0, True),
        ([8.0] * 10 + [0.1] * 70, 9.0, False),  # learned by heart: a row that it has not learned is no reason
        ([8.0] * 10 + [0.1] * 70, 12.1, True),
        ([2.0] * 40 + [2.9, 2.9, 2.9], 3.0, False),  # a few odd ones move nothing
        ([0.001] * 40, 0.0015, False),
    ],
)
def test_a_loss_far_above_its_spread(losses, loss, stops):
    assert (loss > Ordinary(losses).limit) is stops


@pytest.mark.parametrize("seed", range(20))
def test_no_ordinary_noise_is_taken_for_a_divergence(seed):
    """Falling curves with heavy-tailed noise, as true batches of 1 on mixed data show them; none of 20 000 losses is far above."""
    numbers = random.Random(seed)
    ordinary = Ordinary()
    for step in range(1000):
        loss = (0.3 + 2.5 * math.exp(-step / 200)) * numbers.lognormvariate(0, 0.35)
        assert loss <= ordinary.limit
        ordinary.add(loss)


def logged(callback, step, **figures):
    callback.on_log(None, SimpleNamespace(global_step=step, epoch=0.5), SimpleNamespace(should_training_stop=False), logs=figures)


@pytest.mark.parametrize("figures", [{"loss": math.nan}, {"loss": 2.0, "grad_norm": math.inf}, {"eval_loss": math.nan}])
def test_what_is_no_number_ends_the_run(figures):
    with pytest.raises(Diverged, match=r"is (nan|inf) at step") as caught:
        logged(Guard(TrainingRun("x"), lambda: False), 7, **figures)
    assert caught.value.optimizer_step == 7


def test_a_step_that_half_precision_skipped_is_no_divergence_unless_it_skips_all():
    guard = Guard(TrainingRun("x"), lambda: True)
    for step in range(30):
        logged(guard, step, loss=2.0, grad_norm=math.inf)
    with pytest.raises(Diverged, match="grad_norm is inf"):
        logged(guard, 31, loss=2.0, grad_norm=math.inf)
    with pytest.raises(Diverged, match="loss is nan"):
        logged(Guard(TrainingRun("x"), lambda: True), 1, loss=math.nan)


# Steering


def line(step, total=10):
    return 1 - step / total


def command(at, kind, value=None):
    return {"at": at, "kind": kind, "value": value}


@pytest.mark.parametrize(
    ("commands", "end", "rates"),
    [
        ([], 10, {0: 1.0, 4: 0.6, 10: 0.0}),
        ([command(4, SCALE_RATE, 0.5)], 10, {3: 0.7, 4: 0.3, 8: 0.1}),
        ([command(2, SCALE_RATE, 2), command(6, SCALE_RATE, 2)], 10, {1: 0.9, 2: 1.6, 6: 1.6, 9: 0.4}),
        ([command(4, COOL_DOWN, 3)], 7, {3: 0.7, 4: 0.6, 5: 0.4, 6: 0.2, 7: 0.0}),
        ([command(9, COOL_DOWN, 4)], 13, {9: 0.1, 11: 0.05, 13: 0.0}),  # longer than was left
        ([command(4, ADD_EPOCH)], 15, {3: 0.7, 4: 0.6, 15: 0.0, 9.5: 0.3}),  # what is left is stretched, without a jump
        ([command(0, ADD_EPOCH), command(0, ADD_EPOCH)], 20, {0: 1.0, 10: 0.5, 20: 0.0}),
        ([command(5, ADD_EPOCH), command(10, SCALE_RATE, 2), command(10, ADD_EPOCH)], 20, {5: 0.5, 10: 0.5, 15: 0.25, 20: 0.0}),
        ([command(4, COOL_DOWN, 4), command(6, SCALE_RATE, 0.5)], 8, {5: 0.45, 6: 0.15, 7: 0.075}),
    ],
)
def test_the_schedule_with_commands(commands, end, rates):
    assert steered_end(10, 5, commands) == end
    assert {step: pytest.approx(steered(step, line, 10, 5, commands)) for step in rates} == rates


def test_without_epochs_added_the_schedule_is_asked_for_whole_steps():
    seen = []
    steered(7, lambda step: seen.append(step) or 1.0, 10, 5, [command(3, SCALE_RATE, 0.5)])
    assert seen == [7] and isinstance(seen[0], int)


def steering(run=None, **plan):
    values = {"blocks": 40, "micro_batch_size": 4, "accumulation": 1, "epochs": 1, **plan}
    rates = []
    run = run or TrainingRun("x")
    return run, Steering(run, Plan(**values), lambda: rates.append(list(run.steering))), rates


def test_requests_become_commands_at_their_step_and_are_recorded(tmp_path):
    run, callback, rates = steering(accumulation=4)
    run.write_to(tmp_path)
    run.request(SCALE_RATE, 2)
    run.request(COOL_DOWN, 5)  # steps: two optimizer steps
    run.request(EVALUATE)
    run.update(stop_at_loss=1.5)
    logged(callback, 1, loss=2.0)
    assert run.steering == [command(1, SCALE_RATE, 2), command(1, COOL_DOWN, 2)] and len(rates) == 2
    assert run.total_steps == 10 and run.evaluate_requested and run.taken_requests() == []
    text = (tmp_path / "run.jsonl").read_text(encoding="utf-8")
    assert text.count('"command"') == 4 and '"kind": "stop_at_loss", "value": 1.5' in text and '"optimizer_step": 1' in text


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (SCALE_RATE, 0, "0 is no number above 0"),
        (SCALE_RATE, math.nan, "nan is no number"),
        (SCALE_RATE, "x", "'x' is no number"),
        (SCALE_RATE, 1e9, "is no number above 0 and up to 1000"),
        (COOL_DOWN, 0, "0 is no number of steps"),
        (COOL_DOWN, None, "None is no number of steps"),
    ],
)
def test_what_cannot_be_done_is_a_notice(kind, value, words):
    run, callback, rates = steering()
    run.request(kind, value)
    logged(callback, 3, loss=2.0)
    assert words in run.notices[0] and run.steering == [] and rates == []


def test_a_run_that_cools_down_gets_no_further_epoch_and_cools_once():
    run, callback, _ = steering()
    for kind, value in ((COOL_DOWN, 3), (ADD_EPOCH, None), (COOL_DOWN, 5)):
        run.request(kind, value)
    logged(callback, 3, loss=2.0)
    assert run.steering == [command(3, COOL_DOWN, 3)] and len(run.notices) == 2


def test_epochs_are_added_up_to_a_hundred_and_not_after_the_end():
    run, callback, _ = steering()
    for _ in range(101):
        run.request(ADD_EPOCH)
    logged(callback, 10, loss=2.0)
    assert run.steering == [] and "had reached its end" in run.notices[0]
    for _ in range(101):
        run.request(ADD_EPOCH)
    logged(callback, 9, loss=2.0)
    assert len(run.steering) == 100 and run.total_steps == 1010 and "100 were added already" in run.notices[-1]


@pytest.mark.parametrize(("minutes", "since", "stops"), [(0, 0, False), (1, 59, False), (1, 61, True), (0.5, 31, True)])
def test_the_time_budget(monkeypatch, minutes, since, stops):
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    monkeypatch.setattr(time, "time", lambda: 10.0**12)  # the clock on the wall was set meanwhile
    run = TrainingRun("x", time_budget_minutes=minutes, training_since=1000.0 - since)
    control = SimpleNamespace(should_training_stop=False)
    Stops(run, Plan(40, 4, 1, 1), lambda: 10).on_step_end(None, SimpleNamespace(global_step=3), control)
    assert control.should_training_stop is stops and run.time_is_up is stops


# Checkpoints that go


def kept(names, limit):
    """`names`: with an evaluation loss behind a colon where there is one."""
    listed = [{"name": each.partition(":")[0], "eval_loss": float(each.partition(":")[2]) if ":" in each else None} for each in names.split()]
    gone = removed_checkpoints(listed, limit)
    return [each["name"] for each in listed if each["name"] not in gone]


@pytest.mark.parametrize(
    ("names", "limit", "stay"),
    [
        ("a b c", 0, "a b c"),
        ("a b c", 5, "a b c"),
        ("a b c", 2, "b c"),
        ("a:1.5 b:1.2 c:1.9 d:1.8", 1, "b d"),
        ("a:1.5 b:1.2 c:1.1", 2, "b c"),  # the best is among the newest
        ("a-user b c d", 1, "a-user d"),  # asked for by hand
        ("a b:1.2 c", 1, "b c"),
        ("a-best:1.5 b c-best:1.2 d", 0, "b c-best d"),  # what was only made because it was the best is removed when it is not
        ("a-best:1.5 b:1.2 c d", 1, "b d"),
        ("a-best:1.5 b c d", 1, "a-best d"),  # and counts for nothing while it is
        ("a-user:1.2 b-best:1.5 c", 0, "a-user c"),
        ("a-best:1.2 b:1.2", 0, "b"),  # saved twice at one step
    ],
)
def test_which_checkpoints_stay(names, limit, stay):
    assert kept(names, limit) == stay.split()
