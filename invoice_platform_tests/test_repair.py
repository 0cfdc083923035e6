"""Damage to checkpoints and tables: what a run says of it, and what `repair` brings back, without loss or repeat."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from invoice_platform.assets.bronze import INVOICES_STREAM, KAFKA_INVOICES_STREAM
from invoice_platform.assets.factory import STREAMS, downstream
from invoice_platform.assets.gold import NOTIFICATIONS_STREAM, STORE_SALES_STREAM
from invoice_platform.assets.silver import LINE_ITEMS_STREAM
from invoice_platform.assets.word_count import WORD_COUNT_STREAM
from invoice_platform.errors import PlatformError, StreamFailed
from invoice_platform.status import status
from invoice_platform.streaming.checkpoint import damage
from invoice_platform.streaming.damage import Damaged
from invoice_platform.streaming.landing import LandingFolder
from invoice_platform.streaming.repair import Plan, apply, plan
from invoice_platform.streaming.stream import RunSettings, Stream, run_streams
from invoice_platform.streaming.tables import commit_path, latest_version
from invoice_platform.streaming.tables import damage as table_damage
from invoice_platform_tests.conftest import INVOICE_STREAMS, Platform, invoice, item
from invoice_platform_tests.test_cli import call
from invoice_platform_tests.test_kafka_jobs import fresh_topics, send

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from invoice_platform_tests.servers import KafkaServer

pytest_plugins = ["invoice_platform_tests.servers"]

EVERY = (*INVOICE_STREAMS, STORE_SALES_STREAM, WORD_COUNT_STREAM)
RUNS = 3
"""Files that went through before the damage, a run and a micro-batch each."""


def run(platform: Platform, streams: Sequence[Stream] = EVERY) -> None:
    run_streams(streams, platform.open, platform.layout, RunSettings(), run="test")


def land(platform: Platform, name: str) -> None:
    """A file of two invoices with three line items and a bad line, and a text."""
    platform.land(f"{name}.json", invoice(f"{name}-a", item(), item()), invoice(f"{name}-b"), f"bad {name}")
    platform.land(f"{name}.txt", f"cat {name}x cat.", to="text")


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory, spark: SparkSession) -> tuple[Path, Path]:
    """A root through which three files went, and a copy of it to go back to: checkpoints hold whole paths."""
    root = tmp_path_factory.mktemp("repair") / "root"
    platform = Platform(root, spark)
    for number in range(1, RUNS + 1):
        land(platform, str(number))
        run(platform)
    platform.instance.dispose()
    return root, Path(shutil.copytree(root, root.with_name("copy")))


@pytest.fixture
def platform(worked: tuple[Path, Path], spark: SparkSession) -> Iterator[Platform]:
    """The root as three files left it."""
    root, copy = worked
    shutil.rmtree(root)
    made = Platform(root, spark)
    shutil.rmtree(root)
    shutil.copytree(copy, root)
    yield made
    made.instance.dispose()
    for table in spark.catalog.listTables():
        if not table.isTemporary:
            spark.sql(f"DROP TABLE IF EXISTS `{table.name}`")


def half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def gone(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def log(table: str, version: int = RUNS) -> str:
    return f"lakehouse/{table}/_delta_log/{version:020d}.json"


def repaired(platform: Platform, stream: str) -> Plan:
    """Repair a stream; the plan that it made."""
    fed = downstream(STREAMS[stream])
    made = plan(STREAMS[stream], fed, platform.layout)
    assert made is not None
    aside = apply(made, STREAMS[stream], fed, platform.open, platform.layout)
    assert aside.parent == platform.layout.set_aside
    assert plan(STREAMS[stream], fed, platform.layout) is None, "once is enough"
    return made


def run_and_repair(platform: Platform, streams: Sequence[Stream] = EVERY) -> list[str]:
    """Run until it goes through, repairing what each run says; the repaired streams, and the files named in those lines."""
    told: list[str] = []
    for _ in range(8):
        error = damaged(platform, streams)
        if error is None:
            return told
        assert "\n" not in str(error)
        assert f"{error.damage.file} is " in str(error)
        assert f"run `invoice-platform repair {error.stream}`" in str(error)
        told += [error.stream, str(error.damage.file.relative_to(platform.layout.root))]
        repaired(platform, error.stream)
    raise AssertionError(f"no end of it: {told}")


def damaged(platform: Platform, streams: Sequence[Stream] = EVERY) -> Damaged | None:
    """What a run says is damaged; None for one that goes through."""
    try:
        run(platform, streams)
    except Damaged as error:
        return error
    return None


def holds_each_once(platform: Platform, *names: str) -> None:
    """Every landed record is in every table once, and nothing else is."""
    numbers = sorted(f"{name}-{letter}" for name in names for letter in "ab")
    rows = platform.sql("SELECT InvoiceNumber FROM {invoices} WHERE reason IS NULL ORDER BY 1")
    assert [number for (number,) in rows] == numbers
    items = platform.sql("SELECT invoice_number, line_number FROM {invoice_line_items} ORDER BY 1, 2")
    assert items == [(number, line) for number in numbers for line in ((1, 2) if number.endswith("a") else (1,))]
    bad = sorted((f"bad {name}",) for name in names)
    assert platform.sql("SELECT raw FROM {quarantined_invoices} ORDER BY 1") == bad
    assert platform.sql("SELECT raw FROM {invoices} WHERE reason IS NOT NULL ORDER BY 1") == bad
    assert platform.sql("SELECT sum(line_items), sum(item_qty) FROM {store_daily_sales}") == [(len(items), len(items))]
    words = {("cat", 2 * len(names)), *((f"{name}x", 1) for name in names)}
    assert set(platform.sql("SELECT word, count FROM {word_count}")) == words
    assert platform.count("word_count") == len(words)


def test_what_is_whole_is_not_damaged_and_needs_no_repair(platform: Platform) -> None:
    for stream in EVERY:
        assert damage(platform.layout.checkpoint(stream.name, 1)) == []
        assert table_damage(platform.layout.table(stream.name)) == []
        assert plan(stream, downstream(stream), platform.layout) is None
    facts = status(platform.layout)
    assert {part["damage"] for kind in ("streams", "tables") for part in facts[kind].values()} == {None}


@pytest.mark.parametrize("how", [half, empty, gone])
@pytest.mark.parametrize("stream", ["invoices", "invoice_line_items", "store_daily_sales", "word_count"])
def test_each_file_that_spark_needs_is_named_when_it_is_cut_short_empty_or_gone(
    platform: Platform, stream: str, how: Callable[[Path], None]
) -> None:
    checkpoint = platform.layout.checkpoint(stream, 1)
    needed = ["metadata", "offsets/2", "offsets/1", "commits/2"]
    if stream in ("invoices", "word_count"):
        needed += ["sources/0/0", "sources/0/1", "sources/0/2"]
    for name in needed:
        content = (checkpoint / name).read_bytes()
        how(checkpoint / name)
        assert [one.file for one in damage(checkpoint)] == [checkpoint / name]
        told = status(platform.layout)["streams"][stream]["damage"]
        assert str(checkpoint / name) in told
        assert f"invoice-platform repair {stream}" in told
        (checkpoint / name).write_bytes(content)
    how(checkpoint / "offsets" / "0")
    how(checkpoint / "commits" / "0")
    assert damage(checkpoint) == [], "old ones are not read again"
    commit = platform.layout.root / log(stream)
    how(commit)
    assert [one.file for one in table_damage(platform.layout.table(stream))] == [commit]
    assert str(commit) in status(platform.layout)["tables"][stream]["damage"]


C = "checkpoints/{}/000001"
DAMAGE = {
    "checkpoints deleted, commits cut": [
        (C.format("invoices"), gone),
        (C.format("word_count"), gone),
        (C.format("invoice_line_items") + "/commits/2", gone),
        (C.format("store_daily_sales") + "/commits/2", half),
    ],
    "offsets and ids": [
        (C.format("invoices") + "/offsets/2", empty),
        (C.format("word_count") + "/offsets/2", half),
        (C.format("invoice_line_items") + "/metadata", half),
        (C.format("store_daily_sales") + "/metadata", empty),
    ],
    "sources, and sums whose offsets are lost": [
        (C.format("invoices") + "/sources/0/2", half),
        (C.format("word_count") + "/sources/0/0", empty),
        (C.format("store_daily_sales") + "/offsets/2", half),
    ],
    "line items whose offsets are lost": [
        (C.format("invoices") + "/commits/2", half),
        (C.format("word_count") + "/commits/2", empty),
        (C.format("invoice_line_items") + "/offsets/2", empty),
    ],
    "all that was known of the line items": [
        (C.format("invoices") + "/metadata", gone),
        ("checkpoints/invoice_line_items", gone),
        ("checkpoints/store_daily_sales", gone),
    ],
    "the last commit of bronze, cut": [(log("invoices"), half)],
    "the last commit of bronze, empty": [(log("invoices"), empty)],
    "the last commits of silver and words": [(log("invoice_line_items"), empty), (log("word_count"), gone)],
    "what the platform keeps": [("checkpoints/invoice_line_items/source.json", half)],
}


@pytest.mark.slow
@pytest.mark.parametrize("files", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_named_and_repaired_without_loss_or_repeat(
    platform: Platform, files: list[tuple[str, Callable[[Path], None]]]
) -> None:
    for name, how in files:
        how(platform.layout.root / name)
    land(platform, "new")
    told = run_and_repair(platform)
    for name, _ in files[:1]:
        assert name in told
    holds_each_once(platform, "1", "2", "3", "new")
    land(platform, "last")
    run(platform)
    holds_each_once(platform, "1", "2", "3", "new", "last")


def break_off(platform: Platform) -> None:
    """A run of the invoices that plans its micro-batch and fails before the table has it."""
    from pyspark.sql import functions as F

    def burns(lines: DataFrame) -> DataFrame:
        rows = INVOICES_STREAM.transform(lines)
        return rows.withColumn("source_file", F.expr("raise_error('the disk is on fire')").cast("string"))

    with pytest.raises(StreamFailed, match="stream 'invoices' failed"):
        run(platform, [replace(INVOICES_STREAM, transform=burns)])


def forget_commit(platform: Platform, batch: int) -> None:
    """As if the run had been killed between the table's commit and the checkpoint's."""
    commits = platform.layout.checkpoint("invoices", 1) / "commits"
    (commits / str(batch)).unlink()
    (commits / f".{batch}.crc").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["offsets/3", "metadata", "offsets/2"])
@pytest.mark.parametrize("in_table", [True, False])
def test_a_micro_batch_that_was_broken_off_is_neither_lost_nor_repeated(
    platform: Platform, name: str, in_table: bool
) -> None:
    land(platform, "4")
    if in_table:
        run(platform)
        forget_commit(platform, 3)
    else:
        break_off(platform)
    empty(platform.layout.checkpoint("invoices", 1) / name)
    land(platform, "new")
    error = damaged(platform)
    assert error is not None
    assert error.damage.file == platform.layout.checkpoint("invoices", 1) / name
    made = repaired(platform, "invoices")
    in_place = name == "metadata" or (name == "offsets/3" and not in_table)
    assert ("leave" in [step.do for step in made.steps]) is not in_place
    run(platform)
    holds_each_once(platform, "1", "2", "3", "4", "new")


@pytest.mark.slow
def test_a_checkpoint_from_an_old_copy_is_not_taken_for_the_newest(platform: Platform) -> None:
    checkpoint = platform.layout.checkpoint("invoices", 1)
    shutil.copytree(checkpoint, checkpoint.parent / "copy")
    land(platform, "4")
    run(platform)
    shutil.rmtree(checkpoint)
    (checkpoint.parent / "copy").rename(checkpoint)
    land(platform, "new")
    error = damaged(platform)
    assert "offsets/3 is missing, though the table has micro-batch 3 of this checkpoint" in str(error)
    repaired(platform, "invoices")
    run(platform)
    holds_each_once(platform, "1", "2", "3", "4", "new")


@pytest.mark.slow
def test_a_run_that_was_killed_before_it_wrote_down_what_it_did_needs_no_ledger_for_the_guard(
    platform: Platform,
) -> None:
    INVOICES_STREAM.source.landing(platform.layout, "invoices").ledger.undrain(1)  # type: ignore[attr-defined]
    gone(platform.layout.checkpoint("invoices", 1))
    error = damaged(platform)
    assert "000001 is missing, though 9 rows of segment 1 are in the table" in str(error)
    repaired(platform, "invoices")
    run(platform)
    holds_each_once(platform, "1", "2", "3")


@pytest.mark.slow
def test_an_interrupted_repair_holds_the_streams_back_and_is_finished_by_the_next(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone(platform.layout.checkpoint("invoices", 1))
    for name in ("new", "newer"):
        land(platform, name)
    LandingFolder(platform.layout, "invoices", "invoices").admit()
    moved: list[str] = []

    def interrupted(old: str | Path, new: str | Path) -> None:
        if platform.layout.accepted("invoices") in Path(old).parents:
            if moved:
                raise KeyboardInterrupt
            moved.append(Path(old).name)
        os.rename(old, new)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            repaired(platform, "invoices")
    assert len(moved) == 1
    for stream in (INVOICES_STREAM, LINE_ITEMS_STREAM):
        with pytest.raises(PlatformError, match=r"a repair was interrupted \(.*run `invoice-platform repair invoices`"):
            run(platform, [stream])
    assert repaired(platform, "invoices").goes_on
    run(platform)
    holds_each_once(platform, "1", "2", "3", "new", "newer")


def test_repair_shows_its_plan_and_asks_and_says_when_there_is_nothing_to_do(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INVOICE_PLATFORM_ROOT", str(platform.layout.root))
    assert call(monkeypatch, "repair", "invoices") == 0
    assert capsys.readouterr().out == "invoices: nothing to repair\n"
    checkpoint = platform.layout.checkpoint("invoices", 1)
    gone(checkpoint)
    before = sorted(platform.layout.root.rglob("*"))
    assert call(monkeypatch, "repair", "invoices") == 1
    shown = capsys.readouterr()
    assert f"{checkpoint} is missing, though 3 files of segment 1 went through it" in shown.out
    assert "3 of the 3 files of segment 1 are in the table, 9 rows" in shown.out
    assert "nothing was changed: give --yes" in shown.err
    assert sorted(platform.layout.root.rglob("*")) == before
    assert call(monkeypatch, "repair", "invoices", "--yes") == 0
    assert "invoices: repaired; its next run goes on" in capsys.readouterr().out
    assert call(monkeypatch, "repair", "nothing") == 1
    assert "there is no stream 'nothing'" in capsys.readouterr().err


@pytest.fixture
def topics(platform: Platform, kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch) -> KafkaServer:  # noqa: ARG001
    """A Kafka that the platform finds, with empty topics."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", kafka.connection.bootstrap_servers)
    fresh_topics(kafka)
    return kafka


def numbers(platform: Platform, table: str = "kafka_invoices", column: str = "InvoiceNumber") -> list[str]:
    return sorted(number for (number,) in platform.sql(f"SELECT {column} FROM {{{table}}}"))


@pytest.mark.slow
def test_a_topic_is_read_on_after_the_last_offset_that_the_table_has(platform: Platform, topics: KafkaServer) -> None:
    streams = (KAFKA_INVOICES_STREAM, LINE_ITEMS_STREAM)
    sent: list[str] = []

    def send_one() -> None:
        sent.append(f"k{len(sent)}")
        send(topics, invoice(sent[-1]))

    send_one()
    send_one()
    run(platform, streams)
    folder, table = platform.layout.checkpoints / "kafka_invoices", platform.layout.table("kafka_invoices")
    last_commit = "the last commit"
    damages: list[tuple[str, Callable[[Path], None], str]] = [
        ("000001", gone, "missing, though 2 rows came through it"),
        ("000002/offsets/0", half, "cut short"),
        ("000003/sources/0/0", empty, "empty"),
        ("", gone, "missing, though 5 rows came through it"),
        (last_commit, half, "cut short"),
        (last_commit, empty, "empty"),
    ]
    for name, how, what in damages:
        how(commit_path(table, latest_version(table)) if name == last_commit else folder / name)
        send_one()
        error = damaged(platform, streams)
        assert what in str(error)
        made = repaired(platform, "kafka_invoices")
        assert [step.do for step in made.steps if step.do.startswith("restart")] == ["restart_topics"]
        run(platform, streams)
        assert numbers(platform) == sent
        items = platform.sql(
            "SELECT invoice_number FROM {invoice_line_items} WHERE source_file LIKE 'kafka:%' ORDER BY 1"
        )
        assert [number for (number,) in items] == sent
    fresh_topics(topics)
    send(topics, invoice("anew"))
    with pytest.raises(
        PlatformError, match="made anew, so its offsets begin again: run `invoice-platform repair kafka"
    ):
        run(platform, streams)
    repaired(platform, "kafka_invoices")
    run(platform, streams)
    assert numbers(platform) == ["anew", *sent]


@pytest.mark.slow
def test_what_a_stream_sends_is_sent_again_under_the_same_ids_where_nothing_tells_what_was_sent(
    platform: Platform, topics: KafkaServer
) -> None:
    run(platform, [NOTIFICATIONS_STREAM])
    first = topics.read("loyalty_notifications")
    empty(platform.layout.checkpoint("loyalty_notifications", 1) / "offsets" / "0")
    land(platform, "new")
    error = damaged(platform, [*EVERY, NOTIFICATIONS_STREAM])
    assert "offsets/0 is empty" in str(error)
    assert "SENT AGAIN" in repaired(platform, "loyalty_notifications").text
    run(platform, [NOTIFICATIONS_STREAM])
    sent = topics.read("loyalty_notifications")
    told = sorted(f"{name}-{letter}" for name in ("1", "2", "3", "new") for letter in "ab")
    assert numbers(platform, "loyalty_notifications", "invoice_number") == told, "once in the table"
    assert len(sent) == len(first) + len(told)
    assert len({record.headers["record-id"] for record in sent}) == len(told)
