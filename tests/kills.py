"""Kill real training processes at random moments, go on, and compare the finished adapter with an uninterrupted run's.

    python tests/kills.py --count 50 [--seed 1]

Each round starts `python -m training_pro train`, and ends it with SIGKILL (on Windows: TerminateProcess) after a random time, or within a
save: when the hidden folder appears that a checkpoint is made in, plus up to 15 ms. After every kill each checkpoint must be a
whole adapter, and of those with what an exact resume needs there must be one at most, the newest. When a run comes to its end, its adapter
must equal the uninterrupted run's file to the byte, and the next configuration begins. Exit code 1 and the reason when one of it fails.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import tiny

CONFIGURATIONS = [
    {"epochs": 6, "save_steps": 1},
    {"epochs": 10, "save_steps": 2, "grad_accumulation": 4, "neft_noise_alpha": 5, "lora_dropout": 0.05},
    {"epochs": 10, "save_steps": 1, "grad_accumulation": 3, "group_by_length": True, "neft_noise_alpha": 5, "save_total_limit": 2},
    {"epochs": 6, "save_steps": 3, "eval_dataset": "held", "eval_steps": 2, "lr_scheduler_type": "cosine", "training_projection": "all"},
]
LIMIT = 300  # seconds for one process


class Broken(AssertionError):
    """What the kills must not do."""


def make(folder: Path) -> tuple[Path, Path]:
    """A tiny model and data; returns the model's folder and user_data."""
    model, data = folder / "model", folder / "user_data"
    tokenizer = tiny.make_tokenizer(tiny.CHATML)
    tiny.make_llama(len(tokenizer)).save_pretrained(model)
    tiny.save_tokenizer(tokenizer, model)
    numbers = random.Random(0)
    rows = [{"instruction": f"say {n}", "output": " ".join(["hello"] * numbers.randint(1, 40))} for n in range(58)]
    for name, text in {
        "training/datasets/rows.json": json.dumps(rows),
        "training/datasets/held.json": json.dumps(rows[:8]),
        "training/formats/plain.json": json.dumps({"instruction,output": "Q: %instruction%\nA: %output%"}),
    }.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text(text, encoding="utf-8")
    return model, data


def command(folder: Path, model: Path, data: Path, name: str, changes: dict) -> list[str]:
    values = {"model": str(model), "user_data": str(data), "lora_name": name, "dataset": "rows", "format": "plain", "warmup_steps": 2,
              "learning_rate": "5e-3", "lora_rank": 8, "save_steps_under_loss": 0, **changes}  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML
    return [sys.executable, "-m", "training_pro", "train", str(path), "--json"]


def start(arguments: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def finish(process: subprocess.Popen) -> str:
    said, _ = process.communicate(timeout=LIMIT)
    if process.returncode:
        raise Broken(f"the process ended with {process.returncode}:\n{said}")
    return said


def kill(process: subprocess.Popen, folder: Path, chance: random.Random) -> tuple[bool, str]:
    """Let it train for a random while, then kill it. Returns whether it was killed, and in what it was."""
    began, seen = time.time(), _diary(folder)
    while process.poll() is None and _diary(folder) == seen:  # it trains once it writes there; loading the libraries is not worth a kill
        if time.time() - began > LIMIT:
            process.kill()
            raise Broken("it never began to train")
        time.sleep(0.002)
    until = time.time() + chance.uniform(0, 2)
    if chance.random() < 0.6:
        while process.poll() is None and time.time() < until + 5 and (time.time() < until or not _saving(folder)):
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.015))
    else:
        time.sleep(until - time.time() if until > time.time() else 0)
    if process.poll() is not None:
        process.communicate()
        return False, ""
    process.kill()
    process.communicate()
    return True, "a save" if _saving(folder) else "a step"  # the hidden folder lies there still


def _diary(folder: Path) -> int:
    path = folder / "run.jsonl"
    return path.stat().st_size if path.exists() else 0


def _saving(folder: Path) -> bool:
    return next(folder.glob(".*.part"), None) is not None or (folder / ".adapter").exists()


def inspect(folder: Path) -> str:
    """What lies in the folder after a kill: every checkpoint a whole adapter, the newest with a state that can be read."""
    import torch
    from safetensors.torch import load_file
    from training_pro import resume

    names = sorted(path.name for path in folder.glob("checkpoint-*"))
    for name in names:
        weights = load_file(str(folder / name / "adapter_model.safetensors"))
        if not weights or not all(torch.isfinite(weight).all() for weight in weights.values()):
            raise Broken(f"{name} is no whole adapter")
        json.loads((folder / name / "adapter_config.json").read_text(encoding="utf-8"))
    found = resume.unfinished(folder)
    if found is None:
        if names and not (folder / "adapter_model.safetensors").exists():
            raise Broken(f"there are {', '.join(names)} and none to go on from")
        return "none"
    torch.load(found.folder / resume.TENSORS, weights_only=True)
    newest = max(int(name.split("-")[1]) for name in names)
    if found.step != newest:
        raise Broken(f"the newest checkpoint is of step {newest}, and {found.folder.name} (step {found.step}) is the one to go on from")
    return found.folder.name


def rounds(folder: Path, count: int, seed: int, say=print) -> dict[str, int]:
    """Kill `count` times. Returns the figures.

    Raises:
        Broken: something was lost or differs.
    """
    model, data = make(folder)
    chance = random.Random(seed)
    figures = {"kills": 0, "within a save": 0, "went on from a checkpoint": 0, "finished and equal": 0}
    for number in range(10**6):
        changes = CONFIGURATIONS[number % len(CONFIGURATIONS)]
        reference = data / "loras" / f"whole-{number % len(CONFIGURATIONS)}"
        if not reference.exists():
            finish(start(command(folder, model, data, reference.name, changes)))
        name = f"killed-{number}"
        target, arguments = data / "loras" / name, command(folder, model, data, name, changes)
        kills = 0
        while figures["kills"] < count and kills < 6:
            killed, within = kill(process := start(arguments), target, chance)
            if not killed:
                if process.returncode:
                    raise Broken(f"it ended with {process.returncode}")
                break
            kills += 1
            figures["kills"] += 1
            figures["within a save"] += within == "a save"
            found = inspect(target)
            figures["went on from a checkpoint"] += found != "none"
            say(f"kill {figures['kills']} of {count} within {within} ({changes}): goes on from {found}")
            if found == "none" and (target / "adapter_model.safetensors").exists():
                break  # killed between its last word and its end
        else:
            finish(start(arguments))
        if (target / "adapter_model.safetensors").read_bytes() != (reference / "adapter_model.safetensors").read_bytes():
            raise Broken(f"the adapter of {name} differs from that of the uninterrupted run ({changes})")
        if (target / "training_graph.json").read_bytes() != (reference / "training_graph.json").read_bytes():
            raise Broken(f"the graph of {name} differs from that of the uninterrupted run ({changes})")
        figures["finished and equal"] += 1
        say(f"{name} is equal after {kills} kills")
        shutil.rmtree(target)
        if figures["kills"] >= count:
            return figures
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        try:
            print(rounds(Path(folder), options.count, options.seed, lambda words: print(words, flush=True)))
        except Broken as error:
            print(f"BROKEN: {error}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
