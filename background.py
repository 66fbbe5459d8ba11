"""Work in threads of its own: what a page waits for and may call off, and what calculates for a page in between."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

Found = TypeVar("Found")


class Cancelled(Exception):
    """The user called the work off."""


class Job:
    """`work(progress)` in a thread; `progress(doing, share)` raises Cancelled once `cancel` was called.

    `done` is set at the end; then `result` is what the work returned, or `error` what it raised.
    """

    def __init__(self, work: Callable[[Callable[[str, float], None]], Any]):
        self.doing, self.share = "Reading", 0.0
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = threading.Event()
        self._called_off = threading.Event()
        self._work = work
        self.thread = threading.Thread(target=self._run, daemon=True, name="training-pro-job")
        self.thread.start()

    def cancel(self) -> None:
        self._called_off.set()

    @property
    def cancelled(self) -> bool:
        return isinstance(self.error, Cancelled)

    def _run(self) -> None:
        try:
            self.result = self._work(self._progress)
        except BaseException as error:  # it belongs to whoever waits
            self.error = error
        finally:
            self.done.set()

    def _progress(self, doing: str, share: float) -> None:
        self.doing, self.share = doing, min(1.0, max(0.0, share))
        if self._called_off.is_set():
            raise Cancelled


def in_a_thread_that_ends(work: Callable[[], Found]) -> Found:
    """What `work()` returns or raises, done in a thread that is gone afterwards.

    Whatever calculates with torch beside a run belongs into such a thread. Each thread that ever did has helpers of its own (libgomp's pool), as many
    as the machine has processors, until it ends; and while there are more of them than processors, none of them waits awake for the next
    part of a calculation. After one optimizer step in a thread of Gradio's, each step of a small model's training took twice as long.
    """
    job = Job(lambda progress: work())
    job.thread.join()
    if job.error is not None:
        raise job.error
    return job.result
