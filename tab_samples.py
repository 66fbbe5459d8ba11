"""The answers to the sample prompts: of the run that goes on, below its chart, and of earlier ones. Built into the tab “Train LoRA”."""

from __future__ import annotations

from typing import Any

import gradio as gr

from . import samples, views
from .settings import NOT_CHOSEN
from .training_run import TrainingRun
from .try_it import CannotAnswer, adapter_folder
from .versions import hidden_from_api


class SamplesTab:
    """Args:
    tab: the `TrainTab` that this is part of. The grid of the running run is laid out at once, that of earlier ones by `earlier`.
    """

    def __init__(self, tab: Any):
        self.host, self.usable = tab.host, tab.usable
        self.grid = gr.HTML("", elem_id="tp-samples")

    def earlier(self) -> None:
        with gr.Accordion("Samples of earlier runs", open=False, elem_id="tp-samples-earlier"):
            self.chosen = gr.Dropdown(
                self._runs(), value=NOT_CHOSEN, allow_custom_value=True, label="Run", elem_id="tp-samples-run", interactive=self.usable,
                info="What base model and LoRA answered to the sample prompts during a run.",
            )  # fmt: skip
            self.shown = gr.HTML("", elem_id="tp-samples-shown")

    def wire(self) -> None:
        self.chosen.change(self.on_run, [self.chosen], [self.shown], show_progress="hidden", **hidden_from_api(self.chosen.change))

    def lists(self) -> dict[Any, Any]:
        return {self.chosen: gr.update(choices=self._runs())}

    def _runs(self) -> list[str]:
        return [NOT_CHOSEN, *(name for name in self.host.adapters(newest_first=True) if (self.host.lora_dir / name / samples.FILE).is_file())]

    def on_run(self, name: str | None) -> str:
        if not name or name == NOT_CHOSEN:
            return ""
        try:
            folder = adapter_folder(self.host, name)
        except CannotAnswer as error:
            return views.notice(str(error), "tp-bad")
        return samples.samples_html(samples.read(folder)) or views.notice(f"“{name}” keeps no samples.")

    def look(self, run: TrainingRun | None) -> dict[Any, Any]:
        """The grid of a run: of its own process, else as it lies in its folder."""
        entries = run.samples if run is not None else []
        if not entries and run is not None and not run.active and run.adapter is not None:
            entries = samples.read(run.adapter)
        return {self.grid: samples.samples_html(entries)}
