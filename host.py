"""The program that the tab lives in: `LocalHost` is our own page and command line, `WebuiHost` is text-generation-webui.

A run asks its host for the model and the folders; nothing but this module knows what the host is.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import evaluations
from .paths import name_problem, natural_key, path_in, reason, refuse_links_out, shown_name
from .rows import is_hub_name
from .versions import dtype_argument

HERE = Path(__file__).resolve().parent
DEMO_MODEL = HERE / "demo" / "model"
SHIPPED_FORMATS = HERE / "formats"
SHIPPED_DATASETS = HERE / "datasets"

NO_MODEL = "None"  # as text-generation-webui writes it
QUANTIZATIONS = ("none", "4bit", "8bit")

# Endings of each kind of data file, in the order in which a name is looked up.
ENDINGS = {"json": [".json", ".csv", ".parquet"], "jsonl": [".jsonl", ".json", ".parquet"], "text": [".txt"], "format": [".json"],
           "template": [".jinja", ".jinja2", ".yaml", ".yml"]}  # fmt: skip


@dataclass(frozen=True)
class ModelFacts:
    """What the line on top of the page says of the loaded model."""

    name: str
    architecture: str
    parameters: int
    quantization: str  # 4-bit, 8-bit, none, or the name of another method
    dtype: str
    device: str
    context: int | None
    hint: str = ""  # what would make training better on this machine

    @property
    def size(self) -> str:
        """The number of parameters as one says it."""
        for unit, word in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
            if self.parameters >= unit:
                return f"{self.parameters / unit:.3g} {word}"
        return str(self.parameters)

    @property
    def weights(self) -> str:
        return self.dtype if self.quantization == "none" else f"{self.quantization} quantised"


def model_facts(model: Any, name: str) -> ModelFacts:
    """The facts of the base model, also while a run's LoRA layers are in it."""
    parameter = next(model.parameters())
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    return ModelFacts(
        name=name,
        architecture=type(model).__name__,
        parameters=model.num_parameters() - sum(weight.numel() for name, weight in model.named_parameters() if ".lora_" in name),
        quantization=quantization_of(model),
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(parameter.device),
        context=getattr(config, "max_position_embeddings", None),
        hint=_card_hint(parameter.device.type),
    )


def _card_hint(device: str) -> str:
    """On Windows the usual PyTorch is made for the CPU alone, and a card beside it goes unused without a word."""
    import torch

    if device != "cpu" or torch.cuda.is_available() or shutil.which("nvidia-smi") is None:
        return ""
    return "An NVIDIA card seems to be here, but this PyTorch cannot use it: install PyTorch's CUDA build (see “Using your graphics card” in the README)."


def quantization_of(model: Any) -> str:
    """ "4-bit", "8-bit", "none", or the name of a quantisation that is not BitsAndBytes."""
    if getattr(model, "is_loaded_in_4bit", False):
        return "4-bit"
    if getattr(model, "is_loaded_in_8bit", False):
        return "8-bit"
    method = getattr(model, "quantization_method", None)
    return "none" if method is None else str(getattr(method, "value", method))


class Host:
    """What a run and the page ask of the program they live in."""

    models_dir: Path
    lora_dir: Path
    datasets_dir: Path
    formats_dir: Path
    logs_dir: Path
    multi_user = False
    used_for = ""  # what the model is held for at the moment, where whoever holds it says so

    # The model

    @property
    def model(self) -> Any:
        raise NotImplementedError

    @property
    def tokenizer(self) -> Any:
        raise NotImplementedError

    @property
    def model_name(self) -> str:
        raise NotImplementedError

    @property
    def model_path(self) -> str:
        """What an adapter's `base_model_name_or_path` should say: a folder or a hub id."""
        raise NotImplementedError

    def reload_model(self) -> None:
        """Load the same model again, as it is on disk."""
        raise NotImplementedError

    def mark_dirty(self) -> None:
        """Note that the model is not as it was before a run; the next run reloads it."""
        raise NotImplementedError

    @property
    def dirty(self) -> bool:
        raise NotImplementedError

    @contextlib.contextmanager
    def using_model(self, give_up: Callable[[], bool] = lambda: False, what: str = "") -> Iterator[None]:
        """Hold the model for a run or an evaluation, so that nothing else uses it meanwhile; waits until it is free.

        Args:
            give_up: asked while waiting; True ends the wait.
            what: said to who waits for it, as `used_for`.

        Raises:
            NotFree: `give_up` ended the wait.
        """
        lock = self._model_lock()
        while not lock.acquire(timeout=0.2):
            if give_up():
                raise NotFree
        self.used_for = what
        try:
            yield
        finally:
            self.used_for = ""
            self._model_was_used()
            lock.release()

    def _model_lock(self) -> Any:
        raise NotImplementedError

    def _model_was_used(self) -> None:
        """Called at the end of a use."""

    def busy(self) -> str | None:
        """Who else uses the model without holding it, and what to do; None when nobody does."""
        return None

    def trainable_models(self) -> list[str]:
        """Names of the folders of the models' directory that hold a model in Transformers format."""
        with contextlib.suppress(OSError):
            return sorted((name for name, folder in _shown(self.models_dir) if _is_trainable(folder)), key=natural_key)
        return []

    def offered_models(self) -> list[str]:
        """What the page offers to load."""
        return self.trainable_models()

    def suggested_load(self) -> tuple[str | None, str]:
        """The model and the quantization that the page proposes to load."""
        raise NotImplementedError

    loading_help = ""  # what else may be typed as the name of a model

    def model_mark(self) -> tuple[Any, ...]:
        """Differs from an earlier one when another model, or the same with other adapters, is loaded."""
        return id(self.model), self.model_name, self.dirty

    def load(self, model: str, quantization: str = "none") -> None:
        """Load a model for training, in the place of the one that is loaded.

        Args:
            model: a name of `trainable_models()`; what else a host takes, it says.
            quantization: none, 4bit (NF4) or 8bit (BitsAndBytes).

        Raises:
            ModelError: it cannot be loaded; the message says why and what to do.
        """
        raise NotImplementedError

    @property
    def loras(self) -> list[str]:
        """Names of the LoRAs that the user has put on the model in the host's own way."""
        return []

    def stranger_problem(self, model: str) -> str | None:
        """Why somebody who is not known to sit at this machine may not have this loaded; None when they may.

        A path typed on a page that others open would tell them which folders there are, and load what lies in them.
        """
        if model in self.offered_models():
            return None
        return f"“{_name_shown(model)}” is none of the models that are offered. Refresh the list and choose again."

    def source_of(self, model: str) -> str:
        """What `load` would load by this name: a folder or a hub id.

        Raises:
            ModelError: there is no such model.
        """
        return str(self.models_dir / model)

    @contextlib.contextmanager
    def loading_others(self) -> Iterator[Callable[[str, str], None]]:
        """Load models one after another within `using_model`; at the end, also after an error, the one from before is loaded again
        with its LoRAs.

        Yields:
            `load(model, quantization)` as the method of that name; called at most for what is really needed.

        Raises:
            ModelError: the model from before cannot be loaded again; the message names it.
        """
        raise NotImplementedError

    def instruction_template(self) -> str | None:
        """The host's chat template (Jinja), for a tokenizer that has none."""
        return None

    def how_to_load(self) -> str:
        """Where the user loads a model in this host; ends a sentence about a missing or unsuitable one."""
        raise NotImplementedError

    def model_problem(self) -> str | None:
        """Why the loaded model cannot be trained, and what to do; None when it can."""
        if self.model is None:
            return f"No model is loaded. {self.how_to_load()}"
        transformers = sys.modules.get("transformers")  # where it was never imported, no model of it can be loaded
        if transformers is None or not isinstance(self.model, transformers.PreTrainedModel):
            if hasattr(self.model, "peft_config"):
                return f"The model has adapters on it ({', '.join(self.model.peft_config)}). Unload them first: a LoRA is trained on the base model."
            return (
                f"“{self.model_name}” is loaded as {type(self.model).__name__}, which cannot be trained (GGUF and EXL files cannot). "
                f"Load the original model with the Transformers loader. {self.how_to_load()}"
            )
        if getattr(self.model, "peft_config", None) and getattr(self.model, "_hf_peft_config_loaded", False):
            return "The model has adapters on it. Unload them first: a LoRA is trained on the base model."
        if self.tokenizer is None:
            return f"“{self.model_name}” has no tokenizer. {self.how_to_load()}"
        if not getattr(self.model.config, "is_decoder", True) and getattr(self.model.config, "is_encoder_decoder", False):
            return f"“{self.model_name}” is not a text generator that continues a text (a causal language model). {self.how_to_load()}"
        return None

    @property
    def facts(self) -> ModelFacts | None:
        return None if self.model_problem() else model_facts(self.model, self.model_name)

    @property
    def context_length(self) -> int | None:
        facts = self.facts
        return facts.context if facts else None

    # The folders

    def run_folder(self, name: str) -> Path:
        """The folder of a LoRA; whether anything is there is not looked at.

        Raises:
            ValueError: not a plain name, or something in the folder is a link that leads out of it.
        """
        folder = path_in(self.lora_dir, name)
        refuse_links_out(folder)
        return folder

    def adapter_folder(self, name: str) -> Path:
        """As `run_folder`, or the folder of a checkpoint, which is named as run/checkpoint-120."""
        run, slash, checkpoint = name.partition("/") if isinstance(name, str) else (name, "", "")
        folder = self.run_folder(run)
        if slash:
            folder = path_in(folder, checkpoint)
            refuse_links_out(folder)
        return folder

    def adapters(self, newest_first: bool = False) -> list[str]:
        """Names of the folders of the adapters' directory that hold a LoRA or the settings of one."""
        found = []
        with contextlib.suppress(OSError):
            for _, folder in _shown(self.lora_dir):
                if any((folder / name).is_file() for name in ("adapter_config.json", "training_parameters.json")):
                    found.append(folder)
        if newest_first:
            return [folder.name for folder in sorted(found, key=lambda folder: folder.stat().st_mtime, reverse=True)]
        return sorted((folder.name for folder in found), key=natural_key)

    def data_files(self, kind: str) -> list[str]:
        """Names, without ending, of the files of a kind: json, jsonl, text (with folders of .txt) or format."""
        names = set()
        with contextlib.suppress(OSError):
            for _, file in _shown(self._folder_of(kind)):
                if file.suffix.lower() in ENDINGS[kind] and file.is_file():
                    names.add(file.name[: -len(file.suffix)])
                elif kind == "text" and file.is_dir() and next(file.glob("*.txt"), None):
                    names.add(file.name)
        return sorted(names, key=natural_key)

    def data_file(self, kind: str, name: str) -> Path:
        """The file of this name, or for text the folder.

        Raises:
            ValueError: the name is not a plain name, or leads out of its folder by a link.
            FileNotFoundError: there is no such file.
        """
        folder = self._folder_of(kind)
        if not isinstance(name, str):
            raise ValueError(f"The name is {name!r}; type a name.")
        for ending in ENDINGS[kind]:
            plain = name[: -len(ending)] if name.lower().endswith(ending) else name  # as one types it in a run's file
            if (path := path_in(folder, plain, ending)).is_file():
                return path
        if kind == "text" and (path := path_in(folder, name)).is_dir():
            refuse_links_out(path)
            return path
        raise FileNotFoundError(
            f"“{name}{ENDINGS[kind][0]}” is not in the folder {folder.name}; it may have been moved or renamed. Refresh the list and choose again."
        )

    def data_file_problem(self, kind: str, name: str) -> str | None:
        if kind in ("json", "jsonl") and isinstance(name, str) and is_hub_name(name):
            return None  # whether the hub has it shows when it is read
        try:
            self.data_file(kind, name)
        except (ValueError, OSError) as error:
            return reason(error)
        return None

    def _folder_of(self, kind: str) -> Path:
        return {"format": self.formats_dir, "template": self.templates_dir}.get(kind, self.datasets_dir)

    @property
    def scratch_dir(self) -> Path:
        """Where prepared data lies that is too much for memory."""
        return self.logs_dir.parent / "cache" / "training_pro"

    @property
    def templates_dir(self) -> Path:
        """The instruction templates, as the web UI keeps them."""
        return self.user_data / "instruction-templates"

    @property
    def evaluations_file(self) -> Path:
        return self.logs_dir / "evaluations.csv"

    def record_evaluation(self, **values: Any) -> dict[str, str]:
        """Add a row to the table of evaluations; `values` are those of `evaluations.add`. Gives the row back."""
        row = evaluations.add(self.evaluations_file, **values)
        self.evaluations_changed()
        return row

    def evaluations_changed(self) -> None:
        """Called when the table of evaluations was written."""

    def make_folders(self) -> None:
        """Make the folders that are missing, with the shipped formats and datasets in those that are new or empty."""
        for folder in (self.models_dir, self.lora_dir, self.logs_dir):
            folder.mkdir(parents=True, exist_ok=True)
        for folder, shipped in ((self.formats_dir, SHIPPED_FORMATS), (self.datasets_dir, SHIPPED_DATASETS)):
            folder.mkdir(parents=True, exist_ok=True)
            if next(folder.iterdir(), None) is None:
                for file in shipped.iterdir():
                    if file.is_file():
                        shutil.copyfile(file, folder / file.name)


class LocalHost(Host):
    """Our own page and command line: it loads the model itself, from a folder, from the hub, or the embedded demo model."""

    def __init__(self, user_data: str | Path, *, trust_remote_code: bool = False):
        self.user_data = Path(user_data)
        self.models_dir = self.user_data / "models"
        self.lora_dir = self.user_data / "loras"
        self.datasets_dir = self.user_data / "training" / "datasets"
        self.formats_dir = self.user_data / "training" / "formats"
        self.logs_dir = self.user_data / "logs"
        self.trust_remote_code = trust_remote_code
        self._model = self._tokenizer = None
        self._name = NO_MODEL
        self._source = ""
        self._quantization = "none"
        self._dirty = False
        self._lock = threading.RLock()
        self.make_folders()

    @property
    def model(self) -> Any:
        return self._model

    @property
    def tokenizer(self) -> Any:
        return self._tokenizer

    @property
    def model_name(self) -> str:
        return self._name

    @property
    def model_path(self) -> str:
        return self._source

    @property
    def dirty(self) -> bool:
        return self._dirty

    def mark_dirty(self) -> None:
        self._dirty = True

    def _model_lock(self) -> Any:
        return self._lock

    def offered_models(self) -> list[str]:
        return ["demo", *self.trainable_models()]

    def suggested_load(self) -> tuple[str | None, str]:
        return "demo", "none"

    loading_help = "demo, a folder of user_data/models, the path of a folder, or a hub name such as name/model."

    def how_to_load(self) -> str:
        return "Choose one under “Load another model” on the page, or start the program with --model and the folder or hub name of a model in Transformers format."

    def load(self, model: str = "demo", quantization: str = "none") -> None:
        """Load a model for training.

        Args:
            model: "demo", a name in the models folder, a path, or a hub id.
            quantization: none, 4bit (NF4) or 8bit (BitsAndBytes).

        Raises:
            ModelError: it cannot be loaded; the message says why and what to do.
        """
        if quantization not in QUANTIZATIONS:
            raise ModelError(f"quantization is “{quantization}”; it must be one of {', '.join(QUANTIZATIONS)}.")
        source = self._find(model)
        with self._lock:
            self._model = self._tokenizer = None
            self._name = NO_MODEL
            free_memory()
            self._model, self._tokenizer = load_transformers_model(source, quantization, self.trust_remote_code)
            self._name = "demo" if source == str(DEMO_MODEL) else Path(source).name
            self._source, self._quantization, self._dirty = source, quantization, False

    def reload_model(self) -> None:
        self.load(self._source, self._quantization)

    def source_of(self, model: str) -> str:
        return self._find(model)

    def stranger_problem(self, model: str) -> str | None:
        # transformers takes a folder for the hub's name where one of that name is there.
        if isinstance(model, str) and _HUB_MODEL.fullmatch(model) and not os.path.exists(model):
            return None
        if problem := super().stranger_problem(model):
            return f"{problem} A folder elsewhere is loaded only for a browser on this machine, while the page is not open to others, or by --model."
        return None

    @contextlib.contextmanager
    def loading_others(self) -> Iterator[Callable[[str, str], None]]:
        before, source, quantization = self._model, self._source, self._quantization
        name, had = self._name, before is not None
        del before  # two models at once may be more than fits
        used = False

        def load(model: str, quantization: str) -> None:
            nonlocal used
            used = True
            self.load(model, quantization)

        try:
            yield load
        finally:
            if used:
                with self._lock:
                    self._model = self._tokenizer = None
                    self._name = NO_MODEL
                free_memory()
            if used and had:
                with _named_as_before(name):
                    self.load(source, quantization)

    def _find(self, model: str) -> str:
        if model == "demo":
            return str(DEMO_MODEL)
        if not isinstance(model, str) or not model.strip() or "\0" in model:
            raise ModelError(f"“{_name_shown(model)}” is no name of a model. Give {self.loading_help[0].lower()}{self.loading_help[1:]}")
        for path in (self.models_dir / model, _at_home(model)):
            if os.path.isdir(path):  # pathlib raises for a name that is too long
                return str(path.resolve())
            if os.path.isfile(path):
                raise ModelError(
                    f"“{path.name}” is a single file; GGUF and similar files cannot be trained. Give the folder of the original model (with config.json and safetensors)."
                )
        if not _HUB_MODEL.fullmatch(model):
            raise ModelError(
                f"There is no folder “{_name_shown(model)}”. Give the folder of a model in Transformers format, or a hub id such as name/model."
            )
        return model


_HUB_MODEL = re.compile(r"(?=.{1,96}\Z)[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def _at_home(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # “~nobody”: there is no such user
        return Path(path)


def _name_shown(name: Any) -> str:
    return shown_name(name if isinstance(name, str) else repr(name))


@contextlib.contextmanager
def _named_as_before(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ModelError(f"“{name}”, which was loaded before, could not be loaded again: {error} Load it by hand.") from error


def _shown(folder: Path) -> Iterator[tuple[str, Path]]:
    """What a folder holds, but not what is hidden, and not what has a name that no page could show or send back."""
    for path in folder.iterdir():
        if not path.name.startswith(".") and name_problem(path.name) is None:
            yield path.name, path


class ModelError(RuntimeError):
    """A model that cannot be loaded; the message says why and what to do."""


class NotFree(RuntimeError):
    """The model is in use, and whoever waited for it gave up."""


def _is_trainable(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any(next(folder.glob(pattern), None) for pattern in ("*.safetensors", "pytorch_model*.bin"))


def load_transformers_model(source: str, quantization: str, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """A causal language model and its tokenizer, on the best device: bf16 (or fp16) on CUDA, fp32 on the CPU and on MPS."""
    import torch
    import transformers

    cuda = torch.cuda.is_available()
    dtype = torch.float32
    if cuda:
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    arguments: dict[str, Any] = {**dtype_argument(dtype), "trust_remote_code": trust_remote_code, "low_cpu_mem_usage": True}
    if quantization != "none":
        arguments["quantization_config"] = transformers.BitsAndBytesConfig(
            load_in_4bit=quantization == "4bit",
            load_in_8bit=quantization == "8bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=True,
        )
    device = "cuda" if cuda else "mps" if torch.backends.mps.is_available() else "cpu"
    if cuda or quantization != "none":
        arguments["device_map"] = {"": 0} if cuda else {"": "cpu"}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        model = transformers.AutoModelForCausalLM.from_pretrained(source, **arguments)
    except Exception as error:  # whatever a loader raises, the user needs a sentence
        raise ModelError(_why_not_loaded(source, error)) from error
    if "device_map" not in arguments:
        model.to(device)
    return model.eval(), tokenizer


def _why_not_loaded(source: str, error: Exception) -> str:
    said = reason(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    if "out of memory" in str(error).lower():
        return f"“{source}” does not fit into memory. Load it with --quantization 4bit, or choose a smaller model."
    folder = Path(source)
    if not folder.is_dir():
        return (
            f"“{source}” could not be loaded from the hub: {said} Check the name and the connection; a gated model needs "
            "`huggingface-cli login` first. Or give the folder of a model on this machine."
        )
    if not (folder / "config.json").is_file():
        return f"“{folder.name}” is not a model in Transformers format: it has no config.json. GGUF and similar files cannot be trained."
    if "TokenizersBackend" in said:
        return f"“{folder.name}” was saved by a newer transformers than the one here and its tokenizer cannot be read. Update this program, or download the model again."
    if isinstance(error, OSError) and error.strerror:
        return f"“{folder.name}” could not be loaded: {said}. See that its folder is whole and can be read, then load it again."
    return f"“{folder.name}” could not be loaded ({type(error).__name__}): {said}"


def free_memory() -> None:
    """Let go of what nobody holds any more, and give a graphics card's part of it back."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def default_user_data() -> Path:
    """`user_data` beside the program in a checkout, else in the current folder."""
    return (HERE if (HERE / "start.py").is_file() else Path.cwd()) / "user_data"


class WebuiHost(Host):
    """text-generation-webui: its model, tokenizer and folders, read from `modules.shared` at the moment they are asked for."""

    LOADER = "Transformers"  # the only one of its loaders whose models can be trained

    def __init__(self) -> None:
        from modules import shared

        self._shared = shared
        self.make_folders()

    @classmethod
    def is_portable(cls) -> bool:
        """Whether this is the build of the web UI that brings llama.cpp alone."""
        return bool(getattr(getattr(sys.modules.get("modules.shared"), "args", None), "portable", False))

    # Folders

    @property
    def user_data(self) -> Path:
        known = getattr(self._shared, "user_data_dir", None)  # since 2026-03
        if known is not None:
            return Path(known)
        return Path("user_data") if Path("user_data").is_dir() else Path(".")

    @property
    def models_dir(self) -> Path:
        return Path(self._shared.args.model_dir)

    @property
    def lora_dir(self) -> Path:
        return Path(self._shared.args.lora_dir)

    @property
    def datasets_dir(self) -> Path:
        return self.user_data / "training" / "datasets"

    @property
    def formats_dir(self) -> Path:
        return self.user_data / "training" / "formats"

    @property
    def logs_dir(self) -> Path:
        return self.user_data / "logs"

    @property
    def multi_user(self) -> bool:
        return bool(getattr(self._shared.args, "multi_user", False))

    # The model

    @property
    def model(self) -> Any:
        return self._shared.model

    @property
    def tokenizer(self) -> Any:
        return self._shared.tokenizer

    @property
    def model_name(self) -> str:
        return self._shared.model_name or NO_MODEL

    @property
    def model_path(self) -> str:
        return str((self.models_dir / self.model_name).resolve())

    @property
    def dirty(self) -> bool:
        return bool(getattr(self._shared, "model_dirty_from_training", False))

    def mark_dirty(self) -> None:
        self._shared.model_dirty_from_training = True

    def _model_lock(self) -> Any:
        # The lock that every generation and the idle-unload thread take: without it a chat would run on a half-trained
        # model, and the model could be unloaded in the middle of a run.
        return getattr(self._shared, "generation_lock", None) or threading.Lock()

    def _model_was_used(self) -> None:
        # The idle timer counts from the last generation; without this a long run would count as idling, and the model
        # would be unloaded right after it.
        models = sys.modules.get("modules.models")
        if hasattr(models, "last_generation_time"):
            models.last_generation_time = time.time()

    def evaluations_changed(self) -> None:
        # The web UI keeps its table in memory and writes it as a whole: without this its next row would undo ours.
        evaluate = sys.modules.get("modules.evaluate")
        if hasattr(evaluate, "load_past_evaluations"):
            evaluate.past_evaluations = evaluate.load_past_evaluations()

    def busy(self) -> str | None:
        # The web UI's own tab trains without the lock, in a thread of this name.
        if any("threaded_run" in thread.name for thread in threading.enumerate()):
            return "The web UI's own Training tab is training with this model. Interrupt it there, or wait for its end."
        return None

    def instruction_template(self) -> str | None:
        state = getattr(self._shared, "persistent_interface_state", None) or {}
        return state.get("instruction_template_str") or self._shared.settings.get("instruction_template_str") or None

    def how_to_load(self) -> str:
        if self.trainable_models():
            return "Load one below, or in the Model tab with the Transformers loader."
        return (
            f"Download a model in Transformers format (a folder with config.json and safetensors files, not GGUF or EXL) into {self.models_dir}, "
            "then load it in the Model tab with the Transformers loader."
        )

    def model_problem(self) -> str | None:
        loaded = list(getattr(self._shared, "lora_names", []))
        if self.model is not None and loaded:
            return (
                f"The model has the LoRA {', '.join(loaded)} on it. A LoRA is trained on the base model: open the Model tab, "
                "empty the list of LoRAs and press Apply LoRAs, or load the model again below."
            )
        if self.model is None and self.model_name != NO_MODEL:  # the idle timer keeps the name
            return f"“{self.model_name}” is not in memory at the moment: it was unloaded after a time without use. {self.how_to_load()}"
        return super().model_problem()

    loading_help = "A folder of the models' directory that holds a model in Transformers format."

    def suggested_load(self) -> tuple[str | None, str]:
        """The loaded model's own folder where that can be trained (a GGUF may lie beside the original), in 4 bits as most cards need it."""
        offered = self.trainable_models()
        own = Path(self.model_name).parts[0] if self.model_name != NO_MODEL else None
        return own if own in offered else offered[0] if offered else None, "none" if getattr(self._shared.args, "cpu", False) else "4bit"

    def model_mark(self) -> tuple[Any, ...]:
        return (*super().model_mark(), *getattr(self._shared, "lora_names", []))

    def load(self, model: str, quantization: str = "none") -> None:
        if quantization not in QUANTIZATIONS:
            raise ModelError(f"Quantization is “{quantization}”; it must be one of {', '.join(QUANTIZATIONS)}.")
        self._must_be_trainable(model)
        with self.using_model():
            self._load_quantised(model, quantization)

    def _load_quantised(self, model: str, quantization: str) -> None:
        args, kept = self._shared.args, self._loading_arguments()
        args.load_in_4bit, args.load_in_8bit = quantization == "4bit", quantization == "8bit"
        try:
            self._load(model, self.LOADER)
        except BaseException:
            vars(args).update(kept)
            raise

    def _loading_arguments(self) -> dict[str, Any]:
        args = self._shared.args
        return {name: getattr(args, name) for name in ("loader", "load_in_4bit", "load_in_8bit") if hasattr(args, name)}

    @property
    def loras(self) -> list[str]:
        return list(getattr(self._shared, "lora_names", []))

    def source_of(self, model: str) -> str:
        self._must_be_trainable(model)
        return super().source_of(model)

    def _must_be_trainable(self, model: str) -> None:
        if model not in self.trainable_models():
            raise ModelError(
                f"“{_name_shown(model)}” is no folder of {self.models_dir} that holds a model in Transformers format (config.json and safetensors). "
                "Choose another."
            )

    @contextlib.contextmanager
    def loading_others(self) -> Iterator[Callable[[str, str], None]]:
        name, had, loras, arguments = self.model_name, self.model is not None, self.loras, self._loading_arguments()
        used = False

        def load(model: str, quantization: str) -> None:
            nonlocal used
            used = True
            self._load_quantised(model, quantization)

        try:
            yield load
        finally:
            if used:
                vars(self._shared.args).update(arguments)
                if had:
                    with _named_as_before(name):
                        self._load(name, arguments.get("loader") or self.LOADER)
                        if loras:
                            from modules.LoRA import add_lora_to_model

                            add_lora_to_model(loras)
                else:
                    self._model_gone()
                    self._shared.model_name = name  # the idle timer keeps the name

    def reload_model(self) -> None:
        self._load(self.model_name, getattr(self._shared.args, "loader", None) or self.LOADER)

    def _load(self, name: str, loader: str) -> None:
        # The host's own reload_model() forgets the name, so it is done here step by step.
        from modules import models

        self._model_gone()
        try:
            model, tokenizer = models.load_model(name, loader)
        except Exception as error:  # whatever a loader raises, the user needs a sentence
            self._model_gone()
            raise ModelError(_why_not_loaded(str(self.models_dir / name), error)) from error
        if model is None:
            self._model_gone()
            raise ModelError(f"“{name}” could not be loaded; the web UI's log has the reason.")
        self._shared.model, self._shared.tokenizer = model, tokenizer
        self._shared.model_name, self._shared.model_dirty_from_training = name, False

    def _model_gone(self) -> None:
        from modules import models

        models.unload_model()
        self._shared.model_name = NO_MODEL
