"""The estimate of a run's memory beside what a dry run measures: one Markdown table.

    python benchmarks/memory.py            # --quick: the demo model alone, to see that it runs

Each row is a process of its own: a model of these shapes with random weights, a text file that fills every row up to the cutoff, a dry
run of a single block to warm up (libraries that are loaded at the first step), then the dry run that counts. Memory is what the run
needs beside the loaded model: on the processor the growth of the process's peak, on a graphics card torch's own count. `--device cuda`
runs it there, where the weights are bfloat16.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo" / "model"
SMALL, LARGE = ("Llama", 512, 8, 32_000), ("Llama", 768, 12, 128_256)
ROWS: list[tuple[str, tuple[Any, ...] | None, dict[str, Any]]] = [
    ("demo, q-v", None, {}),
    ("Llama 58 M, q-v", SMALL, {}),
    ("Llama 58 M, all, rank 64", SMALL, {"training_projection": "all", "lora_rank": 64}),
    ("Llama 58 M, q-v, batch 16", SMALL, {"micro_batch_size": 16}),
    ("Llama 58 M, q-v, gradient checkpoint", SMALL, {"use_grad_checkpoint": True, "micro_batch_size": 16}),
    ("Llama 58 M, all, adafactor, no dropout", SMALL, {"training_projection": "all", "optimizer": "adafactor", "lora_dropout": 0}),
    ("Llama 58 M, q-v, eager attention", SMALL, {"attention": "eager"}),
    ("Llama 58 M, q-v, Train Head", SMALL, {"lora_modulessave": True}),
    ("Llama 58 M, 4-bit, q-v", SMALL, {"quantization": "4bit"}),
    ("Llama 282 M, 128k vocabulary, q-v", LARGE, {}),
    ("Llama 282 M, 128k vocabulary, all, gradient checkpoint", LARGE, {"training_projection": "all", "use_grad_checkpoint": True}),
    ("GPT-2 124 M, all-linear", ("GPT2", 768, 12, 50_257), {"training_projection": "all-linear"}),
]
CUTOFF = 512


def make(shape: tuple[Any, ...], folder: Path) -> None:
    import shutil

    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    kind, hidden, layers, words = shape
    if kind == "GPT2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=words, n_embd=hidden, n_layer=layers, n_head=hidden // 64, n_positions=1024))
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=words, hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers,
                num_attention_heads=hidden // 64, max_position_embeddings=1024,
            )
        )  # fmt: skip
    model.save_pretrained(folder)
    for file in DEMO.glob("*token*"):
        shutil.copy(file, folder / file.name)


def measure(number: int) -> dict[str, Any]:
    import torch
    from training_pro.host import LocalHost
    from training_pro.memory import dry_run
    from training_pro.settings import TrainingSettings

    torch.set_num_threads(2)
    name, shape, changes = ROWS[number]
    quantization = changes.pop("quantization", "none")
    with tempfile.TemporaryDirectory() as folder:
        host = LocalHost(folder)
        model = DEMO
        if shape is not None:
            make(shape, model := Path(folder) / "model")
        host.load(str(model), quantization)
        text = (ROOT / "datasets" / "sample-text.txt").read_text(encoding="utf-8").replace("\n", " ")
        (host.datasets_dir / "long.txt").write_text(text, encoding="utf-8")
        cutoff = CUTOFF if shape is not None else 256
        chosen = TrainingSettings(raw_text_file="long", cutoff_len=cutoff, save_steps_under_loss=0, hard_cut_string="", **changes)
        dry_run(chosen.model_copy(update={"micro_batch_size": 1, "cutoff_len": 32, "overlap_len": 0}), host)
        found = dry_run(chosen, host)
    return {
        "name": name, "estimate": found.estimate.extra, "measured": found.extra, "batch": f"{found.batch.rows} × {found.batch.length}",
        "parts": {part: getattr(found.estimate, part) for part in ("adapter", "gradients", "optimizer", "activations", "logits")},
    }  # fmt: skip


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--only", type=int, help="the number of one row, measured in this process; its JSON is printed")
    chosen = arguments.parse_args()
    if chosen.only is not None:
        print(json.dumps(measure(chosen.only)))
        return
    print("| model and settings | batch | estimate | measured | estimate / measured |\n|---|---|---|---|---|")
    for number in range(1 if chosen.quick else len(ROWS)):
        done = subprocess.run([sys.executable, __file__, "--only", str(number)], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        found = json.loads(done.stdout.splitlines()[-1])
        estimate, measured = found["estimate"] / 1e6, found["measured"] / 1e6
        print(f"| {found['name']} | {found['batch']} | {estimate:,.0f} MB | {measured:,.0f} MB | {estimate / measured:.2f} |", flush=True)


if __name__ == "__main__":
    main()
