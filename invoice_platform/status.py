"""How things stand under a root: read from its folders, the ledgers and the Delta logs, without Spark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from invoice_platform.errors import PlatformError
from invoice_platform.quarantine import summary
from invoice_platform.streaming.checkpoint import damage, last_committed
from invoice_platform.streaming.damage import Damaged
from invoice_platform.streaming.landing import scan_folder
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.ledger import Ledger
from invoice_platform.streaming.session import WarmServer
from invoice_platform.streaming.tables import damage as table_damage
from invoice_platform.streaming.tables import facts, strange_tables, tables_on_disk
from invoice_platform.streaming.unfinished import LOCKS


def status(layout: Layout) -> dict[str, Any]:
    """How things stand.

    Returns
    -------
    dict
        `root`; `warm_spark` (url, pid or null); `landing`: per inbox `waiting` and `left` (name, reason); `streams`: per
        stream `segments`, `files_accepted`, `records_accepted`, `files_pending` (null for one that reads a table), `segment`,
        `last_batch`, `offsets`; `tables`: per table `rows`, `version`, `files`, `bytes`; `passed_over`: folders of
        `lakehouse/` whose name no table can have; `quarantine`: records `open` and `sent_again`. A stream or a table has
        `damage`: null, or the file that is damaged and the remedy; what that file alone tells is null then.
    """
    server = WarmServer.of(layout)
    return {
        "root": str(layout.root),
        "warm_spark": {"url": server.url, "pid": server.pid} if server else None,
        "landing": {folder.name: _landing(layout, folder.name) for folder in _folders(layout.root / "landing")},
        "streams": {name: _stream(layout, name) for name in _stream_names(layout)},
        "tables": {name: found for name in tables_on_disk(layout) if (found := _table(layout, name))},
        "passed_over": strange_tables(layout),
        "quarantine": summary(layout),
    }


def _folders(parent: Path) -> list[Path]:
    return sorted(p for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []


def _stream_names(layout: Layout) -> list[str]:
    begun = [p for p in _folders(layout.checkpoints) if any(f.name not in LOCKS for f in p.iterdir())]
    return sorted({p.name for p in (*_folders(layout.root / "accepted"), *begun)})


def _landing(layout: Layout, inbox: str) -> dict[str, Any]:
    scan = scan_folder(layout.landing(inbox))
    return {"waiting": len(scan.waiting), "left": [{"file": f.name, "reason": f.reason} for f in scan.left]}


def _stream(layout: Layout, name: str) -> dict[str, Any]:
    ledger = Ledger(layout.accepted(name))
    landed = ledger.path.exists()
    totals = ledger.totals()
    checkpoints = [p for p in _folders(layout.checkpoints / name) if p.name.isdigit()]
    segment, batch, offsets, damaged = _last_batch(name, checkpoints)
    return {
        "segments": len(ledger.segments()) if landed else len(checkpoints),
        "files_accepted": totals["files"] if landed else None,
        "records_accepted": totals["records"] if landed else None,
        "files_pending": sum(p.files for p in ledger.pending()) if landed else None,
        "segment": segment,
        "last_batch": batch,
        "offsets": offsets,
        "damage": damaged,
    }


def _last_batch(stream: str, checkpoints: list[Path]) -> tuple[int | None, int | None, list[Any], str | None]:
    """Segment, number and source offsets of the last committed micro-batch, and what is damaged in that checkpoint."""
    for checkpoint in reversed(checkpoints):
        if found := damage(checkpoint):
            return int(checkpoint.name), None, [], str(Damaged(f"stream {stream!r}", found[0], stream))
        if (last := last_committed(checkpoint)) is not None:
            return int(checkpoint.name), last.batch, last.offsets, None
    return None, None, [], None


def _table(layout: Layout, name: str) -> dict[str, Any] | None:
    damaged = table_damage(layout.table(name))
    message = str(Damaged(f"table {name}", damaged[0], name)) if damaged else None
    try:
        found = facts(layout.table(name))
    except PlatformError as error:
        return {"rows": None, "version": None, "files": None, "bytes": None, "damage": message or str(error)}
    if found is None:
        return None  # just being made
    size = {"rows": found.rows, "version": found.version, "files": found.files, "bytes": found.bytes}
    return size | {"damage": message}
