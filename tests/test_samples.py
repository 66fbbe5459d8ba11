"""Sample prompts: answered while a run goes on, kept with it, and never a part of what it learns."""

import json

import pytest
from test_resume import adapter, at_step, crashed, run_of
from training_pro import samples, train_utils
from training_pro.samples import read, samples_html, spread
from training_pro.training_run import DONE, INTERRUPTED, TrainingRun

PROMPTS = "say 3\nsay 30\n\nsay 3\n"
ASKED = {"sample_prompts": PROMPTS, "sample_steps": 4, "lora_dropout": 0.2, "learning_rate": "5e-2", "training_projection": "all"}


def steps(run, prompt="say 3"):
    return [entry["step"] for entry in read(run.adapter) if entry["prompt"] == prompt]


def test_the_run_is_the_same_to_the_bit_with_and_without(host, settings):
    plain = run_of(settings(lora_name="plain", **{**ASKED, "sample_prompts": "", "neft_noise_alpha": 5, "save_steps": 5}), host)
    asked = run_of(settings(lora_name="asked", **ASKED, neft_noise_alpha=5, save_steps=5), host)
    assert asked.status == DONE and asked.notices == [], asked.message
    assert adapter(asked) == adapter(plain) and asked.history == plain.history
    for name in ("checkpoint-5", "checkpoint-10"):
        assert (asked.adapter / name / "adapter_model.safetensors").read_bytes() == (plain.adapter / name / "adapter_model.safetensors").read_bytes()

    assert steps(asked) == steps(asked, "say 30") == [None, 0, 4, 8, 10] and asked.samples == read(asked.adapter)
    said = {entry["step"]: entry["answer"] for entry in asked.samples if entry["prompt"] == "say 3"}
    assert said[0] == said[None] != said[10]  # a LoRA begins as the base
    from training_pro.try_it import answers

    tried = answers(host, "say 3", "asked", max_new_tokens=64)
    assert (tried.base, tried.adapter) == (said[None], said[10])
    assert not (plain.adapter / "samples.jsonl").exists()


def test_a_run_that_goes_on_answers_each_step_once(host, settings):
    whole = run_of(settings(lora_name="whole", save_steps=4, epochs=2, **ASKED), host)
    crashed(settings(save_steps=4, epochs=2, **ASKED), host, 11)  # step 10 of an epoch's end is a checkpoint, and no step of samples
    folder = host.lora_dir / "tiny"
    (folder / "samples.jsonl").open("a").write('{"step": 16, "prompt": "say 3", "answer": "of a later step"}\n{"step": 12, "pro')
    second = run_of(settings(save_steps=4, epochs=2, **ASKED), host)
    assert second.status == DONE and second.resumed_at == 10
    assert sorted(read(second.adapter), key=str) == sorted(read(whole.adapter), key=str)
    assert steps(second) == [None, 0, 4, 8, 12, 16, 20]
    third = run_of(settings(**{**ASKED, "sample_prompts": "say 3\nsay 7"}), host)  # trained on, from its weights, with a new schedule
    assert third.status == DONE and steps(third)[-3:] == [24, 28, 30] and steps(third, "say 7") == [None, 20, 24, 28, 30]
    fresh = run_of(settings(**ASKED, always_override=True), host)
    assert steps(fresh) == [None, 0, 4, 8, 10]


def test_interrupt_and_what_goes_wrong_while_answering(host, settings, monkeypatch):
    chosen = settings(**ASKED)
    run = train_utils.begin(chosen, host)
    generate = samples.generate

    def interrupted(*arguments, **named):
        if run.step == 4:
            run.update(stop_requested=True)
        return generate(*arguments, **named)

    monkeypatch.setattr(samples, "generate", interrupted)
    train_utils.train(chosen, host, run)
    assert (run.status, run.step) == (INTERRUPTED, 4) and steps(run) == [None, 0]  # the answer that was cut off is not kept

    def broken(*arguments, **named):
        raise RuntimeError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(samples, "generate", broken)
    run = run_of(settings(lora_name="goes-on", **ASKED), host)
    assert run.status == DONE and run.notices == ["The sample prompts are not answered any more: CUDA out of memory. Tried to allocate."]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "Q: say 3\nA:"),
        ({"dataset": None, "format": None, "datasetJSONL": "chats"}, "<|im_start|>user\nsay 3<|im_end|>\n<|im_start|>assistant\n"),
        ({"dataset": None, "format": None, "raw_text_file": "tale"}, "say 3"),
        ({"format": "odd"}, "say 3"),
    ],
    ids=["json", "chats", "text", "no question"],
)
def test_prompts_are_written_as_the_data(host, settings, changes, text):
    from training_pro.dataset_tools import prepare

    (host.formats_dir / "odd.json").write_text(json.dumps({"instruction,output": "%instruction%%output%", "a,b,c": "%a%"}), encoding="utf-8")
    if changes.get("format") == "odd":
        (host.formats_dir / "odd.json").write_text(
            json.dumps({"instruction,output,more": "%more%", "output,instruction": "%output%"}), encoding="utf-8"
        )
        (host.datasets_dir / "rows.json").write_text(json.dumps([{"left": "a", "right": "b"}] * 4), encoding="utf-8")
        (host.formats_dir / "odd.json").write_text(json.dumps({"left,right": "%left% %right%"}), encoding="utf-8")
    chosen = settings(**{**ASKED, **changes})
    run = TrainingRun("x")
    sampler = samples.Sampler(chosen, host, host.tokenizer, prepare(chosen, host.tokenizer, host).formatting, run, host.lora_dir)
    assert host.tokenizer.decode(sampler.prompts["say 3"]).removeprefix("<s>") == text
    assert bool(run.notices) == (chosen.format == "odd")


def test_what_cannot_be_asked_is_said(host, settings):
    assert settings(sample_prompts="a\nb\n\nc\nd\na").problems(host) == []
    assert settings(sample_prompts="a\nb\nc\nd\ne").problems(host) == ["Sample prompts has 5 lines; at most 4 prompts are answered, one a line."]
    run = at_step(train_utils.begin(settings(sample_prompts="a"), host), 1, lambda run: run.update(stop_requested=True))
    train_utils.train(run.settings, host, run)
    assert "The sample prompts are not answered, since Sample every n steps is 0." in run.notices


def test_a_prompt_longer_than_the_context_loses_its_beginning(host, settings):
    run = run_of(settings(**{**ASKED, "sample_prompts": "say " * 400, "epochs": 0.1, "warmup_steps": 0}), host)
    assert run.status == DONE and run.notices == [] and [entry["step"] for entry in read(run.adapter)] == [None, 0, 1]


def test_the_grid():
    assert samples_html([]) == ""
    entries = [{"step": step, "prompt": prompt, "answer": f"{prompt}{step}"} for step in (None, 0, 5) for prompt in ("<b>", "p")]
    shown = samples_html([*entries[:-1], {"step": 10, "prompt": "p", "answer": ""}])
    assert "<th>Prompt</th><th>Base model</th><th>Step 0</th><th>Step 5</th><th>Step 10</th>" in shown
    assert "<tr><th>&lt;b&gt;</th><td>&lt;b&gt;None</td><td>&lt;b&gt;0</td><td>&lt;b&gt;5</td><td>–</td></tr>" in shown and "<b>" not in shown
    assert "<td>p0</td><td>–</td><td><i>(nothing)</i></td>" in shown
    many = samples_html([{"step": step, "prompt": "p", "answer": ""} for step in range(100)])
    assert "12 of 100 steps" in many and "Step 99" in many and many.count("<th>") == 15
    assert spread([1, 2], 3) == [1, 2] and spread(list(range(10)), 4) == [0, 3, 6, 9]


def test_a_file_that_is_not_ours(tmp_path):
    assert read(tmp_path) == []
    (tmp_path / "samples.jsonl").write_bytes(
        b'\xff\n[]\n{"step": "x", "prompt": "a", "answer": "b"}\n{"step": true, "prompt": "a", "answer": "b"}\n{"step": 1}\n'
    )
    assert read(tmp_path) == []
