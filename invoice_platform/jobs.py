"""What can be run: by hand, by schedule, by sensor. Every job runs in one process, so that it has one Spark session."""

import time
from collections.abc import Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from invoice_platform.assets.bronze import INVOICES_STREAM, KAFKA_INVOICES_STREAM
from invoice_platform.assets.factory import (
    STREAMS,
    StreamConfig,
    checkpoint_pool,
    downstream,
    fed_by,
    log_admission,
    log_batch,
    materialization,
    told,
    until_cancelled,
)
from invoice_platform.assets.word_count import WORD_COUNT_STREAM
from invoice_platform.audit import gold_audit
from invoice_platform.errors import PlatformError, StreamLocked, writing
from invoice_platform.history import RUN_DAYS, RUNS_OF_A_JOB, trim
from invoice_platform.resources import Lakehouse, SparkResource
from invoice_platform.streaming.kafka import KafkaConnection
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.lock import stream_lock
from invoice_platform.streaming.rebuild import rebuild
from invoice_platform.streaming.retention import (
    LOG_RETAIN_HOURS,
    NIGHT_HOURS,
    RETAIN_HOURS,
    behind,
    needed_from,
    trim_checkpoints,
    trim_log,
)
from invoice_platform.streaming.session import spark_errors
from invoice_platform.streaming.stream import REPORT_SECONDS, RunSummary, Stream, run_streams
from invoice_platform.streaming.tables import declare_existing, facts, tables_on_disk
from invoice_platform.streaming.trigger import UNSPECIFIED, Trigger

ONE_PROCESS = dg.in_process_executor


def from_files() -> list[Stream]:
    """What a landed file goes through where there is no Kafka."""
    return [stream for stream in downstream(INVOICES_STREAM) if "kafka" not in stream.services]


def from_kafka() -> list[Stream]:
    """What a record of the topic goes through."""
    return downstream(KAFKA_INVOICES_STREAM)


# Resolved when all assets are known, those of other modules too; an audit takes as long as the history is.
_AUDIT = dg.AssetSelection.checks(gold_audit)
_FROM_FILES = dg.AssetSelection.assets("invoices").downstream() - dg.AssetSelection.kind("kafka") - _AUDIT
_FROM_KAFKA = dg.AssetSelection.assets("kafka_invoices").downstream() - _AUDIT

ingest_invoices = dg.define_asset_job(
    "ingest_invoices",
    selection=_FROM_FILES,
    executor_def=ONE_PROCESS,
    description="Admits what has landed, streams it into invoices, then into everything fed by it, and checks the result.",
)

ingest_kafka_invoices = dg.define_asset_job(
    "ingest_kafka_invoices",
    selection=_FROM_KAFKA,
    executor_def=ONE_PROCESS,
    description="Streams what is new in the topic into kafka_invoices, then into everything fed by it, and checks the result.",
)

audit_tables = dg.define_asset_job(
    "audit_tables",
    selection=_AUDIT,
    executor_def=ONE_PROCESS,
    description="Holds the tables people ask for against plain SQL over everything that ever came.",
)

count_words = dg.define_asset_job(
    "count_words",
    selection=dg.AssetSelection.assets("word_count"),
    executor_def=ONE_PROCESS,
    description="Admits landed texts and brings word_count up to date.",
)


LAST_TRIGGER = "1 minute"


class ContinuousConfig(StreamConfig):
    """How stream_invoices runs: the settings of every stream, which streams, and how often it reports."""

    trigger: str = Field(
        default="1 second",
        description="An interval such as '30 seconds', or unspecified (no pause between micro-batches).",
    )
    last_trigger: str = Field(
        default=LAST_TRIGGER,
        description="The interval of streams that feed no other (quarantine, sums, rewards, notifications), which share the "
        "machine with those that rows wait for; `trigger`, when that is longer.",
    )
    report_seconds: float = Field(
        default=REPORT_SECONDS, description="Seconds between two materializations of a table, at least."
    )
    streams: list[str] = Field(
        default=[],
        description="Streams to run, by name; all that files and, where a server is set, Kafka feed when not given.",
    )

    def triggers(self, streams: Sequence[Stream]) -> dict[str, Trigger]:
        """Of the streams whose trigger is not `trigger`.

        One that is fed by another of them and feeds further ones follows as soon as there is something: an interval of its
        own would be waited for after the other's.
        """
        last = Trigger.parse(self.last_trigger)
        if not last.continuous:
            raise PlatformError(
                f"last_trigger={self.last_trigger!r} ends by itself: give an interval such as '1 minute'"
            )
        last = max(Trigger.parse(self.trigger), last, key=lambda trigger: trigger.seconds)
        tables = {stream.table.name for stream in streams if stream.table is not None}
        feeding = {name for stream in STREAMS.values() for name in fed_by(stream)}
        found: dict[str, Trigger] = {}
        for stream in streams:
            if stream.table is None or stream.table.name not in feeding:
                found[stream.name] = last
            elif tables & set(fed_by(stream)):
                found[stream.name] = Trigger(UNSPECIFIED)
        return found

    def chosen(self, layout: Layout) -> list[Stream]:
        """The streams to run, each after those that feed it.

        Raises
        ------
        PlatformError
            For a name that is none of theirs.
        """
        kafka = KafkaConnection.configured(layout)
        every = downstream(INVOICES_STREAM, KAFKA_INVOICES_STREAM) if kafka else from_files()
        if unknown := sorted(set(self.streams) - {s.name for s in every}):
            needs = "" if kafka else " (those that need Kafka are there when KAFKA_BOOTSTRAP_SERVERS is set)"
            raise PlatformError(
                f"streams: {', '.join(unknown)} cannot be run here: choose from {', '.join(s.name for s in every)}{needs}"
            )
        return [s for s in every if not self.streams or s.name in self.streams]


@dg.op(pool=checkpoint_pool("invoices"))
def stream_all_invoices(
    context: dg.OpExecutionContext, config: ContinuousConfig, spark: SparkResource, lakehouse: Lakehouse
) -> None:
    """Keeps the invoice streams running side by side, admitting files all the while, until cancelled."""
    by_name: dict[str, Stream] = {}

    def report(summary: RunSummary) -> None:
        log_admission(context.log, summary)
        if summary.batches or summary.rows_added:
            context.log_event(materialization(summary, by_name[summary.stream], lakehouse))

    try:
        settings = config.settings()
        streams = config.chosen(lakehouse.layout)
        by_name.update({stream.name: stream for stream in streams})
        if not settings.trigger.continuous:
            raise PlatformError(
                f"trigger={config.trigger!r} ends by itself: give stream_invoices an interval such as '1 second', "
                "or run ingest_invoices"
            )
        with until_cancelled(context) as told_to_stop:
            summaries = run_streams(
                streams,
                spark.session,
                lakehouse.layout,
                settings,
                run=f"run {context.run.run_id}",
                on_batch=log_batch(context.log),
                on_report=report,
                told_to_stop=told_to_stop,
                report_seconds=config.report_seconds,
                triggers=config.triggers(streams),
            )
    except PlatformError as error:
        raise told(error) from error
    for summary in summaries:
        report(summary)


@dg.job(
    executor_def=ONE_PROCESS,
    description="Runs the invoice streams continuously, until cancelled or for run_for_seconds.",
)
def stream_invoices() -> None:
    stream_all_invoices()


def _rebuild(
    context: dg.OpExecutionContext, streams: Sequence[Stream], spark: SparkResource, lakehouse: Lakehouse
) -> None:
    try:
        with until_cancelled(context):
            summaries = rebuild(streams, spark.session, lakehouse.layout, run=f"run {context.run.run_id}")
    except PlatformError as error:
        raise told(error) from error
    by_name = {stream.name: stream for stream in streams}
    for summary in summaries:
        context.log_event(materialization(summary, by_name[summary.stream], lakehouse))


@dg.op(pool=checkpoint_pool("invoices"))
def rebuild_all_invoices(context: dg.OpExecutionContext, spark: SparkResource, lakehouse: Lakehouse) -> None:
    """Makes the invoice tables anew from everything that was accepted."""
    _rebuild(context, downstream(INVOICES_STREAM), spark, lakehouse)


@dg.job(
    executor_def=ONE_PROCESS,
    description="The batch twin of the invoice streams: reads all that was accepted and overwrites their tables.",
)
def rebuild_invoices() -> None:
    rebuild_all_invoices()


@dg.op(pool=checkpoint_pool("word_count"))
def rebuild_all_words(context: dg.OpExecutionContext, spark: SparkResource, lakehouse: Lakehouse) -> None:
    """Counts the words of everything that was accepted."""
    _rebuild(context, [WORD_COUNT_STREAM], spark, lakehouse)


@dg.job(
    executor_def=ONE_PROCESS,
    description="The batch twin of word_count: counts all accepted texts and overwrites the table.",
)
def rebuild_word_count() -> None:
    rebuild_all_words()


WAIT_SECONDS = 300.0
"""How long maintenance waits, in all, for runs that hold a stream; sensors ask for none while it is under way."""


class MaintainConfig(dg.Config):
    """What is kept when tables are tidied."""

    retain_hours: int = Field(
        default=RETAIN_HOURS,
        description="Data files that no version of a table younger than this needs are deleted (VACUUM), and checkpoints that are "
        "left for good; 168 (a week) is Delta's least.",
    )


@dg.op
def maintain_all_tables(
    context: dg.OpExecutionContext, config: MaintainConfig, spark: SparkResource, lakehouse: Lakehouse
) -> None:
    """Joins small files (OPTIMIZE), deletes data files (VACUUM) and checkpoints that nobody needs, stream by stream."""
    try:
        if config.retain_hours < RETAIN_HOURS:
            raise PlatformError(
                f"retain_hours={config.retain_hours}: a stream or a reader may still need files that young; "
                f"give {RETAIN_HOURS} or more"
            )
        with until_cancelled(context):
            _maintain_each(context, config.retain_hours, spark, lakehouse.layout)
    except PlatformError as error:
        raise told(error) from error


def _maintain_each(context: dg.OpExecutionContext, retain_hours: int, spark: SparkResource, layout: Layout) -> None:
    until = time.monotonic() + WAIT_SECONDS
    session = spark.session()
    tables = declare_existing(session, layout)
    # A table has the name of its stream; a run that overwrites the table would collide.
    for name in dict.fromkeys([*tables, *STREAMS]):
        wait = max(until - time.monotonic(), 0)
        try:
            with stream_lock(layout, name, f"run {context.run.run_id}", wait_seconds=wait) as lock:
                lock.works_with(session)
                if name in tables:
                    _maintain(context, name, retain_hours, session, layout)
                if name in STREAMS and (gone := trim_checkpoints(STREAMS[name], layout, retain_hours)):
                    context.log.info(f"{name}: {gone} checkpoints deleted that were left for good")
        except StreamLocked as error:
            context.log.warning(f"{name} is left for the next time: {error}")


def _maintain(context: dg.OpExecutionContext, name: str, retain_hours: int, session: Any, layout: Layout) -> None:
    with spark_errors(f"{name} could not be maintained", layout):
        before = facts(layout.table(name))
        session.sql(f"OPTIMIZE `{name}`")
        # A night early, because the next time may be too late.
        if waiting := behind(name, STREAMS.values(), layout, retain_hours - NIGHT_HOURS):
            context.log.warning(
                f"{name}: no data file is deleted, because {', '.join(waiting)} has yet to read what came days ago: run its job"
            )
        else:
            session.sql(f"VACUUM `{name}` RETAIN {retain_hours} HOURS")
        after = facts(layout.table(name))
        if before and after:
            context.log.info(f"{name}: {before.files} files before, {after.files} after, {after.rows} rows")


@dg.job(
    executor_def=ONE_PROCESS,
    description="Joins small files and deletes what nobody needs any more: data files and checkpoints.",
)
def maintain_tables() -> None:
    maintain_all_tables()


class HistoryConfig(dg.Config):
    """How much of what was run and written is remembered."""

    run_days: int = Field(default=RUN_DAYS, description="Runs older than this are deleted, with all that they logged.")
    runs_of_a_job: int = Field(default=RUNS_OF_A_JOB, description="Of each job the newest so many are kept, at most.")
    log_retain_hours: int = Field(
        default=LOG_RETAIN_HOURS,
        description="Versions of a table older than this cannot be read any more: their commits are deleted, up to a checkpoint "
        "of the log and up to what a stream still needs.",
    )


@dg.op
def trim_all_history(context: dg.OpExecutionContext, config: HistoryConfig, lakehouse: Lakehouse) -> None:
    """Deletes old runs and their logs and old commits of tables, begins large logs of the platform anew; asks no Spark."""
    layout = lakehouse.layout
    try:
        if min(config.run_days, config.runs_of_a_job, config.log_retain_hours) < 1:
            raise PlatformError(
                f"run_days={config.run_days}, runs_of_a_job={config.runs_of_a_job}, log_retain_hours={config.log_retain_hours}: "
                "give numbers from 1 up"
            )
        with writing(layout.root):
            # Beside a run, too: a continuous one holds its streams for weeks.
            for name in tables_on_disk(layout):
                needed = needed_from(name, STREAMS.values(), layout)
                if gone := trim_log(layout.table(name), needed, config.log_retain_hours):
                    context.log.info(f"{name}: {gone} files of its log deleted")
            done = trim(
                context.instance,
                layout,
                run_days=config.run_days,
                runs_of_a_job=config.runs_of_a_job,
                say=context.log.warning,
            )
    except PlatformError as error:
        raise told(error) from error
    context.log.info(
        f"{done.runs} runs deleted, {done.kept} kept; {done.files} logs and locks deleted or begun anew; "
        f"{done.bytes / 1e6:.1f} MB less"
    )


@dg.job(
    executor_def=ONE_PROCESS,
    description="Deletes Dagster's old runs and their logs and old commits of tables, and begins large logs of the platform anew.",
)
def trim_history() -> None:
    trim_all_history()


JOBS = (
    ingest_invoices,
    ingest_kafka_invoices,
    count_words,
    stream_invoices,
    rebuild_invoices,
    rebuild_word_count,
    audit_tables,
    maintain_tables,
    trim_history,
)
