"""A run that was not finished goes on exactly: the finished adapter is compared with an uninterrupted run's, file by file."""

import json
import random
import shutil
from dataclasses import replace

import peft
import pytest
import torch
from training_pro import continued, resume, train_utils, trainer
from training_pro.dataset_tools import prepare
from training_pro.settings import Plan, SettingsError
from training_pro.training_run import ADD_EPOCH, COOL_DOWN, DONE, FAILED, INTERRUPTED, SCALE_RATE, TrainingRun


def run_of(settings, host, **how):
    return train_utils.train(settings, host, train_utils.begin(settings, host, **how))


def at_step(run, step, action):
    """Do something to the run when it first reaches a step."""
    update, done = run.update, []

    def watched(**values):
        update(**values)
        if values.get("step", 0) >= step and not done:
            done.append(step)
            action(run)

    run.update = watched
    return run


def crash(run):
    raise RuntimeError("the power is gone")


def crashed(settings, host, step, asked=()):
    """A run that ended with an error at this step; `asked` are (step, kind, value) of requests before it."""
    run = train_utils.begin(settings, host)
    for place, kind, value in asked:
        at_step(run, place, lambda run, kind=kind, value=value: run.request(kind, value))
    train_utils.train(settings, host, at_step(run, step, crash))
    assert run.status == FAILED and "the power is gone" in run.message, run.message
    saved = resume.unfinished(run.adapter)
    assert f"Start with the same settings goes on from {saved.folder.name} (step {saved.step})." in run.message
    return run


def adapter(run):
    return (run.adapter / "adapter_model.safetensors").read_bytes()


def graph(run):
    return json.loads((run.adapter / "training_graph.json").read_text(encoding="utf-8"))


def checkpoints(folder):
    return {path.name for path in folder.glob("checkpoint-*")}


def states(folder):
    return {path.parent.name for path in folder.glob(f"checkpoint-*/{resume.NUMBERS}")} | {
        path.parent.name for path in folder.glob(f"checkpoint-*/{resume.TENSORS}")
    }


@pytest.fixture
def uneven(host):
    """Rows of very different lengths, so that the order by length is one of its own."""
    numbers = random.Random(0)
    rows = [{"instruction": f"say {n}", "output": " ".join(["hello"] * numbers.randint(1, 40))} for n in range(38)]
    (host.datasets_dir / "uneven.json").write_text(json.dumps(rows), encoding="utf-8")
    return "uneven"


# Equality


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({"save_steps": 3}, 5),
        ({"save_steps": 3}, 8),
        ({"save_steps": 5}, 11),  # goes on from an epoch's end
        ({"save_steps": 100}, 14),  # and from one that only the epoch's end saved
        ({"save_steps": 4, "grad_accumulation": 4}, 7),
        ({"save_steps": 4, "grad_accumulation": 4}, 15),
        ({"save_steps": 3, "grad_accumulation": 3, "group_by_length": True}, 8),
        ({"save_steps": 3, "group_by_length": True}, 16),
        ({"save_steps": 4, "neft_noise_alpha": 5, "lora_dropout": 0.3}, 14),
        ({"save_steps": 1, "packing": True, "micro_batch_size": 1, "neft_noise_alpha": 5, "grad_accumulation": 2}, 9),
        ({"save_steps": 3, "eval_dataset": "held", "eval_steps": 3}, 7),
        ({"save_steps": 3, "eval_dataset": "held", "eval_steps": 2, "grad_accumulation": 2}, 9),
        ({"save_steps": 4, "lr_scheduler_type": "FP_half_time_annealing"}, 9),
        ({"save_steps": 4, "lr_scheduler_type": "cosine", "optimizer": "adafactor"}, 9),
        ({"save_steps": 4, "optimizer": "sgd", "weight_decay": 0.1, "max_grad_norm": 0}, 9),
        ({"save_steps": 2, "use_grad_checkpoint": True, "training_projection": "all-linear", "lora_RS": True}, 9),
        ({"save_steps": 3, "adapter_kind": "PiSSA", "lora_RS": True, "lora_dropout": 0.2}, 8),
        ({"save_steps": 3, "adapter_kind": "DoRA", "loraplus_ratio": 4, "lora_dropout": 0.2}, 8),
        ({"save_steps": 3, "lora_modulessave": True, "loraplus_ratio": 4, "neft_noise_alpha": 5}, 8),
        ({"save_steps": 6, "grad_accumulation": 3, "group_by_length": True, "neft_noise_alpha": 5, "eval_dataset": "held", "eval_steps": 4,
          "lr_scheduler_type": "FP_3epoch_raise_hold_fall", "micro_batch_size": 3}, 20),
    ],
    ids=str,
)  # fmt: skip
def test_the_finished_adapter_is_that_of_an_uninterrupted_run(host, settings, uneven, changes, step):
    values = {"dataset": uneven, "epochs": 2, **changes}
    whole = run_of(settings(lora_name="whole", **values), host)
    crashed(settings(**values), host, step)
    folder = host.lora_dir / "tiny"
    assert not (folder / "adapter_model.safetensors").exists() and len(states(folder)) == 1
    second = run_of(settings(**values), host)
    assert second.status == DONE and second.resumed_at > 0, second.message
    assert adapter(second) == adapter(whole)
    assert graph(second) == graph(whole) and second.history == whole.history
    assert second.train_loss == pytest.approx(whole.train_loss, rel=1e-4)
    assert checkpoints(second.adapter) == checkpoints(whole.adapter) and not states(second.adapter) and not states(whole.adapter)


def test_8bit_optimizers_go_on_exactly_too(host, settings):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    if tuple(int(part) for part in bitsandbytes.__version__.split(".")[:2]) < (0, 50):
        pytest.skip("this bitsandbytes has no code for the CPU")
    values = {"optimizer": "adamw_8bit", "save_steps": 4, "training_projection": "all", "lora_rank": 64}
    whole = run_of(settings(lora_name="whole", **values), host)
    crashed(settings(**values), host, 7)
    assert adapter(run_of(settings(**values), host)) == adapter(whole)


EVALUATIONS = {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.2, 10: 2.4, 12: 1.0}
LOOKED_AT = {"eval_dataset": "held", "eval_steps": 2, "early_stopping_patience": 2, "load_best_at_end": True, "epochs": 2}


@pytest.fixture
def evaluations(monkeypatch):
    monkeypatch.setattr(trainer, "evaluation_loss", lambda trainer, *_: EVALUATIONS[trainer.state.global_step])


@pytest.mark.parametrize(("save_steps", "names"), [(0, {"checkpoint-4-best"}), (6, {"checkpoint-4-best", "checkpoint-6"}), (2, None)])
def test_early_stopping_and_the_best_as_the_result(host, settings, evaluations, save_steps, names):
    """Stopped after two evaluations without a better one, also where the run goes on after one of them."""
    values = {**LOOKED_AT, "save_steps": save_steps}
    whole = run_of(settings(lora_name="whole", **values), host)
    assert (whole.status, whole.step, whole.eval_loss) == (DONE, 8, 2.0), whole.message
    assert "the evaluation loss did not fall below 2 in 2 evaluations, so the run ended at step 8 of 20" in whole.message
    kept = "checkpoint-4" if save_steps == 2 else "checkpoint-4-best"
    assert whole.kept_best == kept and f"as it was at {kept}" in whole.message and any("2.2 at the end" in notice for notice in whole.notices)
    assert adapter(whole) == (whole.adapter / kept / "adapter_model.safetensors").read_bytes()
    assert checkpoints(whole.adapter) == (names or {f"checkpoint-{step}" for step in (2, 4, 6, 8)}) and not states(whole.adapter)
    assert json.loads((whole.adapter / "training_log.json").read_text(encoding="utf-8"))["kept_best"] == kept
    assert f"| result | {kept}, with the lowest evaluation loss |" in (whole.adapter / "README.md").read_text(encoding="utf-8")

    crashed(settings(**values), host, 7)
    second = run_of(settings(**values), host)
    assert (second.status, second.step, second.kept_best) == (DONE, 8, kept)
    assert adapter(second) == adapter(whole) and second.history == whole.history and checkpoints(second.adapter) == checkpoints(whole.adapter)


def test_the_best_of_an_interrupted_run(host, settings, evaluations):
    """It becomes the result, and the run goes on from where it was interrupted."""
    values = {**LOOKED_AT, "early_stopping_patience": 0, "epochs": 1.2}
    whole = run_of(settings(lora_name="whole", **values), host)
    assert (whole.step, whole.kept_best, whole.eval_loss) == (12, "", 1.0)  # the last step's is the lowest
    chosen = settings(**values)
    run = at_step(train_utils.begin(chosen, host), 7, lambda run: run.update(stop_requested=True))
    train_utils.train(chosen, host, run)
    assert run.status == INTERRUPTED and run.kept_best == "checkpoint-4-best" and "as it was at checkpoint-4-best" in run.message
    assert adapter(run) == (run.adapter / "checkpoint-4-best" / "adapter_model.safetensors").read_bytes()
    second = run_of(chosen, host)
    assert second.resumed_at == 7 and adapter(second) == adapter(whole) and second.history == whole.history
    assert not list(second.adapter.glob("Backup-*"))  # the interrupted adapter lies in its checkpoint


def test_losses_on_other_data_are_not_compared(host, settings, evaluations):
    values = {**LOOKED_AT, "load_best_at_end": False, "save_steps": 6, "epochs": 1.2}
    crashed(settings(**values), host, 7)
    (host.datasets_dir / "other.json").write_bytes((host.datasets_dir / "held.json").read_bytes())
    second = run_of(settings(**{**values, "eval_dataset": "other"}), host)
    assert (second.status, second.step) == (DONE, 12), second.message  # with the old losses it would have ended at 8


def test_a_4bit_base(host, settings, models_folder):
    host.load(str(models_folder / "llama"), "4bit")
    whole = run_of(settings(lora_name="whole", save_steps=4), host)
    crashed(settings(save_steps=4), host, 7)
    assert adapter(run_of(settings(save_steps=4), host)) == adapter(whole)


def test_many_crashes_one_after_another(host, settings):
    values = {"epochs": 2, "save_steps": 2, "grad_accumulation": 2, "neft_noise_alpha": 5}
    whole = run_of(settings(lora_name="whole", **values), host)
    for step in (3, 7, 8, 13, 20):
        crashed(settings(**values), host, step)
    second = run_of(settings(**values), host)
    assert adapter(second) == adapter(whole) and graph(second) == graph(whole)
    events = [json.loads(line) for line in (second.adapter / "run.jsonl").read_text(encoding="utf-8").splitlines() if line]
    assert [event["optimizer_step"] for event in events if event["event"] == "resume"] == [1, 3, 3, 6, 9]


def test_a_crash_after_the_last_step_and_before_the_adapter_was_saved(host, settings, monkeypatch):
    whole = run_of(settings(lora_name="whole", save_steps=5), host)
    monkeypatch.setattr(train_utils, "save_all", lambda *_: crash(None))
    assert run_of(settings(save_steps=5), host).status == FAILED
    monkeypatch.undo()
    second = run_of(settings(save_steps=5), host)
    assert second.status == DONE and second.step == 10 and adapter(second) == adapter(whole)


@pytest.mark.parametrize(("values", "step"), [({}, 7), ({"grad_accumulation": 4}, 6), ({"eval_dataset": "held", "eval_steps": 3}, 6)], ids=str)
def test_an_interrupted_run_goes_on_exactly(host, settings, values, step):
    whole = run_of(settings(lora_name="whole", epochs=2, **values), host)
    chosen = settings(epochs=2, **values)
    run = at_step(train_utils.begin(chosen, host), step, lambda run: run.update(stop_requested=True))
    train_utils.train(chosen, host, run)
    assert run.status == INTERRUPTED and "goes on from there" in run.message
    first = adapter(run)
    (saved,) = checkpoints(run.adapter)
    assert saved.endswith("-user") and (run.adapter / saved / "adapter_model.safetensors").read_bytes() == first
    second = run_of(chosen, host)
    assert second.status == DONE and adapter(second) == adapter(whole) and second.history == whole.history
    assert not list(second.adapter.glob("Backup-*"))  # the interrupted adapter lies in its checkpoint


def test_interrupted_before_it_had_caught_up_it_leaves_everything_as_it_was(host, settings):
    whole = run_of(settings(lora_name="whole", save_steps=4), host)
    crashed(settings(save_steps=4), host, 9)
    run = train_utils.begin(settings(save_steps=4), host)
    notices, run.notices = run.notices, Interrupting(run)
    train_utils.train(settings(save_steps=4), host, run)
    assert run.status == INTERRUPTED and "nothing was trained or saved" in run.message and not notices
    assert not (host.lora_dir / "tiny" / "adapter_model.safetensors").exists() and resume.unfinished(host.lora_dir / "tiny").step == 8
    assert adapter(run_of(settings(save_steps=4), host)) == adapter(whole)


class Interrupting(list):
    """Notices of a run that is interrupted as soon as it says that it goes on."""

    def __init__(self, run):
        super().__init__()
        self.run = run

    def append(self, notice):
        super().append(notice)
        if "goes on from" in notice:
            self.run.stop_requested = True


def test_a_run_that_goes_on_from_a_finished_adapter_does_so_too(host, settings):
    values = {"save_steps": 3}
    for name in ("tiny", "whole"):
        run_of(settings(lora_name=name), host)
    whole = run_of(settings(lora_name="whole", **values), host)
    crashed(settings(**values), host, 8)
    second = run_of(settings(**values), host)
    assert second.status == DONE and (second.earlier_steps, second.earlier_epochs) == (10, 1.0)
    assert adapter(second) == adapter(whole) and graph(second) == graph(whole)
    assert len(list(second.adapter.glob("Backup-*"))) == len(list(whole.adapter.glob("Backup-*"))) == 1


def test_override_that_crashed_takes_its_backup_away_in_the_end(host, settings):
    old = adapter(run_of(settings(), host))
    crashed(settings(always_override=True, seed=7, save_steps=4), host, 6)
    (backup,) = (host.lora_dir / "tiny").glob("Backup-*")
    assert (backup / "adapter_model.safetensors").read_bytes() == old
    second = run_of(settings(seed=7, save_steps=4), host)
    assert second.status == DONE and second.resumed_at == 4 and not list(second.adapter.glob("Backup-*"))


# What does not fit


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora_rank": 16}, "LoRA Rank was 8 and is 16"),
        ({"lora_alpha": 32}, "LoRA Alpha was 64 and is 32"),
        ({"seed": 7}, "Seed was 42 and is 7"),
        ({"micro_batch_size": 2}, "True Batch Size was 4 and is 2"),
        ({"grad_accumulation": 2}, "Gradient Accumulation Steps was 1 and is 2"),
        ({"learning_rate": "1e-3"}, "Learning Rate was 5e-3 and is 1e-3"),
        ({"training_projection": "all"}, "Target Projections was q-v and is all"),
        ({"epochs": 2}, "Epochs was 1 and is 2"),
        ({"add_eos_token": False}, "Add EOS token was on and is off"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_with_both_values(host, settings, changes, words):
    crashed(settings(save_steps=4), host, 6)
    before = {path: path.read_bytes() for path in (host.lora_dir / "tiny").rglob("*") if path.is_file()}
    with pytest.raises(SettingsError) as caught:
        train_utils.begin(settings(save_steps=4, **changes), host)
    (problem,) = caught.value.problems
    assert words in problem and "checkpoint-4, step 4 of 10" in problem and "tick Override Existing Files" in problem
    assert {path: path.read_bytes() for path in (host.lora_dir / "tiny").rglob("*") if path.is_file()} == before


def test_all_that_does_not_fit_is_named_at_once(host, settings, models_folder, tmp_path):
    crashed(settings(save_steps=4), host, 6)
    shutil.copytree(models_folder / "llama", tmp_path / "other")
    host.load(str(tmp_path / "other"))
    with pytest.raises(SettingsError, match="LoRA Rank was 8 and is 16; Seed was 42 and is 7; Base model was llama and is other"):
        train_utils.begin(settings(lora_rank=16, seed=7), host)


def test_data_that_changed_is_refused_after_it_was_prepared(host, settings):
    crashed(settings(save_steps=4), host, 6)
    rows = json.loads((host.datasets_dir / "rows.json").read_text(encoding="utf-8"))
    rows[3]["output"] = "hello 4 world"
    (host.datasets_dir / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    run = run_of(settings(save_steps=4), host)
    assert run.status == FAILED
    (problem,) = run.problems
    assert "The data was 40 blocks of" in problem and "checkpoint-4" in problem
    assert resume.unfinished(host.lora_dir / "tiny") is not None


def test_what_only_decides_about_saving_and_stopping_may_differ(host, settings):
    whole = run_of(settings(lora_name="whole"), host)
    crashed(settings(save_steps=4), host, 6)
    free = {"save_steps": 3, "stop_at_epoch": 5, "save_total_limit": 2, "eval_dataset": "held", "eval_steps": 4, "learning_rate": "0.005"}
    second = run_of(settings(**free), host)
    assert second.status == DONE and second.resumed_at == 4 and adapter(second) == adapter(whole)


def test_an_interrupted_adapter_that_does_not_fit_is_trained_on_with_a_new_schedule(host, settings):
    chosen = settings()
    run = at_step(train_utils.begin(chosen, host), 5, lambda run: run.update(stop_requested=True))
    train_utils.train(chosen, host, run)
    second = run_of(settings(epochs=0.5), host)
    assert second.status == DONE and second.resumed_at == 0 and second.earlier_steps == 5
    assert any("cannot go on exactly (Epochs was 1 and is 0.5)" in notice for notice in second.notices)
    assert not states(second.adapter)


def test_the_plan_that_a_page_shows(host, settings):
    assert resume.plan(settings(), host) is None and resume.plan(settings(lora_name=""), host) is None
    crashed(settings(save_steps=4), host, 6)
    found = resume.plan(settings(), host)
    assert found.fits and (found.checkpoint.name, found.step, found.total_steps, found.epoch) == ("checkpoint-4", 4, 10, 0.4)
    assert found.restored == [
        "the weights of checkpoint-4",
        "the optimizer (adamw_torch) and the schedule (linear)",
        "the random numbers (dropout, noise, order of the data)",
        "the place in the data: step 4 of 10, epoch 0.40",
        "the graph of 4 logged steps",
    ]
    rank = next(item for item in resume.plan(settings(lora_rank=16), host).items if item.name == "LoRA Rank")
    assert rank == resume.Item("LoRA Rank", "8", "16", False)
    assert resume.plan(settings(always_override=True), host) is None
    data = resume.print_of(prepare(settings(), host.tokenizer, host).train)
    assert resume.plan(settings(), host, data).fits
    assert [item.name for item in resume.plan(settings(), host, replace(data, tokens=1)).misfits] == ["The data"]


def test_other_libraries_are_said_and_not_refused(host, settings):
    crashed(settings(save_steps=4), host, 6)
    path = host.lora_dir / "tiny" / "checkpoint-4" / resume.NUMBERS
    saved = json.loads(path.read_text(encoding="utf-8"))
    saved["libraries"]["torch"] = "1.0"
    path.write_text(json.dumps(saved), encoding="utf-8")
    found = resume.plan(settings(), host)
    assert found.fits and "torch 1.0, now" in found.notices[0]


# Files


def test_the_state_lies_in_the_newest_checkpoint_alone_and_runs_no_code(host, settings):
    crashed(settings(save_steps=2), host, 7)
    folder = host.lora_dir / "tiny"
    assert checkpoints(folder) == {"checkpoint-2", "checkpoint-4", "checkpoint-6"} and states(folder) == {"checkpoint-6"}
    torch.load(folder / "checkpoint-6" / resume.TENSORS, weights_only=True)
    for name in checkpoints(folder):
        peft.PeftModel.from_pretrained(host.model, str(folder / name))
        host.reload_model()


@pytest.mark.parametrize(
    ("file", "change"),
    [
        (resume.NUMBERS, None),
        (resume.NUMBERS, "{"),
        (resume.NUMBERS, "[]"),
        (resume.NUMBERS, '{"format": 1}'),
        (resume.TENSORS, None),
        ("adapter_config.json", None),
        ("adapter_model.safetensors", None),
    ],
)
def test_a_checkpoint_that_lacks_something_is_not_gone_on_from(host, settings, file, change):
    crashed(settings(save_steps=4), host, 6)
    path = host.lora_dir / "tiny" / "checkpoint-4" / file
    path.unlink() if change is None else path.write_text(change, encoding="utf-8")
    assert resume.unfinished(host.lora_dir / "tiny") is None
    with pytest.raises(SettingsError, match="holds a run that was not finished"):
        train_utils.begin(settings(), host)


def test_a_backup_outside_of_the_folder_is_not_believed(host, settings):
    crashed(settings(save_steps=4), host, 6)
    path = host.lora_dir / "tiny" / "checkpoint-4" / resume.NUMBERS
    for name in ("../whole", "checkpoint-2", "Backup-1/.."):
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "backup": name}), encoding="utf-8")
        assert resume.unfinished(host.lora_dir / "tiny") is None


def test_a_state_that_cannot_be_read_fails_with_what_to_do(host, settings):
    crashed(settings(save_steps=4), host, 6)
    path = host.lora_dir / "tiny" / "checkpoint-4" / resume.TENSORS
    path.write_bytes(path.read_bytes()[:100])
    run = run_of(settings(save_steps=4), host)
    assert run.status == FAILED and "checkpoint-4 cannot be gone on from" in run.message and "Remove that folder" in run.message
    assert not host.dirty and (path.parent / "adapter_model.safetensors").is_file()


def test_what_a_killed_process_left_half_done_goes_at_the_next_start(host, settings):
    crashed(settings(save_steps=4), host, 6)
    folder = host.lora_dir / "tiny"
    (folder / ".checkpoint-6.abc.part").mkdir()
    (folder / ".training_graph.json.abc.part").touch()
    with open(folder / "run.jsonl", "a", encoding="utf-8") as diary:
        diary.write('{"event": "lo')  # killed within a line
    assert run_of(settings(save_steps=4), host).status == DONE
    assert not list(folder.glob(".*"))
    lines = (folder / "run.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines.count('{"event": "lo') == 1 and all(json.loads(line) for line in lines if line != '{"event": "lo')


def test_a_limit_of_checkpoints_spares_the_best_one(host, settings):
    values = {"save_steps": 2, "eval_dataset": "held", "eval_steps": 2, "epochs": 1, "learning_rate": "5e-2", "warmup_steps": 0}
    run = run_of(settings(lora_name="all", **values), host)
    by_step = {entry["current_steps"]: entry["eval_loss"] for entry in run.history if "eval_loss" in entry}
    best = min(by_step, key=by_step.__getitem__)
    run = run_of(settings(save_total_limit=2, **values), host)
    kept = {"checkpoint-10", "checkpoint-10-epoch-1", f"checkpoint-{best}"}
    assert checkpoints(run.adapter) == kept and {each["name"] for each in run.checkpoints} == kept


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 0),
        ({"save_steps": 4}, 2 + 1),
        ({"save_steps": 4, "epochs": 2.5}, 6 + 2),
        ({"save_steps": 1, "grad_accumulation": 4}, 3 + 1),
        ({"save_steps": 1, "save_total_limit": 3}, 5),
        ({"load_best_at_end": True}, 2),
        ({"load_best_at_end": True, "save_steps": 4}, 2 + 1 + 2),
    ],
    ids=str,
)
def test_how_many_checkpoints_a_run_makes_is_known_before(host, settings, changes, count):
    chosen = settings(**changes)
    assert train_utils.planned_checkpoints(chosen, Plan.of(chosen, 40)) == count
    if chosen.load_best_at_end:
        return  # one of these lives only while the newer is made
    run = run_of(chosen, host)
    assert len(checkpoints(run.adapter)) == count or chosen.save_total_limit == 3 == len(checkpoints(run.adapter))


def free_disk(monkeypatch, bytes_free):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**40, 2**40 - bytes_free, bytes_free))


def test_too_little_disk_for_all_checkpoints_is_said_before_the_first_step(host, settings, monkeypatch):
    chosen = settings(save_steps=1, epochs=100, lora_rank=64, training_projection="all")
    free_disk(monkeypatch, 100 * 2**20)
    run = run_of(chosen, host)
    assert run.status == FAILED and "makes 1100 checkpoints" in run.message and "Checkpoints to keep" in run.message and run.step == 0
    assert not (host.lora_dir / "tiny").exists()


def test_a_disk_that_fills_up_costs_a_checkpoint_and_not_the_run(host, settings, monkeypatch):
    chosen = settings(save_steps=4)
    run = at_step(train_utils.begin(chosen, host), 6, lambda run: free_disk(monkeypatch, 1000))
    train_utils.train(chosen, host, run)
    assert run.status == DONE and checkpoints(run.adapter) == {"checkpoint-4"}
    assert any("checkpoint-8 was not saved: it needs about" in notice for notice in run.notices)


def test_two_seeds_or_epochs_have_orders_of_their_own_and_each_holds_every_block():
    lengths = [5, 90, 7, 60, 5, 8, 70, 9] * 5
    orders = [trainer.Order(lengths, seed, group_by).of(epoch) for seed in (1, 2) for epoch in (0, 1) for group_by in (0, 4)]
    assert all(sorted(order) == list(range(40)) for order in orders) and len(set(map(tuple, orders))) == 8
    order = trainer.Order(lengths, 1)
    assert [list(order), list(order)] == [order.of(0), order.of(1)]


def test_the_print_of_data_knows_the_ends_of_blocks(host, settings):
    import datasets

    def of(ids, labels):
        return resume.print_of(datasets.Dataset.from_dict({"input_ids": ids, "labels": labels}))

    first = of([[1, 2], [3]], [[1, 2], [3]])
    assert first == of([[1, 2], [3]], [[1, 2], [3]]) and (first.blocks, first.tokens) == (2, 3)
    assert len({first, of([[1], [2, 3]], [[1], [2, 3]]), of([[1, 2], [3]], [[-100, 2], [3]]), of([[3], [1, 2]], [[3], [1, 2]])}) == 4
    parts = datasets.concatenate_datasets([datasets.Dataset.from_dict({"input_ids": [ids], "labels": [ids]}) for ids in ([1, 2], [3])])
    assert resume.print_of(parts) == first


def test_the_random_state_comes_back(tmp_path):
    import numpy

    random.gauss(0, 1), numpy.random.randn()  # both keep the second of the pair that they draw
    torch.save(resume._as_tensors(resume.random_state()), tmp_path / "state.pt")
    drawn = [random.random(), float(numpy.random.rand()), float(torch.rand(1)), random.gauss(0, 1), numpy.random.randn()]
    resume._set_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [random.random(), float(numpy.random.rand()), float(torch.rand(1)), random.gauss(0, 1), numpy.random.randn()] == drawn


# Steering, and going on after it


@pytest.mark.parametrize(
    ("asked", "total"),
    [
        ([(3, SCALE_RATE, 0.5)], 10),
        ([(3, ADD_EPOCH, None)], 20),
        ([(4, COOL_DOWN, 3)], 7),
        ([(2, SCALE_RATE, 2), (3, ADD_EPOCH, None), (5, SCALE_RATE, 0.25)], 20),
    ],
    ids=str,
)
def test_a_steered_run_goes_on_exactly(host, settings, asked, total):
    chosen = settings(lora_name="whole", save_steps=1)
    run = train_utils.begin(chosen, host)
    for place, kind, value in asked:
        at_step(run, place, lambda run, kind=kind, value=value: run.request(kind, value))
    whole = train_utils.train(chosen, host, run)
    assert whole.status == DONE and (whole.step, whole.total_steps) == (total, total), whole.message
    assert adapter(whole) != adapter(run_of(settings(lora_name="plain"), host))
    crashed(settings(save_steps=1), host, 7 if total > 7 else 6, asked)
    second = run_of(settings(save_steps=1), host)
    assert second.status == DONE and second.step == total and second.steering == whole.steering
    assert adapter(second) == adapter(whole) and graph(second) == graph(whole)


def test_a_run_goes_on_with_half_the_learning_rate(host, settings):
    chosen = settings(save_steps=4, lr_scheduler_type="constant")
    with pytest.raises(SettingsError, match="no unfinished run that could go on with another learning rate"):
        train_utils.begin(chosen, host, rate_factor=0.5)
    crashed(chosen, host, 6)
    run = run_of(chosen, host, rate_factor=0.5)
    assert run.status == DONE and [entry["learning_rate"] for entry in graph(run)] == pytest.approx([5e-3] * 4 + [2.5e-3] * 6)
    assert run.steering == [{"at": 4, "kind": SCALE_RATE, "value": 0.5}]


def test_a_time_budget_saves_and_goes_on_exactly(host, settings):
    whole = run_of(settings(lora_name="whole"), host)
    chosen = settings()
    run = at_step(train_utils.begin(chosen, host), 4, lambda run: run.update(time_budget_minutes=1e-9))
    train_utils.train(chosen, host, run)
    assert (run.status, run.step) == (DONE, 4) and "time budget" in run.message and "goes on from there" in run.message
    assert adapter(run_of(chosen, host)) == adapter(whole)


def test_an_unfinished_run_is_none_of_a_finished_adapter(host, settings):
    run = run_of(settings(save_steps=5, stop_at_epoch=1, epochs=2), host)
    assert run.status == DONE and resume.unfinished(run.adapter) is None and continued.finished(run.adapter).step == 10
    assert isinstance(run, TrainingRun) and run_of(settings(), host).earlier_steps == 10


def test_what_grows_is_encoded_once_and_reads_as_if_it_were_encoded_whole(monkeypatch):
    encoded, asked = resume.Encoded(), []
    dumps = json.dumps
    monkeypatch.setattr(resume.json, "dumps", lambda value, **how: asked.append(value) or dumps(value, **how))
    history = [{"loss": 0.1 + 0.2, "current_steps": 1}]
    values = {"at “ä”": "a\nb", "steps": 7}
    for more in ({"loss": 1e-17}, {"loss": 3}, {"loss": None}):
        history.append(more)
        assert json.loads(encoded.object(values, {"history": history, "earlier": []})) == {**values, "history": history, "earlier": []}
    assert sum(isinstance(value, dict) for value in asked) == 4  # each entry once
    other = [{"loss": 5}, {"loss": 6}]  # of the next run
    assert json.loads(encoded.object({}, {"history": other})) == {"history": other}
    assert json.loads(encoded.object({}, {"history": other[:1]})) == {"history": other[:1]}
