"""What piles up under a root over many ticks and runs, and how much of it is left once it is old."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

import dagster as dg
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import TickData, TickStatus

from benchmarks.data import make
from benchmarks.measure import Bench, Goal, Measure, Outcome
from benchmarks.platform import FLAT
from invoice_platform.sensors import SENSORS, TICK_SECONDS
from invoice_platform.streaming.layout import Layout

DAY_SECONDS = 86_400
AGED_DAYS = 40
"""By which everything there is made older; Delta's own default keeps 30 days of commits."""
TICKS_A_WEEK = 7 * DAY_SECONDS // TICK_SECONDS * len(SENSORS)
RUNS_A_WEEK = 7 * 24 * 60
MB = 1e6
_SENSOR = InstigatorType.SENSOR


def run(bench: Bench) -> Outcome:
    outcome = Outcome()
    work = bench.folder("retention")
    # Delta's logs are cut up to an old checkpoint, one of which is made after 30 commits; Spark's keep 30 micro-batches.
    runs, ticks = bench.size(33, 1), bench.size(1_000, 20)
    files = iter(make(work / "files", files=2 * runs, invoices=bench.size(500, 10)).files)
    with bench.platform(work / "root") as platform:
        layout, history = platform.layout, platform.history

        def some_runs() -> None:
            for _ in range(runs):
                platform.put([next(files)])
                platform.run(assets=FLAT)

        before = sizes(layout)
        some_runs()
        after = sizes(layout)
        ticks_before = after["Dagster"]
        make_ticks(history, ticks, time.time() - AGED_DAYS * DAY_SECONDS)
        a_tick = (sizes(layout)["Dagster"] - ticks_before) / (ticks * len(SENSORS))
        for place in after:
            weekly = (after[place] - before[place]) / runs * RUNS_A_WEEK
            outcome.add(f"{place}, a week of runs", "MB", weekly / MB)
        outcome.add("Dagster, a week of ticks", "MB", a_tick * TICKS_A_WEEK / MB)

        make_older(layout)
        old = {name: count(layout, history) for name, count in AGED.items()}
        some_runs()
        platform.run("maintain_tables")
        platform.run("trim_history")
        purge_ticks(history)
        for name, count in AGED.items():
            left = count(layout, history) / old[name] if old[name] else 0.0
            outcome.add(f"{name} left after {AGED_DAYS} days", "%", 100 * left)
        outcome.facts = {
            "runs": 2 * runs,
            "ticks": ticks * len(SENSORS),
            "aged": dict(old),
            "files": len(list(layout.root.rglob("*"))),
        }
    outcome.notes += [
        f"{runs} runs and {ticks * len(SENSORS):,} ticks were made and taken for a week's {RUNS_A_WEEK:,} and {TICKS_A_WEEK:,}.",
        f"Then all files and Dagster's records were made {AGED_DAYS} days older, {runs} more runs went by, `maintain_tables` and "
        "`trim_history` ran, and ticks were purged as Dagster's daemon does it by the root's dagster.yaml. What is then left "
        "of the old is a matter of retention, and a part of it is in use: the open segment's checkpoint, for one.",
    ]
    return outcome


def _bytes(*folders: Path) -> int:
    return sum(f.stat().st_size for folder in folders for f in folder.rglob("*") if f.is_file())


PLACES: dict[str, Callable[[Layout], Iterable[Path]]] = {
    "Dagster": lambda layout: [layout.dagster_home],
    "logs": lambda layout: [layout.logs, layout.root / "runs"],
    "checkpoints": lambda layout: [layout.checkpoints],
    "Delta log": lambda layout: layout.lakehouse.glob("*/_delta_log"),
}
"""Folders under a root that hold neither rows nor the archive."""


def sizes(layout: Layout) -> dict[str, int]:
    """Bytes in each of `PLACES`."""
    return {name: _bytes(*folders(layout)) for name, folders in PLACES.items()}


def make_ticks(history: dg.DagsterInstance, number: int, when: float) -> None:
    """Ticks of every sensor that found nothing, as the daemon writes them down."""
    for sensor in SENSORS:
        for tick in range(number):
            history.create_tick(
                TickData(
                    instigator_origin_id=f"origin-{sensor.name}",
                    instigator_name=sensor.name,
                    instigator_type=_SENSOR,
                    status=TickStatus.SKIPPED,
                    timestamp=when + tick * TICK_SECONDS,
                    skip_reason="nothing new",
                    selector_id=f"selector-{sensor.name}",
                    end_timestamp=when + tick * TICK_SECONDS + 0.1,
                )
            )


def purge_ticks(history: dg.DagsterInstance) -> None:
    """What the daemon does at each tick of a sensor."""
    for status, days in history.get_tick_retention_settings(_SENSOR).items():
        for sensor in SENSORS if days > 0 else ():
            history.purge_ticks(
                f"origin-{sensor.name}", f"selector-{sensor.name}", time.time() - days * DAY_SECONDS, [status]
            )


def make_older(layout: Layout) -> None:
    """Set every file's time and every run's back; rows and archive keep theirs, which are columns of tables."""
    seconds = AGED_DAYS * DAY_SECONDS
    for folder in (layout.dagster_home, layout.logs, layout.checkpoints, *layout.lakehouse.glob("*/_delta_log")):
        for file in folder.rglob("*"):
            if file.is_file():
                times = file.stat()
                os.utime(file, (times.st_atime - seconds, times.st_mtime - seconds))
    with closing(sqlite3.connect(layout.dagster_home / "history" / "runs.db")) as connection, connection:
        connection.execute(
            "UPDATE runs SET create_timestamp = datetime(create_timestamp, ?), update_timestamp = "
            "datetime(update_timestamp, ?), start_time = start_time - ?, end_time = end_time - ?",
            (f"-{AGED_DAYS} days", f"-{AGED_DAYS} days", seconds, seconds),
        )


def _old_files(*folders: Path) -> int:
    oldest = time.time() - (AGED_DAYS - 1) * DAY_SECONDS
    return sum(f.is_file() and f.stat().st_mtime < oldest for folder in folders for f in folder.rglob("*"))


def _old_runs(history: dg.DagsterInstance) -> int:
    old = time.time() - (AGED_DAYS - 1) * DAY_SECONDS
    return sum((record.start_time or 0) < old for record in history.get_run_records())


def _old_ticks(history: dg.DagsterInstance) -> int:
    return sum(len(history.get_ticks(f"origin-{s.name}", f"selector-{s.name}")) for s in SENSORS)


AGED: dict[str, Callable[[Layout, dg.DagsterInstance], int]] = {
    "ticks": lambda _, history: _old_ticks(history),
    "runs": lambda _, history: _old_runs(history),
    "Delta commits": lambda layout, _: _old_files(*layout.lakehouse.glob("*/_delta_log")),
    "checkpoint files": lambda layout, _: _old_files(layout.checkpoints),
}
"""What is counted of the old."""

MEASURE = Measure(
    name="retention",
    title="A week of 5 s ticks and 1-minute runs (simulated, sped up)",
    goals=(
        *(
            Goal(
                f"{name}: bounded by a retention that is set by default (of the old at most {limit} % left)",
                limit,
                "%",
                "last",
                f"{name} left after {AGED_DAYS} days",
            )
            for name, limit in (("ticks", 0), ("runs", 10), ("Delta commits", 25), ("checkpoint files", 60))
        ),
        *(
            Goal(f"{place}: what is added", None, "MB", "last", place)
            for place in (*(f"{place}, a week of runs" for place in PLACES), "Dagster, a week of ticks")
        ),
    ),
    run=run,
    about=(
        "How many bytes Dagster's storage, logs, checkpoints and Delta's logs gain for each run and tick, and what "
        "is left of them once they are old."
    ),
)
