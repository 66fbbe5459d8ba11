"""Before a run and after it: the schedule that the settings give, presets, and saved runs beside each other. Built into the tab “Train LoRA”."""

from __future__ import annotations

from typing import Any

import gradio as gr

from . import presets, views
from .compare import compare_html, load_run
from .custom_scheduler import SCHEDULERS
from .presets import PresetError
from .schedule_view import preview
from .settings import NOT_CHOSEN, OPTIONS, Plan, TrainingSettings
from .try_it import CannotAnswer, adapter_folder
from .versions import hidden_from_api

# What the schedule depends on, besides the data.
PLANNED = ("lr_scheduler_type", "learning_rate", "epochs", "micro_batch_size", "grad_accumulation", "warmup_steps", "warmup_ratio", "save_steps",
           "eval_steps", "eval_stepsJSONL", "eval_dataset", "eval_datasetJSONL", "packing")  # fmt: skip


class PlanTab:
    """Args:
    tab: the `TrainTab`, whose fields these read and fill.
    """

    def __init__(self, tab: Any):
        self.tab, self.host = tab, tab.host
        usable = tab.usable
        with gr.Accordion("Schedule preview", open=False, elem_id="tp-plan"):
            self.beside = gr.Dropdown(
                [NOT_CHOSEN, *SCHEDULERS], value=NOT_CHOSEN, label="Lay over it", info="Another schedule with the same settings.",
                elem_id="tp-plan-beside", interactive=usable,
            )  # fmt: skip
            self.schedule = gr.HTML(
                views.notice("The number of steps is not known yet: choose the data and click Verify Dataset."), elem_id="tp-plan-shown"
            )
        with gr.Accordion("Presets", open=False, elem_id="tp-presets"):
            with gr.Row(elem_classes=["tp-pair"]):
                self.preset = gr.Dropdown(
                    self._presets(), value=NOT_CHOSEN, label="Preset", info="How to train, without the data and the name of the LoRA.",
                    allow_custom_value=True, elem_id="tp-preset", interactive=usable, min_width=180,
                )  # fmt: skip
                self.name = gr.Textbox(label="Save as", info="A name for the settings as they are now.", max_lines=1, elem_id="tp-preset-name", interactive=usable, min_width=180)  # fmt: skip
            self.overwrite = gr.Checkbox(label="Overwrite the preset of this name", elem_id="tp-preset-overwrite", interactive=usable)
            with gr.Row():
                self.load = gr.Button("Load", size="sm", elem_id="tp-preset-load", interactive=usable, min_width=80)
                self.save = gr.Button("Save", size="sm", elem_id="tp-preset-save", interactive=usable, min_width=80)
                self.remove = gr.Button("Remove", size="sm", elem_id="tp-preset-remove", interactive=usable, min_width=80)
                self.defaults = gr.Button("Restore defaults", size="sm", elem_id="tp-preset-defaults", interactive=usable, min_width=120)
            self.said = gr.HTML("", elem_id="tp-preset-said")
        with gr.Accordion("Compare runs", open=False, elem_id="tp-compare"):
            with gr.Row(elem_classes=["tp-pair"]):
                self.runs = gr.Dropdown(
                    self._runs(), value=[], multiselect=True, label="Runs and checkpoints", elem_id="tp-compare-runs", interactive=usable, scale=3,
                    info="Their losses over each other, and the settings that differ.",
                )  # fmt: skip
                self.axis = gr.Radio(
                    ["step", "epoch"], value="step", label="By", elem_id="tp-compare-axis", interactive=usable, scale=1, min_width=120
                )
            self.compared = gr.HTML(compare_html([]), elem_id="tp-compare-shown")

    def wire(self, fields: set[Any], widgets: list[Any]) -> None:
        """Connect the events; `fields` are the settings' widgets as a set, `widgets` the same in a list."""
        quiet = {"show_progress": "hidden", **hidden_from_api(self.load.click)}
        inputs = {*fields, self.beside}
        for key in PLANNED:
            # The input of a Textbox of Gradio 6 comes before its value has changed.
            widget = self.tab.widgets[key]
            changed = widget.change if OPTIONS[key].widget == "text" else widget.input
            changed(self.on_plan, inputs, [self.schedule], trigger_mode="always_last", **quiet)
        self.beside.change(self.on_plan, inputs, [self.schedule], trigger_mode="always_last", **quiet)
        listed = [self.said, self.preset]
        self.save.click(self.on_save, {*fields, self.name, self.overwrite}, listed, **quiet)
        self.remove.click(self.on_remove, [self.preset], listed, **quiet)
        filled = [self.said, *widgets]
        self.load.click(self.on_load, {*fields, self.preset}, filled, **quiet).then(self.on_plan, inputs, [self.schedule], **quiet)
        self.defaults.click(self.on_defaults, fields, filled, **quiet).then(self.on_plan, inputs, [self.schedule], **quiet)
        for widget in (self.runs, self.axis):
            widget.change(self.on_compare, [self.runs, self.axis], [self.compared], **quiet)

    def lists(self) -> dict[Any, Any]:
        return {self.preset: gr.update(choices=self._presets()), self.runs: gr.update(choices=self._runs())}

    def _presets(self) -> list[str]:
        return [NOT_CHOSEN, *presets.list_presets(self._folder)]

    def _runs(self) -> list[str]:
        return self.tab.adapter_names()[1:]

    @property
    def _folder(self) -> Any:
        return presets.presets_folder(self.host.datasets_dir)

    # Handlers

    def on_plan(self, values: dict[Any, Any]) -> str:
        """The schedule of the settings as they stand, with the blocks that were verified last."""
        if self.tab.verified is None:
            return views.notice("The number of steps is not known yet: choose the data and click Verify Dataset.")
        settings, found = self.tab.settings_of(values)
        if found:
            return views.problems(found, "Not drawn")
        verified = self.tab.verified[0]
        blocks = verified.report.packed_rows if settings.packing else len(verified.blocks)
        beside = values[self.beside]
        return preview(settings, Plan.of(settings, blocks), beside if beside in SCHEDULERS else None)

    def on_save(self, values: dict[Any, Any]) -> dict[Any, Any]:
        settings, found = self.tab.settings_of(values)
        if found:
            return {self.said: views.problems(found, "Not saved"), self.preset: gr.update()}
        return self._done(lambda: presets.save_preset(self._folder, values[self.name] or "", settings, bool(values[self.overwrite])))

    def on_remove(self, name: str | None) -> dict[Any, Any]:
        return self._done(lambda: presets.delete_preset(self._folder, self._named(name)))

    def on_load(self, values: dict[Any, Any]) -> dict[Any, Any]:
        now, _ = self.tab.settings_of(values)
        try:
            settings, said = presets.load_preset(self._folder, self._named(values[self.preset]), now)
        except PresetError as error:
            return {self.said: views.notice(str(error), "tp-bad")}
        return {self.said: views.copied(values[self.preset], said), **self.tab.filled(settings)}

    def on_defaults(self, values: dict[Any, Any]) -> dict[Any, Any]:
        now, _ = self.tab.settings_of(values)
        kept = {key: getattr(now, key) for key in presets.NOT_KEPT if key != "batch_size"}
        return {
            self.said: views.notice("Every setting but the name and the data is as it was at first."),
            **self.tab.filled(TrainingSettings(**kept)),
        }

    def on_compare(self, names: list[str] | None, by: str) -> str:
        try:
            return compare_html([load_run(adapter_folder(self.host, name)) for name in names or []], by)
        except CannotAnswer as error:
            return views.notice(str(error), "tp-bad")

    @staticmethod
    def _named(name: str | None) -> str:
        if not name or name == NOT_CHOSEN:
            raise PresetError("Preset is not chosen.")
        return name

    def _done(self, work: Any) -> dict[Any, Any]:
        try:
            said = views.notice(work(), "tp-ok")
        except PresetError as error:
            said = views.notice(str(error), "tp-bad")
        return {self.said: said, self.preset: gr.update(choices=self._presets(), value=NOT_CHOSEN)}
