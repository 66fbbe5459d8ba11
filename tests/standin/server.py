"""A stand-in for text-generation-webui: what an extension meets in it, in the same order and with the same quirks.

Written from what is known of the web UI's behaviour, without its code. It has the tabs that ours lives beside (Chat, Training,
Model, Session), a model loaded with transformers, and the restart of the interface in the same process. Started in a folder with
`extensions` and `user_data`, as the web UI is.
"""

import os
import sys
import time
import warnings
from threading import Lock, Thread

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
sys.path.insert(0, os.getcwd())  # the stand-in's own folder is on the path already, since this file lies in it
warnings.filterwarnings("ignore")

from modules import shared  # noqa: E402

RESTART = "() => {document.body.innerHTML = '<h1>Reloading...</h1>'; setTimeout(() => location.reload(), 2500); return []}"


def create_interface():
    import gradio as gr
    from modules import chat, extensions, training, ui, ui_model_menu

    extensions.load_extensions()
    css, js = ui.css + extensions.apply_extensions("css"), extensions.apply_extensions("js")
    shared.persistent_interface_state.update({"loader": shared.args.loader or "llama.cpp"})
    with gr.Blocks(css=css, js=f"() => {{{js}}}", analytics_enabled=False, title="Text Generation Web UI", theme=ui.theme) as shared.gradio[
        "interface"
    ]:
        chat.create_ui()
        ui_model_menu.create_ui()
        if not shared.args.portable:
            training.create_ui()
        with gr.Tab("Session", elem_id="session-tab"):
            reset = gr.Button("Apply flags/extensions and restart", elem_id="restart", interactive=not shared.args.multi_user)
            reset.click(ask_for_restart, None, None).then(None, None, None, js=RESTART)
        extensions.create_extensions_tabs()
    shared.gradio["interface"].queue()
    shared.gradio["interface"].launch(
        max_threads=64, prevent_thread_lock=True, server_name="127.0.0.1", server_port=shared.args.listen_port, show_api=False,
        allowed_paths=["css", "js", "extensions", f"{shared.args.user_data_dir}/cache"],
    )  # fmt: skip


def ask_for_restart():
    shared.need_restart = True


if __name__ == "__main__":
    from modules import extensions

    extensions.available_extensions[:] = extensions.find()
    if shared.args.model:
        from modules import models

        shared.model, shared.tokenizer = models.load_model(shared.args.model)
    shared.generation_lock = Lock()
    if shared.args.idle_timeout > 0:
        from modules.models import unload_model_if_idle

        Thread(target=unload_model_if_idle, daemon=True).start()
    create_interface()
    while True:
        time.sleep(0.5)
        if shared.need_restart:
            shared.need_restart = False
            time.sleep(0.5)
            shared.gradio["interface"].close()
            time.sleep(0.5)
            create_interface()
