"""Doorbells: a sensor looks whether files or Kafka records wait and asks for at most one run. No Spark, no cursor, no run key.

A run key would refuse for ever the second run of a key whose first run failed; what waits is seen in the folders instead.
"""

import time
from collections.abc import Callable, Sequence

import dagster as dg

from invoice_platform.assets.word_count import WORD_COUNT_STREAM
from invoice_platform.errors import PlatformError
from invoice_platform.jobs import count_words, from_files, from_kafka, ingest_invoices, ingest_kafka_invoices
from invoice_platform.resources import Lakehouse, LandingZone
from invoice_platform.streaming.kafka import KafkaConnection
from invoice_platform.streaming.landing import being_written
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.lock import run_is_dead
from invoice_platform.streaming.stream import Stream

TICK_SECONDS = 5
"""Of Dagster's daemon, which looks through all sensors that often."""
MINIMUM_SECONDS = TICK_SECONDS - 1
"""What a sensor asks for: with the daemon's own interval, its look comes a moment too early every other time."""
LOOK_SECONDS = 1.0
"""Between two looks within a tick."""
WATCH_SECONDS: float = MINIMUM_SECONDS
"""Of a tick, so that it has ended when the next one comes."""
BACKOFF_SECONDS = (5, 10, 30, 60, 300)
"""How long to wait after one, two, … failed runs in a row."""
MAINTAINING = "maintain_tables"
"""Holds each table for a while, at which a run would fail."""
INGESTING = ("ingest_invoices", "stream_invoices")
"""Jobs that take files out of landing/invoices."""
UNDER_WAY = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def watch(context: dg.SensorEvaluationContext, look: Callable[[], dg.SensorResult]) -> dg.SensorResult:
    """Look again and again until it rings or the tick's time is over: a file need not wait for the next tick.

    Only where each sensor has a thread of Dagster's daemon (`sensors` in dagster.yaml); else the others would wait for this one.
    """
    own_thread = context.instance.get_settings("sensors").get("use_threads", False)
    end = time.monotonic() + (WATCH_SECONDS if own_thread else 0)
    while True:
        started = time.monotonic()
        result = look()
        now = time.monotonic()
        pause = max(LOOK_SECONDS, 10 * (now - started))  # however long a look takes, it keeps no core busy
        if result.run_requests or now + pause > end:
            return result
        time.sleep(pause)


def ring_for_files(
    context: dg.SensorEvaluationContext, landing: LandingZone, streams: Sequence[Stream], jobs: tuple[str, ...]
) -> dg.SensorResult:
    """Ask for a run of the first of `jobs` when there is work for `streams` and none of `jobs` is under way.

    Work are files in landing for the first stream, and whatever a run that failed has left undone: files admitted but not
    streamed, versions of a table not yet read by the next stream.
    """
    layout = landing.lakehouse.layout
    try:
        scan = landing.of(streams[0]).scan()
        behind = _behind(streams, layout)
    except PlatformError as error:
        return _skip(str(error))
    if not behind and landing.of(streams[0]).ledger.unfinished():
        behind = [streams[0].name]  # its run died while it admitted files
    left = f"; left in landing: {', '.join(f'{f.name!r} ({f.reason})' for f in scan.left[:5])}" if scan.left else ""
    if not behind and all(_busy(file.path) for file in scan.waiting):
        return _skip((f"{len(scan.waiting)} files still being written" if scan.waiting else "nothing new") + left)
    work = f"{len(scan.waiting)} files in landing"
    if behind:
        work += f", streams behind: {', '.join(behind)}"
    return ring(context, work, jobs, layout, left)


def ring_for_tables(
    context: dg.SensorEvaluationContext, streams: Sequence[Stream], jobs: tuple[str, ...], layout: Layout
) -> dg.SensorResult:
    """The same where only the streams' own sources can have something new."""
    try:
        behind = _behind(streams, layout)
    except PlatformError as error:
        return _skip(str(error))
    if not behind:
        return _skip("nothing new")
    return ring(context, f"streams behind: {', '.join(behind)}", jobs, layout)


def _behind(streams: Sequence[Stream], layout: Layout) -> list[str]:
    return [stream.name for stream in streams if stream.source.pending(layout, stream.name)]


def ring(
    context: dg.SensorEvaluationContext, work: str, jobs: tuple[str, ...], layout: Layout, left: str = ""
) -> dg.SensorResult:
    """Ask for a run of the first of `jobs`, unless one of them is under way or the last ones have just failed."""
    if run := under_way(context.instance, jobs, layout):
        return _skip(f"{work}; run {run.run_id} of {run.job_name} is under way{left}")
    if (wait := _backoff(context.instance, jobs[0])) > 0:
        return _skip(f"{work}; the last run failed, the next in {wait:.0f} s{left}")
    context.log.info(work + left)
    return dg.SensorResult(run_requests=[dg.RunRequest()])


def under_way(instance: dg.DagsterInstance, jobs: Sequence[str], layout: Layout) -> dg.DagsterRun | None:
    """A run of one of `jobs`, or of maintenance, that is queued or going; one whose process is gone is reported as failed.

    Dagster itself notices a dead process only while the code server that started it lives.
    """
    for job in (*jobs, MAINTAINING):
        for run in instance.get_runs(dg.RunsFilter(job_name=job, statuses=UNDER_WAY), limit=10):
            if not run_is_dead(layout, run.run_id):
                return run
            instance.report_run_failed(run, "The run's process is gone; what it had committed stays.")
    return None


def _busy(path: object) -> bool:
    try:
        return being_written(path)  # type: ignore[arg-type]
    except OSError:
        return False  # gone or unreadable: the run says so


def _skip(reason: str) -> dg.SensorResult:
    return dg.SensorResult(skip_reason=dg.SkipReason(reason))


def _backoff(instance: dg.DagsterInstance, job: str) -> float:
    """Seconds to wait still, when the last runs of a job failed one after the other."""
    records = instance.get_run_records(dg.RunsFilter(job_name=job), limit=len(BACKOFF_SECONDS))
    failed = 0
    for record in records:
        if record.dagster_run.status != dg.DagsterRunStatus.FAILURE:
            break
        failed += 1
    if not failed:
        return 0.0
    return (records[0].end_time or 0.0) + BACKOFF_SECONDS[failed - 1] - time.time()


@dg.sensor(job=ingest_invoices, minimum_interval_seconds=MINIMUM_SECONDS, default_status=dg.DefaultSensorStatus.RUNNING)
def landed_invoices_sensor(context: dg.SensorEvaluationContext, landing: LandingZone) -> dg.SensorResult:
    """Rings for ingest_invoices when files wait in landing/invoices; a continuous run admits files itself."""
    return watch(context, lambda: ring_for_files(context, landing, from_files(), INGESTING))


@dg.sensor(
    job=ingest_kafka_invoices, minimum_interval_seconds=MINIMUM_SECONDS, default_status=dg.DefaultSensorStatus.RUNNING
)
def kafka_invoices_sensor(context: dg.SensorEvaluationContext, lakehouse: Lakehouse) -> dg.SensorResult:
    """Rings for ingest_kafka_invoices when the topic's end offsets are beyond the checkpoint's; asks Kafka, not Spark."""
    layout = lakehouse.layout
    if not KafkaConnection.configured(layout):
        return _skip("no Kafka: set KAFKA_BOOTSTRAP_SERVERS, or start one with `invoice-platform kafka`")
    return ring_for_tables(context, from_kafka(), ("ingest_kafka_invoices", "stream_invoices"), layout)


@dg.sensor(job=count_words, minimum_interval_seconds=MINIMUM_SECONDS, default_status=dg.DefaultSensorStatus.RUNNING)
def landed_text_sensor(context: dg.SensorEvaluationContext, landing: LandingZone) -> dg.SensorResult:
    """Rings for count_words when files wait in landing/text."""
    return watch(context, lambda: ring_for_files(context, landing, [WORD_COUNT_STREAM], ("count_words",)))


SENSORS = (landed_invoices_sensor, kafka_invoices_sensor, landed_text_sensor)
