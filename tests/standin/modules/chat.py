import gradio as gr

from modules import shared
from modules.extensions import apply_extensions
from modules.text_generation import generate_reply


def reply(text, history):
    state = apply_extensions("state", {"stream": True, "history": history})
    shared.persistent_interface_state["instruction_template_str"] = shared.settings["instruction_template_str"]
    assert isinstance(state, dict)
    question = text
    if getattr(shared.tokenizer, "chat_template", None):
        question = shared.tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
    yield history + f"You: {text}\n…\n"
    for said in generate_reply(question):
        yield history + f"You: {text}\nModel: {said}\n"


def create_ui():
    with gr.Tab("Chat", elem_id="chat-tab"):
        history = gr.Textbox(label="Chat", lines=8, interactive=False, elem_id="chat-history")
        text = gr.Textbox(label="Input", elem_id="chat-input")
        send = gr.Button("Generate", elem_id="Generate")
        send.click(reply, [text, history], history, show_progress="hidden")
