"""From a stream's declaration to its Dagster asset."""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from graphlib import TopologicalSorter
from types import FrameType
from typing import Any

import dagster as dg
from pydantic import Field

from invoice_platform.errors import PlatformError
from invoice_platform.metadata import data_version, run_metadata, table_schema
from invoice_platform.resources import Lakehouse, SparkResource
from invoice_platform.streaming.settings import MAX_FILES_PER_TRIGGER, MAX_OFFSETS_PER_TRIGGER, RunSettings
from invoice_platform.streaming.sources import DeltaTable
from invoice_platform.streaming.stream import MicroBatch, RunSummary, Stream, run_stream
from invoice_platform.streaming.trigger import AVAILABLE_NOW, Trigger

LOOK_SECONDS = 2.0
PATIENCE_SECONDS = 5.0
"""How long a run that is told to end has to come to where it looks; then it is interrupted wherever it is."""
PRIORITIES = {"bronze": 2, "silver": 1}
"""Of the groups within a run; the others come after them."""


class StreamConfig(dg.Config):
    """How a stream is run: the same settings on every stream; each source takes those that it knows."""

    trigger: str = Field(
        default=AVAILABLE_NOW,
        description="available_now (all that is new, then stop), an interval such as '30 seconds', or unspecified.",
    )
    max_files_per_trigger: int = Field(default=MAX_FILES_PER_TRIGGER, description="Files a micro-batch, at most.")
    run_for_seconds: float | None = Field(
        default=None,
        description="When a continuous run (an interval, or unspecified) ends; until cancelled when not given.",
    )
    max_bytes_per_trigger: int | None = Field(
        default=None, description="Bytes of files a micro-batch, in place of a number of files."
    )
    max_offsets_per_trigger: int = Field(
        default=MAX_OFFSETS_PER_TRIGGER, description="Kafka records a micro-batch, at most."
    )
    fail_on_data_loss: bool = Field(
        default=True,
        description="Fail when Kafka no longer has records that were not read; when false, go on and count them.",
    )

    def settings(self) -> RunSettings:
        """Checked settings; PlatformError names the one that is wrong."""
        return RunSettings(
            trigger=Trigger.parse(self.trigger),
            max_files_per_trigger=self.max_files_per_trigger,
            run_for_seconds=self.run_for_seconds,
            max_bytes_per_trigger=self.max_bytes_per_trigger,
            max_offsets_per_trigger=self.max_offsets_per_trigger,
            fail_on_data_loss=self.fail_on_data_loss,
        )


def checkpoint_pool(stream: str) -> str:
    """The concurrency pool of a stream's checkpoint: one run at a time."""
    return f"checkpoint_{stream}"


def told(error: PlatformError) -> dg.Failure:
    """A platform error as Dagster shows it best: its one line, not tried again in the same run."""
    return dg.Failure(description=str(error), allow_retries=False)


def log_batch(log: Any) -> Any:
    """A callback that writes one line a micro-batch to the run's log."""

    def write(stream: str, batch: MicroBatch) -> None:
        seconds = batch.milliseconds.get("triggerExecution", 0) / 1000
        log.info(
            f"{stream}: micro-batch {batch.number} of segment {batch.segment}: {batch.rows} rows in {seconds:.2f} s"
        )

    return write


class RunCancelled(dg.DagsterExecutionInterruptedError, KeyboardInterrupt):
    """Dagster's interrupt, and Python's: at that one only py4j leaves the answer it waited for to nobody.

    With Dagster's alone, the next call to an embedded Spark would take that answer for its own, and so on with each.
    """


@contextmanager
def until_cancelled(context: Any) -> Iterator[Callable[[], bool]]:
    """A block with a `told_to_stop` that ends a run that is cancelled or told to end; where nobody asks it, an interrupt does.

    Not at once: an exception that a signal's handler raises within one of gRPC's calls can leave a lock held for ever, or
    memory that is written to and no longer there. And Python drops one that comes within a weak reference's callback.
    """
    came: list[int] = []
    looked = time.monotonic()

    def handler(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if not came:
            signal.setitimer(signal.ITIMER_REAL, PATIENCE_SECONDS)
        came.append(number)
        if number == signal.SIGALRM:
            raise RunCancelled  # Dagster's own handler raises the first of its two kinds

    def look() -> bool:
        nonlocal looked
        if came:
            signal.setitimer(signal.ITIMER_REAL, 0)  # what is ended now may take its time
            raise RunCancelled
        if time.monotonic() - looked >= LOOK_SECONDS:
            looked = time.monotonic()
            run = context.instance.get_run_by_id(context.run.run_id)
            if run is not None and run.status == dg.DagsterRunStatus.CANCELING:
                raise RunCancelled
        return False

    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    handled = handled if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, handler) for number in handled}
    try:
        yield look
    finally:
        if before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, old in before.items():
            signal.signal(number, old)
    if came:  # after the last look
        raise RunCancelled


def log_admission(log: Any, summary: RunSummary) -> None:
    """Say what was admitted, and what was not and why."""
    admission = summary.admission
    if admission is None or not (admission.admitted or admission.repeated or admission.left):
        return
    log.info(
        f"{summary.stream}: {admission.files} files admitted ({admission.records} records, {admission.bytes} bytes), "
        f"{len(admission.repeated)} delivered before, {len(admission.left)} left in landing"
    )
    for file in admission.left:
        log.warning(f"{summary.stream}: {file.name!r} stays in landing: {file.reason}")


STREAMS: dict[str, Stream] = {}
"""Every stream that an asset was made of, by name."""


def fed_by(stream: Stream) -> tuple[str, ...]:
    """Names of the tables that a stream reads."""
    return stream.source.names if isinstance(stream.source, DeltaTable) else ()


def downstream(*first: Stream) -> list[Stream]:
    """Streams and all that they feed, directly or through others, each after those that feed it."""
    chain = {stream.name: stream for stream in first}
    waiting = list(first)
    while waiting:
        feeder = waiting.pop()
        fed = [s for s in STREAMS.values() if feeder.table is not None and feeder.table.name in fed_by(s)]
        waiting += [s for s in fed if s.name not in chain]
        chain |= {s.name: s for s in fed}
    keeper = {s.table.name: s.name for s in chain.values() if s.table is not None}
    feeders = {s.name: [keeper[table] for table in fed_by(s) if table in keeper] for s in chain.values()}
    return [chain[name] for name in TopologicalSorter(feeders).static_order()]


def stream_asset(stream: Stream, *, group: str, deps: Iterable[str] = ()) -> dg.AssetsDefinition:
    """The asset of a stream: its table or what it sends elsewhere, materialized by one run of the stream.

    Parameters
    ----------
    group : str
        Group in the asset graph.
    deps : iterable of str
        Further assets it depends on; the tables that a Delta source reads are so by themselves.
    """
    STREAMS[stream.name] = stream
    table = stream.table

    @dg.asset(
        name=stream.name,
        description=table.comment if table else type(stream.sink).__doc__,
        group_name=group,
        deps=[*fed_by(stream), *deps],
        kinds=set(["spark", *sorted(stream.services), *(["delta"] if table else [])][:3]),  # Dagster shows three
        pool=checkpoint_pool(stream.name),
        # Within a run, what others wait for comes first.
        op_tags={"dagster/priority": str(PRIORITIES.get(group, 0))},
        metadata={"dagster/table_name": table.name, "dagster/column_schema": table_schema(table)} if table else None,
    )
    def materialize(
        context: dg.AssetExecutionContext, config: StreamConfig, spark: SparkResource, lakehouse: Lakehouse
    ) -> dg.MaterializeResult:
        layout = lakehouse.layout
        try:
            with until_cancelled(context) as told_to_stop:
                summary = run_stream(
                    stream,
                    spark.session,
                    layout,
                    config.settings(),
                    run=f"run {context.run.run_id}",
                    on_batch=log_batch(context.log),
                    told_to_stop=told_to_stop,
                    on_report=lambda done: context.log_event(materialization(done, stream, lakehouse)),
                )
        except PlatformError as error:
            raise told(error) from error
        log_admission(context.log, summary)
        return dg.MaterializeResult(
            metadata=run_metadata(summary, table, layout),
            data_version=data_version(summary),
        )

    return materialize


def materialization(summary: RunSummary, stream: Stream, lakehouse: Lakehouse) -> dg.AssetMaterialization:
    """What a run reports of a table that it has not finished with, or that is not its own asset."""
    version = data_version(summary)
    return dg.AssetMaterialization(
        asset_key=stream.name,
        metadata=run_metadata(summary, stream.table, lakehouse.layout),
        tags={"dagster/data_version": version.value} if version else None,
    )
