import json

import pytest
from training_pro.settings import OPTIONS, Plan, SettingsError, TrainingSettings

SPEC_DEFAULTS = {
    "lora_name": "", "always_override": False, "lora_rank": 32, "lora_alpha": 64, "lora_RS": False, "lora_RS_alpha": 16, "micro_batch_size": 4,
    "grad_accumulation": 1, "batch_size": 0, "epochs": 3, "learning_rate": "3e-4", "lr_scheduler_type": "linear", "save_steps": 0,
    "save_steps_under_loss": 1.8, "stop_at_loss": 0, "stop_at_epoch": 0, "warmup_steps": 100, "warmup_ratio": 0, "neft_noise_alpha": 0,
    "training_projection": "q-v", "lora_modulessave": False, "use_grad_checkpoint": False, "lora_dropout": 0.05, "optimizer": "adamw_torch",
    "train_only_after": "", "train_on_inputs": True, "add_bos_token": True, "add_eos_token": True, "add_eos_token_type": "Every Block",
    "group_by_length": False, "eliminate_long_blocks": False, "higher_rank_limit": False, "report_to": "None", "dataset": "None",
    "eval_dataset": "None", "format": "None", "eval_steps": 100, "datasetJSONL": "None", "eval_datasetJSONL": "None", "eval_stepsJSONL": 100,
    "raw_text_file": "None", "hard_cut_string": "\\n\\n\\n", "min_chars": 0, "precize_slicing_overlap": True, "sliding_window": False,
    "overlap_len": 0, "newline_favor_len": 0, "hybrid_training": False, "hybrid_data_ratio": 100, "hybrid_text_ratio": 100, "cutoff_len": 256,
    "seed": 42, "weight_decay": 0, "max_grad_norm": 1, "packing": False, "auto_batch": False, "early_stopping_patience": 0,
    "load_best_at_end": False, "adapter_kind": "LoRA", "loraplus_ratio": 0, "sample_steps": 0, "time_budget_minutes": 0, "attention": "auto", "use_liger_kernel": False, "torch_compile": False,
}  # fmt: skip


def test_every_option_of_the_specification_is_there_with_its_default():
    entered = TrainingSettings().entered()
    assert {key: entered.get(key) for key in SPEC_DEFAULTS} == SPEC_DEFAULTS


def test_every_option_has_a_label_a_help_and_a_widget():
    for kind in OPTIONS.values():
        assert kind.label and kind.help.endswith((".", "”.")) and kind.widget in ("slider", "number", "text", "checkbox", "dropdown", "radio")
        if kind.widget in ("slider", "number"):
            assert kind.low is not None and kind.high is not None, kind.key


def test_saved_and_loaded_again_is_the_same(tmp_path):
    settings = TrainingSettings(lora_name="x", dataset="rows", learning_rate="1e-5", epochs=0.5, report_to="tensorboard")
    settings.save(tmp_path / "training_parameters.json")
    assert TrainingSettings.load(tmp_path / "training_parameters.json") == settings
    assert json.loads((tmp_path / "training_parameters.json").read_text(encoding="utf-8"))["eval_dataset"] == "None"


def test_an_older_run_loads():
    old = {"lora_name": "old", "micro_batch_size": 4, "batch_size": 16, "optimizer": "adamw_hf", "dataset": "", "raw_text_file": None,
           "train_only_after": "### Response:", "lora_rank": None, "gone_option": 1}  # fmt: skip
    settings, problems, notices = TrainingSettings.from_saved(old)
    assert problems == []
    assert (settings.accumulation, settings.optimizer, settings.dataset, settings.raw_text_file, settings.lora_rank) == (
        4,
        "adamw_torch",
        None,
        None,
        32,
    )
    assert settings.train_on_inputs is False  # a saved run without the key: on exactly when train_only_after is empty
    assert any("adamw_hf" in notice for notice in notices) and any("gone_option" in notice for notice in notices)
    assert TrainingSettings.from_saved({})[0].train_on_inputs is True


@pytest.mark.parametrize(
    ("saved", "projection"),
    [
        ({"all_linear": True, "q_proj_en": True}, "all-linear"),
        ({"all_linear": False, "q_proj_en": True, "v_proj_en": True, "k_proj_en": False}, "q-v"),
        ({"all_linear": False, "q_proj_en": True, "v_proj_en": True, "k_proj_en": True, "o_proj_en": True}, "q-k-v-o"),
        ({"all_linear": False, "q_proj_en": True}, "all-linear"),
    ],
)
def test_the_web_uis_own_tab_loads(saved, projection):
    settings, problems, notices = TrainingSettings.from_saved({**saved, "gradient_checkpointing": True, "excess_length": "drop"})
    assert (problems, settings.training_projection, settings.use_grad_checkpoint, settings.eliminate_long_blocks) == ([], projection, True, True)
    assert bool(notices) == (saved == {"all_linear": False, "q_proj_en": True})


def test_a_run_of_the_web_uis_own_tab_is_the_same_run_here():
    """Its training_parameters.json as it writes it since 2026-03."""
    saved = {
        "lora_name": "poet", "always_override": False, "all_linear": True, "q_proj_en": True, "v_proj_en": True, "k_proj_en": False,
        "o_proj_en": False, "gate_proj_en": False, "down_proj_en": False, "up_proj_en": False, "save_steps": 0, "micro_batch_size": 4,
        "batch_size": 32, "epochs": 3, "learning_rate": "3e-4", "lr_scheduler_type": "cosine", "lora_rank": 8, "lora_alpha": 16,
        "lora_dropout": 0.0, "cutoff_len": 512, "dataset": "talks", "eval_dataset": "None", "format": "Chat Template", "eval_steps": 50,
        "text_dataset": "None", "warmup_steps": 100, "optimizer": "adamw_torch", "stride_length": 256, "stop_at_loss": 0,
        "add_eos_token": True, "excess_length": "drop", "report_to": "None", "gradient_checkpointing": True,
    }  # fmt: skip
    settings, problems, notices = TrainingSettings.from_saved(saved)
    assert (problems, notices) == ([], [])
    assert (settings.datasetJSONL, settings.dataset, settings.format, settings.eval_stepsJSONL, settings.train_on_inputs) == (
        "talks",
        None,
        None,
        50,
        False,
    )
    assert (settings.training_projection, settings.accumulation, settings.eliminate_long_blocks) == ("all-linear", 8, True)
    values = settings.on_the_page()
    assert values["grad_accumulation"] == 8 and "batch_size" not in values
    settings, _, notices = TrainingSettings.from_saved({**saved, "format": "Alpaca", "dataset": "None", "text_dataset": "tales"})
    assert notices == [] and settings.instruction_template == "Alpaca"
    assert (settings.dataset, settings.format, settings.datasetJSONL, settings.train_on_inputs) == ("tales", "text rows", None, True)


def test_every_option_is_on_the_page_but_that_of_old_files():
    assert [key for key, kind in OPTIONS.items() if not kind.works] == ["batch_size"]


def test_all_values_that_cannot_be_used_are_named_at_once():
    settings, problems = TrainingSettings.read({"lora_rank": "many", "epochs": None, "cutoff_len": 1.5, "seed": 7})
    assert settings.seed == 7 and settings.lora_rank == 32
    assert sorted(problems) == [
        "Epochs is empty; type a number.",
        "LoRA Rank is “many”; it must be a whole number.",
        "Maximum context length (Cutoff) is “1.5”; it must be a whole number.",
    ]


def test_a_broken_file_is_a_sentence(tmp_path):
    path = tmp_path / "training_parameters.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(SettingsError, match="cannot be read as JSON"):
        TrainingSettings.load(path)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(SettingsError, match="one JSON object"):
        TrainingSettings.load(path)


class FakeHost:
    context_length = 8192

    def model_problem(self):
        return None

    def data_file_problem(self, kind, name):
        return None if name == "there" else f"“{name}” is not there."


def problems(**values):
    return TrainingSettings(**{"lora_name": "x", "dataset": "there", "format": "there", **values}).problems(FakeHost())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"lora_rank": 0}, ["LoRA Rank is 0", "above 0"]),
        ({"lora_rank": 1028}, ["LoRA Rank is 1028", "1024"]),
        ({"learning_rate": "fast"}, ["Learning Rate is “fast”", "3e-4"]),
        ({"learning_rate": "-1"}, ["Learning Rate"]),
        ({"learning_rate": "inf"}, ["Learning Rate"]),
        ({"epochs": 0}, ["Epochs is 0"]),
        ({"optimizer": "magic"}, ["Optimizer is “magic”", "adamw_torch"]),
        ({"lr_scheduler_type": "zigzag"}, ["LR Scheduler", "cosine"]),
        ({"dataset": None}, ["No data is chosen"]),
        ({"format": None}, ["Data Format is not chosen"]),
        ({"dataset": "gone"}, ["Dataset: “gone” is not there."]),
        ({"raw_text_file": "there"}, ["Dataset “there” and Text file “there” are chosen at once"]),
        ({"lora_name": "../x"}, ["Name", "../x"]),
        ({"lora_name": ""}, ["Name is empty"]),
        ({"adapter_kind": "MoRA"}, ["Adapter kind is “MoRA”", "LoRA, DoRA, PiSSA"]),
        ({"cutoff_len": 8193}, ["Cutoff", "8192"]),
    ],
)
def test_each_problem_names_its_control_and_what_to_do(values, words):
    found = problems(**values)
    assert len(found) == 1 and all(word in found[0] for word in words), found


def test_no_problem_where_there_is_none():
    assert problems() == [] == problems(lora_rank=2, cutoff_len=8192) == problems(lora_rank=2048, higher_rank_limit=True)


def test_all_problems_come_together():
    assert len(problems(lora_rank=0, learning_rate="x", lora_name="", dataset="gone")) == 4


@pytest.mark.parametrize(
    # blocks, batch, accumulation, epochs → accumulation, steps per epoch, optimizer steps, all steps
    ("given", "expected"),
    [
        ((100, 4, 1, 3), (1, 25, 75, 75)),
        ((100, 4, 4, 3), (4, 25, 21, 75)),  # 7 optimizer steps an epoch, the last of one step
        ((10, 4, 8, 1), (3, 3, 1, 3)),  # lowered to what the data can fill
        ((1, 4, 1, 1), (1, 1, 1, 1)),
        ((100, 4, 1, 0.5), (1, 25, 13, 13)),
        ((100, 4, 4, 0.5), (4, 25, 4, 16)),
    ],
)
def test_the_plan(given, expected):
    blocks, batch, accumulation, epochs = given
    plan = Plan.of(TrainingSettings(micro_batch_size=batch, grad_accumulation=accumulation, epochs=epochs), blocks)
    assert (plan.accumulation, plan.steps_per_epoch, plan.optimizer_steps, plan.total_steps) == expected


def test_steps_are_converted_with_a_ceiling():
    plan = Plan.of(TrainingSettings(grad_accumulation=4, warmup_steps=10), 400)
    assert (plan.to_optimizer_steps(10), plan.to_optimizer_steps(8), plan.to_optimizer_steps(0)) == (3, 2, 0)
    assert plan.warmup(TrainingSettings(warmup_steps=10)) == 3
    assert plan.warmup(TrainingSettings(warmup_steps=0, warmup_ratio=0.1)) == 8  # of 75 optimizer steps
    assert [plan.steps_at(n) for n in (0, 1, 25, 26)] == [0, 4, 100, 104]


@pytest.mark.parametrize(("blocks", "save", "warmup"), [(400, 50, 30), (4000, 500, 100), (12, 1, 0), (40, 5, 3)])
def test_suggestions(blocks, save, warmup):
    plan = Plan.of(TrainingSettings(), blocks)
    assert (plan.suggested_save_steps(), plan.suggested_warmup()) == (save, warmup)
    assert plan.suggested_save_steps() <= max(1, plan.total_steps / 5)


def test_a_fraction_of_epochs_is_counted_without_the_errors_of_floats():
    assert Plan(200, 4, 1, 1.1).optimizer_steps == 55


@pytest.mark.parametrize("value", [["a"], {"a": 1}, None, 5])
def test_an_optimizer_that_is_no_name_is_said_and_not_raised(value):
    settings, problems, _ = TrainingSettings.from_saved({"optimizer": value, "lora_rank": 8})
    assert settings.lora_rank == 8 and (problems or settings.optimizer == "5" or value is None)


@pytest.mark.parametrize(
    ("blocks", "epochs", "optimizer_steps", "first_epoch"),
    [
        (4, 1, 1, 1),  # a single step
        (4, 3, 3, 1),
        (40, 1, 10, 10),
        (40, 2, 20, 10),
        (40, 0.5, 5, 10),  # longer than the run
        (40, 0.1, 1, 10),
        (40, 0.7, 7, 10),  # no 11 from 7 / 0.7
        (40, 2.5, 25, 10),
        (40, 1.1, 11, 10),
        (12, 2.5, 8, 4),  # 8 / 2.5 = 3.2
        (0, 1, 0, 0),
    ],
)
def test_the_first_epoch_of_a_schedule(blocks, epochs, optimizer_steps, first_epoch):
    plan = Plan(blocks, micro_batch_size=4, accumulation=1, epochs=epochs)
    assert (plan.optimizer_steps, plan.first_epoch_optimizer_steps) == (optimizer_steps, first_epoch)
    chosen = TrainingSettings(warmup_steps=3)
    assert plan.schedule_lengths(chosen) == {"total_steps": optimizer_steps, "epoch_steps": first_epoch, "warmup_steps": 3}
