"""The handlers of the running side, without a browser; what a person does with it is in test_page.py."""

import asyncio
import json
import math
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import gradio as gr
import pytest
from training_pro import tab_run, train_utils, training_run
from training_pro.settings import TrainingSettings
from training_pro.tab_run import Pictures
from training_pro.tab_train import TrainTab
from training_pro.training_run import DONE, TRAINING, TrainingRun


@pytest.fixture
def tab(host):
    with gr.Blocks():
        return TrainTab(host)


@pytest.fixture
def running():
    return training_run.claim(TrainingRun("x", status=TRAINING, settings=TrainingSettings(lora_name="x"), step=3, total_steps=9))


def entered(tab, settings):
    """The values of all fields, as an event gives them."""
    values = settings.on_the_page()
    return {widget: values[key] for key, widget in tab.widgets.items()}


def shown(tab, found):
    """What the offer shows: its words, and the buttons that are there."""
    buttons = {name: getattr(tab.run, name) for name in ("go_on", "half", "fill")}
    return found[tab.run.outlook], [name for name, button in buttons.items() if found[button]["visible"]]


@pytest.mark.parametrize("factor", [None, 0, -1, 1001, math.nan, math.inf, True, "2"])
def test_a_factor_that_is_none_is_refused_in_a_sentence(tab, running, factor):
    found = tab.run.on_scale(factor)
    assert "it must be a number above 0, at most 1000" in found[tab.run.refused]["value"] and running.waiting_requests == []


@pytest.mark.parametrize("steps", [None, 0, -5, math.nan, "5"])
def test_steps_that_are_none_are_refused_in_a_sentence(tab, running, steps):
    assert "it must be a whole number from 1 on" in tab.run.on_cool(steps)[tab.run.refused]["value"] and running.waiting_requests == []


def test_commands_wait_for_the_end_of_the_step(tab, running):
    for command in (tab.run.on_halve, tab.run.on_double, tab.run.on_more, lambda: tab.run.on_scale(1.5), lambda: tab.run.on_cool(20)):
        found = command()
    assert running.waiting_requests == [
        ("scale the learning rate", 0.5), ("scale the learning rate", 2.0), ("add an epoch", None), ("scale the learning rate", 1.5), ("cool down", 20),
    ]  # fmt: skip
    assert found[tab.run.refused]["visible"] is False and "learning rate × 1.5: after this step" in found[tab.run.commands]


def test_each_page_has_a_chart_of_its_own(tab, running, host):
    folder = host.lora_dir / "older"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    (folder / "training_graph.json").write_text(
        json.dumps([{"current_steps": n, "loss": 3 - n / 9, "epoch": n / 4} for n in range(1, 9)]), encoding="utf-8"
    )
    running.history += [{"current_steps": n, "loss": 2.0, "learning_rate": 1e-4, "epoch": n / 4} for n in range(1, 4)]
    mine, other = SimpleNamespace(session_hash="mine"), SimpleNamespace(session_hash="other")
    assert tab.run.lists()[tab.run.beside]["choices"] == ["older"]
    shown = tab.run.on_drawn(["older"], "epoch", mine)
    assert "Loss by epoch" in shown and "older" in shown
    assert tab.run.look(running, "mine")[tab.run.chart] == shown  # also when the run goes on
    assert "Loss by step" in tab.run.on_drawn([], "step", other) and "older" not in tab.run.look(running, "other")[tab.run.chart]
    assert "older" not in tab.run.look(running)[tab.run.chart]
    assert "gone" in tab.run.on_drawn(["gone"], "step", mine) and "Loss by step" in tab.run.look(running, "mine")[tab.run.chart]


def test_what_wakes_the_rest_of_the_page(tab, host, monkeypatch):
    model = ["first"]
    monkeypatch.setattr(host, "model_mark", lambda: tuple(model))

    def changed(before):
        now = tab.run.state()
        return now, tab.run.changed(before, now, "mine") if now != before else {}

    idle = tab.run.state()
    assert tab.run.live_look("mine") == {}  # what stands in the status of an idle page, such as problems, stays
    run = training_run.claim(TrainingRun("x", status=TRAINING, settings=TrainingSettings(lora_name="x"), step=3, total_steps=9))
    begun, found = changed(idle)
    assert found[tab.start]["interactive"] is False and found[tab.run.steer]["visible"] is True and tab.adapter not in found
    assert "3" in tab.run.live_look("mine")[tab.run.status]
    run.update(step=4)
    assert changed(begun) == (begun, {})  # a step has the live parts alone
    run.samples.append({"step": 4, "prompt": "Who?", "answer": "me"})
    sampled, found = changed(begun)
    assert list(found) == [tab.samples.grid]
    model[0] = "second"
    loaded, found = changed(sampled)
    assert tab.model_line in found and tab.start not in found
    tab.loading = True
    model[0] = "third"
    assert changed(loaded) == (loaded, {})  # meanwhile the line on top belongs to the loading
    tab.loading = False
    loaded, _ = changed(loaded)
    run.end(DONE, "Done.")
    ended, found = changed(loaded)
    assert found[tab.start]["interactive"] is True and tab.adapter in found and tab.copy_from in found
    assert set(tab.run.changed(None, ended, "mine")) == {*tab.run.rest}  # a page of which nothing is known


def test_without_evaluation_data_there_is_nothing_to_evaluate(tab, running):
    assert "needs an Evaluation Dataset" in tab.run.on_evaluate()[tab.run.refused]["value"] and running.waiting_requests == []
    assert tab.run.look(running)[tab.run.evaluate]["interactive"] is False


def test_a_run_that_has_ended_takes_no_commands(tab, running):
    running.end(DONE, "Done.")
    assert "Nothing is being trained any more" in tab.run.on_halve()[tab.run.refused]["value"] and running.waiting_requests == []
    tab.run.on_interrupt(), tab.run.on_checkpoint()
    assert not running.stop_requested and not running.checkpoint_requested


def in_a_thread(work):
    """Playwright, once it was used, has a loop of its own in this one."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()


def test_a_stop_that_is_being_typed_reaches_the_run_when_the_typing_is_over(tab, running, monkeypatch):
    monkeypatch.setattr(tab_run, "TYPING_SECONDS", 0.05)
    seen = []

    async def typing():
        typed = [asyncio.create_task(tab.run.on_time_budget_minutes(minutes)) for minutes in (1, 12, 120)]
        seen.append(running.time_budget_minutes)
        await asyncio.gather(*typed, tab.run.on_stop_at_loss(1.5))

    in_a_thread(typing())
    assert seen == [0] and (running.time_budget_minutes, running.stop_at_loss, running.stop_at_epoch) == (120, 1.5, 0)
    in_a_thread(tab.run.on_time_budget_minutes(None))  # emptied
    assert running.time_budget_minutes == 0
    fields = tab.run._filled(running)
    assert fields[tab.widgets["stop_at_loss"]]["value"] == 1.5  # another page is filled with what holds now


def test_a_second_start_says_so_and_shows_the_run(tab, running, settings):
    for values in (entered(tab, settings()), entered(tab, settings(lora_rank=0, learning_rate="fast"))):
        found = tab.on_start(values)
        assert "Not started: “x” is being trained (step 3 of 9)" in found[tab.report] and "Training" in found[tab.run.status]
    assert found[tab.start]["interactive"] is False


def interrupted(host, settings, monkeypatch):
    """A run that the user interrupted in its seventh step."""
    from training_pro.callbacks import Progress

    run = train_utils.begin(settings, host)
    with monkeypatch.context() as patched:
        patched.setattr(Progress, "on_step_begin", lambda self, args, state, control, **_: run.update(stop_requested=state.global_step == 6))
        train_utils.train(settings, host, run)
    training_run._current = None  # as after a restart


def test_what_start_does_with_the_folder_of_the_name(tab, host, settings, monkeypatch):
    begun = settings(lora_name="mine", save_steps=4)
    interrupted(host, begun, monkeypatch)

    def look(**changes):
        return shown(tab, tab.run.on_outlook(entered(tab, begun.model_copy(update=changes))))

    words, buttons = look()
    assert "Start goes on with the unfinished run “mine” from step 7 of 10" in words and buttons == []
    assert "Verify does so now" in words and "the weights of checkpoint-7" in words
    words, buttons = look(lora_rank=16, dataset="gone")  # its adapter is there, and of another rank
    assert "Start cannot train on with the LoRA “mine”" in words and "LoRA Rank" in words and buttons == ["fill"]
    words, buttons = look(epochs=2)  # its adapter fits
    assert (
        "Start trains on with the LoRA “mine”, from step 7" in words and "<td>1</td><td>2</td><td>does not fit</td>" in words and buttons == ["fill"]
    )
    for changes in ({"always_override": True}, {"lora_name": "other"}, {"lora_name": "../x"}):
        assert look(**changes) == ("", [])

    words, buttons = look(lora_name="")  # nothing is typed: the last run is offered
    assert "“mine” can go on from step 7 of 10" in words and buttons == ["go_on", "fill"]
    filled = tab.run.on_fill("mine")
    assert filled[tab.widgets["save_steps"]]["value"] == 4 and filled[tab.widgets["lora_name"]]["value"] == "mine"

    from training_pro.dataset_tools import prepare

    tab._verified(prepare(begun, host.tokenizer, host, look=True), begun, host.tokenizer)
    assert "Verify does so now" not in look()[0] and "<th>The data</th>" in look()[0] and "Verify does so now" in look(dataset="held")[0]
    (host.lora_dir / "mine" / "checkpoint-7-user" / "resume.json").unlink()
    words, buttons = look()
    assert "Start trains on with the LoRA “mine”, from step 7" in words and "interrupted" not in words and buttons == []
    assert shown(tab, tab.run.offer_of(tab.run.shown_run())) == ("", [])


def test_a_chart_is_drawn_once_for_all_pages_and_seldom_where_it_takes_long(monkeypatch):
    clock, drawn = [100.0], []

    def chart(history, *rest, **named):
        drawn.append(len(history))
        clock[0] += 0.5  # a long run's
        return f"{len(history)} steps by {named['by']}"

    monkeypatch.setattr(tab_run, "chart_svg", chart)
    monkeypatch.setattr(tab_run.time, "monotonic", lambda: clock[0])
    pictures, run = Pictures(), TrainingRun("x", status=TRAINING)
    run.log({"current_steps": 1, "epoch": 0.1, "loss": 1.0})
    assert {pictures.of(run) for _ in range(50)} == {"1 steps by step"} and drawn == [1]
    assert pictures.of(run, ("epoch", [])) == "1 steps by epoch"
    run.log({"current_steps": 2, "epoch": 0.1, "loss": 1.0})
    clock[0] += 20
    assert pictures.of(run) == "1 steps by step" and pictures.of(run, anew=True) == "2 steps by step"
    run.log({"current_steps": 3, "epoch": 0.1, "loss": 1.0})
    clock[0] += 26
    assert pictures.of(run) == "3 steps by step"
    run.log({"current_steps": 4, "epoch": 0.1, "loss": 1.0})
    run.end(DONE, "Done.")
    assert pictures.of(run) == "4 steps by step" and pictures.of(run) == "4 steps by step"
    assert drawn == [1, 1, 2, 3, 4]
    other = TrainingRun("y", status=TRAINING)
    other.log({"current_steps": 1, "epoch": 0.1, "loss": 2.0})
    assert pictures.of(other) == "1 steps by step"
