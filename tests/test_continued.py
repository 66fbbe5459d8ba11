"""Training that goes on from a finished adapter: ours, older ones with a .bin, the web UI's own."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from training_pro import continued, saving, train_utils
from training_pro.settings import SettingsError
from training_pro.training_run import DONE, FAILED, TrainingRun


def run_of(settings, host):
    return train_utils.train(settings, host, train_utils.begin(settings, host))


def weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def test_it_goes_on_from_the_weights_and_the_numbers(host, settings, monkeypatch):
    first = run_of(settings(), host)
    old = weights(first.adapter)
    seen = {}
    until_stopped = train_utils._until_stopped

    def looked_at(trainer):
        from peft import get_peft_model_state_dict

        seen.update({name: weight.clone() for name, weight in get_peft_model_state_dict(trainer.model).items()})
        return until_stopped(trainer)

    monkeypatch.setattr(train_utils, "_until_stopped", looked_at)
    second = run_of(settings(save_steps=5), host)
    assert second.status == DONE and (second.earlier_steps, second.earlier_epochs) == (10, 1.0)
    assert all(torch.equal(seen[name], old[name]) for name in old) and not all(torch.equal(weights(second.adapter)[name], old[name]) for name in old)
    graph = json.loads((second.adapter / "training_graph.json").read_text(encoding="utf-8"))
    assert [entry["current_steps"] for entry in graph] == list(range(1, 21)) and graph[-1]["epoch"] == 2.0
    log = json.loads((second.adapter / "training_log.json").read_text(encoding="utf-8"))
    assert (log["current_steps"], log["epoch"]) == (20, 2.0)
    assert (second.adapter / "checkpoint-15" / "adapter_model.safetensors").is_file()
    assert second.loss < first.loss and second.history[0]["loss"] < first.history[0]["loss"]
    (backup,) = second.adapter.glob("Backup-*")
    assert all(torch.equal(weights(backup)[name], old[name]) for name in old)
    assert any("goes on from" in notice for notice in second.notices) and any(backup.name in notice for notice in second.notices)


def test_stop_at_loss_does_not_count_the_earlier_losses():
    run = TrainingRun("x", earlier=[{"current_steps": step, "epoch": 1, "loss": 0.1} for step in (1, 2, 3)], earlier_steps=3, earlier_epochs=1)
    run.log({"current_steps": 1, "epoch": 0.5, "loss": 2.0})
    assert run.recent_losses(3) == [2.0] and run.graph()[-1] == {"current_steps": 4, "epoch": 1.5, "loss": 2.0, "learning_rate": None}


def test_backups_of_the_same_second_have_names_of_their_own(host, settings, monkeypatch):
    monkeypatch.setattr(saving.time, "strftime", lambda form, *_: "Backup-2026-11-21-120000")
    folder = [run_of(settings(epochs=0.2), host) for _ in range(4)][-1].adapter
    assert sorted(entry.name for entry in folder.glob("Backup-*")) == [f"Backup-2026-11-21-120000{end}" for end in ("", "-2", "-3")]


def test_an_old_bin_is_read_and_gives_way_to_safetensors(host, settings):
    first = run_of(settings(), host)
    old = weights(first.adapter)
    torch.save(old, first.adapter / "adapter_model.bin")
    (first.adapter / "adapter_model.safetensors").unlink()
    second = run_of(settings(), host)
    assert second.status == DONE and second.earlier_steps == 10
    assert not (second.adapter / "adapter_model.bin").exists() and next(second.adapter.glob("Backup-*/adapter_model.bin"))


def test_of_two_files_of_weights_the_newer_one_counts(tmp_path):
    import os

    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    for name, when in (("adapter_model.safetensors", 1000), ("adapter_model.bin", 2000)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (when, when))
    assert continued.finished(tmp_path).weights.name == "adapter_model.bin"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora_rank": 16}, "its LoRA Rank is 8 and 16 is chosen"),
        ({"lora_alpha": 32}, "its LoRA Alpha is 64 and 32 is chosen"),
        ({"lora_RS": True}, "Use rsLoRA is off in it and on here"),
        ({"training_projection": "q-k-v"}, "it trains q_proj, v_proj and Target Projections “q-k-v” trains k_proj, q_proj, v_proj"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_values(host, settings, changes, words):
    run_of(settings(), host)
    with pytest.raises(SettingsError) as caught:
        train_utils.begin(settings(**changes), host)
    (problem,) = caught.value.problems
    assert words in problem and "tick Override Existing Files" in problem


def test_another_base_model_is_refused(host, settings, models_folder, tmp_path):
    run_of(settings(), host)
    shutil.copytree(models_folder / "llama", tmp_path / "other")
    host.load(str(tmp_path / "other"))
    with pytest.raises(SettingsError, match="its base model is llama and other is loaded"):
        train_utils.begin(settings(), host)


def test_all_linear_is_the_set_of_layers_that_peft_wrote(host, settings):
    chosen = settings(training_projection="all-linear")
    run_of(chosen, host)
    assert run_of(chosen, host).status == DONE
    with pytest.raises(SettingsError, match="it trains down_proj, gate_proj, k_proj"):
        train_utils.begin(settings(), host)
    assert run_of(settings(training_projection="all"), host).status == DONE  # the same seven layers by another name


def test_weights_that_cannot_be_read_leave_everything_as_it_was(host, settings):
    folder = run_of(settings(), host).adapter
    (folder / "adapter_model.safetensors").write_bytes(b"broken")
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    run = run_of(settings(), host)
    assert run.status == FAILED and "cannot be gone on from" in run.message
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before and not list(folder.glob("Backup-*"))


def test_a_run_that_fails_gives_the_adapter_back(host, settings, monkeypatch):
    folder = run_of(settings(), host).adapter
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file() and file.name != "run.jsonl"}

    def fails(trainer):
        raise RuntimeError("the machine is on fire")

    monkeypatch.setattr(train_utils, "_until_stopped", fails)
    assert run_of(settings(epochs=2), host).status == FAILED
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file() and file.name != "run.jsonl"} == before
    assert not list(folder.glob("Backup-*"))


def test_a_run_that_was_not_finished_is_not_gone_on_from(host, settings):
    folder = host.lora_dir / "tiny" / "checkpoint-5"
    folder.mkdir(parents=True)
    with pytest.raises(SettingsError, match="holds a run that was not finished"):
        train_utils.begin(settings(), host)


@pytest.mark.parametrize("content", ["[]", "{", "", '{"r": 8}'])
def test_what_is_no_adapter_is_none(tmp_path, content):
    (tmp_path / "adapter_config.json").write_text(content, encoding="utf-8")
    (tmp_path / "training_graph.json").write_text('[1, {"loss": "x"}]', encoding="utf-8")
    assert continued.finished(tmp_path) is None
    (tmp_path / "adapter_model.bin").touch()
    found = continued.finished(tmp_path)
    assert (found is None) == (content != '{"r": 8}')
    assert found is None or (found.step, found.epoch) == (0, 0)


def test_the_layers_of_a_model_that_still_holds_another_lora(host):
    import peft

    before = continued.targets("all-linear", host.model)
    peft.get_peft_model(host.model, peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    assert continued.targets("all-linear", host.model) == before == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
