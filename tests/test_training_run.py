import json
import threading

import pytest
from training_pro import training_run
from training_pro.training_run import DONE, FAILED, Busy, TrainingRun, claim, current


def test_only_one_run_at_a_time():
    first = claim(TrainingRun("first"))
    with pytest.raises(Busy, match="“first” is being trained"):
        claim(TrainingRun("second"))
    first.end(DONE, "Done.")
    assert claim(TrainingRun("second")) is current()


def test_of_many_at_once_one_wins():
    outcomes = []

    def attempt(number):
        try:
            claim(TrainingRun(str(number)))
            outcomes.append("claimed")
        except Busy:
            outcomes.append("busy")

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count("claimed") == 1 and len(outcomes) == 20


def test_events_are_appended_to_the_adapters_folder(tmp_path):
    run = TrainingRun("x")
    run.record("start", model="m")  # before there is a folder
    run.write_to(tmp_path)
    run.log({"current_steps": 1, "epoch": 0.1, "loss": 2.5, "learning_rate": 1e-4})
    run.end(FAILED, "It failed.", ["why"])
    events = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [event["event"] for event in events] == ["start", "log", "end"]
    assert events[1]["loss"] == 2.5 and events[2]["problems"] == ["why"]


def test_a_diary_that_cannot_be_written_does_not_end_the_run(tmp_path):
    run = TrainingRun("x")
    run.write_to(tmp_path / "gone")
    run.log({"current_steps": 1, "epoch": 0.1, "loss": 2.5})
    assert run.loss == 2.5


def test_recent_losses_skip_zero_and_non_finite():
    run = TrainingRun("x")
    for loss in (3.0, 2.0, 0.0, float("nan"), 1.0, float("inf"), 0.5):
        run.history.append({"loss": loss})
    run.history.append({"eval_loss": 9.0})
    assert run.recent_losses(3) == [2.0, 1.0, 0.5]
    assert run.recent_losses(10) == [3.0, 2.0, 1.0, 0.5]


def test_the_graph_has_the_keys_of_older_files():
    run = TrainingRun("x")
    run.log({"current_steps": 1, "epoch": 0.5, "loss": 2.0, "learning_rate": 1e-4, "grad_norm": 1.0})
    run.log({"current_steps": 1, "epoch": 0.5, "eval_loss": 2.0})
    assert run.graph() == [{"current_steps": 1, "loss": 2.0, "learning_rate": 1e-4, "epoch": 0.5}]


def test_every_change_is_seen():
    run = TrainingRun("x")
    seen = run.version
    run.update(message="new")
    assert run.version > seen and run.status == training_run.PREPARING


def test_the_speed_of_a_run_that_goes_on_counts_its_own_steps(monkeypatch):
    monkeypatch.setattr(training_run.time, "monotonic", lambda: 110.0)
    run = TrainingRun("x", status=training_run.TRAINING, training_since=100.0, step=60, total_steps=100, resumed_at=50)
    assert run.steps_per_second == 1.0 and run.remaining == 40.0
    run.update(step=50)
    assert run.steps_per_second is None and run.remaining is None


@pytest.mark.parametrize("jump", [-86400.0, 86400.0])
def test_a_clock_that_is_set_in_mid_run_changes_no_figure(monkeypatch, jump):
    run = TrainingRun("x", status=training_run.TRAINING)
    now = run.started
    run.update(training_since=run.clock + 10, step=50, total_steps=100)
    monkeypatch.setattr(training_run.time, "time", lambda: now + jump)
    monkeypatch.setattr(training_run.time, "monotonic", lambda: run.clock + 60)
    assert run.elapsed == pytest.approx(60) and run.trained_for == pytest.approx(50) and run.remaining == pytest.approx(50)
    run.end(training_run.DONE, "Done.")
    monkeypatch.setattr(training_run.time, "monotonic", lambda: run.clock + 600)
    assert run.elapsed == pytest.approx(60) and run.steps_per_second == pytest.approx(1)


def test_requests_from_many_threads_are_taken_once_each():
    run = TrainingRun("x")
    threads = [threading.Thread(target=run.request, args=("a", number)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(value for _, value in run.taken_requests()) == list(range(50)) and run.taken_requests() == []


@pytest.mark.parametrize(("before", "after"), [("", "{"), ("{}\n", "{}\n{"), ('{"a', '{"a\n{')])
def test_what_follows_a_torn_line_begins_a_line_of_its_own(tmp_path, before, after):
    (tmp_path / "run.jsonl").write_text(before, encoding="utf-8")
    run = TrainingRun("x")
    run.write_to(tmp_path)
    run.record("start")
    assert (tmp_path / "run.jsonl").read_text(encoding="utf-8").startswith(after + '"event": "start"')
