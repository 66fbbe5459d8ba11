"""The tab “Perplexity evaluation” as a person uses it, in both homes; see test_page.py."""

import json
import shutil
import subprocess
import sys

import pytest
from homes import NO_WEBUI, WEBUI_PYTHON, Standalone, Webui
from pages import BROWSER, NO_BROWSER, picture, reload, wait_for_text, write

pytestmark = [pytest.mark.browser, pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)]
needs_webui = pytest.mark.skipif(not WEBUI_PYTHON.exists(), reason=NO_WEBUI)
HOMES = [pytest.param(Standalone, id="standalone"), pytest.param(Webui, id="webui", marks=needs_webui)]
TALE = "The bear eats honey. The owl sleeps in the old tree, and nobody knows why. " * 40


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A short run of the demo model, and what the command line measures of the tale: made once for both homes."""
    from training_pro import train_utils, training_run
    from training_pro.host import LocalHost
    from training_pro.settings import TrainingSettings

    folder = tmp_path_factory.mktemp("made")
    host = LocalHost(folder / "user_data")
    host.load("demo")
    settings = TrainingSettings(
        lora_name="sailor", dataset="sample-alpaca", eval_dataset="sample-alpaca-eval", format="alpaca-format", epochs=0.1, save_steps=10,
        eval_steps=10, warmup_steps=2, learning_rate="3e-3", save_steps_under_loss=0,
    )  # fmt: skip
    run = train_utils.train(settings, host, train_utils.begin(settings, host))
    assert run.succeeded, run.message
    training_run._current = None
    tale = folder / "tale.txt"
    tale.write_text(TALE, encoding="utf-8")
    asked = ["--model", "demo", "--text", str(tale), "--stride", "64", "--max-length", "128", "--json", "--user-data", str(folder / "cli")]
    done = subprocess.run([sys.executable, "-m", "training_pro", "perplexity", *asked], capture_output=True, text=True, check=True)
    return host.lora_dir / "sailor", tale, json.loads(done.stdout.splitlines()[-1])["perplexity"]


@pytest.fixture(scope="module", params=HOMES)
def home(request, tmp_path_factory, made, models_folder):
    served = request.param(tmp_path_factory.mktemp("perplexity"))
    lora, tale, _ = made
    shutil.copytree(lora, served.loras / "sailor")
    shutil.copyfile(tale, served.datasets / "tale.txt")
    (served.datasets / "long.txt").write_text(TALE * 300, encoding="utf-8")
    shutil.copytree(models_folder / "llama", served.user_data / "models" / "tiny")
    yield served
    served.stop()


def opened(page):
    page.locator("button[role=tab]", has_text="Perplexity evaluation").last.dispatch_event("click")
    page.locator("#tp-pp-loaded").wait_for()
    page.wait_for_selector("#tp-pp-status .tp-status:not(.tp-connecting)")
    return page


def pick(page, key, *values):
    """Choose these in a list of which several can be chosen."""
    field = page.locator(f"#tp-pp-{key} input").first
    while page.locator(f"#tp-pp-{key} .token, #tp-pp-{key} [class*=token]").count():
        field.click()
        field.press("Backspace")
    for value in values:
        field.click()
        field.fill(value)
        field.press("Enter")
    field.press("Escape")
    field.blur()


def pick_one(page, key, value):
    field = page.locator(f"#tp-pp-{key} input").first
    field.click()
    field.fill(value)
    page.locator("[role=option]", has_text=value).first.click()


def number(page, key, value):
    page.locator(f"#tp-pp-{key} input").first.fill(str(value))
    page.locator(f"#tp-pp-{key} input").first.blur()


def ended(page, title, word="Done"):
    page.wait_for_function(
        """([title, word]) => {
            const head = document.querySelector('#tp-pp-status .tp-head');
            return head && head.querySelector('b').innerText === word && head.querySelector('span').innerText === title;
        }""",
        arg=[title, word],
        timeout=120_000,
    )


def rows(home):
    from training_pro import evaluations

    return evaluations.read(home.user_data / "logs" / "evaluations.csv")


def test_from_the_click_to_the_table(home, open_page, made):
    page = opened(open_page(home))
    picture(page, f"perplexity-empty-{home.name}")
    pick(page, "texts")
    page.click("#tp-pp-selected")
    wait_for_text(page, "#tp-pp-said", "Models: choose one or more")
    pick(page, "texts", "tale")
    number(page, "stride", 64)
    number(page, "max_length", 128)
    page.click("#tp-pp-loaded")
    ended(page, "Loaded model on tale")
    row = rows(home)[-1]
    assert (row["Model"], row["LoRAs"], row["Dataset"], row["stride"], row["max_length"]) == ("demo", "-", "tale", "64", "128")
    value = float(row["Perplexity"])
    assert value == made[2] if home.name == "standalone" else value == pytest.approx(made[2], rel=1e-5)
    from training_pro.perplexity_charts import figure

    assert figure(value) in page.locator("#tp-pp-results").inner_text()
    page.wait_for_selector(f"#tp-pp-table td[title='{value!r}']")

    pick(page, "models", "tiny", "demo")
    page.click("#tp-pp-selected")
    ended(page, "2 models on tale")
    page.wait_for_function("document.querySelector('#tp-model-line').textContent.includes('demo')")  # the one from before is back
    found = page.locator("#tp-pp-results tbody tr").all_inner_texts()
    assert [text.split("\t")[0] for text in found] == ["tiny", "demo"] and "earlier" in found[1] and "earlier" not in found[0]
    assert page.locator("#tp-pp-results svg rect").count() == 2
    picture(page, f"perplexity-models-{home.name}")

    write(page, "pp-filter", "tiny")
    page.wait_for_function("document.querySelectorAll('#tp-pp-table tbody tr').length === 1")
    pick_one(page, "row", "tiny")
    wait_for_text(page, "#tp-pp-comment", "Comment on tiny · tale")
    write(page, "pp-comment", "=so-so")
    page.click("#tp-pp-save")
    wait_for_text(page, "#tp-pp-table", "=so-so")
    assert [row["Comment"] for row in rows(home)] == ["", "=so-so"]
    page.click("#tp-pp-export")
    link = page.locator("#tp-pp-table-said a")
    link.wait_for()
    with page.expect_download() as caught:
        link.click()
    text = caught.value.path().read_text(encoding="utf-8-sig")
    assert text.splitlines()[0] == "Model,LoRAs,Dataset,Perplexity,stride,max_length,Date,Comment" and text.splitlines()[1].endswith(",'=so-so")
    page.click("#tp-pp-delete")
    wait_for_text(page, "#tp-pp-table-said", "The row is deleted")
    assert [row["Model"] for row in rows(home)] == ["demo"]


def test_checkpoints_are_ranked_one_is_used_and_did_it_learn(home, open_page):
    page = opened(open_page(home))
    pick(page, "texts", "tale")
    pick(page, "rows", "sample-alpaca-eval.json")
    pick_one(page, "as", "sailor")
    number(page, "stride", 64)
    number(page, "max_length", 128)
    pick_one(page, "run", "sailor")
    page.click("#tp-pp-ranked")
    ended(page, "Checkpoints of sailor on 2 datasets")
    page.wait_for_selector("#tp-pp-use")
    table = page.locator("#tp-pp-results .tp-ranking tbody tr").all_inner_texts()
    assert "base model" in table[0] and [text.split("\t")[0] for text in table[1:]] == [str(n) for n in range(1, len(table))] and len(table) >= 5
    assert page.locator("#tp-pp-results svg polyline").count() == 2
    picture(page, f"perplexity-checkpoints-{home.name}")
    pick_one(page, "best", "sailor/checkpoint-10")
    page.click("#tp-pp-use")
    wait_for_text(page, "#tp-pp-said", "“sailor” is checkpoint-10 now. What was there is kept in Backup-")
    weights = home.loras / "sailor" / "adapter_model.safetensors"
    assert weights.read_bytes() == (home.loras / "sailor" / "checkpoint-10" / "adapter_model.safetensors").read_bytes()
    wait_for_text(page, "#tp-pp-results .tp-ranking", "is the LoRA")

    pick_one(page, "learner", "sailor/checkpoint-20")
    write(page, "pp-prompts", "What does the bear eat?")
    page.click("#tp-pp-learn")
    ended(page, "Did sailor/checkpoint-20 learn?")
    verdict = page.locator("#tp-pp-results .tp-verdict").inner_text()
    assert verdict.startswith(("It learned", "It forgot", "It memorised")), verdict
    assert page.locator("#tp-pp-results svg").count() == 1 and "The bear eats honey." in page.locator("#tp-pp-results .tp-answers").inner_text()
    picture(page, f"perplexity-learned-{home.name}")
    reload(page, home)
    opened(page)
    wait_for_text(page, "#tp-pp-results .tp-verdict", verdict.splitlines()[0])


@pytest.mark.parametrize(("width", "theme"), [(400, "dark")])
def test_running_interrupted_and_in_a_narrow_window(home, open_page, width, theme):
    page = opened(open_page(home))
    pick(page, "texts", "long")
    number(page, "stride", 8)
    number(page, "max_length", 128)
    page.click("#tp-pp-loaded")
    page.wait_for_function("document.querySelector('#tp-pp-status dl')?.innerText.match(/Left\\s+\\d+:\\d\\d/)")
    page.click("#tp-pp-adapted")
    wait_for_text(page, "#tp-pp-said", "LoRAs: choose one or more")
    page.click("#tp-pp-loaded")
    wait_for_text(page, "#tp-pp-said", "“Loaded model on long” is going on")
    other = opened(open_page(home, width=width, theme=theme))  # a second browser sees it too, and ends it
    wait_for_text(other, "#tp-pp-status", "Measuring demo on long")
    picture(other, f"perplexity-running-{home.name}-{width}-{theme}")
    assert other.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    other.click("#tp-pp-interrupt")
    ended(page, "Loaded model on long", "Interrupted")
    wait_for_text(page, "#tp-pp-results", "partial")
    assert rows(home)[-1]["Comment"].startswith("partial: ") and page.locator("#tp-pp-interrupt").is_disabled()
    pick(page, "texts", "wikitext")
    page.click("#tp-pp-loaded")
    ended(page, "Loaded model on wikitext", "Failed")
    wait_for_text(page, "#tp-pp-status", "“wikitext” could not be downloaded from the Hugging Face hub")
    picture(page, f"perplexity-failed-{home.name}")


def test_what_wakes_the_rest_of_the_tab(host, monkeypatch):
    import gradio as gr
    from training_pro import evaluation, training_run
    from training_pro.evaluation import Evaluation
    from training_pro.tab_perplexity import PerplexityTab
    from training_pro.tab_train import TrainTab
    from training_pro.training_run import DONE, TRAINING, TrainingRun

    with gr.Blocks():
        tab = PerplexityTab(host, TrainTab(host))
    monkeypatch.setattr(evaluation, "_current", None)
    idle = tab.state()
    assert tab.live_look("mine") == {} and tab.opened("mine").keys() == set(tab.at_first)
    job = Evaluation("A job")
    monkeypatch.setattr(evaluation, "_current", job)
    begun = tab.state()
    assert begun != idle and tab.changed(idle, begun, "mine")[tab.interrupt]["interactive"] is True
    shown = tab.live_look("mine")
    job.say("Measuring")
    assert tab.state() == begun and "Measuring" in tab.live_look("mine")[tab.status] != shown[tab.status]
    job.update(status=evaluation.DONE)
    ended = tab.state()
    assert tab.changed(begun, ended, "mine").keys() == {tab.interrupt, tab.use_row, tab.best}
    run = training_run.claim(TrainingRun("x", status=TRAINING))
    assert tab.texts in tab.changed(ended, tab.state(), "mine")
    training = tab.state()
    run.end(DONE, "Done.")
    assert tab.loras in tab.changed(training, tab.state(), "mine")  # the run's LoRA can be chosen now
    assert set(tab.changed(None, tab.state(), "mine")) == set(tab.rest)
