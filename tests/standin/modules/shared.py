"""The state that the host and its extensions share."""

import argparse
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--user-data-dir", default="user_data")
parser.add_argument("--model-dir")
parser.add_argument("--lora-dir")
parser.add_argument("--model")
parser.add_argument("--loader")
parser.add_argument("--cpu", action="store_true")
parser.add_argument("--bf16", action="store_true")
parser.add_argument("--load-in-4bit", action="store_true")
parser.add_argument("--load-in-8bit", action="store_true")
parser.add_argument("--multi-user", action="store_true")
parser.add_argument("--portable", action="store_true")
parser.add_argument("--trust-remote-code", action="store_true")
parser.add_argument("--idle-timeout", type=float, default=0)
parser.add_argument("--extensions", nargs="+", default=[])
parser.add_argument("--listen-port", type=int, default=7860)
# The stand-in's own: how the user's extensions were imported until 2026-03, and that shared had no user_data_dir then.
parser.add_argument("--as-before-2026-03", action="store_true")
args = parser.parse_args()
args.model_dir = args.model_dir or f"{args.user_data_dir}/models"
args.lora_dir = args.lora_dir or f"{args.user_data_dir}/loras"
original_args = argparse.Namespace(**vars(args))

if not args.as_before_2026_03:
    user_data_dir = Path(args.user_data_dir)

model = None
tokenizer = None
model_name = "None"
is_seq2seq = False
lora_names = []
model_dirty_from_training = False
stop_everything = False
generation_lock = None
need_restart = False
gradio = {}
persistent_interface_state = {}
default_settings = {}
settings = {
    "instruction_template_str": "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
    "truncation_length": 8192,
}
