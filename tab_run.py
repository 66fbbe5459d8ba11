"""The running side of the tab “Train LoRA”: status, chart, what steers a run, and what goes on with one that was not finished.

The run lives in `training_run`; a page only looks at it and leaves commands for it, and so does every other page.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import gradio as gr

from . import continued, diary, resume, training_run, views
from .compare import load_run
from .kept import WITHOUT_DATA
from .matplotgraph import X_AXES, chart_svg
from .settings import OPTIONS, TrainingSettings
from .training_run import ADD_EPOCH, COOL_DOWN, ELSEWHERE, EVALUATE, SCALE_RATE, TrainingRun
from .try_it import CannotAnswer, adapter_folder
from .versions import hidden_from_api

DRAWING_SHARE = 0.02
MOST_PICTURES = 16
TYPING_SECONDS = 1.0  # “120” is typed as 1, 12, 120: a running run gets a stop only when the typing is over
STOPS = ("stop_at_loss", "stop_at_epoch", "time_budget_minutes")
HALF = 0.5
Drawn = tuple[str, list[tuple[str, Any]]]  # the x axis, and (name, history) of what is laid over the chart
AS_AT_FIRST: Drawn = ("step", [])


class State(NamedTuple):
    """What everything on the page but status, chart and commands depends on."""

    run: tuple[Any, ...]
    samples: tuple[int, int]
    model: Any


@dataclass(frozen=True)
class Picture:
    """A chart that was drawn of a run: when, how long it took (seconds), and the SVG."""

    run: TrainingRun
    mark: tuple[int, int]
    at: float
    took: float
    shown: str


class Pictures:
    """The charts of the run, each drawn once for all pages that want the same. Of a run that goes on one may be a little old, so that drawing,
    which takes the longer the more steps there are, has a small share of the time."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, ...], Picture] = {}

    def of(self, run: TrainingRun | None, drawn: Drawn = AS_AT_FIRST, anew: bool = False) -> str:
        if run is None:
            return chart_svg([])
        by, beside = drawn
        wanted = (by, *(name for name, _ in beside))
        old = self.kept.get(wanted)
        if old is not None and not anew and old.run is run:
            soon = run.active and time.monotonic() - old.at < old.took / DRAWING_SHARE
            if soon or old.mark == _mark(run):
                return old.shown
        began, mark = time.monotonic(), _mark(run)
        per_epoch = run.report.steps_per_epoch if run.report else 0
        shown = chart_svg(run.whole_history, run.earlier_steps + run.total_steps if run.active else 0, per_epoch, by=by, others=beside)
        if len(self.kept) >= MOST_PICTURES:
            self.kept.clear()
        now = time.monotonic()
        self.kept[wanted] = Picture(run, mark, now, now - began, shown)
        return shown


class RunTab:
    """Args:
    tab: the `TrainTab`, whose fields these read and fill.
    """

    def __init__(self, tab: Any):
        self.tab, self.host = tab, tab.host
        self.typed: dict[str, object] = {}  # option key → the newest change of a stop, on whatever page
        self.printed: tuple[Any, resume.DataPrint | None] = (None, None)  # the data that was verified last
        self.drawn: dict[str, tuple[Drawn, str]] = {}  # by the page's session: each page has its own chart, and what could not be drawn in it
        self.model: Any = None  # the host's model as the pages show it
        self.pictures = Pictures()
        with gr.Row():
            self.interrupt = gr.Button("Interrupt", variant="stop", elem_id="tp-interrupt", interactive=False)
            self.checkpoint = gr.Button("Queue Checkpoint Now", elem_id="tp-checkpoint", interactive=False)
        self.status = gr.HTML(views.notice("Connecting to the trainer …", "tp-idle tp-connecting"), elem_id="tp-status")
        self._steering()
        self._resuming()
        self._chart()

    def _chart(self) -> None:
        self.chart = gr.HTML(chart_svg([]), elem_id="tp-chart")
        with gr.Row(elem_classes=["tp-pair"]):
            self.beside = gr.Dropdown(
                self._runs(), value=[], multiselect=True, label="Lay over it", info="The losses of earlier runs and of checkpoints.",
                elem_id="tp-chart-beside", interactive=self.tab.usable, scale=3,
            )  # fmt: skip
            self.axis = gr.Radio(list(X_AXES), value="step", label="By", elem_id="tp-chart-axis", interactive=self.tab.usable, scale=1, min_width=120)

    def _steering(self) -> None:
        usable = self.tab.usable
        self.steer = gr.Column(visible=False, elem_id="tp-steer")
        with self.steer:
            gr.HTML(views.heading("While it runs"))
            with gr.Row():
                self.halve = gr.Button("Learning rate × 0.5", size="sm", elem_id="tp-rate-half", interactive=usable, min_width=130)
                self.double = gr.Button("Learning rate × 2", size="sm", elem_id="tp-rate-double", interactive=usable, min_width=130)
                self.more = gr.Button("Add an epoch", size="sm", elem_id="tp-add-epoch", interactive=usable, min_width=110)
                self.evaluate = gr.Button("Evaluate now", size="sm", elem_id="tp-evaluate", interactive=False, min_width=110)
            with gr.Row(elem_classes=["tp-steer-row"]):
                self.factor = gr.Number(value=1, label="Learning rate ×", elem_id="tp-rate-factor", interactive=usable, min_width=110)
                self.scale = gr.Button("Apply", size="sm", elem_id="tp-rate-apply", interactive=usable, min_width=70)
                self.cool_steps = gr.Number(
                    value=50, precision=0, label="Steps to cool down", elem_id="tp-cool-steps", interactive=usable, min_width=110
                )
                self.cool = gr.Button("Cool down and finish", size="sm", elem_id="tp-cool", interactive=usable, min_width=110)
            self.refused = gr.HTML("", visible=False, elem_id="tp-steer-said")
            self.commands = gr.HTML("", elem_id="tp-commands")

    def _resuming(self) -> None:
        usable = self.tab.usable
        self.resume = gr.Column(visible=False, elem_id="tp-resume")
        with self.resume:
            self.outlook = gr.HTML("", elem_id="tp-outlook")
            with gr.Row():
                self.go_on = gr.Button("Resume", variant="primary", size="sm", elem_id="tp-go-on", visible=False, interactive=usable)
                self.half = gr.Button(
                    "Go on with half the learning rate", variant="primary", size="sm", elem_id="tp-go-on-half", visible=False, interactive=usable
                )
                self.fill = gr.Button("Use its settings", size="sm", elem_id="tp-go-on-fill", visible=False, interactive=usable)
        self.subject = gr.State("")  # the name of the run that the three buttons are about

    @property
    def looked_at(self) -> list[Any]:
        """What `look` updates."""
        return [*self.live, *self.steering, *self.offered]

    @property
    def live(self) -> list[Any]:
        """What `live_look` updates."""
        return [self.status, self.chart, self.commands]

    @property
    def steering(self) -> list[Any]:
        """The buttons that a run enables, and those of a run that goes on."""
        return [self.tab.start, self.interrupt, self.checkpoint, self.steer, self.evaluate]

    @property
    def at_first(self) -> list[Any]:
        """What `opened` updates."""
        return list(dict.fromkeys([*self.rest, *self.live, self.tab.loader, *self.tab.all_lists(), *self.tab.widgets.values()]))

    @property
    def rest(self) -> list[Any]:
        """What `changed` updates."""
        return [*self.steering, *self.offered, self.tab.samples.grid, *self.tab.model_look(), *self.tab.changed_by_a_run]

    @property
    def offered(self) -> list[Any]:
        """What `on_outlook` updates."""
        return [self.resume, self.outlook, self.go_on, self.half, self.fill, self.subject]

    def wire(self, fields: set[Any], widgets: list[Any]) -> None:
        """Connect the events; `fields` are the settings' widgets as a set, `widgets` the same in a list."""
        quiet = {"show_progress": "hidden", **hidden_from_api(self.interrupt.click)}
        self.interrupt.click(self.on_interrupt, None, [self.status], **quiet)
        self.checkpoint.click(self.on_checkpoint, None, [self.status], **quiet)
        for widget in (self.beside, self.axis):
            widget.change(self.on_drawn, [self.beside, self.axis], [self.chart], **quiet)
        for key in STOPS:
            # By hand alone: what “Copy parameters from” or a preset fills in is for the next run.
            self.tab.widgets[key].input(
                getattr(self, f"on_{key}"), [self.tab.widgets[key]], None, concurrency_limit=None, trigger_mode="multiple", **quiet
            )
        steered = [self.refused, self.commands]
        self.halve.click(self.on_halve, None, steered, **quiet)
        self.double.click(self.on_double, None, steered, **quiet)
        self.scale.click(self.on_scale, [self.factor], steered, **quiet)
        self.factor.submit(self.on_scale, [self.factor], steered, **quiet)
        self.cool.click(self.on_cool, [self.cool_steps], steered, **quiet)
        self.more.click(self.on_more, None, steered, **quiet)
        self.evaluate.click(self.on_evaluate, None, steered, **quiet)
        outlook = self.looking_again(fields)
        changes = [widget.change for widget in widgets]
        gr.on(changes, **{**outlook, **hidden_from_api(gr.on)}, trigger_mode="always_last")
        asked = {*fields, self.subject}
        started = [*self.looked_at, self.tab.report, *widgets]
        self.go_on.click(self.on_go_on, asked, started, **quiet)
        self.half.click(self.on_half, asked, started, **quiet)
        self.fill.click(self.on_fill, [self.subject], [self.tab.report, *widgets], **quiet).then(**outlook)

    def looking_again(self, fields: set[Any]) -> dict[str, Any]:
        """The event that shows what Start will do."""
        return {"fn": self.on_outlook, "inputs": fields, "outputs": self.offered, "show_progress": "hidden", **hidden_from_api(self.interrupt.click)}

    # Commands

    def on_interrupt(self) -> str:
        run = training_run.current()
        if run is not None and run.active:
            run.update(stop_requested=True)
        return views.status(run)

    def on_checkpoint(self) -> str:
        run = training_run.current()
        if run is not None and run.active:
            run.update(checkpoint_requested=True)
        return views.status(run)

    async def on_stop_at_loss(self, value: float | None) -> None:
        await self._stop("stop_at_loss", value)

    async def on_stop_at_epoch(self, value: float | None) -> None:
        await self._stop("stop_at_epoch", value)

    async def on_time_budget_minutes(self, value: float | None) -> None:
        await self._stop("time_budget_minutes", value)

    async def _stop(self, key: str, value: float | None) -> None:
        """Give a changed stop to the run that is going on, once it has not changed for a while."""
        run, change = training_run.current(), object()
        self.typed[key] = change
        await asyncio.sleep(TYPING_SECONDS)
        if run is not None and run.active and self.typed[key] is change and _is_number(value or 0) and getattr(run, key) != (value or 0):
            run.update(**{key: value or 0})

    def on_halve(self) -> dict[Any, Any]:
        return self._ask(SCALE_RATE, 0.5)

    def on_double(self) -> dict[Any, Any]:
        return self._ask(SCALE_RATE, 2.0)

    def on_scale(self, factor: float | None) -> dict[Any, Any]:
        if not (_is_number(factor) and 0 < factor <= 1000):
            return self._refuse(f"Learning rate × is {_shown(factor)}; it must be a number above 0, at most 1000.")
        return self._ask(SCALE_RATE, factor)

    def on_cool(self, steps: float | None) -> dict[Any, Any]:
        if not (_is_number(steps) and steps >= 1):
            return self._refuse(f"Steps to cool down is {_shown(steps)}; it must be a whole number from 1 on.")
        return self._ask(COOL_DOWN, int(steps))

    def on_more(self) -> dict[Any, Any]:
        return self._ask(ADD_EPOCH)

    def on_evaluate(self) -> dict[Any, Any]:
        run = training_run.current()
        if run is not None and run.active and not _can_evaluate(run):
            return self._refuse(views.NO_EVALUATION)
        return self._ask(EVALUATE)

    def _ask(self, kind: str, value: Any = None) -> dict[Any, Any]:
        run = training_run.current()
        if run is None or not run.active:
            return self._refuse("Nothing is being trained any more.")
        run.request(kind, value)
        return {self.refused: gr.update(visible=False), self.commands: views.commands(run)}

    def _refuse(self, why: str) -> dict[Any, Any]:
        return {self.refused: gr.update(value=views.notice(why, "tp-bad"), visible=True)}

    # Going on with a run that was not finished

    def on_outlook(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """What Start will do with what lies in the folder of the typed name; with no name typed, what can be done with the last run."""
        run = training_run.current()
        if run is not None and run.active:
            return self._offer()
        settings, _ = self.tab.settings_of(values)
        if not settings.lora_name:
            return self.offer_of(self.shown_run())
        try:
            folder = self.host.run_folder(settings.lora_name)
        except ValueError:
            return self._offer()
        if settings.always_override or not folder.is_dir():
            return self._offer()
        plan = resume.plan(settings, self.host)
        if plan is not None and (data := self._data(settings)) is not None:
            plan = resume.plan(settings, self.host, data=data)
        if plan is not None and (plan.fits or not plan.adapter_saved):
            astray = diary.diverged(folder)
            return self._offer(views.outlook(plan, astray), settings.lora_name, half=astray and plan.fits, fill=not plan.fits)
        adapter = continued.finished(folder)
        if adapter is None:
            return self._offer()
        differences = []
        if self.host.model_problem() is None:
            differences = continued.differences(adapter, settings, self.host.model, self.host.model_name)
        return self._offer(views.trained_on(adapter, differences, plan), settings.lora_name, fill=bool(differences or plan))

    def offer_of(self, run: TrainingRun | None) -> dict[Any, Any]:
        """What can be done with a run that has ended: one click goes on with it as it was begun."""
        over = run is not None and not run.active and run.status != ELSEWHERE
        saved = self._saved(run.adapter.name) if over and run.adapter is not None else None
        plan = resume.plan(saved, self.host) if saved is not None else None
        if plan is None:
            return self._offer()
        astray = run.half_rate_offered
        return self._offer(
            views.outlook(plan, astray, asked=False), saved.lora_name, go_on=plan.fits and not astray, half=plan.fits and astray, fill=True
        )

    def _offer(self, shown: str = "", subject: str = "", *, go_on: bool = False, half: bool = False, fill: bool = False) -> dict[Any, Any]:
        return {
            self.resume: gr.update(visible=bool(shown)),
            self.outlook: shown,
            self.subject: subject,
            self.go_on: gr.update(visible=go_on, value=f"Resume “{subject}”"),
            self.half: gr.update(visible=half),
            self.fill: gr.update(visible=fill),
        }

    def _saved(self, name: str) -> TrainingSettings | None:
        """The settings with which the unfinished run of this name was begun."""
        try:
            found = resume.unfinished(self.host.run_folder(name))
        except ValueError:
            return None
        return found.settings.model_copy(update={"lora_name": name, "always_override": False}) if found is not None else None

    def _data(self, settings: TrainingSettings) -> resume.DataPrint | None:
        """Of the data that was verified last, where these settings still mean it."""
        if self.tab.verified is None or self.tab.verified_with is None:
            return None
        (prepared, tokenizer), before = self.tab.verified, self.tab.verified_with
        if tokenizer is not self.host.tokenizer or any(getattr(before, key) != getattr(settings, key) for key in OPTIONS.keys() - WITHOUT_DATA):
            return None
        if self.printed[0] is not prepared:
            self.printed = (prepared, resume.print_of(prepared.train))
        return self.printed[1]

    def on_go_on(self, values: dict[Any, Any]) -> dict[Any, Any]:
        return self._go_on(values, 1.0)

    def on_half(self, values: dict[Any, Any]) -> dict[Any, Any]:
        return self._go_on(values, HALF)

    def _go_on(self, values: dict[Any, Any], rate_factor: float) -> dict[Any, Any]:
        """Go on with the run that is offered: with the settings of the page where they are of its name, else with its own."""
        settings, found = self.tab.settings_of(values)
        if settings.lora_name != values[self.subject]:
            settings, found = self._saved(values[self.subject]), []
        if settings is None:
            return {self.status: views.problems([f"Name: “{values[self.subject]}” holds no unfinished run any more."])}
        return {**self.tab.filled(settings), **self.tab.begun(settings, found, rate_factor)}

    def on_fill(self, name: str) -> dict[Any, Any]:
        settings = self._saved(name)
        if settings is None:
            return self.tab.on_copy(name)
        return {self.tab.report: views.copied(name, []), **self.tab.filled(settings)}

    # What is shown

    def shown_run(self) -> TrainingRun | None:
        """The run that is going on, else the last one: of this process, or as its diary tells."""
        return training_run.current() or diary.last_of(self.host.lora_dir)

    def lists(self) -> dict[Any, Any]:
        return {self.beside: gr.update(choices=self._runs())}

    def _runs(self) -> list[str]:
        return self.tab.adapter_names()[1:]

    def on_drawn(self, names: list[str] | None, by: str, request: gr.Request) -> str:
        """Draw this page's chart by its axis and with what is laid over it, now and from now on."""
        beside, said = [], ""
        for name in names or []:
            try:
                beside.append((name, load_run(adapter_folder(self.host, name)).history))
            except CannotAnswer as error:
                said += views.notice(str(error), "tp-bad")
        page = request.session_hash or ""
        self.drawn[page] = (by if by in X_AXES else "step", beside), said
        return self._chart_of(self.shown_run(), page, anew=True)

    def _chart_of(self, run: TrainingRun | None, page: str, anew: bool = False) -> str:
        drawn, said = self.drawn.get(page, (AS_AT_FIRST, ""))
        return said + self.pictures.of(run, drawn, anew)

    # As `following` asks it

    def opened(self, page: str) -> dict[Any, Any]:
        """The current run, or the last one. A reload or a second browser begins here too."""
        run = self.shown_run()
        first = self.tab.at_first()
        if run is not None and run is training_run.current() and run.settings is not None:
            for widget, values in self._filled(run).items():
                first[widget] = {**first.get(widget, {}), **values}
        return {**first, **self.look(run, page), **self.tab.samples.look(run)}

    def live_look(self, page: str) -> dict[Any, Any]:
        run = training_run.current()
        return {} if run is None else self._live(run, page)

    def state(self) -> State:
        run = training_run.current()
        if not self.tab.loading:
            self.model = self.host.model_mark()
        if run is None:
            return State((), (0, 0), self.model)
        return State((id(run), run.active, run.active and _can_evaluate(run)), (id(run), len(run.samples)), self.model)

    def changed(self, before: State | None, now: State, page: str) -> dict[Any, Any]:
        run, found = training_run.current(), {}
        if before is None or before.model != now.model:
            found.update(self.tab.model_look())  # another model was loaded, here or in the host's own tab
        if run is not None and (before is None or before.samples != now.samples):
            found.update(self.tab.samples.look(run))
        if run is not None and (before is None or before.run != now.run):
            found.update({**self._rest(run), **({} if run.active else self.tab.after(run))})
        return found

    def closed(self, page: str) -> None:
        self.drawn.pop(page, None)

    def _filled(self, run: TrainingRun) -> dict[Any, Any]:
        """Fields with a run's settings, and with its stops as they were changed since."""
        stops = {key: getattr(run, key) for key in STOPS} if run.active else {}
        return self.tab.filled(run.settings.model_copy(update=stops))

    def look(self, run: TrainingRun | None, page: str = "") -> dict[Any, Any]:
        return {**self._live(run, page), **self._rest(run)}

    def _live(self, run: TrainingRun | None, page: str) -> dict[Any, Any]:
        active = run is not None and run.active
        return {self.status: views.status(run), self.chart: self._chart_of(run, page), self.commands: views.commands(run) if active else ""}

    def _rest(self, run: TrainingRun | None) -> dict[Any, Any]:
        active, usable = run is not None and run.active, self.tab.usable
        return {
            self.tab.start: gr.update(interactive=usable and not active),
            self.interrupt: gr.update(interactive=usable and active),
            self.checkpoint: gr.update(interactive=usable and active),
            self.steer: gr.update(visible=active),
            self.evaluate: gr.update(interactive=usable and active and _can_evaluate(run)),
            **(self._offer() if active else self.offer_of(run)),
        }


def _mark(run: TrainingRun | None) -> tuple[int, int]:
    return (0, 0) if run is None else (id(run), run.version)


def _can_evaluate(run: TrainingRun) -> bool:
    return run.report is not None and run.report.eval_blocks > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: Any) -> str:
    return "empty" if value is None else f"“{value}”"
