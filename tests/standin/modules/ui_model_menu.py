import gradio as gr

from modules import models, shared, utils
from modules.LoRA import add_lora_to_model


def load(name, loader):
    yield f"Loading {name}..."
    models.unload_model()
    shared.args.loader = loader
    shared.model, shared.tokenizer = models.load_model(name, loader)
    yield f"Successfully loaded {name}." if shared.model is not None else f"Failed to load {name}."


def unload():
    models.unload_model()
    return "Model unloaded"


def apply(names):
    add_lora_to_model(names)
    return "Successfuly applied the LoRAs"


def create_ui():
    interactive = not shared.args.multi_user
    with gr.Tab("Model", elem_id="model-tab"):
        name = gr.Dropdown(utils.get_available_models(), value=shared.model_name, label="Model", elem_id="model-menu", allow_custom_value=True)
        loader = gr.Dropdown(["Transformers", "llama.cpp"], value=shared.args.loader or "Transformers", label="Model loader", elem_id="model-loader")
        loras = gr.Dropdown(utils.get_available_loras(), value=shared.lora_names, multiselect=True, label="LoRA(s)", elem_id="lora-menu",
                            allow_custom_value=True)  # fmt: skip
        status = gr.Markdown("No model is loaded" if shared.model is None else "Ready", elem_id="model-status")
        gr.Button("Load", interactive=interactive, elem_id="model-load").click(load, [name, loader], status)
        gr.Button("Unload", interactive=interactive, elem_id="model-unload").click(unload, None, status)
        gr.Button("Apply LoRAs", interactive=interactive, elem_id="lora-apply").click(apply, loras, status)
