"""10,000 files of one invoice each against the same invoices in 10 files."""

from __future__ import annotations

from benchmarks.data import content, make, make_split
from benchmarks.measure import Bench, Goal, Measure, Outcome
from benchmarks.measures.throughput import TABLE, prepare_root
from benchmarks.timing import alternate, seconds

MANY, AT_ONCE, FEW = "many files", "many files, one micro-batch", "few files"


def run(bench: Bench) -> Outcome:
    outcome = Outcome()
    work = bench.folder("small_files")
    invoices, few = bench.size(10_000, 60), bench.size(10, 2)
    many = make_split(work / "many", files=invoices, invoices=invoices)
    corpora = {MANY: many, AT_ONCE: many, FEW: make_split(work / "few", files=few, invoices=invoices)}
    first = make(work / "first", files=2, invoices=10, seed=90).files
    outcome.facts = {"invoices": invoices, "many": invoices, "few": few, "content": {}}
    with bench.platform(work / "root") as platform:

        def turn_of(name: str) -> float:
            prepare_root(platform, first, bench.small)
            landed = platform.put(corpora[name].files)
            settings = {"max_files_per_trigger": invoices} if name == AT_ONCE else {}
            spent = seconds(lambda: platform.ingest(**settings))
            found = content(platform.layout.table(TABLE), where=f"source_file LIKE '%-{landed}%'")
            outcome.facts["content"][name] = found.facts
            return spent

        if not bench.small:
            turn_of(FEW)  # the JIT compiler's round, not counted
        alternate(outcome, {name: lambda n=name: turn_of(n) for name in corpora}, bench.size(5, 1))
    return outcome


MEASURE = Measure(
    name="small_files",
    title="10,000 files of one invoice each",
    goals=(
        Goal("≤ 2 × the same invoices in 10 files", 2, "×", "ratio", MANY, FEW),
        Goal("with max_files_per_trigger 10,000: ≤ 2 ×", 2, "×", "ratio", AT_ONCE, FEW),
    ),
    run=run,
    about=(
        "The same part of `ingest_invoices` as in `throughput`, on a warm Spark: 10,000 invoices as 10,000 files, "
        "and as 10 files, by turns, each time into nearly empty tables. By default at most 1,000 files make a "
        "micro-batch; `max_files_per_trigger` takes them all in one."
    ),
)
