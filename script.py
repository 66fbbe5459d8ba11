"""Training PRO's door: the extension of text-generation-webui, and the page of the standalone application.

The web UI reads `params`, `setup()`, `ui()` and `custom_css()`. It ends as a whole when `ui()` raises or an import is missing,
so nothing is imported here that it may lack, and `ui()` shows a panel with the reason instead of raising.
"""

import contextlib
import html
import logging
import sys
from pathlib import Path

if not __package__ or __package__ not in sys.modules:
    # The web UI runs this file by its path, outside any package, when it lies in the user's own extensions folder. Making the
    # module its own package lets the relative imports below work there as everywhere else. With a dot in the folder's name it
    # would be a part of a package that does not exist, so it gets a name without one.
    __path__ = [str(Path(__file__).resolve().parent)]
    __spec__.submodule_search_locations = __path__
    module = sys.modules.get(__spec__.name)
    __name__ = __package__ = __spec__.name = __spec__.name.replace(".", "_")
    if module is not None:
        sys.modules[__package__] = module

logger = logging.getLogger(__name__)

params = {"display_name": "Training PRO", "is_tab": True}

HERE = Path(__file__).resolve().parent


def setup() -> None:
    """Called once by the web UI before the page is built. Nothing has to be made ready."""


def custom_css() -> str:
    try:
        return (HERE / "page.css").read_text(encoding="utf-8")
    except OSError:
        logger.exception("Training PRO's page.css cannot be read")
        return ""


def state_modifier(state):
    """The web UI calls this before it generates a text, and then waits for its turn: a chat that waits for a run is told so."""
    with contextlib.suppress(Exception):  # whatever is wrong with a hint, the chat goes on
        from .evaluation import waiting_message as measuring
        from .training_run import waiting_message

        if said := waiting_message() or measuring():
            import gradio as gr

            gr.Info(said)
    return state


def ui() -> None:
    """Build the tab inside the Blocks that are being built. Never raises."""
    import gradio as gr

    with gr.Column(elem_classes=["tp-page", "tp-webui"]) as whole:
        try:
            if panel := cannot_train():
                gr.HTML(panel)
            else:
                from .host import WebuiHost

                _build(WebuiHost())
            return
        except Exception as error:
            logger.exception("Training PRO could not build its tab")
            failed = error
    whole.visible = False  # half a tab would be worse than none
    with gr.Column(elem_classes=["tp-page", "tp-webui"]):
        gr.HTML(unavailable(failed))


def cannot_train() -> str | None:
    """The panel for a host that cannot train at all, or None."""
    from .host import WebuiHost
    from .needs import install_command, missing

    if WebuiHost.is_portable():
        return panel(
            "This is the portable build of text-generation-webui, which cannot train",
            "It runs GGUF models with llama.cpp and brings no PyTorch, without which nothing can be trained. Install the full version "
            "(its one-click installer), put this folder into user_data/extensions there, and load the original model, not a GGUF file.",
        )
    if lacking := missing():
        return panel(
            f"Training PRO needs {', '.join(lacking)}",
            "Install what is missing with this command, then start the web UI again:",
            install_command(*lacking),
        )
    return None


def unavailable(error: Exception) -> str:
    """The panel that stands in place of the tab, with the reason and what to do."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        with contextlib.suppress(ImportError):  # a broken copy of this folder, which the panel below says
            from .needs import install_command

            return panel(
                f"Training PRO cannot be shown: {error}",
                "Install what is missing with this command, then start the web UI again:",
                install_command(error.name.partition(".")[0]),
            )
    return panel(f"Training PRO cannot be shown: {error or type(error).__name__}", "The rest of the web UI is not affected. The log has the details.")


def panel(title: str, todo: str, command: str = "") -> str:
    code = f"<pre>{html.escape(command)}</pre>" if command else ""
    return f'<div class="tp-status tp-bad tp-panel"><b>{html.escape(title)}</b><div class="tp-message">{html.escape(todo)}{code}</div></div>'


def _build(host) -> object:
    import gradio as gr

    from .following import Follower
    from .tab_perplexity import PerplexityTab
    from .tab_train import TrainTab

    with gr.Tab("Train LoRA", elem_id="tp-train-tab"):
        tab = TrainTab(host)
    with gr.Tab("Perplexity evaluation", elem_id="tp-perplexity-tab"):
        perplexity = PerplexityTab(host, tab)
    Follower([tab.run, perplexity])
    return tab


def page(host):
    """The standalone page as (Blocks, arguments for `launch`)."""
    import gradio as gr

    from .versions import page_arguments

    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    blocks, launch = page_arguments(gr.Blocks, gr.Blocks.launch, theme=theme, css=custom_css() + STANDALONE_CSS, footer_links=["settings"])
    with gr.Blocks(title="Training PRO", analytics_enabled=False, **blocks) as demo:
        gr.HTML('<h1 class="tp-title">Training PRO</h1>')
        with gr.Column(elem_classes=["tp-page", "tp-standalone"]):
            _build(host)
    return demo, launch


STANDALONE_CSS = """
.gradio-container { max-width: 1560px !important; margin: 0 auto; }
.tp-title { font-size: 1.5em; font-weight: 700; margin: 2px 0 0; }
"""
