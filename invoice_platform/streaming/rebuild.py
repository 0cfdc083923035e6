"""The batch twin of a chain of streams: tables made anew from everything that was accepted, and streams that go on after it.

 1. Stage: `lakehouse/.rebuild/<id>/<table>` begins with a copy of the table's Delta log, so that what Spark commits there is what
    the table itself would get next; twins further down read what is staged. State is made from it, too, in checkpoints of its own.
 2. Swap: the plan, one file, says that all is there; then data files, commits and the streams' new places are moved, without Spark.

Replay: interrupted while it stages, a rebuild has changed nothing, and the next run removes what it made. Interrupted in
the swap, it is rolled forward by whoever comes next (see `unfinished`).
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from invoice_platform.errors import PlatformError
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.ledger import Ledger
from invoice_platform.streaming.lock import noting, stream_lock
from invoice_platform.streaming.session import spark_errors
from invoice_platform.streaming.sources import DeltaTable, LandedFiles
from invoice_platform.streaming.state import read_state, write_state
from invoice_platform.streaming.stream import OpenSession, RunSummary, Stream, rebuild_state, run_batch, table_facts
from invoice_platform.streaming.tables import by_path, last_checkpoint, latest_version
from invoice_platform.streaming.unfinished import (
    LOG,
    alone,
    discard,
    finish_interrupted,
    stage_of,
    swap,
)

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass(frozen=True)
class _Staged(Layout):
    """The root as it will be: tables that are staged are read and written where they are staged."""

    stage: Path

    def table(self, name: str) -> Path:
        staged = self.stage / name
        return staged if staged.is_dir() else super().table(name)

    @property
    def checkpoints(self) -> Path:
        """Where streams will stand; the checkpoints themselves are made in their place."""
        return self.stage / "checkpoints"

    def checkpoint(self, stream: str, segment: int) -> Path:
        return Layout(self.root).checkpoint(stream, segment)


def rebuild(streams: Sequence[Stream], spark: OpenSession, layout: Layout, *, run: str) -> list[RunSummary]:
    """Replace each stream's table by what its batch twin makes of all that was accepted, first source first.

    Afterwards the streams go on: files accepted before the rebuild are in the tables and are not read again, files
    accepted later go into a new segment, and a stream fed by a rebuilt table starts after the rebuild.

    What was sent elsewhere (Kafka, Postgres, files) is not sent again. A stream that has never run is left to its first run,
    which takes its source as it then is.

    Raises
    ------
    StreamLocked
        When a run holds one of the checkpoints, or writes a table that is read.
    PlatformError
        When nothing was ever accepted, or a stream has yet to send elsewhere what came last.
    """
    streams = [s for s in streams if isinstance(s.source, LandedFiles) or _has_run(s, layout)]
    # A table that is read has the name of the stream that writes it.
    names = {s.name for s in streams} | {
        name for s in streams if isinstance(s.source, DeltaTable) for name in s.source.names
    }
    with ExitStack() as held:
        spark = noting([held.enter_context(stream_lock(layout, name, run)) for name in sorted(names)], spark)
        finish_interrupted(layout, names)
        for stream in streams:
            if stream.sends and stream.source.pending(layout, stream.name):
                raise PlatformError(
                    f"stream {stream.name!r} has yet to send what came last, and a rebuild would pass over it: run its job first "
                    "(for Kafka `invoice-platform run ingest_kafka_invoices`)"
                )
        landed: dict[str, Ledger] = {}
        for stream in streams:
            if isinstance(stream.source, LandedFiles):
                ledger = stream.source.landing(layout, stream.name).ledger
                ledger.recover()
                if ledger.totals()["files"] == 0:
                    raise PlatformError(f"nothing was ever accepted for {stream.name!r}: land files, run its stream")
                # A stream with state keeps its checkpoint: its state covers every file, and its table is its whole result.
                if stream.source.segment_files is not None:
                    landed[stream.name] = ledger
        plan = layout.staging / f"{uuid.uuid4().hex}.json"
        write_state(plan, {"run": run, "streams": sorted(names)})
        try:
            drained = {name: ledger.close_all() for name, ledger in landed.items()}
            with spark_errors("the rebuild failed, and the tables are as they were", layout):
                summaries, versions = _stage(streams, spark, layout, stage_of(plan))
        except Exception:  # at once, because the disk may be full; what a kill leaves is removed by the next run
            with alone(layout):
                discard(layout, plan)
            raise
        with alone(layout):
            for name, version in versions.items():
                if (now := latest_version(layout.table(name))) != version:
                    discard(layout, plan)
                    raise PlatformError(
                        f"table {name} was written while it was rebuilt (version {now}, not {version}), and is as it was: "
                        "run the rebuild again"
                    )
            what = {"tables": versions, "drained": drained}
            write_state(plan, {"run": run, "streams": sorted(names), "swap": what})
            swap(layout, plan, what)
    by_name = {stream.name: stream for stream in streams}
    return [replace(summary, after=table_facts(by_name[summary.stream], layout)) for summary in summaries]


def _has_run(stream: Stream, layout: Layout) -> bool:
    checkpoints = layout.checkpoints / stream.name
    return table_facts(stream, layout) is not None or any(p.name.isdigit() for p in checkpoints.glob("*"))


def _stage(
    streams: Sequence[Stream], spark: OpenSession, layout: Layout, stage: Path
) -> tuple[list[RunSummary], dict[str, int]]:
    """Make the new tables and checkpoints; what was done, and the version of each table before."""
    staged = _Staged(layout.root, stage)
    versions: dict[str, int] = {}
    for stream in streams:
        if stream.table is not None:
            stream.table.declare(spark(), layout)
            versions[stream.table.name] = _copy_log(layout.table(stream.table.name), stage / stream.table.name)
    summaries = [run_batch(stream, spark, staged) for stream in streams if stream.table is not None]
    fed = [(stream, stream.source) for stream in streams if isinstance(stream.source, DeltaTable)]
    after = {
        name: _mark(staged.table(name), spark())
        for name in sorted({name for stream, source in fed if not stream.stateful for name in source.names})
    }
    for stream, source in fed:
        write_state(staged.source_state(stream.name), read_state(layout.source_state(stream.name)))
        if stream.stateful:
            source.restart(staged, stream.name, after=None)
            rebuild_state(stream, spark, staged)
        else:
            source.restart(staged, stream.name, _of(after, source.names))
    return summaries, versions


def _of(after: Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    return {name: after[name] for name in names}


def _copy_log(table: Path, staged: Path) -> int:
    """Give a staged table the log of the real one, from its last checkpoint on; the version it is at."""
    log, version, last = table / LOG, latest_version(table), last_checkpoint(table)
    (staged / LOG).mkdir(parents=True)
    for file in log.iterdir():
        number = file.name.partition(".")[0]
        if file.name == "_last_checkpoint" or (number.isdigit() and int(number) >= last):
            shutil.copy2(file, staged / LOG)
    return version


def _mark(table: Path, spark: SparkSession) -> int:
    """A commit without data, so that there is a version after the rebuild for streams to start at; the version before it."""
    version = latest_version(table)
    spark.sql(f"ALTER TABLE {by_path(table)} SET TBLPROPERTIES ('invoice_platform.rebuilt' = '{version}')")
    return version
