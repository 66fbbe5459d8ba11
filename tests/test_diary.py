import json
import os

import pytest
from training_pro.diary import diverged, last_of, read_back
from training_pro.folder_lock import alone_in
from training_pro.training_run import COOL_DOWN, DONE, ELSEWHERE, FAILED, TrainingRun


def told(folder, steps, end=None, earlier=0, resumed=0, total=10):
    """Write what a run of these steps writes, and return it. One that goes on exactly learns what was `earlier` from its checkpoint."""
    folder.mkdir(exist_ok=True)
    run = TrainingRun(folder.name)
    run.write_to(folder)
    run.record(
        "start",
        settings={"lora_name": folder.name, "lora_rank": 8},
        report={"total_steps": total, "steps_per_epoch": 5},
        earlier_steps=0 if resumed else earlier,
    )
    run.update(step=resumed, earlier_steps=earlier)
    if resumed:
        run.record("resume", checkpoint=f"checkpoint-{resumed}")
    for step in steps:
        run.update(step=step)
        run.log({"current_steps": step, "epoch": step / 5, "loss": 3 - step / 10, "learning_rate": 1e-4})
    if end:
        run.end(*end)
    return run


def losses(run):
    return [(entry["current_steps"], entry["loss"]) for entry in run.history]


def test_a_run_that_ended_is_told_as_it_was(tmp_path):
    run = told(tmp_path / "a", [1, 2], (FAILED, "It failed.", ["why"]))
    found = read_back(tmp_path / "a")
    assert (found.name, found.status, found.message, found.problems, found.active) == ("a", FAILED, "It failed.", ["why"], False)
    assert (found.step, found.total_steps, found.loss, found.learning_rate, found.epoch) == (2, 10, 2.8, 1e-4, 0.4)
    assert found.history == run.history and found.settings.lora_rank == 8 and found.report.steps_per_epoch == 5
    assert found.elapsed == pytest.approx(run.elapsed, abs=0.1) and not diverged(tmp_path / "a")


def test_a_run_without_an_end_was_cut_off(tmp_path):
    told(tmp_path / "a", [1, 2, 3])
    with open(tmp_path / "a" / "run.jsonl", "a", encoding="utf-8") as file:
        file.write('{"event": "log", "step"')  # torn
    found = read_back(tmp_path / "a")
    assert (found.status, found.message) == (FAILED, "Cut off at step 3 of 10: the program ended before the run did.")


@pytest.mark.parametrize(("goes_on", "status"), [(False, DONE), (True, FAILED)])
def test_a_run_that_was_saved_and_could_not_say_so(tmp_path, goes_on, status):
    told(tmp_path / "a", [1, 2, 10])
    with open(tmp_path / "a" / "run.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"event": "saved", "step": 10, "time": 5.0, "goes_on": goes_on}) + "\n")
    found = read_back(tmp_path / "a")
    assert found.status == status and ("Cut off at step 10" in found.message or "The program ended right after it" in found.message)


def test_a_run_of_another_process_is_not_called_cut_off(tmp_path):
    told(tmp_path / "a", [1, 2, 3])
    with alone_in(tmp_path / "a"):
        found = read_back(tmp_path / "a")
        assert (found.status, found.active, found.step) == (ELSEWHERE, False, 3) and "Another program on this machine" in found.message
    assert read_back(tmp_path / "a").status == FAILED


def test_a_run_that_went_on_has_the_losses_before_its_checkpoint(tmp_path):
    told(tmp_path / "a", [1, 2, 3, 4, 5])
    told(tmp_path / "a", [4, 5, 6], resumed=3)
    assert [step for step, _ in losses(read_back(tmp_path / "a"))] == [1, 2, 3, 4, 5, 6]


def test_a_run_that_trained_on_has_the_losses_of_the_adapter_before_it(tmp_path):
    told(tmp_path / "a", [1, 2, 3, 4], (DONE, "Done."))
    told(tmp_path / "a", [1, 2, 3], earlier=4)
    told(tmp_path / "a", [3, 4], earlier=4, resumed=2)
    assert losses(read_back(tmp_path / "a")) == [(1, 2.9), (2, 2.8), (3, 2.7), (4, 2.6), (5, 2.9), (6, 2.8), (7, 2.7), (8, 2.6)]


def test_commands_are_read_back_with_what_they_changed(tmp_path):
    run = told(tmp_path / "a", [1])
    run.record("command", kind=COOL_DOWN, value=2, optimizer_step=1, total_steps=3)
    found = read_back(tmp_path / "a")
    assert [(command["kind"], command["step"]) for command in found.commands] == [(COOL_DOWN, 1)] and found.total_steps == 3
    assert run.commands == found.commands


def test_the_newest_diary_is_the_last_run(tmp_path):
    assert last_of(tmp_path / "gone") is None and last_of(tmp_path) is None
    for name, at in (("new", 2_000_000_000), ("old", 1_000_000_000)):
        told(tmp_path / name, [1], (DONE, "Done."))
        os.utime(tmp_path / name / "run.jsonl", (at, at))
    assert last_of(tmp_path).name == "new"


def test_a_run_that_went_astray_is_known_by_its_last_lines(tmp_path):
    run = told(tmp_path / "a", range(1, 2000))
    assert not diverged(tmp_path / "a")
    run.update(half_rate_offered=True)
    run.end(FAILED, "loss is nan", ["x" * 3000])
    assert diverged(tmp_path / "a") and read_back(tmp_path / "a").half_rate_offered
    told(tmp_path / "a", [3], resumed=2)
    assert not diverged(tmp_path / "a") and not diverged(tmp_path)


@pytest.mark.parametrize("text", ["", "\n\n", "[1]\n", '{"event": 1}\n', '{"event": "end", "step": 1, "time": 2}\n', "\x00\xff\n", "[" * 5000])
def test_a_diary_of_something_else_tells_no_run(tmp_path, text):
    (tmp_path / "run.jsonl").write_text(text, encoding="latin-1")
    assert read_back(tmp_path) is None


def test_odd_values_do_no_harm(tmp_path):
    start = {"event": "start", "step": 0, "time": 1, "settings": [1], "report": {"total_steps": "many", "kinds": 3}, "earlier_steps": None}
    events = [
        start,
        {"event": "log", "step": 1, "time": 2, "current_steps": "x", "loss": "low"},
        {"event": "end", "step": 1, "time": 3, "problems": 5},
    ]
    (tmp_path / "run.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    found = read_back(tmp_path)
    assert (found.status, found.message) == (FAILED, "Cut off: the program ended before the run did.") and found.history == []
