"""What a user waits for before anything is trained: the import, the page, and Start after Verify.

    python benchmarks/cold.py
    python benchmarks/cold.py --quick

Each is the median of three (with --quick one) processes of their own; gradio, and what the first run imports, are loaded before the clock runs,
since the program around us has them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))
import corpus

SCRIPT = """
import time, gradio
begin = time.perf_counter()
from training_pro import script
script.setup(), script.custom_css()
print(time.perf_counter() - begin)
"""
PAGE = """
import tempfile, time, gradio
from pathlib import Path
from training_pro import script
from training_pro.host import LocalHost
with tempfile.TemporaryDirectory() as folder:
    host = LocalHost(Path(folder))
    begin = time.perf_counter()
    script.page(host)
    print(time.perf_counter() - begin)
"""
START = """
import json, sys, tempfile, time, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import transformers
from training_pro import train_utils
from training_pro.dataset_tools import forget_prepared, prepare
from training_pro.host import DEMO_MODEL, LocalHost
from training_pro.settings import TrainingSettings
with tempfile.TemporaryDirectory() as folder:
    host = LocalHost(Path(folder))
    host.load(str(DEMO_MODEL))
    (host.datasets_dir / "bench.json").write_text(open(sys.argv[1]).read(), encoding="utf-8")

    def started(name):
        settings = TrainingSettings(lora_name=name, dataset="bench", format="alpaca-format", micro_batch_size=1, epochs=3e-4)
        run = train_utils.begin(settings, host)
        update, first = run.update, []
        def watched(**values):
            update(**values)
            if values.get("step") and not first:
                first.append(time.perf_counter())
        run.update = watched
        begin = time.perf_counter()
        train_utils.train(settings, host, run)
        return first[0] - begin

    started("once")  # what the first run imports
    forget_prepared()
    cold = started("cold")
    forget_prepared()
    begin = time.perf_counter()
    prepare(TrainingSettings(dataset="bench", format="alpaca-format"), host.tokenizer, host, look=True)
    verify = time.perf_counter() - begin
    print(json.dumps([verify, started("after"), cold]))
"""


def ran(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    times, count = (1, 500) if options.quick else (3, 20_000)
    print("| what | seconds | goal |\n|---|---|---|")
    print(f"| script.py, in a process that has gradio | {median(float(ran(SCRIPT)) for _ in range(times)):.2f} | 0.3 |", flush=True)
    print(f"| the page | {median(float(ran(PAGE)) for _ in range(times)):.2f} | 1 |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        rows.write_text(json.dumps(corpus.rows(count)), encoding="utf-8")
        verify, after, cold = (median(each) for each in zip(*(json.loads(ran(START, str(rows))) for _ in range(times)), strict=True))
    print(f"| Verify, {count:,} rows | {verify:.2f} | |")
    print(f"| Start to the first step, without Verify before | {cold:.2f} | |")
    print(f"| Start to the first step, after Verify | {after:.2f} | nothing prepared again |")


if __name__ == "__main__":
    main()
