"""What a person does with the page: the same in every home."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

BROWSER = os.environ.get("TRAINING_PRO_BROWSER") or next(
    (found for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable") if (found := shutil.which(name))), None
)
NO_BROWSER = "no Chromium or Chrome on this machine; install one or name it in TRAINING_PRO_BROWSER"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync"]  # fmt: skip


def show_tab(page, home):
    """In the web UI our tab is one of several."""
    if home.tab:
        host_tab(page, home.tab)
    page.wait_for_selector("#tp-start, .tp-panel")


def reload(page, home):
    page.reload()
    show_tab(page, home)


def go_again(page, home, tries=10):
    """Go to a home whose server was started anew; the web UI's own script reloads the page meanwhile, and more than once."""
    from playwright.sync_api import Error

    for left in reversed(range(tries)):
        try:
            page.goto(home.url)
            return
        except Error:
            if not left:
                raise
            page.wait_for_timeout(500)


def host_tab(page, name):
    # not a click of the mouse: in a narrow window the web UI lays its chat over its own tabs
    page.locator("button[role=tab]", has_text=name).first.dispatch_event("click")


def connected(page):
    """Wait until the page follows the trainer: only then are its fields as they will stay."""
    page.wait_for_selector("#tp-status .tp-status:not(.tp-connecting)")


def picture(page, name):
    if folder := os.environ.get("TRAINING_PRO_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def choose(page, key, value, prefix="tp-"):
    field = page.locator(f"#{prefix}{key} input").first
    for _ in range(5):
        field.click()
        field.fill(value)
        field.press("Enter")
        field.blur()
        # Enter takes what the list marks, and the list is searched only after the page's next breath (a person is slower than that).
        page.wait_for_timeout(20)
        if field.input_value() in (value, ""):  # empty where several can be chosen
            return
        page.wait_for_timeout(200)


def pick(page, key, value):
    """Choose from a list that takes nothing else, as a hand does."""
    page.locator(f"#tp-{key} input").first.click()
    page.locator(f'[role=option][aria-label="{value}"]').first.click()


def write(page, key, value):
    page.locator(f"#tp-{key} textarea, #tp-{key} input").first.fill(value)


def status(page):
    return page.locator("#tp-status").inner_text()


def wait_for_status(page, word, seconds=400, name=None):
    """Wait for the status of the run, of this name where one is given (a page may still show the run before)."""
    page.wait_for_function(
        """([word, name]) => {
            const head = document.querySelector('#tp-status .tp-head b')?.innerText || '';
            const found = head === word && (!name || document.querySelector('#tp-status .tp-head span').innerText === `“${name}”`);
            return found || head.startsWith('Not started');
        }""",
        arg=[word, name],
        timeout=seconds * 1000,
    )
    assert "Not started" not in status(page), status(page)


def wait_for_text(page, selector, text, seconds=30):
    from playwright.sync_api import TimeoutError

    try:
        page.locator(selector, has_text=text).first.wait_for(timeout=seconds * 1000)
    except TimeoutError as error:
        raise AssertionError(f"{selector} does not show “{text}” after {seconds} s but: {page.locator(selector).all_inner_texts()}") from error


DATA = {"dataset": "JSON Dataset", "datasetJSONL": "JSONL Dataset", "raw_text_file": "Text file"}


def choose_data(page, key, value):
    """Choose the data in its tab, and nothing in the others, which may hold what an earlier run trained on."""
    for other, tab in DATA.items():
        if other != key:
            page.locator("#tp-data button[role=tab]", has_text=tab).click()  # Gradio 6 draws a tab when it is seen first
            if page.locator(f"#tp-{other} input").first.input_value() not in ("None", ""):
                choose(page, other, "None")
    page.locator("#tp-data button[role=tab]", has_text=DATA[key]).click()
    choose(page, key, value)


def fill_in(page, name, dataset="sample-alpaca"):
    """The least that a run needs."""
    write(page, "lora_name", name)
    choose_data(page, "dataset", dataset)
    choose(page, "format", "alpaca-format")
