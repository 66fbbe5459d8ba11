"""The tabs “URL” and “Tools” beside the datasets: download, split, convert, dump. What they do is in downloads.py and file_tools.py."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr

from . import downloads, file_tools, views
from .dataset_tools import DataError
from .file_tools import ToolError
from .paths import name_problem, path_in, reason
from .settings import NOT_CHOSEN, TrainingSettings
from .versions import hidden_from_api

DATASETS, FORMATS = "datasets", "formats"


class ToolsTab:
    """Built inside the tabs of the data, wired when the fields of the training tab are there.

    Args:
        tab: the `TrainTab`, whose lists of files follow and whose fields take a split's parts.
    """

    def __init__(self, tab: Any):
        self.tab, self.host = tab, tab.host
        with gr.Tab("URL", elem_id="tp-tab-url"):
            self._download()
        with gr.Tab("Tools", elem_id="tp-tab-tools"):
            self._tools()

    def _download(self) -> None:
        usable = self.tab.usable
        self.url = gr.Textbox(
            label="Download from", info="Address of a .txt, .json, .jsonl or .csv file, beginning with http:// or https://.", max_lines=1,
            elem_id="tp-url", interactive=usable,
        )  # fmt: skip
        with gr.Row(elem_classes=["tp-pair"]):
            self.into = gr.Radio([DATASETS, FORMATS], value=DATASETS, label="Into the folder of", elem_id="tp-url-into", interactive=usable)
            self.url_overwrite = gr.Checkbox(
                label="Overwrite", info="Replace a file of the same name.", elem_id="tp-url-overwrite", interactive=usable
            )
        self.fetch = gr.Button("Download", elem_id="tp-url-download", interactive=usable)
        self.fetched = gr.HTML("", elem_id="tp-url-said")

    def _tools(self) -> None:
        usable = self.tab.usable
        self.overwrite = gr.Checkbox(label="Overwrite", info="Replace files that a tool would write and that are there already.", elem_id="tp-tools-overwrite", interactive=usable)  # fmt: skip
        gr.HTML(views.heading("Split dataset"))
        with gr.Row(elem_classes=["tp-pair"]):
            self.split_file = self._files("Dataset", "tp-split-file", self.row_files())
            self.percent = gr.Slider(1, 50, value=10, step=1, label="Held out", info="Percent of the rows, drawn with the seed, for evaluation.", elem_id="tp-split-percent", interactive=usable)  # fmt: skip
        self.split = gr.Button("Split dataset", size="sm", elem_id="tp-split", interactive=usable)
        gr.HTML(views.heading("Convert JSON to JSONL"))
        with gr.Row(elem_classes=["tp-pair"]):
            self.json_file = self._files("Dataset", "tp-convert-json-file", self._names("json"))
            self.json_system = gr.Textbox(label="System text", info="Begins each chat. May be empty.", elem_id="tp-convert-json-system", interactive=usable)  # fmt: skip
        self.convert_json = gr.Button("Convert JSON to JSONL", size="sm", elem_id="tp-convert-json", interactive=usable)
        gr.HTML(views.heading("Convert TXT to JSONL"))
        with gr.Row(elem_classes=["tp-pair"]):
            self.text_file = self._files("Text file", "tp-convert-text-file", self._names("text"))
            self.text_prompt = gr.Textbox(label="Prompt", info="What each item of the text (parted by three newlines) answers.", elem_id="tp-convert-text-prompt", interactive=usable)  # fmt: skip
        self.text_system = gr.Textbox(
            label="System text", info="Begins each chat. May be empty.", elem_id="tp-convert-text-system", interactive=usable
        )
        self.convert_text = gr.Button("Convert TXT to JSONL", size="sm", elem_id="tp-convert-text", interactive=usable)
        gr.HTML(views.heading("Dump Training Dataset"))
        self.bare = gr.Checkbox(
            value=True, label="Without BOS and EOS", info="Every block of the chosen data as text, into a JSON file of the logs folder.", elem_id="tp-dump-bare",
            interactive=usable,
        )  # fmt: skip
        self.dump = gr.Button("Dump Training Dataset", size="sm", elem_id="tp-dump", interactive=usable)
        self.said = gr.HTML("", elem_id="tp-tools-said")

    def _files(self, label: str, name: str, choices: list[str]) -> Any:
        return gr.Dropdown(choices, value=NOT_CHOSEN, label=label, allow_custom_value=True, elem_id=name, interactive=self.tab.usable, min_width=200)

    def _names(self, kind: str) -> list[str]:
        return [NOT_CHOSEN, *self.host.data_files(kind)]

    def row_files(self) -> list[str]:
        """The files of rows, with their endings: a name may be there as .json and as .jsonl."""
        files = [file for ending in ("*.json", "*.jsonl") for file in self.host.datasets_dir.glob(ending)]
        return [NOT_CHOSEN, *sorted(file.name for file in files if not file.name.startswith(".") and name_problem(file.name) is None)]

    def lists(self) -> dict[Any, Any]:
        """Fresh choices for the tools' own lists."""
        return {
            self.split_file: gr.update(choices=self.row_files()),
            self.json_file: gr.update(choices=self._names("json")),
            self.text_file: gr.update(choices=self._names("text")),
        }

    def wire(self, fields: set[Any], lists: list[Any]) -> None:
        """Connect the buttons; `fields` are the settings' widgets, `lists` the components of `TrainTab.all_lists`."""
        chosen = [self.tab.widgets[key] for key in ("dataset", "eval_dataset", "datasetJSONL", "eval_datasetJSONL")]
        quiet = {"show_progress": "minimal", **hidden_from_api(self.fetch.click)}
        self.fetch.click(self.on_download, [self.url, self.into, self.url_overwrite], [self.fetched, *lists], **quiet)
        seed = self.tab.widgets["seed"]
        self.split.click(self.on_split, [self.split_file, self.percent, seed, self.overwrite], list({self.said, *lists, *chosen}), **quiet)
        self.convert_json.click(self.on_convert_json, [self.json_file, self.json_system, self.overwrite], [self.said, *lists], **quiet)
        self.convert_text.click(
            self.on_convert_text, [self.text_file, self.text_prompt, self.text_system, self.overwrite], [self.said, *lists], **quiet
        )
        self.dump.click(self.on_dump, {*fields, self.bare, self.overwrite}, [self.said], **quiet)

    # Handlers

    def on_download(self, url: str, into: str, overwrite: bool, request: gr.Request) -> Iterator[dict[Any, Any]]:
        folder = self.host.formats_dir if into == FORMATS else self.host.datasets_dir
        shown = 0.0
        try:
            path = downloads.download_target(url or "", folder, overwrite)
            yield {self.fetched: views.notice(f"Connecting for “{path.name}” …")}
            for done, size in downloads.download(url, path, allow_private=on_this_machine(request)):
                if time.monotonic() - shown > 0.5:
                    shown = time.monotonic()
                    yield {self.fetched: views.notice(f"Downloading “{path.name}”: {views.bytes_of(done, size)} …")}
        except (ToolError, OSError) as error:
            yield {self.fetched: views.notice(reason(error), "tp-bad")}
            return
        yield {
            self.fetched: views.notice(f"“{path.name}” is in the folder of {into} ({path.stat().st_size:,} bytes).", "tp-ok"),
            **self.tab.all_lists(),
        }

    def on_split(self, name: str | None, percent: float, seed: float | None, overwrite: bool) -> dict[Any, Any]:
        def work() -> tuple[str, dict[Any, Any]]:
            path = self._rows_path(name)
            train, held = file_tools.split(path, percent, int(seed or 0), overwrite)
            keys = ("datasetJSONL", "eval_datasetJSONL") if path.suffix == ".jsonl" else ("dataset", "eval_dataset")
            lists = self.tab.all_lists()
            picked = {
                self.tab.widgets[key]: {**lists[self.tab.widgets[key]], "value": part.stem} for key, part in zip(keys, (train, held), strict=True)
            }
            return f"“{train.name}” and “{held.name}” are written and chosen.", {**lists, **picked}

        return self._done(work)

    def on_convert_json(self, name: str | None, system: str, overwrite: bool) -> dict[Any, Any]:
        def work() -> tuple[str, dict[Any, Any]]:
            path, count = file_tools.json_to_jsonl(self._path("json", name), system or "", overwrite)
            return f"“{path.name}” is written: {count:,} chats.", self.tab.all_lists()

        return self._done(work)

    def on_convert_text(self, name: str | None, prompt: str, system: str, overwrite: bool) -> dict[Any, Any]:
        def work() -> tuple[str, dict[Any, Any]]:
            path, count = file_tools.text_to_jsonl(self._path("text", name), prompt or "", system or "", overwrite)
            return f"“{path.name}” is written: {count:,} chats.", self.tab.all_lists()

        return self._done(work)

    def on_dump(self, values: dict[Any, Any]) -> dict[Any, Any]:
        from . import train_utils
        from .dataset_tools import prepare

        settings, found = self.tab.settings_of(values)
        if found := found + train_utils.check_data(settings, self.host):
            return {self.said: views.problems(found, "Not dumped")}

        def work() -> tuple[str, dict[Any, Any]]:
            prepared = prepare(settings, self.host.tokenizer, self.host)
            path = file_tools.dump(prepared, self.host.tokenizer, self.host.logs_dir, _data_name(settings), values[self.bare], values[self.overwrite])
            return f"“{path.name}” is in the logs folder: {len(prepared.blocks):,} blocks.", {}

        return self._done(work)

    def _done(self, work: Callable[[], tuple[str, dict[Any, Any]]]) -> dict[Any, Any]:
        try:
            said, more = work()
        except (ToolError, DataError, OSError, ValueError) as error:
            problems = error.problems if isinstance(error, DataError) else [reason(error)]
            return {self.said: views.notice(" ".join(problems), "tp-bad")}
        return {self.said: views.notice(said, "tp-ok"), **more}

    def _rows_path(self, name: str | None) -> Path:
        if not name or name == NOT_CHOSEN:
            raise ToolError("Dataset is not chosen.")
        ending = next((ending for ending in (".jsonl", ".json") if str(name).endswith(ending)), "")
        path = path_in(self.host.datasets_dir, str(name).removesuffix(ending), ending)
        if not ending or not path.is_file():
            raise ToolError(f"“{name}” is not in the folder {self.host.datasets_dir.name}. Refresh the list and choose again.")
        return path

    def _path(self, kind: str, name: str | None) -> Path:
        if not name or name == NOT_CHOSEN:
            raise ToolError(f"{'Text file' if kind == 'text' else 'Dataset'} is not chosen.")
        path = self.host.data_file(kind, name)
        if path.is_dir():
            raise ToolError(f"“{name}” is a folder; choose a single .txt file.")
        return path


def _data_name(settings: TrainingSettings) -> str:
    chosen = settings.dataset or settings.datasetJSONL or settings.raw_text_file or "data"
    return chosen.replace("/", "_").replace(":", "_")  # of the hub


# What a program between the browser and the server adds; the one who asks is then not the one who connects.
_PASSED_ON = {"forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "cf-connecting-ip"}


def on_this_machine(request: gr.Request) -> bool:
    """Whether the browser runs on the server's machine and nobody else can open the page: it is bound to loopback, not shared, not passed on."""
    try:
        headers = {name.lower(): value for name, value in dict(request.headers).items()}
        page = request.app.get_blocks()
        # The name the browser asks for: a tunnel also connects from this machine, but is asked for by its own name.
        asked = urlsplit(f"//{headers['host']}").hostname or ""
        return not page.share and not _PASSED_ON & headers.keys() and all(map(_is_loopback, (page.server_name, request.client.host, asked)))
    except (AttributeError, KeyError, TypeError, ValueError):  # a page inside another program, of which nothing is known
        return False


def _is_loopback(host: str) -> bool:
    return host == "localhost" or ipaddress.ip_address(host).is_loopback
