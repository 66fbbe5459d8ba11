"""Back-to-back runs of the demo model in one process: is memory flat, is a thread left, is the base model the same to the bit?

    python tests/soak.py --minutes 30          # a table in Markdown; exit code 1 where something grew or changed

The runs differ: plain, packed, with an evaluation and samples, interrupted in the middle, going on, failing (a loss that is no number). A
sixth of the time is taken to warm up: allocators and caches fill. After it, memory (resident, after a collection) may rise by no more
than the noise between two runs: the slope of a line through all its values, over the time that is left, stays below 3% of it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

MOST_GROWTH = 0.03
KINDS: list[dict[str, Any]] = [
    {},
    {"packing": True},
    {"eval_dataset": "held", "eval_steps": 5, "sample_prompts": "Who are you?", "sample_steps": 10},
    {"save_steps": 4, "interrupt": 10},
    {"lora_rank": 32, "adapter_kind": "DoRA", "optimizer": "adamw_torch"},
    {"poison": 6},
]


def resident() -> int:
    """Bytes of memory that the process holds (Linux: `/proc/self/statm`; elsewhere the most that it ever held)."""
    gc.collect()
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def logits(host: Any) -> Any:
    import torch

    with torch.no_grad():
        return host.model(torch.arange(5, 37)[None]).logits.clone()


def one(host: Any, kind: dict[str, Any], number: int) -> str:
    """A run of this kind; its status."""
    import transformers
    from training_pro import train_utils
    from training_pro.settings import TrainingSettings

    changes = dict(kind)
    interrupt, poison = changes.pop("interrupt", 0), changes.pop("poison", 0)
    settings = TrainingSettings(
        **{"lora_name": f"soak-{number % len(KINDS)}", "dataset": "rows", "format": "alpaca-format", "epochs": 1, "warmup_steps": 2,
           "save_steps_under_loss": 0, "always_override": True, **changes}
    )  # fmt: skip
    run = train_utils.begin(settings, host)
    original = transformers.Trainer.training_step

    def training_step(self: Any, *given: Any, **named: Any) -> Any:
        loss = original(self, *given, **named)
        if interrupt and self.state.global_step == interrupt:
            run.stop_requested = True
        return loss * float("nan") if poison and self.state.global_step == poison else loss

    transformers.Trainer.training_step = training_step
    try:
        train_utils.train(settings, host, run)
    finally:
        transformers.Trainer.training_step = original
    return run.status


def slope(times: list[float], values: list[float]) -> float:
    """Of the straight line through the values, by least squares."""
    middle, mean = sum(times) / len(times), sum(values) / len(values)
    spread = sum((time_ - middle) ** 2 for time_ in times)
    return sum((time_ - middle) * (value - mean) for time_, value in zip(times, values, strict=True)) / spread if spread else 0.0


def soak(folder: Path, minutes: float, say: Any = print) -> dict[str, Any]:
    import torch
    from training_pro.host import LocalHost

    host = LocalHost(folder)
    rows = json.loads((host.datasets_dir / "sample-alpaca.json").read_text(encoding="utf-8"))
    (host.datasets_dir / "rows.json").write_text(json.dumps(rows[:80]), encoding="utf-8")
    (host.datasets_dir / "held.json").write_text(json.dumps(rows[80:96]), encoding="utf-8")
    host.load("demo")
    before, weights = logits(host), {name: weight.clone() for name, weight in host.model.named_parameters()}
    began, times, values, ended, threads = time.monotonic(), [], [], {}, set()
    number = 0
    while time.monotonic() - began < minutes * 60 or number < 2 * len(KINDS):
        status = one(host, KINDS[number % len(KINDS)], number)
        ended[status] = ended.get(status, 0) + 1
        number += 1
        if number == len(KINDS):
            threads = {thread.name for thread in threading.enumerate()}
        if time.monotonic() - began > minutes * 10:
            times.append(time.monotonic() - began)
            values.append(float(resident()))
            if number % 20 == 0:
                say(f"{number} runs, {values[-1] / 2**20:.1f} MB, {threading.active_count()} threads")
    after = dict(host.model.named_parameters())
    grown = slope(times, values) * (times[-1] - times[0])
    return {
        "runs": number,
        "ended": ended,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "memory at first": round(values[0] / 2**20, 1),
        "memory at last": round(values[-1] / 2**20, 1),
        "growth by the line through all": round(grown / 2**20, 1),
        "memory is flat": grown <= MOST_GROWTH * values[0],
        "threads that are left": sorted({thread.name for thread in threading.enumerate()} - threads),
        "base model's logits are the same": bool(torch.equal(before, logits(host))),
        "base model's weights are the same": set(after) == set(weights) and all(torch.equal(after[name], weights[name]) for name in weights),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    chosen = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import logging

    logging.disable(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        found = soak(Path(folder), chosen.minutes, lambda words: print(words, file=sys.stderr, flush=True))
    print("\n".join(["| what | found |", "|---|---|", *(f"| {name} | {value} |" for name, value in found.items())]))
    good = found["memory is flat"] and not found["threads that are left"]
    return 0 if good and found["base model's logits are the same"] and found["base model's weights are the same"] else 1


if __name__ == "__main__":
    sys.exit(main())
