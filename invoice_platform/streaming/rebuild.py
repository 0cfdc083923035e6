"""The batch twin of a chain of streams: tables made anew from everything that was accepted, and streams that go on after it.

Replay: a rebuild that was interrupted leaves a note (`checkpoints/<stream>/rebuild.json`); until a rebuild has gone through, the
streams of its tables refuse to run, because a table may be of either kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from invoice_platform.errors import PlatformError
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.ledger import Ledger
from invoice_platform.streaming.lock import stream_lock
from invoice_platform.streaming.session import spark_errors
from invoice_platform.streaming.sources import DeltaTable, LandedFiles
from invoice_platform.streaming.state import write_state
from invoice_platform.streaming.stream import OpenSession, RunSummary, Stream, rebuild_state, run_batch, table_facts
from invoice_platform.streaming.tables import by_path, latest_version


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
        for name in sorted(names):
            held.enter_context(stream_lock(layout, name, run))
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
        for stream in streams:
            write_state(layout.rebuild_note(stream.name), {"run": run})
        layout.checked.unlink(missing_ok=True)  # every row is a new one
        through = {name: ledger.close_all() for name, ledger in landed.items()}
        with spark_errors("the rebuild failed; the streams of its tables wait until it is run again", layout):
            summaries = [run_batch(stream, spark, layout) for stream in streams if stream.table is not None]
            _restart(streams, spark, layout)
        for name, ledger in landed.items():
            ledger.all_drained(through[name])
        for stream in streams:
            layout.rebuild_note(stream.name).unlink()
    return summaries


def _has_run(stream: Stream, layout: Layout) -> bool:
    checkpoints = layout.checkpoints / stream.name
    return table_facts(stream, layout) is not None or any(p.name.isdigit() for p in checkpoints.glob("*"))


def _restart(streams: Sequence[Stream], spark: OpenSession, layout: Layout) -> None:
    """Let the streams that are fed by tables go on after those tables as they now are."""
    fed = [(stream, stream.source) for stream in streams if isinstance(stream.source, DeltaTable)]
    after: dict[str, int] = {}
    for name in sorted({name for stream, source in fed if not stream.stateful for name in source.names}):
        after[name] = latest_version(layout.table(name))
        # A commit without data, so that there is a version after the rebuild for the streams to start at.
        spark().sql(
            f"ALTER TABLE {by_path(layout.table(name))} SET TBLPROPERTIES ('invoice_platform.rebuilt' = '{after[name]}')"
        )
    for stream, source in fed:
        if stream.stateful:
            source.restart(layout, stream.name, after=None)
            rebuild_state(stream, spark, layout)
        else:
            source.restart(layout, stream.name, {name: after[name] for name in source.names})
