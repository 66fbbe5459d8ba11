"""Many pages on one run: what 50 viewers cost a step, 20 Starts at once, 1,000 quick commands.

    python tests/load.py [--viewers 50] [--seconds 20] [--turns 3]      # a table in Markdown; exit code 1 where something is not as it should be

The page is a real server with the demo model; a viewer is what a browser is to it: the page's own event that follows the run, and the
stream of what is told. Windows with and without viewers take turns, forwards and backwards, so that a busy moment of the machine falls on
both. The viewers run in a process of their own; on few processors they take time from the trainer, and that is in the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent))
from homes import Standalone
from test_strangers import Stranger

MOST_SLOWER = 1.05


def event(stranger: Stranger, elem_id: str, kind: str) -> dict[str, Any]:
    """The event of this kind of a part of the page."""
    for handler in stranger.config["dependencies"]:
        for target, event_kind in handler["targets"]:
            if event_kind == kind and (stranger.parts.get(target) or {"props": {}})["props"].get("elem_id") == elem_id:
                return handler
    raise AssertionError(f"no {kind} of {elem_id}")


def opened(stranger: Stranger) -> list[list[dict[str, Any]]]:
    """The events that a browser begins when it opens the page, one after another: the first look, and the one that goes on."""
    events = stranger.config["dependencies"]
    first = [handler for handler in events if any(kind == "load" for _, kind in handler["targets"])]
    then = [handler for handler in events if handler.get("trigger_after") in [each["id"] for each in first]]
    return [first, then]


def watch(url: str, count: int, wanted: Any, heard: Any) -> None:
    """`count` viewers until `wanted` is cleared; `heard` counts what they were told."""

    async def viewer(client: httpx.AsyncClient, stranger: Stranger, number: int) -> None:
        session, prefix = f"viewer{number}x{time.time_ns()}", stranger.prefix
        for handlers in opened(stranger):
            for handler in handlers:
                data = stranger.values(handler)
                body = {"data": data, "fn_index": handler["id"], "session_hash": session, "event_data": None, "trigger_id": None}
                await client.post(f"{prefix}/queue/join", json=body)
            async with client.stream("GET", f"{prefix}/queue/data", params={"session_hash": session}) as answer:
                async for line in answer.aiter_lines():
                    if line:
                        with heard.get_lock():
                            heard.value += 1
                    if not wanted.is_set():
                        return
                    if "close_stream" in line[:100]:
                        break

    async def all_of_them() -> None:
        stranger = Stranger(_Home(url))
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=None, trust_env=False, limits=limits) as client:
            await asyncio.gather(*(viewer(client, stranger, number) for number in range(count)), return_exceptions=True)

    asyncio.run(all_of_them())


class _Home:
    def __init__(self, url: str):
        self.url = url


def logged(home: Standalone, name: str) -> list[dict[str, Any]]:
    lines = (home.loras / name / "run.jsonl").read_text(encoding="utf-8").splitlines()
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:  # is being written
            continue
    return found


def step_seconds(home: Standalone, name: str, seconds: float) -> float:
    """Mean time of a step from now on."""
    began = time.time()
    time.sleep(seconds)
    times = [entry["time"] for entry in logged(home, name) if entry["event"] == "log" and entry["time"] > began]
    return (times[-1] - times[0]) / (len(times) - 1)


def memory(home: Standalone) -> float:
    """Megabytes of the server (Linux)."""
    for line in Path(f"/proc/{home.process.pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def starts(home: Standalone, count: int, **changes: Any) -> list[str]:
    """Press Start on as many pages at one moment, each with a name of its own; what each was answered."""
    pages = [Stranger(home) for _ in range(count)]
    gate, said = threading.Barrier(count), [""] * count

    def press(number: int) -> None:
        page = pages[number]
        handler = event(page, "tp-start", "click")
        fields = {"tp-lora_name": f"load-{number}", "tp-dataset": "sample-alpaca", "tp-format": "alpaca-format", "tp-save_steps": 0, **changes}
        gate.wait()
        said[number] = page.call(handler, page.values(handler, **fields))

    threads = [threading.Thread(target=press, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def load(folder: Path, viewers: int, seconds: float, turns: int) -> dict[str, Any]:
    home = Standalone(folder)
    try:
        said = starts(home, 20, **{"tp-epochs": 400})
        begun = sum("is being trained" not in answer for answer in said)
        for _ in range(600):
            names = [path.parent.name for path in home.loras.glob("*/run.jsonl")]
            if names and any(entry["event"] == "log" for entry in logged(home, names[0])):
                break
            time.sleep(0.1)
        name = names[0]
        step_seconds(home, name, seconds)  # the first steps of a process are slow
        first, ratios, alone, watched, memories = memory(home), [], [], [], []
        for turn in range(turns):
            context = multiprocessing.get_context("spawn")
            wanted, heard = context.Event(), context.Value("q", 0)
            found = {}
            for way in ("alone", "watched") if turn % 2 == 0 else ("watched", "alone"):
                if way == "watched":
                    wanted.set()
                    process = context.Process(target=watch, args=(home.url, viewers, wanted, heard), daemon=True)
                    process.start()
                    while heard.value < 5 * viewers:
                        time.sleep(0.1)
                    time.sleep(10)  # until all pages are there
                found[way] = step_seconds(home, name, seconds)
                if way == "watched":
                    wanted.clear()
                    process.join(20)
                    process.terminate()
                    time.sleep(2)
            alone.append(found["alone"])
            watched.append(found["watched"])
            ratios.append(found["watched"] / found["alone"])
            told = heard.value
            memories.append(memory(home))
        page = Stranger(home)
        faster, slower = (event(page, elem_id, "click") for elem_id in ("tp-rate-double", "tp-rate-half"))
        began, wrong = time.time(), 0
        for number in range(1000):
            wrong += '"success":true' not in page.call(faster if number % 2 else slower, [], "commander").replace(" ", "")
        commands_took = time.time() - began
        time.sleep(3)
        obeyed = sum(entry["event"] == "command" for entry in logged(home, name))
        after_commands = memory(home)
        tracebacks = home.said().count("Traceback")
    finally:
        home.stop()
    return {
        "Starts at once": 20,
        "runs that began": begun,
        "runs on the disk": len(names),
        "a step without viewers, ms": round(1000 * statistics.median(alone), 2),
        f"a step with {viewers} viewers, ms": round(1000 * statistics.median(watched), 2),
        "ratio of each turn": " ".join(f"{ratio:.3f}" for ratio in ratios),
        "ratio": round(statistics.median(ratios), 3),
        f"lines told to {viewers} viewers in {seconds:g} s": told,
        "commands sent": 1000,
        "commands refused by the page": wrong,
        "commands in the run's diary": obeyed,
        "seconds for them": round(commands_took, 1),
        "memory before, MB": round(first, 1),
        "memory after the viewers of each turn, MB": " ".join(f"{found:.0f}" for found in memories),
        "memory after the commands, MB": round(after_commands, 1),
        "tracebacks in the log": tracebacks,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--viewers", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--turns", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = load(Path(folder), chosen.viewers, chosen.seconds, chosen.turns)
    print("\n".join(["| what | found |", "|---|---|", *(f"| {name} | {value} |" for name, value in found.items())]))
    one = found["runs that began"] == found["runs on the disk"] == 1
    obeyed = found["commands in the run's diary"] == 1000 and not found["commands refused by the page"]
    return 0 if one and obeyed and found["ratio"] <= MOST_SLOWER and not found["tracebacks in the log"] else 1


if __name__ == "__main__":
    sys.exit(main())
