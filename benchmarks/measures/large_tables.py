"""One new file into tables of 100 M rows, against the same into tables of 1 M rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.copies import accept, copy_commits, last_adds, rows_in, settle
from benchmarks.data import make
from benchmarks.measure import Bench, Goal, Measure, Outcome
from benchmarks.platform import Platform

COPIES_A_COMMIT = 25


def run(bench: Bench) -> Outcome:
    outcome = Outcome()
    work = bench.folder("large_tables")
    runs, warm_ups = bench.size(5, 1), bench.size(3, 0)
    sizes = {"1 M rows": bench.size(1_000_000, 5_000), "100 M rows": bench.size(100_000_000, 10_000)}
    base = bench.corpus.files[:16]
    new = iter(make(work / "new", files=len(sizes) * (runs + warm_ups), invoices=bench.size(500, 20), seed=90).files)
    with bench.platform(work / "root") as platform:
        platform.put(base)
        platform.ingest()
        adds = {name: last_adds(platform.layout.table(name)) for name in ("invoices", "invoice_line_items")}
        for name, size in sizes.items():
            _grow(platform, adds, size)
            for _ in range(warm_ups):
                platform.ingest_one(next(new))
            for _ in range(runs):
                outcome.add(name, "s", platform.ingest_one(next(new)))
            outcome.facts[f"invoices at {name}"] = platform.rows("invoices")
            outcome.facts[f"line items at {name}"] = platform.rows("invoice_line_items")
    outcome.notes.append(
        f"Both tables hold so many rows: copies (hard links) of the data files that {rows_in(adds['invoices']):,} invoices made, "
        f"in Delta commits of up to {COPIES_A_COMMIT} copies with statistics. An invoice number is therefore in the "
        "table many times, though none of the new files is. 1 M rows come first, 100 M after them, on one warm "
        "Spark; runs before each are not counted."
    )
    return outcome


def _grow(platform: Platform, adds: Mapping[str, Sequence[dict[str, Any]]], rows: int) -> None:
    """Bring bronze and the flat table to so many rows each, by copies of the data files that `adds` name."""
    gained: dict[str, int] = {}
    for name, files in adds.items():
        copies, gained[name] = (rows - platform.rows(name)) // rows_in(files), 0
        for start in range(0, copies, COPIES_A_COMMIT):
            some = min(COPIES_A_COMMIT, copies - start)
            gained[name] += copy_commits(platform.layout.table(name), files, 1, some).rows
    accept(platform.layout, 1, gained["invoices"])
    settle(platform.layout, gained["invoice_line_items"])


MEASURE = Measure(
    name="large_tables",
    title="Bronze and line-item tables at 100 M rows, one new file",
    goals=(Goal("≤ 1.2 × of the same at 1 M rows", 1.2, "×", "ratio", "100 M rows", "1 M rows"),),
    run=run,
    about=(
        "One file of 500 invoices a run, bronze to line items, quarantine and their checks, in this process on a "
        "warm Spark. The check that looks for invoice numbers sent before is the one part that asks of all rows that "
        "ever came: in an index, which the first run that is not counted makes."
    ),
)
