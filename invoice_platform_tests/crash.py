"""Kill a run wherever it matters: what a crash leaves on disk at each boundary, taken from one run that is stopped again and again.

A boundary is a question about what is on disk. The run is a process of its own with its own Spark. Each time it has changed a
file it is stopped as a whole (SIGSTOP), the questions are asked, and where one is answered with yes the root is copied: that is
what a SIGKILL at this moment would leave. Which of several chances is taken is decided by a seed. At the end the run is killed
for real. As a program, `ROOT`, this is the run: `ingest_invoices` file by file over short segments.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from invoice_platform.assets.bronze import INVOICES_STREAM
from invoice_platform.streaming import landing
from invoice_platform.streaming.checkpoint import has_unfinished
from invoice_platform.streaming.layout import ROOT_VARIABLE, Layout
from invoice_platform.streaming.ledger import Ledger
from invoice_platform.streaming.tables import latest_version

SEGMENT_FILES = 4
RUN_SECONDS = 400
"""A limit, never a measure."""

Place = Hashable
"""Which one of several chances: a segment, a micro-batch."""


@contextmanager
def short_segments(files: int = SEGMENT_FILES) -> Iterator[None]:
    """Segments of the invoices' archive that take a few files, one admission each."""
    source, steps = INVOICES_STREAM.source, landing.ADMISSION_FILES
    before = source.segment_files  # type: ignore[attr-defined]
    object.__setattr__(source, "segment_files", files)  # declared frozen, and shared by every job
    landing.ADMISSION_FILES = files
    try:
        yield
    finally:
        object.__setattr__(source, "segment_files", before)
        landing.ADMISSION_FILES = steps


def _batches(folder: Path) -> set[int]:
    return {int(p.name) for p in folder.iterdir() if p.name.isdigit()} if folder.is_dir() else set()


def _invoice_checkpoints(layout: Layout) -> list[Path]:
    return sorted(p for p in (layout.checkpoints / "invoices").glob("[0-9]*") if p.is_dir())


def _data_files(table: Path) -> set[str]:
    return {p.name for p in table.glob("*.parquet")}


def _logged(table: Path) -> str:
    """The text of a table's log."""
    return "".join(p.read_text() for p in sorted((table / "_delta_log").glob("*.json")))


def _query_id(checkpoint: Path) -> str:
    metadata = checkpoint / "metadata"
    return metadata.read_text() if metadata.exists() else ""


@contextmanager
def _ledger(layout: Layout) -> Iterator[Ledger]:
    """The ledger as a crash would leave it: a copy, because the stopped run may hold a lock on it."""
    with TemporaryDirectory() as folder:
        for file in layout.accepted("invoices").glob("ledger.sqlite*"):
            shutil.copy(file, folder)
        yield Ledger(Path(folder))


def _in_admission(layout: Layout) -> Place | None:
    """After a file's rename, before the ledger says that it is there."""
    with _ledger(layout) as ledger:
        files = sum(1 for p in layout.accepted("invoices").glob("[0-9]*/*"))
        return files if ledger.unfinished() and files > ledger.totals()["files"] else None


def _bronze(found: Callable[[Path, int, Path], bool]) -> Callable[[Layout], Place | None]:
    """A question about the newest micro-batch of `invoices`: its checkpoint, its number, its table."""

    def ask(layout: Layout) -> Place | None:
        for checkpoint in _invoice_checkpoints(layout)[-1:]:
            for batch in [max(_batches(checkpoint / "sources" / "0"), default=-1)]:
                if batch >= 0 and found(checkpoint, batch, layout.table("invoices")):
                    return checkpoint.name, batch
        return None

    return ask


def _planned(checkpoint: Path, batch: int) -> bool:
    return batch in _batches(checkpoint / "offsets") and batch not in _batches(checkpoint / "commits")


def _delta_has(checkpoint: Path, batch: int, table: Path) -> bool:
    import json

    query = json.loads(_query_id(checkpoint) or "{}").get("id", "")
    return f'"txn":{{"appId":"{query}","version":{batch},' in _logged(table)


def _unlogged(table: Path) -> bool:
    log = _logged(table)
    return any(name not in log for name in _data_files(table))


def _segment_closed(layout: Layout) -> Place | None:
    """One segment is worked through and closed, and the next, which has files, is not begun."""
    with _ledger(layout) as ledger:
        pending = [p.segment for p in ledger.pending()]
    begun = [int(p.name) for p in _invoice_checkpoints(layout)]
    return pending[0] if pending and begun and pending[0] == begun[-1] + 1 else None


def _checkpoint(layout: Layout, stream: str) -> Path:
    return layout.checkpoint(stream, 1)


def _between(layout: Layout) -> Place | None:
    """All files are in bronze, and silver has not begun."""
    with _ledger(layout) as ledger:
        done = ledger.totals()["files"] and not ledger.pending() and not ledger.unfinished()
    begun = _checkpoint(layout, "invoice_line_items").exists() or _checkpoint(layout, "quarantined_invoices").exists()
    return 1 if done and not begun and not any(layout.landing("invoices").iterdir()) else None


def _in_silver(layout: Layout) -> Place | None:
    """Line items are in their table, and neither their checkpoint nor the quarantine says so."""
    checkpoint = _checkpoint(layout, "invoice_line_items")
    batch = max(_batches(checkpoint / "offsets"), default=-1)
    written = batch >= 0 and _delta_has(checkpoint, batch, layout.table("invoice_line_items"))
    return batch if written and has_unfinished(checkpoint) else None


def _merged(layout: Layout) -> Place | None:
    """A gold table has a micro-batch that its checkpoint does not say is committed."""
    checkpoint = _checkpoint(layout, "store_daily_sales")
    merges = _logged(layout.table("store_daily_sales")).count('"operation":"MERGE"')
    done = len(_batches(checkpoint / "commits"))
    return merges if merges > done and has_unfinished(checkpoint) else None


BOUNDARIES: Mapping[str, Callable[[Layout], Place | None]] = {
    "after admission's rename": _in_admission,
    "after sources": _bronze(lambda c, n, _: n not in _batches(c / "offsets")),
    "after offsets": _bronze(lambda c, n, t: _planned(c, n) and not _unlogged(t) and not _delta_has(c, n, t)),
    "after data files": _bronze(lambda c, n, t: _planned(c, n) and _unlogged(t) and not _delta_has(c, n, t)),
    "after Delta's commit": _bronze(lambda c, n, t: _planned(c, n) and _delta_has(c, n, t)),
    "after the checkpoint's commit": _bronze(lambda c, n, _: n in _batches(c / "commits")),
    "after a segment's close": _segment_closed,
    "between bronze and silver": _between,
    "in the middle of silver": _in_silver,
    "after a gold table's merge": _merged,
}
"""Where a run is killed: what is on disk there. A question gives which chance it is, or None."""
_CHANCES = (
    "after sources",
    "after offsets",
    "after data files",
    "after Delta's commit",
    "after the checkpoint's commit",
)
"""Boundaries that come again with each micro-batch of bronze."""
_PASSED_BY = 0.5
"""How likely one of those is passed by for the next."""


class _Inotify:
    """The kernel's word on each change of a file below a folder, as it comes."""

    CHANGED = 0x8 | 0x80 | 0x200  # closed after writing, renamed to, deleted
    MADE = 0x100
    IS_FOLDER = 0x40000000

    def __init__(self, *roots: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        self._folders: dict[int, Path] = {}
        for root in roots:
            self._watch(root)

    def _watch(self, folder: Path) -> None:
        number = self._libc.inotify_add_watch(self._fd, os.fsencode(folder), self.CHANGED | self.MADE)
        if number < 0:
            return  # gone again
        self._folders[number] = folder
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                self._watch(Path(entry.path))

    def changes(self, seconds: float) -> bool:
        """Wait until something changed, at most so long; whether it did."""
        if not select.select([self._fd], [], [], seconds)[0]:
            return False
        told, changed = os.read(self._fd, 1 << 16), False
        while told:
            number, mask, _, length = struct.unpack("iIII", told[:16])
            name, told = told[16 : 16 + length].rstrip(b"\0"), told[16 + length :]
            if mask & self.IS_FOLDER:
                if mask & self.MADE and number in self._folders:
                    self._watch(self._folders[number] / os.fsdecode(name))
            # What is written under a name that no reader knows is followed by a rename.
            elif not name.endswith((b".tmp", b".crc")):
                changed = changed or not mask & self.MADE
        return changed

    def close(self) -> None:
        os.close(self._fd)


@dataclass(frozen=True)
class Crash:
    """What a crash at a boundary left: a copy of the root."""

    boundary: str
    place: Place
    copy: Path


def copy_root(source: Path, target: Path) -> None:
    """Copy a root with its files' times; without what is no part of its state."""
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("dagster", "logs"))


def crashes(
    layout: Layout, copies: Path, seed: int, boundaries: Mapping[str, Callable[[Layout], Place | None]] = BOUNDARIES
) -> list[Crash]:
    """Run `ingest_invoices` over what has landed, and take what a crash at each boundary leaves.

    Parameters
    ----------
    copies : Path
        Where the copies go, one folder a boundary.
    seed : int
        Decides which chance of a boundary is taken, and when the run is killed for real.

    Returns
    -------
    list of Crash
        In the order of their coming; the last is the real one, whose copy is the root as it was left.
    """
    chance = Random(seed)
    for folder in (layout.accepted("invoices"), layout.checkpoints, layout.lakehouse):
        folder.mkdir(parents=True, exist_ok=True)
    watched = _Inotify(layout.root / "accepted", layout.checkpoints, layout.lakehouse)
    with (layout.root.parent / "crash.log").open("w") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", __name__, str(layout.root)],
            env=os.environ | {ROOT_VARIABLE: str(layout.root)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            return _follow(child, watched, layout, copies, chance, boundaries)
        finally:
            watched.close()
            _signal(child, signal.SIGKILL)
            child.wait()


def _signal(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To the run and its Spark."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def _follow(
    child: subprocess.Popen[bytes],
    watched: _Inotify,
    layout: Layout,
    copies: Path,
    chance: Random,
    boundaries: Mapping[str, Callable[[Layout], Place | None]],
) -> list[Crash]:
    taken: list[Crash] = []
    passed: set[tuple[str, Place]] = set()
    left = dict(boundaries)
    deadline = time.monotonic() + RUN_SECONDS
    while left and child.poll() is None and time.monotonic() < deadline:
        if not watched.changes(1.0):
            continue
        _signal(child, signal.SIGSTOP)
        for name, ask in list(left.items()):
            place = ask(layout)
            if place is None or (name, place) in passed:
                continue
            if name in _CHANCES and chance.random() < _PASSED_BY:
                passed.add((name, place))
                continue
            copy = copies / name.replace(" ", "_").replace("'", "")
            copy_root(layout.root, copy)
            if ask(Layout.at(copy)) == place:  # the run's threads do not all stand still at one instant
                taken.append(Crash(name, place, copy))
                del left[name]
            else:
                shutil.rmtree(copy)
        _signal(child, signal.SIGCONT)
    if child.poll() is None:  # a crash that is one: a while later, wherever that is
        time.sleep(chance.random())
        _signal(child, signal.SIGKILL)
        child.wait()
        copy = copies / "SIGKILL"
        copy_root(layout.root, copy)
        taken.append(Crash("SIGKILL", latest_version(layout.table("invoices")), copy))
    return taken


def main(root: str) -> None:
    """The run that is stopped: a file a micro-batch in bronze, a few table files in the others."""
    from invoice_platform.jobs import from_files
    from invoice_platform.orchestrate import run_job

    limits = {s.name: {"max_files_per_trigger": 1 if s is INVOICES_STREAM else 5} for s in from_files()}
    with short_segments():
        run_job(
            Layout.at(root), "ingest_invoices", {"ops": {name: {"config": config} for name, config in limits.items()}}
        )


if __name__ == "__main__":
    main(sys.argv[1])
