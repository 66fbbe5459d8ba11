"""Training PRO's door: the extension of text-generation-webui, and the page of the standalone application.

The web UI reads `params`, `setup()`, `ui()` and `custom_css()`. It ends as a whole when `ui()` raises or an import is missing,
so nothing is imported here that it may lack, and `ui()` shows a panel with the reason instead of raising.
"""

import html
import logging
import sys
from pathlib import Path

if not __package__:
    # The web UI runs this file by its path, outside any package, when it lies in the user's own extensions folder. Making the
    # module its own package lets the relative imports below work there as everywhere else.
    __path__ = [str(Path(__file__).resolve().parent)]
    __spec__.submodule_search_locations = __path__
    __package__ = __spec__.name

logger = logging.getLogger(__name__)

params = {"display_name": "Training PRO", "is_tab": True}

HERE = Path(__file__).resolve().parent


def setup() -> None:
    """Called once by the web UI before the page is built. Nothing has to be made ready."""


def custom_css() -> str:
    return (HERE / "page.css").read_text(encoding="utf-8")


def ui() -> None:
    """Build the tab inside the Blocks that are being built. Never raises."""
    import gradio as gr

    try:
        from .host import WebuiHost

        _build(WebuiHost())
    except Exception as error:
        logger.exception("Training PRO could not build its tab")
        gr.HTML(unavailable(error))


def unavailable(error: Exception) -> str:
    """The panel that stands in place of the tab, with the reason and what to do."""
    said = html.escape(str(error) or type(error).__name__)
    todo = "The log has the details."
    if isinstance(error, ModuleNotFoundError) and error.name:
        folder = html.escape(str(HERE / "requirements.txt"))
        todo = f"Install what is missing with this command, then start again:<pre>{html.escape(sys.executable)} -m pip install -r {folder}</pre>"
    return f'<div class="tp-status tp-bad"><b>Training PRO cannot be shown: {said}</b><div class="tp-message">{todo}</div></div>'


def _build(host) -> object:
    import gradio as gr

    from .host import LocalHost
    from .tab_train import TrainTab

    home = "tp-standalone" if isinstance(host, LocalHost) else "tp-webui"
    with gr.Column(elem_classes=["tp-page", home]), gr.Tab("Train LoRA", elem_id="tp-train-tab"):
        return TrainTab(host)


def page(host):
    """The standalone page as (Blocks, arguments for `launch`)."""
    import gradio as gr

    from .versions import page_arguments

    theme = gr.themes.Default(primary_hue="blue", neutral_hue="slate", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    blocks, launch = page_arguments(gr.Blocks, gr.Blocks.launch, theme=theme, css=custom_css() + STANDALONE_CSS, footer_links=["settings"])
    with gr.Blocks(title="Training PRO", analytics_enabled=False, **blocks) as demo:
        gr.HTML('<h1 class="tp-title">Training PRO</h1>')
        _build(host)
    return demo, launch


STANDALONE_CSS = """
.gradio-container { max-width: 1560px !important; margin: 0 auto; }
.tp-title { font-size: 1.5em; font-weight: 700; margin: 2px 0 0; }
"""
