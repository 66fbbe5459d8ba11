"""Ends work of this thread that takes too long, such as a chat template that never comes to its end.

Python can only be asked to raise at the next step of a program: work within one step (a sort, a text of gigabytes) is not ended before it is done.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Iterator

TICK = 0.2  # seconds

_lock = threading.Lock()
_deadlines: dict[int, float] = {}  # by the identity of the thread
_watching = False


class TooLong(Exception):
    """The time is over."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise TooLong inside the block once it takes longer; costs microseconds. Blocks of one thread may not lie in each other."""
    global _watching
    thread = threading.get_ident()
    with _lock:
        _deadlines[thread] = time.monotonic() + seconds
        begin, _watching = not _watching, True
    if begin:
        threading.Thread(target=_watch, daemon=True, name="training-pro-limits").start()
    try:
        yield
    except Exception:
        with _lock:
            over = thread not in _deadlines
        if over:  # whatever became of it on its way: Jinja rewrites what a template raises, and fails at this
            raise TooLong from None
        raise
    finally:
        with _lock:
            if _deadlines.pop(thread, None) is None:  # asked to raise; where it has not come to that yet, it does not any more
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), None)


def _watch() -> None:
    """Look at all deadlines while there are any."""
    global _watching
    while True:
        time.sleep(TICK)
        with _lock:
            for thread in [thread for thread, deadline in _deadlines.items() if time.monotonic() > deadline]:
                del _deadlines[thread]
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TooLong))
            if not _deadlines:
                _watching = False
                return
