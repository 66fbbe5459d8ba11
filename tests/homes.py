"""The two homes of the page, each started as a real server: our own page, and the tab in a stand-in for text-generation-webui.

The web UI's home runs in an environment of its own, with the Gradio and the transformers that the web UI of 2026-01 brings:
`.venv-webui`, made by `python start.py test`, or the Python named in TRAINING_PRO_WEBUI_PYTHON.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
STANDIN = HERE / "standin" / "server.py"
WEBUI_PYTHON = Path(os.environ.get("TRAINING_PRO_WEBUI_PYTHON") or ROOT / ".venv-webui" / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
NO_WEBUI = "no environment with the web UI's versions; `python start.py test` makes it"
# What a user's clone holds and the extension never reads is not copied.
NOT_COPIED = shutil.ignore_patterns(".git", ".venv*", "user_data", "tests", "benchmarks", "docs", "__pycache__", "*.egg-info", ".*_cache", "build")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Home:
    """A running server. `loras`, `datasets` and `models` are its folders. With `faults`, its runs can be made to fail (see `fault`)."""

    name: str
    tab: str | None = None  # the tab to click before ours is seen
    ready: str

    def __init__(self, folder: Path, command: list[str], port: int, faults: bool = False):
        self.folder, self.url, self.log = folder, f"http://127.0.0.1:{port}", folder / "server.log"
        self.user_data = folder / "user_data"
        self.command, self.faults = command, folder / "faults.json"
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        self.environment.update(PYTHONDONTWRITEBYTECODE="1", PYTHONUNBUFFERED="1", HF_HUB_OFFLINE="1", GRADIO_ANALYTICS_ENABLED="False")
        if faults:
            self.environment.update(PYTHONPATH=str(HERE / "faults"), TRAINING_PRO_FAULTS=str(self.faults))
        self.log.touch()
        self.start()

    def start(self) -> None:
        before = self.said().count(self.ready)
        with open(self.log, "a", encoding="utf-8") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT, cwd=self.folder, env=self.environment)
        for _ in range(1200):
            if self.said().count(self.ready) > before:
                return
            assert self.process.poll() is None, self.said()
            time.sleep(0.1)
        raise AssertionError(f"the page did not come up:\n{self.said()}")

    def kill(self) -> None:
        """End the server as a power cut does."""
        self.process.kill()
        self.process.wait(30)

    def fault(self, **what: Any) -> None:
        """What happens to the steps of a run from now on (see faults/sitecustomize.py); nothing: they go well."""
        part = self.faults.with_suffix(".part")
        part.write_text(json.dumps(what), encoding="utf-8")
        part.replace(self.faults)

    @property
    def loras(self) -> Path:
        return self.user_data / "loras"

    @property
    def datasets(self) -> Path:
        return self.user_data / "training" / "datasets"

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


class Standalone(Home):
    """`python -m training_pro ui`"""

    name, ready = "standalone", "Training PRO is at"

    def __init__(self, folder: Path, *options: str, faults: bool = False):
        port = free_port()
        command = [sys.executable, "-m", "training_pro", "ui", "--port", str(port), "--user-data", str(folder / "user_data"), *options]
        super().__init__(folder, command, port, faults)


class Webui(Home):
    """The stand-in, with the extension in one of the two folders and the demo model loaded."""

    name, ready, tab = "webui", "Running on local URL", "Training PRO"

    def __init__(
        self,
        folder: Path,
        *options: str,
        place: str = "user_data/extensions",
        extension: str = "training_pro",
        model: str | None = "demo",
        faults: bool = False,
    ):
        make_webui(folder, place, extension)
        port = free_port()
        chosen = ["--model", model] if model else []
        command = [
            str(WEBUI_PYTHON),
            str(STANDIN),
            "--listen-port",
            str(port),
            "--loader",
            "Transformers",
            "--extensions",
            extension,
            *chosen,
            *options,
        ]
        super().__init__(folder, command, port, faults)


def make_webui(folder: Path, place: str = "user_data/extensions", extension: str = "training_pro") -> None:
    """The folders that the web UI brings, with the extension, the demo model and our sample datasets in them."""
    for name in ("extensions", "user_data/extensions", "user_data/loras", "user_data/models", "user_data/logs", "user_data/cache"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT, folder / place / extension, ignore=NOT_COPIED)
    shutil.copytree(ROOT / "demo" / "model", folder / "user_data" / "models" / "demo")
    shutil.copytree(ROOT / "datasets", folder / "user_data" / "training" / "datasets")
    (folder / "user_data" / "training" / "datasets" / "put-trainer-datasets-here.txt").touch()
