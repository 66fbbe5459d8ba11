"""script.py as a host loads it: light, and never raising."""

import importlib.util
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "transformers", "peft", "datasets", "matplotlib", "gradio", "bitsandbytes")


def fresh(code):
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd="/", timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_it_imports_nothing_heavy():
    assert fresh(f"import sys, training_pro.script; print([m for m in {HEAVY} if m in sys.modules])") == "[]"


def test_it_loads_by_path_outside_any_package():
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("user_ext_anything", r"{HERE / "script.py"}")
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
module.setup()
from user_ext_anything import settings
print(module.params["display_name"], module.params["is_tab"], len(module.custom_css()) > 500, settings.TrainingSettings().lora_rank)
"""
    assert fresh(code) == "Training PRO True True 32"


def test_ui_shows_a_panel_instead_of_raising():
    import gradio as gr
    from training_pro import script

    with gr.Blocks() as blocks:  # no web UI here, so the host cannot be found
        script.ui()
    shown = [component for component in blocks.config["components"] if component["type"] == "html"]
    assert len(shown) == 1 and "Training PRO cannot be shown" in shown[0]["props"]["value"]


def test_the_panel_names_what_is_missing_and_the_command():
    from training_pro.script import unavailable

    shown = unavailable(ModuleNotFoundError("No module named 'peft.tuners'", name="peft.tuners"))
    assert f"&quot;{sys.executable}&quot; -m pip install peft</pre>" in shown
    assert "<b>x" not in unavailable(RuntimeError("<b>x"))


def test_a_portable_build_and_missing_packages_have_their_panel(monkeypatch):
    from types import ModuleType, SimpleNamespace

    from training_pro import needs, script

    assert script.cannot_train() is None
    monkeypatch.setattr(needs, "missing", lambda: ["torch", "peft"])
    assert "Training PRO needs torch, peft" in script.cannot_train() and "-m pip install torch peft</pre>" in script.cannot_train()
    shared = ModuleType("modules.shared")
    shared.args = SimpleNamespace(portable=True)
    monkeypatch.setitem(sys.modules, "modules.shared", shared)
    assert "portable build" in script.cannot_train() and "pip install" not in script.cannot_train()


def test_every_working_option_has_its_widget_and_no_other(host):
    import gradio as gr
    from training_pro.settings import OPTIONS
    from training_pro.tab_train import TrainTab

    with gr.Blocks():
        tab = TrainTab(host)
    assert set(tab.widgets) == {key for key, kind in OPTIONS.items() if kind.works}
    for key, widget in tab.widgets.items():
        assert (widget.label, widget.info, widget.elem_id) == (OPTIONS[key].label, OPTIONS[key].help, f"tp-{key}")


def test_no_id_is_one_of_the_built_in_tab(host):
    from training_pro.script import page

    blocks, _ = page(host)
    ids = [component["props"].get("elem_id") for component in blocks.config["components"] if component["props"].get("elem_id")]
    assert (
        len(ids) == len(set(ids))
        and not {"training-tab", "lora-train-tab", "evaluate-tab"} & set(ids)
        and all(name.startswith("tp-") for name in ids)
    )


def test_several_users_can_look_but_not_touch(host):
    import gradio as gr
    from training_pro.tab_train import TrainTab

    host.multi_user = True
    with gr.Blocks():
        tab = TrainTab(host)
    assert not any(widget.interactive for widget in [*tab.widgets.values(), tab.start, tab.verify, tab.answer])


def test_only_the_page_imports_gradio_and_only_the_host_knows_the_web_ui():
    for file in HERE.glob("*.py"):
        text = file.read_text(encoding="utf-8")
        if file.name not in ("script.py", "following.py") and not file.name.startswith("tab_"):
            assert "import gradio" not in text, file.name
        if file.name != "host.py":
            assert "from modules" not in text and "import modules" not in text, file.name


def test_the_package_holds_what_the_page_needs():
    assert importlib.util.find_spec("training_pro.script") is not None
    for name in ("page.css", "formats/alpaca-format.json", "datasets/sample-alpaca.json", "demo/model/model.safetensors"):
        assert (HERE / name).is_file(), name
