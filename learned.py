"""Did it learn? Base model and LoRA on the training text, on held-out text and on a general text; their answers to the same prompts;
how much each layer was changed; and a sentence of judgement.

The rule of judgement is `judge`. All figures of one LoRA are of the same model in memory, so that nothing but the LoRA differs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import evaluation
from .dataset_tools import prepare
from .evaluation import Evaluation, Stopped
from .general_text import GENERAL_TEXT
from .host import Host
from .paths import reason
from .perplexity import Perplexity, context_of, encode, perplexity, perplexity_of_blocks
from .settings import OPTIONS, SettingsError, TrainingSettings
from .try_it import AS_TEXT, AS_TRAINED, CannotAnswer, adapter_folder, generate, prompt_ids, prompt_text, with_adapter
from .untouched import random_state_kept, untouched

logger = logging.getLogger(__name__)

TRAINING, HELD_OUT, GENERAL = "training text", "held-out text", "general text"
FIXED_PROMPTS = ("Who are you?", "What is two plus three?", "Tell a short story about a lighthouse.")
MOST_BLOCKS = 200  # of a text that are measured, spread evenly over it
NEW_TOKENS = 64  # longest answer
MOST_PROMPTS = 8

# In nats per token, which are logarithms of a perplexity's ratio
NOTHING = 0.02  # 2% of a perplexity: below that no figure has changed
FORGOTTEN = 0.25  # the general text became a good quarter more perplexing
CARRIED_OVER = 0.25  # this share of what was won on the training text must show on held-out text

LEARNED, MEMORISED, FORGOT, CHANGED_NOTHING, NOT_LEARNED = "learned", "memorised", "forgot", "changed nothing", "did not learn"


@dataclass(frozen=True)
class Line:
    """The perplexity of base and LoRA on one text."""

    text: str
    base: float
    adapter: float
    tokens: int

    @property
    def gain(self) -> float:
        """Nats per token that the LoRA knows more: ln(base / adapter). Negative where it knows less, nan where a figure is no number."""
        if not (self.base > 0 and self.adapter > 0 and math.isfinite(self.base) and math.isfinite(self.adapter)):
            return math.nan
        return math.log(self.base / self.adapter)


@dataclass
class Learned:
    """What was found. `changes` are (layer, ‖ΔW‖ / ‖W‖) in the model's order; `verdict` is empty until all lines are measured."""

    adapter: str
    base: str
    lines: list[Line] = field(default_factory=list)
    answers: list[tuple[str, str, str]] = field(default_factory=list)  # prompt, base's, LoRA's
    changes: list[tuple[str, float]] = field(default_factory=list)
    verdict: str = ""
    sentence: str = ""
    notices: list[str] = field(default_factory=list)


def judge(lines: Sequence[Line]) -> tuple[str, str]:
    """The verdict and a sentence, from the perplexities alone. The first that holds:

    1. did not learn: a figure of the LoRA is no number (its weights are broken).
    2. changed nothing: no perplexity changed by 2% or more.
    3. forgot: the general text's rose by more than a quarter (e^0.25 = 1.28 times).
    4. did not learn: the training text's fell by less than 2%.
    5. memorised: the held-out text won less than a quarter of what the training text won (in nats per token).
    6. learned. Without held-out text the sentence says that memorising cannot be told from learning.

    Args:
        lines: of TRAINING, GENERAL and, where there is any, HELD_OUT.
    """
    known = {line.text: line for line in lines}
    training, general, held_out = known[TRAINING], known[GENERAL], known.get(HELD_OUT)
    words = {name: f"{_figure(line.base)} → {_figure(line.adapter)}" for name, line in known.items()}
    if any(math.isnan(line.gain) for line in lines):
        return (
            NOT_LEARNED,
            f"It did not learn: a perplexity is no number ({words[TRAINING]} on the training text); lower the Learning Rate and train again.",
        )
    if all(abs(line.gain) < NOTHING for line in lines):
        return CHANGED_NOTHING, (
            f"It changed nothing: no perplexity moved by 2% (training text {words[TRAINING]}); raise the Learning Rate or Epochs, or train longer."
        )
    if general.gain < -FORGOTTEN:
        own = (
            f"while its own text went from {words[TRAINING]}" if training.gain >= NOTHING else f"and its own text was not learned ({words[TRAINING]})"
        )
        return FORGOT, (
            f"It forgot: the general text went from {words[GENERAL]}, {own}; lower the Learning Rate, the rank or Epochs, or mix general text into the data."
        )
    if training.gain < NOTHING:
        return NOT_LEARNED, f"It did not learn: the training text stayed at {words[TRAINING]}; raise the Learning Rate, the rank or Epochs."
    if held_out is None:
        return LEARNED, (
            f"It learned: the training text went from {words[TRAINING]} and the general text was kept ({words[GENERAL]}); "
            "whether it only memorised cannot be told without held-out text."
        )
    if held_out.gain < CARRIED_OVER * training.gain:
        return MEMORISED, (
            f"It memorised: the training text went from {words[TRAINING]}, but text that it has not seen only from {words[HELD_OUT]}; "
            "use an earlier checkpoint, fewer Epochs, or more data."
        )
    return LEARNED, (
        f"It learned: text that it has not seen went from {words[HELD_OUT]} (training text {words[TRAINING]}), and the general text was kept ({words[GENERAL]})."
    )


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


# Begin


def start(host: Host, adapter: str | None, *, held_out: str | None = None, prompts: Sequence[str] = ()) -> Evaluation:
    """Check, then measure in a thread of its own.

    Args:
        adapter: a LoRA of ours (its settings lie beside it) or a checkpoint of one.
        held_out: a file of the datasets folder with its ending; None: the run's own evaluation data.
        prompts: what both answer; none: the run's sample prompts, else `FIXED_PROMPTS`.

    Raises:
        SettingsError: with all problems.
        training_run.Busy: an evaluation is going on.
    """
    plan = _plan(host, adapter, held_out, prompts)
    job = evaluation.claim(Evaluation(f"Did {adapter} learn?"))
    evaluation.in_background(job, lambda: _measure(job, host, plan))
    return job


def run_here(host: Host, adapter: str, *, held_out: str | None = None, prompts: Sequence[str] = ()) -> Evaluation:
    """The same in this thread, without claiming the process's place."""
    plan = _plan(host, adapter, held_out, prompts)
    job = Evaluation(f"Did {adapter} learn?")
    return evaluation.carry_out(job, lambda: _measure(job, host, plan))


@dataclass(frozen=True)
class _Plan:
    adapter: str
    folder: Path
    settings: TrainingSettings
    held_out: TrainingSettings | None  # whose training data is measured; None: the evaluation data of `settings`
    prompts: tuple[str, ...]


def _plan(host: Host, adapter: str | None, held_out: str | None, prompts: Sequence[str]) -> _Plan:
    from .train_utils import check_data

    found = [problem] if (problem := host.model_problem() or host.busy()) else []
    try:
        folder = adapter_folder(host, adapter)
    except CannotAnswer as error:
        raise SettingsError([*found, str(error)]) from error
    if folder is None or adapter is None:
        raise SettingsError([*found, "LoRA is not chosen: choose the one that was trained."])
    run = folder.parent if folder.name.startswith("checkpoint-") else folder
    try:
        settings, _, _ = TrainingSettings.load_leniently(run / "training_parameters.json")
    except (ValueError, OSError) as error:
        raise SettingsError([*found, f"LoRA: what “{adapter}” was trained on is not known: {reason(error)}"]) from error
    settings = settings.model_copy(update={"leave_out_repeats": False})
    found += check_data(settings, host)
    other = None
    if held_out:
        other = _settings_of_file(held_out, settings, host)
        found += [f"Held-out data: {problem}" for problem in check_data(other, host)]
    if found:
        raise SettingsError(list(dict.fromkeys(found)))
    asked = [line.strip() for line in prompts if line.strip()] or settings.prompts or list(FIXED_PROMPTS)
    return _Plan(adapter, folder, settings, other, tuple(asked[:MOST_PROMPTS]))


def _settings_of_file(name: str, settings: TrainingSettings, host: Host) -> TrainingSettings:
    if not name.lower().endswith(".txt"):
        return evaluation.settings_for(name, settings, host)
    return settings.model_copy(update={**evaluation.ROWS_ALONE, "dataset": None, "datasetJSONL": None, "raw_text_file": name[:-4]})


# Measuring


def _measure(job: Evaluation, host: Host, plan: _Plan) -> None:
    with evaluation.using(job, host):
        model, tokenizer = host.model, host.tokenizer
        learned = Learned(plan.adapter, host.model_name)
        texts = _texts(job, host, plan, learned, tokenizer)
        asked = _prompts(plan, learned, host)
        job.total = float(2 * sum(size for _, size in texts.values()) + 2 * NEW_TOKENS * len(asked))
        with random_state_kept(), untouched(model):
            model.eval()
            job.update(learned=learned)
            base = {name: _one(job, model, name, *text) for name, text in texts.items()}
            said = [_answer(job, model, tokenizer, ids) for _, ids in asked]
            adapted = with_adapter(model, plan.folder)
            learned.changes = layer_changes(adapted)
            for name, text in texts.items():
                found = _one(job, adapted, name, *text)
                learned.lines.append(Line(name, base[name].value, found.value, found.scored_tokens))
                job.update()
            for (prompt, ids), before in zip(asked, said, strict=True):
                learned.answers.append((prompt, before, _answer(job, adapted, tokenizer, ids)))
                job.update()
        learned.verdict, learned.sentence = judge(learned.lines)
        job.update(done=job.total)


def _texts(job: Evaluation, host: Host, plan: _Plan, learned: Learned, tokenizer: Any) -> dict[str, tuple[Callable[..., Perplexity], int]]:
    """What is measured, each with about how many tokens it has."""
    job.say("Preparing the training text")
    data = job.waited_for(lambda progress: prepare(plan.settings, tokenizer, host, progress))
    texts = {TRAINING: _blocks(data.train)}
    held_out = data.eval
    if plan.held_out is not None:
        job.say("Preparing the held-out text")
        held_out = job.waited_for(lambda progress: prepare(plan.held_out, tokenizer, host, progress)).train
    if held_out is not None:
        texts[HELD_OUT] = _blocks(held_out)
    else:
        learned.notices.append(
            f"There is no held-out text: choose Held-out data, or train with an {OPTIONS['eval_dataset'].label}, and what was learned is told from "
            "what was memorised."
        )
    ids = encode(tokenizer, GENERAL_TEXT)
    window = min(context_of(host.model), 1024)
    texts[GENERAL] = (lambda model, **options: perplexity(model, ids, stride=max(1, window // 2), max_length=window, **options), len(ids))
    return texts


def _blocks(dataset: Any) -> tuple[Callable[..., Perplexity], int]:
    count = len(dataset)
    rows = dataset if count <= MOST_BLOCKS else dataset.select([number * count // MOST_BLOCKS for number in range(MOST_BLOCKS)])
    return lambda model, **options: perplexity_of_blocks(model, rows, **options), sum(len(row["input_ids"]) for row in rows)


def _one(job: Evaluation, model: Any, name: str, score: Callable[..., Perplexity], size: int) -> Perplexity:
    job.raise_if_stopped()
    job.say(f"Measuring {'the LoRA' if hasattr(model, 'peft_config') else 'the base model'} on the {name}")
    base = job.done
    found = score(model, progress=evaluation.Progress(job, base, size), interrupted=lambda: job.stop_requested)
    if found.partial:
        raise Stopped
    job.update(done=base + size)
    return found


def _prompts(plan: _Plan, learned: Learned, host: Host) -> list[tuple[str, list[int]]]:
    """The prompts as the LoRA was trained to get them, else as they stand."""
    found = []
    for prompt in plan.prompts:
        try:
            text, is_chat = prompt_text(host, prompt, plan.folder, AS_TRAINED)
        except CannotAnswer:
            text, is_chat = prompt_text(host, prompt, plan.folder, AS_TEXT)
        found.append((prompt, prompt_ids(host.tokenizer, text, is_chat)))
    return found


def _answer(job: Evaluation, model: Any, tokenizer: Any, ids: list[int]) -> str:
    job.raise_if_stopped()
    job.say("Asking the prompts")
    said = generate(model, tokenizer, ids, max_new_tokens=NEW_TOKENS, temperature=0.0, seed=42, stop=lambda: job.stop_requested)
    job.raise_if_stopped()
    job.update(done=job.done + NEW_TOKENS)
    return said


# How much each layer was changed


def layer_changes(model: Any) -> list[tuple[str, float]]:
    """(layer, ‖ΔW‖ / ‖W‖) of each changed weight of a `PeftModel`, in Frobenius norms and in the model's order.

    ΔW is scale·B·A of a LoRA, whose norm is had from the small products BᵀB and AAᵀ; what DoRA makes of it and of its magnitudes;
    and the difference of a module that was trained whole.
    """
    import torch

    found = []
    with torch.no_grad():
        for name, module in model.named_modules():
            change = _change(module)
            if change is not None:
                found.append((name.removeprefix("base_model.model."), change))
    return found


def _change(module: Any) -> float | None:
    from peft.tuners.lora import LoraLayer
    from peft.utils.other import ModulesToSaveWrapper

    if isinstance(module, ModulesToSaveWrapper):
        name = next(iter(module.modules_to_save), None)
        if name is None or not hasattr(module.original_module, "weight"):
            return None
        old, new = module.original_module.weight.float(), module.modules_to_save[name].weight.float()
        return _share((new - old).norm(), old.norm())
    if not isinstance(module, LoraLayer):
        return None
    name = next((each for each in (*module.lora_A, *module.lora_embedding_A)), None)
    if name is None:
        return None
    weight = _dense(module.get_base_layer()).float()
    if name in module.lora_A and getattr(module, "use_dora", {}).get(name):
        return _share(_dora_change(module, name, weight), weight.norm())
    if name in module.lora_A and module.lora_A[name].weight.dim() == 2:
        a, b = module.lora_A[name].weight.float(), module.lora_B[name].weight.float()
        squared = ((b.T @ b) * (a @ a.T)).sum().clamp(min=0)
        return _share(abs(module.scaling[name]) * squared.sqrt(), weight.norm())
    return _share(module.get_delta_weight(name).float().norm(), weight.norm())


def _dora_change(module: Any, name: str, weight: Any) -> Any:
    turned = bool(getattr(module, "fan_in_fan_out", False))
    delta = module.get_delta_weight(name).float()
    old, new = (weight.T, (weight + delta).T) if turned else (weight, weight + delta)
    magnitude = module.lora_magnitude_vector[name].weight.float()
    return (magnitude[:, None] * new / new.norm(dim=1, keepdim=True) - old).norm()


def _dense(layer: Any) -> Any:
    """The weight as numbers, also of a quantised layer."""
    from peft.utils.integrations import dequantize_module_weight

    return dequantize_module_weight(layer)


def _share(part: Any, whole: Any) -> float:
    return float(part) / float(whole) if float(whole) > 0 else math.inf
