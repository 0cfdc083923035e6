"""From a landed file to rows that can be asked for, with sensors: `invoice-platform up` against the stock way's `dagster dev`."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from benchmarks.data import content, make, rows
from benchmarks.measure import Bench, Goal, Measure, Outcome
from benchmarks.processes import Stock, up
from benchmarks.timing import wait_until
from invoice_platform.sensors import TICK_SECONDS
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.lock import run_is_dead
from invoice_platform.streaming.tables import latest_version

LIMIT_SECONDS = 400.0
FILES_A_ROUND = 2
GOLDEN = 0.618
"""Steps of this part of an interval fall evenly over it: a file lands at every distance from the sensor's next look."""


def until_queryable(table: Path, file: Path, landed: Path) -> float:
    """Land a file; the seconds until a commit has added rows to the table."""
    before, version = rows(table), latest_version(table)
    started = time.perf_counter()
    os.link(file, landed)

    def there() -> bool:
        nonlocal version
        newest = latest_version(table)  # a look-up of a file name: the machine is the contestants'
        if newest == version:
            return False
        version = newest
        return rows(table) > before

    wait_until(there, LIMIT_SECONDS, f"the rows of {file.name}")
    return time.perf_counter() - started


def run(bench: Bench) -> Outcome:
    outcome = Outcome()
    work = bench.folder("latency")
    rounds, each = bench.size(5, 1), bench.size(FILES_A_ROUND, 1)
    warm_ups = bench.size(2, 0)
    corpus = make(work / "files", files=rounds * each + warm_ups, invoices=bench.size(500, 20))
    layout = Layout.at(work / "root")
    inbox, table = layout.landing("invoices"), layout.table("invoice_line_items")
    sensor_seconds = bench.size(30, 5)
    stock = Stock(work / "stock", sensor_seconds=sensor_seconds)
    files, landed = iter(corpus.files), 0

    def land() -> float:
        nonlocal landed
        landed, file = landed + 1, next(files)
        if not bench.small:
            _wait_until_idle(layout)
            time.sleep(TICK_SECONDS * (landed * GOLDEN % 1))
        return until_queryable(table, file, inbox / file.name)

    def land_for_stock(number: int) -> float:
        if not bench.small:
            time.sleep(sensor_seconds * (number * GOLDEN % 1))
            _wait_until_idle(layout)
        return until_queryable(stock.table, corpus.files[number], stock.landing / f"round-{number}.json")

    def land_some() -> list[float]:
        spent = [land() for _ in range(each)]
        if bench.small:
            is_up.close()  # the rest of its job would only keep the other waiting
        return spent

    with ExitStack() as is_up, ExitStack() as is_sensing:
        with ThreadPoolExecutor(2) as starting:
            list(starting.map(ExitStack.enter_context, (is_up, is_sensing), (up(layout.root), stock.sensing())))
        if not bench.small:
            stock.put(corpus.files[0], "warm-up.json")  # fills Ivy's cache
        for _ in range(warm_ups):
            land()
        if not bench.small:
            wait_until(lambda: rows(stock.table), LIMIT_SECONDS, "the stock way's first run", 0.2)
        for number in range(rounds):
            turns = {
                "platform": land_some,
                "stock": lambda n=number: [land_for_stock(n)],
            }
            # Small, both at once: it saves a third of the time, and the figures mean nothing.
            with ThreadPoolExecutor(2 if bench.small else 1) as workers:
                waited = {name: workers.submit(turn) for name, turn in turns.items()}
            for name, future in waited.items():
                outcome.add(name, "s", *future.result())
    outcome.facts = {
        "files": rounds * each,
        "invoices_a_file": bench.size(500, 20),
        "stock_sensor_seconds": sensor_seconds,
        "content": {"platform": content(table).facts, "stock": content(stock.table).facts},
        "same_files": bench.small,
    }
    return outcome


def _wait_until_idle(layout: Layout) -> None:
    """Wait until no run is going: the rest of the job (rewards, sales, checks) goes on after the rows are there."""
    wait_until(lambda: not _running(layout), LIMIT_SECONDS, "the end of the run", 0.2)


def _running(layout: Layout) -> bool:
    """Whether a run holds its lock: asked of the operating system, not of Dagster, which has other things to do."""
    folder = layout.root / "runs"
    return any(not run_is_dead(layout, lock.stem) for lock in folder.glob("*.lock")) if folder.is_dir() else False


MEASURE = Measure(
    name="latency",
    title="Landed → queryable in invoice_line_items, sensor runs, make up, one 500-invoice file",
    goals=(
        Goal("p50 ≤ 8 s", 8, "s", "p50", "platform"),
        Goal("p95 ≤ 12 s", 12, "s", "p95", "platform"),
        Goal("≥ 6 × faster than stock", 6, "×", "ratio", "stock", "platform", at_least=True),
    ),
    run=run,
    about=(
        "`invoice-platform up` as a process of its own, and the stock way's `dagster dev` with its sensor every 30 "
        "s beside it; while one has a file, the other has nothing to do but its ticks. A file appears in landing in "
        "one step, at every distance from the next tick of its sensor; its rows are there when a commit of the table's Delta log "
        "has them. Each round is two files for the platform, one after the other, and one for the stock way."
    ),
    own_processes=True,
)
