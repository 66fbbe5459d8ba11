"""Faults for the tests of the page: on the PYTHONPATH of a home's server, so that Python imports it at its start.

The file named in TRAINING_PRO_FAULTS, where it is there, is read at each step of a run:
`{"slow": seconds}` makes every step that long, `{"kind": "nan" | "memory" | "crash", "at": n}` lets the n-th optimizer step fail.
"""

import importlib.abc
import importlib.util
import json
import os
import sys
import time

FILE = os.environ["TRAINING_PRO_FAULTS"]


class Faults(importlib.abc.MetaPathFinder):
    """Waits for transformers' trainer, which a run imports when it begins, and lays the faults around its step."""

    def find_spec(self, name, path=None, target=None):
        if name != "transformers.trainer":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            step = module.Trainer.training_step
            module.Trainer.training_step = lambda trainer, *inputs, **named: faulty(trainer, step(trainer, *inputs, **named))

        spec.loader.exec_module = exec_module
        return spec


def faulty(trainer, loss):
    try:
        with open(FILE, encoding="utf-8") as file:
            fault = json.load(file)
    except FileNotFoundError:
        return loss
    time.sleep(fault.get("slow", 0))
    if trainer.state.global_step + 1 != fault.get("at"):
        return loss
    if fault["kind"] == "nan":
        return loss * float("nan")
    if fault["kind"] == "memory":
        import torch

        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    raise RuntimeError("a fault was injected")


sys.meta_path.insert(0, Faults())
