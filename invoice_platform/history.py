"""What Dagster and the processes around it write down of every run and tick, kept for a while and then deleted.

Dagster purges ticks itself (`retention` in dagster.yaml) and has no setting for runs. Replay: a run is deleted from Dagster
first, then its files; what an interruption leaves is found by its file and deleted the next time.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.lock import run_is_dead

if TYPE_CHECKING:
    from dagster import DagsterInstance

RUN_DAYS = 7
RUNS_OF_A_JOB = 2_000
"""A run a minute would make ten thousand in a week, at about 0.6 MB each."""
NEWEST_OF_A_JOB = 10
"""Kept whatever their age: a sensor looks at the last five, a person at the last."""
LOG_BYTES = 10 << 20
LOGS_KEPT = 3
"""As log4j2.properties has it for spark.log, which log4j rotates itself."""
COMPACT_BYTES = 16 << 20
"""A database that is smaller is not worth it."""
DAY_SECONDS = 86_400
PAGE = 500
_RUN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TICK_LOGS = "__repository__"
"""Where Dagster keeps what a sensor logs in a tick, a file a tick."""


@dataclass(frozen=True)
class Trimmed:
    """What was deleted."""

    runs: int
    kept: int
    """Runs that stay."""
    files: int
    """Logs of ticks, locks of runs whose processes died, and log files that were begun anew."""
    bytes: int
    """How much smaller Dagster's home and the logs are."""


def trim(
    instance: DagsterInstance,
    layout: Layout,
    *,
    run_days: int = RUN_DAYS,
    runs_of_a_job: int = RUNS_OF_A_JOB,
    now: float | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Trimmed:
    """Delete what is older than `run_days`, and of each job what comes after its newest `runs_of_a_job` runs.

    Stay, whatever their age: runs that have not ended, the newest ten of each job, and those of the latest materialization of
    each asset and the latest result of each check.

    Parameters
    ----------
    now : float
        Seconds since 1970; the clock's when not given.
    say : callable
        Told, in a line, what could not be done now.
    """
    now = time.time() if now is None else now
    before = now - run_days * DAY_SECONDS
    home, logs = Path(instance.root_directory), layout.logs
    size = _bytes(home) + _bytes(logs)
    ended, kept = _sorted_out(instance, before, runs_of_a_job)
    ended += [run_id for run_id in _orphans(instance, home, now - DAY_SECONDS) if run_id not in ended]
    for run_id in ended:
        _delete(instance, home, run_id)
    _forget_checks(instance, ended)
    of_ticks = _older(Path(instance.storage_directory()) / _TICK_LOGS, before)
    for file in of_ticks:
        file.unlink(missing_ok=True)
    files = len(of_ticks) + _dead_locks(instance, layout, now - DAY_SECONDS)
    files += sum(_rotate(log) for log in sorted(logs.glob("*.log")) if log != layout.spark_log)
    for database in (home / "history" / "runs.db", _shards(home) / "index.db", home / "schedules" / "schedules.db"):
        _compact(database, say)
    return Trimmed(len(ended), kept, files, size - _bytes(home) - _bytes(logs))


def _sorted_out(instance: DagsterInstance, before: float, runs_of_a_job: int) -> tuple[list[str], int]:
    """Ids of the runs to delete, oldest first, and how many stay."""
    stay = _latest(instance)
    seen: Counter[str] = Counter()
    ended: list[str] = []
    for record in _records(instance):
        run = record.dagster_run
        seen[run.job_name] += 1
        old = record.create_timestamp.timestamp() < before or seen[run.job_name] > runs_of_a_job
        if old and run.is_finished and seen[run.job_name] > NEWEST_OF_A_JOB and run.run_id not in stay:
            ended.append(run.run_id)
    return ended[::-1], sum(seen.values()) - len(ended)


def _records(instance: DagsterInstance) -> Iterator[Any]:
    """Every run's record, newest first."""
    cursor = None
    while records := instance.get_run_records(limit=PAGE, cursor=cursor):
        yield from records
        cursor = records[-1].dagster_run.run_id


def _latest(instance: DagsterInstance) -> set[str]:
    """Runs that hold the latest materialization of an asset or the latest result of a check."""
    found = {
        event.run_id
        for event in (instance.get_latest_materialization_event(key) for key in instance.all_asset_keys())
        if event is not None
    }
    newest = "SELECT max(id) FROM asset_check_executions {} GROUP BY asset_key, check_name"
    for of in ("", "WHERE execution_status <> 'PLANNED'"):
        rows = _events(instance, f"SELECT run_id FROM asset_check_executions WHERE id IN ({newest.format(of)})")
        found |= {run_id for (run_id,) in rows}
    return found


def _events(instance: DagsterInstance, statement: str, **values: Any) -> Sequence[Any]:
    """What Dagster's event log says to a statement: results of checks can be listed and deleted in no other way."""
    import sqlalchemy as db

    storage: Any = instance.event_log_storage
    with storage.index_connection() as connection:
        done = connection.execute(db.text(statement), values)
        return done.fetchall() if done.returns_rows else []


def _shards(home: Path) -> Path:
    """Where Dagster's SQLite keeps the events of each run, a file a run, and an index of all."""
    return home / "history" / "runs"


def _orphans(instance: DagsterInstance, home: Path, before: float) -> list[str]:
    """Runs that Dagster no longer knows and whose files are still there."""
    places = {f.stem for f in _shards(home).glob("*.db")} | {
        f.name for f in Path(instance.storage_directory()).glob("*")
    }
    ids = sorted(name for name in places if _RUN_ID.fullmatch(name))
    known: set[str] = set()
    for start in range(0, len(ids), PAGE):
        known |= {run.run_id for run in instance.get_runs(_of(ids[start : start + PAGE]))}
    return [run_id for run_id in ids if run_id not in known and _age(instance, home, run_id) < before]


def _of(run_ids: Sequence[str]) -> Any:
    import dagster as dg

    return dg.RunsFilter(run_ids=list(run_ids))


def _age(instance: DagsterInstance, home: Path, run_id: str) -> float:
    files = (_shards(home) / f"{run_id}.db", Path(instance.storage_directory()) / run_id)
    return max(file.stat().st_mtime for file in files if file.exists())


def _delete(instance: DagsterInstance, home: Path, run_id: str) -> None:
    instance.delete_run(run_id)
    # Dagster empties the file of a run's events and leaves it, over 100 kB, and what its steps printed and kept.
    for suffix in ("", "-wal", "-shm"):
        (_shards(home) / f"{run_id}.db{suffix}").unlink(missing_ok=True)
    instance.compute_log_manager.delete_logs(prefix=[run_id])
    shutil.rmtree(Path(instance.storage_directory()) / run_id, ignore_errors=True)


def _forget_checks(instance: DagsterInstance, run_ids: Sequence[str]) -> None:
    """Delete the results of checks of runs that are gone, which `delete_run` leaves."""
    for start in range(0, len(run_ids), PAGE):
        some = {f"r{n}": run_id for n, run_id in enumerate(run_ids[start : start + PAGE])}
        marks = ", ".join(f":{name}" for name in some)
        _events(instance, f"DELETE FROM asset_check_executions WHERE run_id IN ({marks})", **some)


def _older(folder: Path, before: float) -> list[Path]:
    return [f for f in folder.rglob("*") if f.is_file() and f.stat().st_mtime < before]


def _dead_locks(instance: DagsterInstance, layout: Layout, before: float) -> int:
    """Remove what runs whose processes died have left to show that they live; sensors look at jobs of their own only."""
    old = {f.stem for f in layout.run_lock("*").parent.glob("*.lock") if f.stat().st_mtime < before}
    ended = old - _under_way(instance, old)
    return sum(run_is_dead(layout, run_id) for run_id in ended)


def _under_way(instance: DagsterInstance, run_ids: Collection[str]) -> set[str]:
    return {r.run_id for r in instance.get_runs(_of(sorted(run_ids))) if not r.is_finished} if run_ids else set()


def _rotate(log: Path) -> bool:
    """Begin a log anew that has grown large: its content goes to `<log>.1`, that of `<log>.1` to `<log>.2`, and so on.

    Its writer keeps the file open and appends, so it is copied and emptied; a line that comes between the two is lost.
    """
    if log.stat().st_size < LOG_BYTES:
        return False
    older = [log.with_name(f"{log.name}.{n}") for n in range(1, LOGS_KEPT + 1)]
    for old, older_still in zip(older[-2::-1], older[:0:-1], strict=True):
        if old.exists():
            old.replace(older_still)
    shutil.copyfile(log, older[0])
    with log.open("r+b") as emptied:
        emptied.truncate()
    return True


def _compact(database: Path, say: Callable[[str], None]) -> None:
    """Give back to the disk what deleted rows have left, where that is more than half of a database.

    Otherwise it stays for the rows to come, and the file grows no further.
    """
    if not database.exists():
        return
    with closing(sqlite3.connect(database, timeout=5, isolation_level=None)) as connection:
        try:
            pages, free, size = (
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_count", "freelist_count", "page_size")
            )
            if free * 2 > pages and pages * size > COMPACT_BYTES:
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.OperationalError as error:  # in use, or no room for its copy: nothing was changed
            say(f"{database} is left for the next time: {error}")


def _bytes(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with suppress(OSError):
            total += file.stat().st_size if file.is_file() else 0
    return total
