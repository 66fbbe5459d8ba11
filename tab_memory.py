"""Memory and time of a run before its start: the estimate that follows the controls, and the dry run. Built into the tab “Train LoRA”."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import gradio as gr

from . import training_run, views
from .background import Job
from .host import quantization_of
from .kept import WITHOUT_DATA
from .rows import DataError
from .settings import OPTIONS, TrainingSettings
from .versions import hidden_from_api

POLL_SECONDS = 0.35
# What the estimate depends on, besides the data and the model
ESTIMATED = ("micro_batch_size", "cutoff_len", "lora_rank", "training_projection", "lora_dropout", "use_grad_checkpoint", "optimizer", "lora_modulessave",
             "adapter_kind", "packing")  # fmt: skip

logger = logging.getLogger(__name__)


class MemoryTab:
    """Args:
    tab: the `TrainTab`, whose fields these read.
    """

    def __init__(self, tab: Any):
        self.tab, self.host = tab, tab.host
        self.job: Job | None = None  # the last dry run
        gr.HTML(views.heading("Memory and time"))
        self.shown = gr.HTML(
            views.notice(
                "Verify Dataset estimates the memory. Dry run measures it and the time: a few steps on the longest batch, of which nothing stays."
            ),
            elem_id="tp-memory",
        )
        with gr.Row():
            self.dry = gr.Button("Dry run", size="sm", elem_id="tp-dry-run", interactive=tab.usable)
            self.cancel = gr.Button("Cancel the dry run", size="sm", elem_id="tp-dry-run-cancel", visible=False, interactive=tab.usable)

    def wire(self, fields: set[Any]) -> None:
        """Connect the events; `fields` are the settings' widgets."""
        quiet = {"show_progress": "hidden", **hidden_from_api(self.dry.click)}
        for key in ESTIMATED:
            self.tab.widgets[key].input(**self.estimating(fields), trigger_mode="always_last")
        self.dry.click(self.on_dry_run, fields, [self.shown, self.cancel], concurrency_limit=None, **quiet)
        self.cancel.click(self.on_cancel, None, None, **quiet)

    def estimating(self, fields: set[Any]) -> dict[str, Any]:
        """The event that shows the estimate."""
        return {
            "fn": self.on_estimate,
            "inputs": fields,
            "outputs": [self.shown],
            "show_progress": "hidden",
            **hidden_from_api(self.dry.click),
        }

    def on_estimate(self, values: dict[Any, Any]) -> Any:
        """The estimate of the settings as they stand; nothing changes while it cannot be made."""
        run = training_run.current()
        if self._measuring or self.host.model_problem() is not None or (run is not None and run.active):
            return gr.update()
        settings, found = self.tab.settings_of(values)
        if found or not settings.lora_rank or settings.training_projection not in OPTIONS["training_projection"].offered():
            return gr.update()
        from .memory import estimate
        from .memory_view import estimate_html

        return estimate_html(estimate(settings, self.host.model, self._prepared(settings)), settings, quantization_of(self.host.model))

    def _prepared(self, settings: TrainingSettings) -> Any:
        """The data that was verified last, where these settings still mean it."""
        before = self.tab.verified_with
        if self.tab.verified is None or before is None or self.tab.verified[1] is not self.host.tokenizer:
            return None
        alike = all(getattr(before, key) == getattr(settings, key) for key in OPTIONS.keys() - (WITHOUT_DATA - {"packing"}))
        return self.tab.verified[0] if alike else None

    @property
    def _measuring(self) -> bool:
        return self.job is not None and not self.job.done.is_set()

    def on_dry_run(self, values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        """Measure, in a thread that goes on when the page is closed; a second click looks at the one that is going on."""
        settings, found = self.tab.settings_of(values)
        if found:
            yield {self.shown: views.problems(found, "No dry run")}
            return
        if not self._measuring:
            self.job = self._begin(settings)
        job = self.job
        while not job.done.wait(POLL_SECONDS):
            yield {self.shown: views.working(job.doing, job.share), self.cancel: gr.update(visible=True)}
        yield {self.shown: self._outcome(job), self.cancel: gr.update(visible=False)}

    def _begin(self, settings: TrainingSettings) -> Job:
        def work(progress: Any) -> Any:
            from .memory import dry_run

            return dry_run(settings, self.host, progress)

        return Job(work)

    @staticmethod
    def _outcome(job: Job) -> str:
        from .memory import CannotMeasure
        from .memory_view import dry_run_html

        if isinstance(job.error, (CannotMeasure, DataError)):
            return views.problems(job.error.problems, "No dry run")
        if job.cancelled:
            return views.notice("The dry run was called off; everything is as it was.")
        if job.error is not None:
            logger.error("The dry run failed", exc_info=job.error)
            return views.problems([f"{training_run.first_line(job.error)} ({type(job.error).__name__}). The log has the details."], "No dry run")
        return dry_run_html(job.result)

    def on_cancel(self) -> None:
        if self.job is not None:
            self.job.cancel()
