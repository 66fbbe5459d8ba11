"""The tab “Perplexity evaluation”: what is measured on what, the table of all evaluations, and “Did it learn?”.

The job lives in `evaluation`; this page only starts it and looks at it, and so does every other page.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from . import checkpoints, evaluation, evaluations, learned, perplexity_charts, training_run, views
from .evaluation import LOADED, PUBLIC, Evaluation, Request, Target
from .host import QUANTIZATIONS, Host
from .paths import natural_key, reason
from .settings import NOT_CHOSEN, SettingsError, TrainingSettings
from .tab_tools import on_this_machine
from .training_run import Busy
from .versions import hidden_from_api

ROW_ENDINGS = (".json", ".jsonl", ".csv", ".parquet")
AS_ON_THE_PAGE = "As Train LoRA is set"
OWN_HELD_OUT = "The run's own"


class State(NamedTuple):
    """What the buttons and lists of this tab depend on: the job, and the run that may have left a LoRA."""

    measured: tuple[Any, ...]
    trained: tuple[int, bool]


class PerplexityTab:
    """Args:
    host: the program around us.
    train: the `TrainTab`, whose settings rows can be prepared by.
    """

    def __init__(self, host: Host, train: Any):
        self.host, self.train = host, train
        self.drawn: tuple[tuple[int, int], str] = ((-1, 0), "")
        self._build()
        self._wire()

    # Layout

    @property
    def usable(self) -> bool:
        return not self.host.multi_user

    def _build(self) -> None:
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=380):
                self._inputs()
                self._targets()
            with gr.Column(scale=6, min_width=380):
                self.interrupt = gr.Button("Interrupt", variant="stop", elem_id="tp-pp-interrupt", interactive=False)
                self.said = gr.HTML("", elem_id="tp-pp-said")
                self.status = gr.HTML(views.notice("Connecting …", "tp-idle tp-connecting"), elem_id="tp-pp-status")
                self.results = gr.HTML("", elem_id="tp-pp-results")
                self.use_row = gr.Row(visible=False, equal_height=False, elem_classes=["tp-pair"])
                with self.use_row:
                    self.best = gr.Dropdown(
                        [], label="Checkpoint", info="The best is chosen. Using one makes it the LoRA of its run; the LoRA as it is now is kept as a backup.",
                        allow_custom_value=True, elem_id="tp-pp-best", interactive=self.usable, scale=3, min_width=200,
                    )  # fmt: skip
                    self.use = gr.Button("Use this one", elem_id="tp-pp-use", interactive=self.usable, scale=1, min_width=110)
        self._history()

    def _inputs(self) -> None:
        gr.HTML(views.heading("Input dataset"))
        with gr.Group():
            texts = self._texts()
            self.texts = gr.Dropdown(
                texts, value=self._own_text() or texts[:1],  # what needs no network, where there is any
                multiselect=True, allow_custom_value=True, label="Input dataset", elem_id="tp-pp-texts", interactive=self.usable,
                info="wikitext, ptb and ptb_new are downloaded once; the others are the .txt files of the datasets folder.",
            )  # fmt: skip
            with gr.Row(elem_classes=["tp-pair"]):
                self.rows = gr.Dropdown(
                    self._rows(), value=[], multiselect=True, allow_custom_value=True, label="JSON and JSONL datasets", elem_id="tp-pp-rows",
                    info="Each row by itself; only the tokens that training would learn are scored.", interactive=self.usable, min_width=180,
                )  # fmt: skip
                self.prepared_as = gr.Dropdown(
                    [AS_ON_THE_PAGE, *self.host.adapters()], value=AS_ON_THE_PAGE, allow_custom_value=True, label="Prepare rows", elem_id="tp-pp-as",
                    info="Data Format, cutoff and what is trained: of that tab, or of a saved run.", interactive=self.usable, min_width=180,
                )  # fmt: skip
            with gr.Row(elem_classes=["tp-pair"]):
                self.stride = gr.Number(
                    value=min(512, self.host.context_length or 512), minimum=1, precision=0, label="Stride", elem_id="tp-pp-stride", min_width=120,
                    info="By how many tokens the window moves. 1 is the slowest and gives each token the most context.", interactive=self.usable,
                )  # fmt: skip
                self.max_length = gr.Number(
                    value=0, minimum=0, precision=0, label="max_length", elem_id="tp-pp-max_length", interactive=self.usable, min_width=120,
                    info="Tokens of a window; 0 is the model's context.",
                )  # fmt: skip
            self.again = gr.Checkbox(
                label="Measure again", value=False, elem_id="tp-pp-again", interactive=self.usable,
                info="Off: what was measured already, with the very same weights, text and settings, is taken from the table.",
            )  # fmt: skip

    def _targets(self) -> None:
        gr.HTML(views.heading("What to evaluate"))
        self.loaded = gr.Button("Evaluate loaded model", variant="primary", elem_id="tp-pp-loaded", interactive=self.usable)
        with gr.Group():
            with gr.Row(elem_classes=["tp-pair"]):
                self.models = gr.Dropdown(
                    self.host.offered_models(), value=[], multiselect=True, allow_custom_value=True, label="Models", elem_id="tp-pp-models", scale=3,
                    info="One after another; then the loaded one is loaded again.", interactive=self.usable, min_width=180,
                )  # fmt: skip
                self.quantization = gr.Radio(
                    list(QUANTIZATIONS), value=self.host.suggested_load()[1], label="Quantization", elem_id="tp-pp-quantization", scale=2, min_width=180,
                    info="Of the models that are loaded for it.", interactive=self.usable,
                )  # fmt: skip
            self.selected = gr.Button("Evaluate selected models", elem_id="tp-pp-selected", interactive=self.usable)
        with gr.Group():
            self.loras = gr.Dropdown(
                self._adapters(), value=[], multiselect=True, allow_custom_value=True, label="LoRAs", elem_id="tp-pp-loras", interactive=self.usable,
                info="Each on the loaded model, which is not loaded again.",
            )  # fmt: skip
            self.adapted = gr.Button("Evaluate selected LoRAs", elem_id="tp-pp-adapted", interactive=self.usable)
        with gr.Group():
            self.run = gr.Dropdown(
                [NOT_CHOSEN, *self.host.adapters()], value=NOT_CHOSEN, allow_custom_value=True, label="Checkpoints of", elem_id="tp-pp-run",
                info="Every checkpoint of a run beside its base model, ranked.", interactive=self.usable,
            )  # fmt: skip
            self.ranked = gr.Button("Evaluate all checkpoints", elem_id="tp-pp-ranked", interactive=self.usable)
        gr.HTML(views.heading("Did it learn?"))
        with gr.Group():
            with gr.Row(elem_classes=["tp-pair"]):
                self.learner = gr.Dropdown(
                    [NOT_CHOSEN, *self._adapters()], value=NOT_CHOSEN, allow_custom_value=True, label="LoRA", elem_id="tp-pp-learner", min_width=180,
                    info="Base and LoRA on the training text, held-out text and a general text.", interactive=self.usable,
                )  # fmt: skip
                self.held_out = gr.Dropdown(
                    self._held_out(), value=OWN_HELD_OUT, allow_custom_value=True, label="Held-out data", elem_id="tp-pp-held_out", min_width=180,
                    info="Of the same kind as the data, but not trained on.", interactive=self.usable,
                )  # fmt: skip
            self.prompts = gr.Textbox(
                lines=2, label="Prompts", placeholder="The run's sample prompts, else three of ours", elem_id="tp-pp-prompts", interactive=self.usable,
                info="One a line; both answer them.",
            )  # fmt: skip
            self.learn = gr.Button("Did it learn?", elem_id="tp-pp-learn", interactive=self.usable)

    def _history(self) -> None:
        gr.HTML(views.heading("All evaluations"))
        with gr.Row(elem_classes=["tp-pair"], equal_height=False):
            self.filter = gr.Textbox(label="Filter", placeholder="words that a row must hold", max_lines=1, elem_id="tp-pp-filter", min_width=160)
            self.sort = gr.Dropdown(
                list(evaluations.SORTS), value=next(iter(evaluations.SORTS)), label="Sort by", elem_id="tp-pp-sort", min_width=160
            )
        self.table = gr.HTML("", elem_id="tp-pp-table")
        with gr.Row(elem_classes=["tp-pair"], equal_height=False):
            self.row = gr.Dropdown([], label="Row", allow_custom_value=True, elem_id="tp-pp-row", interactive=self.usable, min_width=200, scale=3)
            self.comment = gr.Textbox(label="Comment", max_lines=1, elem_id="tp-pp-comment", interactive=self.usable, min_width=200, scale=3)
        with gr.Row():
            self.save_comment = gr.Button("Save comment", size="sm", elem_id="tp-pp-save", interactive=self.usable, min_width=110)
            self.delete = gr.Button("Delete row", size="sm", elem_id="tp-pp-delete", interactive=self.usable, min_width=110)
            self.refresh = gr.Button("Refresh", size="sm", elem_id="tp-pp-refresh", interactive=self.usable, min_width=110)
            self.export = gr.Button("Export CSV", size="sm", elem_id="tp-pp-export", interactive=self.usable, min_width=110)
        self.table_said = gr.HTML("", elem_id="tp-pp-table-said")
        self.lost_said = gr.HTML("", elem_id="tp-pp-lost")
        self.lost_row = gr.Row(visible=False)
        with self.lost_row:
            self.put_back = gr.Button("Put them back", size="sm", elem_id="tp-pp-put-back", interactive=self.usable, min_width=110)
            self.let_go = gr.Button("Let them go", size="sm", elem_id="tp-pp-let-go", interactive=self.usable, min_width=110)

    # Lists

    def _texts(self) -> list[str]:
        return [*PUBLIC, *self.host.data_files("text")]

    def _own_text(self) -> list[str]:
        """The first text file in which anything stands; the web UI brings an empty one."""
        for name in self.host.data_files("text"):
            path = self.host.datasets_dir / f"{name}.txt"
            if path.is_file() and path.stat().st_size:
                return [name]
        return []

    def _rows(self) -> list[str]:
        names = dict.fromkeys([*self.host.data_files("json"), *self.host.data_files("jsonl")])
        found = [f"{name}{ending}" for name in names for ending in ROW_ENDINGS if (self.host.datasets_dir / f"{name}{ending}").is_file()]
        return sorted(found, key=natural_key)

    def _held_out(self) -> list[str]:
        texts = [f"{name}.txt" for name in self.host.data_files("text") if (self.host.datasets_dir / f"{name}.txt").is_file()]
        return [OWN_HELD_OUT, *self._rows(), *texts]

    def _adapters(self) -> list[str]:
        return self.train.adapter_names()[1:]

    def lists(self) -> dict[Any, Any]:
        """Fresh choices for every list of files, LoRAs and models."""
        names, adapters = self._adapters(), self.host.adapters()
        return {
            self.texts: gr.update(choices=self._texts()),
            self.rows: gr.update(choices=self._rows()),
            self.prepared_as: gr.update(choices=[AS_ON_THE_PAGE, *adapters]),
            self.models: gr.update(choices=self.host.offered_models()),
            self.loras: gr.update(choices=names),
            self.run: gr.update(choices=[NOT_CHOSEN, *adapters]),
            self.learner: gr.update(choices=[NOT_CHOSEN, *names]),
            self.held_out: gr.update(choices=self._held_out()),
        }

    # Wiring

    def _wire(self) -> None:
        quiet = {"show_progress": "hidden", **hidden_from_api(self.loaded.click)}
        fields = set(self.train.widgets.values())
        common = {*fields, self.texts, self.rows, self.prepared_as, self.stride, self.max_length, self.again}
        shown = [self.said, *self._shown()]
        self.loaded.click(self.on_loaded, common, shown, **quiet)
        self.selected.click(self.on_models, {*common, self.models, self.quantization}, shown, **quiet)
        self.adapted.click(self.on_loras, {*common, self.loras}, shown, **quiet)
        self.ranked.click(self.on_checkpoints, {*common, self.run}, shown, **quiet)
        self.learn.click(self.on_learn, [self.learner, self.held_out, self.prompts], shown, **quiet)
        self.interrupt.click(self.on_interrupt, None, [self.status], **quiet)
        self.use.click(self.on_use, [self.best], shown, **quiet)
        looked = [self.filter, self.sort]
        table = [self.table, self.row, self.lost_said, self.lost_row]
        changed = [*table, self.table_said]
        self.filter.change(self.on_table, looked, table, trigger_mode="always_last", **quiet)
        self.sort.change(self.on_table, looked, table, **quiet)
        self.results.change(self.on_table, looked, table, trigger_mode="always_last", **quiet)  # a new figure is in the table, too
        lists = list(self.lists())
        self.refresh.click(self.on_refresh, looked, [*table, *lists], **quiet)
        self.row.change(self.on_row, [self.row], [self.comment], **quiet)
        self.save_comment.click(self.on_comment, [self.row, self.comment, *looked], changed, **quiet)
        self.delete.click(self.on_delete, [self.row, *looked], [*changed, self.comment], **quiet)
        self.export.click(self.on_export, looked, [self.table_said], **quiet)
        self.put_back.click(self.on_put_back, looked, changed, **quiet)
        self.let_go.click(self.on_let_go, looked, changed, **quiet)
        self.at_first = [*self._shown(), *table, *lists]
        self.live = [self.status, self.results]
        self.rest = [self.interrupt, self.use_row, self.best, *lists]

    # Starting

    def on_loaded(self, values: dict[Any, Any]) -> dict[Any, Any]:
        return self._begin(values, lambda more: Request((LOADED,), **more))

    def on_models(self, values: dict[Any, Any], request: gr.Request) -> dict[Any, Any]:
        targets = tuple(Target("model", name, values[self.quantization]) for name in values[self.models] or [])
        found = [] if targets else ["Models: choose one or more."]
        if not on_this_machine(request):
            found += [f"Models: {problem}" for target in targets if (problem := self.host.stranger_problem(target.name))]
        return self._begin(values, lambda more: Request(targets, **more), found)

    def on_loras(self, values: dict[Any, Any]) -> dict[Any, Any]:
        targets = tuple(Target("adapter", name) for name in values[self.loras] or [])
        return self._begin(values, lambda more: Request(targets, **more), [] if targets else ["LoRAs: choose one or more."])

    def on_checkpoints(self, values: dict[Any, Any]) -> dict[Any, Any]:
        run = values[self.run]
        found = ["Checkpoints of: choose a run."] if not run or run == NOT_CHOSEN else []
        return self._begin(values, lambda more: evaluation.request_for_run(self.host, run, **more), found)

    def _begin(self, values: dict[Any, Any], request: Callable[[dict[str, Any]], Request], found: list[str] | None = None) -> dict[Any, Any]:
        rows = tuple(values[self.rows] or [])
        settings, wrong = self._settings(values) if rows else (None, [])
        more = {
            "texts": tuple(values[self.texts] or []), "rows": rows, "stride": _whole(values[self.stride], 0), "max_length": _whole(values[self.max_length], 0),
            "again": bool(values[self.again]), "settings": settings,
        }  # fmt: skip

        def start() -> Evaluation:
            if found or wrong:
                raise SettingsError([*(found or []), *wrong])
            return evaluation.start(request(more), self.host)

        return self._started(start)

    def _settings(self, values: dict[Any, Any]) -> tuple[TrainingSettings | None, list[str]]:
        """What rows are prepared by."""
        chosen = values[self.prepared_as]
        if not chosen or chosen == AS_ON_THE_PAGE:
            return self.train.settings_of(values)
        try:
            settings, _, _ = TrainingSettings.load_leniently(self.host.run_folder(chosen) / "training_parameters.json")
        except (ValueError, OSError) as error:
            return None, [f"Prepare rows: “{chosen}”: {reason(error)}"]
        return settings, []

    def on_learn(self, adapter: str | None, held_out: str | None, prompts: str | None) -> dict[Any, Any]:
        chosen = None if not adapter or adapter == NOT_CHOSEN else adapter
        other = None if not held_out or held_out in (OWN_HELD_OUT, NOT_CHOSEN) else held_out
        return self._started(lambda: learned.start(self.host, chosen, held_out=other, prompts=(prompts or "").splitlines()))

    def _started(self, start: Callable[[], Evaluation]) -> dict[Any, Any]:
        said = ""
        try:
            start()
        except SettingsError as error:
            said = views.problems(error.problems, "Not measured")
        except Busy as error:
            said = views.notice(f"Not begun: {error}")
        return {self.said: said, **self._look(evaluation.current())}

    def on_interrupt(self) -> str:
        job = evaluation.current()
        if job is not None:
            job.stop()
        return perplexity_charts.status(job)

    def on_use(self, name: str | None) -> dict[Any, Any]:
        job = evaluation.current()
        try:
            if not name:
                raise checkpoints.NotUsed("Checkpoint: choose one.")
            said = views.notice(checkpoints.use(self.host, name), "tp-ok")
            if job is not None and job.ranked and not job.active:
                job.update(ranked={each: checkpoints.checkpoint(self.host, each) for each in job.ranked})
        except checkpoints.NotUsed as error:
            said = views.notice(reason(error), "tp-bad")
        return {self.said: said, **self._look(job)}

    # The table

    def on_table(self, words: str | None, sort: str) -> dict[Any, Any]:
        """The table as it is on disk now, filtered and sorted."""
        try:
            rows = self._chosen(words, sort)
            lost = len(evaluations.lost(self.host.evaluations_file))
        except (ValueError, OSError) as error:
            nothing = {self.table: views.notice(f"The table cannot be shown: {reason(error)}", "tp-bad"), self.row: gr.update(choices=[], value=None)}
            return {**nothing, self.lost_said: "", self.lost_row: gr.update(visible=False)}
        columns = [*evaluations.COLUMNS, *(name for name in dict.fromkeys(name for row in rows for name in row) if name not in evaluations.COLUMNS)]
        said = ""
        if lost:
            said = views.notice(
                f"{lost} row{'' if lost == 1 else 's'} of ours {'is' if lost == 1 else 'are'} not in the table any more: something wrote over it (the web UI's own "
                "“Save comments” writes the table as its page showed it)."
            )
        return {
            self.table: perplexity_charts.history(rows, columns),
            self.row: gr.update(choices=[(_row_words(row), evaluations.key(row)) for row in rows]),
            self.lost_said: said,
            self.lost_row: gr.update(visible=lost > 0),
        }

    def _chosen(self, words: str | None, sort: str) -> list[dict[str, str]]:
        return evaluations.chosen(evaluations.read(self.host.evaluations_file), words or "", sort)

    def on_refresh(self, words: str | None, sort: str) -> dict[Any, Any]:
        return {**self.on_table(words, sort), **self.lists()}

    def on_row(self, wanted: str | None) -> Any:
        """The chosen row's comment, to be edited."""
        try:
            row = next((row for row in evaluations.read(self.host.evaluations_file) if evaluations.key(row) == wanted), None)
        except (ValueError, OSError):
            row = None
        if row is None:
            return gr.update(value="", label="Comment")
        return gr.update(value=row["Comment"], label=f"Comment on {_measured_words(row)}")

    def on_comment(self, wanted: str | None, text: str | None, words: str | None, sort: str) -> dict[Any, Any]:
        return self._changed(wanted, lambda file: evaluations.comment(file, wanted, text or ""), "The comment is saved.", words, sort)

    def on_delete(self, wanted: str | None, words: str | None, sort: str) -> dict[Any, Any]:
        shown = self._changed(wanted, lambda file: evaluations.delete(file, wanted), "The row is deleted.", words, sort)
        return {**shown, self.row: {**shown[self.row], "value": None}, self.comment: gr.update(value="", label="Comment")}

    def on_put_back(self, words: str | None, sort: str) -> dict[Any, Any]:
        return self._changed("all", evaluations.put_back, "The rows are in the table again.", words, sort)

    def on_let_go(self, words: str | None, sort: str) -> dict[Any, Any]:
        return self._changed("all", evaluations.let_go, "Those rows are forgotten.", words, sort)

    def _changed(self, wanted: str | None, change: Callable[[Any], Any], done: str, words: str | None, sort: str) -> dict[Any, Any]:
        try:
            if not wanted:
                raise evaluations.Gone("Row: choose one first.")
            change(self.host.evaluations_file)
            self.host.evaluations_changed()
            said = views.notice(done, "tp-ok")
        except (evaluations.Gone, ValueError, OSError) as error:  # filelock's Timeout is an OSError
            said = views.notice(reason(error), "tp-bad")
        return {**self.on_table(words, sort), self.table_said: said}

    def on_export(self, words: str | None, sort: str) -> str:
        """A link that hands out the rows as the table shows them."""
        try:
            rows = self._chosen(words, sort)
        except (ValueError, OSError) as error:
            return views.notice(reason(error), "tp-bad")
        name = f"evaluations-{time.strftime('%Y-%m-%d')}.csv"
        link = evaluations.as_link(evaluations.export_csv(rows))
        return f'<div class="tp-status tp-ok tp-download"><a download="{escape(name)}" href="{link}">Download {escape(name)}</a> ({len(rows):,} rows)</div>'

    # As `following` asks it

    def opened(self, page: str) -> dict[Any, Any]:
        """The current evaluation, or the last one."""
        return {**self.on_table("", next(iter(evaluations.SORTS))), **self.lists(), **self._look(evaluation.current())}

    def live_look(self, page: str) -> dict[Any, Any]:
        job = evaluation.current()
        return {} if job is None else self._live(job)

    def state(self) -> State:
        job, run = evaluation.current(), training_run.current()
        measured = () if job is None else (id(job), job.active, 0 if job.active else job.version)
        return State(measured, (id(run), run is not None and run.active))

    def changed(self, before: State | None, now: State, page: str) -> dict[Any, Any]:
        found = self.lists() if before is None or before.trained != now.trained else {}
        return {**found, **(self._rest(evaluation.current()) if before is None or before.measured != now.measured else {})}

    def closed(self, page: str) -> None:
        """Nothing is kept for a page."""

    def _shown(self) -> list[Any]:
        return [self.status, self.results, self.interrupt, self.use_row, self.best]

    def _look(self, job: Evaluation | None) -> dict[Any, Any]:
        return {**self._live(job), **self._rest(job)}

    def _live(self, job: Evaluation | None) -> dict[Any, Any]:
        return {self.status: perplexity_charts.status(job), self.results: self._results(job)}

    def _results(self, job: Evaluation | None) -> str:
        """Drawn once for all pages."""
        mark = (0, 0) if job is None else (id(job), job.version)
        if self.drawn[0] != mark:
            self.drawn = (mark, perplexity_charts.results(job))
        return self.drawn[1]

    def _rest(self, job: Evaluation | None) -> dict[Any, Any]:
        names = []
        if job is not None and not job.active and job.request is not None and job.request.run:
            names = [name for name, _, _ in evaluation.ranking(job) if "/" in name]
        return {
            self.interrupt: gr.update(interactive=self.usable and job is not None and job.active),
            self.use_row: gr.update(visible=bool(names)),
            self.best: gr.update(choices=names, value=names[0] if names else None),
        }


def _whole(value: Any, default: int) -> int:
    """A number of the page; cleared, it arrives as None."""
    return default if value is None else int(value)


def _row_words(row: dict[str, str]) -> str:
    return f"{row['Date']} · {_measured_words(row)} · {row['stride']}/{row['max_length']}"


def _measured_words(row: dict[str, str]) -> str:
    name = row["Model"] if row["LoRAs"] in ("", "-") else f"{row['Model']} + {row['LoRAs']}"
    return f"{name} · {row['Dataset']}"
