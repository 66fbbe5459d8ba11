"""Finding, importing and showing extensions, in the order and with the severity of the host."""

import importlib
import importlib.util
import sys
from pathlib import Path

from modules import shared
from modules.logging_colors import logger

state = {}
available_extensions = []
setup_called = set()


def user_folder():
    return Path(shared.args.user_data_dir) / "extensions"


def find():
    users = [file.parent.name for file in user_folder().glob("*/script.py")]
    return users + [file.parent.name for file in Path("extensions").glob("*/script.py") if file.parent.name not in users]


def load_extensions():
    state.clear()
    for name in shared.args.extensions:
        if name not in available_extensions:
            continue
        logger.info('Loading the extension "%s"', name)
        try:
            extension = _import(name)
            if extension not in setup_called:
                for key in getattr(extension, "params", {}):
                    shared.default_settings[f"{name}-{key}"] = extension.params[key]
                    extension.params[key] = shared.settings.get(f"{name}-{key}", extension.params[key])
                if hasattr(extension, "setup"):
                    extension.setup()
                setup_called.add(extension)
            state[name] = extension
        except ModuleNotFoundError:
            logger.error("Could not import the requirements for '%s'.", name)
            raise  # which ends the server
        except Exception:
            logger.exception("Failed to load the extension")


def _import(name):
    script = user_folder() / name / "script.py"
    if not script.exists():
        return importlib.import_module(f"extensions.{name}.script")
    if shared.args.as_before_2026_03:
        return importlib.import_module(f"user_data.extensions.{name}.script")
    spec = importlib.util.spec_from_file_location(f"user_ext_{name}", str(script))
    extension = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = extension
    spec.loader.exec_module(extension)  # anew at every restart of the interface
    return extension


def apply_extensions(kind, value=""):
    for extension in state.values():
        if kind == "state" and hasattr(extension, "state_modifier"):
            value = extension.state_modifier(value)
        if kind in ("css", "js") and hasattr(extension, f"custom_{kind}"):
            value += getattr(extension, f"custom_{kind}")()
    return value


def create_extensions_tabs():
    import gradio as gr

    for name, extension in state.items():
        if hasattr(extension, "ui") and getattr(extension, "params", {}).get("is_tab"):
            with gr.Tab(extension.params.get("display_name", name), elem_classes="extension-tab"):
                extension.ui()
