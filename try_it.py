"""One prompt, two answers: the base model's and the adapter's, from the same loaded model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .chat_templates import TemplateError, render, template_for
from .dataset_tools import DataError, bos_eos, by_key_set, choose_pad_id, read_format
from .encoding import tokens_of
from .host import Host
from .paths import reason
from .settings import TrainingSettings
from .slicer import with_bos_eos
from .training_run import busy_message, current
from .untouched import random_state_kept, untouched

AS_TRAINED, AS_CHAT, AS_TEXT = "As the LoRA was trained", "Chat template", "Plain text"


class CannotAnswer(RuntimeError):
    """Why there is no answer, and what to do."""


@dataclass(frozen=True)
class Answers:
    """What base and adapter said to `prompt`, the text that the model really saw."""

    prompt: str
    base: str
    adapter: str


def answers(
    host: Host, prompt: str, adapter: str | None, *, style: str = AS_TRAINED, max_new_tokens: int = 120, temperature: float = 0.0, seed: int = 42
) -> Answers:
    """Let base model and adapter answer one prompt; the model is as before afterwards.

    Args:
        adapter: name of a folder in the host's LoRA directory; None: only the base answers.
        style: how the prompt becomes text: `AS_TRAINED`, `AS_CHAT`, `AS_TEXT`, or the name of a format file.
        max_new_tokens: longest answer, in tokens.
        temperature: 0 takes the likeliest token each time, so that the two answers differ only by the adapter.
        seed: of the sampling, the same for both.

    Raises:
        CannotAnswer: a run uses the model, the adapter does not fit, or the prompt is empty.
    """
    if (run := current()) is not None and run.active:
        raise CannotAnswer(f"The model is busy: {busy_message(run)}")
    from .evaluation import busy_message as measuring  # which itself uses this module

    if busy := measuring():
        raise CannotAnswer(f"The model is busy: {busy}")
    if problem := host.model_problem() or host.busy():
        raise CannotAnswer(problem)
    if not prompt.strip():
        raise CannotAnswer("Prompt is empty; type what the model should answer.")
    folder = adapter_folder(host, adapter)
    text, is_chat = prompt_text(host, prompt, folder, style)
    ids = prompt_ids(host.tokenizer, text, is_chat)
    options = {"max_new_tokens": int(max_new_tokens), "temperature": float(temperature), "seed": int(seed)}
    with host.using_model(), random_state_kept():
        if host.dirty:
            host.reload_model()
        return _both(host, text, ids, folder, options)


def _both(host: Host, text: str, ids: list[int], folder: Path | None, options: dict[str, Any]) -> Answers:
    with untouched(host.model):
        host.model.eval()
        base = generate(host.model, host.tokenizer, ids, **options)
        if folder is None:
            return Answers(text, base, "")
        return Answers(text, base, generate(with_adapter(host.model, folder), host.tokenizer, ids, **options))


def adapter_folder(host: Host, adapter: str | None) -> Path | None:
    if not adapter or adapter == "None":
        return None
    try:
        folder = host.adapter_folder(adapter)
    except ValueError as error:
        raise CannotAnswer(f"LoRA: {error}") from error
    if not (folder / "adapter_config.json").is_file():
        raise CannotAnswer(f"LoRA: “{adapter}” holds no adapter (adapter_config.json is missing). Choose another.")
    return folder


def with_adapter(model: Any, folder: Path) -> Any:
    import peft

    try:
        return peft.PeftModel.from_pretrained(model, str(folder)).eval()
    except OSError as error:
        raise CannotAnswer(f"LoRA: “{folder.name}” cannot be read: {reason(error)}. See that its folder is whole, then try again.") from error
    except Exception as error:  # PEFT and safetensors raise many kinds; each means that it does not fit this model
        first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise CannotAnswer(f"LoRA: “{folder.name}” does not fit the loaded model: {first}") from error


def prompt_ids(tokenizer: Any, text: str, is_chat: bool) -> list[int]:
    """The tokens of what `prompt_text` gave; a chat's template brings its own BOS."""
    ids = tokens_of(tokenizer, [text])[0]
    return ids if is_chat else with_bos_eos(ids, bos_eos(tokenizer, TrainingSettings())[0], [])


def generate(
    model: Any, tokenizer: Any, ids: list[int], *, max_new_tokens: int, temperature: float, seed: int, stop: Callable[[], bool] = lambda: False
) -> str:
    """What the model says after these tokens; `stop` is asked after each new one, and True ends the answer there."""
    import torch
    import transformers

    transformers.set_seed(seed)
    prompt = torch.tensor([ids], device=model.device)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    with torch.no_grad():
        out = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=max_new_tokens,
            pad_token_id=choose_pad_id(tokenizer),
            use_cache=True,
            stopping_criteria=[lambda ids, scores, **_: torch.full((len(ids),), stop(), dtype=torch.bool, device=ids.device)],
            **sampling,
        )
    return tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True).strip()


def prompt_text(host: Host, prompt: str, folder: Path | None, style: str, formatting: Any = None) -> tuple[str, bool]:
    """The text that the model gets, and whether it is a chat (whose template brings its own BOS).

    Args:
        folder: the adapter's, for `AS_TRAINED`; None where there is none, or where its `formatting` is given.
        formatting: what training_prompt.json will hold, of an adapter that is still being trained.

    Raises:
        CannotAnswer: there is no chat template, or the format has no entry that can hold a prompt.
    """
    entries = template = None
    if style == AS_TRAINED:
        style, entries, template = _style_of(_formatting_of(folder) if formatting is None else formatting)
    if style == AS_TEXT:
        return prompt, False
    if style == AS_CHAT:
        try:
            template = template or template_for(TrainingSettings(), host.tokenizer, host)
        except TemplateError as error:
            raise CannotAnswer("Prompt as: the model's tokenizer has no chat template; choose Plain text or a data format.") from error
        return render(host.tokenizer, [{"role": "user", "content": prompt}], template, prompt=True), True
    try:
        return _fill(entries or read_format(host.data_file("format", style)), prompt, style), False
    except (DataError, ValueError, OSError) as error:
        raise CannotAnswer(f"Prompt as: {reason(error)}") from error


def _fill(entries: dict[str, str], prompt: str, style: str) -> str:
    """The format's text up to where the answer would begin, with the prompt in it."""
    for keys, text in by_key_set(entries).items():
        asked = [key for key in ("instruction", "prompt", "question", "user") if key in keys]
        answered = [key for key in ("output", "response", "answer", "assistant", "completion") if key in keys]
        if asked and answered and len(keys) == 2:
            return text.split(f"%{answered[0]}%")[0].replace(f"%{asked[0]}%", prompt).rstrip(" ")
    raise CannotAnswer(f"Prompt as: “{style}” has no entry with one question and one answer, such as “instruction,output”; choose Plain text.")


def _formatting_of(folder: Path | None) -> Any:
    """What the adapter's run left in training_prompt.json; None where it left nothing."""
    if folder is None:
        return None
    if folder.name.startswith("checkpoint-"):
        folder = folder.parent
    try:
        return json.loads((folder / "training_prompt.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _style_of(formatting: Any) -> tuple[str, dict[str, str] | None, str | None]:
    """How the adapter's own data was written: style, format, chat template."""
    if formatting is None:
        return AS_CHAT, None, None
    if not isinstance(formatting, dict):
        return AS_TEXT, None, None
    if isinstance(formatting.get("format"), dict):
        return "its own format", formatting["format"], None
    template = formatting.get("chat_template")
    return (AS_CHAT, None, template) if isinstance(template, str) else (AS_TEXT, None, None)
