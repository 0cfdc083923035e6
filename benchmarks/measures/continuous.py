"""From a landed file to rows that can be asked for, while `stream_invoices` runs with an interval of a second."""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack

from benchmarks.data import content, make, rows
from benchmarks.measure import Bench, Goal, Measure, Outcome
from benchmarks.measures.latency import GOLDEN, until_queryable
from benchmarks.processes import PYTHON, background, child_environment
from benchmarks.timing import wait_until
from invoice_platform.streaming.layout import ROOT_VARIABLE

INTERVAL_SECONDS = 1.0


def run(bench: Bench) -> Outcome:
    outcome = Outcome()
    work = bench.folder("continuous")
    rounds, each = bench.size(5, 1), bench.size(6, 1)
    warm_ups = bench.size(20, 1)  # a stream that goes on for weeks: until Java compiles little any more
    corpus = make(work / "files", files=rounds * each + warm_ups, invoices=bench.size(500, 20))
    files, landed = iter(corpus.files), 0

    # Small: the two streams that matter, because each of the others takes its time to start.
    streams = ["invoices", "invoice_line_items"] if bench.small else []
    config = json.dumps({"ops": {"stream_all_invoices": {"config": {"trigger": "1 second", "streams": streams}}}})
    command = [PYTHON, "-m", "invoice_platform.cli", "run", "stream_invoices", "--config", config]
    with ExitStack() as held:
        layout = held.enter_context(bench.platform(work / "root")).layout
        inbox, table = layout.landing("invoices"), layout.table("invoice_line_items")
        env = child_environment(**{ROOT_VARIABLE: str(layout.root)})
        held.enter_context(background(command, env, work / "stream.log", work))

        def land() -> float:
            file = next(files)
            return until_queryable(table, file, inbox / file.name)

        first = next(files)
        os.link(first, inbox / first.name)
        wait_until(lambda: rows(table), 400, "the first rows", 0.2)
        for _ in range(warm_ups - 1):
            time.sleep(INTERVAL_SECONDS)
            land()
        for _ in range(rounds):
            spent = []
            for _ in range(each):
                landed += 1
                time.sleep(INTERVAL_SECONDS * (1 + landed * GOLDEN % 1))
                spent.append(land())
            outcome.add("platform", "s", *spent)
        outcome.facts["content"] = {"platform": content(table).facts}
    outcome.facts |= {"files": rounds * each, "line_items": corpus.line_items}
    return outcome


MEASURE = Measure(
    name="continuous",
    title="Landed → queryable in invoice_line_items, stream_invoices with a 1 s interval",
    goals=(
        Goal("p50 ≤ 1.5 s", 1.5, "s", "p50", "platform"),
        Goal("p95 ≤ 3 s", 3, "s", "p95", "platform"),
    ),
    run=run,
    about=(
        "A warm Spark and `invoice-platform run stream_invoices` with `trigger: 1 second` as processes: all streams "
        "that files feed, side by side; quarantine, the sums of sales and rewards once a minute, as by default. One "
        "500-invoice file at a time, at every distance from the second; twenty are not counted."
    ),
)
