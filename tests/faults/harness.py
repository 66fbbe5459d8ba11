"""Let everything that writes be hit at every one of its writes, and look at what is left.

    python tests/faults/harness.py                     # every write of every work, both faults; a table in Markdown
    python tests/faults/harness.py --most 4 --json     # a few writes of each, as the suite does it

A work (a run, a split, a row of the table of evaluations …) is done in a process of its own, which is a fork of this one, on a copy
of the same folder. Python's audit events tell of each file that is opened to be written, moved, removed, each folder that is made or
removed in it. At the n-th of them the process is

- killed (SIGKILL), as a power cut or the system's killer for memory does it;
- told that the disk is full (ENOSPC), then and at every later file it opens to write, until the work has ended. In the same process the
  work is then done again on a disk with room;
- allowed files of 24 KB at most (RLIMIT_FSIZE), which also holds for what libraries write without Python.

After each: every file is whole, what was there before is there still or its successor is, the newest checkpoint can be loaded, a backup has
all that it is of, and the same work done again comes to its end, for a run with the very adapter of a run that nothing happened to. A system without fork has no harness.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import errno
import filecmp
import http.server
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import tiny

KILL, FULL, LIMIT = "killed", "disk full", "file size limited"
LONGEST = 240  # seconds for one process
SMALL_FILE = 24 * 1024
EXIT_LOST = 3


class Lost(AssertionError):
    """What a fault must not do."""


# The works


@dataclass
class Work:
    """`do` gets a host on the folder and works; it raises what a user would be told as `Told`. `sound` raises Lost where something that was
    there before is gone. `done` raises Lost where the work, done again after a fault, did not come to what it should; `over` tells whether
    it had come to its end when it was hit, so that to do it again is something else (a run goes on from the finished adapter)."""

    do: Callable[[Any], None]
    sound: Callable[[Path, Path], None]
    done: Callable[[Path, Path], None]
    model: bool = False
    over: Callable[[Path, Path], bool] = lambda folder, before: False


class Told(Exception):
    """The work did not come to its end, and said why in a sentence."""


def run_of(**changes: Any) -> Callable[[Any], None]:
    def do(host: Any) -> None:
        import torch
        from training_pro import train_utils
        from training_pro.settings import SettingsError, TrainingSettings
        from training_pro.training_run import DONE

        settings = TrainingSettings(
            **{"dataset": "rows", "format": "plain", "epochs": 0.5, "warmup_steps": 2, "learning_rate": "5e-3", "lora_rank": 4, "save_steps": 2,
               "save_total_limit": 1, "save_steps_under_loss": 0, "lora_dropout": 0.05, **changes}
        )  # fmt: skip
        before = [(name, weight.detach().clone()) for name, weight in host.model.named_parameters()]
        try:
            run = train_utils.train(settings, host, train_utils.begin(settings, host))
        except SettingsError as error:
            raise Told(" ".join(error.problems)) from error
        after = dict(host.model.named_parameters())
        if len(after) != len(before) or not all(torch.equal(weight, after[name]) for name, weight in before):
            raise Lost("the base model is not as it was")
        if run.status != DONE:
            raise Told(f"{run.message} {' '.join(run.problems)}")

    return do


def tool(work: Callable[[Any], None]) -> Callable[[Any], None]:
    def do(host: Any) -> None:
        from training_pro.evaluations import Gone
        from training_pro.file_tools import ToolError
        from training_pro.presets import PresetError

        try:
            work(host)
        except (ToolError, PresetError, Gone) as error:
            raise Told(str(error)) from error
        except OSError as error:  # what the page makes a sentence of, with the same words
            if not error.strerror:
                raise
            raise Told(error.strerror) from error

    return do


def prepared(host: Any) -> None:
    from training_pro import blocks
    from training_pro.dataset_tools import DataError, prepare
    from training_pro.settings import TrainingSettings

    blocks.IN_MEMORY = 100  # tokens; the rest goes to the disk
    settings = TrainingSettings(lora_name="x", dataset="rows", format="plain", eval_dataset="held")
    try:
        if len(prepare(settings, host.tokenizer, host).train) != 40:
            raise Lost("blocks are missing")
    except DataError as error:
        raise Told(" ".join(error.problems)) from error


def split(host: Any) -> None:
    from training_pro import file_tools

    file_tools.split(host.datasets_dir / "rows.json", 20, 1, overwrite=True)


def convert(host: Any) -> None:
    from training_pro import file_tools

    file_tools.json_to_jsonl(host.datasets_dir / "rows.json", "Be brief.", overwrite=True)


def table(host: Any) -> None:
    from training_pro import evaluations

    path = host.evaluations_file
    for number in range(2):
        host.record_evaluation(model="tiny", loras=[], dataset=f"new {number}", perplexity=7.5, stride=512, max_length=1024)
    rows = evaluations.read(path)
    evaluations.comment(path, evaluations.key(rows[0]), "seen")
    evaluations.delete(path, evaluations.key(rows[-1]))


def preset(host: Any) -> None:
    from training_pro import presets
    from training_pro.settings import TrainingSettings

    presets.save_preset(presets.presets_folder(host.datasets_dir), "gentle", TrainingSettings(lora_rank=64), overwrite=True)


def download(host: Any) -> None:
    from training_pro import downloads

    target = host.datasets_dir / "fetched.json"
    for _ in downloads.download(f"{ADDRESS}/rows.json", target, allow_private=True):
        pass


ADDRESS = ""  # of the server that `serving` starts


def nothing_lost(folder: Path, before: Path) -> None:
    """All data, formats and presets are as they were."""
    for file in (before / "training").rglob("*"):
        now = folder / file.relative_to(before)
        written = "presets" in file.parts or file.stem.endswith(("_train", "_eval"))  # by some of the works
        if file.is_file() and not written and not (now.is_file() and filecmp.cmp(file, now, shallow=False)):
            raise Lost(f"{now.name} is not as it was")


def old_or_new_adapter(name: str) -> Callable[[Path, Path], None]:
    def sound(folder: Path, before: Path) -> None:
        nothing_lost(folder, before)
        old = before / "loras" / name / "adapter_model.safetensors"
        here = folder / "loras" / name
        copies = [each for each in (here / old.name, *here.glob(f"Backup-*/{old.name}")) if each.is_file()]
        reference = before.parent / f"{before.name}-{name}.safetensors"
        for backup in here.glob("Backup-*"):
            if lacking := {file.name for file in old.parent.iterdir()} - {file.name for file in (*backup.iterdir(), *here.iterdir())}:
                raise Lost(f"{backup.name} lacks {', '.join(sorted(lacking))}")
        if not any(filecmp.cmp(old, each, shallow=False) or filecmp.cmp(reference, each, shallow=False) for each in copies):
            if not any(here.glob(f"checkpoint-*/{old.name}")):
                raise Lost(f"neither the old adapter “{name}” nor the new one is there")
            raise Lost(f"the old adapter “{name}” is gone before the new one is there")

    return sound


def the_adapter(name: str) -> Callable[[Path, Path], None]:
    def done(folder: Path, before: Path) -> None:
        found = folder / "loras" / name / "adapter_model.safetensors"
        if not filecmp.cmp(before.parent / f"{before.name}-{name}.safetensors", found, shallow=False):
            raise Lost(f"the adapter “{name}” is not that of a run that nothing happened to")
        left = [entry.name for entry in found.parent.iterdir() if entry.name.startswith(".")]
        if left:
            raise Lost(f"a finished run left {', '.join(left)}")

    return done


def is_over(name: str) -> Callable[[Path, Path], bool]:
    def over(folder: Path, before: Path) -> bool:
        from training_pro import resume

        found = folder / "loras" / name / "adapter_model.safetensors"
        reference = before.parent / f"{before.name}-{name}.safetensors"
        return found.is_file() and filecmp.cmp(reference, found, shallow=False) and resume.unfinished(found.parent) is None

    return over


def trained_on(folder: Path, before: Path) -> None:
    """It went on from the old adapter, or from itself where the fault came after it was saved; it is whole and another one than the old."""
    old, new = (place / "loras" / "kept" / "adapter_model.safetensors" for place in (before, folder))
    if filecmp.cmp(old, new, shallow=False):
        raise Lost("nothing was trained")


def old_or_new_table(folder: Path, before: Path) -> None:
    nothing_lost(folder, before)
    from training_pro import evaluations

    there = {row["Dataset"] for row in evaluations.read(folder / "logs" / "evaluations.csv")}
    lost = {f"old {number}" for number in range(4)} - there
    if lost:
        raise Lost(f"rows of the table are gone: {', '.join(sorted(lost))}")


def whole_table(folder: Path, before: Path) -> None:
    from training_pro import evaluations

    path = folder / "logs" / "evaluations.csv"
    with open(path, encoding="utf-8-sig", newline="") as file:
        if any(len(row) != 8 for row in csv.reader(file)):
            raise Lost("a row of the table is torn")
    if evaluations.read(path)[0]["Comment"] != "seen":
        raise Lost("the comment is not in the table")


def old_or_new_preset(folder: Path, before: Path) -> None:
    nothing_lost(folder, before)
    from training_pro import presets

    rank = presets.load_preset(presets.presets_folder(folder / "training" / "datasets"), "gentle")[0].lora_rank
    if rank not in (8, 64):
        raise Lost(f"the preset has a rank of {rank}")


def there(*names: str) -> Callable[[Path, Path], None]:
    def done(folder: Path, before: Path) -> None:
        for name in names:
            rows = (folder / "training" / "datasets" / name).read_text(encoding="utf-8")
            if not rows.strip():
                raise Lost(f"{name} is empty")

    return done


def nothing_more(folder: Path, before: Path) -> None:
    pass


WORKS = {
    "prepare": Work(prepared, nothing_lost, nothing_more, model=True),
    "train": Work(run_of(lora_name="new"), nothing_lost, the_adapter("new"), True, is_over("new")),
    "train over an old one": Work(run_of(lora_name="old", always_override=True), old_or_new_adapter("old"), the_adapter("old"), True, is_over("old")),
    "train on": Work(run_of(lora_name="kept", save_steps=0), old_or_new_adapter("kept"), trained_on, model=True),
    "split": Work(tool(split), nothing_lost, there("rows_train.json", "rows_eval.json")),
    "convert": Work(tool(convert), nothing_lost, there("rows.jsonl")),
    "table of evaluations": Work(tool(table), old_or_new_table, whole_table),
    "preset": Work(tool(preset), old_or_new_preset, old_or_new_preset),
    "download": Work(tool(download), nothing_lost, there("fetched.json")),
}


# One process


@dataclass
class Faults:
    """Counts the writes below a folder, and lets the n-th fail."""

    folder: str
    fault: str = ""
    at: int = 0
    count: int = 0
    on: bool = False
    places: list[str] = field(default_factory=list)

    def hear(self, event: str, given: tuple[Any, ...]) -> None:
        if not self.on or event not in EVENTS or not (writes := self._writes(event, given)):
            return
        if event == "open" or event == "os.mkdir":
            opening = True
        else:
            opening = False
        self.count += 1
        self.places.append(f"{event} {writes}")
        if self.fault == KILL and self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == FULL and self.count >= self.at and opening:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), writes)

    def _writes(self, event: str, given: tuple[Any, ...]) -> str:
        if event == "open":
            mode, flags = given[1], given[2] or 0
            if not (set(mode or "") & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                return ""
        paths = [os.fsdecode(each) for each in given if isinstance(each, (str, bytes, os.PathLike))]
        return next((path for path in paths if path.startswith(self.folder)), "")


EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


def in_a_process(what: Callable[[], Any]) -> tuple[int, Any]:
    """Call it in a fork. Returns the exit status as `os.waitpid` gives it, and what it gave back as JSON, or None."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reading)
        signal.alarm(LONGEST)
        code = 0
        try:
            answer = what()
        except Lost as error:
            answer, code = str(error), EXIT_LOST
        except BaseException:
            answer, code = traceback.format_exc()[-3000:], 1
        with os.fdopen(writing, "w") as file:
            json.dump(answer, file)
        os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as file:
        said = file.read()
    _, status = os.waitpid(child, 0)
    return status, json.loads(said) if said else None


def host_of(folder: Path, work: Work) -> Any:
    import torch
    from training_pro.host import LocalHost

    torch.set_num_threads(1)
    host = LocalHost(folder)
    if work.model:
        host.load(str(folder / "models" / "tiny"))
    return host


def attempt(folder: Path, work: Work, fault: str, at: int, before: Path | None = None) -> Any:
    """The work with a fault; where it failed and the process is still there, in the same process once more without one."""
    faults = Faults(str(folder), fault, at)
    host = host_of(folder, work)
    sys.addaudithook(faults.hear)
    said = ""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if fault == LIMIT:
        resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_FILE, limits[1]))
    faults.on = True
    try:
        work.do(host)
    except Told as error:
        said = str(error)
    finally:
        faults.on = False
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    if before is not None and said:
        if "Traceback" in said or len(said) < 12:
            raise Lost(f"it said no sentence: {said!r}")
        look(folder, before, work)
        try:
            work.do(host)
        except Told as error:
            raise Lost(f"it could not be done again in the same process: {error}") from error
    if before is not None:
        every_file_is_whole(folder)
        work.done(folder, before)
    return {"count": faults.count, "said": said, "places": faults.places}


# What is left


def every_file_is_whole(folder: Path) -> None:
    """All that has its own name; what begins with a dot is half-done work that nobody reads."""
    import torch
    from safetensors import safe_open
    from training_pro import continued, resume

    for file in sorted(folder.rglob("*")):
        if not file.is_file() or any(part.startswith(".") for part in file.relative_to(folder).parts):
            continue
        try:
            if file.suffix == ".json":
                json.loads(file.read_text(encoding="utf-8"))
            elif file.suffix == ".jsonl":
                lines = file.read_text(encoding="utf-8").splitlines()
                for line in lines[:-1] if file.name == "run.jsonl" else lines:
                    json.loads(line)
            elif file.suffix == ".safetensors":
                with safe_open(str(file), "pt") as weights:
                    if not all(torch.isfinite(weights.get_tensor(name)).all() for name in weights.keys()):  # noqa: SIM118 (it is no dict)
                        raise ValueError("not finite")
            elif file.name == resume.TENSORS:
                torch.load(file, weights_only=True)
        except Exception as error:
            raise Lost(f"{file.relative_to(folder)} is not whole: {type(error).__name__} {error}") from error
    for checkpoint in folder.glob("loras/*/checkpoint-*"):
        if continued.finished(checkpoint) is None:
            raise Lost(f"{checkpoint.name} is no whole adapter")
    for each in folder.glob("loras/*"):
        steps = [int(path.name.split("-")[1]) for path in each.glob("checkpoint-*")]
        found = resume.unfinished(each)
        if steps and found is None and continued.finished(each) is None:
            raise Lost(f"“{each.name}” has checkpoints, and none to go on from")
        if found is not None and found.progress["earlier_steps"] + found.step != max(steps):
            raise Lost(f"the newest checkpoint of “{each.name}” is of step {max(steps)}, and {found.folder.name} is the one to go on from")


def look(folder: Path, before: Path, work: Work) -> None:
    every_file_is_whole(folder)
    work.sound(folder, before)


def again(folder: Path, before: Path, work: Work) -> None:
    """A new process does the work to its end."""
    over = work.over(folder, before)
    try:
        work.do(host_of(folder, work))
    except Told as error:
        raise Lost(f"done again, it said: {error}") from error
    every_file_is_whole(folder)
    if not over:
        work.done(folder, before)


# Rounds


def make(folder: Path) -> None:
    """The folder that every work begins with: a model, data, adapters, a table, a preset."""
    from training_pro import evaluations, presets
    from training_pro.host import LocalHost
    from training_pro.settings import TrainingSettings

    tokenizer = tiny.make_tokenizer(tiny.CHATML)
    tiny.make_llama(len(tokenizer)).save_pretrained(folder / "models" / "tiny")
    tiny.save_tokenizer(tokenizer, folder / "models" / "tiny")
    host = LocalHost(folder)
    shutil.rmtree(host.datasets_dir)
    host.datasets_dir.mkdir()
    for name, rows in (("rows", tiny.ROWS), ("held", tiny.ROWS[:8]), ("rows_train", tiny.ROWS[:3]), ("rows_eval", tiny.ROWS[3:4])):
        (host.datasets_dir / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
    (host.formats_dir / "plain.json").write_text(json.dumps({"instruction,output": "Q: %instruction%\nA: %output%"}), encoding="utf-8")
    for number in range(4):
        host.record_evaluation(model="tiny", loras=[], dataset=f"old {number}", perplexity=9.25, stride=512, max_length=1024)
    presets.save_preset(presets.presets_folder(host.datasets_dir), "gentle", TrainingSettings(lora_rank=8))
    assert len(evaluations.read(host.evaluations_file)) == 4
    for name in ("old", "kept"):
        run_of(lora_name=name, save_steps=0, seed=7)(host_of(folder, WORKS["train"]))


def lost_by(status: int, answer: Any, what: str) -> str:
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
        return ""
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == EXIT_LOST:
        return f"{what}: {answer}"
    return f"{what}: the process ended with {status}: {answer}"


def one(before: Path, work: Work, fault: str, at: int) -> str:
    """What was lost; empty where nothing was."""
    with tempfile.TemporaryDirectory(dir=before.parent) as place:
        folder = Path(place) / "user_data"
        shutil.copytree(before, folder)
        status, answer = in_a_process(lambda: attempt(folder, work, fault, at, before))
        if not (fault == KILL and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            return lost_by(status, answer, "with the fault") or ("nobody was killed" if fault == KILL else "")
        for what, call in (("looked at", look), ("done again", again)):
            status, answer = in_a_process(lambda call=call: call(folder, before, work))
            if lost := lost_by(status, answer, what):
                return lost
    return ""


@contextlib.contextmanager
def serving():
    """A server for the downloads, in a thread of this process."""
    global ADDRESS

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(tiny.ROWS).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ADDRESS = f"http://127.0.0.1:{server.server_port}"
    try:
        yield
    finally:
        server.shutdown()


def rounds(folder: Path, most: int, seed: int, names: list[str], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each work and fault: how many writes it has, how many were hit, what was lost."""
    import accelerate  # noqa: F401 (every fork finds it loaded)
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers
    import transformers.trainer
    from training_pro import downloads, train_utils, trainer  # noqa: F401

    import datasets  # noqa: F401

    transformers.logging.set_verbosity_error()
    chance, found = random.Random(seed), []
    before = folder / "before"
    status, answer = in_a_process(lambda: make(before))
    if problem := lost_by(status, answer, "making the folder"):
        raise RuntimeError(problem)
    with serving():
        for name in names:
            work = WORKS[name]
            place = folder / "whole"
            shutil.copytree(before, place)
            status, answer = in_a_process(lambda work=work, place=place: attempt(place, work, "", 0))
            if problem := lost_by(status, answer, name) or answer["said"]:
                raise RuntimeError(f"{name}: {problem}")
            for adapter in place.glob("loras/*/adapter_model.safetensors"):
                shutil.copy2(adapter, folder / f"{before.name}-{adapter.parent.name}.safetensors")
            shutil.rmtree(place)
            count, places = answer["count"], answer["places"]
            for fault in (KILL, FULL, LIMIT):
                every = [1] if fault == LIMIT else list(range(1, count + 1))
                hit = sorted(chance.sample(every, min(most, len(every)))) if most else every
                began, losses = time.time(), []
                for at in hit:
                    if lost := one(before, work, fault, at):
                        losses.append(f"{name}, {fault} at {at} of {count} ({places[at - 1] if fault != LIMIT else 'a large file'}): {lost}")
                        say(losses[-1])
                found.append({"work": name, "fault": fault, "writes": count, "hit": len(hit), "lost": losses, "seconds": time.time() - began})
                say(f"{name}, {fault}: {len(hit)} of {count} writes, {len(losses)} lost, {time.time() - began:.0f} s")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=0, help="writes that are hit of each work; 0: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
    with tempfile.TemporaryDirectory() as folder:
        found = rounds(Path(folder), chosen.most, chosen.seed, chosen.only, lambda words: print(words, file=sys.stderr, flush=True))
    if chosen.json:
        print(json.dumps(found))
    else:
        print("| work | fault | writes | hit | lost |\n|---|---|---|---|---|")
        for row in found:
            print(f"| {row['work']} | {row['fault']} | {row['writes']} | {row['hit']} | {len(row['lost'])} |")
        print(f"| all | | | {sum(row['hit'] for row in found)} | {sum(len(row['lost']) for row in found)} |")
    return 1 if any(row["lost"] for row in found) else 0


if __name__ == "__main__":
    sys.exit(main())
