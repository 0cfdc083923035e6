"""What grows with every tick, run and commit is deleted after a while, and nothing that anybody still needs. No Spark."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pytest
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import TickData, TickStatus
from deltalake import DeltaTable, write_deltalake

from invoice_platform import history
from invoice_platform.assets.bronze import INVOICES_STREAM
from invoice_platform.assets.silver import LINE_ITEMS_STREAM, QUARANTINE_STREAM
from invoice_platform.history import trim
from invoice_platform.orchestrate import instance as open_instance
from invoice_platform.streaming import tables
from invoice_platform.streaming.landing import LandingFolder
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.repair import plan
from invoice_platform.streaming.retention import behind, needed_from, trim_checkpoints, trim_log
from invoice_platform.streaming.sources import LandedFiles
from invoice_platform.streaming.state import write_state
from invoice_platform.streaming.tables import checkpoint_log, checkpoints_of, commit_path, damage, facts, latest_version

DAY = 86_400
RUNS = 40
TICKS = 6_000


@dg.asset(check_specs=[dg.AssetCheckSpec("whole", asset="often")])
def often() -> Iterator[Any]:
    yield dg.MaterializeResult(metadata={"rows": 1}, check_results=[dg.AssetCheckResult(passed=True)])


@dg.asset
def seldom() -> None: ...


small = dg.Definitions(
    assets=[often, seldom],
    jobs=[dg.define_asset_job("each_minute", selection=["often"]), dg.define_asset_job("once", selection=["seldom"])],
    executor=dg.in_process_executor,
)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.at(tmp_path)


@pytest.fixture
def instance(layout: Layout) -> Iterator[dg.DagsterInstance]:
    """As a root has it: on disk, with the platform's settings."""
    with open_instance(layout) as made:
        yield made


def run(instance: dg.DagsterInstance, job: str) -> str:
    result = small.resolve_job_def(job).execute_in_process(instance=instance)
    assert result.success
    return result.run_id


def databases(layout: Layout) -> dict[str, Path]:
    home = layout.dagster_home
    return {
        "runs": home / "history" / "runs.db",
        "index": home / "history" / "runs" / "index.db",
        "ticks": home / "schedules" / "schedules.db",
    }


def rows(database: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


def again(database: Path, table: str, old: str, new: str, at: float | None = None) -> None:
    """The rows of a run once more, as those of another."""
    with closing(sqlite3.connect(database)) as connection, connection:
        found = connection.execute(f"SELECT * FROM {table} WHERE run_id = ?", (old,))
        names = [d[0] for d in found.description]
        for row in found.fetchall():
            values = {n: v.replace(old, new) if isinstance(v, str) else v for n, v in zip(names, row, strict=True)}
            del values["id"]
            if at is not None:
                values["create_timestamp"] = stamp(at)
            marks = ", ".join("?" * len(values))
            connection.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", list(values.values()))


def stamp(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S.000000", time.gmtime(at))


def age(layout: Layout, run_id: str, at: float) -> None:
    with closing(sqlite3.connect(databases(layout)["runs"])) as connection, connection:
        connection.execute("UPDATE runs SET create_timestamp = ? WHERE run_id = ?", (stamp(at), run_id))


def repeat_run(instance: dg.DagsterInstance, layout: Layout, run_id: str, at: float) -> str:
    """A run as it was, all that Dagster keeps of it, at another time."""
    new, found = str(uuid.uuid4()), databases(layout)
    again(found["runs"], "runs", run_id, new, at)
    again(found["runs"], "run_tags", run_id, new)
    for table in ("event_logs", "asset_check_executions"):
        again(found["index"], table, run_id, new)
    shards = found["index"].parent
    shutil.copyfile(shards / f"{run_id}.db", shards / f"{new}.db")
    with closing(sqlite3.connect(shards / f"{new}.db")) as connection, connection:
        connection.execute("UPDATE event_logs SET run_id = ?, event = replace(event, ?, ?)", (new, run_id, new))
    shutil.copytree(Path(instance.storage_directory()) / run_id, Path(instance.storage_directory()) / new)
    return new


def set_back(file: Path, days: int) -> None:
    at = time.time() - days * DAY
    os.utime(file, (at, at))


def size(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


@pytest.mark.slow
def test_a_week_of_runs_is_bounded_and_what_is_relied_on_stays(instance: dg.DagsterInstance, layout: Layout) -> None:
    now = time.time()
    seldom_run = run(instance, "once")
    age(layout, seldom_run, now - 30 * DAY)
    first = run(instance, "each_minute")
    age(layout, first, now - 14 * DAY)
    going = instance.create_run_for_job(small.resolve_job_def("each_minute"), status=dg.DagsterRunStatus.STARTED).run_id
    age(layout, going, now - 14 * DAY)
    # The first half is older than a week.
    times = [now - 14 * DAY + (n + 1) * 14 * DAY / (RUNS + 1) for n in range(RUNS)]
    repeated = [repeat_run(instance, layout, first, at) for at in times]
    last = run(instance, "each_minute")
    full, of_a_run = size(layout.dagster_home), size(layout.dagster_home / "history" / "runs") / (RUNS + 3)
    said = {
        key: event.run_id
        for key in instance.all_asset_keys()
        if (event := instance.get_latest_materialization_event(key))
    }

    done = trim(instance, layout, now=now)

    young = {run_id for run_id, at in zip(repeated, times, strict=True) if at > now - 7 * DAY}
    kept = {r.run_id for r in instance.get_runs()}
    assert kept == young | {seldom_run, going, last}
    assert (done.runs, done.kept) == (RUNS + 4 - len(kept), len(kept))
    assert done.bytes >= done.runs * of_a_run / 2
    assert size(layout.dagster_home) <= full - done.bytes + 1_000_000
    # What Dagster shows of each asset and check, and the logs of what stays.
    now_said = {key: instance.get_latest_materialization_event(key) for key in instance.all_asset_keys()}
    assert {key: event.run_id for key, event in now_said.items() if event} == said
    assert said == {dg.AssetKey("often"): last, dg.AssetKey("seldom"): seldom_run}
    check = dg.AssetCheckKey(dg.AssetKey("often"), "whole")
    latest = instance.event_log_storage.get_latest_asset_check_execution_by_key([check])[check]
    assert (latest.run_id, latest.status.value) == (last, "SUCCEEDED")
    assert all(instance.all_logs(run_id) for run_id in kept - {going})
    # And nothing of what does not, in files or rows.
    shards = {f.stem for f in databases(layout)["index"].parent.glob("*.db")} - {"index"}
    assert shards <= kept
    assert {f.name for f in Path(instance.storage_directory()).iterdir()} <= kept
    for database, table in (("runs", "run_tags"), ("index", "event_logs"), ("index", "asset_check_executions")):
        found = {run_id for (run_id,) in rows(databases(layout)[database], f"SELECT run_id FROM {table}")}
        assert found <= kept, table

    assert trim(instance, layout, now=now).runs == 0, "once is enough"
    trim(instance, layout, now=now + 400 * DAY)
    left = [r.run_id for r in instance.get_runs()]
    assert {seldom_run, going, last} <= set(left)
    assert len(left) == history.NEWEST_OF_A_JOB + 2, "the newest of each job, the last of each asset, and what goes"


def test_of_a_job_that_runs_often_the_newest_stay(instance: dg.DagsterInstance, layout: Layout) -> None:
    now = time.time()
    first = run(instance, "each_minute")
    repeated = [repeat_run(instance, layout, first, now - 60 + n) for n in range(20)]
    assert trim(instance, layout, runs_of_a_job=15).runs == 6 - 1, "the first holds the asset's latest materialization"
    assert {r.run_id for r in instance.get_runs()} == {first, *repeated[-15:]}


def test_what_an_interruption_left_of_a_run_is_deleted_the_next_time(
    instance: dg.DagsterInstance, layout: Layout
) -> None:
    run_id = run(instance, "each_minute")
    run(instance, "each_minute")
    shard = databases(layout)["index"].parent / f"{run_id}.db"
    instance.run_storage.delete_run(run_id)  # the first thing that Dagster does
    assert trim(instance, layout).runs == 0, "it may be a run that is just being made"
    assert shard.exists()
    assert trim(instance, layout, now=time.time() + 2 * DAY).runs == 1
    assert not shard.exists()
    events = rows(databases(layout)["index"], "SELECT DISTINCT run_id FROM event_logs")
    assert (run_id,) not in events


def test_a_week_of_ticks_is_bounded_by_the_settings_that_come_with_the_platform(
    instance: dg.DagsterInstance, layout: Layout
) -> None:
    """As the daemon does after each tick of a sensor (`SensorLaunchContext.__exit__`)."""
    now = time.time()
    kinds = [TickStatus.SUCCESS, TickStatus.FAILURE, TickStatus.STARTED, TickStatus.SKIPPED]
    instance.create_tick(TickData("origin", "bell", InstigatorType.SENSOR, TickStatus.SKIPPED, now, selector_id="bell"))
    with closing(sqlite3.connect(databases(layout)["ticks"])) as connection, connection:
        found = connection.execute("SELECT * FROM job_ticks")
        tick = dict(zip([d[0] for d in found.description], found.fetchone(), strict=True))
        del tick["id"]
        names, marks = ", ".join(tick), ", ".join("?" * len(tick))
        for n in range(TICKS):
            values = tick | {
                "status": kinds[min(n % 100, 3)].value,
                "timestamp": stamp(now - (n + 1) * 10 * DAY / TICKS),
            }
            connection.execute(f"INSERT INTO job_ticks ({names}) VALUES ({marks})", list(values.values()))
    settings = instance.get_tick_retention_settings(InstigatorType.SENSOR)
    assert settings == dict(zip(kinds, (7, 2, 7, 1), strict=True))
    for status, days in settings.items():
        instance.purge_ticks("origin", "bell", now - days * DAY, [status])
    left = dict(rows(databases(layout)["ticks"], "SELECT status, count(*) FROM job_ticks GROUP BY status"))
    assert set(left) == {status.value for status in kinds}
    assert left["SKIPPED"] <= TICKS / 10
    assert sum(left.values()) <= TICKS / 10 + 3 * TICKS / 100


def test_what_sensors_logged_goes_with_the_runs_and_what_others_keep_there_stays(
    instance: dg.DagsterInstance, layout: Layout
) -> None:
    storage = Path(instance.storage_directory())
    files = {name: storage / name for name in ("__repository__/bell/1.err", "__repository__/bell/2.err", "an_asset")}
    for file in files.values():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    for name in ("__repository__/bell/1.err", "an_asset"):
        set_back(files[name], 8)
    assert trim(instance, layout).files == 1
    assert [name for name, file in files.items() if file.exists()] == ["__repository__/bell/2.err", "an_asset"]


def test_locks_of_runs_whose_processes_died_are_removed(instance: dg.DagsterInstance, layout: Layout) -> None:
    run_id = str(uuid.uuid4())
    lock = layout.run_lock(run_id)
    lock.parent.mkdir()
    lock.touch()
    assert trim(instance, layout).files == 0, "one that has just begun is not known to Dagster yet"
    set_back(lock, 2)
    assert trim(instance, layout).files == 1
    assert not lock.exists()


def test_a_large_log_is_begun_anew_under_its_writer(
    instance: dg.DagsterInstance, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "LOG_BYTES", 10)
    layout.logs.mkdir()
    layout.spark_log.write_text("log4j does it itself")
    log = layout.logs / "dagster.log"
    with log.open("ab", buffering=0) as writer:
        for n in range(6):
            writer.write(b"part %d of the log\n" % n)
            assert trim(instance, layout).files == 1
        writer.write(b"on\n")
        assert trim(instance, layout).files == 0, "it is small"
    assert {f.name: f.read_text() for f in layout.logs.iterdir() if f != layout.spark_log} == {
        "dagster.log": "on\n",
        "dagster.log.1": "part 5 of the log\n",
        "dagster.log.2": "part 4 of the log\n",
        "dagster.log.3": "part 3 of the log\n",
    }


def test_a_database_gives_back_what_deleted_rows_have_left(
    instance: dg.DagsterInstance, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "COMPACT_BYTES", 0)
    index = databases(layout)["index"]
    with closing(sqlite3.connect(index)) as connection, connection:
        connection.execute("INSERT INTO event_logs (run_id, event) VALUES ('x', zeroblob(4000000))")
    with closing(sqlite3.connect(index)) as connection, connection:
        connection.execute("DELETE FROM event_logs WHERE run_id = 'x'")
    said: list[str] = []
    with closing(sqlite3.connect(index)) as other:
        other.execute("BEGIN")
        other.execute("SELECT * FROM event_logs").fetchall()
        with closing(sqlite3.connect(index)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            monkeypatch.setattr(
                history.sqlite3, "connect", lambda *a, real=sqlite3.connect, **k: real(*a, **k | {"timeout": 0})
            )
            history._compact(index, said.append)
    assert said == [f"{index} is left for the next time: database is locked"]
    trim(instance, layout)
    assert index.stat().st_size < 1_000_000
    assert run(instance, "once"), "and goes on"


# --- tables and checkpoints -------------------------------------------------------------------------------------------


def a_table(layout: Layout, name: str, commits: int, *, checkpoints: tuple[int, ...], old: bool = True) -> Path:
    """A Delta table of so many commits of a row each, by delta-rs, its log as old as a month."""
    path = layout.table(name)
    for n in range(commits):
        write_deltalake(str(path), pa.table({"n": [n]}), mode="append")
        if n in checkpoints:
            DeltaTable(str(path)).create_checkpoint()
    if old:
        for file in (path / "_delta_log").iterdir():
            set_back(file, 30)
    return path


def commits(path: Path) -> list[int]:
    return sorted(int(f.stem) for f in (path / "_delta_log").glob("*.json"))


def test_a_log_is_cut_at_an_old_checkpoint_and_the_table_is_the_same(layout: Layout) -> None:
    path = a_table(layout, "invoices", 12, checkpoints=(3, 6, 9))
    (path / "_delta_log" / f".{2:020d}.json.crc").touch()
    assert trim_log(path, 12) > 0
    assert commits(path) == [*range(6, 12)], "from the last checkpoint but one"
    assert not list((path / "_delta_log").glob(f"*{2:020d}*"))
    found = facts(path)
    assert found is not None
    assert (found.version, found.rows) == (11, 12)
    assert DeltaTable(str(path)).to_pyarrow_table().num_rows == 12
    assert facts(path, 6) is not None
    assert trim_log(path, 12) == 0


def test_a_checkpoint_is_made_of_a_log_that_got_long(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "CHECKPOINT_COMMITS", 4)
    path = a_table(layout, "invoices", 4, checkpoints=(), old=False)
    checkpoint_log(path)
    assert checkpoints_of(path) == {}, "version 3"
    a_table(layout, "invoices", 2, checkpoints=(), old=False)
    checkpoint_log(path)
    checkpoint_log(path)
    assert list(checkpoints_of(path)) == [5]
    found = facts(path)
    assert found is not None
    assert found.rows == 6


def test_a_log_of_which_no_checkpoint_can_be_made_stays_as_it_is(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tables, "CHECKPOINT_COMMITS", 1)
    path = a_table(layout, "invoices", 3, checkpoints=(), old=False)
    commit_path(path, 1).write_text("{")
    checkpoint_log(path)
    assert "table invoices: no checkpoint of its log: " in caplog.text
    assert checkpoints_of(path) == {}


def test_checksums_before_the_last_checkpoint_but_one_go_at_any_age(layout: Layout) -> None:
    path = a_table(layout, "invoices", 12, checkpoints=(3, 6, 9), old=False)
    log = path / "_delta_log"
    for version in range(12):
        (log / f"{version:020d}.crc").touch()
        (log / f".{version:020d}.json.crc").touch()  # of a root that an older release made
    assert trim_log(path, 0) == 12
    assert commits(path) == [*range(12)]
    assert sorted(int(file.stem) for file in log.glob("[0-9]*.crc")) == [*range(6, 12)]
    assert len(list(log.glob(".*.json.crc"))) == 6
    assert trim_log(path, 0) == 0


@pytest.mark.parametrize(
    ("checkpoints", "old", "needed", "why"),
    [
        ((), True, 12, "without a checkpoint every commit is needed"),
        ((6,), True, 12, "a damaged checkpoint can be done without only with what comes before it"),
        ((3, 6, 9), False, 12, "versions that young are still read"),
        ((3, 6, 9), True, 2, "a stream still needs them"),
    ],
)
def test_a_log_stays_whole(layout: Layout, checkpoints: tuple[int, ...], old: bool, needed: int, why: str) -> None:
    path = a_table(layout, "invoices", 12, checkpoints=checkpoints, old=old)
    trim_log(path, needed)
    assert commits(path) == [*range(12)], why


def test_a_damaged_checkpoint_of_a_log_that_was_cut_is_repaired_from_the_one_before(layout: Layout) -> None:
    path = a_table(layout, "invoices", 12, checkpoints=(3, 6, 9))
    trim_log(path, 12)
    (path / "_delta_log" / f"{9:020d}.checkpoint.parquet").write_bytes(b"PAR1, cut")
    assert [d.file.name for d in damage(path)] == [f"{9:020d}.checkpoint.parquet"]
    made = plan(INVOICES_STREAM, [INVOICES_STREAM], layout)
    assert made is not None
    assert made.proof == [
        "all 5 commits since its summary of version 6 are in the log: they say the same as its summary"
    ]
    for step in made.steps:
        for name in step.facts["paths"]:
            (layout.root / name).unlink()
    assert damage(path) == []
    found = facts(path)
    assert found is not None
    assert found.rows == 12
    commit_path(path, 8).unlink()
    assert trim_log(path, 12) == 0, "nothing more of what is in need of a repair"


def plan_batches(layout: Layout, stream: str, *versions: int, committed: int) -> None:
    """A checkpoint as Spark writes it, of micro-batches that end before these versions of `invoices`."""
    checkpoint = layout.checkpoint(stream, 1)
    for folder in ("offsets", "commits"):
        (checkpoint / folder).mkdir(parents=True)
    for n, version in enumerate(versions):
        offset = f'{{"sourceVersion":1,"reservoirVersion":{version},"index":-1,"isStartingVersion":false}}'
        (checkpoint / "offsets" / str(n)).write_text(f'v1\n{{"batchTimestampMs":1}}\n{offset}\n-')
        if n < committed:
            (checkpoint / "commits" / str(n)).write_text("v1\n{}")


def test_what_a_stream_needs_stays_and_one_that_is_days_behind_is_named(layout: Layout) -> None:
    path = a_table(layout, "invoices", 12, checkpoints=(3, 6, 9))
    readers = (LINE_ITEMS_STREAM, QUARANTINE_STREAM)
    assert needed_from("invoices", readers, layout) == 11, "one that has yet to begin reads the table as it stands"
    assert behind("invoices", readers, layout, 24) == []

    plan_batches(layout, "invoice_line_items", 4, 8, 12, committed=3)
    assert needed_from("invoices", readers, layout) == 8, "Spark plans its last micro-batch again"
    assert behind("invoices", readers, layout, 24) == []

    plan_batches(layout, "quarantined_invoices", 2, 5, committed=1)
    assert needed_from("invoices", readers, layout) == 2
    assert behind("invoices", readers, layout, 24) == ["quarantined_invoices"]
    for commit in (path / "_delta_log").iterdir():
        os.utime(commit)
    assert behind("invoices", readers, layout, 24) == [], "it came just now"

    (layout.checkpoint("quarantined_invoices", 1) / "offsets" / "0").write_text("")
    assert needed_from("invoices", readers, layout) == 0, "where a checkpoint does not tell, all is needed"


def test_a_stream_that_a_rebuild_let_begin_at_a_version_needs_that_version(layout: Layout) -> None:
    a_table(layout, "invoices", 12, checkpoints=(3, 6, 9))
    state = {"segment": 2, "starting_versions": {"invoices": 5}, "drained_versions": {"invoices": 5}}
    write_state(layout.source_state("invoice_line_items"), state)
    assert needed_from("invoices", [LINE_ITEMS_STREAM], layout) == 5
    assert behind("invoices", [LINE_ITEMS_STREAM], layout, 24) == ["invoice_line_items"]
    drained = {"invoices": latest_version(layout.table("invoices"))}
    write_state(layout.source_state("invoice_line_items"), state | {"drained_versions": drained})
    assert behind("invoices", [LINE_ITEMS_STREAM], layout, 24) == []


def test_checkpoints_of_segments_that_are_worked_through_go_and_all_others_stay(layout: Layout) -> None:
    assert isinstance(INVOICES_STREAM.source, LandedFiles)
    stream = replace(INVOICES_STREAM, source=replace(INVOICES_STREAM.source, segment_files=1))
    landing = LandingFolder(layout, "invoices", "invoices", 1)
    landing.folder.mkdir(parents=True)
    for n in range(1, 5):
        (landing.folder / f"{n}.json").write_text("{}")
        landing.admit()
    for leg in stream.source.pending(layout, "invoices"):
        if leg.segment != 2:  # a run of it failed
            stream.source.drained(layout, "invoices", leg)

    def made() -> list[str]:
        for n in range(1, 5):
            layout.checkpoint("invoices", n).mkdir(parents=True, exist_ok=True)
            (layout.checkpoint("invoices", n) / "metadata").touch()
        return [f"{n:06d}" for n in range(1, 5)]

    def there() -> list[str]:
        return sorted(p.name for p in (layout.checkpoints / "invoices").glob("0*"))

    later = time.time() + 30 * DAY
    assert made() == there()
    assert trim_checkpoints(stream, layout) == 0, "younger than a week"
    write_state(layout.repair_note("invoices"), {"steps": []})
    assert trim_checkpoints(stream, layout, now=later) == 0, "an interrupted repair comes first"
    layout.repair_note("invoices").unlink()
    assert trim_checkpoints(stream, layout, now=later) == 2
    assert there() == ["000002", "000004"], "one still has work, one takes the next files"
    assert landing.ledger.totals()["files"] == 4, "the archive is whole"


def test_of_a_stream_that_reads_a_table_the_checkpoint_in_use_and_later_ones_stay(layout: Layout) -> None:
    for n in (1, 2, 3, 4):
        layout.checkpoint("invoice_line_items", n).mkdir(parents=True)
    write_state(layout.source_state("invoice_line_items"), {"segment": 3})
    later = time.time() + 30 * DAY
    assert trim_checkpoints(LINE_ITEMS_STREAM, layout, now=later) == 2
    assert sorted(p.name for p in (layout.checkpoints / "invoice_line_items").glob("0*")) == ["000003", "000004"]
