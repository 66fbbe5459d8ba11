"""Fixtures around the tiny models of tiny.py."""

from __future__ import annotations

import json
import os
import shutil

import beside
import hypothesis
import older
import pytest
from homes import WEBUI_PYTHON
from pages import BROWSER, FLAGS, connected, show_tab
from tiny import CHATML, CHATS, ROWS, SENTENCES, make_gpt2, make_llama, make_tokenizer, save_tokenizer

# What Gradio raises when a page of a server that was stopped asks the next one for its events.
OF_AN_OLD_PAGE = ("in sse_stream", "Caught handled exception, but response already started")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads on a tiny model wait for each other most of the time


# The same examples each time, so that a landing does not hang on a draw; new ones in the long rounds, and with TRAINING_PRO_RANDOM=1.
hypothesis.settings.register_profile("suite", derandomize="TRAINING_PRO_RANDOM" not in os.environ)
hypothesis.settings.load_profile("suite")


def pytest_addoption(parser):
    parser.addoption("--alone", action="store_true", help="run all tests in this process")
    parser.addoption("--reports", help="write each report into this file (see beside.py)")


def pytest_configure(config):
    if file := config.option.reports:
        config.pluginmanager.register(beside.Reporter(config, file))
    elif config.args_source is pytest.Config.ArgsSource.TESTPATHS and not (config.option.alone or config.option.keyword or config.option.markexpr):
        config.pluginmanager.register(beside.Beside())


def pytest_collection_finish(session):
    chosen = any(item.path.name == "test_webui_versions.py" for item in session.items)
    if chosen and not session.config.option.collectonly and WEBUI_PYTHON.exists():
        older.begin()


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer(CHATML)


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory, tokenizer):
    """llama and gpt2, as folders that the real loader reads."""
    folder = tmp_path_factory.mktemp("models")
    for name, make in (("llama", make_llama), ("gpt2", make_gpt2)):
        make(len(tokenizer)).save_pretrained(folder / name)
        save_tokenizer(tokenizer, folder / name)
    return folder


@pytest.fixture
def host(tmp_path, models_folder):
    """A host with folders of its own, a llama loaded, and small data."""
    from training_pro.host import LocalHost

    host = LocalHost(tmp_path / "user_data")
    shutil.rmtree(host.datasets_dir)
    host.datasets_dir.mkdir()
    (host.datasets_dir / "rows.json").write_text(json.dumps(ROWS), encoding="utf-8")
    (host.datasets_dir / "held.json").write_text(json.dumps(ROWS[:8]), encoding="utf-8")
    (host.datasets_dir / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in CHATS), encoding="utf-8")
    (host.datasets_dir / "tale.txt").write_text("\n\n\n".join(SENTENCES * 3), encoding="utf-8")
    (host.formats_dir / "plain.json").write_text(json.dumps({"instruction,output": "Q: %instruction%\nA: %output%"}), encoding="utf-8")
    host.load(str(models_folder / "llama"))
    return host


@pytest.fixture
def settings():
    """Settings of a short run on the JSON rows; change what a test is about with `settings(lora_rank=8)`."""
    from training_pro.settings import TrainingSettings

    def make(**changes):
        values = {"lora_name": "tiny", "dataset": "rows", "format": "plain", "epochs": 1, "warmup_steps": 2, "learning_rate": "5e-3", "lora_rank": 8,
                  "save_steps_under_loss": 0}  # fmt: skip
        return TrainingSettings(**{**values, **changes})

    return make


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser):
    """Open a home's page at our tab; at the end, no page may have shown an error of gradio's or thrown one of its own, and no
    handler may have failed in the server (Gradio 4 raises where 6 forgives, and shows nothing where no progress is shown)."""
    pages, faults, said = [], [], {}

    def opened(home, width=1440, height=1000, theme="light"):
        said.setdefault(home, len(home.said()))
        page = browser.new_page(viewport={"width": width, "height": height})
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"{home.url}/?__theme={theme}")
        show_tab(page, home)
        if page.locator("#tp-status").count():
            connected(page)
        pages.append(page)
        return page

    opened.faults, opened.said = faults, said
    yield opened
    for page in pages:
        if not page.is_closed():
            faults += page.locator(".toast-body.error").all_inner_texts()
            page.close()
    for home, before in said.items():
        new = home.said()[before:]
        faults += [told[-5000:] for told in new.split("Traceback (most recent call last)")[1:] if not any(words in told for words in OF_AN_OLD_PAGE)]
    assert faults == []


@pytest.fixture(autouse=True)
def no_run_left():
    """Each test begins with no run in the process, and leaves none: not by monkeypatch, whose `undo` would bring an older one back."""
    from training_pro import training_run

    training_run._current = None
    yield
    training_run._current = None
