"""Whether a run stays as fast and as small as it began: seconds and memory per thousand steps of a run of 20,000 on a tiny model.

    python benchmarks/long_run.py               20,000 steps: about five minutes
    python benchmarks/long_run.py --quick       400 steps

A page follows the run meanwhile: every second it looks at the run, and its chart is drawn as the page has it drawn.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import corpus
from training import save_model, status


def measured(steps: int, every: int) -> list[tuple[int, float, float, float]]:
    """(step, milliseconds a step, MB of the process, milliseconds to draw the chart) after each `every` steps."""
    from training_pro import train_utils, views
    from training_pro.host import LocalHost
    from training_pro.settings import TrainingSettings
    from training_pro.tab_run import Pictures

    with tempfile.TemporaryDirectory() as folder:
        host = LocalHost(Path(folder) / "data")
        host.load(str(save_model("toy", Path(folder) / "model")))
        (host.datasets_dir / "bench.json").write_text(json.dumps(corpus.rows(64)), encoding="utf-8")
        settings = TrainingSettings(lora_name="bench", dataset="bench", format="alpaca-format", micro_batch_size=1, cutoff_len=32, lora_rank=4,
                                    epochs=steps / 64, save_steps=steps // 10, save_total_limit=2, save_steps_under_loss=0)  # fmt: skip
        run = train_utils.begin(settings, host)
        found, drawn, last = [], [0.0], [time.perf_counter(), 0]
        update = run.update

        def watched(**values):
            update(**values)
            step = values.get("step", 0)
            if step and step % every == 0 and step != last[1]:
                gc.collect()
                now = time.perf_counter()
                found.append((step, 1000 * (now - last[0]) / (step - last[1]), status("VmRSS"), max(drawn[-30:])))
                last[:] = [time.perf_counter(), step]

        run.update = watched

        def page():
            pictures = Pictures()
            while run.active:
                begin = time.perf_counter()
                pictures.of(run)
                views.status(run)
                drawn.append(1000 * (time.perf_counter() - begin))
                time.sleep(1)

        threading.Thread(target=page, daemon=True).start()
        train_utils.train(settings, host, run)
        if run.status != "done":
            raise SystemExit(f"{run.message} {run.problems}")
        size = (run.adapter / "run.jsonl").stat().st_size / 1e6
        print(f"run.jsonl: {size:.1f} MB, {len(run.history):,} entries")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--steps", type=int, default=20_000)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    steps = 400 if options.quick else options.steps
    print("| after step | ms a step | memory of the process | ms of a look at most |\n|---|---|---|---|")
    for step, pace, memory, drawn in measured(steps, steps // 10):
        print(f"| {step:,} | {pace:.2f} | {memory:,.0f} MB | {drawn:.0f} |")


if __name__ == "__main__":
    main()
