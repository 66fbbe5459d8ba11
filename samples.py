"""Sample prompts: a few fixed ones that base model and adapter answer while a run goes on, so that one sees what it learns.

The answers are the likeliest tokens (greedy), so that nothing but the adapter makes a difference, and answering takes nothing from the
run's random numbers: with and without samples a run gives the same adapter to the bit. They are kept as lines of JSON in
`samples.jsonl` in the adapter's folder, one line an answer: `prompt`, `answer`, and `step` (None: the base model's).
"""

from __future__ import annotations

import contextlib
import json
import logging
from html import escape
from pathlib import Path
from typing import Any

from .host import Host
from .paths import write_whole
from .settings import TrainingSettings
from .training_run import TrainingRun, first_line
from .try_it import AS_TEXT, AS_TRAINED, CannotAnswer, generate, prompt_ids, prompt_text
from .untouched import random_state_kept

logger = logging.getLogger(__name__)

FILE = "samples.jsonl"
NEW_TOKENS = 64  # longest answer
MOST_COLUMNS = 12  # of the grid; of more steps the first, the last and those evenly between are shown


# What is kept


def read(folder: Path) -> list[dict[str, Any]]:
    """The answers that an adapter's folder keeps, in the order in which they were given; a line that is not whole is left out."""
    found = []
    with contextlib.suppress(OSError):
        for line in (folder / FILE).read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                entry = json.loads(line)
                if isinstance(entry, dict) and isinstance(entry.get("prompt"), str) and isinstance(entry.get("answer"), str):
                    step = entry.get("step")
                    if step is None or (isinstance(step, int) and not isinstance(step, bool)):
                        found.append({"step": step, "prompt": entry["prompt"], "answer": entry["answer"]})
    return found


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"


# Answering


class Sampler:
    """Answers the prompts of a run when its callback asks for it. What it cannot do becomes a notice: the run matters more."""

    def __init__(self, settings: TrainingSettings, host: Host, tokenizer: Any, formatting: dict[str, Any], run: TrainingRun, folder: Path):
        """
        Args:
            formatting: how the run's data is written, as training_prompt.json will hold it: the prompts are written alike.
        """
        self.run, self.path, self.tokenizer, self.seed = run, folder / FILE, tokenizer, settings.seed
        self.prompts: dict[str, list[int]] = {}
        self.off = False
        for prompt in settings.prompts:
            try:
                text, is_chat = prompt_text(host, prompt, None, AS_TRAINED, formatting)
            except CannotAnswer:
                text, is_chat = prompt_text(host, prompt, None, AS_TEXT)
                if (
                    said := "Sample prompts are put as plain text: the data's format has no entry with one question and one answer."
                ) not in run.notices:
                    run.notices.append(said)
            self.prompts[prompt] = prompt_ids(tokenizer, text, is_chat)

    def begin(self) -> None:
        """Take up what the folder keeps from before the step that the run is at; a run that begins afresh has nothing before it."""
        at = self._step
        kept = [entry for entry in read(self.path.parent) if at and (entry["step"] is None or entry["step"] <= at)]
        with self._forgiving():
            if kept:
                write_whole(self.path, "".join(map(_line, kept)))
            else:
                self.path.unlink(missing_ok=True)
        self.run.update(samples=kept)

    @property
    def _step(self) -> int:
        return self.run.earlier_steps + self.run.step

    def answer(self, trainer: Any) -> None:
        """Let the base model (once) and the adapter as it is now answer the prompts that they have not answered at this step."""
        step = self._step
        known = {(entry["step"], entry["prompt"]) for entry in self.run.samples}
        base, now = ([prompt for prompt in self.prompts if (at, prompt) not in known] for at in (None, step))
        if self.off or not (base or now):
            return
        message = self.run.message
        self.run.update(message="Answering the sample prompts")
        model, was_training = trainer.model, trainer.model.training
        with self._forgiving(), random_state_kept():
            model.eval()
            try:
                with model.disable_adapter():
                    self._answer(model, base, None)
                self._answer(model, now, step)
            finally:
                model.train(was_training)
        self.run.update(message=message)

    def _answer(self, model: Any, prompts: list[str], step: int | None) -> None:
        longest = getattr(model.config, "max_position_embeddings", None) or 10**9
        for prompt in prompts:
            ids = self.prompts[prompt][-max(1, longest - NEW_TOKENS) :]
            answer = generate(
                model, self.tokenizer, ids, max_new_tokens=min(NEW_TOKENS, max(1, longest - len(ids))), temperature=0, seed=self.seed,
                stop=lambda: self.run.stop_requested,
            )  # fmt: skip
            if self.run.stop_requested:
                return  # cut off
            entry = {"step": step, "prompt": prompt, "answer": answer}
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(_line(entry))
            self.run.update(samples=[*self.run.samples, entry])

    @contextlib.contextmanager
    def _forgiving(self) -> Any:
        try:
            yield
        except Exception as error:  # whatever a model or a disk raises: the run goes on without samples
            self.off = True
            logger.warning("The sample prompts of “%s” are not answered any more", self.run.name, exc_info=error)
            self.run.notices.append(f"The sample prompts are not answered any more: {first_line(error)}.")
            self.run.record("samples off", why=first_line(error))


def sampler_of(settings: TrainingSettings, host: Host, tokenizer: Any, formatting: dict[str, Any], run: TrainingRun, folder: Path) -> Sampler | None:
    """None where no prompts are to be answered. Arguments as of `Sampler`."""
    if settings.prompts and not settings.sample_steps:
        run.notices.append("The sample prompts are not answered, since Sample every n steps is 0.")
    return Sampler(settings, host, tokenizer, formatting, run, folder) if settings.prompts and settings.sample_steps else None


# Showing


def samples_html(entries: list[dict[str, Any]]) -> str:
    """The answers as a grid: a row for each prompt, the base model's answer first, then a column for each step. Empty without answers."""
    if not entries:
        return ""
    answers = {(entry["prompt"], entry["step"]): entry["answer"] for entry in entries}
    prompts = list(dict.fromkeys(entry["prompt"] for entry in entries))
    steps = sorted({entry["step"] for entry in entries if entry["step"] is not None})
    shown = spread(steps, MOST_COLUMNS)
    columns = [(None, "Base model"), *((step, f"Step {step:,}") for step in shown)]
    head = "".join(f"<th>{words}</th>" for _, words in columns)
    rows = "".join(
        f"<tr><th>{escape(prompt)}</th>{''.join(f'<td>{_cell(answers.get((prompt, step)))}</td>' for step, _ in columns)}</tr>" for prompt in prompts
    )
    more = f"{len(shown)} of {len(steps)} steps; {FILE} in the LoRA's folder has all." if len(shown) < len(steps) else ""
    return (
        f'<div class="tp-samples"><div class="tp-heading">Samples</div><div class="tp-scroll"><table><thead><tr><th>Prompt</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div><span>{more}</span></div>"
    )


def _cell(answer: str | None) -> str:
    if answer is None:
        return "–"
    return escape(answer) if answer else "<i>(nothing)</i>"


def spread(steps: list[int], most: int) -> list[int]:
    """At most so many, the first and the last among them.

    >>> spread([0, 10, 20, 30, 40], 3)
    [0, 20, 40]
    """
    if len(steps) <= most:
        return steps
    return [steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)]
