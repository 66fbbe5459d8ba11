"""The tab “Train LoRA”: laid out as sections A to G, wired to the trainer. What it shows is made in views.py and matplotgraph.py.

The run that is going on, or was last, is shown and steered in tab_run.py.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from . import evaluation, token_view, training_run, views
from .background import Job, in_a_thread_that_ends
from .chat_templates import HOSTS
from .following import POLL_SECONDS
from .host import QUANTIZATIONS, Host, ModelError
from .paths import name_problem, reason, whole_letters
from .rows import DataError
from .settings import BUILT_IN, NOT_CHOSEN, OPTIONS, SECTIONS, Option, SettingsError, TrainingSettings, optimizers
from .slicer_view import Slices
from .tab_memory import MemoryTab
from .tab_plan import PlanTab
from .tab_run import RunTab
from .tab_samples import SamplesTab
from .tab_tools import ToolsTab, on_this_machine
from .training_run import Busy, TrainingRun
from .try_it import AS_CHAT, AS_TEXT, AS_TRAINED, CannotAnswer, answers
from .versions import hidden_from_api

SLICES_SHOWN = 20_000_000  # bytes of text
SLICING = ("raw_text_file", "precize_slicing_overlap", "sliding_window", "hard_cut_string", "min_chars", "overlap_len", "newline_favor_len",
           "cutoff_len", "add_bos_token", "add_eos_token", "add_eos_token_type")  # fmt: skip
TEXT_ALONE = {"dataset": None, "eval_dataset": None, "datasetJSONL": None, "eval_datasetJSONL": None, "hybrid_training": False}
STYLES = [AS_TRAINED, AS_CHAT, AS_TEXT]

logger = logging.getLogger(__name__)


class TrainTab:
    """The widgets of the tab and what their events do. The handlers are plain methods: values in, updates out."""

    def __init__(self, host: Host):
        self.host = host
        self.widgets: dict[str, Any] = {}  # option key → component
        self.note: tuple[Any, str] = (None, "")  # what there is to say about the model that was loaded last, or was not, here
        self.not_loaded = False  # whether it says why not; a page that is opened later does not show that any more
        self.verified: tuple[Any, Any] | None = None  # what the last Verify prepared, and with which tokenizer
        self.verified_with: TrainingSettings | None = None
        self.job: Job | None = None  # the last Verify
        self.slices: tuple[Slices, TrainingSettings] | None = None  # the text that was sliced last to be looked at
        self.loading = False  # meanwhile the line on top belongs to the loading, on every page
        self._build()
        self._wire()

    # Layout

    def _build(self) -> None:
        self.model_line = gr.HTML(views.model_line(self.host), elem_id="tp-model-line")
        self._model_loader()
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=420):
                gr.HTML(views.heading(SECTIONS["general"]))
                with gr.Group():
                    self._copy()
                    self._options("general")
                self._section("core")
                self._section("checkpoints")
                self._section("stops")
                with gr.Accordion(SECTIONS["advanced"], open=False, elem_id="tp-advanced"):
                    self._options("advanced")
                self.plan = PlanTab(self)
            with gr.Column(scale=6, min_width=420):
                gr.HTML(views.heading("F. Dataset"))
                with gr.Tabs(elem_id="tp-data"):
                    for section in ("json", "jsonl", "text", "hybrid"):
                        with gr.Tab(SECTIONS[section], elem_id=f"tp-tab-{section}"):
                            self._options(section)
                            if section == "text":
                                self._slicer_view()
                    self.tools = ToolsTab(self)
                self.refresh = gr.Button("Refresh the lists of files", size="sm", elem_id="tp-refresh", interactive=self.usable)
                self._section("final")
                with gr.Row():
                    self.verify = gr.Button("Verify Dataset", elem_id="tp-verify", interactive=self.usable)
                    self.cancel = gr.Button("Cancel", elem_id="tp-cancel", visible=False, interactive=self.usable)
                    self.start = gr.Button("Start LoRA Training", variant="primary", elem_id="tp-start", interactive=self.usable)
                self.run = RunTab(self)
                self.samples = SamplesTab(self)
                self.report = gr.HTML("", elem_id="tp-report")
                self.leave_out = gr.Button("Leave these rows out", size="sm", elem_id="tp-leave-out", visible=False, interactive=self.usable)
                self.memory = MemoryTab(self)
                self._token_view()
                self.samples.earlier()
                self._try_it()

    @property
    def usable(self) -> bool:
        return not self.host.multi_user

    def _section(self, section: str) -> None:
        gr.HTML(views.heading(SECTIONS[section]))
        with gr.Group():
            self._options(section)

    def _options(self, section: str) -> None:
        """The section's options in rows of two; a long one has a row of its own."""
        shown = [kind for kind in OPTIONS.values() if kind.section == section and kind.works]
        while shown:
            alone = shown[0].widget == "radio" or len(shown) == 1
            pair, shown = (shown[:1], shown[1:]) if alone or shown[1].widget == "radio" else (shown[:2], shown[2:])
            with gr.Row(elem_classes=["tp-pair"]):
                for kind in pair:
                    self.widgets[kind.key] = self._widget(kind)

    def _widget(self, kind: Option) -> Any:
        common = {"label": kind.label, "info": kind.help, "interactive": self.usable, "elem_id": f"tp-{kind.key}", "min_width": 200}
        if kind.widget == "slider":
            high = TrainingSettings().highest(kind.key, self.host.context_length)
            return gr.Slider(minimum=kind.low, maximum=high, step=kind.step, value=kind.default, **common)
        if kind.widget == "number":
            return gr.Number(value=kind.default, precision=0 if kind.whole else None, **common)
        if kind.widget == "checkbox":
            return gr.Checkbox(value=kind.default, **common)
        if kind.widget == "radio":
            return gr.Radio(kind.offered(), value=kind.default or NOT_CHOSEN, **common)
        if kind.widget == "text":
            return gr.Textbox(value=kind.default, lines=kind.lines, max_lines=kind.lines, **common)
        if kind.files:
            # A name that is gone since the list was drawn must reach our own check, which says so; gradio's would only say “Error”.
            return gr.Dropdown(self._files(kind), value=NOT_CHOSEN, allow_custom_value=True, **common)
        if kind.key == "optimizer":  # the whole list is there when transformers is, see _model_look
            return gr.Dropdown(optimizers(loaded=True), value=kind.default, allow_custom_value=True, **common)
        return gr.Dropdown(kind.offered(), value=kind.default, **common)

    def _files(self, kind: Option) -> list[str]:
        offered = [name for name in BUILT_IN.get(kind.key, []) if name != HOSTS or self.host.instruction_template()]
        return [NOT_CHOSEN, *offered, *self.host.data_files(kind.files)]

    def _copy(self) -> None:
        with gr.Row(elem_classes=["tp-pair"]):
            self.copy_from = gr.Dropdown(
                [NOT_CHOSEN, *self.host.adapters()], value=NOT_CHOSEN, allow_custom_value=True, label="Copy parameters from", elem_id="tp-copy_from",
                info="Fills in all settings of an earlier run, of ours or of the web UI's own tab.", interactive=self.usable, min_width=200,
            )  # fmt: skip
            self.sort_by_time = gr.Checkbox(
                label="Sort list by Date", info="The newest first, instead of by name.", value=False, elem_id="tp-sort_byTime",
                interactive=self.usable, min_width=200,
            )  # fmt: skip

    def _model_loader(self) -> None:
        model, quantization = self.host.suggested_load()
        self.loader = gr.Accordion("Load another model", open=self._needs_model(), elem_id="tp-load")
        with self.loader, gr.Row(equal_height=False, elem_classes=["tp-pair"]):
            self.model_choice = gr.Dropdown(
                self.host.offered_models(), value=model, allow_custom_value=True, label="Model", elem_id="tp-load-model", scale=4,
                info=self.host.loading_help, interactive=self.usable,
            )  # fmt: skip
            self.quantization = gr.Radio(
                list(QUANTIZATIONS), value=quantization, label="Quantization", elem_id="tp-load-quantization", scale=3, interactive=self.usable,
                info="4bit needs about a quarter of the memory (QLoRA).",
            )  # fmt: skip
            self.load = gr.Button("Load", elem_id="tp-load-button", scale=1, min_width=90, interactive=self.usable)

    def _needs_model(self) -> bool:
        return self.host.model_problem() is not None

    def _token_view(self) -> None:
        self.tokens_box = gr.Column(visible=False, elem_id="tp-tokens")
        with self.tokens_box:
            gr.HTML(views.heading("Token view"))
            with gr.Row(elem_classes=["tp-pair"], equal_height=False):
                self.which = gr.Dropdown(token_view.CHOICES, value=token_view.ALL, label="Show", elem_id="tp-tokens-which", scale=3, min_width=180)
                self.block = gr.Number(value=1, minimum=1, precision=0, label="Block", elem_id="tp-tokens-block", scale=1, min_width=90)
                self.previous = gr.Button("◀ Previous", size="sm", elem_id="tp-tokens-previous", scale=1, min_width=90)
                self.next = gr.Button("Next ▶", size="sm", elem_id="tp-tokens-next", scale=1, min_width=90)
            self.tokens = gr.HTML("", elem_id="tp-tokens-shown")

    def _slicer_view(self) -> None:
        with gr.Row(elem_classes=["tp-pair"], equal_height=False):
            self.slice = gr.Button("Show the slices", size="sm", elem_id="tp-slices", scale=2, min_width=120, interactive=self.usable)
            self.part = gr.Number(value=1, minimum=1, precision=0, label="Part", elem_id="tp-slices-part", visible=False, scale=1, min_width=90)
            self.part_before = gr.Button("◀ Previous", size="sm", elem_id="tp-slices-previous", visible=False, scale=1, min_width=90)
            self.part_after = gr.Button("Next ▶", size="sm", elem_id="tp-slices-next", visible=False, scale=1, min_width=90)
        self.slices_shown = gr.HTML("", elem_id="tp-slices-shown")
        self.slices_open = gr.State(False)

    def _try_it(self) -> None:
        with gr.Accordion("Try it", open=False, elem_id="tp-try"):
            with gr.Row():
                self.adapter = gr.Dropdown(
                    self.adapter_names(), value=NOT_CHOSEN, allow_custom_value=True, label="LoRA", elem_id="tp-try-adapter", interactive=self.usable,
                    info="A LoRA of the loaded base model, or one of its checkpoints.",
                )  # fmt: skip
                self.style = gr.Dropdown(
                    self._styles(), value=STYLES[0], label="Prompt as", elem_id="tp-try-style", interactive=self.usable,
                    info="What is put around the prompt.",
                )  # fmt: skip
            with gr.Row():
                self.new_tokens = gr.Slider(
                    8, 512, value=100, step=4, label="Longest answer", info="In tokens.", elem_id="tp-try-tokens", interactive=self.usable
                )
                self.temperature = gr.Slider(
                    0, 2, value=0, step=0.05, label="Temperature", elem_id="tp-try-temperature", interactive=self.usable,
                    info="0 takes the likeliest token each time, so that only the LoRA makes the difference.",
                )  # fmt: skip
            self.prompt = gr.Textbox(
                lines=2, label="Prompt", elem_id="tp-try-prompt", placeholder="Ask something that your data is about", interactive=self.usable
            )
            self.answer = gr.Button("Answer with both", elem_id="tp-try-answer", interactive=self.usable)
            with gr.Row():
                self.base_answer = gr.Textbox(lines=5, label="Base model", interactive=False, elem_id="tp-try-base")
                self.adapter_answer = gr.Textbox(lines=5, label="With the LoRA", interactive=False, elem_id="tp-try-lora")
            self.try_message = gr.HTML("", elem_id="tp-try-message")

    def adapter_names(self) -> list[str]:
        found = [NOT_CHOSEN]
        for name in self.host.adapters(newest_first=True):
            found.append(name)
            checkpoints = (self.host.lora_dir / name).glob("checkpoint-*/adapter_config.json")
            shown = [path.parent for path in checkpoints if name_problem(path.parent.name) is None]
            found += [f"{name}/{path.name}" for path in sorted(shown, key=lambda path: path.stat().st_mtime)]
        return found

    # Wiring

    def _wire(self) -> None:
        fields = set(self.widgets.values())
        quiet = {"show_progress": "hidden", **hidden_from_api(self.start.click)}
        self.start.click(self.on_start, fields, [*self.run.looked_at, self.report], **quiet)
        seen = [self.block, self.tokens]
        verified = [self.report, self.tokens_box, self.which, *seen]
        verified = [*verified, self.cancel, self.leave_out]
        planned = {"fn": self.plan.on_plan, "inputs": {*fields, self.plan.beside}, "outputs": [self.plan.schedule], **quiet}
        unbound = {**quiet, "concurrency_limit": None}  # a second click takes the first one's place
        self.verify.click(self.on_verify, fields, verified, **unbound).then(**planned).then(**self.run.looking_again(fields)).then(
            **self.memory.estimating(fields)
        )
        self.cancel.click(self.on_cancel, None, [self.report], **quiet)
        repeats = self.widgets["leave_out_repeats"]
        self.leave_out.click(lambda: True, None, [repeats], **quiet).then(self.on_verify, fields, verified, **unbound)
        sliced = [self.slices_shown, self.slices_open, self.part, self.part_before, self.part_after]
        self.slice.click(self.on_slices, fields, sliced, **quiet)
        for key in SLICING:
            # The input of a Textbox of Gradio 6 comes before its value has changed.
            changed = self.widgets[key].change if OPTIONS[key].widget == "text" else self.widgets[key].input
            changed(self.on_slicing, {*fields, self.slices_open}, sliced, trigger_mode="always_last", **quiet)
        self.part.submit(self.on_part, [self.part], [self.slices_shown, self.part], **quiet)
        self.part_before.click(self.on_part_before, [self.part], [self.slices_shown, self.part], **quiet)
        self.part_after.click(self.on_part_after, [self.part], [self.slices_shown, self.part], **quiet)
        self.which.input(self.on_which, [self.which], seen, **quiet)
        self.block.submit(self.on_block, [self.which, self.block], seen, **quiet)
        self.previous.click(self.on_previous, [self.which, self.block], seen, **quiet)
        self.next.click(self.on_next, [self.which, self.block], seen, **quiet)
        self.copy_from.input(self.on_copy, [self.copy_from], [self.report, *self.widgets.values()], **quiet)
        self.sort_by_time.change(self.on_sort, [self.sort_by_time], [self.copy_from], **quiet)
        limits = [self.widgets["lora_rank"], self.widgets["lora_alpha"]]
        self.widgets["higher_rank_limit"].change(self.on_higher_ranks, [self.widgets["higher_rank_limit"]], limits, **quiet)
        lists = list(self.all_lists())
        self.refresh.click(self.on_refresh, [self.sort_by_time], [*lists, self.copy_from], **quiet)
        self.tools.wire(fields, lists)
        self.plan.wire(fields, list(self.widgets.values()))
        self.samples.wire()
        self.memory.wire(fields)
        self.answer.click(
            self.on_answer,
            [self.prompt, self.adapter, self.style, self.new_tokens, self.temperature],
            [self.base_answer, self.adapter_answer, self.try_message],
            show_progress="minimal",
            **hidden_from_api(self.answer.click),
        )
        loaded = self.load.click(self.on_load_model, [self.model_choice, self.quantization], list(self.model_look()), **quiet)
        loaded.then(**self.run.looking_again(fields))
        self.run.wire(fields, list(self.widgets.values()))

    # Handlers

    def settings_of(self, values: dict[Any, Any]) -> tuple[TrainingSettings, list[str]]:
        return TrainingSettings.read(
            {key: whole_letters(value) if isinstance(value := values[widget], str) else value for key, widget in self.widgets.items()}
        )

    def on_start(self, values: dict[Any, Any]) -> dict[Any, Any]:
        return self.begun(*self.settings_of(values))

    def begun(self, settings: TrainingSettings, found: list[str], rate_factor: float = 1.0) -> dict[Any, Any]:
        """Start a run and show it, or say what keeps it from starting: problems, those that were `found` already among them, or another run."""
        from . import train_utils

        running = training_run.current()
        try:
            if running is not None and running.active:
                raise Busy(training_run.busy_message(running))
            if found:
                raise SettingsError(found + in_a_thread_that_ends(lambda: train_utils.check(settings, self.host)))
            run = train_utils.start(settings, self.host, rate_factor)
        except SettingsError as error:
            return {self.run.status: views.problems(error.problems)}
        except Busy as error:
            return {self.report: views.notice(f"Not started: {error}", "tp-bad"), **self.run.look(training_run.current())}
        return {self.report: "", **self.run.look(run)}

    def on_verify(self, values: dict[Any, Any]) -> Iterator[dict[Any, Any]]:
        from . import train_utils
        from .dataset_tools import prepare

        hidden = {self.cancel: gr.update(visible=False), self.leave_out: gr.update(visible=False)}
        settings, found = self.settings_of(values)
        if found := found + train_utils.check_data(settings, self.host):
            yield {**hidden, self.report: views.problems(found, "Not verified"), self.tokens_box: gr.update(visible=False)}
            return
        tokenizer = self.host.tokenizer
        before, self.job = self.job, Job(lambda progress: prepare(settings, tokenizer, self.host, progress, look=True))
        if before is not None:
            before.cancel()
        job = self.job
        while not job.done.wait(POLL_SECONDS / 2):
            yield {self.report: views.working(job.doing, job.share), self.cancel: gr.update(visible=True)}
        if job is not self.job:
            return  # a later Verify shows its own
        if isinstance(job.error, DataError):
            shown = views.problems(job.error.problems, "Not verified")
        elif job.cancelled:
            shown = views.notice("Not verified: called off.")
        elif job.error is not None:
            logger.error("Verify failed", exc_info=job.error)
            shown = views.problems([f"{type(job.error).__name__}: {job.error}"], "Not verified")
        else:
            yield {**hidden, **self._verified(job.result, settings, tokenizer)}
            return
        yield {**hidden, self.report: shown, self.tokens_box: gr.update(visible=False)}

    def _verified(self, prepared: Any, settings: TrainingSettings, tokenizer: Any) -> dict[Any, Any]:
        self.verified, self.verified_with = (prepared, tokenizer), settings
        count = 0 if settings.leave_out_repeats else len(prepared.repeats)
        return {
            self.report: views.report(prepared.report, settings, prepared.blocks.lengths),
            self.leave_out: gr.update(visible=count > 0, value=f"Leave {'this row' if count == 1 else f'these {count:,} rows'} out"),
            self.tokens_box: gr.update(visible=True),
            self.which: token_view.ALL,
            **self.on_block(token_view.ALL, 1),
        }

    def on_cancel(self) -> str:
        if self.job is not None:
            self.job.cancel()
        return views.notice("Calling it off …")

    def on_slices(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """Cut the chosen text as Start would, and show where."""
        from . import train_utils
        from .dataset_tools import prepare

        settings, found = self.settings_of(values)
        settings = settings.model_copy(update=TEXT_ALONE)
        if settings.raw_text_file is None:
            found = ["Text file is not chosen."]
        if not (found := found + (train_utils.check_data(settings, self.host) if not found else [])):
            try:
                path = self.host.data_file("text", settings.raw_text_file)
                if (size := _bytes_of(path)) > SLICES_SHOWN:
                    found = [
                        f"“{path.name}” has {size / 1e6:,.0f} MB, and the slices of up to {SLICES_SHOWN / 1e6:.0f} MB can be shown; Verify shows each block."
                    ]
                else:
                    prepared = prepare(settings, self.host.tokenizer, self.host)
                    self.slices = (Slices(prepared, settings), settings)
            except (DataError, OSError) as error:
                found = error.problems if isinstance(error, DataError) else [reason(error)]
        if found:
            shown = {self.slices_shown: views.problems(found, "Not sliced")}
            return {**shown, self.slices_open: True, **dict.fromkeys((self.part, self.part_before, self.part_after), gr.update(visible=False))}
        visible = {widget: gr.update(visible=True) for widget in (self.part_before, self.part_after)}
        return {**self.on_part(1), **visible, self.slices_open: True, self.part: gr.update(value=1, visible=True)}

    def on_slicing(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """The slices follow the controls, once they are shown."""
        if not values[self.slices_open]:
            return {self.slices_open: False}
        return self.on_slices(values)

    def on_part_before(self, number: int | None) -> dict[Any, Any]:
        return self.on_part((number or 1) - 1)

    def on_part_after(self, number: int | None) -> dict[Any, Any]:
        return self.on_part((number or 0) + 1)

    def on_part(self, number: int | None) -> dict[Any, Any]:
        """Show a part of the sliced text; a number beyond the ends is the nearest there is."""
        if self.slices is None:
            return {self.slices_shown: "", self.part: 1}
        slices, settings = self.slices
        number = min(max(1, int(number or 1)), slices.parts)
        try:
            return {self.slices_shown: views.slicer_view(slices, number, settings), self.part: number}
        except DataError as error:  # the file has changed or gone since
            return {self.slices_shown: views.problems(error.problems, "Not shown"), self.part: number}

    def on_which(self, which: str) -> dict[Any, Any]:
        return self.on_block(which, 1)

    def on_previous(self, which: str, number: int | None) -> dict[Any, Any]:
        return self.on_block(which, (number or 1) - 1)

    def on_next(self, which: str, number: int | None) -> dict[Any, Any]:
        return self.on_block(which, (number or 0) + 1)

    def on_block(self, which: str, number: int | None) -> dict[Any, Any]:
        """Show a block of the data that was verified last; a number beyond the ends is the nearest there is."""
        if self.verified is None:
            return {self.tokens: views.notice("Verify the data first."), self.block: 1}
        prepared, tokenizer = self.verified
        blocks, numbers = token_view.chosen(prepared, which)
        if not numbers:
            return {self.tokens: views.no_block(which), self.block: 1}
        place = min(max(1, int(number or 1)), len(numbers))
        item = blocks[numbers[place - 1]]
        return {self.tokens: views.token_view(item, token_view.tokens(item, tokenizer), place, len(numbers), which), self.block: place}

    def on_higher_ranks(self, higher: bool) -> list[Any]:
        settings = TrainingSettings(higher_rank_limit=higher is True)
        return [gr.update(maximum=settings.highest(key)) for key in ("lora_rank", "lora_alpha")]

    def on_copy(self, name: str | None) -> dict[Any, Any]:
        """Fill in an earlier run's settings; Override Existing Files stays off, so that Start cannot put that run away unasked."""
        if not name or name == NOT_CHOSEN:
            return {self.report: ""}
        try:
            settings, problems, notices = TrainingSettings.load_leniently(self.host.run_folder(name) / "training_parameters.json")
        except (ValueError, OSError) as error:
            return {self.report: views.notice(f"Copy parameters from “{name}”: {reason(error)}", "tp-bad")}
        settings = settings.model_copy(update={"always_override": False, "lora_name": name})
        return {self.report: views.copied(name, [*problems, *notices]), **self.filled(settings)}

    def on_sort(self, newest_first: bool) -> Any:
        return gr.update(choices=[NOT_CHOSEN, *self.host.adapters(newest_first)])

    def on_refresh(self, newest_first: bool) -> dict[Any, Any]:
        return {**self.all_lists(), self.copy_from: self.on_sort(newest_first)}

    def on_answer(self, prompt: str, adapter: str, style: str, new_tokens: int, temperature: float) -> dict[Any, Any]:
        try:
            said = in_a_thread_that_ends(
                lambda: answers(self.host, prompt or "", adapter, style=style, max_new_tokens=new_tokens, temperature=temperature)
            )
        except CannotAnswer as error:
            return {self.base_answer: "", self.adapter_answer: "", self.try_message: views.notice(str(error), "tp-bad")}
        return {self.base_answer: said.base, self.adapter_answer: said.adapter, self.try_message: ""}

    def on_load_model(self, model: str | None, quantization: str, request: gr.Request):
        run = training_run.current()
        if run is not None and run.active:
            yield {self.model_line: views.notice(f"Not loaded: {training_run.busy_message(run)}", "tp-bad")}
            return
        if busy := self.host.busy() or evaluation.busy_message():
            yield {self.model_line: views.notice(f"Not loaded: {busy}", "tp-bad")}
            return
        if not model:
            yield {self.model_line: views.notice(f"Not loaded: no model is chosen. {self.host.how_to_load()}", "tp-bad")}
            return
        if not on_this_machine(request) and (problem := self.host.stranger_problem(model)):
            yield {self.model_line: views.notice(f"Not loaded: {problem}", "tp-bad")}
            return
        yield {self.model_line: views.notice(f"Loading {model} …")}
        self.loading = True
        try:
            in_a_thread_that_ends(lambda: self.host.load(model, quantization))
            said, self.not_loaded = self._not_quantised(quantization), False
        except ModelError as error:
            said, self.not_loaded = str(error), True
        finally:
            self.loading = False
        self.note = (self.host.model_mark(), said)
        yield self.model_look()

    def _not_quantised(self, asked: str) -> str:
        facts = self.host.facts
        if asked == "none" or facts is None or facts.quantization != "none":
            return ""
        return f"The {asked} quantization was not used: this host loads it so only on a graphics card."

    # What the page shows at first, and what changes when a run has ended

    def at_first(self) -> dict[Any, Any]:
        return {
            **self.model_look(opened=True),
            **self.all_lists(),
            self.copy_from: self.on_sort(False),
            self.loader: gr.update(open=self._needs_model()),
        }

    def model_look(self, opened: bool = False) -> dict[Any, Any]:
        said = self.note[1] if self.note[0] == self.host.model_mark() and not (opened and self.not_loaded) else ""
        return {
            self.model_line: views.model_line(self.host, said),
            self.widgets["cutoff_len"]: self._cutoff_range(),
            self.widgets["optimizer"]: gr.update(choices=optimizers(loaded=True)),
        }

    def all_lists(self) -> dict[Any, Any]:
        """Fresh choices for every list of files, adapters and models, here and in the tools."""
        return {
            **{self.widgets[kind.key]: gr.update(choices=self._files(kind)) for kind in OPTIONS.values() if kind.files and kind.works},
            self.adapter: gr.update(choices=self.adapter_names()),
            self.style: gr.update(choices=self._styles()),
            self.model_choice: gr.update(choices=self.host.offered_models()),
            **self.tools.lists(),
            **self.plan.lists(),
            **self.run.lists(),
            **self.samples.lists(),
        }

    def _styles(self) -> list[str]:
        return [*STYLES, *self.host.data_files("format")]

    def after(self, run: TrainingRun) -> dict[Any, Any]:
        lists = {
            self.adapter: self._adapter_list(run),
            **self.plan.lists(),
            **self.run.lists(),
            **self.samples.lists(),
            self.copy_from: self.on_sort(False),
            self.sort_by_time: gr.update(value=False),
        }
        return {**self.model_look(), **lists}

    @property
    def changed_by_a_run(self) -> list[Any]:
        """The lists that `after` updates, beside what `model_look` does."""
        return [self.adapter, *self.plan.lists(), *self.run.lists(), *self.samples.lists(), self.copy_from, self.sort_by_time]

    def _adapter_list(self, run: TrainingRun) -> Any:
        choices = self.adapter_names()
        return gr.update(choices=choices, value=run.name) if run.succeeded and run.name in choices else gr.update(choices=choices)

    def filled(self, settings: TrainingSettings) -> dict[Any, Any]:
        """Fields with a run's settings; a slider's end is moved first, else it would cut the value."""
        values = settings.on_the_page()
        filled = {widget: gr.update(value=values[key]) for key, widget in self.widgets.items()}
        for key in ("lora_rank", "lora_alpha", "cutoff_len"):
            highest = settings.highest(key, self.host.context_length)
            filled[self.widgets[key]] = gr.update(value=values[key], maximum=max(highest, values[key]))
        return filled

    def _cutoff_range(self) -> Any:
        return gr.update(maximum=TrainingSettings().highest("cutoff_len", self.host.context_length))


def _bytes_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.txt")) if path.is_dir() else path.stat().st_size
