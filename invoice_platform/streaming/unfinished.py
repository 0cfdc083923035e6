"""What an interrupted rebuild or reset left half done is finished by whoever comes next, before it reads or writes.

Both say first, in one file, what they are about to do, and then only move files: each move can be made again, none needs Spark.
So an interruption before that file leaves everything as it was, and one after it is rolled forward within milliseconds.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from invoice_platform.errors import PlatformError
from invoice_platform.streaming.layout import SOURCE_STATE, Layout
from invoice_platform.streaming.ledger import Ledger
from invoice_platform.streaming.state import read_state, write_state

WAIT_SECONDS = 60.0
LOG = "_delta_log"
LOCKS = (".lock", ".lock.json")


@contextmanager
def alone(layout: Layout) -> Iterator[None]:
    """Be the one process that moves tables under this root; another is waited for, because moving takes milliseconds.

    Raises
    ------
    PlatformError
        When the other one does not come to an end.
    """
    layout.root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(layout.root / ".unfinished.lock", thread_local=False)
    try:
        lock.acquire(timeout=WAIT_SECONDS)
    except Timeout:
        raise PlatformError(
            f"another process has been moving tables for over {WAIT_SECONDS:.0f} s ({lock.lock_file}): wait for it, or stop it"
        ) from None
    try:
        yield
    finally:
        lock.release()


def finish_interrupted(layout: Layout, held: Collection[str] = ()) -> None:
    """Finish what a rebuild or a reset that was interrupted has begun; costs three looks into folders when there is none.

    Parameters
    ----------
    held : collection of str
        Streams whose locks the caller holds: who planned a rebuild of one of them is dead, so what it made in vain is removed.
    """
    if layout.reset_note.exists():
        with alone(layout):
            if note := read_state(layout.reset_note):
                forget(layout, note)
    empty_trash(layout)
    for path in sorted(layout.staging.glob("*")):
        if path.suffix == ".json":
            with alone(layout):
                planned = read_state(path)
                if planned.get("swap"):
                    swap(layout, path, planned["swap"])
                elif set(planned.get("streams", ())) & set(held):
                    discard(layout, path)
        elif path.is_dir() and not path.with_suffix(".json").exists():
            _remove(path)  # written, after its plan was discarded, by a Spark that outlived its run


def stage_of(plan: Path) -> Path:
    """The folder of what a rebuild with this plan made."""
    return plan.with_suffix("")


def swap(layout: Layout, plan: Path, what: Mapping[str, Any]) -> None:
    """Put what was staged into the place of what is there; the caller is `alone`.

    Parameters
    ----------
    what : mapping
        `tables`: each table's version before; `drained`: for each ledger the id through which its files are in the tables.

    Raises
    ------
    PlatformError
        When somebody else wrote a table meanwhile.
    """
    stage = stage_of(plan)
    layout.checked.unlink(missing_ok=True)  # every row is a new one
    for name in what["tables"]:
        _move_data(stage / name, layout.table(name))
    for name, version in what["tables"].items():
        _move_commits(stage / name / LOG, layout.table(name) / LOG, version)
    for state in sorted((stage / "checkpoints").glob(f"*/{SOURCE_STATE}")):
        write_state(layout.source_state(state.parent.name), read_state(state))
    for stream, through in what["drained"].items():
        Ledger(layout.accepted(stream)).all_drained(through)
    _remove(stage)
    plan.unlink()


def _move_data(staged: Path, table: Path) -> None:
    """Files that no commit of the table names yet, so nobody reads them."""
    for file in sorted(staged.rglob("*")):
        place = file.relative_to(staged)
        if file.is_file() and LOG not in place.parts and not file.name.startswith("."):
            (table / place).parent.mkdir(parents=True, exist_ok=True)
            os.rename(file, table / place)


def _move_commits(staged: Path, log: Path, version: int) -> None:
    """The commits after `version`, oldest first: with the one that has the data the table is the new one."""
    for commit in sorted(staged.glob(f"{'?' * 20}.json")):
        if int(commit.stem) <= version:
            continue
        try:
            os.link(commit, log / commit.name)  # unlike a rename it never replaces another's commit
        except FileExistsError:
            if not os.path.samefile(commit, log / commit.name):
                raise PlatformError(
                    f"{log / commit.name}: the table was written by somebody else while a rebuild was to replace it: delete "
                    f"{stage_of(staged.parents[1])}.json to leave it as it is, then run the rebuild again"
                ) from None
        commit.unlink()


def discard(layout: Layout, plan: Path) -> None:
    """Remove what a rebuild made in vain: its staged tables and the checkpoints it filled; the caller is `alone`."""
    stage = stage_of(plan)
    for state in sorted((stage / "checkpoints").glob(f"*/{SOURCE_STATE}")):
        stream, planned = state.parent.name, read_state(state).get("segment", 1)
        if planned != read_state(layout.source_state(stream)).get("segment", 1):
            _remove(layout.checkpoint(stream, planned))
    _remove(stage)
    plan.unlink()


def forget(layout: Layout, note: Mapping[str, Any]) -> None:
    """Finish a reset; the caller is `alone`. What is made goes to the trash with one rename a folder, the tables first."""
    trash = layout.root / note["trash"]
    trash.mkdir(exist_ok=True)
    _rename_away(layout.lakehouse, trash)
    for folder in sorted(layout.checkpoints.glob("*")):
        # Locks stay: one that is renamed with its folder would keep nobody out any more.
        for path in sorted(folder.iterdir()) if folder.is_dir() else [folder]:
            if path.name not in LOCKS:
                _rename_away(path, trash / "checkpoints" / folder.name)
    _rename_away(layout.root / "accepted", trash)
    _rename_away(layout.exports, trash)
    _rename_away(layout.key_indexes, trash)
    layout.reset_note.unlink()


def _rename_away(path: Path, trash: Path) -> None:
    if path.exists():
        trash.mkdir(parents=True, exist_ok=True)
        os.rename(path, trash / path.name)


def empty_trash(layout: Layout) -> None:
    """Delete what resets have taken away."""
    for trash in sorted(layout.root.glob(".trash-*")):
        _remove(trash)


def _remove(folder: Path) -> None:
    # What cannot be deleted, such as what a Spark that outlives its run still writes, does no harm where it is.
    shutil.rmtree(folder, ignore_errors=True)
