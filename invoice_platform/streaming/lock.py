"""One run a checkpoint: a lock of the platform's own, because Spark lets two queries on one checkpoint both do their work.

The lock is the operating system's (through filelock), so a process that dies, however it dies, holds nothing. What it leaves is its
name (`.lock.json`), by which the next holder says that it takes over, and its session in the warm Spark, whose queries would go
on for nobody: that is ended first.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from invoice_platform.errors import StreamLocked, writing
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.session import RemoteSession
from invoice_platform.streaming.state import read_state, write_state

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)
POLL_SECONDS = 0.5


class StreamLock:
    """The lock of a stream, in the hands of its holder."""

    def __init__(self, holder: Path, facts: dict[str, Any]) -> None:
        self._holder = holder
        self._facts = facts
        write_state(holder, facts)

    def works_with(self, spark: SparkSession) -> None:
        """Write down which session works for the holder, for who takes over should the holder's process die."""
        session = RemoteSession.of(spark)
        if session is not None and self._facts.get("session") != session.facts:
            self._facts["session"] = session.facts
            write_state(self._holder, self._facts)


def noting(locks: Sequence[StreamLock], spark: Callable[[], SparkSession]) -> Callable[[], SparkSession]:
    """`spark`, of which each of `locks` writes down the session that it opens."""

    def opened() -> SparkSession:
        session = spark()
        for lock in locks:
            lock.works_with(session)
        return session

    return opened


@contextmanager
def stream_lock(layout: Layout, stream: str, run: str, wait_seconds: float = 0) -> Iterator[StreamLock]:
    """Hold the checkpoints of `stream`.

    Parameters
    ----------
    run : str
        What a second process is told of the holder, e.g. `run 1c9d…`.
    wait_seconds : float
        How long to wait for another run to let go of them.

    Raises
    ------
    StreamLocked
        When another run holds them, with who that is.
    """
    folder = layout.checkpoints / stream
    lock = FileLock(folder / ".lock", thread_local=False)
    holder = folder / ".lock.json"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=wait_seconds, poll_interval=POLL_SECONDS)
        except Timeout:
            raise StreamLocked(stream, _holder(holder)) from None
    try:
        _take_over(layout, stream, holder)
        since = datetime.now(timezone.utc).isoformat(timespec="seconds")
        facts = {"run": run, "pid": os.getpid(), "host": socket.gethostname(), "since": since}
        yield StreamLock(holder, facts)
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def hold_run(layout: Layout, run_id: str) -> FileLock | None:
    """Show that a run's process lives, until the lock is released; None when this process shows it already."""
    path = layout.run_lock(run_id)
    lock = FileLock(path, thread_local=False)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
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


def _take_over(layout: Layout, stream: str, holder: Path) -> None:
    """Say that the last holder died, and end what still works for it."""
    try:
        left = read_state(holder)
    except ValueError:
        left = {}
    if not left:
        return
    log.warning(f"{stream}: checkpoint taken over from {_holder(holder).removesuffix(')')}, dead)")
    if (session := RemoteSession.from_facts(left.get("session"))) is not None and session.end(layout):
        log.warning(f"{stream}: its session in the warm Spark is ended, and what still ran in it")


def _holder(path: Path) -> str:
    try:
        return "{run} (process {pid} on {host}, since {since})".format_map(read_state(path))
    except (ValueError, KeyError):
        return "another process that has just begun"
