"""One file, everything cold: the platform's command against the stock way's."""

from __future__ import annotations

import os
import time
from pathlib import Path

from benchmarks.data import content, make, rows
from benchmarks.measure import Bench, Goal, Measure, Outcome
from benchmarks.processes import COMMAND_SECONDS, PYTHON, Stock, background, child_environment
from benchmarks.timing import alternate, wait_until
from invoice_platform.streaming.layout import ROOT_VARIABLE, Layout

RUN = ["-m", "invoice_platform.cli", "run", "ingest_invoices"]


def run(bench: Bench) -> Outcome:
    outcome = Outcome()
    work = bench.folder("cold_start")
    rounds = bench.size(5, 1)
    warm_ups = bench.size(1, 0)
    corpus = make(work / "files", files=rounds + warm_ups, invoices=bench.size(500, 20))
    stock, root = Stock(work / "stock"), work / "root"
    layout = Layout.at(root)
    layout.landing("invoices").mkdir(parents=True)
    table = layout.table("invoice_line_items")
    env = child_environment(**{ROOT_VARIABLE: str(root)})
    for_stock, for_platform = iter(corpus.files), iter(corpus.files)

    def stock_turn() -> float:
        stock.put(file := next(for_stock), file.name)
        return stock.run()

    whole_jobs: list[float] = []

    def platform_turn() -> float:
        before = rows(table)
        os.link(file := next(for_platform), layout.landing("invoices") / file.name)
        started = time.perf_counter()
        with background([PYTHON, *RUN], env, log := work / "platform.log", work) as process:
            wait_until(lambda: rows(table) > before or process.poll(), COMMAND_SECONDS, "the rows of a cold run", 0.05)
            queryable = time.perf_counter() - started
            if process.wait(COMMAND_SECONDS) != 0:
                raise RuntimeError(f"the cold run failed: {log.read_text(errors='replace')[-2000:]}")
            whole_jobs.append(time.perf_counter() - started)
        return queryable

    contestants = {"platform": platform_turn, "stock": stock_turn}
    for _ in range(warm_ups):  # Ivy's cache is full and tables are there from now on
        for contestant in contestants.values():
            contestant()
    alternate(outcome, contestants, rounds)
    for seconds in whole_jobs[warm_ups:]:
        outcome.add("platform, whole job", "s", seconds)
    tables: dict[str, Path] = {"platform": table, "stock": stock.table}
    outcome.facts = {
        "files": len(corpus.files),
        "invoices_a_file": corpus.records // len(corpus.files),
        "content": {name: content(table).facts for name, table in tables.items()},
    }
    return outcome


MEASURE = Measure(
    name="cold_start",
    title="Embedded run, cold, one file",
    goals=(
        Goal("≤ 0.5 × of stock", 0.5, "×", "ratio", "platform", "stock"),
        Goal("the whole job, of stock", None, "×", "ratio", "platform, whole job", "stock"),
    ),
    run=run,
    about=(
        "A new process each time, with no Spark up: `invoice-platform run ingest_invoices`, from its start until the rows "
        "are in `invoice_line_items`, against `dagster job execute` of the stock way, which makes that table alone and "
        "ends. The platform's job then goes on with quarantine, rewards, sales and all checks: the whole of it is given, "
        "too. One file of 500 invoices a run; one run of each is not counted."
    ),
    own_processes=True,
)
