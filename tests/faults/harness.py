"""Let everything that writes or reads be hit at every one of its writes and reads, and look at what is left.

    python tests/faults/harness.py                     # every place of every work, all faults; a table in Markdown
    python tests/faults/harness.py --most 1 --part 1/3 --json     # a few of them, as the suite does it

A work (a run, a split, a row of the table of evaluations …) is done in a process of its own, which is a fork of this one, on a copy
of the same folder. Python's audit events tell of each file that is opened, moved, removed, each folder that is made or removed in it.

At the n-th of its writes

- the process is killed (SIGKILL), as a power cut or the system's killer for memory does it;
- the disk is full (ENOSPC), then and at every later file that is opened to be written;
- the folder may only be read (EACCES), from then on;
- the drive is gone (EIO), for reading too: a stick that is pulled out, a network folder.

At the n-th file that it reads, the file vanishes before it is opened, or is cut in half as soon as it is open. At the n-th step of a run the
loss is no number, or memory is out; at the n-th event of its callbacks one of them raises. Once, no file may be larger than 24 KB
(RLIMIT_FSIZE), which also holds for what libraries write without Python. Where this program may mount a file system (Linux, root), all of it happens on
one of 256 MB, and at the n-th write the rest of it is taken: the disk is really full, for libraries too.

Except for a kill the fault is over when the work has ended, and the work is done again in the same process. After each: every file is whole, what was
there before is there still or its successor is, the newest checkpoint can be loaded, a backup has all that it is of, the base model is the same to the bit, and the same
work done again comes to its end, for a run with the very adapter of a run that nothing happened to. A system without fork has no harness.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import csv
import errno
import filecmp
import http.server
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
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

KILL, FULL, DENIED, GONE = "killed", "disk full", "folder read-only", "drive gone"
VANISHED, CUT = "file vanishes", "file cut in mid-read"
NAN, MEMORY, CRASH = "loss no number", "out of memory", "callback crashes"
LIMIT, BRIM = "file size limited", "disk really full"
# At what each of them happens: the n-th of these
PLACES = {
    KILL: "write", FULL: "write", DENIED: "write", GONE: "write", VANISHED: "read", CUT: "read", NAN: "step", MEMORY: "step", CRASH: "callback", LIMIT: "",
    BRIM: "write",
}  # fmt: skip
ERRORS = {FULL: errno.ENOSPC, DENIED: errno.EACCES, GONE: errno.EIO}
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
        from training_pro.paths import reason
        from training_pro.presets import PresetError
        from training_pro.rows import DataError

        try:
            work(host)
        except (DataError, ToolError, PresetError, Gone) as error:
            raise Told(str(error)) from error
        except OSError as error:  # what the page makes a sentence of, with the same words
            if not error.strerror:
                raise
            raise Told(reason(error)) from error

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


def loaded(host: Any) -> None:
    from training_pro.host import ModelError

    try:
        host.load(str(host.user_data / "models" / "tiny"))
    except ModelError as error:
        raise Told(str(error)) from error


def evaluated(host: Any) -> None:
    from training_pro import evaluation
    from training_pro.settings import SettingsError

    request = evaluation.Request((evaluation.LOADED, evaluation.Target("adapter", "old")), texts=("prose",), stride=16, max_length=32, again=True)
    try:
        found = evaluation.run_here(request, host)
    except SettingsError as error:
        raise Told(" ".join(error.problems)) from error
    if found.status != evaluation.DONE or found.problems or found.notices:  # one of them: the table could not be written
        raise Told(" ".join([found.message, *found.problems, *found.notices]))
    if len(found.results) != 2:
        raise Lost("a figure is missing")


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
    if not rows:
        raise evaluations.Gone("There is no row.")  # the page shows an empty table
    evaluations.comment(path, evaluations.key(rows[0]), "seen")
    evaluations.delete(path, evaluations.key(rows[-1]))


def preset(host: Any) -> None:
    from training_pro import presets

    folder = presets.presets_folder(host.datasets_dir)
    presets.save_preset(folder, "gentle", presets.load_preset(folder, "gentle")[0].model_copy(update={"lora_rank": 64}), overwrite=True)


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


LOCK = ".run.lock"


def the_adapter(name: str) -> Callable[[Path, Path], None]:
    def done(folder: Path, before: Path) -> None:
        found = folder / "loras" / name / "adapter_model.safetensors"
        if not filecmp.cmp(before.parent / f"{before.name}-{name}.safetensors", found, shallow=False):
            raise Lost(f"the adapter “{name}” is not that of a run that nothing happened to")
        left = [entry.name for entry in found.parent.iterdir() if entry.name.startswith(".") and entry.name != LOCK]  # which nobody holds
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


def measured_table(folder: Path, before: Path) -> None:
    from training_pro import evaluations

    if sum(row["Dataset"] == "prose" for row in evaluations.read(folder / "logs" / "evaluations.csv")) < 2:
        raise Lost("what was measured is not in the table")


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
    "load a model": Work(loaded, nothing_lost, nothing_more),
    "evaluate": Work(evaluated, old_or_new_table, measured_table, model=True),
    "split": Work(tool(split), nothing_lost, there("rows_train.json", "rows_eval.json")),
    "convert": Work(tool(convert), nothing_lost, there("rows.jsonl")),
    "table of evaluations": Work(tool(table), old_or_new_table, whole_table),
    "preset": Work(tool(preset), old_or_new_preset, old_or_new_preset),
    "download": Work(tool(download), nothing_lost, there("fetched.json")),
}


# One process


@dataclass
class Faults:
    """Counts the writes and reads below a folder, the steps and the events of callbacks, and lets the n-th fail."""

    folder: str
    fault: str = ""
    at: int = 0
    on: bool = False
    places: dict[str, list[str]] = field(default_factory=lambda: {"write": [], "read": [], "step": [], "callback": []})
    taken: list[tuple[str, bytes]] = field(default_factory=list)  # files that vanished or were cut, with what was in them
    to_cut: str = ""

    @property
    def filler(self) -> Path:
        return Path(self.folder).with_name("filler")

    def install(self) -> None:
        sys.addaudithook(self.hear)
        opening = io.open

        def cut_when_open(*given: Any, **named: Any) -> Any:
            file = opening(*given, **named)
            if self.to_cut:
                path, self.to_cut = self.to_cut, ""
                os.truncate(path, os.path.getsize(path) // 2)
            return file

        builtins.open = io.open = cut_when_open
        if "transformers.trainer" not in sys.modules:
            return
        from transformers.trainer import Trainer
        from transformers.trainer_callback import CallbackHandler

        step, call_event = Trainer.training_step, CallbackHandler.call_event
        Trainer.training_step = lambda trainer, *given, **named: self.stepped(step(trainer, *given, **named))

        def calling(handler: Any, event: str, *given: Any, **named: Any) -> Any:
            answer = call_event(handler, event, *given, **named)
            if self.reached("callback", event):
                raise RuntimeError("a callback crashed")
            return answer

        CallbackHandler.call_event = calling

    def reached(self, kind: str, what: str) -> bool:
        """Whether the fault is to happen at this place."""
        if not self.on:
            return False
        self.places[kind].append(what)
        return PLACES.get(self.fault) == kind and len(self.places[kind]) == self.at

    def stepped(self, loss: Any) -> Any:
        if self.reached("step", "step"):
            if self.fault == NAN:
                return loss * float("nan")
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 2147483648 bytes."
            )
        return loss

    def hear(self, event: str, given: tuple[Any, ...]) -> None:
        if not self.on or event not in EVENTS:
            return
        path = next(
            (path for path in (os.fsdecode(each) for each in given if isinstance(each, (str, bytes, os.PathLike))) if path.startswith(self.folder)),
            "",
        )
        if not path:
            return
        if event in LISTING or (event == "open" and not _to_be_written(given)):
            if self.fault == GONE and len(self.places["write"]) >= self.at:
                raise OSError(errno.EIO, os.strerror(errno.EIO), path)
            if event == "open" and os.path.isfile(path) and self.reached("read", path):
                self.take(path)
            return
        if self.reached("write", f"{event} {path}"):
            if self.fault == KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == BRIM:
                self.fill()
        opening = event in ("open", "os.mkdir")
        if self.fault in ERRORS and len(self.places["write"]) >= self.at and (opening or self.fault != FULL):
            raise OSError(ERRORS[self.fault], os.strerror(ERRORS[self.fault]), path)

    def fill(self) -> None:
        """Take what is left of the disk."""
        with open(self.filler, "wb") as file:
            left = os.statvfs(self.filler)
            os.posix_fallocate(file.fileno(), 0, left.f_bavail * left.f_frsize)

    def take(self, path: str) -> None:
        self.on = False
        with open(path, "rb") as file:
            self.taken.append((path, file.read()))
        if self.fault == VANISHED:
            os.remove(path)
        else:
            self.to_cut = path
        self.on = True

    def give_back(self) -> str:
        """What vanished or was cut comes back; the file's name where the work has written it anew meanwhile, or copied what was left of it."""
        for path, data in self.taken:
            here, left = Path(path), data[: len(data) // 2]
            if here.parent.is_dir() and (not here.exists() or here.read_bytes() == left):
                here.write_bytes(data)
                if self.fault == VANISHED or not any(other.read_bytes() == left for other in here.parent.rglob(here.name)):
                    continue
            return here.name
        return ""


def _to_be_written(given: tuple[Any, ...]) -> bool:
    mode, flags = given[1], given[2] or 0
    return bool(set(mode or "") & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


LISTING = ("os.listdir", "os.scandir")
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", *LISTING}


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
    faults.install()
    said = ""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if fault == LIMIT:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # which may be a file too
        resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_FILE, limits[1]))
    faults.on = True
    try:
        work.do(host)
    except Told as error:
        said = str(error)
    finally:
        faults.on = False
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    faults.filler.unlink(missing_ok=True)
    lost = faults.give_back()
    if lost:  # a file of which another program took half, and the work went on with the other half
        every_file_is_whole(folder, but=lost)
        return {"said": said, "places": faults.places}
    if before is not None and said:
        if "Traceback" in said or "[Errno" in said or len(said) < 12:
            raise Lost(f"it said no sentence: {said!r}")
        look(folder, before, work)
        try:
            work.do(host)
        except Told as error:
            raise Lost(f"it could not be done again in the same process: {error}") from error
    if before is not None:
        every_file_is_whole(folder)
        if said or not faults.taken:  # else it was done with what was left of a file, which may be less
            work.done(folder, before)
    return {"said": said, "places": faults.places}


# What is left


def every_file_is_whole(folder: Path, but: str = "") -> None:
    """All that has its own name; what begins with a dot is half-done work that nobody reads."""
    import torch
    from safetensors import safe_open
    from training_pro import continued, resume

    for file in sorted(folder.rglob("*")):
        if not file.is_file() or file.name == but or any(part.startswith(".") for part in file.relative_to(folder).parts):
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
    (host.datasets_dir / "prose.txt").write_text("hello world what colour is the sky blue grass green " * 40, encoding="utf-8")
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


def rounds(
    folder: Path, most: int, seed: int, names: list[str], faults: list[str], part: tuple[int, int], at_only: list[int], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """A row for each work and fault: how many places it has, how many were hit, what was lost."""
    import accelerate  # noqa: F401 (every fork finds it loaded)
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers
    import transformers.trainer
    from training_pro import downloads, train_utils, trainer  # noqa: F401

    import datasets  # noqa: F401

    transformers.logging.set_verbosity_error()
    chance, found, number = random.Random(seed), [], 0
    part, parts = part
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
            for fault in faults:
                places = answer["places"].get(PLACES[fault], ["a large file"])
                every = list(range(1, len(places) + 1))
                number += 1
                if not every or number % parts != part % parts:
                    continue
                every = [place for place in every if not at_only or place in at_only]
                hit = sorted(chance.sample(every, min(most, len(every)))) if most else every
                began, losses = time.time(), []
                for at in hit:
                    if lost := one(before, work, fault, at):
                        losses.append(f"{name}, {fault} at {at} of {len(places)} ({places[at - 1]}): {lost}")
                        say(losses[-1])
                found.append({"work": name, "fault": fault, "places": len(places), "hit": len(hit), "lost": losses, "seconds": time.time() - began})
                say(f"{name}, {fault}: {len(hit)} of {len(places)}, {len(losses)} lost, {time.time() - began:.0f} s")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=0, help="places that are hit of each work; 0: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--faults", nargs="*", choices=list(PLACES), default=list(PLACES))
    parser.add_argument("--at", nargs="*", type=int, help="only these places, as they are named where something was lost")
    parser.add_argument("--part", default="1/1", help="of all pairs of a work and a fault: 1/3 is every third")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
    part = tuple(int(number) for number in chosen.part.split("/"))
    with tempfile.TemporaryDirectory() as folder, on_a_disk_of_its_own(folder) as mounted:
        faults = [fault for fault in chosen.faults if fault != BRIM or mounted]
        found = rounds(
            Path(folder),
            chosen.most,
            chosen.seed,
            chosen.only,
            faults,
            part,
            chosen.at or [],
            lambda words: print(words, file=sys.stderr, flush=True),
        )
    if chosen.json:
        print(json.dumps(found))
    else:
        print(table_of(found))
    return 1 if any(row["lost"] for row in found) else 0


@contextlib.contextmanager
def on_a_disk_of_its_own(folder: str):
    """Mount a small file system there; yields whether that was allowed."""
    mounted = (
        bool(shutil.which("mount"))
        and subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", folder], capture_output=True).returncode == 0
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", folder], capture_output=True)


def table_of(found: list[dict[str, Any]]) -> str:
    """A line for each work: how often each fault was let in, and what was lost by all of them."""
    faults = [fault for fault in PLACES if any(row["fault"] == fault for row in found)]
    lines = [f"| work | {' | '.join(faults)} | lost |", "|---" * (len(faults) + 2) + "|"]
    for name in [*dict.fromkeys(row["work"] for row in found), "all"]:
        rows = [row for row in found if name in (row["work"], "all")]
        hits = [sum(row["hit"] for row in rows if row["fault"] == fault) for fault in faults]
        lines.append(f"| {name} | {' | '.join(str(hit or '') for hit in hits)} | {sum(len(row['lost']) for row in rows)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
