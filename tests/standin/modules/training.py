"""The host's own training tab, as far as it meets ours: its ids, its adapter's files, and the model that it leaves changed."""

import json
import threading
from pathlib import Path

import gradio as gr

from modules import shared

PARAMETERS = {"always_override": False, "all_linear": True, "q_proj_en": True, "v_proj_en": True, "k_proj_en": False, "o_proj_en": False,
              "gate_proj_en": False, "down_proj_en": False, "up_proj_en": False, "save_steps": 0, "micro_batch_size": 4, "batch_size": 8, "epochs": 2,
              "learning_rate": "3e-4", "lr_scheduler_type": "cosine", "lora_rank": 8, "lora_alpha": 16, "lora_dropout": 0.0, "cutoff_len": 512,
              "dataset": "sample-chat", "eval_dataset": "None", "format": "Chat Template", "eval_steps": 100, "text_dataset": "None",
              "warmup_steps": 0, "optimizer": "adamw_torch", "stride_length": 256, "stop_at_loss": 0, "add_eos_token": True,
              "excess_length": "drop", "report_to": "None", "gradient_checkpointing": True}  # fmt: skip


def do_train(lora_name):
    from peft import LoraConfig, get_peft_model

    shared.tokenizer.pad_token_id = shared.tokenizer.pad_token_id or shared.tokenizer.eos_token_id
    shared.tokenizer.padding_side = "right"
    shared.model_dirty_from_training = True  # and nothing is put back
    model = get_peft_model(shared.model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    folder = Path(shared.args.lora_dir) / lora_name

    def threaded_run():
        import torch

        optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=5e-3)
        ids = shared.tokenizer("The bear eats honey.", return_tensors="pt").input_ids
        for _ in range(10):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(folder)
        (folder / "training_parameters.json").write_text(json.dumps({"lora_name": lora_name, **PARAMETERS}), encoding="utf-8")
        (folder / "training_log.json").write_text(
            json.dumps({"base_model_name": shared.model_name, "current_steps": 9, "epoch": 2.0}), encoding="utf-8"
        )

    thread = threading.Thread(target=threaded_run)
    thread.start()
    yield "Running..."
    thread.join()
    yield f"Done! LoRA saved to `{folder}`"


def create_ui():
    interactive = not shared.args.multi_user
    with gr.Tab("Training", elem_id="training-tab"):
        with gr.Tab("Train LoRA", elem_id="lora-train-tab"):
            name = gr.Textbox(label="Name", elem_id="builtin-name")
            start = gr.Button("Start LoRA Training", variant="primary", interactive=interactive, elem_id="builtin-start")
            output = gr.Markdown("Ready", elem_id="builtin-output")
            start.click(do_train, name, output)
        with gr.Tab("Perplexity evaluation", elem_id="evaluate-tab"):
            from modules.evaluate import generate_markdown_table

            table = gr.Dataframe(generate_markdown_table(), elem_id="builtin-table")
            gr.Button("Refresh the table", elem_id="builtin-refresh").click(generate_markdown_table, None, table)
