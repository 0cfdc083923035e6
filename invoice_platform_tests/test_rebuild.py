"""A rebuild and a reset that are interrupted at each of their steps: the old tables or the new ones, and streams that go on.

An accepted file that no stream has read tells new tables from old ones: each new table has a row more.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from invoice_platform.assets.factory import STREAMS
from invoice_platform.assets.gold import REWARDS_STREAM
from invoice_platform.cli import main
from invoice_platform.errors import PlatformError
from invoice_platform.status import status
from invoice_platform.streaming import rebuild as rebuilding
from invoice_platform.streaming import state
from invoice_platform.streaming.landing import LandingFolder
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.ledger import Ledger
from invoice_platform.streaming.lock import stream_lock
from invoice_platform.streaming.rebuild import rebuild
from invoice_platform.streaming.reset import made, reset
from invoice_platform.streaming.stream import RunSettings, run_streams
from invoice_platform.streaming.tables import declare_existing, latest_version, open_delta
from invoice_platform.streaming.unfinished import finish_interrupted
from invoice_platform_tests.conftest import INVOICE_STREAMS, Platform, invoice, item

CHAIN = (*INVOICE_STREAMS, REWARDS_STREAM)
"""Landed files, two streams without state and one with, which also reads a table that is not rebuilt."""
NAMES = tuple(stream.name for stream in CHAIN)
Rows = dict[str, list[str]]


class Killed(BaseException):
    """The process ends here: nobody tidies up."""


class Steps:
    """Counts steps as they are done, and ends the process before a chosen one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, end_before: int | None = None) -> None:
        self.monkeypatch = monkeypatch
        self.end_before = end_before
        self.done: list[str] = []

    def watch(self, owner: Any, name: str, counts: Callable[..., bool] = lambda *_: True) -> None:
        real = getattr(owner, name)

        def step(*args: Any, **options: Any) -> Any:
            if counts(*args):
                if len(self.done) == self.end_before:
                    raise Killed
                self.done.append(f"{name} {args[0] if args else ''}")
            return real(*args, **options)

        self.monkeypatch.setattr(owner, name, step)

    def watch_files(self) -> None:
        """Everything that changes a folder, but for locks, which the system takes back from a dead process."""
        for name in ("rename", "replace", "link", "unlink", "rmdir", "mkdir"):
            self.watch(os, name, lambda path, *_: ".lock" not in str(path))
        self.watch(Ledger, "all_drained")


def run_chain(platform: Platform) -> list[int]:
    settings = RunSettings()
    return [s.rows_added for s in run_streams(CHAIN, platform.open, platform.layout, settings, run="test")]


def rows(layout: Layout) -> Rows:
    """Every row of every table as a reader without Spark sees it, sorted, repeats kept."""
    found: Rows = {}
    for name in NAMES:
        table = open_delta(layout.table(name))
        found[name] = sorted(map(str, table.to_pyarrow_table().to_pylist())) if table is not None else []
    return found


def each_is_wholly_one_of(found: Rows, *kinds: Rows) -> None:
    for name in NAMES:
        assert found[name] in [kind[name] for kind in kinds], name


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file under a folder with what it holds; of a ledger, what it says. Without locks and half-written states."""
    found: dict[str, bytes | None] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and ".lock" not in path.name and path.suffix != ".tmp":
            if path.name == "ledger.sqlite":
                with sqlite3.connect(path) as connection:
                    found[path.relative_to(folder).as_posix()] = "\n".join(connection.iterdump()).encode()
            else:
                found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


def an_invoice_more(number: str) -> tuple[dict[str, Any], str]:
    """Lines that give each table a row more: a card of its own, and a line that is no invoice."""
    return invoice(number, item(number), CustomerCardNo=f"card {number}"), f"bad {number}"


@pytest.fixture
def old(platform: Platform) -> Rows:
    """Tables with two files in them, and a third one accepted that no stream has read."""
    for number in ("1", "2"):
        platform.land(f"{number}.json", *an_invoice_more(number))
    run_chain(platform)
    found = rows(platform.layout)
    assert [len(found[name]) for name in NAMES] == [4, 2, 2, 2]
    platform.land("3.json", *an_invoice_more("3"))
    LandingFolder(platform.layout, "invoices", "invoices").admit()
    return found


def go_on_exactly_once(platform: Platform, before: int) -> None:
    """A run with a new file gives each table what is missing, once; a further one gives it nothing."""
    platform.land("4.json", *an_invoice_more("4"))
    more = 4 - before
    assert run_chain(platform) == [2 * more, more, more, more]
    assert run_chain(platform) == [0, 0, 0, 0]
    assert platform.sql("SELECT raw FROM {quarantined_invoices} ORDER BY 1") == [(f"bad {n}",) for n in (1, 2, 3, 4)]
    assert platform.sql("SELECT item_code FROM {invoice_line_items} ORDER BY 1") == [("1",), ("2",), ("3",), ("4",)]
    assert platform.sql("SELECT customer_card_no, invoices FROM {customer_rewards} ORDER BY 1") == [
        (f"card {n}", 1) for n in (1, 2, 3, 4)
    ]


@pytest.mark.slow
def test_a_rebuild_that_is_ended_while_it_stages_has_changed_nothing_and_the_streams_go_on(
    platform: Platform, old: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    def watched(end_before: int | None) -> Steps:
        steps = Steps(patched, end_before)
        for name in ("write_state", "_copy_log", "run_batch", "_mark", "rebuild_state", "swap"):
            steps.watch(rebuilding, name)
        steps.watch(Ledger, "close_all")
        return steps

    checkpoints = sorted(path.name for path in platform.layout.checkpoints.glob("*/0*"))
    with monkeypatch.context() as patched:
        everything = watched(None)
        patched.setattr(rebuilding, "alone", _end)  # all is staged, and nothing of it is planned
        with pytest.raises(Killed):
            rebuild(CHAIN, platform.open, platform.layout, run="test")
    count = len(everything.done)
    assert count >= 16, everything.done
    assert rows(platform.layout) == old
    # Every third step: each costs what is staged before it.
    for end_before in range(1, count, 3):
        with monkeypatch.context() as patched:
            watched(end_before)
            with pytest.raises(Killed):
                rebuild(CHAIN, platform.open, platform.layout, run="test")
        assert rows(platform.layout) == old, everything.done[end_before]
    assert list(platform.layout.staging.iterdir()), "what a kill left"
    go_on_exactly_once(platform, before=2)
    assert list(platform.layout.staging.iterdir()) == [], "and the run has removed"
    assert sorted(path.name for path in platform.layout.checkpoints.glob("*/0*")) == [*checkpoints, "000002"], (
        "checkpoints that were filled in vain are gone; a segment was opened"
    )


def _end(*args: Any) -> None:  # noqa: ARG001
    raise Killed


@pytest.fixture
def planned(platform: Platform, old: Rows, monkeypatch: pytest.MonkeyPatch) -> Rows:
    """A root in which a rebuild was ended when all was staged and planned, and nothing moved."""
    with monkeypatch.context() as patched:
        patched.setattr(rebuilding, "swap", _end)
        with pytest.raises(Killed):
            rebuild(CHAIN, platform.open, platform.layout, run="test")
    assert rows(platform.layout) == old
    return old


@pytest.mark.slow
def test_a_swap_that_is_ended_at_any_step_is_rolled_forward_without_spark_and_the_streams_go_on(
    platform: Platform, planned: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(name: str) -> Layout:
        shutil.copytree(platform.layout.root, tmp_path / name)
        return Layout.at(tmp_path / name)

    whole = copy("whole")
    with monkeypatch.context() as patched:
        steps = Steps(patched)
        steps.watch_files()
        finish_interrupted(whole)
    new = rows(whole)
    assert [len(new[name]) - len(planned[name]) for name in NAMES] == [2, 1, 1, 1]
    assert list(whole.staging.iterdir()) == []
    assert len(steps.done) > 30, steps.done

    two = copy("two")
    finish_four_times_at_once(two)
    assert tree(two.root) == tree(whole.root)

    seen: set[int] = set()
    for end_before in range(len(steps.done)):
        layout = copy("part")
        with monkeypatch.context() as patched:
            Steps(patched, end_before).watch_files()
            with pytest.raises(Killed):
                finish_interrupted(layout)
        found = rows(layout)
        each_is_wholly_one_of(found, planned, new)
        seen.add(sum(found[name] == new[name] for name in NAMES))
        finish_interrupted(layout)
        assert tree(layout.root) == tree(whole.root), steps.done[end_before]
        shutil.rmtree(layout.root)
    assert seen == {0, 1, 2, 3, 4}, "ended between any two tables"

    with monkeypatch.context() as patched:
        Steps(patched, len(steps.done) // 2).watch_files()
        with pytest.raises(Killed):
            finish_interrupted(platform.layout)
    go_on_exactly_once(platform, before=3)
    rebuild(CHAIN, platform.open, platform.layout, run="test")
    assert run_chain(platform) == [0, 0, 0, 0]


def finish_four_times_at_once(layout: Layout) -> None:
    errors: list[BaseException] = []

    def finish() -> None:
        try:
            finish_interrupted(layout)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=finish) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []


@pytest.mark.slow
def test_sql_rolls_a_swap_forward_and_a_table_that_somebody_else_writes_is_not_replaced(
    platform: Platform, planned: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(platform.layout.root, tmp_path / "foreign")
    foreign = Layout.at(tmp_path / "foreign")
    table = foreign.table("invoice_line_items")
    commit = table / "_delta_log" / f"{latest_version(table) + 1:020d}.json"
    commit.write_text('{"commitInfo":{"operation":"WRITE"}}\n')
    with pytest.raises(PlatformError, match=r"written by somebody else .*: delete \S+/\.rebuild/\w+\.json to leave it"):
        finish_interrupted(foreign)
    assert rows(foreign)["invoice_line_items"] == planned["invoice_line_items"]

    declare_existing(platform.spark, platform.layout)
    before = rows(platform.layout)
    assert [len(before[name]) - len(planned[name]) for name in NAMES] == [2, 1, 1, 1]
    stage = rebuilding._stage

    def and_somebody_writes(*args: Any) -> Any:
        result = stage(*args)
        platform.spark.sql(f"DELETE FROM delta.`{platform.layout.table('customer_rewards')}` WHERE points > 0")
        return result

    with monkeypatch.context() as patched:
        patched.setattr(rebuilding, "_stage", and_somebody_writes)
        with pytest.raises(PlatformError, match=r"table customer_rewards was written while it was rebuilt .*again$"):
            rebuild(CHAIN, platform.open, platform.layout, run="test")
    assert rows(platform.layout) == before | {"customer_rewards": []}
    assert list(platform.layout.staging.iterdir()) == []


def test_a_rebuild_that_fails_says_so_and_leaves_nothing(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    platform.land("1.json", invoice("1"))
    run_streams(INVOICE_STREAMS, platform.open, platform.layout, RunSettings(), run="test")
    before = rows(platform.layout)

    def no_space(*args: Any) -> None:  # noqa: ARG001
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(rebuilding, "_mark", no_space)
        with pytest.raises(OSError, match="No space left"):
            rebuild(INVOICE_STREAMS, platform.open, platform.layout, run="test")
    assert rows(platform.layout) == before
    assert list(platform.layout.staging.iterdir()) == [], "at once: the disk may be full"
    platform.land("2.json", invoice("2"))
    summaries = run_streams(INVOICE_STREAMS, platform.open, platform.layout, RunSettings(), run="test")
    assert [s.rows_added for s in summaries] == [1, 1, 0]


KEPT = ("landing", "dagster", "kafka", "logs", "sources")


@pytest.fixture
def used(platform: Platform) -> Platform:
    """A root that was used, with a file that waits in landing and things that a reset has to leave alone."""
    platform.land("1.json", invoice("1"), "bad")
    run_streams(INVOICE_STREAMS, platform.open, platform.layout, RunSettings(), run="test")
    platform.land("2.json", invoice("2"))
    for name in ("dagster/storage", "kafka/data", "exports/orders/000001"):
        (platform.layout.root / name).mkdir(parents=True)
        (platform.layout.root / name / "file").write_text("x")
    state.write_state(platform.layout.checked, {"through": {}})
    return platform


def kept(root: Path) -> dict[str, bytes | None]:
    return {name: content for name, content in tree(root).items() if name.split("/")[0] in KEPT}


@pytest.mark.slow
def test_a_reset_that_is_ended_at_any_step_is_finished_or_has_changed_nothing(
    used: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, waiting = tree(used.layout.root), kept(used.layout.root)
    assert len(before) > len(waiting) > 3
    tables = rows(used.layout)

    def attempt(name: str, end_before: int | None) -> tuple[Layout, Steps]:
        shutil.copytree(used.layout.root, tmp_path / name)
        layout = Layout.at(tmp_path / name)
        with monkeypatch.context() as patched:
            steps = Steps(patched, end_before)
            steps.watch_files()
            if end_before is None:
                reset(layout, STREAMS, run="test")
            else:
                with pytest.raises(Killed):
                    reset(layout, STREAMS, run="test")
        return layout, steps

    whole, steps = attempt("whole", None)
    assert tree(whole.root) == waiting, "nothing else is left, and nothing of this is touched"
    assert made(whole) == []
    kinds: set[str] = set()
    for end_before in range(len(steps.done)):
        layout, _ = attempt(f"part {end_before}", end_before)
        found = rows(layout)
        assert found in (tables, {name: [] for name in NAMES}), "all tables or none"
        finish_interrupted(layout)
        after = tree(layout.root)
        assert after in (before, waiting), steps.done[end_before]
        kinds.add("nothing" if after == before else "finished, old tables" if found == tables else "finished")
        shutil.rmtree(layout.root)
    assert kinds == {"nothing", "finished, old tables", "finished"}


def test_after_a_reset_what_is_landed_again_is_read_again_though_the_catalog_knows_the_names_of_old_tables(
    used: Platform,
) -> None:
    declare_existing(used.spark, used.layout)
    reset(used.layout, STREAMS, run="test")
    assert declare_existing(used.spark, used.layout) == []
    with pytest.raises(Exception, match=r"invoices` doesn't exist"):
        used.spark.sql("SELECT * FROM invoices").collect()
    used.land("1.json", invoice("1"), "bad")
    summaries = run_streams(INVOICE_STREAMS, used.open, used.layout, RunSettings(), run="test")
    assert [s.rows_added for s in summaries] == [3, 2, 1], "and the file that waited"
    assert {s.name for s in INVOICE_STREAMS} <= set(declare_existing(used.spark, used.layout))
    assert used.spark.sql("SELECT count(*) FROM invoices").first() == (3,)
    assert (table := open_delta(used.layout.table("invoices"))) is not None
    assert table.metadata().configuration["invoice_platform.declared"] == "true", "made as it is declared"


def command(monkeypatch: pytest.MonkeyPatch, root: Path, *words: str) -> int:
    monkeypatch.setenv("INVOICE_PLATFORM_ROOT", str(root))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.argv", ["invoice-platform", *words])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_the_command_shows_what_it_would_remove_and_removes_nothing_unasked_or_while_a_run_goes(
    used: Platform, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = used.layout.root
    before = tree(root)
    assert command(monkeypatch, root, "reset") == 1
    shown = capsys.readouterr()
    assert "nothing was removed: give --yes" in shown.err
    for folder in ("lakehouse/invoices", "accepted/invoices", "checkpoints/invoices", "exports/orders"):
        assert folder in shown.out
    assert "landing" not in shown.out

    for stream in ("invoice_line_items", "word_count"):  # the one has run here, the other is declared
        with stream_lock(used.layout, stream, "run 7"):
            assert command(monkeypatch, root, "reset", "--yes") == 1
        assert "is held by run 7" in capsys.readouterr().err
    assert tree(root) == before

    assert command(monkeypatch, root, "reset", "--yes") == 0
    assert tree(root) == {name: content for name, content in before.items() if name.split("/")[0] in KEPT}
    assert command(monkeypatch, root, "reset") == 0, "nothing is left to ask about"
    shown_by_status = status(used.layout)
    assert (shown_by_status["streams"], shown_by_status["tables"]) == ({}, {})
