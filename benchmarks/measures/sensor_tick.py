"""A tick of the sensor for landed invoices, with nothing new and with 10,000 files waiting."""

from __future__ import annotations

import dagster as dg

from benchmarks.data import make_split
from benchmarks.measure import Bench, Goal, Measure, Outcome
from benchmarks.platform import environment
from benchmarks.timing import seconds
from invoice_platform.jobs import from_files
from invoice_platform.orchestrate import instance, prepare
from invoice_platform.resources import Lakehouse, LandingZone
from invoice_platform.sensors import INGESTING, ring_for_files
from invoice_platform.streaming.layout import ROOT_VARIABLE, Layout


def run(bench: Bench) -> Outcome:
    outcome = Outcome()
    work = bench.folder("sensor_tick")
    layout = Layout.at(work / "root")
    waiting, ticks = bench.size(10_000, 200), bench.size(20, 3)
    with environment(**{ROOT_VARIABLE: str(layout.root)}):
        prepare(layout)
        with instance(layout) as history:

            def tick(rings: bool) -> float:
                landing = LandingZone(lakehouse=Lakehouse(root=str(layout.root)))
                with dg.build_sensor_context(instance=history, resources={"landing": landing}) as context:
                    found: list[object] = []
                    spent = seconds(lambda: found.append(ring_for_files(context, landing, from_files(), INGESTING)))
                result = found[0]
                if not isinstance(result, dg.SensorResult) or bool(result.run_requests) is not rings:
                    raise RuntimeError(f"the sensor should {'ring' if rings else 'not ring'} and said {result}")
                return spent * 1000

            tick(False)
            for _ in range(ticks):
                outcome.add("nothing new", "ms", tick(False))
            make_split(layout.landing("invoices"), files=waiting, invoices=waiting)
            for _ in range(ticks):
                outcome.add("files waiting", "ms", tick(True))
    outcome.facts = {"files waiting": waiting, "ticks": ticks}
    return outcome


MEASURE = Measure(
    name="sensor_tick",
    title="Sensor tick, nothing new / 10,000 files waiting",
    goals=(
        Goal("nothing new ≤ 20 ms", 20, "ms", "p50", "nothing new"),
        Goal("10,000 files waiting ≤ 100 ms", 100, "ms", "p50", "files waiting"),
    ),
    run=run,
    about=(
        "One look of the sensor in this process, with Dagster's real storage under the root "
        "(`build_sensor_context`); what Dagster itself does for a tick (a call to the code server, a record) is not "
        "in it. One tick is not counted."
    ),
)
