"""Out of memory, injected: the run goes on in smaller passes, and its result is that of a run that had enough."""

import json

import pytest
import torch
import transformers
from test_resume import crashed, run_of
from training_pro import auto_batch, resume, train_utils, trainer
from training_pro.auto_batch import is_out_of_memory, split, units, what_to_change
from training_pro.packing import PackedCollator
from training_pro.training_run import DONE, FAILED

OUT = "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.fixture
def card(monkeypatch):
    """A machine whose memory is enough for so many rows, from a step on, in the forward pass or only in the backward one."""
    attach = train_utils.attach_lora

    def make(rows, *, step=0, where="forward"):
        seen = {"failed": 0, "most": 0}

        def attached(model, settings):
            adapted = attach(model, settings)

            def before(module, arguments, named):
                size = len(named["input_ids"])
                seen["run"] = run = train_utils.training_run.current()
                if not module.training or size <= rows or run.step < step:
                    seen["most"] = max(seen["most"], size) if module.training and run.step >= step else 0
                    seen["fails"] = False
                    return
                seen["fails"] = True
                if where == "forward":
                    seen["failed"] += 1
                    raise torch.OutOfMemoryError(OUT)

            def after(module, arguments, output):
                hidden = output[0] if isinstance(output, tuple) else output
                if seen.get("fails") and hidden.requires_grad:
                    hidden.register_hook(fail)  # the layers behind have their gradients by then

            def fail(gradient):
                seen["failed"] += 1
                raise torch.OutOfMemoryError(OUT)

            adapted.register_forward_pre_hook(before, with_kwargs=True)
            if where == "backward":
                adapted.get_base_model().model.layers[0].register_forward_hook(after)
            return adapted

        monkeypatch.setattr(train_utils, "attach_lora", attached)
        return seen

    return make


def losses(run):
    return [entry["loss"] for entry in run.history if "loss" in entry]


SMALL = {"lora_dropout": 0, "epochs": 1, "micro_batch_size": 6, "grad_accumulation": 2, "auto_batch": True, "save_steps": 2}


@pytest.mark.parametrize(
    ("rows", "step", "where", "passes", "mean"),
    [(3, 0, "forward", 2, False), (3, 4, "backward", 2, True), (5, 5, "forward", 2, False), (1, 3, "backward", 8, False), (2, 2, "forward", 4, True)],
    ids=str,
)  # fmt: skip
def test_the_run_goes_on_as_if_there_were_memory_enough(host, settings, card, monkeypatch, rows, step, where, passes, mean):
    """A batch of 6 in passes of 3 and 3; 2, 2, 1 and 1; 1 each. An epoch has 7 steps, the last with 4 blocks."""
    if mean:  # the loss of a model that does not take the number of tokens is the mean of its batch
        monkeypatch.setattr(transformers.Trainer, "_get_num_items_in_batch", lambda *arguments: None)
    whole = run_of(settings(lora_name="whole", **SMALL), host)
    seen = card(rows, step=step, where=where)
    run = run_of(settings(**SMALL), host)
    assert run.status == DONE, run.message
    assert seen["failed"] == passes.bit_length() - 1 and 0 < seen["most"] <= rows
    assert losses(run) == pytest.approx(losses(whole), abs=1e-5)
    assert [entry["current_steps"] for entry in run.history] == [entry["current_steps"] for entry in whole.history] == [2, 4, 6, 7]
    assert {path.name for path in run.adapter.glob("checkpoint-*")} == {path.name for path in whole.adapter.glob("checkpoint-*")}
    weights = [peft_weights(each.adapter) for each in (run, whole)]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-4) for name in weights[1])
    said = [notice for notice in run.notices if notice.startswith("Auto batch")]
    assert len(said) == 1 and f"in {passes} parts, as True Batch Size {-(-6 // passes)} and Gradient Accumulation Steps {2 * passes} would" in said[0]
    diary = [json.loads(line) for line in (run.adapter / "run.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [entry["passes"] for entry in diary if entry["event"] == "auto batch"] == [2**n for n in range(1, passes.bit_length())]


def peft_weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def test_going_on_after_it_is_exact_too(host, settings, card):
    card(3, step=3)
    whole = run_of(settings(lora_name="whole", **{**SMALL, "lora_dropout": 0.2}), host)
    crashed(settings(**{**SMALL, "lora_dropout": 0.2}), host, 5)
    saved = resume.unfinished(host.lora_dir / "tiny")
    assert (saved.step, saved.counters["passes"]) == (4, 2)
    second = run_of(settings(**{**SMALL, "lora_dropout": 0.2}), host)
    assert second.status == DONE and second.resumed_at == 4
    assert (second.adapter / "adapter_model.safetensors").read_bytes() == (whole.adapter / "adapter_model.safetensors").read_bytes()


def test_what_is_said_where_nothing_can_be_halved(host, settings, card):
    card(3)
    run = run_of(settings(**{**SMALL, "auto_batch": False}), host)
    assert run.status == FAILED and run.message == (
        "Failed: out of memory before the first step was done. Lower True Batch Size (and raise Gradient Accumulation Steps by as much, or tick Auto batch), tick Use "
        "Gradient Checkpoint, lower Maximum context length (Cutoff), choose an 8-bit Optimizer or load the model in 4-bit."
    )
    card(0)
    run = run_of(settings(**{**SMALL, "use_grad_checkpoint": True, "micro_batch_size": 1, "optimizer": "sgd"}), host)
    assert run.status == FAILED and run.message.endswith(". Lower Maximum context length (Cutoff) or load the model in 4-bit.")
    run = run_of(settings(**SMALL), host)
    assert run.status == FAILED and "out of memory" in run.message  # at one block a pass
    assert (
        what_to_change(settings(micro_batch_size=1, use_grad_checkpoint=True, optimizer="sgd"), "4-bit") == "Lower Maximum context length (Cutoff)."
    )
    assert "lower LoRA Rank" in what_to_change(settings(lora_rank=64))


def test_an_evaluation_that_does_not_fit_is_done_in_smaller_batches(host, settings, monkeypatch):
    measure, sizes = trainer.evaluation_loss, []

    def too_large(trainer, dataset, collator, size, run):
        sizes.append(size)
        if size > 2:
            raise torch.OutOfMemoryError(OUT)
        return measure(trainer, dataset, collator, size, run)

    monkeypatch.setattr(trainer, "evaluation_loss", too_large)
    run = run_of(settings(eval_dataset="held", micro_batch_size=5), host)
    assert run.status == DONE and run.eval_loss > 0 and sizes == [5, 3, 2]


def test_batches_are_split_in_order_and_evenly():
    ids = torch.arange(20).reshape(5, 4)
    parts = split({"input_ids": ids, "labels": ids, "attention_mask": torch.ones(5, 4)}, 2)
    assert [len(part["labels"]) for part in parts] == [3, 2] and torch.equal(torch.cat([part["input_ids"] for part in parts]), ids)
    assert len(split({"input_ids": ids, "labels": ids}, 8)) == 5
    rows = [[{"input_ids": list(range(size)), "labels": list(range(size))} for size in (3, 5, 2)], [{"input_ids": [7, 8], "labels": [7, 8]}]]
    flat = PackedCollator(0, "flat")(rows)
    assert units(flat) == 4
    first, second = split(flat, 2)
    assert first["cu_seq_lens_q"].tolist() == [0, 3, 8] and second["cu_seq_lens_q"].tolist() == [0, 2, 4]
    assert (first["max_length_q"], second["max_length_k"]) == (5, 2) and second["position_ids"].tolist() == [[0, 1, 0, 1]]
    assert second["input_ids"].tolist() == [[0, 1, 7, 8]] and second["labels"].tolist() == [[-100, 1, -100, 8]]


@pytest.mark.parametrize(
    ("error", "expected"),
    [(torch.OutOfMemoryError(), True), (RuntimeError("CUDA error: out of memory"), True), (MemoryError(), True),
     (RuntimeError("[enforce fail at alloc_cpu.cpp:119] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), True),
     (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
     (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False), (KeyError("memory"), False)],
    ids=str,
)  # fmt: skip
def test_what_is_out_of_memory(error, expected):
    assert is_out_of_memory(error) is expected
    assert auto_batch.halved(lambda size: size, 4) == 4
