"""Seconds, memory, precision and recall of `training_pro.hygiene` on made rows, beside plain ways: one Markdown table.

    python benchmarks/hygiene.py --rows 100000

2 % of the rows repeat an earlier one, 3 % are an earlier one with one or two words changed. The first number of recall is of all of
these, the second of those that have a Jaccard similarity of 0.85 or more by exact counting. datasketch is measured where it is
installed, difflib (each of 1000 rows with each) always. Every line is a process of its own; memory is its peak less what it had at the start.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

DIFFLIB_ROWS = 1000
CHUNK = 1000

_chance = random.Random(0)
VOCABULARY = ["".join(_chance.choice("etaoinshrdlucmfwygpb") for _ in range(_chance.randint(2, 9))) for _ in range(20_000)]
WEIGHTS = [1 / (rank + 10) for rank in range(len(VOCABULARY))]
_cumulated: list[float] = []
for weight in WEIGHTS:
    _cumulated.append(weight + (_cumulated[-1] if _cumulated else 0))


def words_of(row: int) -> list[str]:
    """30 to 70 words, about 300 characters."""
    chance = random.Random(row)
    return chance.choices(VOCABULARY, cum_weights=_cumulated, k=chance.randint(30, 70))


def made(row: int) -> tuple[list[str], str, int]:
    """(words, "exact", "near" or "", the row it is made from) of a row, counted from 1."""
    chance = random.Random(-row)
    kind = chance.random()
    if row < 20 or kind >= 0.05:
        return words_of(row), "", row
    source = chance.randrange(1, row)
    words, is_made, _ = made(source)
    if is_made:
        return words_of(row), "", row
    if kind >= 0.02:
        for place in chance.sample(range(len(words)), chance.randint(1, 2)):
            words[place] = "changed" + str(chance.randrange(10**6))
    return words, "exact" if kind < 0.02 else "near", source


def split(words: list[str]) -> tuple[str, str]:
    """(text, answer): the second half is what is learned."""
    half = len(words) // 2
    return " ".join(words[:half]) + "\n" + " ".join(words[half:]), " ".join(words[half:])


def with_hygiene(rows: int, near: bool) -> tuple[float, set[int], set[int]]:
    from training_pro.hygiene import EXACT, NEAR, Hygiene

    hygiene, seconds = Hygiene(near=near), 0.0
    for first in range(1, rows + 1, CHUNK):
        chunk = [(row, *split(made(row)[0])) for row in range(first, min(first + CHUNK, rows + 1))]
        start = time.perf_counter()
        for row, text, answer in chunk:
            hygiene.see(row, text, answer)
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    findings = hygiene.findings()
    seconds += time.perf_counter() - start
    if findings.not_looked and near:
        sys.exit(findings.not_looked)
    return seconds, set(findings.of(EXACT).rows), set(findings.of(NEAR).rows)


def with_datasketch(rows: int) -> tuple[float, set[int], set[int]]:
    """The loop of its documentation: insert each row that has no like among those before."""
    from datasketch import MinHash, MinHashLSH
    from training_pro.hygiene import BAND, HASHES, THRESHOLD, _shingles

    index, kept, near, seconds = MinHashLSH(num_perm=HASHES, params=(HASHES // BAND, BAND)), {}, set(), 0.0
    for first in range(1, rows + 1, CHUNK):
        chunk = [(row, split(made(row)[0])[0]) for row in range(first, min(first + CHUNK, rows + 1))]
        start = time.perf_counter()
        for row, text in chunk:
            sketch = MinHash(num_perm=HASHES)
            sketch.update_batch([shingle.encode() for shingle in _shingles(text)])
            if any(kept[other].jaccard(sketch) >= THRESHOLD for other in index.query(sketch)):
                near.add(row)
            else:
                index.insert(row, sketch)
                kept[row] = sketch
        seconds += time.perf_counter() - start
    return seconds, set(), near


def with_difflib(rows: int) -> tuple[float, set[int], set[int]]:
    """Each row with each before, by words, where the quick bounds allow it."""
    from difflib import SequenceMatcher

    texts, near = [split(made(row)[0])[0].split() for row in range(1, rows + 1)], set()
    start = time.perf_counter()
    for row, text in enumerate(texts, 1):
        matcher = SequenceMatcher(b=text, autojunk=False)
        for other in texts[: row - 1]:
            matcher.set_seq1(other)
            if matcher.real_quick_ratio() >= 0.9 and matcher.quick_ratio() >= 0.9 and matcher.ratio() >= 0.9:
                near.add(row)
                break
    return time.perf_counter() - start, set(), near


WAYS: dict[str, Callable[[int], tuple[float, set[int], set[int]]]] = {
    "hygiene, exact only": lambda rows: with_hygiene(rows, False),
    "hygiene, exact and near": lambda rows: with_hygiene(rows, True),
    "datasketch's loop": with_datasketch,
    "difflib, each with each": with_difflib,
}


def peak() -> float:
    """MB that this process had at most."""
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def line(way: str, rows: int) -> str:
    import numpy  # what training has loaded anyway is not counted
    from training_pro.hygiene import THRESHOLD, _shingles

    del numpy
    before = peak()
    seconds, exact, near = WAYS[way](rows)
    memory = peak() - before
    planted: dict[str, set[int]] = {"exact": set(), "near": set(), "": set()}
    clear = set()
    for row, words, kind, source in rows_made(rows):
        planted[kind].add(row)
        if kind == "near":
            one, two = set(_shingles(" ".join(words))), set(_shingles(" ".join(words_of(source))))
            if len(one & two) >= THRESHOLD * len(one | two):
                clear.add(row)
    hit = near & planted["near"]
    wrong = near & planted[""]  # a way that does not tell exact from near finds both
    found_exact = len((exact or near) & planted["exact"])
    cells = [f"{found_exact} of {len(planted['exact'])}"]
    if way == "hygiene, exact only":
        cells += ["", ""]
    else:
        cells += [
            f"{len(hit) / max(1, len(hit) + len(wrong)):.3f}",
            f"{len(hit) / max(1, len(planted['near'])):.3f} / {len(hit & clear) / max(1, len(clear)):.3f}",
        ]
    return f"| {way} | {rows:,} | {seconds:.1f} | {memory:.0f} | {' | '.join(cells)} |"


def rows_made(rows: int) -> Iterator[tuple[int, list[str], str, int]]:
    for row in range(1, rows + 1):
        yield row, *made(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.way:
        print(line(chosen.way, chosen.rows[0]))
        return
    print("| way | rows | seconds | MB | exact repeats found | precision of near | recall of near: all / Jaccard ≥ 0.85 |")
    print("|---|---|---|---|---|---|---|")
    import importlib.util

    for way in WAYS:
        if way.startswith("datasketch") and not importlib.util.find_spec("datasketch"):
            continue
        for rows in [min(DIFFLIB_ROWS, *chosen.rows, DIFFLIB_ROWS)] if way.startswith("difflib") else chosen.rows:
            print(
                subprocess.run([sys.executable, __file__, "--way", way, "--rows", str(rows)], check=True, capture_output=True, text=True).stdout,
                end="",
                flush=True,
            )


if __name__ == "__main__":
    main()
