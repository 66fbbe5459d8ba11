import json
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from training_pro.compare import SavedRun, compare_html, differences, load_run
from training_pro.settings import TrainingSettings

GRAPH = [{"current_steps": step, "loss": 4 - step / 10, "learning_rate": 1e-4, "epoch": step / 10} for step in range(1, 21)]


def written(folder, **files):
    folder.mkdir(parents=True)
    for name, content in files.items():
        ending = "jsonl" if name == "run" else "json"
        (folder / f"{name}.{ending}").write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def test_a_run_of_ours(tmp_path):
    settings = TrainingSettings(lora_name="ours", lora_rank=8)
    run = [
        {"event": "start", "step": 0},
        {"event": "log", "step": 10, "current_steps": 10, "epoch": 1.0, "loss": 3.0, "learning_rate": 1e-4, "grad_norm": 0.5},
        {"event": "log", "step": 10, "current_steps": 10, "epoch": 1.0, "eval_loss": 3.25},
        {"event": "checkpoint", "name": "checkpoint-10"},
    ]
    folder = written(
        tmp_path / "ours",
        training_parameters=settings.entered(),
        training_graph=GRAPH,
        training_log={"base_model_name": "llama", "loss": 2.0, "eval_loss": 2.5, "current_steps": 20, "epoch": 2.0, "train_runtime": 65.2},
        run="".join(json.dumps(line) + "\n" for line in run) + '{"event": "log", "curr',
    )
    found = load_run(folder)
    assert (found.name, found.notices, found.settings) == ("ours", [], settings.entered())
    assert len(found.history) == 20 and found.history[0] == GRAPH[0]
    assert found.history[9] == {"current_steps": 10, "loss": 3.0, "learning_rate": 1e-4, "epoch": 1.0, "grad_norm": 0.5, "eval_loss": 3.25}
    assert found.facts == {"base_model": "llama", "step": 20, "epoch": 2.0, "loss": pytest.approx(2.45), "eval_loss": 3.25, "seconds": 65.2}


def test_a_run_that_was_killed_has_its_diary(tmp_path):
    lines = [json.dumps({"event": "log", "current_steps": step, "epoch": step / 10, "loss": 3.0}) for step in (1, 2)]
    found = load_run(written(tmp_path / "killed", training_parameters=TrainingSettings().entered(), run="\n".join(lines)))
    assert found.history == [{"loss": 3.0, "current_steps": 1, "epoch": 0.1}, {"loss": 3.0, "current_steps": 2, "epoch": 0.2}]
    assert found.facts == {"step": 2, "epoch": 0.2, "loss": 3.0} and found.notices == []


def test_a_run_of_older_training_pro(tmp_path):
    """It adds an entry at each evaluation and at the end, with the last loss again, or with 0 where there was none."""
    zero = {"current_steps": 0, "loss": 0.0, "learning_rate": 0.0, "epoch": 0.0}
    folder = written(
        tmp_path / "old",
        training_parameters={
            "lora_name": "old",
            "lora_rank": 32,
            "batch_size": 128,
            "micro_batch_size": 4,
            "optimizer": "adamw_hf",
            "raw_text_file": "tale",
        },
        training_graph=[zero, *GRAPH[:10], GRAPH[9], *GRAPH[10:], GRAPH[19]],
        training_log={"base_model_name": "llama-7b", "loss": 2.0, "current_steps": 20, "current_steps_adjusted": 20, "train_runtime": 3600},
    )
    found = load_run(folder)
    assert found.history == GRAPH and found.facts["seconds"] == 3600
    assert (found.settings["grad_accumulation"], found.settings["batch_size"], found.settings["raw_text_file"]) == (32, 0, "tale")
    assert found.notices == [
        "Optimizer “adamw_hf” no longer exists; “adamw_torch” takes its place.",
        "Left out of training_graph.json, since they hold no step or no loss: 1 of 23 entries.",
    ]


def test_a_run_of_the_web_uis_tab_has_only_its_last_loss(tmp_path):
    folder = written(
        tmp_path / "tab",
        training_parameters={
            "lora_rank": 8,
            "q_proj_en": True,
            "v_proj_en": True,
            "excess_length": "drop",
            "dataset": "chats",
            "format": "Chat Template",
        },
        training_log={"base_model_name": "llama", "loss": 1.5, "learning_rate": 1e-5, "epoch": 2.96, "current_steps": 80, "train_runtime": 61.0},
    )
    found = load_run(folder)
    assert (
        found.settings["training_projection"] == "q-v"
        and found.settings["datasetJSONL"] == "chats"
        and found.settings["eliminate_long_blocks"] is True
    )
    assert found.history == [{"loss": 1.5, "learning_rate": 1e-5, "current_steps": 80, "epoch": 2.96}]
    assert found.notices == ["Its losses by step are not known (training_graph.json); only its last ones are shown."]
    assert found.facts == {"base_model": "llama", "step": 80, "epoch": 2.96, "loss": 1.5, "seconds": 61.0}


def test_a_checkpoint_is_the_run_up_to_its_step(tmp_path):
    folder = written(tmp_path / "run", training_parameters=TrainingSettings(lora_rank=8).entered(), training_graph=GRAPH,
                     training_log={"base_model_name": "llama", "current_steps": 20, "loss": 2.0, "eval_loss": 9.0, "train_runtime": 65})  # fmt: skip
    checkpoint = folder / "checkpoint-12-loss-2_80"
    checkpoint.mkdir()
    found = load_run(checkpoint)
    assert (found.name, found.notices, found.settings["lora_rank"]) == ("run/checkpoint-12-loss-2_80", [], 8)
    assert found.history == GRAPH[:12] and found.facts == {"base_model": "llama", "step": 12, "epoch": 1.2, "loss": pytest.approx(3.25)}
    (folder / "training_graph.json").unlink()
    assert load_run(checkpoint).history == []  # the last loss of the run is none of the checkpoint's
    (checkpoint / "training_log.json").write_text('{"current_steps": 12, "loss": 2.8}', encoding="utf-8")
    assert load_run(checkpoint).history == [{"loss": 2.8, "current_steps": 12}]


def test_what_is_missing_or_broken_is_said(tmp_path):
    assert load_run(tmp_path / "gone") == SavedRun("gone", notices=["“gone” is no folder any more. Refresh the list and choose again."])
    assert load_run(written(tmp_path / "empty")).notices == [
        "Its settings are not known (training_parameters.json).",
        "Its losses are not known: neither training_graph.json nor training_log.json tells them.",
    ]
    broken = load_run(written(tmp_path / "broken", training_parameters="{", training_graph={"loss": 1}, training_log="[1]"))
    assert broken.notices[0].startswith("training_parameters.json cannot be read as JSON: ") and (broken.settings, broken.history) == ({}, [])
    assert "training_log.json does not hold one JSON object, so it was left out." in broken.notices
    assert "training_graph.json does not hold a list, so it was left out." in broken.notices
    odd = load_run(
        written(tmp_path / "odd", training_parameters={"optimizer": ["a"], "lora_rank": "much"}, training_graph=[7, {"loss": 2.0}, GRAPH[3]])
    )
    assert odd.history == [GRAPH[3]] and any("2 of 3 entries" in text for text in odd.notices) and len(odd.notices) == 3


def run_with(name, **values):
    return SavedRun(name, TrainingSettings(lora_name=name, **values).entered())


def test_the_settings_that_differ():
    runs = [
        run_with("a", learning_rate="3e-4", lora_RS=True, epochs=3),
        run_with("b", learning_rate="0.0003", lora_rank=8, dataset="rows", epochs=3.0),
        SavedRun("c"),
        run_with("d", learning_rate="abc", train_only_after="### R", epochs=2.5),
    ]
    assert differences(runs) == [
        ("LoRA Rank", ["32", "8", "–", "32"]),
        ("Use rsLoRA", ["on", "off", "–", "off"]),
        ("Epochs", ["3", "3", "–", "2.5"]),
        ("Learning Rate", ["3e-4", "0.0003", "–", "abc"]),
        ("Train Only After", ["None", "None", "–", "### R"]),
        ("Dataset", ["None", "rows", "–", "None"]),
    ]
    assert differences(runs[:1]) == differences([]) == differences([run_with("x"), run_with("y"), SavedRun("z")]) == []


def parsed(html):
    return ElementTree.fromstring(html)


def rows(root):
    return [["".join(cell.itertext()) for cell in row] for row in root.iter("tr")]


def test_the_comparison():
    runs = [
        SavedRun("<b>one", TrainingSettings(lora_rank=8).entered(), GRAPH, {"base_model": "<i>llama", "step": 20, "epoch": 2.0, "loss": 2.45, "seconds": 65.2}),
        SavedRun("two", TrainingSettings(train_only_after="</td>").entered(), [*GRAPH[:5], {"current_steps": 5, "eval_loss": 3.0}], {"step": 5, "eval_loss": 3.0}),
        SavedRun("three", notices=["<script> is missing."]),
    ]  # fmt: skip
    html = compare_html(runs)
    root = parsed(html)
    assert rows(root) == [
        ["", "<b>one", "two", "three"],
        ["Base model", "<i>llama", "–", "–"],
        ["Steps", "20", "5", "–"],
        ["Epochs", "2.00", "–", "–"],
        ["Loss (mean of the last 10)", "2.4500", "–", "–"],
        ["Evaluation loss", "–", "3.0000", "–"],
        ["Time", "1:05", "–", "–"],
        ["Settings that differ"],
        ["LoRA Rank", "8", "32", "–"],
        ["Train Only After", "None", "</td>", "–"],
    ]
    assert [svg.get("aria-label") for svg in root.iter("svg")] == ["Smoothed loss by step", "Evaluation loss by step", "Learning rate by step"]
    assert next(svg.get("aria-label") for svg in parsed(compare_html(runs, by="epoch")).iter("svg")) == "Smoothed loss by epoch"
    assert "three: <script> is missing." in "".join(root.itertext()) and "<script>" not in html and "<i>" not in html


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([], "Choose two or more runs"),
        ([SavedRun("a"), SavedRun("b")], "The settings cannot be compared: those of two runs are needed"),
        ([run_with("a"), run_with("b")], "No setting differs"),
    ],
)
def test_little_to_compare(runs, said):
    assert said in "".join(parsed(compare_html(runs)).itertext())


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([10**400, -(10**400), "1", "", "<x>", "3e-4"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["loss", "optimizer", "a"]), inner, max_size=3),
    max_leaves=6,
)
LOGGED = st.dictionaries(st.sampled_from(["current_steps", "epoch", "loss", "learning_rate", "eval_loss", "grad_norm", "epoch_adjusted"]), ANYTHING)
KEYS = st.sampled_from([*TrainingSettings.model_fields, "excess_length", "all_linear", "q_proj_en", "text_dataset", "unknown"])


@hypothesis_settings(deadline=None, max_examples=150)
@given(
    st.dictionaries(KEYS, ANYTHING, max_size=6) | ANYTHING,
    st.lists(LOGGED | ANYTHING, max_size=8) | ANYTHING,
    LOGGED | ANYTHING,
    st.sampled_from(["step", "epoch"]),
)
def test_no_file_makes_it_fail(tmp_path_factory, parameters, graph, log, by):
    folder = written(tmp_path_factory.mktemp("runs") / "any", training_parameters=parameters, training_graph=graph, training_log=log)
    found = load_run(folder)
    steps = [entry["current_steps"] for entry in found.history]
    assert steps == sorted(set(steps)) and set(found.settings) in (set(), set(TrainingSettings.model_fields))
    assert all(isinstance(notice, str) and notice.endswith(".") for notice in found.notices)
    parsed(compare_html([found, run_with("sound")], by=by))
