"""The tests that drive a page, in a process of their own beside the others: they mostly wait, and the suite takes half the time.

Only where the whole suite is run in one go (`python start.py test`, or `pytest` without more); `pytest --alone` runs all in one process. The
other process hands each report over as pytest itself writes it down, so the session counts, shows and fails as if the tests had been its own.
What pytest-xdist does, for one other process: its last release is older than what we take on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
FILES = ("test_page.py", "test_webui.py", "test_tab_perplexity.py", "test_strangers.py")
POLL_SECONDS = 0.5


class Beside:
    """In the session: begins the other process once the tests are collected, and takes its reports in when its own tests are through."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        self.folder = tempfile.TemporaryDirectory(prefix="beside-", ignore_cleanup_errors=True)
        self.reports, self.said = Path(self.folder.name) / "reports.jsonl", Path(self.folder.name) / "said.txt"

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        theirs = [item for item in items if item.path.name in FILES]
        if not theirs or config.option.collectonly:
            return
        items[:] = [item for item in items if item.path.name not in FILES]
        files = dict.fromkeys(str(item.path) for item in theirs)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-c", str(config.inipath), "--rootdir", str(config.rootpath)]
        with open(self.said, "w", encoding="utf-8") as said:
            self.process = subprocess.Popen(
                [*command, f"--reports={self.reports}", *files], stdout=said, stderr=subprocess.STDOUT, cwd=config.rootpath
            )
        self.wanted = {item.nodeid for item in theirs}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session):
        if self.process is not None:
            session.testscollected += len(self.wanted)
        result = yield
        if self.process is not None:
            self._take_in(session)
        return result

    def _take_in(self, session) -> None:
        config, done, place = session.config, set(), 0
        while True:
            over = self.process.poll() is not None
            lines = self.reports.read_text(encoding="utf-8")[place:] if self.reports.exists() else ""
            for line in lines[: lines.rfind("\n") + 1].splitlines(keepends=True):
                place += len(line)
                report = config.hook.pytest_report_from_serializable(config=config, data=json.loads(line))
                if isinstance(report.longrepr, list):
                    report.longrepr = tuple(report.longrepr)  # file, line and reason of a skipped one; JSON knows no tuples
                if report.when == "setup":
                    config.hook.pytest_runtest_logstart(nodeid=report.nodeid, location=report.location)
                config.hook.pytest_runtest_logreport(report=report)
                if report.when == "teardown":
                    done.add(report.nodeid)
            if over:
                break
            time.sleep(POLL_SECONDS)
        if self.process.returncode not in (0, 1) or done != self.wanted:
            said = self.said.read_text(encoding="utf-8", errors="replace")[-8000:]
            session.shouldfail = f"the tests beside ended with {self.process.returncode}, {len(done)} of {len(self.wanted)} of them done:\n{said}"
            raise session.Failed(session.shouldfail)

    def pytest_unconfigure(self):
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)
        self.folder.cleanup()


class Reporter:
    """In the other process: writes each report down as it comes."""

    def __init__(self, config, file: str) -> None:
        self.config, self.file = config, file

    def pytest_runtest_logreport(self, report):
        line = json.dumps(self.config.hook.pytest_report_to_serializable(config=self.config, report=report))
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(line + "\n")
