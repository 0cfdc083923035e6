"""Processes that die or are told to end, one root after the other way: what is left is said, ended, and gone on from.

All over one real warm Spark, but for what embeds its own. At the end of each test the oracle holds.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from invoice_platform.assets.bronze import INVOICES_STREAM
from invoice_platform.broker import free_port
from invoice_platform.streaming.landing import LandingFolder, land
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.lock import stream_lock
from invoice_platform.streaming.sources import LandedFiles
from invoice_platform.streaming.state import read_state
from invoice_platform_tests.conftest import wait_until
from invoice_platform_tests.oracle import Lines, judge
from invoice_platform_tests.processes import Command, Warm, command, done, ended_in, rows

pytestmark = pytest.mark.slow

END_SECONDS = 60
"""A limit for what takes about 5 s on a machine of its own; 15 are promised."""
CONTINUOUS = json.dumps(
    {
        "ops": {
            "stream_all_invoices": {
                "config": {"trigger": "1 second", "streams": ["invoices", "invoice_line_items", "quarantined_invoices"]}
            }
        }
    }
)


@dataclass
class Root:
    """A root, what was landed in it, and its warm Spark."""

    layout: Layout
    warm: Warm | None = None
    lines: Lines = field(default_factory=lambda: Lines(Random(5)))
    files: int = 0

    def land(self, count: int = 20) -> int:
        """Land a file of new lines; how many lines there are by now."""
        self.files += 1
        file = self.lines.file(self.layout.root.parent / f"{self.files}.json", count)
        land(file, self.layout.landing("invoices"))
        return len(self.lines.landed)

    @property
    def landing(self) -> LandingFolder:
        assert isinstance(INVOICES_STREAM.source, LandedFiles)
        return INVOICES_STREAM.source.landing(self.layout, "invoices")

    def ingest(self) -> str:
        """A run that goes through; what it printed. Everything landed is in the tables afterwards, once."""
        said = done(self.layout, "run", "ingest_invoices")
        verdict = judge(self.layout, self.lines.landed)
        assert verdict.right, verdict
        return said

    def wait_for(self, count: int, run: Command, table: str = "invoices") -> None:
        wait_until(lambda: rows(self.layout, table) >= count or not run.going, 180, f"{count} rows in {table}")
        assert run.going, run.said


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Root]:
    made = Root(Layout.at(tmp_path_factory.mktemp("dead") / "root"))
    made.warm = Warm(made.layout)
    try:
        yield made
    finally:
        made.warm.close()


def test_a_killed_run_is_taken_over_and_what_it_left_running_is_ended(root: Root) -> None:
    with command(root.layout, "run", "stream_invoices", "--config", CONTINUOUS) as run:
        root.wait_for(root.land(), run)
        refused = done(root.layout, "run", "ingest_invoices", ok=False)
        assert f"is held by run {read_state(root.layout.checkpoints / 'invoices' / '.lock.json')['run'][4:]}" in refused
        assert "Traceback" not in refused
        run.signal(signal.SIGKILL)
        run.wait()
    expected = root.land()
    root.landing.admit()  # nobody runs, and still it is read: by what the dead run left in the warm Spark
    wait_until(lambda: rows(root.layout, "invoices") == expected, 60, "the orphaned query")
    root.land()
    said = root.ingest()
    for stream in ("invoices", "invoice_line_items", "quarantined_invoices"):
        assert f"{stream}: checkpoint taken over from run " in said
    assert f"(process {run.process.pid} on " in said
    assert ", dead)" in said
    assert "invoices: its session in the warm Spark is ended, and what still ran in it" in said
    before = rows(root.layout, "invoices")
    root.land()
    root.landing.admit()  # the next test's run reads it
    time.sleep(5)
    assert rows(root.layout, "invoices") == before, "nothing runs any more"


def test_a_second_platform_on_the_root_is_refused_in_one_line(root: Root) -> None:
    for words in (("serve", "--spark-port"), ("up", "--ui-port", str(free_port()), "--spark-port")):
        refused = done(root.layout, *words, str(free_port()), ok=False)
        assert f"a warm Spark is up for {root.layout.root} already (process " in refused
        assert "Traceback" not in refused


def test_a_continuous_run_over_the_warm_spark_ends_when_it_is_told_to(root: Root) -> None:
    with command(root.layout, "run", "stream_invoices", "--config", CONTINUOUS) as run:
        root.wait_for(root.land(), run)
        root.land(1000)
        print(f"SIGTERM, warm: {ended_in(run, signal.SIGTERM, END_SECONDS):.1f} s")
        assert run.process.returncode not in (0, -signal.SIGTERM)
        assert (
            run.last_line
            == "invoice-platform: stream_invoices failed: it was told to end; its next run goes on from there"
        )
        assert "Traceback" not in run.said
    with stream_lock(root.layout, "invoices", "the test"):
        pass  # free
    before = rows(root.layout, "invoices")
    root.landing.admit()
    time.sleep(5)
    assert rows(root.layout, "invoices") == before, "no query goes on"
    assert "taken over" not in root.ingest()


def test_a_run_whose_warm_spark_is_killed_fails_in_one_line_and_the_next_is_right(root: Root) -> None:
    assert root.warm is not None
    with command(root.layout, "run", "stream_invoices", "--config", CONTINUOUS) as run:
        root.wait_for(root.land(), run)
        started = time.monotonic()
        root.warm.kill()
        assert run.wait(120) == 1
        print(f"warm Spark killed: the run ends after {time.monotonic() - started:.1f} s: {run.last_line}")
        assert run.last_line.startswith("invoice-platform: stream_invoices failed: "), run.said
        assert "the warm Spark" in run.last_line
        assert "Traceback" not in run.said
    root.warm.serve.wait(60)
    assert "ended by itself" in root.warm.serve.said
    root.warm.close()
    root.land()
    root.warm = Warm(root.layout)
    root.ingest()


def test_a_run_with_its_own_spark_ends_and_leaves_nothing_whether_it_is_told_to_or_killed(tmp_path: Path) -> None:
    root = Root(Layout.at(tmp_path / "root"))
    for _ in range(20):
        root.land(10)
    offsets = root.layout.checkpoint("invoices", 1) / "offsets"
    for number, batch in ((signal.SIGKILL, 2), (signal.SIGTERM, 5)):
        with command(root.layout, "run", "ingest_invoices", "--max-files-per-trigger", "1") as run:
            wait_until(lambda n=batch, r=run: (offsets / str(n)).exists() or not r.going, 240, "a micro-batch")
            assert run.going, run.said
            print(f"{number.name}, embedded: {ended_in(run, number, END_SECONDS):.1f} s")  # its Spark, too
            assert run.process.returncode != 0, run.said
            assert "Traceback" not in run.said
            assert rows(root.layout, "invoices") < 200, "in the middle"
            assert ("taken over from run" in run.said) is (number == signal.SIGTERM)
            assert ("told to end; its next run goes on" in run.said) is (number == signal.SIGTERM)
    with stream_lock(root.layout, "invoices", "the test"):
        pass  # free
    assert "taken over" not in root.ingest()
