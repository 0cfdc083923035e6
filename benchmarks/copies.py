"""A long history made quickly: accepted files by the ledger's own API, table rows by Delta commits of copied data files.

What a run looks at is there as if the history had been run: files in their segments and in the ledger, a checkpoint a segment,
commits with statistics, Delta's own checkpoints, the running counts of the checks. What is not: files of different content
(copies are hard links, so they cost no disk and are in memory sooner than real ones), and the micro-batches that would have
made them.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from invoice_platform.assets.bronze import INVOICES_STREAM
from invoice_platform.assets.silver import LINE_ITEMS_STREAM, QUARANTINE_STREAM
from invoice_platform.streaming.landing import SEGMENT_FILES
from invoice_platform.streaming.layout import Layout, segment_name
from invoice_platform.streaming.ledger import AcceptedFile, Ledger
from invoice_platform.streaming.sources import DeltaTable, LandedFiles
from invoice_platform.streaming.state import read_state, write_state
from invoice_platform.streaming.tables import commit_path, latest_version, open_delta

CHECKPOINT_EVERY = 100
"""Commits after which a checkpoint of the Delta log is made. Delta makes one every 10; only the last is read."""


@dataclass(frozen=True)
class Copied:
    """What a Delta table gained."""

    rows: int
    files: int
    commits: int


def last_adds(table: Path) -> list[dict[str, Any]]:
    """The `add` actions of the newest commit that added data."""
    for version in range(latest_version(table), -1, -1):
        lines = commit_path(table, version).read_text(encoding="utf-8").splitlines()
        if adds := [action["add"] for action in map(json.loads, lines) if "add" in action]:
            return adds
    raise ValueError(f"{table} has no data to copy")


def rows_in(adds: Sequence[dict[str, Any]]) -> int:
    """Rows of the data files that `adds` name."""
    return sum(json.loads(add["stats"])["numRecords"] for add in adds)


def copy_commits(table: Path, adds: Sequence[dict[str, Any]], commits: int, copies: int = 1) -> Copied:
    """Append commits to a Delta table, each of so many copies of the data files that `adds` (of `last_adds`) name."""
    first, now = latest_version(table) + 1, time.time_ns() // 1_000_000
    for version in range(first, first + commits):
        lines = [_commit_info(now)]
        for _ in range(copies):
            for add in adds:
                path = Path(add["path"])
                name = (path.parent / f"part-copy-{uuid4()}.parquet").as_posix()
                os.link(table / path, table / name)
                lines.append({"add": add | {"path": name, "modificationTime": now, "dataChange": True}})
        _write_commit(table, version, lines)
        if (version - first) % CHECKPOINT_EVERY == CHECKPOINT_EVERY - 1 or version == first + commits - 1:
            found = open_delta(table)
            assert found is not None
            found.create_checkpoint()
    return Copied(rows_in(adds) * copies * commits, len(adds) * copies * commits, commits)


def _commit_info(milliseconds: int) -> dict[str, Any]:
    info = {"timestamp": milliseconds, "operation": "WRITE", "operationParameters": {"mode": "Append"}}
    return {"commitInfo": info | {"isBlindAppend": True}}


def _write_commit(table: Path, version: int, actions: Sequence[dict[str, Any]]) -> None:
    text = "".join(json.dumps(action) + "\n" for action in actions)
    with commit_path(table, version).open("x", encoding="utf-8") as file:
        file.write(text)


def accept(layout: Layout, files: int, records: int = 1) -> None:
    """Give the archive so many more files of `records` each, drained, in segments that are closed when full.

    Copies of the files that are there, under keys of their own; a full segment has a checkpoint, a copy, too. The next file opens a
    new segment.
    """
    stream = INVOICES_STREAM
    assert isinstance(stream.source, LandedFiles)
    ledger: Ledger = stream.source.landing(layout, stream.name).ledger
    models = sorted((ledger.folder / segment_name(1)).iterdir())[:SEGMENT_FILES]
    made = 0
    while made < files:
        segment = ledger.open_segment(SEGMENT_FILES)
        folder = ledger.folder / segment_name(segment)
        folder.mkdir(exist_ok=True)
        some = min(files - made, SEGMENT_FILES - len(ledger.files(segment)))
        begin_ms = ledger.last_accepted_ms() + 1
        rows: list[AcceptedFile] = []
        for number in range(some):
            key, model = uuid4().hex, models[number % len(models)]
            size = model.stat().st_size
            name = f"{key}-copy-{made + number:07d}.json"
            os.link(model, folder / name)
            rows.append(AcceptedFile(key, name, name[33:], segment, size, records, begin_ms + number))
        ledger.begin(rows)
        ledger.recover()
        for pending in ledger.pending():
            ledger.drained(pending.segment, pending.through)
        first = layout.checkpoint(stream.name, 1)
        if not (copied := layout.checkpoint(stream.name, segment)).exists() and some == SEGMENT_FILES:
            shutil.copytree(first, copied)
        made += some
    # The checkpoint of the open segment has not seen its copies, and would read them.
    ledger.close_all()


def settle(layout: Layout, line_items: int) -> None:
    """Let the streams that read bronze begin after what was copied, and the checks count it: as a rebuild does.

    Parameters
    ----------
    line_items : int
        Rows that the flat table gained.
    """
    after = {name: latest_version(layout.table(name)) for name in ("invoices", "kafka_invoices")}
    for name, version in after.items():
        # Delta cannot start at a version to come.
        _write_commit(layout.table(name), version + 1, [_commit_info(time.time_ns() // 1_000_000)])
    for stream in (LINE_ITEMS_STREAM, QUARANTINE_STREAM):
        assert isinstance(stream.source, DeltaTable)
        stream.source.restart(layout, stream.name, after)
    checked = read_state(layout.checked)
    versions = [version + 1 for version in after.values()]
    write_state(layout.checked, checked | {"versions": versions, "line_items": checked["line_items"] + line_items})
