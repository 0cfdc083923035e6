"""A run with one new file after 100,000 files, against the same after 100; each of twenty runs in a row."""

from __future__ import annotations

from benchmarks.copies import accept, copy_commits, last_adds, settle
from benchmarks.data import make, make_split
from benchmarks.measure import Bench, Goal, Measure, Outcome

FILES_A_RUN = 100
"""Files that a run of the history took: with 100,000 files, 1,000 commits to each table."""


def run(bench: Bench) -> Outcome:
    outcome = Outcome()
    work = bench.folder("history")
    runs, runs_before, warm_ups = bench.size(20, 1), bench.size(10, 1), bench.size(4, 0)
    many = bench.size(100_000, 2_000)
    base = make_split(work / "base", files=FILES_A_RUN, invoices=FILES_A_RUN)
    new = iter(make(work / "new", files=runs + runs_before + 2 * warm_ups, invoices=bench.size(500, 20), seed=90).files)
    with bench.platform(work / "root") as platform:
        platform.put(base.files)
        platform.ingest()
        adds = {name: last_adds(platform.layout.table(name)) for name in ("invoices", "invoice_line_items")}
        for _ in range(warm_ups):
            platform.ingest_one(next(new))
        # One round each: no run of the one is beside a run of the other, so medians are compared.
        outcome.add("after 100 files", "s", *(platform.ingest_one(next(new)) for _ in range(runs_before)))

        commits = many // FILES_A_RUN - 1
        copied = {name: copy_commits(platform.layout.table(name), adds[name], commits) for name in adds}
        accept(platform.layout, many - FILES_A_RUN)
        settle(platform.layout, copied["invoice_line_items"].rows)
        for _ in range(warm_ups):
            platform.ingest_one(next(new))
        outcome.add("after many files", "s", *(platform.ingest_one(next(new)) for _ in range(runs)))
        outcome.facts = {
            "files": many,
            "commits": commits,
            "invoices": platform.rows("invoices"),
            "line_items": platform.rows("invoice_line_items"),
        }
    outcome.notes.append(
        f"The history of {many:,} files was made, not run: files of one invoice entered the archive and the ledger "
        "in segments of 1,000, each with a checkpoint; both tables got a commit of copied data files for every "
        f"{FILES_A_RUN} files, with statistics and Delta checkpoints; the streams then begin after it, as after a "
        "rebuild."
    )
    outcome.notes.append(
        "On one root and one warm Spark: first after 100 files, then the history is put in between; four runs "
        "before each are not counted."
    )
    return outcome


MEASURE = Measure(
    name="history",
    title="Run with one new file after 100,000 files, against after 100",
    goals=(
        Goal("≤ 1.2 × after 100 files", 1.2, "×", "ratio", "after many files", "after 100 files"),
        Goal("each of 20 runs in a row: no spikes over 2 × median", 2, "×", "spike", "after many files"),
    ),
    run=run,
    about=(
        "One file of 500 invoices a run, ten runs before and twenty in a row after, bronze to line items, quarantine and checks, "
        "in this process on a warm Spark."
    ),
)
