"""Whole runs on tiny models: each takes a second or two."""

import errno
import json
import math
import os
import shutil
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import peft
import pytest
import torch
from tiny import mean_loss
from training_pro import adapters, folder_lock, resume, saving, train_utils, trainer, training_run
from training_pro.dataset_tools import prepare
from training_pro.folder_lock import alone_in
from training_pro.settings import SettingsError
from training_pro.training_run import DONE, FAILED, INTERRUPTED

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def logits(model):
    with torch.no_grad():
        return model(IDS).logits.clone()


def run_of(settings, host):
    return train_utils.train(settings, host, train_utils.begin(settings, host))


# The main job


@pytest.mark.parametrize("quantization", ["none", "4bit", "8bit"])
def test_a_run_learns_saves_and_leaves_the_base_as_it_was(host, settings, models_folder, quantization):
    host.load(str(models_folder / "llama"), quantization)
    before = logits(host.model)
    run = run_of(settings(epochs=4, eval_dataset="held", eval_steps=10, training_projection="all"), host)
    assert run.status == DONE, run.message
    assert torch.equal(logits(host.model), before) and not host.dirty
    assert run.step == run.total_steps == 40 and len(run.graph()) == 40

    data = prepare(settings(), host.tokenizer, host).train
    base = mean_loss(host.model, data)
    adapted = peft.PeftModel.from_pretrained(host.model, str(run.adapter)).eval()
    assert mean_loss(adapted, data) < base * 0.9
    assert run.eval_loss == pytest.approx(mean_loss(adapted, prepare(settings(dataset="held"), host.tokenizer, host).train), rel=1e-3)


def test_the_files_of_a_finished_run(host, settings):
    run = run_of(settings(lora_RS=True, train_on_inputs=False, train_only_after="A:"), host)
    files = {path.name for path in run.adapter.iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors", "README.md", "training_parameters.json", "training_prompt.json",
                     "training_log.json", "training_graph.json", "training_graph.png", "run.jsonl"}  # fmt: skip
    saved = {name: json.loads((run.adapter / f"{name}.json").read_text(encoding="utf-8"))
             for name in ("training_parameters", "training_prompt", "training_log", "training_graph", "adapter_config")}  # fmt: skip
    assert saved["training_parameters"]["train_only_after"] == "A:"
    assert saved["training_prompt"] == {"format": {"instruction,output": "Q: %instruction%\nA: %output%"}}
    assert saved["training_log"]["current_steps"] == 10 and saved["training_log"]["base_model_name"] == "llama"
    assert [set(entry) for entry in saved["training_graph"]] == [{"current_steps", "loss", "learning_rate", "epoch"}] * 10
    assert (saved["adapter_config"]["use_rslora"], saved["adapter_config"]["lora_alpha"], saved["adapter_config"]["r"]) == (True, 16, 8)
    if os.name != "nt":  # also for a server that runs under another name than the trainer
        assert {path.name for path in run.adapter.rglob("*") if not path.stat().st_mode & 0o044} == set()
    card = (run.adapter / "README.md").read_text(encoding="utf-8")
    assert "base_model: llama" in card and "40 blocks" in card and "| train_only_after | A: |" in card


def test_schedules_that_transformers_fails_at(host, settings):
    """Its polynomial refuses a rate below the 1e-7 that it ends at, and divides by zero where the warmup is the whole run."""
    changes = {"lr_scheduler_type": "polynomial", "warmup_steps": 10}
    for name, rate in (("high", "5e-3"), ("low", "1e-8")):
        run = run_of(settings(lora_name=name, learning_rate=rate, **changes), host)
        assert run.status == DONE, run.message
        rates = [entry["learning_rate"] for entry in run.graph()]
        assert rates == pytest.approx([float(rate) * step / 10 for step in range(10)], rel=1e-6)


def test_the_same_seed_gives_the_same_adapter(host, settings):
    weights = [(run_of(settings(lora_name=name), host).adapter / "adapter_model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
    other = (run_of(settings(lora_name="three", seed=7), host).adapter / "adapter_model.safetensors").read_bytes()
    assert other != weights[0]


@pytest.mark.parametrize("projection", ["all", "q-k-v-o", "q-k-v", "k-v-down", "q-v", "all-linear"])
def test_every_target_projection(host, settings, projection):
    run = run_of(settings(training_projection=projection, epochs=0.1), host)
    assert run.status == DONE, run.message
    targets = json.loads((run.adapter / "adapter_config.json").read_text(encoding="utf-8"))["target_modules"]
    expected = {"all": 7, "q-k-v-o": 4, "q-k-v": 3, "k-v-down": 3, "q-v": 2, "all-linear": 7}
    kinds = {target.rsplit(".", 1)[-1] for target in targets}
    assert len(kinds) == expected[projection] and "lm_head" not in kinds


def test_an_architecture_without_q_proj(host, settings, models_folder):
    host.load(str(models_folder / "gpt2"))
    with pytest.raises(SettingsError, match=r"Target Projections “q-v” means q_proj, v_proj, and GPT2LMHeadModel has no layer .* all-linear"):
        train_utils.begin(settings(), host)
    before = logits(host.model)
    run = run_of(settings(training_projection="all-linear"), host)
    assert run.status == DONE, run.message
    assert torch.equal(logits(host.model), before)


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adafactor", "sgd", "adagrad", "adamw_bnb_8bit", "paged_adamw_8bit"])
def test_optimizers(host, settings, optimizer):
    """Every one that is offered trains, or is refused before the start: bitsandbytes has code for the CPU since 0.50."""
    bitsandbytes = pytest.importorskip("bitsandbytes")  # the web UI's list for machines without a card lacks it
    if optimizer.endswith("8bit") and tuple(int(part) for part in bitsandbytes.__version__.split(".")[:2]) < (0, 50):
        with pytest.raises(SettingsError, match=f"Optimizer “{optimizer}” cannot be used here"):
            train_utils.begin(settings(optimizer=optimizer), host)
        return
    run = run_of(settings(optimizer=optimizer, epochs=0.5), host)
    assert run.status == DONE, run.message


@pytest.mark.parametrize(
    "scheduler",
    ["linear", "constant", "constant_with_warmup", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt", "FP_low_epoch_annealing",
     "FP_half_time_annealing", "FP_raise_fall_creative", "FP_3epoch_raise_hold_fall", "FP_step_decay_with_warmup"],
)  # fmt: skip
def test_schedulers(host, settings, scheduler):
    run = run_of(settings(lr_scheduler_type=scheduler), host)
    assert run.status == DONE, run.message
    rates = [entry["learning_rate"] for entry in run.graph()]
    assert all(0 <= rate <= 5e-3 * 1.000001 for rate in rates) and max(rates) > 0
    if scheduler == "FP_half_time_annealing":
        assert rates[4] == pytest.approx(5e-3) and rates[-1] < 5e-3


def test_accumulation_counts_steps_as_the_user_does(host, settings):
    run = run_of(settings(grad_accumulation=4, epochs=2), host)
    assert (run.step, run.total_steps) == (20, 20)
    assert [entry["current_steps"] for entry in run.graph()] == [4, 8, 10, 14, 18, 20]


@pytest.mark.parametrize("quantization", ["none", "4bit"])
def test_gradient_checkpointing_changes_nothing_but_memory(host, settings, models_folder, quantization):
    host.load(str(models_folder / "llama"), quantization)
    before = logits(host.model)
    plain = run_of(settings(lora_name="plain", lora_dropout=0), host)
    thrifty = run_of(settings(lora_name="thrifty", lora_dropout=0, use_grad_checkpoint=True), host)
    assert thrifty.status == DONE, thrifty.message
    assert [entry["loss"] for entry in thrifty.history] == pytest.approx([entry["loss"] for entry in plain.history], rel=1e-3)
    assert torch.equal(logits(host.model), before)


def test_noise_groups_and_tensorboard(host, settings):
    pytest.importorskip("tensorboard")
    before = logits(host.model)
    run = run_of(settings(neft_noise_alpha=5, group_by_length=True, report_to="tensorboard", weight_decay=0.1), host)
    assert run.status == DONE, run.message
    assert torch.equal(logits(host.model), before)
    logs = next(run.adapter.rglob("events.out.tfevents*")).parent
    assert any(f'tensorboard --logdir "{logs}"' in notice for notice in run.notices)


class StubbedWandb(ModuleType):
    """What transformers calls of wandb."""

    def __init__(self, url):
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.run, self.finished, self.url, self.logged = None, 0, url, []
        self.init_error, self.config = None, {}

    def init(self, **_):
        if self.init_error:
            raise self.init_error
        self.run = SimpleNamespace(url=self.url, dir="/logs/offline-run-1/files", name="x", config=self.config, summary={}, _label=lambda **_: None)
        return self.run

    def log(self, figures, **_):
        self.logged.append(figures)

    def finish(self, **_):
        self.run, self.finished = None, self.finished + 1

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None


@pytest.mark.parametrize(
    ("url", "said"),
    [("https://wandb.ai/me/runs/1", "shows the run at https://wandb.ai/me/runs/1"), (None, "is offline: the run's logs lie in /logs/offline-run-1.")],
)
def test_where_wandb_can_be_looked_at(host, settings, monkeypatch, url, said):
    wandb = StubbedWandb(url)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for name in ("sdk", "sdk.lib", "sdk.lib.config_util"):
        monkeypatch.setitem(sys.modules, f"wandb.{name}", ModuleType(f"wandb.{name}"))
    sys.modules["wandb.sdk.lib.config_util"].ConfigError = type("ConfigError", (Exception,), {})
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: True)
    run = run_of(settings(epochs=0.2, report_to="wandb"), host)
    assert run.status == DONE, run.message
    assert any(said in notice for notice in run.notices) and wandb.finished == 1 and any("train/loss" in figures for figures in wandb.logged)

    wandb.init_error = type("UsageError", (Exception,), {"__module__": "wandb.errors"})("api_key not configured")
    run = run_of(settings(epochs=0.2, report_to="wandb", lora_name="other"), host)
    assert run.status == FAILED and "Weights & Biases could not be used (api_key not configured). Log in" in run.message

    run = run_of(settings(epochs=0.2, lora_name="none"), host)
    assert run.status == DONE and wandb.finished == 1 and not any("Biases" in notice for notice in run.notices)


def test_what_looks_at_the_evaluation_loss_needs_evaluation_data(host, settings):
    with pytest.raises(SettingsError) as caught:
        train_utils.begin(settings(early_stopping_patience=2, load_best_at_end=True), host)
    assert caught.value.problems == [
        "Early stopping looks at the evaluation loss, and no Evaluation Dataset is chosen. Choose one, or switch Early stopping off.",
        "Keep the best looks at the evaluation loss, and no Evaluation Dataset is chosen. Choose one, or switch Keep the best off.",
    ]


def test_chats_and_text_train_too(host, settings):
    for changes in ({"datasetJSONL": "chats", "train_on_inputs": False}, {"raw_text_file": "tale"}):
        run = run_of(settings(dataset=None, lora_name=next(iter(changes)), **changes), host)
        assert run.status == DONE, run.message


# Stops and checkpoints


def when(run, step, action):
    """Do something to the run when it reaches a step."""
    update = run.update

    def watched(**values):
        update(**values)
        if values.get("step") == step:
            action(run)

    run.update = watched


def test_interrupt_saves_what_was_learned(host, settings):
    chosen = settings()
    run = train_utils.begin(chosen, host)
    when(run, 3, lambda run: run.update(stop_requested=True))
    train_utils.train(chosen, host, run)
    assert (run.status, run.step) == (INTERRUPTED, 3) and "step 3 of 10" in run.message
    assert (run.adapter / "adapter_model.safetensors").is_file()


def test_interrupt_while_preparing_leaves_nothing(host, settings):
    chosen = settings()
    run = train_utils.begin(chosen, host)
    run.update(stop_requested=True)
    train_utils.train(chosen, host, run)
    assert run.status == INTERRUPTED and not (host.lora_dir / "tiny").exists()


def test_interrupt_in_the_middle_of_an_evaluation(host, settings, monkeypatch):
    chosen = settings(eval_dataset="held", eval_steps=2)
    run = train_utils.begin(chosen, host)
    when(run, 2, lambda run: None)
    measure = trainer.evaluation_loss

    def interrupted(*arguments):
        run.stop_requested = True
        return measure(*arguments)

    monkeypatch.setattr(trainer, "evaluation_loss", interrupted)
    train_utils.train(chosen, host, run)
    assert (run.status, run.step) == (INTERRUPTED, 2) and (run.adapter / "adapter_model.safetensors").is_file()
    assert [(entry["kind"], entry["step"]) for entry in run.commands] == [("interrupt", 2)]


def test_stop_at_loss_and_at_epoch(host, settings):
    chosen = settings(epochs=30)
    run = train_utils.begin(chosen, host)
    when(run, 2, lambda run: run.update(stop_at_loss=5.8))  # changed while running, as the page does
    train_utils.train(chosen, host, run)
    assert run.status == DONE and 5 <= run.step < 100 and "the loss reached 5.8" in run.message
    run = run_of(settings(lora_name="two", stop_at_epoch=1, epochs=3), host)
    assert (run.status, run.step, run.total_steps) == (DONE, 10, 30) and "epoch 1 ended" in run.message


def test_checkpoints_are_whole_adapters(host, settings):
    chosen = settings(epochs=2, save_steps=4)
    run = train_utils.begin(chosen, host)
    when(run, 5, lambda run: run.update(checkpoint_requested=True))
    train_utils.train(chosen, host, run)
    names = {path.name for path in run.adapter.glob("checkpoint-*")}
    assert names == {"checkpoint-4", "checkpoint-8", "checkpoint-12", "checkpoint-16", "checkpoint-20", "checkpoint-10-epoch-1",
                     "checkpoint-20-epoch-2", "checkpoint-5-user"}  # fmt: skip
    last = (run.adapter / "checkpoint-20" / "adapter_model.safetensors").read_bytes()
    assert last == (run.adapter / "adapter_model.safetensors").read_bytes()
    peft.PeftModel.from_pretrained(host.model, str(run.adapter / "checkpoint-5-user"))


def test_a_checkpoint_by_loss(host, settings):
    chosen = settings(epochs=2).model_copy(update={"save_steps_under_loss": 5.8})  # a tiny random model gets no lower
    run = train_utils.train(chosen, host, training_run.claim(training_run.TrainingRun("tiny")))
    by_loss = list(run.adapter.glob("checkpoint-*-loss-*"))
    assert by_loss and all("." not in path.name for path in by_loss)


# Steering


def test_steering_a_run_that_goes_on(host, settings):
    from training_pro.training_run import ADD_EPOCH, COOL_DOWN, EVALUATE, SCALE_RATE

    chosen = settings(lr_scheduler_type="constant", eval_dataset="held", eval_steps=100)
    run = train_utils.begin(chosen, host)
    when(run, 2, lambda run: run.request(SCALE_RATE, 0.5))
    when(run, 4, lambda run: run.request(EVALUATE))
    when(run, 5, lambda run: run.request(ADD_EPOCH))
    when(run, 12, lambda run: run.request(COOL_DOWN, 4))
    train_utils.train(chosen, host, run)
    assert run.status == DONE and run.step == run.total_steps == 16, run.message
    rates = [entry["learning_rate"] for entry in run.graph()]
    assert rates == pytest.approx([5e-3] * 2 + [2.5e-3] * 10 + [2.5e-3, 1.875e-3, 1.25e-3, 0.625e-3])
    assert [entry["current_steps"] for entry in run.history if "eval_loss" in entry] == [4, 16]
    events = [json.loads(line) for line in (run.adapter / "run.jsonl").read_text(encoding="utf-8").splitlines()]
    told = [(event["step"], event["kind"], event.get("value")) for event in events if event["event"] == "command"]
    assert told == [(2, SCALE_RATE, 0.5), (4, EVALUATE, None), (5, ADD_EPOCH, None), (12, COOL_DOWN, 4)]


def test_an_added_epoch_sees_every_block_again_and_ends_at_its_end(host, settings):
    from training_pro.training_run import ADD_EPOCH

    chosen = settings(grad_accumulation=4, save_steps=100)
    run = train_utils.begin(chosen, host)
    when(run, 8, lambda run: run.request(ADD_EPOCH))
    train_utils.train(chosen, host, run)
    assert (run.status, run.step, run.epoch) == (DONE, 20, 2.0)
    assert {path.name for path in run.adapter.glob("checkpoint-*")} == {"checkpoint-10-epoch-1", "checkpoint-20-epoch-2"}
    assert run.graph()[-1]["learning_rate"] > 0 and run.graph()[-1]["learning_rate"] < run.graph()[2]["learning_rate"]


# Names, backups and failures


def test_override_puts_the_old_one_away_until_the_new_one_is_saved(host, settings):
    folder = run_of(settings(), host).adapter
    (folder / "my notes.txt").write_text("mine", encoding="utf-8")
    old = (folder / "adapter_model.safetensors").read_bytes()
    run = run_of(settings(always_override=True, seed=7), host)
    assert run.status == DONE and (folder / "adapter_model.safetensors").read_bytes() != old
    assert not list(folder.glob("Backup-*")) and not (folder / "my notes.txt").exists()


def test_a_run_that_fails_at_once_costs_nothing(host, settings, monkeypatch):
    folder = run_of(settings(), host).adapter
    old = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(train_utils, "_until_stopped", fail)
    before = logits(host.model)
    run = run_of(settings(always_override=True), host)
    assert run.status == FAILED and run.message.startswith("Failed: out of memory") and "Use Gradient Checkpoint" in run.message
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == old
    assert torch.equal(logits(host.model), before)
    monkeypatch.undo()
    assert run_of(settings(always_override=True), host).status == DONE  # a good run straight after it


def poisoned_at(monkeypatch, step, factor):
    """From this micro-batch on, once, the loss is multiplied."""
    import transformers

    original = transformers.Trainer.training_step
    count = 0

    def training_step(self, *arguments, **named):
        nonlocal count
        count += 1
        loss = original(self, *arguments, **named)
        return loss * factor if count == step else loss

    monkeypatch.setattr(transformers.Trainer, "training_step", training_step)


def test_a_loss_that_is_no_number_ends_the_run_without_saving(host, settings, monkeypatch):
    poisoned_at(monkeypatch, 4, float("nan"))
    before = logits(host.model)
    run = run_of(settings(), host)
    assert run.status == FAILED and "loss is nan at step 4" in run.message and "Learning Rate" in run.message
    assert not run.half_rate_offered and not (host.lora_dir / "tiny" / "adapter_model.safetensors").exists()
    assert torch.equal(logits(host.model), before)


@pytest.mark.parametrize(("accumulation", "at", "saved"), [(1, 6, 4), (4, 6, 4), (4, 9, 8)])
def test_the_batch_that_a_run_diverged_at_is_named(host, settings, monkeypatch, accumulation, at, saved):
    poisoned_at(monkeypatch, at, float("inf"))
    run = run_of(settings(save_steps=4, grad_accumulation=accumulation), host)
    assert run.status == FAILED and "loss is inf" in run.message
    assert run.half_rate_offered and f"Go on from checkpoint-{saved} (step {saved}) with half the learning rate" in run.message
    assert max(int(path.name.split("-")[1]) for path in run.adapter.glob("checkpoint-*")) == saved
    numbers = trainer.Order([0] * 40, 42).of(0)[(at - 1) * 4 : at * 4]
    assert run.problems == [f"In its batch: block {n + 1} (row {n + 1}): “<s>Q: say {n} A: hello {n} world</s>”" for n in numbers]
    monkeypatch.undo()
    chosen = settings(save_steps=4, grad_accumulation=accumulation)
    second = train_utils.train(chosen, host, train_utils.begin(chosen, host, rate_factor=0.5))
    assert second.status == DONE and second.resumed_at == saved and second.steering[0]["value"] == 0.5


def test_half_the_rate_twice_is_a_quarter_of_it_and_is_not_forgotten(host, settings, monkeypatch):
    chosen = settings(save_steps=4, lr_scheduler_type="constant", warmup_steps=0, learning_rate="1e-3")
    import transformers

    original = transformers.Trainer.training_step
    monkeypatch.setattr(
        transformers.Trainer,
        "training_step",
        lambda self, *given, **named: original(self, *given, **named) * (math.inf if self.state.global_step == 5 else 1),
    )
    runs = [run_of(chosen, host)]
    runs += [train_utils.train(chosen, host, train_utils.begin(chosen, host, rate_factor=factor)) for factor in (0.5, 1.0, 0.5)]
    monkeypatch.undo()
    runs.append(run_of(chosen, host))  # as after a power cut: nobody says it again
    assert [run.status for run in runs] == [FAILED] * 4 + [DONE]
    rates = [next(entry["learning_rate"] for entry in run.history if entry["current_steps"] == 5) for run in runs]
    assert rates == pytest.approx([1e-3, 5e-4, 5e-4, 2.5e-4, 2.5e-4])


def test_a_loss_far_above_its_spread_ends_the_run_before_anything_is_saved(host, settings, monkeypatch):
    poisoned_at(monkeypatch, 36, 20.0)
    run = run_of(settings(epochs=4, save_steps=6), host)
    assert run.status == FAILED and "at step 36, far above its spread" in run.message
    assert max(int(path.name.split("-")[1]) for path in run.adapter.glob("checkpoint-*")) == 30 and len(run.problems) == 4


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_gradient_that_is_no_number_is_caught_with_its_whole_step(host, settings, monkeypatch, accumulation):
    import transformers

    original = transformers.Trainer.training_step

    def training_step(self, *arguments, **named):
        loss = original(self, *arguments, **named)
        if self.state.global_step == 1:
            next(parameter for parameter in self.model.parameters() if parameter.requires_grad).grad.fill_(float("nan"))
        return loss

    monkeypatch.setattr(transformers.Trainer, "training_step", training_step)
    run = run_of(settings(save_steps=1, grad_accumulation=accumulation), host)
    assert run.status == FAILED and f"grad_norm is nan at step {2 * accumulation}" in run.message
    assert [path.name for path in run.adapter.glob("checkpoint-*")] == [f"checkpoint-{accumulation}"]
    assert len(run.problems) == (4 if accumulation == 1 else 9)  # 16 blocks: 8 of them named, and how many more


def test_weights_that_are_no_numbers_are_not_saved(host, settings, monkeypatch):
    def poison(trainer):
        with torch.no_grad():
            next(parameter for parameter in trainer.model.parameters() if parameter.requires_grad).fill_(float("inf"))
        return 1.0

    monkeypatch.setattr(train_utils, "_until_stopped", poison)
    run = run_of(settings(), host)
    assert run.status == FAILED and "not numbers any more" in run.message
    assert not (host.lora_dir / "tiny" / "adapter_model.safetensors").exists()


def failing(number, name):
    """What the system refuses with this number."""

    def fail(*given, **named):
        raise OSError(number, os.strerror(number), str(name))

    return fail


def test_a_disk_that_fills_up_in_mid_run(host, settings, monkeypatch):
    monkeypatch.setattr(saving, "save_adapter", failing(errno.ENOSPC, "adapter_model.safetensors"))
    run = run_of(settings(), host)
    assert run.status == FAILED and "the disk is full" in run.message


def test_a_drive_that_is_gone_ends_the_run(host, settings, monkeypatch):
    """Its folder cannot even be looked through for checkpoints any more, which the message is to name."""

    gone = failing(errno.EIO, host.lora_dir / "tiny")

    def pulled_out(*_):
        monkeypatch.setattr(os, "scandir", gone)
        monkeypatch.setattr(os, "unlink", gone)
        gone()

    monkeypatch.setattr(train_utils, "_until_stopped", pulled_out)
    run = train_utils.begin(settings(), host)
    assert train_utils.train(settings(), host, run) is run and run.status == FAILED
    assert run.message == "Failed before the first step was done: Input/output error (tiny)."
    monkeypatch.undo()
    assert run_of(settings(), host).status == DONE


def test_what_cannot_be_cleared_away_at_the_end_is_no_failure(host, settings, monkeypatch):
    monkeypatch.setattr(resume, "forget", failing(errno.EACCES, "resume_state.pt"))
    run = run_of(settings(), host)
    assert run.status == DONE and run.saved
    assert (
        run.notices[-1]
        == "The state of the run could not be removed from its checkpoints: Permission denied (resume_state.pt). It is of no use any more."
    )


def test_a_drive_that_is_gone_when_all_is_saved_is_no_failure(host, settings, monkeypatch):
    gone = failing(errno.EIO, host.lora_dir / "tiny")
    monkeypatch.setattr(resume, "forget", lambda *_: monkeypatch.setattr(os, "scandir", gone))
    assert run_of(settings(), host).status == DONE


def test_what_has_no_words_of_the_system(host, settings, monkeypatch):
    def fail(*_):
        raise OSError("It looks like the config file is not a valid JSON file.")  # as transformers says it

    monkeypatch.setattr(train_utils, "_until_stopped", fail)
    said = "Failed before the first step was done: It looks like the config file is not a valid JSON file (OSError). The log has the details."
    assert run_of(settings(), host).message == said


def test_a_full_disk_is_seen_before_the_start(host, settings, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1000))
    with pytest.raises(SettingsError, match="Disk: the LoRA needs about"):
        train_utils.begin(settings(), host)


def test_a_broken_file_fails_with_its_place(host, settings):
    (host.datasets_dir / "rows.json").write_text('[{"instruction": "a" "b"}]', encoding="utf-8")
    run = run_of(settings(), host)
    assert run.status == FAILED and "line 1, column 22" in run.problems[0]
    assert not (host.lora_dir / "tiny").exists()


def test_a_file_that_vanished(host, settings):
    (host.datasets_dir / "rows.json").unlink()
    with pytest.raises(SettingsError, match=r"Dataset: “rows.json” is not in the folder"):
        train_utils.begin(settings(), host)


def test_a_folder_that_another_process_trains_in_is_not_touched(host, settings, monkeypatch):
    folder = host.lora_dir / "test"
    with alone_in(folder):
        with pytest.raises(SettingsError, match="“test” is being trained by another program on this machine"):
            train_utils.begin(settings(lora_name="test"), host)
        # It began between this run's check and its first step
        monkeypatch.setattr(train_utils, "is_taken", lambda folder: False)
        monkeypatch.setattr(folder_lock, "WAIT", 0.1)
        before = sorted(path.name for path in folder.iterdir())
        run = run_of(settings(lora_name="test"), host)
        assert run.status == FAILED and "being trained by another program" in run.message
        assert sorted(path.name for path in folder.iterdir()) == before
    assert run_of(settings(lora_name="test"), host).status == DONE


def test_the_library_keeps_no_second_history(host, settings, monkeypatch):
    until_stopped, kept = train_utils._until_stopped, []

    def looked_at(trainer):
        result = until_stopped(trainer)
        kept.extend(trainer.state.log_history)
        return result

    monkeypatch.setattr(train_utils, "_until_stopped", looked_at)
    run = run_of(settings(eval_dataset="held", eval_steps=5), host)
    assert run.status == DONE and len(kept) <= 1 and len(run.graph()) == 10


def test_a_second_start_names_the_first(host, settings):
    train_utils.begin(settings(), host)
    with pytest.raises(training_run.Busy, match="“tiny” is being trained"):
        train_utils.begin(settings(lora_name="other"), host)


def test_a_dirty_model_is_loaded_again_before_a_run(host, settings):
    host.mark_dirty()
    old = host.model
    assert run_of(settings(), host).status == DONE
    assert host.model is not old and not host.dirty


def test_a_base_that_was_written_to_is_marked_dirty_and_said(host, settings, monkeypatch):
    train = train_utils._until_stopped

    def writes(trainer):
        with torch.no_grad():
            host.model.get_input_embeddings().weight.add_(1)
        return train(trainer)

    monkeypatch.setattr(train_utils, "_until_stopped", writes)
    run = run_of(settings(), host)
    assert run.status == DONE and host.dirty and any("Reload it" in notice for notice in run.notices)


def test_an_optimizer_whose_package_is_missing_is_refused_before_the_start(host, settings):
    with pytest.raises(SettingsError, match="Optimizer “lomo” cannot be used here"):
        train_utils.begin(settings(optimizer="lomo"), host)


def test_all_kinds_of_problems_come_together(host, settings):
    run_of(settings(), host)
    with pytest.raises(SettingsError) as caught:
        train_utils.begin(settings(dataset="gone", optimizer="lomo", learning_rate="x", report_to="wandb", lora_rank=16), host)
    found = "\n".join(caught.value.problems)
    for words in (
        "Dataset: “gone.json”",
        "Optimizer “lomo”",
        "Learning Rate is “x”",
        "Save detailed logs with “wandb”",
        "its LoRA Rank is 8 and 16 is chosen",
    ):
        assert words in found


def test_the_size_of_an_adapter_is_known_before(host, settings, models_folder):
    for name, projection in (("llama", "all"), ("llama", "q-v"), ("gpt2", "all-linear")):
        host.load(str(models_folder / name))
        chosen = settings(lora_name=f"{name}-{projection}", training_projection=projection, epochs=0.1)
        size = (run_of(chosen, host).adapter / "adapter_model.safetensors").stat().st_size
        assert size * 0.8 < adapters.adapter_bytes(chosen, host.model) < size * 1.7
