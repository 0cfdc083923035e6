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
from invoice_platform.streaming.stream import OpenSession, RunSummary, Stream, run_batch
from invoice_platform.streaming.tables import latest_version


def rebuild(streams: Sequence[Stream], spark: OpenSession, layout: Layout, *, run: str) -> list[RunSummary]:
    """Replace each stream's table by what its batch twin makes of all that was accepted, first source first.

    Afterwards the streams go on: files accepted before the rebuild are in the tables and are not read again, files
    accepted later go into a new segment, and a stream fed by a rebuilt table starts after the rebuild.

    Raises
    ------
    StreamLocked
        When a run holds one of the checkpoints.
    PlatformError
        When nothing was ever accepted.
    """
    with ExitStack() as held:
        for stream in streams:
            held.enter_context(stream_lock(layout, stream.name, run))
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
            summaries = [run_batch(stream, spark, layout) for stream in streams]
        for stream in streams:
            if isinstance(stream.source, DeltaTable):
                # A commit without data, so that there is a version after the rebuild for the stream to start at.
                version = latest_version(layout.table(stream.source.table))
                table = layout.table(stream.source.table)
                spark().sql(f"ALTER TABLE delta.`{table}` SET TBLPROPERTIES ('invoice_platform.rebuilt' = '{version}')")
                stream.source.restart_after(layout, stream.name, version)
        for name, ledger in landed.items():
            ledger.all_drained(through[name])
        for stream in streams:
            layout.rebuild_note(stream.name).unlink()
    return summaries
