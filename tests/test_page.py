"""The page as a person uses it: a real server, a real Chromium, the demo model.

Set TRAINING_PRO_SCREENSHOTS to a folder to keep pictures of what the tests see.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import mean_loss

BROWSER = os.environ.get("TRAINING_PRO_BROWSER") or next(
    (found for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable") if (found := shutil.which(name))), None
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine; install one or name it in TRAINING_PRO_BROWSER"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync"]  # fmt: skip


class Server:
    """`python -m training_pro ui` with folders of its own."""

    def __init__(self, folder: Path, *options: str):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.user_data, self.url, self.log = folder / "user_data", f"http://127.0.0.1:{port}", folder / "server.log"
        command = [sys.executable, "-m", "training_pro", "ui", "--port", str(port), "--user-data", str(self.user_data), *options]
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
        for _ in range(600):
            if "Training PRO is at" in self.said():
                return
            assert self.process.poll() is None, self.said()
            time.sleep(0.1)
        raise AssertionError(f"the page did not come up:\n{self.said()}")

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    served = Server(tmp_path_factory.mktemp("page"))
    yield served
    served.stop()


@pytest.fixture
def open_page(browser):
    """Open a page; at the end, no page may have shown an error of gradio's or thrown one of its own."""
    pages, faults = [], []

    def opened(url, width=1440, height=1000, theme="light"):
        page = browser.new_page(viewport={"width": width, "height": height})
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"{url}/?__theme={theme}")
        page.wait_for_selector("#tp-start")
        connected(page)
        pages.append(page)
        return page

    yield opened
    for page in pages:
        if not page.is_closed():
            faults += page.locator(".toast-body.error").all_inner_texts()
            page.close()
    assert faults == []


def connected(page):
    """Wait until the page follows the trainer: only then are its fields as they will stay."""
    page.wait_for_selector("#tp-status .tp-status:not(.tp-connecting)")


def picture(page, name):
    if folder := os.environ.get("TRAINING_PRO_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def choose(page, key, value):
    field = page.locator(f"#tp-{key} input").first
    field.click()
    field.fill(value)
    field.press("Enter")
    field.blur()


def write(page, key, value):
    page.locator(f"#tp-{key} textarea, #tp-{key} input").first.fill(value)


def status(page):
    return page.locator("#tp-status").inner_text()


def wait_for_status(page, word, seconds=400):
    page.wait_for_function(
        "word => document.querySelector('#tp-status .tp-head b')?.innerText === word",
        arg=word, timeout=seconds * 1000,
    )  # fmt: skip


def wait_for_text(page, selector, text, seconds=30):
    page.locator(selector, has_text=text).first.wait_for(timeout=seconds * 1000)


def fill_in(page, name, dataset="sample-alpaca"):
    write(page, "lora_name", name)
    choose(page, "dataset", dataset)
    choose(page, "format", "alpaca-format")


@pytest.mark.parametrize("quantization", ["none", "4bit"])
def test_the_main_job(tmp_path, browser, open_page, quantization):
    """Open, choose the sample, Start, watch, Done, and the adapter works on a fresh base with plain peft."""
    import peft
    from training_pro.dataset_tools import prepare
    from training_pro.host import LocalHost
    from training_pro.settings import TrainingSettings

    server = Server(tmp_path, "--quantization", quantization)
    try:
        page = open_page(server.url)
        assert ("4-bit" in page.locator("#tp-model-line").inner_text()) == (quantization == "4bit")
        picture(page, f"empty-{quantization}")
        fill_in(page, "sailor")
        choose(page, "eval_dataset", "sample-alpaca-eval")
        page.click("#tp-start")
        wait_for_status(page, "Training")
        assert page.locator("#tp-start").is_disabled() and page.locator("#tp-interrupt").is_enabled()
        page.wait_for_selector("#tp-chart polyline.tp-smooth", timeout=60_000)
        first = status(page)
        page.wait_for_function("first => document.querySelector('#tp-status').innerText !== first", arg=first)
        time.sleep(3)
        picture(page, f"running-{quantization}")
        wait_for_status(page, "Done")
        assert "900 / 900" in status(page) and page.locator("#tp-chart polyline.tp-eval").count() == 1
        assert page.locator("#tp-start").is_enabled() and page.locator("#tp-interrupt").is_disabled()
        picture(page, f"done-{quantization}")

        page.locator("#tp-try button").first.click()
        write(page, "try-prompt", "What does the bear eat?")
        page.click("#tp-try-answer")
        said = "#tp-try-lora textarea"
        page.wait_for_function("said => document.querySelector(said).value.length > 0", arg=said, timeout=60_000)
        base, adapted = (page.locator(f"#tp-try-{which} textarea").input_value() for which in ("base", "lora"))
        assert base == "The bear eats honey." and adapted.startswith("Ahoy")
        picture(page, f"tried-{quantization}")
        assert page.locator(".toast-body.error").count() == 0
        page.close()  # before its server goes, which it would lament
    finally:
        server.stop()

    host = LocalHost(server.user_data)
    host.load("demo", quantization)
    data = prepare(TrainingSettings(dataset="sample-alpaca", format="alpaca-format"), host.tokenizer, host).train.select(range(0, 1200, 12))
    before = mean_loss(host.model, data)
    adapter = peft.PeftModel.from_pretrained(host.model, str(host.lora_dir / "sailor")).eval()
    assert mean_loss(adapter, data) < before * 2 / 3


def test_all_problems_at_once_and_nothing_written(server, open_page):
    page = open_page(server.url)
    write(page, "lora_name", "../x")
    write(page, "learning_rate", "fast")
    page.click("#tp-start")
    page.wait_for_selector("#tp-status .tp-problems")
    assert "these 3 things have to be changed" in status(page)
    for words in ("Name “../x”", "Learning Rate is “fast”", "No data is chosen"):
        assert words in status(page)
    picture(page, "problems")
    assert list((server.user_data / "loras").iterdir()) == []


def test_a_file_that_vanished_since_the_list_was_drawn(server, open_page):
    lost = server.user_data / "training" / "datasets" / "lost.json"
    lost.write_text('[{"instruction": "a", "output": "b"}]', encoding="utf-8")
    page = open_page(server.url)
    fill_in(page, "x", dataset="lost")
    lost.unlink()
    page.click("#tp-start")
    page.wait_for_selector("#tp-status .tp-problems")
    assert "“lost.json” is not in the folder datasets" in status(page)


def test_verify_shows_the_numbers_of_the_run(server, open_page):
    page = open_page(server.url)
    fill_in(page, "")
    page.click("#tp-verify")
    page.wait_for_selector("#tp-report .tp-report")
    report = page.locator("#tp-report").inner_text()
    assert "1,200 JSON rows" in report and "300 per epoch" in report and "900" in report
    picture(page, "verified")


def test_wrong_rows_are_named_on_the_page(server, open_page):
    (server.user_data / "training" / "datasets" / "wrong.json").write_text('[{"instruction": "a", "output": "b"}, {"q": "c"}]', encoding="utf-8")
    page = open_page(server.url)
    fill_in(page, "wrong", dataset="wrong")
    page.click("#tp-start")
    wait_for_status(page, "Failed")
    assert "“wrong.json”, row 2: it has text under q" in status(page)
    picture(page, "failed")


def test_interrupt_checkpoint_reload_and_a_second_browser(server, open_page):
    page = open_page(server.url)
    fill_in(page, "long")
    write(page, "epochs", "40")
    page.click("#tp-start")
    wait_for_status(page, "Training")
    page.wait_for_selector("#tp-chart polyline.tp-smooth", timeout=60_000)

    page.reload()  # the run goes on, and the page shows it with its settings
    page.wait_for_selector("#tp-chart polyline.tp-smooth", timeout=60_000)
    assert "Training" in status(page) and page.locator("#tp-start").is_disabled()
    page.wait_for_function("document.querySelector('#tp-lora_name textarea, #tp-lora_name input')?.value === 'long'")
    assert page.locator("#tp-epochs input").input_value() == "40"

    other = open_page(server.url, width=800, theme="dark")
    other.wait_for_selector("#tp-chart polyline.tp-smooth", timeout=60_000)
    picture(other, "second-browser")
    other.click("#tp-checkpoint")
    folder = server.user_data / "loras" / "long"
    for _ in range(100):
        if found := list(folder.glob("checkpoint-*-user")):
            break
        time.sleep(0.1)
    assert (found[0] / "adapter_model.safetensors").is_file()
    other.click("#tp-interrupt")
    wait_for_status(page, "Interrupted", 60)
    wait_for_status(other, "Interrupted", 60)
    assert (folder / "adapter_model.safetensors").is_file()
    events = [json.loads(line)["event"] for line in (folder / "run.jsonl").read_text(encoding="utf-8").splitlines()]
    assert events[0] == "start" and events[-1] == "end" and "checkpoint" in events


def test_a_run_of_another_kind_of_model_is_refused_in_words(server, open_page, models_folder):
    page = open_page(server.url)
    page.locator("#tp-load button").first.click()
    choose(page, "load-model", str(models_folder / "gpt2"))
    page.click("#tp-load-button")
    wait_for_text(page, "#tp-model-line", "GPT2LMHeadModel")
    fill_in(page, "gpt")
    page.click("#tp-start")
    wait_for_text(page, "#tp-status", "GPT2LMHeadModel has no layer of these names. Choose all-linear")
    choose(page, "load-model", "demo")
    page.click("#tp-load-button")
    wait_for_text(page, "#tp-model-line", "1.05 million")


def test_another_model_is_loaded_from_the_page(server, open_page, models_folder):
    page = open_page(server.url)
    page.locator("#tp-load button").first.click()
    choose(page, "load-model", str(models_folder / "gpt2"))
    page.click("#tp-load-button")
    wait_for_text(page, "#tp-model-line", "GPT2LMHeadModel")
    choose(page, "load-model", "/nowhere/at/all")
    page.click("#tp-load-button")
    wait_for_text(page, "#tp-model-line", "There is no folder")
    page.reload()
    wait_for_text(page, "#tp-model-line", "GPT2LMHeadModel")  # a wrong name costs nothing
    page.locator("#tp-load button").first.click()
    choose(page, "load-model", "demo")
    page.click("#tp-load-button")
    wait_for_text(page, "#tp-model-line", "1.05 million")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 800, 400])
def test_the_page_fits_its_window(server, open_page, width, theme):
    page = open_page(server.url, width=width, theme=theme)
    page.locator("#tp-advanced button").first.click()
    time.sleep(0.5)
    picture(page, f"page-{width}-{theme}")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    assert page.locator("#tp-optimizer").is_visible()


def test_the_page_is_not_open_to_other_machines(server):
    import psutil

    listening = [open_.laddr for open_ in psutil.Process(server.process.pid).net_connections(kind="inet") if open_.status == "LISTEN"]
    assert listening and {address.ip for address in listening} == {"127.0.0.1"}
    assert "Other machines" not in server.said()


def test_listen_says_what_it_means_and_auth_asks(tmp_path):
    import urllib.error
    import urllib.request

    open_server = Server(tmp_path, "--listen", "--model", "/nowhere")
    open_server.stop()
    assert "without --auth everyone who can reach it can" in open_server.said() and "The page opens without a model" in open_server.said()
    (tmp_path / "b").mkdir()
    guarded = Server(tmp_path / "b", "--auth", "anna:secret")
    try:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(guarded.url + "/config", timeout=10)
    finally:
        guarded.stop()
