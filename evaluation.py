"""Perplexity of several models, LoRAs and checkpoints on several texts: a job of the process, which any page can look at.

One evaluation at a time. It holds the model like a run in training does (`Host.using_model`), so that the two never use it
together: whichever came second waits, and says what for.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import checkpoints, continued, evaluations, training_run
from .auto_batch import is_out_of_memory
from .background import Job
from .checkpoints import Checkpoint
from .dataset_tools import DataError, messages_of, prepare, read_text
from .host import QUANTIZATIONS, Host, ModelError, NotFree, quantization_of
from .paths import natural_key, reason
from .perplexity import Perplexity, encode, perplexity, perplexity_of_blocks
from .rows import open_rows
from .settings import SettingsError, TrainingSettings
from .training_run import Busy
from .try_it import CannotAnswer, adapter_folder, with_adapter
from .untouched import Changed, untouched

logger = logging.getLogger(__name__)

WAITING, RUNNING = "waiting", "running"
DONE, INTERRUPTED, FAILED = training_run.DONE, training_run.INTERRUPTED, training_run.FAILED

# name → (dataset, configuration, split, column, what joins its rows), as the web UI's evaluation has them
PUBLIC = {
    "wikitext": ("wikitext", "wikitext-2-raw-v1", "test", "text", "\n\n"),
    "ptb": ("ptb_text_only", "penn_treebank", "validation", "sentence", "\n\n"),
    "ptb_new": ("ptb_text_only", "penn_treebank", "test", "sentence", " "),
}
ROWS_ALONE = {"raw_text_file": None, "eval_dataset": None, "eval_datasetJSONL": None, "hybrid_training": False, "leave_out_repeats": False}


class Stopped(Exception):
    """The user interrupted."""


@dataclass(frozen=True)
class Target:
    """What is measured: the loaded model as it is (`loaded`), a model to load (`model`), a LoRA on the loaded model (`adapter`) or the
    loaded model without any (`base`)."""

    kind: str
    name: str = ""
    quantization: str = "none"


LOADED, BASE = Target("loaded"), Target("base")


@dataclass(frozen=True)
class Request:
    """What to measure.

    `texts` are names of `PUBLIC` and of the host's text files; `rows` are JSON, JSONL, CSV or Parquet files with their ending, prepared
    by `settings` as for training: only their trained tokens are scored. `again`: also what was measured before. `run`: the
    targets are the base model and the adapters of this run, to be ranked.
    """

    targets: tuple[Target, ...]
    texts: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    stride: int = 512
    max_length: int = 0
    again: bool = False
    settings: TrainingSettings | None = None
    run: str = ""


@dataclass(frozen=True)
class Measured:
    """One figure. `total_tokens` are those to score; `before`: the date when it was measured, where it was not measured now."""

    model: str
    loras: tuple[str, ...]
    dataset: str
    value: float
    scored_tokens: int
    total_tokens: int
    partial: bool = False
    before: str = ""

    @property
    def name(self) -> str:
        return ", ".join(self.loras) or self.model


@dataclass
class Evaluation:
    """What is being measured, how far it is, and what was found. Written by the job's thread, read by any number of pages."""

    title: str
    request: Request | None = None
    status: str = WAITING
    message: str = "Beginning"
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    results: list[Measured] = field(default_factory=list)
    ranked: dict[str, Checkpoint] = field(default_factory=dict)  # of `request.run`, by their names
    learned: Any = None  # learned.Learned, of “Did it learn?”
    done: float = 0.0  # of `total`, in characters of text
    total: float = 0.0
    spent: float = 0.0  # seconds of measuring
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None
    stop_requested: bool = False

    def __post_init__(self) -> None:
        self._changed = itertools.count(1)
        self.version = 0
        self.kept: dict[str, Any] = {}  # what was prepared, by the material's name, with this tokenizer
        self.kept_for: Any = None

    @property
    def active(self) -> bool:
        return self.status in (WAITING, RUNNING)

    @property
    def elapsed(self) -> float:
        return (self.ended or time.monotonic()) - self.started

    @property
    def share(self) -> float:
        return min(1.0, self.done / self.total) if self.total else 0.0

    @property
    def remaining(self) -> float | None:
        """Seconds of measuring that are left, at the speed so far; None while it is not known."""
        if not self.active or not self.spent or not self.done:
            return None
        return self.spent * max(0.0, self.total - self.done) / self.done

    def update(self, **values: Any) -> None:
        for name, value in values.items():
            setattr(self, name, value)
        self.version = next(self._changed)

    def stop(self) -> None:
        if self.active:
            self.update(stop_requested=True)

    def raise_if_stopped(self) -> None:
        if self.stop_requested:
            raise Stopped

    def say(self, message: str) -> None:
        if message != self.message:
            self.update(message=message)

    def waited_for(self, work: Callable[[Callable[[str, float], None]], Any]) -> Any:
        """The result of work that cannot be ended from outside (a download, a tokenizer): at an interrupt it is left to itself."""
        job = Job(work)
        while not job.done.wait(0.1):
            if self.stop_requested:
                job.cancel()
                raise Stopped
        if job.error is not None:
            raise job.error
        return job.result


# One at a time in a process

_lock = threading.Lock()
_current: Evaluation | None = None


def current() -> Evaluation | None:
    """The evaluation that is going on, else the last one of this process."""
    return _current


def claim(evaluation: Evaluation) -> Evaluation:
    """Make it the process's evaluation.

    Raises:
        Busy: another one is going on.
    """
    global _current
    with _lock:
        if _current is not None and _current.active:
            raise Busy(f"“{_current.title}” is going on; interrupt it or wait for its end.")
        _current = evaluation
    return evaluation


def busy_message() -> str | None:
    """What somebody is told who wants the model while an evaluation holds it; None when none does."""
    evaluation = _current
    if evaluation is None or evaluation.status != RUNNING:
        return None
    left = "" if evaluation.remaining is None else f", about {max(1, round(evaluation.remaining / 60))} min left"
    return f"“{evaluation.title}” measures with this model ({evaluation.share:.0%} done{left}); interrupt it in Perplexity evaluation, or wait for its end."


def waiting_message() -> str | None:
    """What a chat that waits for the model is told; None when no evaluation holds it."""
    measuring = busy_message()
    return None if measuring is None else f"Training PRO: {measuring} The answer comes when it has ended."


def in_background(evaluation: Evaluation, work: Callable[[], None]) -> None:
    """Do a claimed evaluation's work in a thread of its own; whatever happens becomes its outcome."""
    threading.Thread(target=lambda: carry_out(evaluation, work), daemon=True, name="training-pro-evaluation").start()


def carry_out(evaluation: Evaluation, work: Callable[[], None]) -> Evaluation:
    """Do the work in this thread, and end the evaluation by what came of it."""
    try:
        work()
        status, message = _outcome(evaluation)
    except (Stopped, NotFree):
        status, message = INTERRUPTED, _interrupted(evaluation)
    except (SettingsError, DataError) as error:
        status, message = FAILED, "It cannot be measured."
        evaluation.problems += error.problems
    except (ModelError, CannotAnswer) as error:
        status, message = FAILED, str(error)
    except Exception as error:
        logger.exception("The evaluation failed")
        status, message = FAILED, why_failed(error)
    evaluation.kept, evaluation.kept_for, evaluation.ended = {}, None, time.monotonic()
    evaluation.update(status=status, message=message)
    return evaluation


def _outcome(evaluation: Evaluation) -> tuple[str, str]:
    if evaluation.stop_requested:
        return INTERRUPTED, _interrupted(evaluation)
    if evaluation.problems and not evaluation.results:
        return FAILED, "Nothing was measured."
    return DONE, ""


def _interrupted(evaluation: Evaluation) -> str:
    if any(result.partial for result in evaluation.results):
        return "Interrupted: what is marked as partial was measured on the beginning of its text."
    return "Interrupted: what is shown was measured to its end." if evaluation.results else "Interrupted before anything was measured."


def why_failed(error: Exception) -> str:
    """What happened in a sentence, with what to change."""
    said = training_run.first_line(error)
    if is_out_of_memory(error):
        return "Out of memory, even with one window at a time: type a smaller max_length, or load the model in 4 bits."
    if isinstance(error, OSError):
        return f"It could not be measured: {said}. Check that the file is there and can be read, then measure again."
    return f"It could not be measured: {said} ({type(error).__name__}). The log has the details."


# Begin


def start(request: Request, host: Host) -> Evaluation:
    """Check, then measure in a thread of its own. The page's way.

    Raises:
        SettingsError: with all problems; nothing was begun.
        training_run.Busy: another evaluation is going on.
    """
    if found := problems(request, host):
        raise SettingsError(found)
    evaluation = claim(Evaluation(_title(request), request))
    in_background(evaluation, lambda: measure(evaluation, request, host))
    return evaluation


def run_here(request: Request, host: Host) -> Evaluation:
    """The same in this thread, without claiming the process's place."""
    if found := problems(request, host):
        raise SettingsError(found)
    evaluation = Evaluation(_title(request), request)
    return carry_out(evaluation, lambda: measure(evaluation, request, host))


def _title(request: Request) -> str:
    count = len(request.texts) + len(request.rows)
    texts = (request.texts + request.rows)[0] if count == 1 else f"{count} datasets"
    if request.run:
        return f"Checkpoints of {request.run} on {texts}"
    names = [target.name for target in request.targets if target.name]
    what = names[0] if len(names) == 1 else f"{len(names)} {'models' if request.targets[0].kind == 'model' else 'LoRAs'}" if names else "Loaded model"
    return f"{what} on {texts}"


def problems(request: Request, host: Host) -> list[str]:
    """Everything that keeps it from beginning, each with its control and what to do."""
    found = []
    if not request.targets:
        found.append("Nothing is chosen to be measured: choose models, LoRAs or the checkpoints of a run.")
    if any(target.kind == "loaded" for target in request.targets):
        found += [problem] if (problem := loaded_problem(host)) else []
    if any(target.kind in ("adapter", "base") for target in request.targets):
        found += [problem] if (problem := host.model_problem()) else []
    found += [problem] if (problem := host.busy()) else []
    for target in request.targets:
        found += _target_problems(target, host)
    if not request.texts and not request.rows:
        found.append("Input dataset is not chosen: choose wikitext, ptb, ptb_new, a text file, or a JSON or JSONL dataset.")
    for name in request.texts:
        if name not in PUBLIC and (problem := host.data_file_problem("text", name)):
            found.append(f"Input dataset: {problem}")
    for name in request.rows:
        found += _row_problems(name, request, host)
    if request.stride < 1:
        found.append(f"Stride is {request.stride}; it must be at least 1 token.")
    if request.max_length < 0 or request.max_length == 1:
        found.append(f"max_length is {request.max_length}; it must be 0 (the model's context) or at least 2 tokens.")
    elif 0 < request.max_length < request.stride:
        found.append(f"Stride is {request.stride}; it must be at most max_length ({request.max_length}), or tokens would be left out.")
    return list(dict.fromkeys(found))


def loaded_problem(host: Host) -> str | None:
    """Why the loaded model cannot be measured as it is; its LoRAs are no hindrance."""
    if host.loras and hasattr(host.model, "peft_config"):
        return None
    return host.model_problem()


def _target_problems(target: Target, host: Host) -> list[str]:
    if target.kind == "model" and target.quantization not in QUANTIZATIONS:
        return [f"Quantization is “{target.quantization}”; it must be one of {', '.join(QUANTIZATIONS)}."]
    try:
        if target.kind == "adapter":
            adapter_folder(host, target.name)
        if target.kind == "model":
            host.source_of(target.name)
    except (CannotAnswer, ModelError) as error:
        return [str(error)]
    return []


def _row_problems(name: str, request: Request, host: Host) -> list[str]:
    from .train_utils import check_data

    kind = _kind_of_file(name)
    if problem := host.data_file_problem(kind, name):
        return [f"JSON and JSONL datasets: {problem}"]
    return [f"{name}: {problem}" for problem in check_data(settings_for(name, request.settings, host), host)]


# The texts


@dataclass(frozen=True)
class Material:
    """A text, or rows that are prepared with the model's tokenizer. `size` is about how many characters it has; `digest` is None
    for rows, whose digest is that of the prepared tokens."""

    name: str
    size: int
    digest: str | None
    text: str = ""
    settings: TrainingSettings | None = None


def materials(evaluation: Evaluation, request: Request, host: Host) -> list[Material]:
    """Read, or download, all texts; before the model is taken.

    Raises:
        DataError: with every text that cannot be read.
    """
    found, wrong = [], []
    for name in request.texts:
        evaluation.say(f"Downloading {name}" if name in PUBLIC else f"Reading {name}")
        try:
            text = evaluation.waited_for(lambda progress, name=name: public_text(name) if name in PUBLIC else text_of(host, name))
            found.append(Material(name, len(text), digest_of(text), text))
        except DataError as error:
            wrong += error.problems
    for name in request.rows:
        settings = settings_for(name, request.settings, host)
        found.append(Material(name, host.data_file(_kind_of_file(name), name).stat().st_size, None, settings=settings))
    if wrong:
        raise DataError(wrong)
    return found


def text_of(host: Host, name: str) -> str:
    """The text of a .txt of the datasets folder; of a folder of them, in natural order, parted by an empty line."""
    path = host.data_file("text", name)
    if path.is_file():
        return read_text(path)
    files = sorted(path.glob("*.txt"), key=lambda file: natural_key(file.name))
    return "\n\n".join(read_text(file) for file in files)


def public_text(name: str) -> str:
    """One of `PUBLIC`, as one text; downloaded once and then kept by `datasets`.

    Raises:
        DataError: it cannot be downloaded; says why and what to do.
    """
    import datasets

    dataset, configuration, split, column, between = PUBLIC[name]
    try:
        try:
            rows = datasets.load_dataset(dataset, configuration, split=split)
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            # datasets since 4.0 runs no scripts; the hub keeps the same rows as Parquet files.
            rows = datasets.load_dataset(dataset, configuration, split=split, revision="refs/convert/parquet")
        return between.join(rows[column])
    except Exception as error:  # datasets, the hub and the network raise many kinds
        raise DataError(
            [
                f"Input dataset: “{name}” could not be downloaded from the Hugging Face hub ({training_run.first_line(error)}). Connect this machine to the "
                "internet and try again (it is downloaded once), or put a .txt of your own into the datasets folder and choose that."
            ]
        ) from error


def _kind_of_file(name: str) -> str:
    return "jsonl" if name.lower().endswith(".jsonl") else "json"


def settings_for(name: str, settings: TrainingSettings | None, host: Host) -> TrainingSettings:
    """The settings that prepare this file alone: as chats where its first row is one, else with the Data Format."""
    chats = _kind_of_file(name) == "jsonl"
    if not chats:
        try:
            first = next(iter(open_rows(host.data_file("json", name))), None)
            chats = first is not None and messages_of(first[1]) is not None
        except (DataError, ValueError, OSError):
            pass  # what is wrong with the file is said when it is prepared
    files = {"dataset": None if chats else name, "datasetJSONL": name if chats else None}
    return (settings or TrainingSettings()).model_copy(update={**ROWS_ALONE, **files})


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# What tells that something was measured already


def identity_of(
    source: str, quantization: str, adapters: Sequence[Path], text: str | None, stride: int, max_length: int, model: Any = None
) -> dict[str, Any]:
    """What a figure depends on, as JSON; a value of None is not known.

    Args:
        source: the model's folder or hub id. Its files are told by name, size and time of change: hashing them would take as long as
            loading them.
        adapters: folders, told by the hash of weights and config.
        text: digest of the text, or of the prepared tokens.
        model: the loaded model, for what its folder does not tell (its type; the revision of a hub model).
    """
    return {
        "model": _model_print(source, model),
        "quantization": quantization,
        "dtype": None if model is None else str(model.dtype).removeprefix("torch."),
        "adapters": [_adapter_print(folder) for folder in adapters],
        "text": text,
        "stride": stride,
        "max_length": max_length,
    }


def _model_print(source: str, model: Any) -> str | None:
    folder = Path(source)
    if not folder.is_dir():
        commit = getattr(getattr(model, "config", None), "_commit_hash", None)
        return f"{source}@{commit}" if commit else None
    endings = (".safetensors", ".bin", ".json", ".model", ".pt")
    try:
        files = [(file.name, file.stat()) for file in sorted(folder.iterdir()) if file.suffix in endings and file.is_file()]
    except OSError:
        return None
    return _digest(repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]).encode("utf-8")) if files else None


def _adapter_print(folder: Path) -> str | None:
    adapter = continued.finished(folder)
    if adapter is None:
        return None
    digest = hashlib.sha256((folder / "adapter_config.json").read_bytes())
    with open(adapter.weights, "rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def digest_of(text: str) -> str:
    """What tells a text from others."""
    return _digest(text.encode("utf-8"))


def _short(quantization: str) -> str:
    """ "4bit" for what a loaded model calls "4-bit"."""
    return quantization.replace("-", "") if quantization in ("4-bit", "8-bit") else quantization


def details_of(found: Perplexity, identity: dict[str, Any]) -> dict[str, Any]:
    """What the table's file of details keeps of a figure, beside its row."""
    nll = found.nll if math.isfinite(found.nll) else None
    return {"identity": identity, "scored_tokens": found.scored_tokens, "partial": found.partial, "nll": nll}


# Measuring


def measure(evaluation: Evaluation, request: Request, host: Host) -> None:
    """The work itself, in this thread."""
    found = materials(evaluation, request, host)
    evaluation.total = float(sum(material.size for material in found) * len(request.targets))
    if request.run:
        evaluation.ranked = {target.name: checkpoints.checkpoint(host, target.name) for target in request.targets if target.name}
    with using(evaluation, host), host.loading_others() as load:
        for place, target in enumerate(request.targets):
            _target(evaluation, request, host, target, found, load)
            evaluation.update(done=evaluation.total * (place + 1) / len(request.targets))


@contextlib.contextmanager
def using(evaluation: Evaluation, host: Host) -> Iterator[None]:
    """Hold the model for an evaluation, that says meanwhile what it waits for; a model that a run left changed is loaded again."""

    def waiting() -> bool:
        run = training_run.current()
        if run is not None and run.active:
            evaluation.say(f"Waiting: {training_run.busy_message(run)}")
        return evaluation.stop_requested

    evaluation.say(f"Waiting until the model is free: {host.used_for or 'a text is being generated with it'}")
    with host.using_model(give_up=waiting, what="its perplexity is being measured"):
        evaluation.update(status=RUNNING, message="Beginning")
        if host.dirty:
            evaluation.say("Loading the base model again, since a run left it changed")
            host.reload_model()
        yield


def _target(evaluation: Evaluation, request: Request, host: Host, target: Target, found: list[Material], load: Callable[[str, str], None]) -> None:
    """One model, LoRA or checkpoint on all texts; what goes wrong with it is said, and the others go on."""
    evaluation.raise_if_stopped()
    try:
        if target.kind == "model":
            if _known_without_loading(evaluation, request, host, target, found):
                return
            evaluation.say(f"Loading {target.name}")
            load(target.name, target.quantization)
        model, folder = host.model, None
        if target.kind == "adapter":
            folder = adapter_folder(host, target.name)
        folders = [folder] if folder else [host.lora_dir / name for name in host.loras] if target.kind == "loaded" else []
        loras = [target.name] if folder else host.loras if target.kind == "loaded" else []
        subject = _Subject(host, model, host.model_name, tuple(loras), folders, folder)
        for material in found:
            _one(evaluation, request, subject, material)
    except (CannotAnswer, ModelError) as error:
        evaluation.problems.append(str(error))
        evaluation.update()
    except Changed as error:
        host.mark_dirty()
        evaluation.notices.append(f"The base model is not as it was ({error}). Reload it before you chat; the next run reloads it by itself.")


@dataclass
class _Subject:
    """What is measured, while it is loaded. `put_on`: the folder of the LoRA that is still to be put on the model."""

    host: Host
    model: Any
    name: str
    loras: tuple[str, ...]
    folders: list[Path]
    put_on: Path | None


def _known_without_loading(evaluation: Evaluation, request: Request, host: Host, target: Target, found: list[Material]) -> bool:
    """Whether all that is asked of this model was measured before, so that it need not be loaded; then it is shown."""
    if request.again:
        return False
    before = []
    for material in found:
        identity = identity_of(host.source_of(target.name), target.quantization, [], material.digest, request.stride, request.max_length)
        known = evaluations.measured_before(host.evaluations_file, identity, ignoring=("dtype",))  # which one the loader chooses by the machine
        if known is None:
            return False
        before.append(_known(*known, known[0]["Model"], (), material.name))
    evaluation.results += before
    evaluation.update()
    return True


def _known(row: dict[str, str], details: dict[str, Any], model: str, loras: tuple[str, ...], dataset: str) -> Measured:
    """A figure of the table by its present names: the same weights or the same text may have had others."""
    tokens = int(details.get("scored_tokens", 0))
    return Measured(model, loras, dataset, float(row["Perplexity"]), tokens, tokens, before=row["Date"])


def _one(evaluation: Evaluation, request: Request, subject: _Subject, material: Material) -> None:
    host, base = subject.host, evaluation.done
    evaluation.raise_if_stopped()
    what = f"{', '.join(subject.loras) or subject.name} on {material.name}"
    try:
        score, digest = prepared(evaluation, material, host)
        identity = identity_of(
            host.model_path, _short(quantization_of(subject.model)), subject.folders, digest, request.stride, request.max_length, subject.model
        )
        known = None if request.again else evaluations.measured_before(host.evaluations_file, identity)
        if known is not None:
            evaluation.results.append(_known(*known, subject.name, subject.loras, material.name))
        else:
            evaluation.say(f"Measuring {what}")
            progress = Progress(evaluation, base, material.size)
            options = {
                "stride": request.stride,
                "max_length": request.max_length,
                "progress": progress,
                "interrupted": lambda: evaluation.stop_requested,
            }
            if subject.put_on is None:
                found = score(subject.model, **options)
            else:
                with untouched(subject.model):
                    found = score(with_adapter(subject.model, subject.put_on), **options)
            _keep(evaluation, request, subject, material, found, progress.total, identity)
    except (ValueError, RuntimeError, IndexError) as error:
        if isinstance(error, (CannotAnswer, ModelError, Changed)):
            raise
        said = error.problems if isinstance(error, DataError) else [str(error) if type(error) is ValueError else why_failed(error)]
        if type(error) is not ValueError and not isinstance(error, DataError):
            logger.warning("%s was not measured", what, exc_info=error)
        evaluation.problems += [f"{what}: {sentence}" for sentence in said]
    evaluation.update(done=base + material.size)


class Progress:
    """What `perplexity` reports to: moves the evaluation on by its share of `size`, and counts the seconds."""

    def __init__(self, evaluation: Evaluation, base: float, size: float):
        self.evaluation, self.base, self.size = evaluation, base, size
        self.total, self.since = 0, time.monotonic()

    def __call__(self, scored: int, total: int) -> None:
        now = time.monotonic()
        spent, self.since, self.total = self.evaluation.spent + now - self.since, now, total
        self.evaluation.update(spent=spent, done=self.base + self.size * scored / total)


Score = Callable[..., Perplexity]


def prepared(evaluation: Evaluation, material: Material, host: Host) -> tuple[Score, str]:
    """What measures a model on this text or these rows, with the loaded tokenizer; and the digest of what is measured. Kept for as long
    as the tokenizer stays the same."""
    tokenizer = host.tokenizer
    if evaluation.kept_for is not tokenizer:
        evaluation.kept_for, evaluation.kept = tokenizer, {}
    if material.name not in evaluation.kept:
        evaluation.kept[material.name] = _prepared(evaluation, material, host, tokenizer)
    return evaluation.kept[material.name]


def _prepared(evaluation: Evaluation, material: Material, host: Host, tokenizer: Any) -> tuple[Score, str]:
    evaluation.say(f"Tokenizing {material.name}")
    if material.settings is None:
        ids = evaluation.waited_for(lambda progress: encode(tokenizer, material.text))
        return lambda model, **options: perplexity(model, ids, **options), material.digest
    from .resume import print_of

    rows = evaluation.waited_for(lambda progress: prepare(material.settings, tokenizer, host, progress)).train

    def score(model: Any, *, stride: int, max_length: int, **options: Any) -> Perplexity:
        return perplexity_of_blocks(model, rows, **options)  # each row by itself: there is no window to move

    return score, print_of(rows).sha256


def _keep(
    evaluation: Evaluation, request: Request, subject: _Subject, material: Material, found: Perplexity, total: int, identity: dict[str, Any]
) -> None:
    """Show the figure and write it into the table."""
    if not found.scored_tokens:
        return
    if not found.finite:
        evaluation.notices.append(
            f"{', '.join(subject.loras) or subject.name} on {material.name}: its figure is {found.value}; the weights or what they give are no numbers any more."
        )
    result = Measured(subject.name, subject.loras, material.name, found.value, found.scored_tokens, total, found.partial)
    evaluation.results.append(result)
    comment = f"partial: {found.scored_tokens:,} of {total:,} tokens" if found.partial else ""
    try:
        subject.host.record_evaluation(
            model=subject.name, loras=list(subject.loras), dataset=material.name, perplexity=found.value, stride=request.stride,
            max_length=request.max_length, comment=comment, details=details_of(found, identity),
        )  # fmt: skip
    except (OSError, ValueError, TimeoutError) as error:  # filelock's Timeout is a TimeoutError
        evaluation.notices.append(
            f"The table of evaluations was not written: {reason(error)}. Free some space or check the folder's rights, then measure again."
        )
    evaluation.update()


# Ranking


def ranking(evaluation: Evaluation) -> list[tuple[str, Checkpoint | None, dict[str, Measured]]]:
    """The base model (first, without a checkpoint) and the run's adapters, the best first: (name, checkpoint, figure by dataset).

    The best has the lowest mean loss per token over the datasets; what was not measured on all of them comes last.
    """
    names = list(dict.fromkeys(result.loras[0] if result.loras else "" for result in evaluation.results))
    rows = {name: {r.dataset: r for r in evaluation.results if (r.loras[0] if r.loras else "") == name} for name in names}
    most = max((len(row) for row in rows.values()), default=0)

    def place(name: str) -> tuple[bool, bool, float]:
        values = [result.value for result in rows[name].values()]
        usable = all(math.isfinite(value) and value > 0 for value in values) and not any(result.partial for result in rows[name].values())
        return name != "", len(values) < most or not usable, sum(math.log(value) for value in values) / len(values) if usable else 0.0

    return [(name, evaluation.ranked.get(name), rows[name]) for name in sorted(rows, key=place)]


def request_for_run(host: Host, run: str, **more: Any) -> Request:
    """The base model and all adapters of a run.

    Raises:
        SettingsError: the run has none.
    """
    try:
        names = checkpoints.adapters_of(host, run)
    except ValueError as error:
        raise SettingsError([f"Checkpoints of: {error}"]) from error
    if not names:
        raise SettingsError([f"Checkpoints of: “{run}” holds no checkpoint and no LoRA. Choose another."])
    return Request((BASE, *(Target("adapter", name) for name in names)), run=run, **more)
