"""What steering, watching, guarding and resuming cost: the seconds of our steps beside a bare `transformers.Trainer`'s, as a Markdown table.

    python benchmarks/callbacks.py            # --quick: few steps, to see that it runs; --profile: where our time goes

The demo model with a LoRA learns the same rows in the same order with the same optimizer and schedule; every way is timed from its first
step's beginning to its last step's end. The ways take turns in one process, forwards and backwards, so that a busy moment of the machine
falls on all; processor time is what is left where other programs wait for the same processors. The bare Trainer logs nothing. Ours looks
at every step: it logs the loss, its spread, the rate and the gradient's norm, writes them to run.jsonl, keeps the random state for an exact
resume, and asks for stops, commands and checkpoints, none of which are made here. Its loss is computed in parts (chunked_loss.py),
which is another matter than the callbacks; so there is a bare Trainer with that loss too.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import logging
import pstats
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import corpus

BARE, WITH_OUR_LOSS, OURS = "bare Trainer", "bare Trainer with our loss", "ours"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    steps, turns = (10, 1) if chosen.quick else (chosen.steps, chosen.turns)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), steps, chosen.threads)
        if chosen.profile:
            profile(bench)
            return
        print(f"{steps} steps a turn, {turns} turns of each, True Batch Size 4\n\n{table(bench, turns)}")


class Bench:
    """The demo model, rows and settings that all ways share."""

    def __init__(self, folder: Path, steps: int, threads: int):
        import torch
        import transformers
        from training_pro.dataset_tools import prepare
        from training_pro.host import LocalHost
        from training_pro.settings import TrainingSettings

        torch.set_num_threads(threads)
        transformers.logging.set_verbosity_error()
        self.host = LocalHost(folder)
        (self.host.datasets_dir / "rows.json").write_text(json.dumps(corpus.rows(steps * 4)), encoding="utf-8")
        self.host.load("demo")
        self.settings = TrainingSettings(
            lora_name="bench", dataset="rows", format="alpaca-format", epochs=1, warmup_steps=10, save_steps_under_loss=0, always_override=True
        )
        self.prepared = prepare(self.settings, self.host.tokenizer, self.host)
        self.steps = steps

    def seconds(self, way: str) -> tuple[float, float]:
        """Of the wall's clock, and of the processor's."""
        timer = make_timer()
        if way == OURS:
            self._ours(timer)
        else:
            self._bare(timer, with_our_loss=way == WITH_OUR_LOSS)
        assert timer.steps == self.steps, (way, timer.steps)
        return timer.seconds, timer.worked

    def _ours(self, timer: Any) -> None:
        from training_pro import train_utils

        train = train_utils._until_stopped

        def timed(trainer: Any) -> Any:
            trainer.add_callback(timer)
            return train(trainer)

        train_utils._until_stopped = timed
        try:
            run = train_utils.train(self.settings, self.host, train_utils.begin(self.settings, self.host))
        finally:
            train_utils._until_stopped = train
        assert run.status == "done", run.message

    def _bare(self, timer: Any, with_our_loss: bool) -> None:
        import torch
        import transformers
        from training_pro import chunked_loss
        from training_pro.adapters import attach_lora
        from training_pro.dataset_tools import Collator
        from training_pro.trainer import Order
        from training_pro.untouched import untouched
        from training_pro.versions import training_arguments
        from transformers.trainer_callback import PrinterCallback

        prepared, settings = self.prepared, self.settings
        transformers.set_seed(settings.seed)
        collator = Collator(prepared.pad_id, 1)

        class Bare(transformers.Trainer):
            losses: Any = None

            def get_train_dataloader(self) -> Any:
                order = Order(prepared.blocks.lengths, settings.seed)
                together = collator if self.losses is None else lambda items: chunked_loss.with_places(collator(items))
                return torch.utils.data.DataLoader(self.train_dataset, batch_size=4, sampler=order, collate_fn=together)

            def compute_loss(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> Any:
                if self.losses is None:
                    return super().compute_loss(model, inputs, *rest, **named)
                return self.losses.sum(model, inputs) / len(inputs["targets"])

        with tempfile.TemporaryDirectory() as out, untouched(self.host.model):
            arguments = training_arguments(
                use_cpu=True, group_by_length=False, output_dir=out, max_steps=self.steps, per_device_train_batch_size=4,
                learning_rate=settings.rate, lr_scheduler_type="linear", warmup_steps=10, optim=settings.optimizer, seed=settings.seed,
                save_strategy="no", report_to="none", logging_strategy="no", disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=False,
            )  # fmt: skip
            model = attach_lora(self.host.model, settings)
            trainer = Bare(model=model, args=arguments, train_dataset=prepared.train, callbacks=[timer])
            trainer.remove_callback(PrinterCallback)
            if with_our_loss:
                trainer.losses = chunked_loss.chunked_loss(model)
            trainer.train()


def make_timer() -> Any:
    from transformers import TrainerCallback

    class Timer(TrainerCallback):
        """From the first step's beginning to the last one's end, with what is done when a step is logged."""

        steps, begun, seconds, worked = 0, 0.0, 0.0, 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not self.begun:
                self.begun, self.worked = time.perf_counter(), -time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.steps += 1

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            self.seconds, self.worked = time.perf_counter() - self.begun, time.process_time() + self.worked

    return Timer()


def table(bench: Bench, turns: int) -> str:
    ways = [BARE, WITH_OUR_LOSS, OURS]
    for way in ways:  # once unmeasured
        bench.seconds(way)
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for turn in range(turns):
        for way in ways if turn % 2 == 0 else reversed(ways):
            found[way].append(bench.seconds(way))
    rows = ["| way | ms a step, median | beside bare | beside bare with our loss | the same of processor time |", "|---|---|---|---|---|"]
    for way in ways:
        middle = statistics.median(seconds for seconds, _ in found[way]) / bench.steps * 1000
        beside = [ratio(found[way], found[other], clock) for clock in (0, 1) for other in (BARE, WITH_OUR_LOSS)]
        rows.append(f"| {way} | {middle:.2f} | {beside[0]} | {beside[1]} | {beside[2]} / {beside[3]} |")
    return "\n".join(rows)


def ratio(ours: list[tuple[float, float]], theirs: list[tuple[float, float]], clock: int) -> str:
    """The median of the turns' ratios: each turn has both within seconds of each other."""
    return f"{statistics.median(mine[clock] / other[clock] for mine, other in zip(ours, theirs, strict=True)):.3f}"


def profile(bench: Bench) -> None:
    bench.seconds(OURS)
    profiler = cProfile.Profile()
    profiler.enable()
    bench.seconds(OURS)
    profiler.disable()
    pstats.Stats(profiler).sort_stats("cumulative").print_stats("training_pro|work|callbacks|trainer", 60)


if __name__ == "__main__":
    main()
