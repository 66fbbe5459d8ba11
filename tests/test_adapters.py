"""The kinds of adapters, on their own and through whole runs: what is saved fits the base as it was."""

import json
import shutil

import peft
import pytest
import torch
from safetensors.torch import load_file
from tiny import make_gpt2, make_llama, mean_loss
from training_pro import adapters, continued, train_utils
from training_pro.dataset_tools import prepare
from training_pro.settings import TrainingSettings
from training_pro.trainer import let_b_learn_faster
from training_pro.training_run import DONE, FAILED
from training_pro.versions import training_arguments

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
MAKE = {"llama": make_llama, "gpt2": make_gpt2}


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits.clone()


def run_of(settings, host):
    return train_utils.train(settings, host, train_utils.begin(settings, host))


def fresh(name, dtype=torch.float32):
    return MAKE[name](400).eval().to(dtype)


def trained(model, steps=3, rate=1e-2):
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    return weights


@pytest.mark.parametrize("head", [False, True], ids=["", "head"])
@pytest.mark.parametrize("kind", ["LoRA", "DoRA", "PiSSA"])
@pytest.mark.parametrize(("name", "dtype"), [("llama", torch.float32), ("llama", torch.bfloat16), ("gpt2", torch.float32)], ids=str)
def test_what_is_saved_fits_the_base_as_it_was(tmp_path, name, dtype, kind, head):
    """gpt2 has one weight for both ends, llama two; the sizes are known to the byte before anything is made."""
    chosen = TrainingSettings(
        adapter_kind=kind, lora_modulessave=head, lora_rank=8, training_projection="all-linear", lora_RS=kind == "PiSSA", lora_RS_alpha=12
    )
    model = fresh(name, dtype)
    before, expected = logits(model), (adapters.trained_bytes(chosen, model), adapters.adapter_bytes(chosen, model))
    close = {"atol": 1e-5 if dtype == torch.float32 else 2e-2, "rtol": 0}
    model = adapters.attach_lora(model, chosen).eval()
    torch.testing.assert_close(logits(model).float(), before.float(), **close)
    weights = trained(model)
    assert {weight.dtype for weight in weights} == {torch.float32} and sum(weight.numel() * 4 for weight in weights) == expected[0]
    with model.disable_adapter():
        assert torch.equal(logits(model), before)  # the base can be asked in mid-run
    after = logits(model)
    assert (after - before).abs().max() > 0.5

    adapters.save_adapter(model, tmp_path / "saved")
    size = sum(weight.numel() * 4 for weight in load_file(tmp_path / "saved" / "adapter_model.safetensors").values())
    assert size == expected[1]
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["use_dora"]) == (16 if kind == "PiSSA" else 8, kind == "DoRA")
    assert sorted(config["modules_to_save"] or []) == ({"llama": ["embed_tokens", "lm_head"], "gpt2": ["lm_head", "wte"]}[name] if head else [])
    reloaded = peft.PeftModel.from_pretrained(fresh(name, dtype), str(tmp_path / "saved"))
    torch.testing.assert_close(logits(reloaded).float(), after.float(), **close)


@pytest.mark.parametrize("projections", ["q-v", "all-linear"])
def test_what_is_saved_does_not_ask_the_hub_or_the_disk_about_the_base(tmp_path, monkeypatch, projections):
    """PEFT looks at each saving whether the base's configuration of now has another vocabulary; ours is never resized."""
    from peft.utils import save_and_load

    model = fresh("llama")
    model.config._name_or_path = model.name_or_path = str(tmp_path)
    (tmp_path / "config.json").write_text('{"vocab_size": 4', encoding="utf-8")
    monkeypatch.setattr(save_and_load, "check_file_exists_on_hf_hub", lambda *_: pytest.fail("the hub was asked"))
    model = adapters.attach_lora(model, TrainingSettings(lora_rank=4, training_projection=projections))
    assert model.peft_config["default"].base_model_name_or_path == str(tmp_path)
    adapters.save_adapter(model, tmp_path / "saved")
    names = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert names and all(".lora_" in name for name in names)
    (tmp_path / "config.json").unlink()
    continued.put_weights(model, continued.finished(tmp_path / "saved"))


def test_one_weight_stays_one(tmp_path):
    model = adapters.attach_lora(fresh("gpt2"), TrainingSettings(lora_modulessave=True, training_projection="all-linear", lora_rank=8))
    weights = trained(model)
    assert sum(weight.shape == (400, 64) for weight in weights) == 1
    adapters.save_adapter(model, tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    ends = [weight for weight in saved.values() if weight.shape == (400, 64)]
    assert len(ends) == 2 and torch.equal(*ends) and not torch.equal(ends[0], model.get_base_model().transformer.wte.original_module.weight)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_pissa_is_that_of_peft(name, monkeypatch):
    """PEFT takes the part out of the base's weights; the function, and how it is learned, are the same."""
    monkeypatch.setattr(adapters, "PISSA_INIT", "pissa")  # the whole decomposition, in which nothing is drawn by chance
    chosen = TrainingSettings(adapter_kind="PiSSA", lora_rank=8, lora_alpha=12, training_projection="all-linear", lora_dropout=0)
    ours = adapters.attach_lora(fresh(name), chosen)
    config = peft.LoraConfig(r=8, lora_alpha=12, target_modules="all-linear", init_lora_weights=adapters.PISSA_INIT, task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(fresh(name), config)
    for model in (ours, theirs):
        trained(model, steps=4, rate=1e-3)
    torch.testing.assert_close(logits(ours), logits(theirs), atol=2e-4, rtol=0)


def test_what_pissa_began_with_is_read_back(tmp_path):
    chosen = TrainingSettings(adapter_kind="PiSSA", lora_rank=8, training_projection="all-linear", lora_dropout=0)
    first = adapters.attach_lora(fresh("llama"), chosen)
    trained(first)
    adapters.save_adapter(first, tmp_path / "saved")
    torch.manual_seed(9)  # another decomposition
    second = adapters.attach_lora(fresh("llama"), chosen)
    continued.put_weights(second, continued.finished(tmp_path / "saved"))
    assert torch.equal(logits(second), logits(first))
    adapters.save_adapter(second, tmp_path / "again")
    assert (tmp_path / "again" / "adapter_model.safetensors").read_bytes() == (tmp_path / "saved" / "adapter_model.safetensors").read_bytes()


# What cannot be


def test_what_a_model_cannot_be_trained_with(models_folder, host):
    def said(**changes):
        return adapters.kind_problems(TrainingSettings(training_projection="q-v", **changes), host.model)

    assert said(adapter_kind="PiSSA", lora_rank=32) == said(adapter_kind="DoRA", lora_rank=512) == []
    assert said(adapter_kind="PiSSA", lora_rank=36) == [
        "LoRA Rank is 36; Adapter kind PiSSA takes at most 32 here, the smaller side of the smallest layer."
    ]
    host.load(str(models_folder / "llama"), "8bit")
    problems = train_utils.check(TrainingSettings(lora_name="x", adapter_kind="PiSSA", optimizer="lomo"), host)
    assert "Adapter kind PiSSA" in " ".join(problems) and "Optimizer “lomo”" in " ".join(problems)
    assert "rounded in the loaded model (8-bit)" in said(adapter_kind="PiSSA", lora_rank=8)[0]
    assert "DoRA does not work with an 8-bit model on the CPU" in said(adapter_kind="DoRA")[0]
    assert said(lora_modulessave=True) == []
    host.model.get_output_embeddings = lambda: None
    assert "LlamaForCausalLM does not tell where its head is" in said(lora_modulessave=True)[0]


def test_train_head_warns_unless_the_optimizer_is_an_8_bit_one():
    (said,) = adapters.kind_notices(TrainingSettings(lora_modulessave=True))
    assert "adamw_torch" in said and "paged_adamw_8bit" in said
    assert adapters.kind_notices(TrainingSettings(lora_modulessave=True, optimizer="adamw_8bit")) == adapters.kind_notices(TrainingSettings()) == []


# LoRA+


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "adamw_8bit", "paged_adamw_8bit"])
def test_the_groups_of_lora_plus_are_those_of_peft(optimizer):
    from peft.optimizers import create_loraplus_optimizer
    from transformers import Trainer

    model = adapters.attach_lora(fresh("llama"), TrainingSettings(adapter_kind="DoRA", lora_modulessave=True, lora_rank=8))
    arguments = training_arguments(use_cpu=True, group_by_length=False, output_dir="unused", optim=optimizer, learning_rate=1e-3, weight_decay=0.1,
                                   report_to="none")  # fmt: skip
    ours = Trainer(model=model, args=arguments).create_optimizer()
    let_b_learn_faster(ours, model, 16)
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    theirs = create_loraplus_optimizer(model, kind, loraplus_lr_ratio=16, loraplus_weight_decay=0.1, **options)

    def found(made):
        return {id(weight): (group["lr"], group["weight_decay"]) for group in made.param_groups for weight in group["params"]}

    assert found(ours) == found(theirs) and {rate for rate, _ in found(ours).values()} == {1e-3, 1.6e-2}


def test_the_schedule_moves_all_groups(host, settings):
    run = run_of(settings(lora_name="plain", save_steps=9, lr_scheduler_type="cosine"), host)
    plus = run_of(settings(lora_name="plus", save_steps=9, lr_scheduler_type="cosine", loraplus_ratio=4), host)
    assert plus.status == DONE and plus.graph()[0]["learning_rate"] == run.graph()[0]["learning_rate"]
    assert plus.history != run.history


# Whole runs


@pytest.mark.parametrize(
    ("quantization", "changes"),
    [
        ("none", {"adapter_kind": "PiSSA", "lora_modulessave": True, "neft_noise_alpha": 5}),
        ("none", {"adapter_kind": "DoRA", "loraplus_ratio": 4}),
        ("4bit", {"adapter_kind": "DoRA", "lora_modulessave": True, "neft_noise_alpha": 5}),
        ("8bit", {"lora_modulessave": True, "loraplus_ratio": 4}),
    ],
    ids=str,
)
def test_the_base_is_as_it_was_after_a_run_and_after_a_failure(host, settings, models_folder, monkeypatch, quantization, changes):
    host.load(str(models_folder / "llama"), quantization)
    before, values = logits(host.model), {"training_projection": "all-linear", **changes}
    monkeypatch.setattr(train_utils, "make_trainer", breaks(train_utils.make_trainer, 4))
    failed = run_of(settings(lora_name="broken", **values), host)
    assert failed.status == FAILED and "the card fell out" in failed.message
    assert torch.equal(logits(host.model), before) and not host.dirty
    monkeypatch.undo()

    run = run_of(settings(epochs=2, **values), host)
    assert run.status == DONE, run.message
    assert torch.equal(logits(host.model), before) and not host.dirty
    data = prepare(settings(), host.tokenizer, host).train
    base = mean_loss(host.model, data)
    host.load(str(models_folder / "llama"), quantization)
    adapted = peft.PeftModel.from_pretrained(host.model, str(run.adapter)).eval()
    assert mean_loss(adapted, data) < base * 0.95


def breaks(make, step):
    """A trainer whose card falls out at this optimizer step."""

    def made(*arguments):
        trainer = make(*arguments)
        train = type(trainer).training_step

        def training_step(self, *rest, **named):
            if self.state.global_step == step:
                raise RuntimeError("the card fell out")
            return train(self, *rest, **named)

        type(trainer).training_step = training_step
        return trainer

    return made


@pytest.mark.parametrize("kind", ["DoRA", "PiSSA"])
def test_training_goes_on_from_a_finished_one(host, settings, kind):
    values = {"adapter_kind": kind, "lora_modulessave": kind == "DoRA", "lora_RS": kind == "PiSSA"}
    first = run_of(settings(epochs=2, **values), host)
    for changes, words in (
        ({"adapter_kind": "LoRA"}, f"its Adapter kind is {kind} and LoRA is chosen"),
        ({"lora_rank": 16}, "its LoRA Rank is 8 and 16 is chosen"),
        ({"lora_modulessave": kind != "DoRA"}, f"Train Head is {'on in it and off' if kind == 'DoRA' else 'off in it and on'} here"),
    ):
        with pytest.raises(train_utils.SettingsError, match=words):
            train_utils.begin(settings(**{**values, **changes}), host)
    second = run_of(settings(**values), host)
    assert second.status == DONE and second.earlier_steps == 20
    assert second.history[0]["loss"] < first.history[0]["loss"] * 0.95  # it began where the first one ended
    shutil.rmtree(first.adapter)


def test_an_8_bit_optimizer_leaves_nothing_behind(host, settings):
    """What one run asks of bitsandbytes must not change the next one's optimizer, nor hold its modules."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    if train_utils._optimizer_problems(settings(optimizer="adamw_8bit"), "cpu"):
        pytest.skip("this bitsandbytes has no code for the CPU")
    assert run_of(settings(lora_modulessave=True, optimizer="adamw_8bit", lora_rank=64), host).status == DONE
    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    assert not manager.module_weight_config_triple and not manager.index2config and not manager.pid2config
