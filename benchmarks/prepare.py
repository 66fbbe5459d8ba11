"""How fast text and rows become blocks, beside the tokenizer's own batch throughput on the same text, and how much memory that takes.

    python benchmarks/prepare.py            2 and 20 MB of text, 100,000 rows: about five minutes
    python benchmarks/prepare.py --full     also 200 MB and a million rows
    python benchmarks/prepare.py --speed    without the memory, which takes longer than all else
    python benchmarks/prepare.py --quick    sizes that show only that it runs

Each figure is the median of three (one for the largest). The two ways take turns in the same process; memory is the peak above the
start, of a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))
import corpus

ROOT = Path(__file__).resolve().parent.parent


def tokenizers() -> dict[str, object]:
    from transformers import AutoTokenizer

    return {"demo": AutoTokenizer.from_pretrained(ROOT / "demo" / "model"), "32k": corpus.tokenizer()}


def timed(work) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def text_speed(tokenizer, size: int, repeats: int) -> tuple[float, float]:
    """MB a second of the tokenizer's encode_batch on the paragraphs, and of slice_text with overlapping blocks."""
    from training_pro.slicer import slice_text

    text = corpus.text(size)
    parts = [part for part in text.split("\n\n") if part.strip()]
    backend = tokenizer.backend_tokenizer
    plain, ours = [], []
    for _ in range(repeats):
        plain.append(timed(lambda: backend.encode_batch(parts, add_special_tokens=False)))
        ours.append(timed(lambda: slice_text(text, tokenizer, cutoff_len=256)))
    return len(text) / 1e6 / median(plain), len(text) / 1e6 / median(ours)


def row_speed(tokenizer, count: int, repeats: int) -> tuple[float, float]:
    """Rows a second of encode_batch on the formatted texts, and of prepare on the file."""
    from training_pro.dataset_tools import by_key_set, forget_prepared, format_row, prepare

    rows = corpus.rows(count)
    with host_with(rows) as (host, settings):
        entries = by_key_set(json.loads((ROOT / "formats" / "alpaca-format.json").read_text(encoding="utf-8")))
        texts = [format_row(row, entries) for row in rows]
        plain, ours = [], []
        for _ in range(repeats):
            plain.append(timed(lambda: tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)))
            forget_prepared()  # of a file that is the same nothing is prepared again
            ours.append(timed(lambda: prepare(settings, tokenizer, host)))
    return count / median(plain), count / median(ours)


@contextlib.contextmanager
def host_with(rows: list | None = None, text: str | None = None):
    """A host whose folder holds the data, and settings that choose it."""
    from training_pro.host import LocalHost

    with tempfile.TemporaryDirectory() as folder:
        host = LocalHost(Path(folder))
        if rows is not None:
            with open(host.datasets_dir / "bench.json", "w", encoding="utf-8") as file:
                json.dump(rows, file)
        else:
            (host.datasets_dir / "bench.txt").write_text(text or "", encoding="utf-8")
        yield host, chosen("rows" if rows is not None else "text")


def chosen(kind: str):
    from training_pro.settings import TrainingSettings

    return TrainingSettings(dataset="bench", format="alpaca-format") if kind == "rows" else TrainingSettings(raw_text_file="bench")


def memory(kind: str, folder: str, name: str) -> None:
    """In a process of its own: the peak above the start, in MB, of preparing a file; or of slice_text on a text in memory."""
    from training_pro.dataset_tools import prepare
    from training_pro.host import LocalHost
    from training_pro.settings import TrainingSettings
    from training_pro.slicer import slice_text

    tokenizer, host = tokenizers()[name], LocalHost(Path(folder))
    text = (host.datasets_dir / "bench.txt").read_text(encoding="utf-8") if kind == "slice_text" else ""
    prepare(TrainingSettings(dataset="sample-alpaca", format="alpaca-format"), tokenizer, host)  # what is imported counts as the start
    start = now()
    if kind == "slice_text":
        found = slice_text(text, tokenizer, cutoff_len=256)
    else:
        found = prepare(chosen(kind), tokenizer, host)
    print(json.dumps({"peak": max(0, peak() - start), "found": len(getattr(found, "train", found))}))


def now() -> float:
    return _status("VmRSS")


def peak() -> float:
    return _status("VmHWM")  # getrusage's ru_maxrss would also know the parent's


def _status(name: str) -> float:
    """Megabytes of this process, by Linux's account of it."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(name))


def measured_memory(kind: str, size: int, name: str) -> str:
    given = {"rows": corpus.rows(size)} if kind == "rows" else {"text": corpus.text(size)}
    with host_with(**given) as (host, _):
        command = [sys.executable, __file__, "--memory", kind, str(host.user_data), name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return f"{json.loads(done.stdout.splitlines()[-1])['peak']:,.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--tokenizer", choices=["demo", "32k"], help="only this one")
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        return memory(*options.memory)
    mb = 1_000_000
    sizes, counts = ([mb // 5], [1000]) if options.quick else ([2 * mb, 20 * mb], [100_000])
    if options.full:
        sizes, counts = [*sizes, 200 * mb], [*counts, 1_000_000]
    print("| what | tokenizer | encode_batch | ours | ratio | peak memory above start |\n|---|---|---|---|---|---|")
    for name, tokenizer in tokenizers().items():
        if options.tokenizer not in (None, name):
            continue
        for size in sizes:
            plain, ours = text_speed(tokenizer, size, 1 if size > 50 * mb else 3)
            used = (
                "not measured"
                if options.speed
                else f"slice_text {measured_memory('slice_text', size, name)}, prepare {measured_memory('text', size, name)}"
            )
            print(f"| text, {size / mb:g} MB | {name} | {plain:.2f} MB/s | {ours:.2f} MB/s | {ours / plain:.2f} | {used} |", flush=True)
        for count in counts:
            plain, ours = row_speed(tokenizer, count, 1 if count > 500_000 else 3)
            used = "not measured" if options.speed else measured_memory("rows", count, name)
            print(f"| {count:,} alpaca rows | {name} | {plain:,.0f} rows/s | {ours:,.0f} rows/s | {ours / plain:.2f} | {used} |", flush=True)


if __name__ == "__main__":
    main()
