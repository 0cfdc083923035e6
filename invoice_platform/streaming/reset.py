"""Forget everything that was made under a root: tables, accepted files and their ledgers, checkpoints, exports.

What landed and waits, samples, Dagster's history and Kafka's data stay. Replay: interrupted before its note is written, a reset
has changed nothing; after that it is finished by whoever comes next (see `unfinished`). The tables go first, all in one rename.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.ledger import Ledger
from invoice_platform.streaming.lock import stream_lock
from invoice_platform.streaming.state import write_state
from invoice_platform.streaming.tables import facts, tables_on_disk
from invoice_platform.streaming.unfinished import LOCKS, alone, empty_trash, forget


@dataclass(frozen=True)
class Made:
    """Something that a reset removes."""

    what: str
    """A folder under the root."""
    rows: int | None
    """Rows of a table, records of accepted files; None for what has none."""
    files: int
    bytes: int


def made(layout: Layout) -> list[Made]:
    """What a reset would remove, a line for each table, archive, checkpoint, export and index."""
    found: list[Made] = []
    for name in tables_on_disk(layout):
        table = facts(layout.table(name))
        found.append(_folder(layout, layout.table(name), table.rows if table else None))
    for archive in _folders(layout.root / "accepted"):
        found.append(_folder(layout, archive, Ledger(archive).totals()["records"]))
    for parent in (layout.checkpoints, layout.exports, layout.key_indexes):
        found += [_folder(layout, folder) for folder in _folders(parent)]
    return [one for one in found if one.files]


def reset(layout: Layout, streams: Iterable[str], *, run: str) -> None:
    """Remove all that `made` names.

    Parameters
    ----------
    streams : iterable of str
        Every stream that is declared: none of them may be running. Those that the root knows are added.

    Raises
    ------
    StreamLocked
        When a run holds a checkpoint; nothing is removed then.
    """
    known = {folder.name for parent in (layout.checkpoints, layout.root / "accepted") for folder in _folders(parent)}
    with ExitStack() as held:
        for name in sorted(known | set(streams)):
            held.enter_context(stream_lock(layout, name, run))
        with alone(layout):
            note = {"run": run, "trash": f".trash-{uuid.uuid4().hex}"}
            write_state(layout.reset_note, note)
            forget(layout, note)
    empty_trash(layout)


def _folders(parent: Path) -> list[Path]:
    return sorted(p for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []


def _folder(layout: Layout, folder: Path, rows: int | None = None) -> Made:
    sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file() and file.name not in LOCKS]
    return Made(folder.relative_to(layout.root).as_posix(), rows, len(sizes), sum(sizes))
