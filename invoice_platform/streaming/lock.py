"""One run a checkpoint: a lock of the platform's own, because Spark lets two queries on one checkpoint both do their work.

The lock is the operating system's (through filelock), so a process that dies, however it dies, holds nothing.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock, Timeout

from invoice_platform.errors import StreamLocked
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.state import read_state, write_state


@contextmanager
def stream_lock(layout: Layout, stream: str, run: str) -> Iterator[None]:
    """Hold the checkpoints of `stream`.

    Parameters
    ----------
    run : str
        What a second process is told of the holder, e.g. `run 1c9d…`.

    Raises
    ------
    StreamLocked
        When another run holds them, with who that is.
    """
    folder = layout.checkpoints / stream
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", thread_local=False)
    holder = folder / ".lock.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StreamLocked(stream, _holder(holder)) from None
    try:
        since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        write_state(holder, {"run": run, "pid": os.getpid(), "host": socket.gethostname(), "since": since})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def hold_run(layout: Layout, run_id: str) -> FileLock | None:
    """Show that a run's process lives, until the lock is released; None when this process shows it already."""
    path = layout.run_lock(run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def let_go_of_run(lock: FileLock) -> None:
    """The end of `hold_run`."""
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def run_is_dead(layout: Layout, run_id: str) -> bool:
    """Whether a run's process began to work and is gone without having ended the run."""
    path = layout.run_lock(run_id)
    if not path.exists():
        return False  # not begun, or not a run of this root
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    let_go_of_run(lock)
    return True


def _holder(path: Path) -> str:
    try:
        return "{run} (process {pid} on {host}, since {since})".format_map(read_state(path))
    except (ValueError, KeyError):
        return "another process that has just begun"
