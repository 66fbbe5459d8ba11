"""How many tokens of the data are learned in a second: ours, the same Trainer padding each block to the cutoff, and TRL's SFTTrainer.

    python benchmarks/training.py                   demo model, instruction rows: some minutes
    python benchmarks/training.py --model 50m       a random Llama of 50 M parameters and 32,000 words
    python benchmarks/training.py --data text       raw text
    python benchmarks/training.py --quantization 4bit
    python benchmarks/training.py --memory          peak memory of a step at 128,000 words
    python benchmarks/training.py --profile         where the time goes, in the first way and in the fastest
    python benchmarks/training.py --quick           sizes that show only that it runs

Every way trains the same blocks once, with the same LoRA on the same weights, true batch, learning rate and seed. The ways take turns in one
process, forwards and backwards; padding does not count as tokens. TRL is not a dependency: without it its rows are left out (`pip install trl`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))
import corpus

ROOT = Path(__file__).resolve().parent.parent
CUTOFF, MEAN, SIGMA = 256, 75, 0.65  # tokens of instruction rows: log-normal
BATCH, RATE, RANK = 4, 3e-4, 32
WAYS = {
    "bare Trainer padding to the cutoff": "transformers' Trainer and the model's own loss, each block filled up to 256: what older tabs did",
    "padded to the cutoff": "the same Trainer and collator, each block filled up to 256",
    "padded to the batch": "ours as it is by default",
    "grouped by length": "ours with Group Samples by Length",
    "packed": "ours with Packing",
    "TRL": "SFTTrainer's defaults (it recomputes activations)",
    "TRL, nothing recomputed": "the same with gradient_checkpointing off",
    "TRL packed": "packing=True, its defaults else",
    "TRL packed, nothing recomputed": "the same with gradient_checkpointing off",
}


# Data and models


def instruction_rows(count: int, tokenizer, seed: int = 1) -> list[dict[str, str]]:
    """Rows whose blocks have a log-normal length with a mean of 75 tokens, of Python's own documentation."""
    import math

    chance = random.Random(seed)
    ids = tokenizer(corpus.text(400 * count + 20_000, seed), add_special_tokens=False, verbose=False)["input_ids"]
    rows = []
    for number in range(count):
        size = min(CUTOFF - 8, max(12, round(chance.lognormvariate(math.log(MEAN) - SIGMA**2 / 2, SIGMA))))
        begin = chance.randrange(len(ids) - size)
        words = tokenizer.decode(ids[begin : begin + size]).strip()
        cut = words.find(" ", len(words) // 3)
        rows.append({"instruction": words[:cut] or f"row {number}", "output": words[cut:] or " yes"})
    return rows


def save_model(kind: str, folder: Path) -> Path:
    """The demo model, or a random Llama, as a folder."""
    if kind == "demo":
        return ROOT / "demo" / "model"
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = corpus.tokenizer(2000) if kind == "toy" else corpus.tokenizer()
    sizes = {"50m": (len(tokenizer), 512, 1408, 10, 8), "toy": (len(tokenizer), 64, 128, 2, 4), "128k": (128_000, 256, 512, 4, 4)}
    words, width, inner, layers, heads = sizes[kind]
    config = LlamaConfig(vocab_size=words, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
                         num_key_value_heads=heads, max_position_embeddings=2048, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1,
                         eos_token_id=2)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@contextlib.contextmanager
def host_with(data: str, count: int, model: Path, quantization: str):
    """A host with the model loaded and the data in its folder, and the settings that choose it."""
    from training_pro.host import LocalHost
    from training_pro.settings import TrainingSettings

    with tempfile.TemporaryDirectory() as folder:
        host = LocalHost(Path(folder))
        host.load(str(model), quantization)
        common = {"lora_name": "bench", "epochs": 1, "micro_batch_size": BATCH, "learning_rate": str(RATE), "warmup_steps": 0,
                  "lora_rank": RANK, "lora_alpha": 2 * RANK, "cutoff_len": CUTOFF, "save_steps_under_loss": 0, "always_override": True}  # fmt: skip
        if data == "rows":
            (host.datasets_dir / "bench.json").write_text(json.dumps(instruction_rows(count, host.tokenizer)), encoding="utf-8")
            (host.formats_dir / "bench.json").write_text(json.dumps({"instruction,output": "%instruction%%output%"}), encoding="utf-8")
            yield host, TrainingSettings(dataset="bench", format="bench", **common)
        else:
            (host.datasets_dir / "bench.txt").write_text(corpus.text(count * 330), encoding="utf-8")
            yield host, TrainingSettings(raw_text_file="bench", **common)


# The ways


@contextlib.contextmanager
def timed_training(found: dict):
    """Seconds in which `Trainer.train` trains, of whoever calls it; from its first step on, so that no import counts."""
    import transformers

    original = transformers.Trainer.train

    def train(self, *arguments, **named):
        class Begin(transformers.TrainerCallback):
            def on_epoch_begin(self, *_, **__):
                found.setdefault("begin", time.perf_counter())

        self.add_callback(Begin)
        result = original(self, *arguments, **named)
        found["seconds"] = time.perf_counter() - found.pop("begin")
        found["losses"] = [(entry["epoch"], entry["loss"]) for entry in self.state.log_history if "loss" in entry]
        return result

    transformers.Trainer.train = train
    try:
        yield
    finally:
        transformers.Trainer.train = original


def ours(host, settings, way: str) -> dict:
    from training_pro import train_utils, trainer

    changes = {"group_by_length": way == "grouped by length", "packing": way == "packed"}
    chosen = settings.model_copy(update=changes)
    collator = trainer.Collator
    if way == "padded to the cutoff":

        class ToTheCutoff(collator):
            def __init__(self, pad_id, multiple=1):
                super().__init__(pad_id, CUTOFF)

        trainer.Collator = ToTheCutoff
    found: dict = {}
    try:
        with timed_training(found):
            run = train_utils.train(chosen, host, train_utils.begin(chosen, host))
    finally:
        trainer.Collator = collator
    if run.status != "done":
        raise SystemExit(f"{way}: {run.message} {run.problems}")
    found["losses"] = [(entry["epoch"], entry["loss"]) for entry in run.graph()]
    return {**found, "tokens": run.report.total_tokens, "steps": run.total_steps}


def fresh_model(host, settings, model_folder: Path, quantization: str):
    """The model once more, as the peers get it, and the LoRA for it."""
    import peft
    import torch
    import transformers
    from training_pro.versions import dtype_argument

    named = dtype_argument(torch.float32)
    if quantization == "4bit":
        named["quantization_config"] = host.model.config.quantization_config
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder, **named)
    transformers.set_seed(settings.seed)
    return model, peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.05, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def bare(host, settings, model_folder: Path, quantization: str) -> dict:
    import peft
    import torch
    import transformers
    from training_pro.dataset_tools import prepare
    from training_pro.versions import training_arguments

    def filled_up(rows):
        def tensor(key, filling):
            return torch.tensor([list(row[key]) + [filling] * (CUTOFF - len(row[key])) for row in rows])

        mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (CUTOFF - len(row["input_ids"])) for row in rows])
        return {"input_ids": tensor("input_ids", 0), "labels": tensor("labels", -100), "attention_mask": mask}

    blocks = prepare(settings, host.tokenizer, host)
    model, lora = fresh_model(host, settings, model_folder, quantization)
    if quantization != "none":
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    model = peft.get_peft_model(model, lora)
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(
            output_dir=folder, per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=RATE, report_to="none", logging_steps=1,
            save_strategy="no", disable_tqdm=True, seed=settings.seed, remove_unused_columns=False, use_cpu=not torch.cuda.is_available(),
            group_by_length=False,
        )  # fmt: skip
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=blocks.train, data_collator=filled_up)
        trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
        found: dict = {}
        with timed_training(found):
            trainer.train()
        return {**found, "tokens": blocks.report.total_tokens, "steps": trainer.state.global_step}


def trl(host, settings, way: str, model_folder: Path, quantization: str) -> dict:
    import torch
    import transformers
    from training_pro.dataset_tools import prepare
    from trl import SFTConfig, SFTTrainer

    import datasets

    blocks = prepare(settings, host.tokenizer, host)
    rows = datasets.Dataset.from_dict({"input_ids": [list(row) for row in blocks.train["input_ids"]]})
    model, lora = fresh_model(host, settings, model_folder, quantization)
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder, per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=RATE, max_length=CUTOFF, packing="packed" in way,
            use_cpu=not torch.cuda.is_available(), bf16=model.dtype == torch.bfloat16, report_to="none", logging_steps=1, save_strategy="no",
            disable_tqdm=True, seed=settings.seed, **({"gradient_checkpointing": False} if "nothing recomputed" in way else {}),
        )  # fmt: skip
        found: dict = {}
        trainer = SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=host.tokenizer, peft_config=lora)
        trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
        with timed_training(found):
            trainer.train()
        return {**found, "tokens": blocks.report.total_tokens, "steps": trainer.state.global_step}


# The table


def course(losses: list[tuple[float, float]], parts: int = 4) -> str:
    """Mean loss of each quarter of the epoch."""
    found = []
    for part in range(parts):
        values = [loss for epoch, loss in losses if part / parts < epoch / losses[-1][0] <= (part + 1) / parts]
        found.append(f"{sum(values) / len(values):.3f}" if values else "–")
    return " ".join(found)


def table(options) -> None:
    with contextlib.suppress(ImportError):
        import trl as _  # noqa: F401

        options.trl = True
    ways = [way for way in WAYS if options.trl or not way.startswith("TRL")]
    if options.ways:
        ways = [way for way in ways if way in options.ways.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        model = save_model(options.model, Path(folder))
        with host_with(options.data, options.count, model, options.quantization) as (host, settings):
            if options.rounds > 1:  # the first run of a process is a slow one
                ours(host, settings, "padded to the batch")
            if options.rounds > 1 and options.trl:
                trl(host, settings, "TRL", model, options.quantization)
            results: dict[str, list[dict]] = {way: [] for way in ways}
            for turn in range(options.rounds):
                for way in ways if turn % 2 == 0 else ways[::-1]:
                    if way.startswith("bare"):
                        one = bare(host, settings, model, options.quantization)
                    elif way.startswith("TRL"):
                        one = trl(host, settings, way, model, options.quantization)
                    else:
                        one = ours(host, settings, way)
                    results[way].append(one)
                    say(f"{way}: {one['tokens'] / one['seconds']:,.0f} tokens/s, {one['steps']} steps, {one['seconds']:.1f} s")
    speeds = {way: median(one["tokens"] / one["seconds"] for one in found) for way, found in results.items()}
    slowest = speeds.get("padded to the cutoff")
    kind = f"{options.model}{'' if options.quantization == 'none' else ', ' + options.quantization}, {options.data}"
    print(f"\n| {kind}: way | useful tokens/s | × padded to the cutoff | steps | mean loss of each quarter |\n|---|---|---|---|---|")
    for way in ways:
        share = f"{speeds[way] / slowest:.2f}" if slowest else ""
        print(f"| {way} | {speeds[way]:,.0f} | {share} | {results[way][0]['steps']} | {course(results[way][0]['losses'])} |", flush=True)
    best = max((speeds[way], way) for way in ways if way in ("grouped by length", "packed")) if {"grouped by length", "packed"} & set(ways) else None
    if best:
        for other in (
            "bare Trainer padding to the cutoff",
            "padded to the cutoff",
            "TRL",
            "TRL, nothing recomputed",
            "TRL packed",
            "TRL packed, nothing recomputed",
        ):
            if other in speeds:
                print(f"{best[1]} / {other}: {best[0] / speeds[other]:.2f}")


# Where the time goes

PARTS = {  # by the beginnings of torch's names, the first that fits
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "attention": ("aten::_scaled_dot_product", "aten::_flash"),
    "dropout": ("aten::bernoulli",),
    "loss": ("aten::_log_softmax", "aten::log_softmax", "aten::nll_loss", "_Losses"),
    "optimizer": ("Optimizer.", "aten::_foreach", "aten::_fused", "aten::addcmul", "aten::addcdiv", "aten::lerp"),
    "data": ("enumerate(DataLoader)",),
    "memory": ("aten::copy_", "aten::fill_", "aten::cat", "aten::zero_", "aten::empty", "aten::clone"),
}


def profile_table(options) -> None:
    from torch.profiler import ProfilerActivity, profile

    ways = ("bare Trainer padding to the cutoff", "packed")
    shares: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = save_model(options.model, Path(folder))
        with host_with(options.data, options.count, model, options.quantization) as (host, settings):
            for way in ways:
                once = (
                    (lambda: bare(host, settings, model, options.quantization))
                    if way.startswith("bare")
                    else (lambda: ours(host, settings, "packed"))
                )
                once()  # the first run of a process is a slow one
                with profile(activities=[ProfilerActivity.CPU]) as taken:
                    found = once()
                part_of = shares[way] = dict.fromkeys([*PARTS, "element by element", "between torch's calls"], 0.0)
                for event in taken.key_averages():
                    part = next((part for part, names in PARTS.items() if event.key.startswith(names)), "element by element")
                    part_of[part] += event.self_cpu_time_total / 1e6
                part_of["between torch's calls"] = max(0.0, found["seconds"] - sum(part_of.values()))
                say(f"{way}: {found['seconds']:.1f} s")
    print(f"\n| seconds of one epoch | {' | '.join(ways)} |\n|---|---|---|")
    for part in shares[ways[0]]:
        print(f"| {part} | {' | '.join(f'{shares[way][part]:.2f}' for way in ways)} |", flush=True)
    print(f"| all | {' | '.join(f'{sum(shares[way].values()):.2f}' for way in ways)} |")


# Memory


def memory_of(way: str) -> None:
    """In a process of its own: the peak above the start, in MB, of one step at 128,000 words with a batch of 4 × 512 tokens."""
    import peft
    import torch
    from training_pro.chunked_loss import chunked_loss, with_places

    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(save_model("128k", Path(folder)))
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    ids = torch.randint(3, 128_000, (4, 512), generator=torch.Generator().manual_seed(1))
    warm = {"input_ids": ids[:, :8], "labels": ids[:, :8]}
    model(**warm).loss.backward()
    losses = chunked_loss(model)
    start, begin = status("VmRSS"), time.perf_counter()
    batch = {"input_ids": ids, "labels": ids}
    if way == "ours":
        ready = with_places(batch)
        loss = losses.sum(model, ready) / len(ready["targets"])
    else:
        loss = model(**batch).loss
    loss.backward()
    print(json.dumps({"peak": status("VmHWM") - start, "seconds": time.perf_counter() - begin, "loss": float(loss.detach())}))


def status(name: str) -> float:
    """Megabytes of this process, by Linux's account of it."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(name))


def memory_table() -> None:
    print("\n| loss at 128,000 words, 4 × 512 tokens | peak memory above start | seconds | loss |\n|---|---|---|---|")
    for way, words in (("plain", "the model's own"), ("ours", "ours, some positions at a time")):
        done = subprocess.run([sys.executable, __file__, "--memory-of", way], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"| {words} | {found['peak']:,.0f} MB | {found['seconds']:.1f} | {found['loss']:.4f} |", flush=True)


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def quiet() -> None:
    import logging

    import transformers

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("datasets").setLevel(logging.ERROR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["demo", "50m", "toy"], default="demo")
    parser.add_argument("--data", choices=["rows", "text"], default="rows")
    parser.add_argument("--quantization", choices=["none", "4bit"], default="none")
    parser.add_argument("--count", type=int, default=0, help="rows, or thirds of a thousand characters of text")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--ways", help="only these, with commas")
    parser.add_argument("--memory", action="store_true", help="only the memory of the loss")
    parser.add_argument("--profile", action="store_true", help="only where the time goes")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        return memory_of(options.memory_of)
    if options.memory:
        return memory_table()
    options.trl = False
    if options.quick:
        options.model, options.rounds, options.count = ("toy" if options.model == "50m" else options.model), 1, options.count or 24
    options.count = options.count or (400 if options.model == "demo" else 80)
    quiet()
    if options.profile:
        return profile_table(options)
    table(options)


if __name__ == "__main__":
    main()
