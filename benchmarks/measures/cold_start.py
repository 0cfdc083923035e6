"""One file, everything cold: the platform's command against the stock way's."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.data import content, make
from benchmarks.measure import Bench, Goal, Measure, Outcome
from benchmarks.processes import PYTHON, Stock, child_environment, finished
from benchmarks.timing import alternate
from invoice_platform.streaming.layout import ROOT_VARIABLE, Layout

RUN = ["-m", "invoice_platform.cli", "run", "ingest_invoices"]


def run(bench: Bench) -> Outcome:
    outcome = Outcome()
    work = bench.folder("cold_start")
    rounds = bench.size(5, 1)
    warm_ups = bench.size(1, 0)
    corpus = make(work / "files", files=rounds + warm_ups, invoices=bench.size(500, 20))
    stock, root = Stock(work / "stock", bench.work / "ivy"), work / "root"
    layout = Layout.at(root)
    layout.landing("invoices").mkdir(parents=True)
    env = child_environment(**{ROOT_VARIABLE: str(root)})
    for_stock, for_platform = iter(corpus.files), iter(corpus.files)

    def stock_turn() -> float:
        stock.put(file := next(for_stock), file.name)
        return stock.run()

    def platform_turn() -> float:
        os.link(file := next(for_platform), layout.landing("invoices") / file.name)
        return finished([PYTHON, *RUN], env, work / "platform.log", work)

    contestants = {"platform": platform_turn, "stock": stock_turn}
    for _ in range(warm_ups):  # Ivy's cache is full and tables are there from now on
        for contestant in contestants.values():
            contestant()
    alternate(outcome, contestants, rounds)
    tables: dict[str, Path] = {"platform": layout.table("invoice_line_items"), "stock": stock.table}
    outcome.facts = {
        "files": len(corpus.files),
        "invoices_a_file": corpus.records // len(corpus.files),
        "content": {name: content(table).facts for name, table in tables.items()},
    }
    return outcome


MEASURE = Measure(
    name="cold_start",
    title="Embedded run, cold, one file",
    goals=(Goal("≤ 0.5 × of stock", 0.5, "×", "ratio", "platform", "stock"),),
    run=run,
    about=(
        "A new process each time, with no Spark up: `invoice-platform run ingest_invoices` (the whole job: bronze, "
        "line items, quarantine, rewards and sales, and all checks) against `dagster job execute` of the stock way, "
        "which makes the flat table alone. One file of 500 invoices a run; one run of each is not counted."
    ),
    own_processes=True,
)
