import pathlib

import pytest
from training_pro import views
from training_pro.dataset_tools import Report
from training_pro.settings import TrainingSettings
from training_pro.training_run import DONE, FAILED, TRAINING, TrainingRun


def test_the_model_line(host):
    line = views.model_line(host)
    for part in ("<b>llama</b>", "LlamaForCausalLM", "parameters", "float32", "cpu", "256 tokens of context"):
        assert part in line
    host._model = None
    assert "No model is loaded" in views.model_line(host) and "--model" in views.model_line(host)


@pytest.mark.parametrize(("seconds", "text"), [(None, "–"), (0, "0:00"), (42.4, "0:42"), (187, "3:07"), (3729, "1:02:09")])
def test_duration(seconds, text):
    assert views.duration(seconds) == text


@pytest.mark.parametrize(("speed", "text"), [(None, "–"), (0, "–"), (12.34, "12.3 steps/s"), (0.25, "4.0 s/step")])
def test_speed(speed, text):
    assert views.speed(speed) == text


def test_the_status_of_a_run():
    assert "Nothing is being trained" in views.status(None)
    run = TrainingRun(
        "<b>x</b>", status=TRAINING, message="Training", step=5, total_steps=20, epoch=0.25, loss=1.5, learning_rate=1e-4, eval_loss=1.25
    )
    shown = views.status(run)
    assert "tp-running" in shown and "5 / 20" in shown and "width:25%" in shown and "1.5000" in shown and "1.2500" in shown
    assert "<b>x</b>" not in shown and "&lt;b&gt;x&lt;/b&gt;" in shown
    run.update(stop_requested=True)
    assert "Interrupting" in views.status(run)
    run.end(FAILED, "It failed <script>", ["because"])
    assert "tp-bad" in views.status(run) and "<script>" not in views.status(run) and "<li>because</li>" in views.status(run)
    run.end(DONE, "Done.")
    assert "tp-ok" in views.status(run)


def test_problems_are_listed_and_escaped():
    shown = views.problems(["one <i>", "two"])
    assert "these 2 things have to be changed" in shown and shown.count("<li>") == 2 and "<i>" not in shown.replace('<i class="tp-dot">', "")


def test_the_report():
    report = Report(blocks=1200, kinds={"json": 1200}, longest_block=100, second_longest_block=90, total_tokens=2000, trained_tokens=1000,
                    trimmed_rows=3, untrained_rows=2, total_steps=900, steps_per_epoch=300, save_suggested=100, warmup_suggested=90,
                    cutoff_suggested=128, eval_blocks=7, notices=["<note>"])  # fmt: skip
    shown = views.report(report, TrainingSettings())
    for part in (
        "1,200 JSON rows",
        "100 tokens",
        "a cutoff of 128",
        "1,000 of them trained (50%)",
        "900",
        "3 rows trimmed",
        "2 rows left out",
        "&lt;note&gt;",
        "Evaluation blocks",
    ):
        assert part in shown


def test_the_documentation_of_the_controls_is_that_of_the_settings():
    written = (pathlib.Path(__file__).parent.parent / "docs" / "controls.md").read_text(encoding="utf-8")
    assert written == views.controls_markdown(), "run: python -m training_pro controls > docs/controls.md"


def test_packing_is_offered_with_its_gain_where_there_is_one(host, settings):
    from training_pro.dataset_tools import prepare

    report = Report(blocks=1000, packed_rows=300, packed_steps_per_epoch=75, steps_per_epoch=250, padding=0.41, packed_padding=0.02)
    assert views.packing_words(report, TrainingSettings()) == (
        "on, the blocks would share 300 rows: 75 steps per epoch instead of 250, and 2% of what is computed would be padding instead of 41%. "
        "With True Batch Size 1 a step learns about as many tokens as now"
    )
    chosen = TrainingSettings(packing=True)
    assert views.packing_words(report, chosen) == "300 rows of 3.3 blocks each; 2% of what is computed is padding"
    assert views.packing_words(Report(blocks=10, packed_rows=9), TrainingSettings()) == ""
    found = prepare(settings(micro_batch_size=2), host.tokenizer, host, look=True).report
    assert f"<th>Packing</th><td>off</td><td>on, the blocks would share {found.packed_rows} rows" in views.report(found, settings(micro_batch_size=2))
    assert 0 < found.packed_rows < 20 and found.packed_padding < 0.2 and found.padding < 0.2


@pytest.mark.parametrize(("share", "number"), [(0, "0"), (0.123456, "12.3"), (1, "100"), (1.7, "100")])
def test_how_far_it_is_can_be_read_out(share, number):
    assert f'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{number}"' in views.bar(share)
    assert views.bar(share) in views.working("Reading", share)


def test_of_a_thousand_commands_the_newest_are_shown():
    run = TrainingRun("x", status=TRAINING)
    for step in range(1, 1001):
        run.step = step
        run.record("command", kind="scale the learning rate", value=0.5)
    shown = views.commands(run)
    assert shown.count("<li>") == 31 and "970 earlier ones are in run.jsonl" in shown
    assert shown.index("step 1,000") < shown.index("step 999") and "step 970" not in shown
    run.end(DONE, "Done.")
    shown = views.status(run)
    assert "What it was told (1000)" in shown and shown.count("<li>") == 31 and shown.index("970 earlier") < shown.index("step 971")
