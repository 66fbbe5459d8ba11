import json
import sys

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from training_pro.presets import PresetError, delete_preset, list_presets, load_preset, presets_folder, save_preset
from training_pro.settings import TrainingSettings

CHOSEN = {"lora_name": "mine", "always_override": True, "dataset": "rows", "eval_dataset": "held", "format": "alpaca-format",
          "column_mapping": "text=body", "datasetJSONL": "chats", "eval_datasetJSONL": "kept", "raw_text_file": "tale"}  # fmt: skip


def test_the_folder_is_beside_the_datasets(tmp_path):
    assert presets_folder(tmp_path / "training" / "datasets") == tmp_path / "training" / "presets"


def test_how_to_train_is_kept_and_what_is_not(tmp_path):
    folder = tmp_path / "presets"
    settings = TrainingSettings(**CHOSEN, lora_rank=8, learning_rate="1e-4", epochs=2.5, hard_cut_string="***", report_to=None)
    assert save_preset(folder, "small and slow", settings) == "The preset “small and slow” is saved."
    saved = json.loads((folder / "small and slow.json").read_text(encoding="utf-8"))
    assert not set(CHOSEN) & set(saved) and (saved["lora_rank"], saved["learning_rate"], saved["report_to"]) == (8, "1e-4", "None")

    onto = TrainingSettings(lora_name="other", dataset="tales", lora_rank=64, cutoff_len=512)
    loaded, said = load_preset(folder, "small and slow", onto)
    assert said == [] and loaded == settings.model_copy(
        update={**dict.fromkeys(CHOSEN), "lora_name": "other", "always_override": False, "dataset": "tales", "column_mapping": ""}
    )
    assert onto.lora_rank == 64
    assert load_preset(folder, "small and slow")[0].lora_name == ""


def test_an_old_batch_size_is_kept_as_accumulation(tmp_path):
    save_preset(tmp_path, "old", TrainingSettings(batch_size=128, micro_batch_size=4))
    loaded, _ = load_preset(tmp_path, "old", TrainingSettings(batch_size=12))
    assert (loaded.grad_accumulation, loaded.batch_size) == (32, 0)
    (tmp_path / "copied.json").write_text('{"batch_size": 64, "micro_batch_size": 4, "lora_name": "run", "dataset": "rows"}', encoding="utf-8")
    loaded, _ = load_preset(tmp_path, "copied")
    assert (loaded.grad_accumulation, loaded.batch_size, loaded.lora_name, loaded.dataset) == (16, 0, "", None)


def test_none_is_replaced_without_being_asked(tmp_path):
    save_preset(tmp_path, "a", TrainingSettings(lora_rank=4))
    with pytest.raises(PresetError, match="“a” is there already"):
        save_preset(tmp_path, "a", TrainingSettings(lora_rank=8))
    assert load_preset(tmp_path, "a")[0].lora_rank == 4
    assert save_preset(tmp_path, "a", TrainingSettings(lora_rank=8), overwrite=True) == "The preset “a” is replaced."
    assert load_preset(tmp_path, "a")[0].lora_rank == 8
    with pytest.raises(PresetError, match=r"there already as “a\.json”"):
        save_preset(tmp_path, "A", TrainingSettings(), overwrite=True)


def test_the_list(tmp_path):
    assert list_presets(tmp_path / "none") == []
    for name in ("part 10", "part 2", "Über"):
        save_preset(tmp_path, name, TrainingSettings())
    (tmp_path / ".hidden.json").write_text("{}")
    (tmp_path / "note.txt").write_text("")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "con.json").write_text("{}")
    assert list_presets(tmp_path) == ["part 2", "part 10", "Über"]
    assert delete_preset(tmp_path, "part 2") == "The preset “part 2” is removed." and list_presets(tmp_path) == ["part 10", "Über"]


@pytest.mark.parametrize("name", ["", "  ", "../out", "a/b", "a\\b", "/etc/passwd", "~", "con", ".", "..", "a\0b", "x" * 300, None, 7])
def test_names_that_are_none(tmp_path, name):
    folder = tmp_path / "presets"
    for act in (lambda: save_preset(folder, name, TrainingSettings()), lambda: load_preset(folder, name), lambda: delete_preset(folder, name)):
        with pytest.raises(PresetError, match=r"^Preset: The name "):
            act()
    assert not folder.exists()


def test_what_is_not_there_or_broken_is_said(tmp_path):
    for act in (load_preset, delete_preset):
        with pytest.raises(PresetError, match="there is none named “gone”"):
            act(tmp_path, "gone")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    (tmp_path / "list.json").write_text("[]", encoding="utf-8")
    with pytest.raises(PresetError, match=r"broken.json cannot be read as JSON: .* Repair the file"):
        load_preset(tmp_path, "broken")
    with pytest.raises(PresetError, match=r"list\.json holds no settings"):
        load_preset(tmp_path, "list")
    (tmp_path / "odd.json").write_text('{"lora_rank": "much", "optimizer": "adamw_hf", "epochs": 2}', encoding="utf-8")
    loaded, said = load_preset(tmp_path, "odd")
    assert (loaded.lora_rank, loaded.epochs, loaded.optimizer) == (32, 2, "adamw_torch")
    assert said == ["LoRA Rank is “much”; it must be a whole number.", "Optimizer “adamw_hf” no longer exists; “adamw_torch” takes its place."]


def test_a_link_that_leads_out_is_refused(tmp_path):
    if sys.platform == "win32":
        pytest.skip("making links needs a right there")
    outside = tmp_path / "outside.json"
    outside.write_text("{}")
    folder = tmp_path / "presets"
    folder.mkdir()
    (folder / "link.json").symlink_to(outside)
    for act in (
        lambda: load_preset(folder, "link"),
        lambda: delete_preset(folder, "link"),
        lambda: save_preset(folder, "link", TrainingSettings(), overwrite=True),
    ):
        with pytest.raises(PresetError, match="leads out of presets"):
            act()
    assert outside.read_text() == "{}"


def test_a_disk_that_refuses_is_said(tmp_path):
    (tmp_path / "presets").write_text("a file where the folder belongs")
    with pytest.raises(PresetError, match="“a” cannot be written"):
        save_preset(tmp_path / "presets", "a", TrainingSettings())


@hypothesis_settings(deadline=None, max_examples=40)
@given(
    rank=st.integers(4, 1024), rate=st.floats(1e-8, 1), epochs=st.floats(0.01, 100), override=st.booleans(), cut=st.text(max_size=20),
    name=st.sampled_from(["a", "日本", "two words"]), dataset=st.sampled_from([None, "rows"]),
)  # fmt: skip
def test_saved_and_loaded_is_the_same(tmp_path_factory, rank, rate, epochs, override, cut, name, dataset):
    folder = tmp_path_factory.mktemp("presets")
    settings = TrainingSettings(lora_rank=rank, learning_rate=rate, epochs=epochs, always_override=override, dataset=dataset, train_only_after=cut)
    save_preset(folder, name, settings)
    assert list_presets(folder) == [name] and load_preset(folder, name, settings) == (settings, [])
