import json
import shutil
import subprocess
import threading
import time

import pytest
import torch
from homes import HERE, NO_WEBUI, WEBUI_PYTHON, make_webui
from tiny import SENTENCES
from training_pro import checkpoints, evaluation, evaluations, train_utils, training_run
from training_pro.evaluation import BASE, LOADED, PUBLIC, Evaluation, Request, Target
from training_pro.perplexity import encode, perplexity
from training_pro.rows import DataError
from training_pro.settings import SettingsError

WINDOW = {"stride": 16, "max_length": 64}


@pytest.fixture(autouse=True)
def no_evaluation_left(monkeypatch):
    monkeypatch.setattr(evaluation, "_current", None)


@pytest.fixture
def trained(host, settings):
    chosen = settings(learning_rate="5e-2", training_projection="all", epochs=3, save_steps=10, eval_dataset="held", eval_steps=10)
    run = train_utils.train(chosen, host, train_utils.begin(chosen, host))
    assert run.succeeded, run.message
    return run


def value_of(host, text, model=None):
    return perplexity(model or host.model, encode(host.tokenizer, text), **WINDOW).value


def test_the_loaded_model_on_texts_and_rows(host, settings):
    (host.datasets_dir / "book").mkdir()
    for number, text in enumerate(SENTENCES[:2], 1):
        (host.datasets_dir / "book" / f"part {number}.txt").write_text(text, encoding="utf-8")
    chosen = settings(train_on_inputs=False, train_only_after="A:")
    request = Request((LOADED,), ("tale", "book"), ("rows.json", "chats.jsonl"), settings=chosen, **WINDOW)
    done = evaluation.run_here(request, host)
    assert (done.status, done.problems, done.share) == ("done", [], 1.0)
    by_name = {result.dataset: result for result in done.results}
    assert list(by_name) == ["tale", "book", "rows.json", "chats.jsonl"]
    assert by_name["tale"].value == value_of(host, "\n\n\n".join(SENTENCES * 3))
    assert by_name["book"].value == value_of(host, "\n\n".join(SENTENCES[:2]))
    # “ hello 0 world” and EOS of each of the 40 rows: only what is trained is scored
    from training_pro.dataset_tools import prepare

    assert by_name["rows.json"].scored_tokens == prepare(chosen, host.tokenizer, host).report.trained_tokens
    assert [(row["Model"], row["LoRAs"], row["Dataset"], row["stride"], row["max_length"]) for row in evaluations.read(host.evaluations_file)] == [
        ("llama", "-", name, "16", "64") for name in by_name
    ]

    again = evaluation.run_here(request, host)
    assert all(result.before for result in again.results) and [r.value for r in again.results] == [r.value for r in done.results]
    assert len(evaluations.read(host.evaluations_file)) == 4
    asked = evaluation.run_here(Request((LOADED,), ("tale",), again=True, **WINDOW), host)
    assert not asked.results[0].before and len(evaluations.read(host.evaluations_file)) == 5


def test_what_was_measured_is_told_by_weights_text_and_settings(host, trained):
    request = Request((Target("adapter", "tiny"),), ("tale",), **WINDOW)

    def before(request):
        done = evaluation.run_here(request, host)
        assert done.problems == []
        return [bool(result.before) for result in done.results]

    assert before(request) == [False] and before(request) == [True]
    assert before(Request(request.targets, ("tale",), stride=32, max_length=64)) == [False]
    assert before(Request((Target("adapter", "tiny/checkpoint-10"),), ("tale",), **WINDOW)) == [False]
    (host.datasets_dir / "tale.txt").write_text("The fox lives in another den.", encoding="utf-8")
    assert before(request) == [False]
    weights = host.lora_dir / "tiny" / "adapter_model.safetensors"
    weights.write_bytes((host.lora_dir / "tiny" / "checkpoint-10" / "adapter_model.safetensors").read_bytes())
    assert before(request) == [False]  # the same name, other weights
    evaluations.delete(host.evaluations_file, evaluations.key(evaluations.read(host.evaluations_file)[-1]))
    assert before(request) == [False]  # a row that was removed is measured anew


def test_checkpoints_are_ranked_and_one_is_used(host, trained):
    with torch.no_grad():
        before = host.model(torch.tensor([[5, 6, 7]])).logits.clone()
    done = evaluation.run_here(
        evaluation.request_for_run(host, "tiny", texts=("tale",), rows=("held.json",), settings=trained.settings, **WINDOW), host
    )
    assert done.status == "done" and done.problems == []
    ranked = evaluation.ranking(done)
    names = [name for name, _, _ in ranked]
    assert names[0] == "" and {"tiny", "tiny/checkpoint-10", "tiny/checkpoint-20", "tiny/checkpoint-30"} < set(names)
    assert len(names) == 1 + len(checkpoints.adapters_of(host, "tiny"))
    means = [row["tale"].value * row["held.json"].value for _, _, row in ranked[1:]]
    assert means == sorted(means)
    known = {name: checkpoint for name, checkpoint, _ in ranked if name}
    assert known["tiny/checkpoint-10"].step == 10 and known["tiny/checkpoint-10"].eval_loss > known["tiny"].eval_loss
    assert known["tiny"].adapter and not known["tiny/checkpoint-10"].adapter
    with torch.no_grad():
        assert torch.equal(host.model(torch.tensor([[5, 6, 7]])).logits, before)

    folder = host.lora_dir / "tiny"
    final = (folder / "adapter_model.safetensors").read_bytes()
    said = checkpoints.use(host, "tiny/checkpoint-10")
    backup = next(folder.glob("Backup-*"))
    assert said == f"“tiny” is checkpoint-10 now. What was there is kept in {backup.name}."
    assert (folder / "adapter_model.safetensors").read_bytes() == (folder / "checkpoint-10" / "adapter_model.safetensors").read_bytes()
    assert (backup / "adapter_model.safetensors").read_bytes() == final
    log = json.loads((folder / "training_log.json").read_text(encoding="utf-8"))
    assert (log["current_steps"], log["base_model_name"]) == (10, "llama")
    assert max(entry["current_steps"] for entry in json.loads((folder / "training_graph.json").read_text(encoding="utf-8"))) == 10
    assert "are those of checkpoint-10" in (folder / "README.md").read_text(encoding="utf-8")
    assert checkpoints.checkpoint(host, "tiny/checkpoint-10").adapter
    assert checkpoints.use(host, "tiny/checkpoint-10") == "“tiny” is checkpoint-10 already; nothing was changed."
    again = evaluation.run_here(Request((Target("adapter", "tiny"),), ("tale",), **WINDOW), host)
    assert again.results[0].before and again.results[0].value == known_value(ranked, "tiny/checkpoint-10")


def known_value(ranked, name):
    return next(row["tale"].value for found, _, row in ranked if found == name)


def test_a_checkpoint_is_used_wholly_or_not_at_all(host, trained, monkeypatch):
    folder = host.lora_dir / "tiny"

    def look():
        return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    before, real = look(), type(folder).replace
    moved = []

    def fails(self, target):
        moved.append(self.name)
        if self.name == "adapter_model.safetensors" and len(moved) < 6:
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(type(folder), "replace", fails)
    with pytest.raises(checkpoints.NotUsed, match="“tiny/checkpoint-10” was not made the adapter: No space left on device"):
        checkpoints.use(host, "tiny/checkpoint-10")
    monkeypatch.undo()
    assert "training_log.json" in moved and look() == before
    for name, words in (("tiny/checkpoint-7", "no whole checkpoint"), ("tiny", "no whole checkpoint"), ("tiny/../x", "Checkpoint: ")):
        with pytest.raises(checkpoints.NotUsed, match=words):
            checkpoints.use(host, name)
    training_run.claim(training_run.TrainingRun("tiny"))
    with pytest.raises(checkpoints.NotUsed, match="is being trained"):
        checkpoints.use(host, "tiny/checkpoint-10")


def test_several_models_and_the_first_one_back(host, models_folder):
    host.load(str(models_folder / "llama"))
    before = host.source_of(host.model_path)
    targets = (Target("model", str(models_folder / "gpt2")), Target("model", str(models_folder / "llama")))
    gone = Target("model", str(models_folder / "broken"))
    (models_folder / "broken").mkdir(exist_ok=True)
    done = evaluation.run_here(Request((targets[0], gone, targets[1]), ("tale",), **WINDOW), host)
    assert [result.model for result in done.results] == ["gpt2", "llama"] and "“broken” is not a model" in done.problems[0]
    assert (host.model_name, host.model_path) == ("llama", before) and done.results[1].value == value_of(host, "\n\n\n".join(SENTENCES * 3))

    loaded = []
    real, host.load = host.load, lambda *arguments: loaded.append(arguments) or real(*arguments)
    again = evaluation.run_here(Request(targets, ("tale",), **WINDOW), host)
    assert all(result.before for result in again.results) and loaded == []  # nothing is loaded for what is known

    def stopped(*arguments):
        evaluation.current().stop()
        return real(*arguments)

    host.load = stopped  # interrupted while a model is being loaded, and put back
    done = evaluation.start(Request(targets, ("tale",), again=True, **WINDOW), host)
    wait(done)
    assert (done.status, done.results, host.model_name) == ("interrupted", [], "llama")


def wait(job, status=None, seconds=60):
    until = time.monotonic() + seconds
    while (job.active if status is None else job.status != status) and time.monotonic() < until:
        time.sleep(0.02)
    assert not (job.active if status is None else job.status != status), (job.status, job.message)


def test_interrupted_in_the_middle_it_is_partial(host, monkeypatch):
    (host.datasets_dir / "long.txt").write_text(" ".join(SENTENCES * 400), encoding="utf-8")
    real = evaluation.Progress.__call__

    def stopping(self, scored, total):
        real(self, scored, total)
        assert self.evaluation.remaining is not None and evaluation.busy_message().startswith("“Loaded model on long” measures with this model (")
        self.evaluation.stop()

    monkeypatch.setattr(evaluation.Progress, "__call__", stopping)
    request = Request((LOADED,), ("long",), **WINDOW)
    done = evaluation.start(request, host)
    with pytest.raises(training_run.Busy, match="“Loaded model on long” is going on"):
        evaluation.start(request, host)
    wait(done)
    result = done.results[0]
    assert (done.status, result.partial) == ("interrupted", True) and 0 < result.scored_tokens < result.total_tokens
    row = evaluations.read(host.evaluations_file)[-1]
    assert row["Comment"] == f"partial: {result.scored_tokens:,} of {result.total_tokens:,} tokens"
    monkeypatch.undo()
    assert evaluation.busy_message() is None
    assert not evaluation.run_here(Request((LOADED,), ("long",), stride=64, max_length=64), host).results[0].before


def test_a_run_and_an_evaluation_wait_for_each_other_and_say_so(host, settings):
    run = training_run.claim(training_run.TrainingRun("sailor", total_steps=9))
    with host.using_model():  # by another thread: the lock knows threads
        done = evaluation.start(Request((LOADED,), ("tale",), **WINDOW), host)
        until = time.monotonic() + 20
        while "Waiting: “sailor” is being trained (step 0 of 9)" not in done.message and time.monotonic() < until:
            time.sleep(0.02)
        assert done.status == "waiting" and done.message == "Waiting: “sailor” is being trained (step 0 of 9); interrupt it or wait for its end."
    wait(done)
    assert done.status == "done"
    run.end("done", "Done")

    held, go = threading.Event(), threading.Event()

    def measure():
        with evaluation.using(busy, host):
            held.set()
            go.wait(30)

    busy = evaluation.claim(Evaluation("Loaded model on tale"))
    evaluation.in_background(busy, measure)
    held.wait(20)
    run = train_utils.start(settings(), host)
    until = time.monotonic() + 20
    while "Waiting: “Loaded model on tale” measures with this model" not in run.message and time.monotonic() < until:
        time.sleep(0.02)
    assert "Waiting: “Loaded model on tale” measures with this model" in run.message and run.status == "preparing"
    go.set()
    until = time.monotonic() + 60
    while run.active and time.monotonic() < until:
        time.sleep(0.05)
    assert run.status == "done", run.message


def test_public_texts_are_joined_as_the_web_ui_does_and_offline_is_said(host, monkeypatch):
    import datasets

    asked = []

    def load(name, configuration, *, split, **more):
        asked.append((name, configuration, split, more))
        if name == "ptb_text_only" and not more:
            raise RuntimeError("Dataset scripts are no longer supported, but found ptb_text_only.py")
        return {"text": ["a", "b"], "sentence": ["c", "d"]}

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert [evaluation.public_text(name) for name in PUBLIC] == ["a\n\nb", "c\n\nd", "c d"]
    assert asked[0] == ("wikitext", "wikitext-2-raw-v1", "test", {})
    assert asked[2] == ("ptb_text_only", "penn_treebank", "validation", {"revision": "refs/convert/parquet"})
    assert asked[4][:3] == ("ptb_text_only", "penn_treebank", "test")

    def offline(*arguments, **more):
        raise ConnectionError("Couldn't reach the Hugging Face Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match=r"“wikitext” could not be downloaded .*\(Couldn't reach the Hugging Face Hub\)\. Connect this machine"):
        evaluation.public_text("wikitext")
    done = evaluation.run_here(Request((LOADED,), ("wikitext",), **WINDOW), host)
    assert done.status == "failed" and "put a .txt of your own into the datasets folder" in done.problems[0]


def test_everything_that_is_wrong_is_said_at_once(host, settings):
    with pytest.raises(SettingsError) as caught:
        evaluation.start(Request((), ("gone",), ("rows.json", "no.jsonl"), stride=0, max_length=1, settings=settings(format=None)), host)
    said = "\n".join(caught.value.problems)
    for words in (
        "choose models, LoRAs or the checkpoints", "“gone.txt” is not in the folder", "rows.json: Data Format is not chosen",
        "“no.jsonl.jsonl” is not in the folder", "Stride is 0", "max_length is 1",
    ):  # fmt: skip
        assert words in said, words
    assert evaluation.problems(Request((LOADED,), ("tale",), stride=512, max_length=256), host) == [
        "Stride is 512; it must be at most max_length (256), or tokens would be left out."
    ]
    (host.datasets_dir / "empty.txt").write_text("", encoding="utf-8")
    done = evaluation.run_here(Request((BASE,), ("empty", "tale"), stride=300), host)
    assert done.problems == [
        "llama on empty: The text has 1 token; at least 2 are needed, since the first has no context.",
        "llama on tale: Stride is 300; it must be between 1 and max_length (256), or tokens would be left out.",
    ]
    assert done.status == "failed"
    with pytest.raises(SettingsError, match="holds no checkpoint and no LoRA"):
        evaluation.request_for_run(host, "nobody")


IN_THE_WEB_UI = """
import sys
sys.argv = ["server.py", "--loader", "Transformers"]
sys.path[:0] = [{standin!r}, ".", "user_data/extensions"]
import threading
from modules import shared
from modules.LoRA import add_lora_to_model
from modules.models import load_model
shared.generation_lock = threading.Lock()
shared.model, shared.tokenizer = load_model("demo")
add_lora_to_model(["poet"])
from training_pro import evaluation, evaluations
from training_pro.evaluation import LOADED, Request, Target
from training_pro.host import WebuiHost
host = WebuiHost()
window = dict(texts=("tale",), stride=32, max_length=64)
first = evaluation.run_here(Request((LOADED,), **window), host)
print(evaluation.problems(Request((Target("model", "gone"),), **window), host))
others = evaluation.run_here(Request((Target("model", "demo"), Target("model", "tiny")), **window), host)
back = list(shared.lora_names)
again = evaluation.run_here(Request((LOADED,), **window), host)
refused = evaluation.problems(Request((Target("adapter", "poet"),), **window), host)
add_lora_to_model([])
alone = evaluation.run_here(Request((Target("adapter", "poet"),), **window), host)
shown = lambda done: [(each.model, list(each.loras), bool(each.before)) for each in done.results]
print([shown(done) for done in (first, others, again, alone)])
print(first.results[0].value == again.results[0].value != others.results[0].value)
print(others.problems + others.notices, shared.model_name, back, refused)
from modules import evaluate
print(evaluate.generate_markdown_table()[["Model", "LoRAs"]].values.tolist(), shared.generation_lock.locked())
"""


@pytest.mark.skipif(not WEBUI_PYTHON.exists(), reason=NO_WEBUI)
def test_in_the_web_ui_the_model_comes_back_with_its_loras(tmp_path, models_folder):
    import peft
    from training_pro.host import DEMO_MODEL, load_transformers_model

    make_webui(tmp_path)
    shutil.copytree(models_folder / "llama", tmp_path / "user_data" / "models" / "tiny")
    (tmp_path / "user_data" / "training" / "datasets" / "tale.txt").write_text("The bear eats honey. " * 20, encoding="utf-8")
    model, _ = load_transformers_model(str(DEMO_MODEL), "none")
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "user_data" / "loras" / "poet")
    saved = tmp_path / "user_data" / "loras" / "poet" / "adapter_config.json"
    known = {name: value for name, value in json.loads(saved.read_text(encoding="utf-8")).items() if name in ("r", "lora_alpha", "target_modules")}
    saved.write_text(json.dumps({**known, "peft_type": "LORA", "task_type": "CAUSAL_LM"}), encoding="utf-8")  # for the older PEFT
    code = IN_THE_WEB_UI.format(standin=str(HERE / "standin"))
    done = subprocess.run([str(WEBUI_PYTHON), "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()[-4:]
    with_lora = [("demo", ["poet"], False)]
    assert "“gone” is no folder of" in done.stdout
    assert lines[0] == str([with_lora, [("demo", [], False), ("tiny", [], False)], [("demo", ["poet"], True)], [("demo", ["poet"], True)]])
    assert lines[1] == "True"
    assert lines[2].startswith("[] demo ['poet'] ['The model has the LoRA poet on it.")
    assert all(text in lines[3] for text in ("['demo', '-']", "['demo', 'poet']", "['tiny', '-']")) and lines[3].endswith("]] False")
