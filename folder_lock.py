"""One run in an adapter's folder, over all processes of this machine: two pages may be open on the same folder of LoRAs.

The lock is the operating system's (filelock, which huggingface_hub brings): it goes with the process that holds it, however that ends.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOCK = ".run.lock"
WAIT = 2.0  # seconds: another process may be looking whether it is held


class Taken(RuntimeError):
    """Another process trains in the folder; the message is for the user."""

    def __init__(self, folder: Path):
        super().__init__(
            f"Name: “{folder.name}” is being trained by another program on this machine. Choose another name, or wait until that run has ended."
        )


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder, which is made where it is not there, and removed again where nothing came into being in it.

    Raises:
        Taken: another process holds it.
        OSError: the folder cannot be made or written.
    """
    import filelock

    folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(folder)
    try:
        lock.acquire(timeout=WAIT)
    except filelock.Timeout as error:
        raise Taken(folder) from error
    try:
        yield
    finally:
        # A drive that is gone keeps its files; that must not hide why the run ended.
        if os.name == "posix":  # while it is held, so that nobody locks a file that goes; on Windows filelock removes it itself
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink(missing_ok=True)
        lock.release()
        with contextlib.suppress(OSError):
            folder.rmdir()


def is_taken(folder: Path) -> bool:
    """Whether a process, this one or another, trains in the folder."""
    import filelock

    if not (folder / LOCK).exists():
        return False
    try:
        with _lock(folder).acquire(timeout=0):
            return False
    except filelock.Timeout:
        return True
    except OSError:  # of another user, perhaps: the run itself will say so
        return False


def _lock(folder: Path) -> Any:
    import filelock

    return filelock.FileLock(folder / LOCK, thread_local=False)
