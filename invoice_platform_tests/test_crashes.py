"""A run that is killed, wherever that is, is followed by one that loses nothing and repeats nothing.

One run is stopped at each boundary and the root copied; each copy is then put back where it was made (checkpoints hold paths), and
the next run goes on from it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from invoice_platform.assets.bronze import INVOICES_STREAM
from invoice_platform.jobs import from_files
from invoice_platform.streaming.landing import land
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.stream import RunSettings, run_streams
from invoice_platform.streaming.tables import declare_existing, tables_on_disk
from invoice_platform_tests.conftest import INVOICE_STREAMS, Platform, invoice
from invoice_platform_tests.crash import BOUNDARIES, Crash, copy_root, crashes, short_segments
from invoice_platform_tests.oracle import Lines, judge

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("CRASH_SEED", "20240301"))
FILES, LINES = 8, 5
GOLD = ("in the middle of silver", "after a gold table's merge", "SIGKILL")
"""Crashes after which the whole job runs; no gold table is begun in those before."""


def forget_tables(spark: SparkSession) -> None:
    """Let the session forget what it knows of tables that are about to be replaced behind its back."""
    for table in spark.catalog.listTables():
        if not table.isTemporary:
            spark.sql(f"DROP TABLE IF EXISTS `{table.name}`")  # only the catalog's entry
    spark._jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Lines, dict[str, Crash]]]:
    """The root, what was landed in it, and what a crash at each boundary left of it."""
    folder = tmp_path_factory.mktemp("crashed")
    layout = Layout.at(folder / "root")
    print(f"seed {SEED}")  # shown when a test fails; CRASH_SEED sets another
    lines = Lines(Random(SEED))
    (folder / "sources").mkdir()
    for number in range(FILES):
        land(lines.file(folder / "sources" / f"{number}.json", LINES), layout.landing("invoices"))
    taken = {crash.boundary: crash for crash in crashes(layout, folder / "copies", SEED)}
    print({name: crash.place for name, crash in taken.items()})
    yield layout.root, lines, taken
    shutil.rmtree(folder)


@pytest.mark.parametrize("boundary", [*BOUNDARIES, "SIGKILL"])
def test_after_a_crash_the_next_run_loses_nothing_and_repeats_nothing(
    spark: SparkSession, crashed: tuple[Path, Lines, dict[str, Crash]], boundary: str
) -> None:
    root, lines, taken = crashed
    log = root.parent / "crash.log"
    assert boundary in taken, f"seed {SEED}: the run was never seen there: {log.read_text()[-2000:]}"
    forget_tables(spark)
    shutil.rmtree(root)
    copy_root(taken[boundary].copy, root)
    layout, gold = Layout.at(root), boundary in GOLD
    with short_segments():
        run_streams(from_files() if gold else INVOICE_STREAMS, lambda: spark, layout, RunSettings(), run="the next run")
    verdict = judge(layout, lines.landed, gold=gold)
    assert verdict.right, f"seed {SEED}, {taken[boundary]}: {verdict}"
    assert verdict.landed == FILES * LINES
    assert not any(layout.landing("invoices").iterdir())


@pytest.mark.parametrize("left", ["_delta_log", "_delta_log/_staged_commits"])
def test_a_table_whose_making_was_cut_off_is_made_again_and_no_server_stumbles_over_it(
    platform: Platform, left: str
) -> None:
    (platform.layout.table("invoices") / left).mkdir(parents=True)
    (platform.layout.table("invoices") / "_delta_log" / ".00000000000000000000.json.5a1c.tmp").write_text("{")
    assert tables_on_disk(platform.layout) == []
    assert declare_existing(platform.spark, platform.layout, moved=True) == []
    platform.land("1.json", invoice("1"))
    run_streams([INVOICES_STREAM], platform.open, platform.layout, RunSettings(), run="the next run")
    assert platform.count("invoices") == 1
