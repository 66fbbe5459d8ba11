"""The estimate beside what the allocator counts, and the dry run: what it measures, and that nothing of it stays."""

import random
import threading
import time

import numpy
import pytest
import torch
from test_resume import adapter, run_of
from training_pro import memory, train_utils, training_run
from training_pro.background import Cancelled
from training_pro.dataset_tools import prepare
from training_pro.memory import Batch, CannotMeasure, DryRun, Estimate, dry_run, estimate, optimizer_bytes
from training_pro.memory_view import dry_run_html, estimate_html
from training_pro.training_run import DONE

OUT = "CUDA out of memory. Tried to allocate 2.00 GiB."


def states():
    return random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and "cache" not in path.parts}


# The estimate


def allocated(run):
    """The most bytes that torch's allocator gave out inside `run`, beside those from before."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    now = highest = 0
    for event in sorted((event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"), key=lambda each: each.start_ns()):
        now += event.nbytes()
        highest = max(highest, now)
    return highest


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("llama", {}),
        ("llama", {"training_projection": "all", "lora_rank": 32, "lora_dropout": 0}),
        ("llama", {"use_grad_checkpoint": True, "micro_batch_size": 16}),
        ("llama", {"attention": "eager", "optimizer": "adafactor"}),
        ("llama", {"packing": True, "cutoff_len": 128}),
        ("gpt2", {"training_projection": "all-linear"}),
    ],
    ids=str,
)
def test_the_estimate_is_about_what_the_allocator_gives_out(host, settings, models_folder, monkeypatch, model, changes):
    """A dry run's longest step, warm, so that the LoRA and the optimizer's numbers are there already."""
    host.load(str(models_folder / model))
    if changes.get("attention"):
        host.model.set_attn_implementation("eager")
    chosen = settings(**{"micro_batch_size": 8, "dataset": None, "format": None, "raw_text_file": "tale", "cutoff_len": 64, **changes})
    watched, peaks = memory._Clock.__init__, []

    def begin(clock, trainer, steps, progress):
        step = trainer.training_step
        trainer.training_step = lambda *arguments, **named: results(lambda: step(*arguments, **named))
        watched(clock, trainer, steps, progress)

    def results(step):
        kept = []
        peaks.append(allocated(lambda: kept.append(step())))
        return kept[0]

    monkeypatch.setattr(memory._Clock, "__init__", begin)
    found = dry_run(chosen, host)
    guessed = found.estimate.activations + found.estimate.logits + found.estimate.gradients
    assert found.estimate.known and 0.5 < guessed / peaks[1] < 2, (guessed, peaks[1], found.estimate)


@pytest.mark.parametrize(
    ("name", "expected"), [("adamw_torch", 8), ("adamw_torch_fused", 8), ("sgd", 0), ("adagrad", 4), ("adafactor", 0.13), ("gone", 8)]
)
def test_what_an_optimizer_keeps_for_a_weight(name, expected):
    assert optimizer_bytes(name, "cpu") == pytest.approx(expected, abs=0.02)


def test_an_8bit_optimizer_keeps_a_quarter():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    if tuple(int(part) for part in bitsandbytes.__version__.split(".")[:2]) < (0, 50):
        pytest.skip("this bitsandbytes has no code for the CPU")
    assert optimizer_bytes("adamw_8bit", "cpu") == pytest.approx(2, abs=0.1)


def test_the_parts_of_the_estimate(host, settings, models_folder):
    found = estimate(settings(training_projection="all"), host.model)
    weights = sum(weight.numel() for weight in host.model.parameters()) * 4
    assert weights <= found.base <= weights * 1.01 and (found.known, found.batch) == (False, Batch(4, 256))
    # rank 8 on q 64+64, k and v 64+32, o 64+64, gate and up 64+128, down 128+64, in two layers
    assert found.adapter == found.gradients == (128 + 96 + 96 + 128 + 3 * 192) * 8 * 4 * 2 and found.optimizer == pytest.approx(
        2 * found.adapter, rel=1e-3
    )
    pissa = estimate(settings(training_projection="all", adapter_kind="PiSSA"), host.model)
    assert (pissa.adapter, pissa.gradients, pissa.optimizer) == (2 * found.adapter, found.gradients, found.optimizer)
    assert 0 < found.available < found.total and found.fits and found.device == "cpu"
    assert estimate(settings(), host.model, prepare(settings(), host.tokenizer, host)).batch.length < 40
    assert estimate(settings(use_grad_checkpoint=True), host.model).activations < estimate(settings(), host.model).activations
    assert estimate(settings(lora_modulessave=True), host.model).adapter > 10 * estimate(settings(), host.model).adapter
    host.load(str(models_folder / "llama"), "4bit")
    assert estimate(settings(), host.model).base < weights * 0.8


# The dry run


@pytest.mark.parametrize(
    ("quantization", "changes"),
    [("none", {"grad_accumulation": 4, "neft_noise_alpha": 5, "eval_dataset": "held", "sample_prompts": "a", "sample_steps": 1}),
     ("4bit", {"use_grad_checkpoint": True, "packing": True}), ("none", {"report_to": "tensorboard", "lora_modulessave": True, "micro_batch_size": 64})],
    ids=str,
)  # fmt: skip
def test_a_dry_run_measures_and_leaves_everything_as_it_was(host, settings, models_folder, quantization, changes):
    if changes.get("report_to"):
        pytest.importorskip("tensorboard")
    host.load(str(models_folder / "llama"), quantization)
    chosen = settings(save_steps=1, epochs=7, **changes)
    prepare(chosen, host.tokenizer, host)
    model, weights = host.model, {name: weight.clone() for name, weight in host.model.state_dict().items()}
    modules, before, kept = [type(module) for module in model.modules()], states(), files(host.user_data)
    said = []
    found = dry_run(chosen, host, lambda doing, share: said.append((doing, share)))
    assert states() == before and files(host.user_data) == kept and training_run.current() is None
    assert host.model is model and not host.dirty and host.used_for == "" and [type(module) for module in model.modules()] == modules
    assert model.state_dict().keys() == weights.keys() and all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert not any(weight.grad is not None for weight in model.parameters())

    plan = prepare(chosen, host.tokenizer, host).plan
    assert found.steps == plan.total_steps and not found.out_of_memory and found.notices == []
    assert found.run_seconds == pytest.approx(found.steps * found.seconds_typical + plan.optimizer_steps * found.seconds_between)
    assert min(found.seconds_longest, found.seconds_typical, found.seconds_between, found.seconds_saving) > 0
    assert found.peak >= found.before > 0 and found.checkpoint > found.estimate.optimizer
    assert found.batch.rows == min(chosen.micro_batch_size, plan.blocks) and found.typical.length <= found.batch.length
    steps = [doing for doing, _ in said if doing.startswith("Dry run: step")]
    assert steps[0] == f"Dry run: step 1 of {3 * min(plan.accumulation, 2)}" and len(steps) == 3 * min(plan.accumulation, 2)


def test_a_run_after_a_dry_run_is_the_same(host, settings):
    first = adapter(run_of(settings(lora_name="first"), host))
    dry_run(settings(optimizer="adafactor", packing=True), host)
    assert adapter(run_of(settings(lora_name="second"), host)) == first


def test_the_longest_and_the_typical_batch(host, settings):
    import json

    rows = [{"instruction": "say", "output": "hello " * size} for size in (3, 30, 5, 40, 4, 6, 20, 5)]
    (host.datasets_dir / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    for changes in ({}, {"group_by_length": True}, {"packing": True, "cutoff_len": 64}):
        chosen = settings(micro_batch_size=2, **changes)
        prepared = prepare(chosen, host.tokenizer, host)
        order, longest, typical = memory._order(chosen, prepared)
        lengths = prepared.blocks.lengths
        assert order[0] == order[1] and len(order[2]) == 2
        if prepared.packing is None:
            assert order[0] == [3, 1] and longest == Batch(2, max(lengths)) and typical.length == max(lengths[row] for row in order[2])
        else:
            assert longest.length == max(sum(lengths[block] for block in row) for row in order[0]) <= 64
    assert typical.length <= longest.length


def test_why_there_is_no_dry_run(host, settings):
    with pytest.raises(CannotMeasure, match="No data is chosen"):
        dry_run(settings(dataset=None, format=None, lora_name=""), host)
    with host.using_model(), pytest.raises(CannotMeasure, match="a text is being generated with it"):
        in_a_thread(lambda: dry_run(settings(), host))
    with host.using_model(what="a dry run measures with it"), pytest.raises(CannotMeasure, match="and a dry run measures with it"):
        in_a_thread(lambda: dry_run(settings(), host))
    training_run.claim(training_run.TrainingRun("busy one"))
    with pytest.raises(CannotMeasure, match="“busy one” is being trained"):
        dry_run(settings(), host)


def in_a_thread(work):
    raised = []

    def catch():
        try:
            work()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=catch)
    thread.start()
    thread.join(30)
    if raised:
        raise raised[0]


def test_a_start_meanwhile_waits_and_says_why(host, settings):
    begun = []

    def progress(doing, share):
        if doing.startswith("Dry run: step 2"):
            begun.append(train_utils.start(settings(), host))
            until = time.time() + 20
            while "Waiting" not in begun[0].message and time.time() < until:
                time.sleep(0.01)
            begun.append(begun[0].message)

    found = dry_run(settings(), host, progress)
    assert not found.out_of_memory and begun[1] == "Waiting until the model is free: a dry run measures with it"
    until = time.time() + 60
    while begun[0].active and time.time() < until:
        time.sleep(0.02)
    assert begun[0].status == DONE, begun[0].message


def test_out_of_memory_is_an_answer(host, settings, monkeypatch):
    attach, limits = memory.attach_lora, {"rows": 2}

    def attached(model, chosen):
        adapted = attach(model, chosen)

        def before(module, arguments, named):
            if module.training and len(named["input_ids"]) > limits["rows"]:
                raise torch.OutOfMemoryError(OUT)

        adapted.register_forward_pre_hook(before, with_kwargs=True)
        return adapted

    monkeypatch.setattr(memory, "attach_lora", attached)
    found = dry_run(settings(optimizer="sgd"), host)
    assert found.out_of_memory and found.advice == (
        "Lower True Batch Size (and raise Gradient Accumulation Steps by as much, or tick Auto batch), tick Use Gradient Checkpoint, "
        "lower Maximum context length (Cutoff) or load the model in 4-bit."
    )
    assert not any("lora" in name for name, _ in host.model.named_modules())
    halved = dry_run(settings(auto_batch=True), host)
    assert not halved.out_of_memory and halved.notices[0].startswith(
        "Auto batch: out of memory at step 1, so each step goes through the model in 2 parts"
    )
    assert run_of(settings(), host).status == DONE


def test_called_off(host, settings):
    before = states()

    def progress(doing, share):
        if doing.startswith("Dry run: step 2"):
            raise Cancelled

    with pytest.raises(Cancelled):
        dry_run(settings(), host, progress)
    assert states() == before and not any("lora" in name for name, _ in host.model.named_modules()) and host.used_for == ""


def test_a_loss_that_is_no_number_is_said(host, settings):
    with torch.no_grad():
        host.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(CannotMeasure, match="In the dry run the loss is nan at step 1"):
        dry_run(settings(), host)


# Views


GUESS = Estimate(Batch(4, 80), True, 4 << 30, 10 << 20, 10 << 20, 20 << 20, 3 << 30, 1 << 30, 0, "cuda", 6 << 30, 24 << 30)


def test_what_the_page_shows_of_the_estimate(settings):
    shown = estimate_html(GUESS, settings(), "none")
    assert "Memory: about 4.0 GB beside the loaded model; 6.0 GB of the graphics card&#x27;s memory are free<" in shown and "tp-bad" not in shown
    assert "4 rows of 80 tokens" in shown and "Held back" not in shown
    short = estimate_html(Estimate(**{**vars(GUESS), "available": 1 << 30, "known": False, "spread": 5}), settings(use_grad_checkpoint=True), "4-bit")
    assert "which is likely too little" in short and "tp-bad" in short and "Lower True Batch Size" in short and "4-bit" not in short
    assert "Verify Dataset tells the true length" in short and "Held back" in short and "one layer at a time" in short


def test_what_the_page_shows_of_a_dry_run():
    found = DryRun(Batch(4, 80), Batch(4, 70), GUESS, before=4 << 30, peak=9 << 30, reserved=10 << 30, seconds_longest=2.5, seconds_typical=0.25,
                   seconds_between=0.01, seconds_saving=1.5, checkpoint=60 << 20, steps=900, run_seconds=240, notices=["<b>"])  # fmt: skip
    shown = dry_run_html(found)
    assert "Dry run: 9.0 GB at the highest moment, and about 4:00 for the run" in shown and "torch took 10.0 GB of 24.0 GB" in shown
    assert "5.0 GB of it beyond the loaded model, estimated about 4.0 GB" in shown and "2.5 s" in shown and "250 ms" in shown and "&lt;b&gt;" in shown
    failed = dry_run_html(DryRun(Batch(1, 80), Batch(1, 70), GUESS, advice="Lower it."))
    assert "Dry run: out of memory" in failed and "The longest batch (1 row of 80 tokens) does not fit. Lower it." in failed and "tp-bad" in failed
