"""Memory of the warm Spark: idle after many runs, and while it works through a large backlog."""

from __future__ import annotations

import os
import time

from benchmarks.data import Corpus, make
from benchmarks.measure import Bench, Goal, Measure, Outcome
from benchmarks.memory import MB, collections, rss_mb, watched
from benchmarks.platform import FLAT, Platform, warm_platform
from invoice_platform.assets.factory import STREAMS
from invoice_platform.streaming.settings import RunSettings
from invoice_platform.streaming.stream import run_streams
from invoice_platform.warm_spark import KEPT_SECONDS, LOOK_SECONDS

IDLE_SECONDS = KEPT_SECONDS + LOOK_SECONDS + 40.0
"""Until the last query is forgotten, and then two of the periods after which an idle Java collects (`server.LONG_LIVED`)."""


def run(bench: Bench) -> Outcome:
    outcome = Outcome()
    work = bench.folder("memory")
    looks = 2 if bench.memory_runs else 1
    each = (bench.memory_runs or bench.size(20, 1)) // looks
    small = make(work / "small", files=looks * each, invoices=bench.size(50, 10), seed=50)
    large = bench.corpus
    copies = max(round(bench.backlog_gb * 1e9 / large.bytes), 1)
    # The others' Spark is not as it was started; small, that does not matter.
    with (bench.platform if bench.small else warm_platform)(work / "root") as platform:
        scratch, gc_log = platform.scratch, platform.gc_log
        pid, files = platform.server.pid, iter(small.files)
        for _ in range(looks):
            for _ in range(each):
                platform.put([next(files)])
                _stream(platform)
            time.sleep(IDLE_SECONDS if not bench.small else 0.0)
            outcome.add("resident, idle", "MB", rss_mb(pid))
            outcome.add("heap that the last collection left", "MB", collections(gc_log).last_after_mb)
        if looks == 2:
            first, last = outcome.series["resident, idle"].values
            outcome.add("growth of resident, idle", "MB in 1,000 runs", (last - first) / each * 1000)

        so_far = collections(gc_log).number
        _land_copies(platform, large, copies)
        started = time.monotonic()
        with watched(pid, scratch) as seen:
            platform.run(assets=FLAT)
        spent = time.monotonic() - started
        heap = collections(gc_log, skip=so_far)
    outcome.add("resident, peak of the backlog", "MB", seen.peak_rss_mb)
    outcome.add("spilled by the backlog", "MB", seen.spilled_bytes / MB)
    outcome.add("heap after collections, most", "MB", heap.most_after_mb)
    outcome.facts = {
        "runs": looks * each,
        "backlog_bytes": large.bytes * copies,
        "backlog_seconds": round(spent, 1),
        "collections": heap.number,
        "full_collections": heap.full,
        "paused_seconds": round(heap.paused_seconds, 2),
        "heap_mb": heap.heap_mb,
    }
    outcome.notes += [
        f"Looked at after {' and '.join(f'{each * (n + 1):,}' for n in range(looks))} runs, {IDLE_SECONDS:g} s after the last; "
        "growth, where there were two looks, is given for 1,000 runs. A run is one file through the streams of bronze, line items "
        "and quarantine in one client's session.",
        f"The backlog is {large.bytes * copies / 1e9:.3g} GB: the same files under several names.",
        "`python -m benchmarks memory --memory-runs 1000 --backlog-gb 5` takes the goals' own sizes, which takes an hour.",
        "Spills are files that Spark writes when its memory does not suffice; those that a shuffle always writes "
        "are not among them.",
    ]
    return outcome


def _stream(platform: Platform) -> None:
    run_streams(
        [STREAMS[name] for name in FLAT], lambda: platform.spark, platform.layout, RunSettings(), run="benchmark"
    )


def _land_copies(platform: Platform, corpus: Corpus, copies: int) -> None:
    for number in range(copies):
        for file in corpus.files:
            # Not a link: admission gives each file a time of its own.
            target = platform.layout.landing("invoices") / f"copy{number}-{file.name}"
            with file.open("rb") as source, target.open("xb") as copy:
                os.sendfile(copy.fileno(), source.fileno(), 0, file.stat().st_size)


MEASURE = Measure(
    name="memory",
    title="Warm server, idle after many runs; peak of a large backlog",
    goals=(
        Goal("idle ≤ 1 GB resident", 1000, "MB", "last", "resident, idle"),
        Goal("no growth (≤ 50 MB in 1,000 runs)", 50, "MB in 1,000 runs", "last", "growth of resident, idle"),
        Goal("peak ≤ 4 GB", 4000, "MB", "max", "resident, peak of the backlog"),
        Goal("no spill", 0, "MB", "max", "spilled by the backlog"),
    ),
    run=run,
    about="A warm Spark of its own, watched from outside: resident memory by the system, the heap by the JVM's log of collections.",
)
