"""What a JVM takes: resident memory from the system, its heap from its own log of collections."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

MB = 1e6
SAMPLE_SECONDS = 0.2
SPILL_PREFIX = "temp_local_"
"""What Spark calls files that it spills to disk because memory does not suffice; those of a shuffle have another name."""
_PAUSE = re.compile(r"Pause (\w+).*? (\d+)M->(\d+)M\((\d+)M\) ([\d.]+)ms")


@dataclass
class Watched:
    """What was seen of a process while it was watched."""

    peak_rss_mb: float = 0.0
    spilled_bytes: int = 0
    """The most that lay in spill files at one time."""
    rss_mb: list[float] = field(default_factory=list)


@contextmanager
def watched(pid: int, scratch: Path) -> Iterator[Watched]:
    """Watch a process and Spark's scratch folder while the block runs."""
    seen, stop, process = Watched(), threading.Event(), psutil.Process(pid)

    def look() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            seen.rss_mb.append(process.memory_info().rss / MB)
            seen.spilled_bytes = max(seen.spilled_bytes, _spilled(scratch))
        seen.peak_rss_mb = max(seen.rss_mb, default=rss_mb(pid))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def rss_mb(pid: int) -> float:
    """Resident memory of a process, in MB (10⁶ bytes)."""
    return psutil.Process(pid).memory_info().rss / MB


def _spilled(scratch: Path) -> int:
    total = 0
    for file in scratch.rglob(f"{SPILL_PREFIX}*"):
        try:
            total += file.stat().st_size
        except FileNotFoundError:
            continue
    return total


@dataclass(frozen=True)
class Collections:
    """A JVM's collections, as its log (`-Xlog:gc`) has them."""

    number: int
    full: int
    paused_seconds: float
    most_before_mb: float
    most_after_mb: float
    last_after_mb: float
    heap_mb: float
    """The greatest that the heap was."""


def collections(log: Path, skip: int = 0) -> Collections:
    """Read the log, from its `skip`th collection on."""
    found = _PAUSE.findall(log.read_text(errors="replace"))[skip:] if log.exists() else []
    return Collections(
        len(found),
        sum(kind == "Full" for kind, *_ in found),
        sum(float(ms) for *_, ms in found) / 1000,
        max((float(before) for _, before, *_ in found), default=0.0),
        max((float(after) for _, _, after, *_ in found), default=0.0),
        float(found[-1][2]) if found else 0.0,
        max((float(heap) for *_, heap, _ in found), default=0.0),
    )
