"""A stream: source, transform, sink and checkpoint, declared as data; how it is run and what it tells of a run.

Grain: one run of one or more streams. Checkpoint: `checkpoints/<stream>/<segment>`. Replay: a run that ends anywhere
is followed by one that goes on from the last committed micro-batch; the Delta sink drops what it already has.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

from invoice_platform.errors import PlatformError, StreamFailed, refused_by_disk
from invoice_platform.streaming.checkpoint import checkpoint_id, damage, is_fresh, last_planned
from invoice_platform.streaming.damage import Damage, Damaged, json_file
from invoice_platform.streaming.landing import Admission
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.lock import noting, stream_lock
from invoice_platform.streaming.session import RemoteSession, spark_exceptions
from invoice_platform.streaming.settings import RunSettings
from invoice_platform.streaming.sinks import ConnectorSink, Query, Service, Sink
from invoice_platform.streaming.sources import DeltaTable, LandedFiles, Leg, Source
from invoice_platform.streaming.tables import Table, TableFacts, checkpoint_log, facts, open_delta
from invoice_platform.streaming.tables import damage as table_damage
from invoice_platform.streaming.trigger import Trigger
from invoice_platform.streaming.unfinished import finish_interrupted

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.streaming.query import StreamingQuery

AWAIT_SECONDS = 1
COLLECT_SECONDS = 1.0
ADMIT_SECONDS = 0.1
REPORT_SECONDS = 60.0


@dataclass(frozen=True)
class Stream:
    """Source → transform → sink, with a checkpoint of its own; declared once, run in every way."""

    name: str
    source: Source
    transform: Callable[[DataFrame], DataFrame]
    """Pure: the same function makes a micro-batch and the batch twin."""
    sink: Sink
    keeps_state: bool = False
    """Whether the transform has state though the sink's mode is append, as with `dropDuplicates`."""

    def __post_init__(self) -> None:
        if self.stateful and isinstance(self.source, LandedFiles) and self.source.segment_files is not None:
            raise PlatformError(
                f"stream {self.name!r} keeps state in its checkpoint, and a segment has one of its own: declare its files with "
                f"LandedFiles({self.source.inbox!r}, …, segment_files=None)"
            )

    @property
    def table(self) -> Table | None:
        """The Delta table that it keeps; None for one that only sends elsewhere."""
        return self.sink.keeps

    @property
    def tables(self) -> tuple[Table, ...]:
        """Declared tables that it keeps and reads."""
        read = self.source.tables if isinstance(self.source, DeltaTable) else ()
        return tuple(table for table in (self.table, *read) if isinstance(table, Table))

    @property
    def stateful(self) -> bool:
        """Whether its result is made of all rows that ever came, through state in its checkpoint."""
        return self.keeps_state or self.sink.output_mode != "append"

    @property
    def sends(self) -> bool:
        """Whether it writes elsewhere than into its table, where nothing can be taken back."""
        return self.sink.sends

    @property
    def services(self) -> frozenset[Service]:
        """Servers that it needs beside the root's own folders."""
        return self.sink.services | self.source.services


@dataclass(frozen=True)
class MicroBatch:
    """One committed micro-batch, as Spark reported it."""

    number: int
    segment: int
    rows: int
    start_offset: Any
    end_offset: Any
    milliseconds: dict[str, int]
    """By Spark's phase: latestOffset, queryPlanning, getBatch, walCommit, addBatch, commitOffsets, triggerExecution."""
    lost: int = 0
    """Records that the source no longer had (`fail_on_data_loss` is off)."""


@dataclass
class RunSummary:
    """What one run of a stream did, or what it did since its last report."""

    stream: str
    trigger: str
    started_at: datetime
    before: TableFacts | None
    after: TableFacts | None = None
    admission: Admission | None = None
    batches: list[MicroBatch] = field(default_factory=list)
    files: int = 0
    """Landed files worked through; in a continuous run, admitted."""
    bytes: int = 0
    seconds: float = 0.0
    session_seconds: float = 0.0
    """Until the Spark session was there; next to nothing in one that is warm."""

    @property
    def rows_added(self) -> int:
        return (self.after.rows if self.after else 0) - (self.before.rows if self.before else 0)

    @property
    def rows_read(self) -> int:
        return sum(b.rows for b in self.batches)

    @property
    def records_lost(self) -> int:
        """Records that the source no longer had."""
        return sum(b.lost for b in self.batches)

    @property
    def seconds_by_phase(self) -> dict[str, float]:
        """Seconds of admission, of opening the session, and of each phase that Spark reports, over all micro-batches."""
        phases = {"admission": self.admission.seconds if self.admission else 0.0, "session": self.session_seconds}
        for batch in self.batches:
            for phase, milliseconds in batch.milliseconds.items():
                if phase != "triggerExecution":  # the sum of the others
                    phases[phase] = phases.get(phase, 0.0) + milliseconds / 1000
        return phases


def _ignore(*told: object) -> None:
    """Where nobody wants to be told."""


def _never() -> bool:
    """Where nobody tells a run to stop."""
    return False


OnBatch = Callable[[str, MicroBatch], None]
OnReport = Callable[[RunSummary], None]
OpenSession = Callable[[], "SparkSession"]


class _StreamRun:
    """One stream in one run: its query, and what it has done so far."""

    def __init__(
        self,
        stream: Stream,
        layout: Layout,
        settings: RunSettings,
        spark: OpenSession,
        on_batch: OnBatch = _ignore,
        told_to_stop: Callable[[], bool] = _never,
    ) -> None:
        self.stream = stream
        self.layout = layout
        self.settings = settings
        self._open_session = spark
        self._on_batch = on_batch
        self._told_to_stop = told_to_stop
        self._query: StreamingQuery | None = None
        self._remote: RemoteSession | None = None
        self._leg: Leg | None = None
        self._last_batch = -1
        self._collected = 0.0
        self._started = time.monotonic()
        self.summary = self._new_summary(table_facts(stream, layout))

    def _new_summary(self, before: TableFacts | None) -> RunSummary:
        return RunSummary(self.stream.name, self.settings.trigger.text, datetime.now(timezone.utc), before)

    def _spark(self) -> SparkSession:
        started = time.monotonic()
        session = self._open_session()
        self._remote = RemoteSession.of(session)
        self.summary.session_seconds += time.monotonic() - started
        return session

    def report(self) -> RunSummary:
        """What was done since the last report."""
        done, now = self.summary, time.monotonic()
        done.after = table_facts(self.stream, self.layout)
        done.seconds, self._started = now - self._started, now
        self.summary = self._new_summary(done.after)
        return done

    def admit(self) -> Admission | None:
        """Move what has landed into the archive, if this stream reads landed files."""
        if not isinstance(self.stream.source, LandedFiles):
            return None
        admission = self.stream.source.landing(self.layout, self.stream.name).admit()
        if self.summary.admission is None:
            self.summary.admission = admission
        else:
            self.summary.admission.add(admission)
        return admission

    def _declare(self) -> None:
        if self.stream.table is not None:
            with self._told_apart():
                self.stream.table.declare(self._spark(), self.layout)

    def _start(self, leg: Leg, trigger: Trigger) -> StreamingQuery:
        stream = self.stream
        query = Query.of(stream.name, leg.segment, self.layout, trigger, stream.sink.services)
        stream.sink.check(query)  # before anything is made
        refuse_damaged(stream, self.layout, leg.segment)
        _refuse_other_state(stream, self.layout, query.checkpoint)
        self._declare()
        rows = stream.source.read_stream(self._spark(), self.layout, stream.name, leg, self.settings)
        self._leg, self._last_batch, self._collected = leg, -1, 0.0
        self._query = stream.sink.start(stream.transform(rows), query)
        return self._query

    def drain(self, *, count_files: bool = True) -> None:
        """Work through all that is pending, leg by leg, and stop."""
        legs = self.stream.source.pending(self.layout, self.stream.name)
        if not legs and self.summary.before is None:
            self._declare()
        for leg in legs:
            try:
                with self._told_apart():
                    query = self._start(leg, Trigger())
                while self.poll():
                    self._told_to_stop()  # raises in a run that is cancelled; one that is asked to end finishes this
                    self._await(query)
                with self._told_apart():
                    error = query.exception()
                if error is not None:
                    raise self._failed(error) from None
            finally:
                self.stop()
            self.stream.source.drained(self.layout, self.stream.name, leg)
            if count_files:
                self.summary.files += leg.files
                self.summary.bytes += leg.bytes

    def begin(self, *, count_files: bool = True) -> None:
        """Catch up, then start the query that stays."""
        self.drain(count_files=count_files)
        with self._told_apart():
            self._start(self.stream.source.current(self.layout, self.stream.name), self.settings.trigger)

    def keep_up(self) -> None:
        """Admit what has landed; when that opened a new segment, finish the old one and go on in the new one."""
        admission = self.admit()
        if admission is None or not admission.admitted:
            return
        self.summary.files += admission.files
        self.summary.bytes += admission.bytes
        if self._leg is None or admission.admitted[-1].segment != self._leg.segment:
            self.stop()
            self.begin(count_files=False)

    def poll(self, *, must_be_active: bool = False) -> bool:
        """Collect the progress of the query; whether it is still active.

        Raises
        ------
        StreamFailed
            When a query that should stay has ended.
        """
        query = self._query
        if query is None:
            return False
        with self._told_apart():
            active = query.isActive
            if not active or time.monotonic() - self._collected >= COLLECT_SECONDS:
                self._collect(query)
            if must_be_active and not active:
                raise self._failed(query.exception() or RuntimeError("the query was stopped from outside"))
        return active

    def _await(self, query: StreamingQuery) -> None:
        """Wait for the end of the query, a while; what it failed with is asked for when it has ended."""
        from pyspark.errors import StreamingQueryException

        with self._told_apart(), suppress(StreamingQueryException):
            query.awaitTermination(AWAIT_SECONDS)

    def _collect(self, query: StreamingQuery) -> None:
        """Take over the micro-batches that Spark has reported since the last call."""
        self._collected, known = time.monotonic(), len(self.summary.batches)
        for progress in query.recentProgress:  # a bounded buffer: read at least every COLLECT_SECONDS
            # A trigger that found nothing is reported too, without having added a batch.
            if progress["batchId"] <= self._last_batch or "addBatch" not in progress["durationMs"]:
                continue
            self._last_batch = progress["batchId"]
            sources = progress["sources"]
            assert self._leg is not None
            batch = MicroBatch(
                number=progress["batchId"],
                segment=self._leg.segment,
                rows=sum(s["numInputRows"] for s in sources),  # over Connect the sum is not given
                start_offset=_offsets(sources, "startOffset"),
                end_offset=_offsets(sources, "endOffset"),
                milliseconds=dict(progress["durationMs"]),
                lost=0 if self.settings.fail_on_data_loss else sum(self._lost(s) for s in sources),
            )
            self.summary.batches.append(batch)
            self._on_batch(self.stream.name, batch)
        if self.stream.table is not None and len(self.summary.batches) > known:
            checkpoint_log(self.layout.table(self.stream.table.name))

    def _lost(self, progress: Mapping[str, Any]) -> int:
        offsets = {which: _offset(progress[which]) for which in ("startOffset", "endOffset")}
        return self.stream.source.lost({"numInputRows": progress["numInputRows"]} | offsets)

    def stop(self) -> None:
        """End the query, whatever happens, and take over what it still has to tell."""
        query, self._query = self._query, None
        if query is None:
            return
        with self._told_apart():
            try:
                if query.isActive:
                    query.stop()
            finally:
                self._collect(query)

    @contextmanager
    def _told_apart(self) -> Iterator[None]:
        """Turn what Spark raises into one line that names the stream."""
        try:
            yield
        except spark_exceptions() as error:
            raise self._failed(error) from error

    def _failed(self, error: BaseException) -> PlatformError:
        if self._leg is not None and (found := find_damage(self.stream, self.layout, self._leg.segment)):
            return found
        places = [self.layout.checkpoints / self.stream.name, self.layout.lakehouse, Path(gettempdir())]
        remedy = self.stream.source.remedy(str(error)) or refused_by_disk(str(error), *places)
        if self._remote is not None and self._remote.gone:
            remedy = (
                f"the warm Spark at {self._remote.address} is gone: start it anew (`make up` or `invoice-platform serve`), "
                "then run again"
            )
        return StreamFailed(self.stream.name, error, str(self.layout.spark_log), remedy)


def find_damage(stream: Stream, layout: Layout, segment: int) -> Damaged | None:
    """What keeps a query from going on, or would make it lose or repeat rows: the first file, and whose repair mends it.

    Looks at the logs of the tables that are read and written, then at the checkpoint, then whether checkpoint and table
    belong together. A few small files; no Spark.
    """
    doing = f"stream {stream.name!r}"
    own = (stream.table.name,) if stream.table is not None else ()
    for table in (*stream.source.tables_read, *own):
        if found := table_damage(layout.table(table)):
            return Damaged(doing, found[0], stream.name if table in own else table)
    checkpoint = layout.checkpoint(stream.name, segment)
    found = damage(checkpoint) or [lost for lost in (_lost(stream, layout, segment),) if lost is not None]
    return Damaged(doing, found[0], stream.name) if found else None


def _lost(stream: Stream, layout: Layout, segment: int) -> Damage | None:
    """What is missing from a checkpoint whose files are whole."""
    checkpoint = layout.checkpoint(stream.name, segment)
    table = layout.table(stream.table.name) if stream.table is not None else None
    if is_fresh(checkpoint) and json_file(checkpoint / "metadata", "id") is not None:
        begun = stream.source.begun(layout, stream.name, segment, table)
        return Damage(checkpoint, f"missing, though {begun}") if begun is not None else None
    # Micro-batches of a number that the table has are dropped, whatever is in them.
    written = table_has(stream, layout, segment)
    planned = last_planned(checkpoint)
    if written is not None and written > (planned.batch if planned is not None else -1):
        what = f"missing, though the table has micro-batch {written} of this checkpoint"
        return Damage(checkpoint / "offsets" / str(written), what)
    return None


def table_has(stream: Stream, layout: Layout, segment: int) -> int | None:
    """The last micro-batch of a checkpoint that the stream's table has, from the table's `txn`; None where it does not say.

    A table that is kept by MERGE does not: there a repeat sets the same rows to the same values.
    """
    query = Query(stream.name, segment, layout, Trigger())
    application = stream.sink.application(query, checkpoint_id(query.checkpoint))
    if stream.table is None or application is None:
        return None
    table = open_delta(layout.table(stream.table.name))
    return table.transaction_version(application) if table is not None else None


def refuse_damaged(stream: Stream, layout: Layout, segment: int) -> None:
    """Stop a query before it starts, when it could not go on, or would lose or repeat rows."""
    if (found := find_damage(stream, layout, segment)) is not None:
        raise found


def _refuse_other_state(stream: Stream, layout: Layout, checkpoint: Path) -> None:
    """Stop a stream that keeps state now and did not before, or the other way round: Spark cannot change a checkpoint so."""
    source = stream.source
    if stream.sink.output_mode != "append":
        return
    # A rebuild without state lets the stream begin after what it made, of which a new state would know nothing.
    begun = not is_fresh(checkpoint) or (isinstance(source, DeltaTable) and source.begins_late(layout, stream.name))
    kept = (checkpoint / "state").is_dir()
    if begun and kept != stream.keeps_state:
        raise PlatformError(
            f"stream {stream.name!r}: its checkpoint {checkpoint} was made {'with' if kept else 'without'} state, and it "
            f"is now declared or set {'without' if kept else 'with'}: put that back, or run the rebuild job "
            "(`invoice-platform run rebuild_invoices`), which makes a new one"
        )


def table_facts(stream: Stream, layout: Layout) -> TableFacts | None:
    """Facts of the table that a stream keeps; None without one."""
    return facts(layout.table(stream.table.name)) if stream.table is not None else None


def _offsets(sources: Sequence[Mapping[str, Any]], which: str) -> Any:
    """The offset of a query's one source, or those of its several in their order."""
    found = [_offset(source[which]) for source in sources]
    return found[0] if len(found) == 1 else found


def _offset(text: Any) -> Any:
    """A source offset as Spark reports it (JSON in text, or the word null)."""
    try:
        return json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return text


def run_streams(
    streams: Sequence[Stream],
    spark: OpenSession,
    layout: Layout,
    settings: RunSettings,
    *,
    run: str,
    on_batch: OnBatch = _ignore,
    on_report: OnReport = _ignore,
    report_seconds: float = REPORT_SECONDS,
    told_to_stop: Callable[[], bool] = _never,
    triggers: Mapping[str, Trigger] | None = None,
) -> list[RunSummary]:
    """Run streams, in the order in which each feeds the next, until all that is new is done or until told to end.

    Parameters
    ----------
    spark : callable
        Opens the session, which stays its owner's. Called when first needed: a run with nothing new needs none.
    run : str
        What another process is told of who holds the checkpoints.
    on_batch : callable
        Called with the stream's name and each committed micro-batch.
    on_report : callable
        Called in a continuous run, at most every `report_seconds`, with what a stream did since its last report.
    told_to_stop : callable
        Asked often in a continuous run; True ends it as `run_for_seconds` does.
    triggers : mapping of str to Trigger
        In a continuous run, of streams with another trigger than that of `settings`, by name.

    Returns
    -------
    list of RunSummary
        One per stream: all of an `available_now` run; of a continuous one, what came after the last report.

    Raises
    ------
    StreamLocked
        When another run holds one of the checkpoints.
    StreamFailed
        When a query ended with an error.
    PlatformError
        When a table is not as declared and cannot be changed so.

    Notes
    -----
    Every query is stopped before this returns or raises. A continuous run that reaches `run_for_seconds` works
    through what it has admitted; one that is cancelled stops at once, and the next run goes on.
    """
    with ExitStack() as held:
        locks = []
        for stream in streams:
            locks.append(held.enter_context(stream_lock(layout, stream.name, run)))
            _refuse_half_repaired(stream, layout)
        finish_interrupted(layout, [stream.name for stream in streams])
        for stream in streams:
            for table in stream.tables:
                table.changes(layout)  # before anything is admitted or written

        session = noting(locks, spark)
        own = {name: replace(settings, trigger=trigger) for name, trigger in (triggers or {}).items()}
        runs = [
            _StreamRun(stream, layout, own.get(stream.name, settings), session, on_batch, told_to_stop)
            for stream in streams
        ]
        if settings.trigger.continuous:
            _run_until_told(runs, settings, on_report, report_seconds, told_to_stop)
        else:
            for one in runs:
                one.admit()
                one.drain()
        return [one.report() for one in runs]


def _refuse_half_repaired(stream: Stream, layout: Layout) -> None:
    """Stop a stream that an interrupted repair, of it or of what it reads, may have left half way."""
    for name in (stream.name, *stream.source.tables_read):
        if (note := layout.repair_note(name)).exists():
            raise PlatformError(
                f"stream {stream.name!r}: a repair was interrupted ({note}): run `invoice-platform repair {name}` again to "
                "finish it"
            )


def _run_until_told(
    runs: list[_StreamRun],
    settings: RunSettings,
    on_report: OnReport,
    report_seconds: float,
    told_to_stop: Callable[[], bool],
) -> None:
    now = time.monotonic()
    deadline = now + settings.run_for_seconds if settings.run_for_seconds is not None else float("inf")
    admit_at, poll_at, report_at = now, now, now + report_seconds
    with ExitStack() as stopped:
        for one in runs:
            stopped.callback(one.stop)  # each, whatever becomes of the others
            one.admit()
            one.begin()
        try:
            while (now := time.monotonic()) < deadline and not told_to_stop():
                if now >= poll_at:  # a call to the warm Spark for each stream
                    for one in runs:
                        one.poll(must_be_active=True)
                    poll_at = now + COLLECT_SECONDS
                if now >= admit_at:
                    for one in runs:
                        one.keep_up()
                    admit_at = now + ADMIT_SECONDS
                if now >= report_at:
                    for one in runs:
                        on_report(one.report())
                    report_at = now + report_seconds
                time.sleep(ADMIT_SECONDS / 2)
        except BaseException:  # cancelled, too: what was done since the last report is told
            for one in runs:
                one.stop()
                on_report(one.report())
            raise
        for one in runs:
            one.stop()
            one.drain(count_files=False)


def run_stream(stream: Stream, spark: OpenSession, layout: Layout, settings: RunSettings, **options: Any) -> RunSummary:
    """`run_streams` for one stream."""
    return run_streams([stream], spark, layout, settings, **options)[0]


def run_batch(stream: Stream, spark: OpenSession, layout: Layout) -> RunSummary:
    """The batch twin: read all that the source has, transform it, replace the table's rows in one commit.

    The caller holds the stream's lock, has declared the table, and says what becomes of its checkpoint (see `rebuild`).
    """
    started = time.monotonic()
    summary = RunSummary(stream.name, "batch", datetime.now(timezone.utc), table_facts(stream, layout))
    session = spark()
    stream.sink.overwrite(stream.transform(stream.source.read_batch(session, layout, stream.name)), layout)
    summary.after = table_facts(stream, layout)
    return replace(summary, seconds=time.monotonic() - started)


def rebuild_state(stream: Stream, spark: OpenSession, layout: Layout) -> None:
    """Fill the state of a stream's checkpoint from all that its source holds, writing nothing: its table is as it should be.

    In one micro-batch, because of several Spark would drop rows of the later ones that are behind the watermark of the first.
    """
    silent = replace(stream, sink=ConnectorSink("noop", output_mode=stream.sink.output_mode))
    _StreamRun(silent, layout, RunSettings(max_files_per_trigger=2**31 - 1), spark).drain()
