"""What only the web UI has: its loading of extensions, its model, lock, adapters and tabs beside ours. Against the stand-in.

The page's own features are in test_page.py, which runs in both homes.
"""

import json
import shutil
import subprocess
import time

import pytest
from homes import HERE, NO_WEBUI, ROOT, WEBUI_PYTHON, Webui, make_webui
from pages import (
    BROWSER,
    NO_BROWSER,
    choose,
    choose_data,
    fill_in,
    go_again,
    host_tab,
    picture,
    reload,
    show_tab,
    status,
    wait_for_status,
    wait_for_text,
    write,
)

pytestmark = pytest.mark.skipif(not WEBUI_PYTHON.exists(), reason=NO_WEBUI)


# Loading, without a browser


LOADED = """
import sys
sys.argv = ["server.py", "--extensions", sys.argv[1], *sys.argv[2:]]
sys.path[:0] = [{standin!r}, "."]
{before}
from modules import extensions, shared
extensions.available_extensions[:] = extensions.find()
import gradio as gr
for restart in range(2):
    extensions.load_extensions()
    with gr.Blocks(css=extensions.apply_extensions("css")) as shared.gradio["interface"]:
        extensions.create_extensions_tabs()
shown = shared.gradio["interface"].config["components"]
said = [str(part["props"].get("value")) for part in shown if part["type"] == "html"]
assert list(extensions.state) == [sys.argv[2]], extensions.state
print("TAB" if any(part["props"].get("elem_id") == "tp-start" for part in shown) else "PANEL " + " ".join(said))
"""


def loaded(folder, name, *options, place="user_data/extensions", before=""):
    """Load the extension twice, as an interface restart does, and say what its tab shows; `before` runs first, to break something."""
    make_webui(folder, place, name)
    code = LOADED.format(standin=str(HERE / "standin"), before=before)
    done = subprocess.run([str(WEBUI_PYTHON), "-c", code, name, *options], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("name", ["Training_PRO", "training-pro main", "Lora Training (new) ü"])
@pytest.mark.parametrize(
    ("place", "options"),
    [("extensions", ()), ("user_data/extensions", ()), ("user_data/extensions", ("--as-before-2026-03",))],
)
def test_it_loads_from_each_folder_under_any_name(tmp_path, name, place, options):
    assert loaded(tmp_path, name, *options, place=place) == "TAB"


def test_a_dot_in_the_folders_name_where_the_web_ui_takes_it(tmp_path):
    assert loaded(tmp_path, "training_pro.v2") == "TAB"


def breaks(name, how):
    """Python that makes the import of a package fail, or say that there is none."""
    return f"""
import importlib.abc, importlib.machinery
class Broken(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {name!r}:
            {how}
    def create_module(self, spec): return None
    def exec_module(self, module): raise OSError("libcudart.so.13 is missing")
sys.meta_path.insert(0, Broken())
"""


ABSENT = "raise ModuleNotFoundError(f'No module named {name!r}', name=name)"
UNUSABLE = "return importlib.machinery.ModuleSpec(name, self)"


@pytest.mark.parametrize("name", ["matplotlib", "bitsandbytes"])
@pytest.mark.parametrize("how", [ABSENT, UNUSABLE], ids=["absent", "broken"])
def test_the_tab_is_there_without_what_it_can_do_without(tmp_path, name, how):
    # Gradio 4.37.2 itself imports matplotlib, the host's fork does not: it is taken away after gradio came.
    assert loaded(tmp_path, "training_pro", before="import gradio\n" + breaks(name, how)) == "TAB"


@pytest.mark.parametrize("name", ["torch", "transformers", "peft", "accelerate", "datasets", "safetensors"])
def test_what_is_missing_has_a_panel_with_the_command(tmp_path, name):
    said = loaded(tmp_path, "training_pro", before=breaks(name, ABSENT))
    assert said.startswith("PANEL") and f"Training PRO needs {name}" in said and f"{WEBUI_PYTHON}&quot; -m pip install {name}</pre>" in said


@pytest.mark.parametrize("name", ["torch", "transformers", "peft", "datasets"])
def test_what_is_broken_does_not_keep_the_tab_away(tmp_path, name):
    """Nothing of it is imported for the page; Start names it (test_needs.py)."""
    assert loaded(tmp_path, "training_pro", before=breaks(name, UNUSABLE)) == "TAB"


def test_the_portable_build_says_why_there_is_no_training(tmp_path):
    said = loaded(tmp_path, "training_pro", "--portable")
    assert said.startswith("PANEL") and "portable build of text-generation-webui, which cannot train" in said and "full version" in said


def test_formats_are_made_and_the_users_data_is_left_alone(tmp_path):
    loaded(tmp_path, "training_pro")
    training = tmp_path / "user_data" / "training"
    assert {"alpaca-format.json", "vicuna-format.json"} <= {file.name for file in (training / "formats").iterdir()}
    assert {file.name for file in (training / "datasets").iterdir()} == {"put-trainer-datasets-here.txt"} | {
        file.name for file in (ROOT / "datasets").iterdir()
    }


# In the browser


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    served = Webui(tmp_path_factory.mktemp("webui"))
    yield served
    served.stop()


def chat(page, text):
    host_tab(page, "Chat")
    page.locator("#chat-input textarea").fill(text)
    page.click("#Generate")


def answer(page, seconds=60):
    page.wait_for_function("() => /Model: .*[a-zA-Z]/s.test(document.querySelector('#chat-history textarea').value)", timeout=seconds * 1000)
    return page.locator("#chat-history textarea").input_value().split("Model: ")[-1].strip()


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
class TestInTheBrowser:
    def test_no_id_twice_and_none_of_the_built_in_tab(self, home, open_page):
        page = open_page(home)
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map(element => element.id)")
        ours = [name for name in ids if name.startswith("tp-")]
        assert len(ours) > 40 and len(ours) == len(set(ours))
        assert {"training-tab", "lora-train-tab", "evaluate-tab"} <= set(ids) and len([name for name in ids if name == "training-tab"]) == 1

    def test_a_chat_waits_for_the_run_and_is_told_so_and_goes_on_with_the_base_model(self, home, open_page):
        page = open_page(home)
        chat(page, "What does the bear eat?")
        before = answer(page)
        show_tab(page, home)
        fill_in(page, "holds")
        write(page, "epochs", "40")
        page.click("#tp-start")
        wait_for_status(page, "Training")
        chat(page, "What does the bear eat?")
        page.wait_for_selector(".toast-body.info")
        assert "Training PRO is training “holds” with this model" in page.locator(".toast-body.info").inner_text()
        picture(page, "chat-waits")
        time.sleep(2)
        assert page.locator("#chat-history textarea").input_value().endswith("…\n")  # not answered by a half-trained model
        show_tab(page, home)
        page.click("#tp-interrupt")
        wait_for_status(page, "Interrupted", 60)
        host_tab(page, "Chat")
        assert answer(page) == before  # at once, with no reload, as if nothing had been

    def test_an_adapter_trained_here_changes_the_hosts_answers_and_the_next_run_needs_no_reload(self, home, open_page):
        page = open_page(home)
        chat(page, "What does the bear eat?")
        before = answer(page)
        show_tab(page, home)
        write(page, "lora_name", "ahoy")
        write(page, "epochs", "1")
        choose_data(page, "datasetJSONL", "sample-chat")  # its rows are chats, as the host's are
        page.click("#tp-start")
        wait_for_status(page, "Done", name="ahoy")
        loads = home.said().count('Loading "demo"')
        host_tab(page, "Model")
        choose(page, "lora-menu", "ahoy", prefix="")
        page.click("#lora-apply")
        wait_for_text(page, "#model-status", "Successfuly applied")
        chat(page, "What does the bear eat?")
        page.wait_for_function("before => !document.querySelector('#chat-history textarea').value.endsWith(before + '\\n')", arg=before)
        assert answer(page) != before
        show_tab(page, home)
        wait_for_text(page, "#tp-model-line", "The model has the LoRA ahoy on it")
        picture(page, "model-with-a-lora")
        host_tab(page, "Model")
        page.locator("#lora-menu [aria-label^='Remove'], #lora-menu .token-remove").first.click()
        page.click("#lora-apply")
        show_tab(page, home)
        wait_for_text(page, "#tp-model-line", "1.05 million")
        write(page, "lora_name", "again")
        write(page, "epochs", "0.1")
        page.click("#tp-start")
        wait_for_status(page, "Done", name="again")
        assert home.said().count('Loading "demo"') == loads

    def test_the_built_in_tab_works_beside_ours_and_its_lora_is_copied_and_gone_on_from(self, home, open_page):
        page = open_page(home)
        host_tab(page, "Training")
        page.locator("#builtin-name textarea").fill("poet")
        page.click("#builtin-start")
        wait_for_text(page, "#builtin-output", "Done! LoRA saved")
        show_tab(page, home)
        page.click("#tp-refresh")
        choose(page, "copy_from", "poet")
        wait_for_text(page, "#tp-report", "The settings of “poet” are filled in")
        shown = {
            key: page.locator(f"#tp-{key} input").first.input_value()
            for key in ("lora_rank", "lora_alpha", "micro_batch_size", "grad_accumulation", "epochs")
        }
        assert shown == {"lora_rank": "8", "lora_alpha": "16", "micro_batch_size": "4", "grad_accumulation": "2", "epochs": "2"}
        write(page, "epochs", "0.05")
        picture(page, "copied")
        page.click("#tp-start")  # the model is dirty from the built-in training: it is loaded again first, and Override is off
        wait_for_status(page, "Done", name="poet")
        assert "goes on from the LoRA “poet” (step 9" in status(page)
        assert list((home.loras / "poet").glob("Backup-*/adapter_model.safetensors"))
        parameters = json.loads((home.loras / "poet" / "training_parameters.json").read_text(encoding="utf-8"))
        assert (parameters["datasetJSONL"], parameters["training_projection"], parameters["train_on_inputs"]) == ("sample-chat", "all-linear", False)

    def test_a_llama_cpp_model_offers_the_loader_that_can_be_trained(self, home, open_page):
        (home.user_data / "models" / "demo-Q4.gguf").write_bytes(b"GGUF")
        page = open_page(home)
        host_tab(page, "Model")
        choose(page, "model-menu", "demo-Q4.gguf", prefix="")
        choose(page, "model-loader", "llama.cpp", prefix="")
        page.click("#model-load")
        wait_for_text(page, "#model-status", "Successfully loaded")
        show_tab(page, home)
        wait_for_text(page, "#tp-model-line", "loaded as LlamaServer, which cannot be trained")
        assert "Transformers loader" in page.locator("#tp-model-line").inner_text()
        reload(page, home)
        page.wait_for_selector("#tp-load-button")  # the loader is open by itself
        picture(page, "llama-cpp")
        fill_in(page, "x")
        page.click("#tp-start")
        wait_for_text(page, "#tp-status", "which cannot be trained")
        choose(page, "load-model", "demo")
        page.locator("#tp-load-quantization label", has_text="4bit").click()
        page.click("#tp-load-button")
        wait_for_text(page, "#tp-model-line", "1.05 million")
        assert "The 4bit quantization was not used" in page.locator("#tp-model-line").inner_text()

    def test_an_unloaded_model_is_said_at_once_on_the_open_page(self, home, open_page):
        page = open_page(home)
        host_tab(page, "Model")
        page.click("#model-unload")
        show_tab(page, home)
        wait_for_text(page, "#tp-model-line", "No model is loaded")
        if not page.locator("#tp-load-button").is_visible():
            page.locator("#tp-load button").first.click()
        choose(page, "load-model", "demo")
        page.click("#tp-load-button")
        wait_for_text(page, "#tp-model-line", "1.05 million")

    def test_a_model_unloaded_in_mid_run_costs_nothing(self, home, open_page):
        page = open_page(home)
        fill_in(page, "pulled")
        write(page, "epochs", "1")
        page.click("#tp-start")
        wait_for_status(page, "Training")
        host_tab(page, "Model")
        page.click("#model-unload")
        show_tab(page, home)
        wait_for_status(page, "Done", name="pulled")
        assert "outside this tab while the run used it" in status(page)
        assert (home.loras / "pulled" / "adapter_model.safetensors").is_file()
        choose(page, "load-model", "demo") if page.locator("#tp-load-button").is_visible() else page.locator("#tp-load button").first.click()
        choose(page, "load-model", "demo")
        page.click("#tp-load-button")
        wait_for_text(page, "#tp-model-line", "1.05 million")

    @pytest.mark.parametrize("place", ["extensions", "user_data/extensions"])
    def test_the_interface_is_restarted_in_mid_run(self, tmp_path, open_page, place):
        home = Webui(tmp_path, place=place)
        try:
            page = open_page(home)
            fill_in(page, "restarted")
            write(page, "epochs", "20")
            page.click("#tp-start")
            wait_for_status(page, "Training")
            for _ in range(2):
                times = home.said().count("Running on local URL")
                host_tab(page, "Session")
                page.click("#restart")
                for _ in range(300):
                    if home.said().count("Running on local URL") > times:
                        break
                    time.sleep(0.1)
                go_again(page, home)
                open_page.faults.clear()  # the page's body is taken away while updates still arrive
                show_tab(page, home)
                wait_for_status(page, "Training", 30)
                assert page.locator("#tp-start").is_disabled()
            page.click("#tp-interrupt")
            wait_for_status(page, "Interrupted", 60)
            assert (home.loras / "restarted" / "adapter_model.safetensors").is_file()
            assert "Traceback" not in home.said()
            page.close()
        finally:
            home.stop()

    def test_several_users_can_look_and_not_touch(self, tmp_path, open_page):
        home = Webui(tmp_path, "--multi-user")
        try:
            page = open_page(home)
            for name in ("start", "verify", "interrupt", "checkpoint", "load-button", "try-answer", "refresh"):
                assert page.locator(f"#tp-{name}").is_disabled(), name
            picture(page, "multi-user")
            page.close()
        finally:
            home.stop()

    def test_the_portable_build_in_the_browser(self, tmp_path, open_page):
        home = Webui(tmp_path, "--portable", model=None)
        try:
            page = open_page(home)
            assert "cannot train" in page.locator(".tp-panel").inner_text()
            picture(page, "portable")
            page.close()
        finally:
            home.stop()

    def test_the_idle_timer_does_not_take_the_model_in_or_right_after_a_run(self, tmp_path, open_page):
        home = Webui(tmp_path, "--idle-timeout", "0.4")  # 24 seconds
        try:
            page = open_page(home)
            fill_in(page, "idle")
            write(page, "epochs", "40")
            page.click("#tp-start")
            wait_for_status(page, "Training")
            time.sleep(30)  # longer than the timer
            page.click("#tp-interrupt")
            wait_for_status(page, "Interrupted")
            time.sleep(4)
            assert "Unloading the model" not in home.said() and "1.05 million" in page.locator("#tp-model-line").inner_text()
            wait_for_text(page, "#tp-model-line", "unloaded after a time without use", 60)
            page.close()
        finally:
            home.stop()


def test_the_table_of_evaluations_is_one_with_the_hosts(tmp_path):
    make_webui(tmp_path)
    shutil.rmtree(tmp_path / "user_data" / "logs")
    code = f"""
import sys
sys.argv = ["server.py"]
sys.path[:0] = [{str(HERE / "standin")!r}, ".", "user_data/extensions"]
from modules import evaluate, shared
import pandas as pd
from training_pro import evaluations
from training_pro.host import WebuiHost
host = WebuiHost()
host.record_evaluation(model="demo", loras=["ahoy"], dataset="tale", perplexity=3.25, stride=512, max_length=0)
print(evaluate.generate_markdown_table()[["Model", "LoRAs", "Perplexity"]].values.tolist())
entry = dict(Model="other", LoRAs="-", Dataset="tale", Perplexity=4.5, stride="1", max_length="2", Date="2026-01-01 10:00:00", Comment="")
evaluate.save_past_evaluations(pd.concat([evaluate.past_evaluations, pd.DataFrame([entry])], ignore_index=True))
print([(row["Model"], float(row["Perplexity"])) for row in evaluations.read(host.evaluations_file)])
"""
    done = subprocess.run([str(WEBUI_PYTHON), "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["[['demo', 'ahoy', 3.25]]", "[('demo', 3.25), ('other', 4.5)]"], done.stderr[-2000:]
