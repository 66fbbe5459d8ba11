"""The page as a person uses it: a real server, a real Chromium, the demo model. Every test runs in both homes (see homes.py).

Set TRAINING_PRO_SCREENSHOTS to a folder to keep pictures of what the tests see.
"""

import json
import os
import signal
import subprocess
import time

import pytest
from homes import NO_WEBUI, WEBUI_PYTHON, Standalone, Webui
from pages import (
    BROWSER,
    FLAGS,
    NO_BROWSER,
    choose,
    choose_data,
    connected,
    fill_in,
    pick,
    picture,
    reload,
    show_tab,
    status,
    wait_for_status,
    wait_for_text,
    write,
)
from tiny import mean_loss

pytestmark = [pytest.mark.browser, pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)]
needs_webui = pytest.mark.skipif(not WEBUI_PYTHON.exists(), reason=NO_WEBUI)
HOMES = [pytest.param(Standalone, id="standalone"), pytest.param(Webui, id="webui", marks=needs_webui)]


@pytest.fixture(scope="module", params=HOMES)
def home(request, tmp_path_factory, models_folder):
    """A server in each home, for all tests that leave it as they found it."""
    import shutil

    served = request.param(tmp_path_factory.mktemp("page"), faults=True)
    shutil.copytree(models_folder / "gpt2", served.user_data / "models" / "gpt2")
    yield served
    served.stop()


@pytest.mark.parametrize(
    ("make", "quantization"),
    [(Standalone, "none"), (Standalone, "4bit"), pytest.param(Webui, "none", marks=needs_webui)],  # the web UI quantises on a card alone
)
def test_the_main_job(tmp_path, open_page, make, quantization):
    """Open, choose the sample, Start, watch, Done, and the adapter works on a fresh base with plain peft."""
    import peft
    from training_pro.dataset_tools import prepare
    from training_pro.host import LocalHost
    from training_pro.settings import TrainingSettings

    home = make(tmp_path, *(["--quantization", quantization] if quantization != "none" else []))
    kind = f"{home.name}-{quantization}"
    try:
        page = open_page(home)
        assert ("4-bit" in page.locator("#tp-model-line").inner_text()) == (quantization == "4bit")
        picture(page, f"empty-{kind}")
        fill_in(page, "sailor")
        choose(page, "eval_dataset", "sample-alpaca-eval")
        page.click("#tp-start")
        wait_for_status(page, "Training")
        assert page.locator("#tp-start").is_disabled() and page.locator("#tp-interrupt").is_enabled()
        page.wait_for_selector("#tp-chart polyline.tp-smooth", timeout=60_000)
        first = status(page)
        page.wait_for_function("first => document.querySelector('#tp-status').innerText !== first", arg=first)
        time.sleep(3)
        picture(page, f"running-{kind}")
        wait_for_status(page, "Done")
        assert "900 / 900" in status(page) and page.locator("#tp-chart polyline.tp-eval").count() == 1
        assert page.locator("#tp-start").is_enabled() and page.locator("#tp-interrupt").is_disabled()
        picture(page, f"done-{kind}")

        page.locator("#tp-try button").first.click()
        write(page, "try-prompt", "What does the bear eat?")
        page.click("#tp-try-answer")
        said = "#tp-try-lora textarea"
        page.wait_for_function("said => document.querySelector(said).value.length > 0", arg=said, timeout=60_000)
        base, adapted = (page.locator(f"#tp-try-{which} textarea").input_value() for which in ("base", "lora"))
        assert base == "The bear eats honey." and adapted.startswith("Ahoy")
        picture(page, f"tried-{kind}")
        assert page.locator(".toast-body.error").count() == 0
        page.close()  # before its server goes, which it would lament
    finally:
        home.stop()

    host = LocalHost(home.user_data)
    host.load("demo", quantization)
    data = prepare(TrainingSettings(dataset="sample-alpaca", format="alpaca-format"), host.tokenizer, host).train.select(range(0, 1200, 12))
    before = mean_loss(host.model, data)
    adapter = peft.PeftModel.from_pretrained(host.model, str(host.lora_dir / "sailor")).eval()
    assert mean_loss(adapter, data) < before * 2 / 3


def test_all_problems_at_once_and_nothing_written(home, open_page):
    page = open_page(home)
    write(page, "lora_name", "../x")
    write(page, "learning_rate", "fast")
    page.click("#tp-start")
    page.wait_for_selector("#tp-status .tp-problems")
    assert "these 3 things have to be changed" in status(page)
    for words in ("Name “../x”", "Learning Rate is “fast”", "No data is chosen"):
        assert words in status(page)
    picture(page, f"problems-{home.name}")
    assert list(home.loras.iterdir()) == []


def test_a_file_that_vanished_since_the_list_was_drawn(home, open_page):
    lost = home.datasets / "lost.json"
    lost.write_text('[{"instruction": "a", "output": "b"}]', encoding="utf-8")
    page = open_page(home)
    fill_in(page, "x", dataset="lost")
    lost.unlink()
    page.click("#tp-start")
    page.wait_for_selector("#tp-status .tp-problems")
    assert "“lost.json” is not in the folder datasets" in status(page)


def test_verify_shows_the_numbers_of_the_run(home, open_page):
    page = open_page(home)
    fill_in(page, "")
    page.click("#tp-verify")
    page.wait_for_selector("#tp-report .tp-report")
    report = page.locator("#tp-report").inner_text()
    assert "1,200 JSON rows" in report and "300 per epoch" in report and "900" in report
    picture(page, f"verified-{home.name}")


def test_every_token_is_seen_before_it_is_trained(home, open_page):
    page = open_page(home)
    assert not page.locator("#tp-tokens").is_visible()
    choose_data(page, "datasetJSONL", "sample-chat")
    page.locator("#tp-advanced button").first.click()
    page.locator("#tp-train_on_inputs input").uncheck()
    page.click("#tp-verify")
    wait_for_text(page, "#tp-tokens-shown", "1 of 932")
    learned, masked = (page.locator(f"#tp-tokens-shown .tp-block .tp-{kind}") for kind in ("learned", "masked"))
    assert learned.count() > 3 and masked.count() > 3
    assert "<|end_of_turn|>" in learned.last.inner_text() and "special" in learned.last.get_attribute("title")
    picture(page, f"tokens-{home.name}")
    page.click("#tp-tokens-next")
    wait_for_text(page, "#tp-tokens-shown", "2 of 932")
    page.locator("#tp-tokens-block input").fill("5000")
    page.locator("#tp-tokens-block input").press("Enter")
    wait_for_text(page, "#tp-tokens-shown", "932 of 932")
    page.click("#tp-tokens-previous")
    wait_for_text(page, "#tp-tokens-shown", "931 of 932")
    page.locator("#tp-tokens-which input").click()
    page.locator("[role=option]", has_text="Trimmed at the cutoff").first.click()
    wait_for_text(page, "#tp-tokens-shown", "No block here: Trimmed at the cutoff")
    write(page, "lora_name", "x")
    choose(page, "datasetJSONL", "None")
    page.click("#tp-verify")
    page.wait_for_selector("#tp-report .tp-problems")
    assert not page.locator("#tp-tokens").is_visible()


def test_a_long_verify_says_how_far_it_is_and_can_be_called_off(home, open_page):
    rows = [
        {"instruction": f"Tell me about the fox number {n}", "input": "", "output": f"It is the fox that has the number {n}. " * 20}
        for n in range(40_000)
    ]
    (home.datasets / "many.json").write_text(json.dumps(rows), encoding="utf-8")
    page = open_page(home)
    fill_in(page, "", dataset="many")
    page.click("#tp-verify")
    page.wait_for_selector("#tp-report .tp-running .tp-bar")
    wait_for_text(page, "#tp-report", "many.json")
    page.click("#tp-cancel")
    wait_for_text(page, "#tp-report", "Not verified: called off")
    assert not page.locator("#tp-cancel").is_visible()
    picture(page, f"called-off-{home.name}")
    choose(page, "dataset", "sample-alpaca")
    page.click("#tp-verify")  # and the next one is not held up
    wait_for_text(page, "#tp-report", "1,200 JSON rows")
    (home.datasets / "many.json").unlink()


def test_repeats_are_shown_and_left_out_with_one_click(home, open_page):
    said = "The hedgehog curls up into a ball of spines when a fox or a badger comes too near to it at night"
    rows = [{"instruction": f"What does animal number {n} do?", "input": "", "output": f"It eats {n} apples."} for n in range(30)]
    rows += [rows[3], {"instruction": "Why?", "input": "", "output": said}, {"instruction": "Why?", "input": "", "output": f"{said} again"}]
    (home.datasets / "twice.json").write_text(json.dumps(rows), encoding="utf-8")
    (home.datasets / "twice-eval.json").write_text(json.dumps(rows[7:9]), encoding="utf-8")
    page = open_page(home)
    fill_in(page, "", dataset="twice")
    choose(page, "eval_dataset", "twice-eval")
    page.click("#tp-verify")
    wait_for_text(page, "#tp-report", "Worth a look")
    report = page.locator("#tp-report").inner_text()
    assert "row 31" in report and "33 JSON rows" in report
    picture(page, f"repeats-{home.name}")
    assert page.locator("#tp-leave-out").inner_text() == "Leave these 4 rows out"
    page.click("#tp-leave-out")
    wait_for_text(page, "#tp-report", "29 JSON rows")
    assert page.locator("#tp-leave_out_repeats input").is_checked() and not page.locator("#tp-leave-out").is_visible()
    assert "4 rows left out as repeats" in page.locator("#tp-report").inner_text()


def test_rows_that_do_not_fit_are_named_or_skipped(home, open_page):
    (home.datasets / "odd.json").write_text(json.dumps([{"instruction": "a", "output": "b"}, {"question": "c"}]), encoding="utf-8")
    page = open_page(home)
    fill_in(page, "", dataset="odd")
    page.click("#tp-verify")
    wait_for_text(page, "#tp-report", "row 2: it has text under question")
    page.locator("#tp-skip_unfit_rows input").check()
    page.click("#tp-verify")
    wait_for_text(page, "#tp-report", "1 row left out, since")
    choose(page, "dataset", "owner/name")  # of the hub, which cannot be reached from the tests
    page.click("#tp-verify")
    wait_for_text(page, "#tp-report", "“owner/name” could not be loaded, since huggingface.co cannot be reached from here")


def test_the_slices_are_seen_and_follow_the_controls(home, open_page):
    tale = "One fox ran over the hill. It saw a hen, e.g. a brown one. " * 40
    (home.datasets / "hills.txt").write_text(f"{tale}\n\n\nShort.\n\n\n{tale}", encoding="utf-8")
    page = open_page(home)
    tabs = page.locator("#tp-data button[role=tab]")
    tabs.filter(has_text="Text file").click()
    page.click("#tp-slices")
    wait_for_text(page, "#tp-slices-shown", "Text file is not chosen")
    choose_data(page, "raw_text_file", "hills")
    wait_for_text(page, "#tp-slices-shown", "Part 1 of 2")
    shown = page.locator("#tp-slices-shown")
    assert "0.0% of the text is never trained" in shown.inner_text() and shown.locator(".tp-over").count() > 3
    assert shown.locator(".tp-cut").count() == 2 and shown.locator(".tp-bars i").count() > 1
    picture(page, f"slices-{home.name}")
    page.click("#tp-slices-next")
    wait_for_text(page, "#tp-slices-shown", "Part 2 of 2")
    page.locator("#tp-precize_slicing_overlap input").uncheck()
    wait_for_text(page, "#tp-slices-shown", "0.0% more than once")
    assert shown.locator(".tp-over").count() == 1  # in the legend
    write(page, "min_chars", "10")
    page.locator("#tp-min_chars input").press("Tab")
    page.wait_for_selector("#tp-slices-shown .tp-block .tp-never")
    assert shown.locator(".tp-block .tp-never").first.inner_text() == "Short."
    write(page, "hard_cut_string", "")
    page.wait_for_function("() => document.querySelectorAll('#tp-slices-shown .tp-cut').length === 0")
    choose(page, "raw_text_file", "None")
    wait_for_text(page, "#tp-slices-shown", "Text file is not chosen")


def test_the_schedule_is_seen_before_the_start_and_follows_the_controls(home, open_page):
    page = open_page(home)
    fill_in(page, "")
    page.locator("#tp-plan button").first.click()
    wait_for_text(page, "#tp-plan-shown", "The number of steps is not known yet")
    page.click("#tp-verify")
    wait_for_text(page, "#tp-plan-shown", "linear")
    assert page.locator("#tp-plan-shown svg polyline, #tp-plan-shown svg path").count() > 0
    choose(page, "lr_scheduler_type", "FP_half_time_annealing")
    wait_for_text(page, "#tp-plan-shown", "FP_half_time_annealing")
    choose(page, "plan-beside", "cosine")
    wait_for_text(page, "#tp-plan-shown", "cosine")
    picture(page, f"schedule-{home.name}")
    write(page, "learning_rate", "fast")
    wait_for_text(page, "#tp-plan-shown", "Learning Rate is “fast”")


def test_presets_and_runs_beside_each_other(home, open_page):
    for name, rank in (("slow", 8), ("quick", 16)):
        folder = home.loras / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
        (folder / "training_parameters.json").write_text(json.dumps({"lora_name": name, "lora_rank": rank}), encoding="utf-8")
        graph = [{"current_steps": n, "loss": 3 - n / rank, "learning_rate": 1e-4, "epoch": n / 10} for n in range(1, 20)]
        (folder / "training_graph.json").write_text(json.dumps(graph), encoding="utf-8")
    page = open_page(home)
    write(page, "learning_rate", "1e-5")
    page.locator("#tp-presets button").first.click()
    page.click("#tp-preset-save")
    wait_for_text(page, "#tp-preset-said", "is empty; type a name")
    write(page, "preset-name", "gentle")
    page.click("#tp-preset-save")
    wait_for_text(page, "#tp-preset-said", "The preset “gentle” is saved")
    page.click("#tp-preset-save")
    wait_for_text(page, "#tp-preset-said", "“gentle” is there already")
    page.click("#tp-preset-defaults")
    wait_for_text(page, "#tp-preset-said", "is as it was at first")
    rate = page.locator("#tp-learning_rate textarea, #tp-learning_rate input").first
    assert rate.input_value() == "3e-4"
    choose(page, "preset", "gentle")
    page.click("#tp-preset-load")
    wait_for_text(page, "#tp-preset-said", "“gentle” are filled in")
    assert rate.input_value() == "1e-5"
    page.click("#tp-preset-remove")
    wait_for_text(page, "#tp-preset-said", "The preset “gentle” is removed")
    page.locator("#tp-compare button").first.click()
    for name in ("slow", "quick"):
        page.locator("#tp-compare-runs input").click()
        page.locator("#tp-compare-runs [role=option], [role=listbox] [role=option]", has_text=name).first.click()
    wait_for_text(page, "#tp-compare-shown", "LoRA Rank")
    assert "slow" in page.locator("#tp-compare-shown").inner_text() and page.locator("#tp-compare-shown svg").count() > 0
    picture(page, f"compare-{home.name}")


def test_the_tools(home, open_page):
    rows = [{"instruction": f"ask {n}", "input": "", "output": f"say {n}"} for n in range(20)]
    (home.datasets / "mine.json").write_text(json.dumps(rows), encoding="utf-8")
    (home.datasets / "story.txt").write_text("One.\n\n\nTwo.", encoding="utf-8")
    page = open_page(home)
    page.locator("#tp-data button[role=tab]", has_text="Tools").click()
    page.click("#tp-split")
    wait_for_text(page, "#tp-tools-said", "Dataset is not chosen")
    choose(page, "split-file", "mine.json")
    page.click("#tp-split")
    wait_for_text(page, "#tp-tools-said", "“mine_train.json” and “mine_eval.json” are written and chosen")
    assert len(json.loads((home.datasets / "mine_eval.json").read_text(encoding="utf-8"))) == 2
    page.click("#tp-split")
    wait_for_text(page, "#tp-tools-said", "are there already. Tick Overwrite")
    choose(page, "convert-json-file", "mine")
    page.click("#tp-convert-json")
    wait_for_text(page, "#tp-tools-said", "“mine.jsonl” is written: 20 chats")
    choose(page, "convert-text-file", "story")
    write(page, "convert-text-prompt", "Tell me a story")
    picture(page, f"tools-{home.name}")
    page.click("#tp-convert-text")
    wait_for_text(page, "#tp-tools-said", "“story.jsonl” is written: 2 chats")
    page.locator("#tp-data button[role=tab]", has_text="JSON Dataset").click()
    assert page.locator("#tp-dataset input").first.input_value() == "mine_train"
    assert page.locator("#tp-eval_dataset input").first.input_value() == "mine_eval"
    choose(page, "format", "alpaca-format")
    page.locator("#tp-data button[role=tab]", has_text="Tools").click()
    page.click("#tp-dump")
    wait_for_text(page, "#tp-tools-said", "“mine_train_train_dataset.json” is in the logs folder: 18 blocks")
    assert len(json.loads((home.user_data / "logs" / "mine_train_train_dataset.json").read_text(encoding="utf-8"))) == 18


def test_text_and_rows_together_and_a_csv(home, open_page):
    (home.datasets / "quiz.csv").write_text("q,a\nsay 1,hello 1\nsay 2,hello 2\n", encoding="utf-8")
    page = open_page(home)
    fill_in(page, "")
    tabs = page.locator("#tp-data button[role=tab]")
    tabs.filter(has_text="Text file").click()
    choose(page, "raw_text_file", "sample-text")
    page.click("#tp-verify")
    wait_for_text(page, "#tp-report", "tick Hybrid Training for a text and a dataset together")
    tabs.filter(has_text="Hybrid").click()
    page.locator("#tp-hybrid_training input").check()
    page.locator("#tp-hybrid_data_ratio input[type=number]").fill("50")
    page.locator("#tp-hybrid_data_ratio input[type=number]").press("Enter")
    page.click("#tp-verify")
    wait_for_text(page, "#tp-report", "600 JSON rows")
    assert "text blocks" in page.locator("#tp-report").inner_text()
    page.locator("#tp-tokens-block input").fill("100000")
    page.locator("#tp-tokens-block input").press("Enter")
    wait_for_text(page, "#tp-tokens-shown", "text block")  # the rows first, then the text
    picture(page, f"hybrid-{home.name}")
    page.locator("#tp-hybrid_training input").uncheck()
    tabs.filter(has_text="Text file").click()
    choose(page, "raw_text_file", "None")
    tabs.filter(has_text="JSON Dataset").click()
    choose(page, "dataset", "quiz")
    write(page, "column_mapping", "instruction=q, output=a")
    page.click("#tp-verify")
    wait_for_text(page, "#tp-report", "2 JSON rows")
    write(page, "column_mapping", "instruction=question")
    page.click("#tp-verify")
    wait_for_text(page, "#tp-report", "“quiz.csv” has no column question; it has q, a")


def test_a_file_is_downloaded_into_the_datasets(home, open_page, tmp_path):
    import functools
    import threading
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    (tmp_path / "fetched.txt").write_text("a text", encoding="utf-8")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        page = open_page(home)
        page.locator("#tp-data button[role=tab]", has_text="URL").click()
        write(page, "url", "nowhere")
        page.click("#tp-url-download")
        wait_for_text(page, "#tp-url-said", "is not an address that begins with http")
        write(page, "url", f"http://127.0.0.1:{server.server_port}/fetched.txt")
        page.click("#tp-url-download")
        wait_for_text(page, "#tp-url-said", "“fetched.txt” is in the folder of datasets (6 bytes)")
        assert (home.datasets / "fetched.txt").read_text(encoding="utf-8") == "a text"
        page.locator("#tp-data button[role=tab]", has_text="Text file").click()
        choose(page, "raw_text_file", "fetched")
        assert page.locator("#tp-raw_text_file input").first.input_value() == "fetched"
    finally:
        server.shutdown()
        server.server_close()


def test_wrong_rows_are_named_on_the_page(home, open_page):
    (home.datasets / "wrong.json").write_text('[{"instruction": "a", "output": "b"}, {"q": "c"}]', encoding="utf-8")
    page = open_page(home)
    fill_in(page, "wrong", dataset="wrong")
    page.click("#tp-start")
    wait_for_status(page, "Failed")
    assert "“wrong.json”, row 2: it has text under q" in status(page)
    picture(page, f"failed-{home.name}")


def test_interrupt_checkpoint_reload_and_a_second_browser(home, open_page):
    page = open_page(home)
    fill_in(page, "long")
    write(page, "epochs", "40")
    page.click("#tp-start")
    wait_for_status(page, "Training")
    page.wait_for_selector("#tp-chart polyline.tp-smooth", timeout=60_000)

    reload(page, home)  # the run goes on, and the page shows it with its settings
    page.wait_for_selector("#tp-chart polyline.tp-smooth", timeout=60_000)
    assert "Training" in status(page) and page.locator("#tp-start").is_disabled()
    page.wait_for_function("document.querySelector('#tp-lora_name textarea, #tp-lora_name input')?.value === 'long'")
    assert page.locator("#tp-epochs input").input_value() == "40"

    other = open_page(home, width=800, theme="dark")
    other.wait_for_selector("#tp-chart polyline.tp-smooth", timeout=60_000)
    picture(other, f"second-browser-{home.name}")
    other.click("#tp-checkpoint")
    folder = home.loras / "long"
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


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="kills a group of processes, and this system has none")
def test_a_browser_that_vanishes_takes_nothing_with_it(home, open_page, browser, tmp_path):
    with subprocess.Popen(
        [BROWSER, *FLAGS, "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={tmp_path}", "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    ) as chromium:  # fmt: skip
        try:
            port = wait_for_file(tmp_path / "DevToolsActivePort").split()[0]
            page = browser.browser_type.connect_over_cdp(f"http://127.0.0.1:{port}").new_page()
            page.goto(home.url)
            show_tab(page, home)
            connected(page)
            fill_in(page, "orphan")
            write(page, "epochs", "40")
            page.click("#tp-start")
            wait_for_status(page, "Training")
        finally:
            os.killpg(chromium.pid, signal.SIGKILL)  # no “goodbye”: neither of the page nor of its connections
    logged = len(diary(home, "orphan"))
    for _ in range(200):
        if len(diary(home, "orphan")) >= logged + 20:
            break
        time.sleep(0.1)
    assert len(diary(home, "orphan")) >= logged + 20
    other = open_page(home)
    wait_for_status(other, "Training", 30, name="orphan")
    assert other.locator("#tp-epochs input").input_value() == "40"
    other.click("#tp-interrupt")
    wait_for_status(other, "Interrupted", 60)
    assert (home.loras / "orphan" / "adapter_model.safetensors").is_file()


def wait_for_file(path):
    for _ in range(300):
        if path.exists() and path.read_text(encoding="utf-8").strip():
            return path.read_text(encoding="utf-8")
        time.sleep(0.1)
    raise AssertionError(f"{path.name} was not written")


def few_rows(home, name):
    """40 rows, which are 10 steps an epoch, and 6 to evaluate on; faster than the samples."""
    rows = [{"instruction": f"Tell me of <b>fox</b> {n}", "input": "", "output": f"Fox {n} eats {n} hens."} for n in range(40)]
    (home.datasets / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    (home.datasets / f"{name}-eval.json").write_text(json.dumps(rows[:6]), encoding="utf-8")


def diary(home, name):
    return [json.loads(line) for line in (home.loras / name / "run.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_run_is_steered_from_any_page(home, open_page):
    few_rows(home, "steered")
    home.fault(slow=0.3)
    page = open_page(home)
    fill_in(page, "steered", dataset="steered")
    choose(page, "eval_dataset", "steered-eval")
    pick(page, "lr_scheduler_type", "constant")
    write(page, "epochs", "10")
    assert not page.locator("#tp-steer").is_visible()
    page.click("#tp-start")
    wait_for_status(page, "Training", 60)
    page.click("#tp-rate-half")
    page.wait_for_selector("#tp-commands li:has-text('step'):has-text('learning rate × 0.5')", timeout=60_000)
    (home.datasets / "steered.json").unlink()  # it was read, so the run does not need it any more
    for factor, words in (("0", "Learning rate × is “0”"), ("", "Learning rate × is empty")):
        page.locator("#tp-rate-factor input").fill(factor)
        page.click("#tp-rate-apply")
        wait_for_text(page, "#tp-steer-said", words)
    page.click("#tp-rate-double")
    wait_for_text(page, "#tp-commands", "learning rate × 2")
    page.locator("#tp-rate-factor input").fill("3")
    page.click("#tp-rate-apply")
    page.click("#tp-add-epoch")
    page.click("#tp-evaluate")
    page.locator("#tp-time_budget_minutes input").fill("120")
    for words in ("learning rate × 2", "learning rate × 3", "an epoch more: it ends at step 110", "evaluate", "time budget of 120 minutes"):
        wait_for_text(page, "#tp-commands", words)
    picture(page, f"steered-{home.name}")
    page.evaluate("document.querySelector('#tp-start').disabled = false")
    page.evaluate("document.querySelector('#tp-start').click()")  # as a page that does not know of the run would
    wait_for_text(page, "#tp-report", "Not started: “steered” is being trained")

    other = open_page(home, width=400, theme="dark")  # sees all that, and steers too
    wait_for_text(other, "#tp-commands", "learning rate × 3")
    assert other.locator("#tp-time_budget_minutes input").input_value() == "120"
    picture(other, f"steered-narrow-{home.name}")
    other.locator("#tp-cool-steps input").fill("3")
    other.click("#tp-cool")
    wait_for_text(page, "#tp-commands", "cool down and finish")
    page.close()
    other.close()
    home.fault()
    page = open_page(home)  # all pages were closed, and the run went on
    wait_for_status(page, "Done", 60, "steered")
    assert not page.locator("#tp-steer").is_visible()
    told = diary(home, "steered")
    commands = [(event["kind"], event.get("value")) for event in told if event["event"] == "command"]
    assert sorted(commands, key=str) == [
        ("add an epoch", None), ("cool down", 3), ("evaluate", None), ("scale the learning rate", 0.5), ("scale the learning rate", 2),
        ("scale the learning rate", 3), ("time_budget_minutes", 120),
    ]  # fmt: skip
    rates = [event["learning_rate"] for event in told if event["event"] == "log" and "loss" in event]
    assert [round(rate * 1e4, 3) for rate in dict.fromkeys(rates)] == [3.0, 1.5, 9.0, 6.0]  # the second 3.0 stood before
    measured = [event["step"] for event in told if event["event"] == "log" and "eval_loss" in event]
    assert len(measured) == 2 and measured[1] == told[-1]["step"] < 110


def test_a_crash_is_told_and_the_next_run_is_a_good_one(home, open_page):
    few_rows(home, "crashes")
    page = open_page(home)
    fill_in(page, "crashes", dataset="crashes")
    write(page, "epochs", "0.6")
    for kind, words in (("crash", "Failed at step 3 of 6: a fault was injected"), ("memory", "out of memory at step 3 of 6")):
        home.fault(kind=kind, at=4)
        page.click("#tp-start")
        wait_for_text(page, "#tp-status", words, 60)
        picture(page, f"{kind}-{home.name}")
        assert page.locator("#tp-start").is_enabled() and not page.locator("#tp-resume").is_visible()
    open_page.said[home] = len(home.said())  # the log tells of the faults
    home.fault()
    page.click("#tp-start")
    wait_for_status(page, "Done", 60, "crashes")
    assert (home.loras / "crashes" / "adapter_model.safetensors").is_file()
    page.locator("#tp-chart-axis label", has_text="epoch").click()
    page.locator("#tp-chart svg[aria-label='Loss by epoch']").wait_for()
    page.locator("#tp-chart-beside input").click()
    page.locator("#tp-chart-beside [role=option], [role=listbox] [role=option]", has_text="crashes").first.click()
    page.locator("#tp-chart .tp-other").first.wait_for(state="attached")
    picture(page, f"chart-{home.name}")


def test_after_a_restart_the_last_run_is_shown_and_goes_on(home, open_page):
    few_rows(home, "cut")
    home.fault(slow=0.4)
    page = open_page(home)
    fill_in(page, "cut", dataset="cut")
    pick(page, "lr_scheduler_type", "constant")
    write(page, "epochs", "3")
    write(page, "save_steps", "2")
    page.click("#tp-start")
    wait_for_status(page, "Training", 60)
    for _ in range(300):
        if any(event["event"] == "checkpoint" and event["step"] == 4 for event in diary(home, "cut")):
            break
        time.sleep(0.05)
    page.close()
    home.kill()
    home.start()

    page = open_page(home)
    wait_for_text(page, "#tp-status", "the program ended before the run did")
    assert "Cut off at step" in status(page) and page.locator("#tp-chart polyline.tp-smooth").count() == 1
    wait_for_text(page, "#tp-outlook", "“cut” can go on from step")
    assert page.locator("#tp-go-on").inner_text() == "Resume “cut”" and not page.locator("#tp-go-on-half").is_visible()
    picture(page, f"cut-off-{home.name}")
    write(page, "lora_name", "cut")  # with other settings
    wait_for_text(page, "#tp-outlook", "Start cannot go on with what is chosen")
    misfits = page.locator("#tp-outlook .tp-fits").first.inner_text()
    assert "Dataset\tcut\tNone\tdoes not fit" in misfits and "LR Scheduler\tconstant\tlinear\tdoes not fit" in misfits
    picture(page, f"does-not-fit-{home.name}")
    page.click("#tp-go-on-fill")
    wait_for_text(page, "#tp-outlook", "Start goes on with the unfinished run “cut”")
    page.click("#tp-verify")
    wait_for_text(page, "#tp-outlook .tp-fold", "settings and facts fit.")
    page.wait_for_function("!document.querySelector('#tp-outlook .tp-fold').innerText.includes('Verify does so now')")

    write(page, "lora_name", "")
    page.wait_for_selector("#tp-go-on")
    home.fault(kind="nan", at=27)
    page.click("#tp-go-on")
    wait_for_text(page, "#tp-status", "Failed: loss is nan at step 27", 60)
    assert "Tell me of <b>fox</b>" in status(page)  # as text
    wait_for_text(page, "#tp-outlook", "“cut” can go on from step 26 of 30")
    picture(page, f"astray-{home.name}")
    home.fault()
    page.click("#tp-go-on-half")
    wait_for_status(page, "Done", 60, "cut")
    assert not page.locator("#tp-resume").is_visible()
    write(page, "lora_name", "")
    write(page, "lora_name", "cut")
    wait_for_text(page, "#tp-outlook", "Start trains on with the LoRA “cut”, from step 30")
    rates = {event["step"]: event["learning_rate"] for event in diary(home, "cut") if "learning_rate" in event}
    assert (rates[26], rates[27], rates[30]) == (3e-4, 1.5e-4, 1.5e-4)
    graph = json.loads((home.loras / "cut" / "training_graph.json").read_text(encoding="utf-8"))
    assert [entry["current_steps"] for entry in graph] == list(range(1, 31))


def test_a_run_of_another_kind_of_model_is_refused_in_words(home, open_page):
    page = open_page(home)
    page.locator("#tp-load button").first.click()
    choose(page, "load-model", "gpt2")
    page.click("#tp-load-button")
    wait_for_text(page, "#tp-model-line", "GPT2LMHeadModel")
    fill_in(page, "gpt")
    page.click("#tp-start")
    wait_for_text(page, "#tp-status", "GPT2LMHeadModel has no layer of these names. Choose all-linear")
    choose(page, "load-model", "demo")
    page.click("#tp-load-button")
    wait_for_text(page, "#tp-model-line", "1.05 million")


def test_another_model_is_loaded_from_the_page(home, open_page):
    page = open_page(home)
    page.locator("#tp-load button").first.click()
    choose(page, "load-model", "gpt2")
    page.click("#tp-load-button")
    wait_for_text(page, "#tp-model-line", "GPT2LMHeadModel")
    choose(page, "load-model", "/nowhere/at/all")
    page.click("#tp-load-button")
    wait_for_text(page, "#tp-model-line", "no folder")
    reload(page, home)
    wait_for_text(page, "#tp-model-line", "GPT2LMHeadModel")  # a wrong name costs nothing
    page.locator("#tp-load button").first.click()
    choose(page, "load-model", "demo")
    page.click("#tp-load-button")
    wait_for_text(page, "#tp-model-line", "1.05 million")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 800, 400])
def test_the_page_fits_its_window(home, open_page, width, theme):
    page = open_page(home, width=width, theme=theme)
    page.locator("#tp-advanced button").first.click()
    time.sleep(0.5)
    picture(page, f"page-{home.name}-{width}-{theme}")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    assert page.locator("#tp-optimizer").is_visible()


def test_the_page_is_not_open_to_other_machines(tmp_path):
    import psutil

    home = Standalone(tmp_path)
    try:
        listening = [open_.laddr for open_ in psutil.Process(home.process.pid).net_connections(kind="inet") if open_.status == "LISTEN"]
        assert listening and {address.ip for address in listening} == {"127.0.0.1"}
        assert "Other machines" not in home.said()
    finally:
        home.stop()


def test_listen_says_what_it_means_and_auth_asks(tmp_path):
    import urllib.error
    import urllib.request

    (tmp_path / "a").mkdir()
    open_home = Standalone(tmp_path / "a", "--listen", "--model", "/nowhere")
    open_home.stop()
    assert "without --auth everyone who can reach it can" in open_home.said() and "The page opens without a model" in open_home.said()
    (tmp_path / "b").mkdir()
    (tmp_path / "password").write_text("anna:secret\n", encoding="utf-8")
    guarded = Standalone(tmp_path / "b", "--auth-file", str(tmp_path / "password"))
    try:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(guarded.url + "/config", timeout=10)
    finally:
        guarded.stop()


def test_memory_before_the_start_and_samples_while_it_runs(home, open_page):
    page = open_page(home)
    fill_in(page, "asked")
    page.click("#tp-verify")
    wait_for_text(page, "#tp-memory", "beside the loaded model", 60)
    assert "4 rows of 80 tokens" in page.locator("#tp-memory").inner_text()
    write(page, "micro_batch_size", "8")
    page.locator("#tp-micro_batch_size input").first.blur()
    wait_for_text(page, "#tp-memory", "8 rows of 80 tokens")
    picture(page, f"estimate-{home.name}")
    page.click("#tp-dry-run")
    page.click("#tp-dry-run-cancel")
    wait_for_text(page, "#tp-memory", "The dry run was called off", 120)
    page.click("#tp-dry-run")
    wait_for_text(page, "#tp-memory", "at the highest moment", 120)
    measured = page.locator("#tp-memory").inner_text()
    assert "450 steps" in measured and "Whole run" in measured and not page.locator("#tp-dry-run-cancel").is_visible()
    assert not (home.loras / "dry run").exists() and "dry run" not in status(page)
    picture(page, f"dry-run-{home.name}")

    write(page, "epochs", "0.2")
    write(page, "sample_prompts", "What does the bear eat?\nWhat is <b>bold</b>?")
    write(page, "sample_steps", "10")
    page.click("#tp-start")
    wait_for_status(page, "Training", name="asked")
    wait_for_text(page, "#tp-samples", "Step 10", 60)
    first = page.locator("#tp-samples td").first.inner_text()
    reload(page, home)
    wait_for_text(page, "#tp-samples", "Step 10", 60)
    assert page.locator("#tp-samples td").first.inner_text() == first == "The bear eats honey."
    wait_for_status(page, "Done", name="asked")
    wait_for_text(page, "#tp-samples", "Step 30")
    assert page.locator("#tp-samples tbody th").all_inner_texts() == ["What does the bear eat?", "What is <b>bold</b>?"]
    for width, theme in ((1440, "dark"), (480, "light")):
        other = open_page(home, width=width, theme=theme)
        wait_for_text(other, "#tp-samples", "Step 30")
        assert other.evaluate("document.documentElement.scrollWidth") <= width
        picture(other, f"samples-{home.name}-{width}-{theme}")
    other.locator("#tp-samples-earlier button").first.click()
    choose(other, "samples-run", "asked")
    wait_for_text(other, "#tp-samples-shown", "Step 20")
