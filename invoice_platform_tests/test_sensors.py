"""The doorbells: when they ring, when they do not, and what they say. No Spark."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

from invoice_platform import sensors
from invoice_platform.definitions import defs
from invoice_platform.jobs import from_files
from invoice_platform.resources import Lakehouse, LandingZone
from invoice_platform.schedules import hourly_ingest
from invoice_platform.streaming.landing import LandingFolder
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.ledger import AcceptedFile
from invoice_platform.streaming.lock import hold_run
from invoice_platform.streaming.sources import Leg


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.instance_for_test() as made:
        yield made


class Bell:
    """One sensor over a root of the test's own."""

    def __init__(self, root: Path, instance: dg.DagsterInstance) -> None:
        self.layout = Layout.at(root)
        self.folder = self.layout.landing("invoices")
        self.folder.mkdir(parents=True)
        self.instance = instance

    def tick(self) -> dg.SensorResult:
        landing = LandingZone(lakehouse=Lakehouse(root=str(self.layout.root)))
        with dg.build_sensor_context(instance=self.instance, resources={"landing": landing}) as context:
            result = sensors.landed_invoices_sensor(context)
        assert isinstance(result, dg.SensorResult)
        return result

    def rings(self) -> bool:
        requests = self.tick().run_requests or []
        assert len(requests) <= 1
        assert all(request.run_key is None for request in requests), "a run key would refuse a second try for ever"
        return bool(requests)

    def says(self) -> str:
        result = self.tick()
        assert not result.run_requests
        assert result.skip_reason is not None
        return result.skip_reason.skip_message or ""

    def run(self, status: dg.DagsterRunStatus, job: str = "ingest_invoices") -> str:
        run = self.instance.create_run_for_job(_jobs[job], status=status)
        if status in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.SUCCESS):
            event = (
                dg.DagsterEventType.RUN_FAILURE
                if status == dg.DagsterRunStatus.FAILURE
                else dg.DagsterEventType.RUN_SUCCESS
            )
            self.instance.report_dagster_event(dg.DagsterEvent(event.value, job, message=""), run_id=run.run_id)
        return run.run_id


_jobs = {name: defs.resolve_job_def(name) for name in ("ingest_invoices", "stream_invoices", "maintain_tables")}


@pytest.fixture
def bell(tmp_path: Path, instance: dg.DagsterInstance) -> Bell:
    return Bell(tmp_path, instance)


def test_nothing_landed_rings_no_bell(bell: Bell) -> None:
    assert bell.says() == "nothing new"


def test_a_landed_file_rings_until_it_is_admitted(bell: Bell) -> None:
    (bell.folder / "a.json").write_text("{}")
    assert bell.rings()
    assert bell.rings(), "asked for, but no run came of it: asked for again"


def test_a_file_that_lands_within_a_tick_rings_in_that_tick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with dg.instance_for_test(overrides={"sensors": {"use_threads": True, "num_workers": 2}}) as instance:
        bell = Bell(tmp_path, instance)
        landing = threading.Timer(1.5, (bell.folder / "a.json").write_text, ("{}",))
        landing.start()
        assert bell.rings()
        landing.join()
        (bell.folder / "a.json").unlink()
        monkeypatch.setattr(sensors, "WATCH_SECONDS", 1.5)
        assert bell.says() == "nothing new", "a tick has an end"


def test_files_that_no_run_would_take_do_not_ring_and_are_named(bell: Bell) -> None:
    (bell.folder / "a.tmp").write_text("{}")
    (bell.folder / "empty.json").touch()
    assert "'a.tmp' (a temporary name" in bell.says()
    assert "'empty.json' (empty)" in bell.says()


def test_a_file_still_being_written_does_not_ring(bell: Bell) -> None:
    with (bell.folder / "a.json").open("w") as writer:
        writer.write("{")
        writer.flush()
        assert "1 files still being written" in bell.says()
    assert bell.rings()


@pytest.mark.parametrize("job", ["ingest_invoices", "stream_invoices", "maintain_tables"])
@pytest.mark.parametrize("status", [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTED])
def test_one_run_at_a_time_is_asked_for(bell: Bell, job: str, status: dg.DagsterRunStatus) -> None:
    run_id = bell.run(status, job)
    (bell.folder / "a.json").write_text("{}")
    assert f"run {run_id} of {job} is under way" in bell.says()


def test_after_a_failed_run_it_waits_a_little_and_asks_again(bell: Bell, monkeypatch: pytest.MonkeyPatch) -> None:
    (bell.folder / "a.json").write_text("{}")
    bell.run(dg.DagsterRunStatus.FAILURE)
    assert "the last run failed, the next in" in bell.says()
    monkeypatch.setattr(sensors, "BACKOFF_SECONDS", (0, 3600))
    assert bell.rings()
    bell.run(dg.DagsterRunStatus.FAILURE)
    assert "the last run failed, the next in" in bell.says(), "longer after each failure in a row"
    bell.run(dg.DagsterRunStatus.SUCCESS)
    assert bell.rings()


def test_files_that_a_failed_run_had_admitted_ring_too(bell: Bell) -> None:
    (bell.folder / "a.json").write_text("{}")
    LandingFolder(bell.layout, "invoices", "invoices").admit()
    assert list(bell.folder.iterdir()) == []
    assert bell.rings()


def test_a_table_that_a_failed_run_left_behind_rings_too(bell: Bell) -> None:
    log = bell.layout.table("invoices") / "_delta_log"
    log.mkdir(parents=True)
    (log / f"{0:020d}.json").touch()
    (log / f"{1:020d}.json").touch()
    for stream in from_files()[1:]:
        stream.source.drained(bell.layout, stream.name, Leg(segment=1, through={"invoices": 1}))
    assert bell.says() == "nothing new"
    (log / f"{2:020d}.json").touch()
    assert bell.rings()


def test_a_missing_landing_folder_is_said_with_the_remedy(bell: Bell) -> None:
    bell.folder.rmdir()
    assert "is missing: create it" in bell.says()


def test_a_run_whose_process_is_gone_is_reported_and_holds_up_nothing(bell: Bell) -> None:
    run_id = bell.run(dg.DagsterRunStatus.STARTED)
    (bell.folder / "a.json").write_text("{}")
    lock = hold_run(bell.layout, run_id)
    assert lock is not None
    assert "is under way" in bell.says(), "it lives"
    lock.release()  # as the system does when a process dies
    assert "the last run failed" in bell.says()
    run = bell.instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status == dg.DagsterRunStatus.FAILURE


def test_files_that_a_run_was_admitting_when_it_died_ring_too(bell: Bell) -> None:
    folder = LandingFolder(bell.layout, "invoices", "invoices")
    (bell.folder / "a.json").write_text("{}")
    segment = folder.ledger.open_segment(None)
    folder.ledger.begin([AcceptedFile("k", "k-a.json", "a.json", segment, 2, 1, 1)])
    (bell.folder / "a.json").unlink()
    assert bell.rings()


def test_the_hourly_catch_up_waits_for_a_run_that_goes(bell: Bell) -> None:
    lakehouse = Lakehouse(root=str(bell.layout.root))

    def tick() -> object:
        with dg.build_schedule_context(instance=bell.instance, resources={"lakehouse": lakehouse}) as context:
            return hourly_ingest(context)

    assert isinstance(tick(), dg.RunRequest)
    bell.run(dg.DagsterRunStatus.STARTED, "stream_invoices")
    assert isinstance(tick(), dg.SkipReason)


def test_sensors_and_schedule_are_on_and_tick_every_five_seconds() -> None:
    for name in ("landed_invoices_sensor", "kafka_invoices_sensor", "landed_text_sensor"):
        sensor = defs.resolve_sensor_def(name) if hasattr(defs, "resolve_sensor_def") else defs.get_sensor_def(name)
        assert sensor.minimum_interval_seconds == 4, "each look of Dagster's daemon, which are 5 s apart"
        assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
    schedules = {s.name: s.cron_schedule for s in defs.schedules or [] if isinstance(s, dg.ScheduleDefinition)}
    assert schedules == {
        "hourly_ingest": "0 * * * *",
        "nightly_audit": "30 2 * * *",
        "nightly_maintenance": "30 3 * * *",
        "hourly_trim": "45 * * * *",
    }
    for schedule in defs.schedules or []:
        assert isinstance(schedule, dg.ScheduleDefinition)
        assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING


def test_a_tick_opens_no_spark_and_loads_none() -> None:
    code = (
        "import sys, invoice_platform.definitions; "
        "print([m for m in ('pyspark', 'deltalake', 'pyarrow', 'pandas') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_a_tick_with_nothing_new_is_cheap(bell: Bell, record_property: Callable[[str, object], None]) -> None:
    """The figure is recorded, not judged: a timing never decides a test. What is judged is that no run is looked up."""
    bell.tick()
    started = time.perf_counter()
    for _ in range(20):
        bell.tick()
    record_property("milliseconds_a_tick", (time.perf_counter() - started) / 20 * 1000)
    bell.instance.get_runs = None  # type: ignore[method-assign, assignment]
    assert bell.says() == "nothing new"


def test_a_tick_opens_one_file_of_many_that_wait(
    bell: Bell, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    for n in range(10_000):
        (bell.folder / f"{n}.json").write_text("{}")
    (bell.folder / "a.tmp").touch()
    opened: list[object] = []
    monkeypatch.setattr(sensors, "being_written", lambda path: bool(opened.append(path)))
    started = time.perf_counter()
    assert bell.rings()
    record_property("milliseconds_a_tick", (time.perf_counter() - started) * 1000)
    assert len(opened) == 1
    run_id = bell.run(dg.DagsterRunStatus.STARTED)
    assert bell.says() == (
        f"10000 files in landing; run {run_id} of ingest_invoices is under way; left in landing: "
        "'a.tmp' (a temporary name: rename it when it is complete)"
    )
