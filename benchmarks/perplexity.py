"""Tokens a second, memory and value of `training_pro.perplexity` beside the plain loop: one Markdown table.

    python benchmarks/perplexity.py            # --quick: toy sizes, to see that it runs

The plain loop is that of Hugging Face's page “Perplexity of fixed-length models”: one window at a time, the logits of all its tokens,
the loss from the model. Both go over the same windows of the same tokens (the demo's text, else random), turn by turn, so that a busy
moment of the machine falls on both. Tokens a second are scored tokens in the median turn; the ratio of processor time is what is left
of it where other programs wait for the same processors. Memory is the peak of a process of its own that measures once, less its peak
once the model is loaded (on Linux its own peak, VmHWM: what `getrusage` tells begins with that of the program that started it).
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo" / "model"
MODELS = {  # hidden size, layers, vocabulary
    "demo": None,
    "Llama, 58 M, 32k vocabulary": (512, 8, 32_000),
    "Llama, 156 M, 128k vocabulary": (512, 8, 128_256),
}
QUICK = {"demo": None, "Llama, 32k vocabulary": (64, 2, 32_000), "Llama, 128k vocabulary": (64, 2, 128_256)}
WINDOW = {"stride": 512, "max_length": 1024}


def load(shape: tuple[int, int, int] | None) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(2)
    torch.manual_seed(0)
    if shape is None:
        return AutoModelForCausalLM.from_pretrained(DEMO).float().eval()
    hidden, layers, vocabulary = shape
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers, num_attention_heads=hidden // 64,
        max_position_embeddings=WINDOW["max_length"],
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def text(model: Any, length: int) -> list[int]:
    import torch

    if model.config._name_or_path == str(DEMO):
        from training_pro.perplexity import encode
        from transformers import AutoTokenizer

        return encode(AutoTokenizer.from_pretrained(DEMO), (ROOT / "datasets" / "sample-text.txt").read_text(encoding="utf-8"))[:length]
    return torch.randint(5, model.config.vocab_size, (length,), generator=torch.Generator().manual_seed(1)).tolist()


def ours(model: Any, ids: list[int]) -> float:
    from training_pro.perplexity import perplexity

    return perplexity(model, ids, **WINDOW).value


def plain(model: Any, ids: list[int]) -> float:
    import torch

    tokens, total, scored, before = torch.tensor([ids]), 0.0, 0, 0
    for begin in range(0, len(ids), WINDOW["stride"]):
        end = min(begin + WINDOW["max_length"], len(ids))
        inputs = tokens[:, begin:end]
        targets = inputs.clone()
        targets[:, : -(end - before)] = -100
        with torch.no_grad():
            loss = model(inputs, labels=targets).loss
        count = int((targets[:, 1:] != -100).sum())
        total, scored, before = total + float(loss) * count, scored + count, end
        if end == len(ids):
            break
    return math.exp(total / scored)


WAYS: dict[str, Callable[[Any, list[int]], float]] = {"ours": ours, "plain": plain}


def race(shape: tuple[int, int, int] | None, length: int, rounds: int) -> dict[str, Any]:
    """Median tokens a second and the value of each way, and the median of the turns' ratios, in seconds and in processor time."""
    model = load(shape)
    ids = text(model, length)
    values, seconds, busy = {}, {name: [] for name in WAYS}, {name: [] for name in WAYS}
    for name, way in WAYS.items():
        values[name] = way(model, ids[: 2 * WINDOW["max_length"]])  # warm, not counted
    for turn in range(rounds):
        for name in list(WAYS)[:: 1 if turn % 2 else -1]:
            began, busy_before = time.perf_counter(), time.process_time()
            values[name] = WAYS[name](model, ids)
            seconds[name].append(time.perf_counter() - began)
            busy[name].append(time.process_time() - busy_before)
    return {
        "speed": {name: (length - 1) / statistics.median(times) for name, times in seconds.items()},
        "ratio": statistics.median(slow / fast for slow, fast in zip(seconds["plain"], seconds["ours"], strict=True)),
        "busy": statistics.median(slow / fast for slow, fast in zip(busy["plain"], busy["ours"], strict=True)),
        "values": values,
    }


def memory(shape: tuple[int, int, int] | None, length: int, way: str) -> float:
    """MB at the peak, beyond those with the model loaded. A first short pass brings in the libraries' code."""
    model = load(shape)
    ids = text(model, length)
    WAYS[way](model, ids[:8])
    before = peak_mb()
    WAYS[way](model, ids)
    return peak_mb() - before


def peak_mb() -> float:
    """The most memory that this process has held so far."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def in_a_process(*arguments: str) -> Any:
    ran = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--length", type=int, default=4608, help="tokens of the text")
    parser.add_argument("--only", default="", help="models whose name has this in it")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # what a process of its own is asked for
    parser.add_argument("--model", help=argparse.SUPPRESS)
    options = parser.parse_args()
    models = QUICK if options.quick else MODELS
    if options.measure:
        shape = models[options.model]
        found = race(shape, options.length, options.rounds) if options.measure == "race" else memory(shape, options.length, options.measure)
        print(json.dumps(found))
        return
    rounds = 2 if options.quick else options.rounds
    common = [*(["--quick"] if options.quick else []), "--rounds", str(rounds), "--length", str(options.length)]
    print("| model | tokens/s, ours | plain loop | ratio | of processor time | memory MB, ours | plain loop | ratio | value, ours | plain loop |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in [name for name in models if options.only in name]:
        found = in_a_process("--measure", "race", "--model", name, *common)
        peak = {way: in_a_process("--measure", way, "--model", name, *common) for way in WAYS}
        speed, values = found["speed"], found["values"]
        print(
            f"| {name} | {speed['ours']:.0f} | {speed['plain']:.0f} | {found['ratio']:.2f}× | {found['busy']:.2f}× "
            f"| {peak['ours']:.0f} | {peak['plain']:.0f} | {peak['ours'] / max(peak['plain'], 1):.2f}× "
            f"| {values['ours']:.4f} | {values['plain']:.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
