"""On a graphics card: a random Llama of 8B shape, LoRA in bfloat16 and 4-bit QLoRA, beside TRL's SFTTrainer with its best settings.

    python benchmarks/gpu.py                needs a card of 40 GB or more, and 20 GB of disk; trl, flash-attn and liger-kernel where they are installed
    python benchmarks/gpu.py --toy          a tiny model, also on the processor, to see that it runs

For each cutoff and each way the true batch is doubled until memory is full, and the best figure counts. Tokens are those that are learned
(labels), so that padding counts for nobody. The share of the card's peak takes 4 operations per weight and token (the frozen weights have no
gradient of their own), attention not counted. TRL's best: packing, no activations recomputed, Liger's kernels and FlashAttention where installed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import corpus
from training import instruction_rows, quiet, save_model, say

PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12, "3090": 71e12}  # dense bfloat16, by the makers' data sheets
WARM = 3  # steps before the clock runs


def save_large(folder: Path) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
                         num_key_value_heads=8, max_position_embeddings=8192, pad_token_id=0, bos_token_id=1, eos_token_id=2)  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            LlamaForCausalLM(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(before)
    corpus.tokenizer().save_pretrained(folder)
    torch.cuda.empty_cache()
    return folder


@contextlib.contextmanager
def measured(steps: int):
    """Learned tokens and seconds of the steps after the first few, of whichever Trainer trains; it is stopped after them."""
    import torch
    import transformers

    found: dict = {"tokens": 0, "steps": 0}
    original = transformers.Trainer.training_step

    def training_step(self, model, inputs, *rest, **named):
        if found["steps"] == WARM:
            found["begin"] = now()
        if found["steps"] >= WARM:
            found["tokens"] = found["tokens"] + (inputs["labels"] != -100).sum()
        found["steps"] += 1
        loss = original(self, model, inputs, *rest, **named)
        if found["steps"] == WARM + steps:
            found["seconds"] = now() - found["begin"]
            self.control.should_training_stop = True
        return loss

    transformers.Trainer.training_step = training_step
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        yield found
    finally:
        transformers.Trainer.training_step = original


def now() -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def flash() -> bool:
    import torch
    from transformers.utils import is_flash_attn_2_available

    return torch.cuda.is_available() and is_flash_attn_2_available()


def ours(host, settings, steps: int) -> dict:
    from training_pro import train_utils

    with measured(steps) as found:
        run = train_utils.train(settings, host, train_utils.begin(settings, host))
    if "seconds" not in found:
        raise MemoryError(run.message) if "memory" in run.message else RuntimeError(f"{run.message} {run.problems}")
    return found


def trl(host, settings, steps: int) -> dict:
    import peft
    import torch
    from training_pro.dataset_tools import prepare
    from trl import SFTConfig, SFTTrainer

    import datasets

    rows = datasets.Dataset.from_dict({"input_ids": [list(row) for row in prepare(settings, host.tokenizer, host).train["input_ids"]]})
    lora = peft.LoraConfig(r=settings.lora_rank, lora_alpha=settings.lora_alpha, lora_dropout=settings.lora_dropout, task_type="CAUSAL_LM",
                           target_modules=["q_proj", "v_proj"])  # fmt: skip
    liger = torch.cuda.is_available() and importlib.util.find_spec("liger_kernel") is not None
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder, per_device_train_batch_size=settings.micro_batch_size, learning_rate=settings.rate, max_length=settings.cutoff_len,
            packing=True, gradient_checkpointing=False, bf16=torch.cuda.is_available(), use_cpu=not torch.cuda.is_available(), report_to="none",
            logging_steps=10, save_strategy="no", disable_tqdm=True, optim=settings.optimizer, use_liger_kernel=liger, max_steps=WARM + steps,
        )  # fmt: skip
        if flash():
            host.model.set_attn_implementation("flash_attention_2")
        with measured(steps) as found:
            SFTTrainer(model=host.model, args=config, train_dataset=rows, processing_class=host.tokenizer, peft_config=lora).train()
    return found


def best(way, host, settings, steps: int, sizes: list[int]) -> dict | None:
    import torch

    top = None
    for size in sizes:
        try:
            found = way(host, settings.model_copy(update={"micro_batch_size": size}), steps)
        except (MemoryError, torch.OutOfMemoryError):
            say(f"  {way.__name__}, true batch {size}: memory is full")
            break
        finally:
            if way is trl:
                host.reload_model()
        one = {"speed": float(found["tokens"]) / found["seconds"], "size": size,
               "memory": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0}  # fmt: skip
        say(f"  {way.__name__}, true batch {size}: {one['speed']:,.0f} tokens/s, {one['memory']:.1f} GB")
        if top is None or one["speed"] > top["speed"]:
            top = one
    return top


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--quantization", choices=["none", "4bit"], help="only this")
    options = parser.parse_args()
    import torch
    from training_pro.host import LocalHost
    from training_pro.settings import TrainingSettings

    quiet()
    if not options.toy and not torch.cuda.is_available():
        raise SystemExit("No graphics card that PyTorch can use is here; --toy shows on the processor that the script runs.")
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "processor"
    peak = next((value for name, value in PEAK.items() if name in card), None)
    cutoffs, sizes, steps = ([64], [2], 2) if options.toy else ([512, 2048], [1, 2, 4, 8, 16, 32, 64], options.steps)
    ways = [ours, *([trl] if importlib.util.find_spec("trl") else [])]
    print(
        f"{card}, torch {torch.__version__}\n\n| weights | cutoff | way | true batch | tokens/s | peak memory | share of the peak |\n|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        model = save_model("demo", Path(folder)) if options.toy else save_large(Path(folder) / "model")
        for quantization in [options.quantization] if options.quantization else ["none"] if options.toy else ["none", "4bit"]:
            host = LocalHost(Path(folder) / f"data-{quantization}")
            host.load(str(model), quantization)
            weights = host.facts.parameters
            data = {"dataset": "sample-alpaca", "format": "alpaca-format"}
            if not options.toy:
                data = {"dataset": "bench", "format": "bench"}
                (host.datasets_dir / "bench.json").write_text(json.dumps(instruction_rows(8000, host.tokenizer)), encoding="utf-8")
                (host.formats_dir / "bench.json").write_text(json.dumps({"instruction,output": "%instruction%%output%"}), encoding="utf-8")
            for cutoff in cutoffs:
                settings = TrainingSettings(
                    lora_name="bench", **data, cutoff_len=cutoff, packing=True, always_override=True, epochs=50,
                    save_steps_under_loss=0, optimizer="adamw_torch_fused", attention="flash_attention_2" if flash() else "auto",
                )  # fmt: skip
                for way in ways:
                    if top := best(way, host, settings, steps, sizes):
                        share = f"{4 * weights * top['speed'] / peak:.0%}" if peak else "–"
                        print(
                            f"| {quantization} | {cutoff} | {way.__name__} | {top['size']} | {top['speed']:,.0f} | {top['memory']:.1f} GB | {share} |",
                            flush=True,
                        )


if __name__ == "__main__":
    main()
