"""Streams over real Spark and Delta: micro-batches, triggers, restarts, segments, rebuilds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from invoice_platform.assets.bronze import INVOICES_STREAM
from invoice_platform.assets.word_count import WORD_COUNT_STREAM
from invoice_platform.errors import PlatformError, StreamFailed, StreamLocked
from invoice_platform.streaming import tables
from invoice_platform.streaming.landing import LandingFolder
from invoice_platform.streaming.lock import stream_lock
from invoice_platform.streaming.rebuild import rebuild
from invoice_platform.streaming.sources import LandedFiles
from invoice_platform.streaming.stream import RunSettings, RunSummary, Stream, run_stream, run_streams
from invoice_platform.streaming.tables import checkpoints_of, commit_path, facts
from invoice_platform.streaming.trigger import Trigger
from invoice_platform_tests.conftest import INVOICE_STREAMS, Platform, invoice, item, wait_until
from invoice_platform_tests.test_repair import forget_commit

ONE_FILE = RunSettings(max_files_per_trigger=1)
ALL_FILES = RunSettings()


def run(platform: Platform, stream: Stream = INVOICES_STREAM, settings: RunSettings = ALL_FILES) -> RunSummary:
    return run_stream(stream, platform.open, platform.layout, settings, run="test")


def run_all(platform: Platform, settings: RunSettings = ALL_FILES) -> list[RunSummary]:
    return run_streams(INVOICE_STREAMS, platform.open, platform.layout, settings, run="test")


def numbers(platform: Platform) -> list[str]:
    return sorted(row[0] for row in platform.sql("SELECT InvoiceNumber FROM {invoices}"))


def short_segments(files: int) -> Stream:
    """The invoices stream, with segments of a few files."""
    return Stream(
        "invoices", LandedFiles("invoices", segment_files=files), INVOICES_STREAM.transform, INVOICES_STREAM.sink
    )


def test_two_files_one_at_a_time_are_two_micro_batches_in_order_of_arrival(platform: Platform) -> None:
    platform.land("zz-first.json", invoice("1"))
    platform.land("aa-second.json", invoice("2"))
    summary = run(platform, settings=ONE_FILE)
    assert [b.rows for b in summary.batches] == [1, 1]
    assert (summary.files, summary.rows_added, summary.rows_read) == (2, 2, 2)
    versions = platform.sql(
        "SELECT InvoiceNumber, _metadata.file_modification_time FROM {invoices} ORDER BY _metadata.file_modification_time"
    )
    assert [row[0] for row in versions] == ["1", "2"], "each micro-batch is a commit of its own"

    again = run(platform, settings=ONE_FILE)
    assert (again.batches, again.rows_added, again.files) == ([], 0, 0)
    assert numbers(platform) == ["1", "2"]
    assert again.after == again.before


def test_after_each_of_three_runs_the_tables_hold_what_was_landed_so_far(platform: Platform) -> None:
    landed_items = 0
    for n in range(1, 4):
        documents = [invoice(f"{n}-{k}", *[item()] * (k + 1)) for k in range(n)]
        landed_items += sum(len(d["InvoiceLineItems"]) for d in documents)
        platform.land(f"{n}.json", *documents, "not an invoice")
        run_all(platform)
        assert platform.count("invoices") == sum(range(1, n + 1)) + n
        assert platform.count("invoice_line_items") == landed_items
        assert platform.count("quarantined_invoices") == n


@contextmanager
def continuous(platform: Platform, settings: RunSettings, **options: Any) -> Iterator[dict[str, Any]]:
    """The invoice streams running in a thread until the block ends."""
    done: dict[str, Any] = {"batches": [], "reports": []}
    stop = threading.Event()

    def on_batch(stream: str, batch: Any) -> None:
        done["batches"].append((stream, batch))

    def work() -> None:
        try:
            done["summaries"] = run_streams(
                options.pop("streams", INVOICE_STREAMS),
                platform.open,
                platform.layout,
                settings,
                run="test",
                on_batch=on_batch,
                on_report=done["reports"].append,
                told_to_stop=stop.is_set,
                **options,
            )
        except BaseException as error:
            done["error"] = error

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join(120)
        assert not thread.is_alive()
    if "error" in done:
        raise done["error"]


@pytest.mark.slow
def test_a_two_second_interval_takes_up_each_file_as_it_lands(platform: Platform) -> None:
    settings = RunSettings(Trigger.parse("2 seconds"))
    with continuous(platform, settings, report_seconds=2.0) as done:
        for n in range(1, 4):
            platform.land(f"{n}.json", invoice(str(n), item(), item()))
            wait_until(
                lambda n=n: (
                    "error" in done or ((t := facts(platform.layout.table("invoice_line_items"))) and t.rows == 2 * n)
                ),
                60,
                f"line items of file {n}",
            )
    assert numbers(platform) == ["1", "2", "3"]
    assert platform.count("invoice_line_items") == 6
    assert {"invoices", "invoice_line_items", "quarantined_invoices"} == {s.stream for s in done["summaries"]}
    everything = [*done["reports"], *done["summaries"]]
    assert sum(s.files for s in everything if s.stream == "invoices") == 3, "each file is reported once"
    assert sum(s.rows_added for s in everything if s.stream == "invoice_line_items") == 6
    assert [q.name for q in platform.spark.streams.active] == []


@pytest.mark.slow
def test_an_unspecified_trigger_runs_until_its_time_and_finishes_what_it_admitted(platform: Platform) -> None:
    platform.land("1.json", invoice("1"))
    summary = run(platform, settings=RunSettings(Trigger.parse("unspecified"), run_for_seconds=1))
    assert (summary.rows_added, summary.files, summary.trigger) == (1, 1, "unspecified")
    assert numbers(platform) == ["1"]
    assert platform.spark.streams.active == []


@pytest.mark.slow
def test_a_continuous_run_goes_on_in_the_next_segment(platform: Platform) -> None:
    stream = short_segments(1)
    settings = RunSettings(Trigger.parse("unspecified"))
    with continuous(platform, settings, streams=[stream]) as done:
        for n in range(1, 4):
            platform.land(f"{n}.json", invoice(str(n)))
            wait_until(
                lambda n=n: "error" in done or ((t := facts(platform.layout.table("invoices"))) and t.rows == n),
                60,
                f"file {n}",
            )
    assert numbers(platform) == ["1", "2", "3"]
    assert {batch.segment for _, batch in done["batches"]} == {1, 2, 3}
    assert run(platform, stream).rows_added == 0


def test_full_segments_are_left_and_never_read_again(platform: Platform) -> None:
    stream = short_segments(2)
    for n in range(1, 6):
        platform.land(f"{n}.json", invoice(str(n)))
        summary = run(platform, stream)
        assert summary.rows_added == 1
        assert [b.segment for b in summary.batches] == [(n + 1) // 2]
    assert numbers(platform) == ["1", "2", "3", "4", "5"]


def test_a_run_that_failed_is_made_good_by_the_next(platform: Platform) -> None:
    from pyspark.sql import functions as F

    def break_on_purpose(lines: Any) -> Any:
        rows = INVOICES_STREAM.transform(lines)
        return rows.withColumn("source_file", F.expr("raise_error('the disk is on fire')").cast("string"))

    broken = Stream("invoices", INVOICES_STREAM.source, break_on_purpose, INVOICES_STREAM.sink)
    platform.land("1.json", invoice("1"))
    with pytest.raises(StreamFailed) as failed:
        run(platform, broken)
    assert "\n" not in str(failed.value), "one line, not a stack trace"
    assert str(platform.layout.spark_log) in str(failed.value)
    assert platform.spark.streams.active == []
    assert len(INVOICES_STREAM.source.pending(platform.layout, "invoices")) == 1, "the sensor sees that work is left"
    assert run(platform).rows_added == 1
    assert numbers(platform) == ["1"]


def test_a_table_left_behind_is_caught_up_by_a_session_that_knows_no_table(platform: Platform) -> None:
    platform.land("1.json", invoice("1"))
    run(platform)  # and the run died before the line items
    platform.spark.sql("DROP TABLE invoices")  # from the catalog: as in a new process, where it is empty
    assert [s.rows_added for s in run_all(platform)] == [0, 1, 0]


def test_a_run_of_nothing_new_opens_no_session(platform: Platform) -> None:
    platform.land("1.json", invoice("1"))
    run_all(platform)

    def no_session() -> Any:
        raise AssertionError("a session was asked for")

    summaries = run_streams(INVOICE_STREAMS, no_session, platform.layout, RunSettings(), run="test")
    assert [s.rows_added for s in summaries] == [0, 0, 0]


def test_a_checkpoint_of_a_tables_log_is_all_that_spark_needs_of_it(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "CHECKPOINT_COMMITS", 3)
    for n in range(6):
        platform.land(f"{n}.json", invoice(str(n)))
        run(platform)
    path = platform.layout.table("invoices")
    assert sorted(checkpoints_of(path)) == [3, 6]
    properties = platform.sql(f"SHOW TBLPROPERTIES delta.`{path}` ('delta.checkpointInterval')")
    assert properties == [("delta.checkpointInterval", "1000")], "so that Spark makes none within a commit"
    before = platform.sql("SELECT * FROM {invoices} ORDER BY InvoiceNumber")

    for version in range(6):
        commit_path(path, version).unlink()
    jvm: Any = platform.spark._jvm  # pyright: ignore[reportAttributeAccessIssue]
    jvm.org.apache.spark.sql.delta.DeltaLog.clearCache()
    assert platform.sql("SELECT * FROM {invoices} ORDER BY InvoiceNumber") == before
    # As if the last run had been killed before Spark noted its micro-batch, which the table has.
    forget_commit(platform, 5)
    platform.land("6.json", invoice("6"))
    run(platform)
    assert numbers(platform) == [*"0123456"]


def test_a_second_run_is_told_who_holds_the_checkpoint(platform: Platform) -> None:
    import os

    platform.land("1.json", invoice("1"))
    with (
        stream_lock(platform.layout, "invoices", "run 1234"),
        pytest.raises(StreamLocked, match=rf"held by run 1234 \(process {os.getpid()} on .*wait for that run to end"),
    ):
        run(platform)
    assert run(platform).rows_added == 1


def test_word_count_adds_up_over_runs_and_equals_its_batch_twin(platform: Platform) -> None:
    for name, text in (("a.txt", "The cat. The dog."), ("b.txt", "A cat\n\nsat."), ("c.txt", "dog 7 dog")):
        platform.land(name, text, to="text")
        run(platform, WORD_COUNT_STREAM)
    streamed = platform.sql("SELECT * FROM {word_count} ORDER BY word")
    assert streamed == [("a", 1), ("cat", 2), ("dog", 3), ("sat", 1), ("the", 2)]

    rebuild([WORD_COUNT_STREAM], platform.open, platform.layout, run="test")
    assert platform.sql("SELECT * FROM {word_count} ORDER BY word") == streamed

    platform.land("d.txt", "cat", to="text")
    run(platform, WORD_COUNT_STREAM)
    assert ("cat", 3) in platform.sql("SELECT * FROM {word_count}"), "the stream goes on with its counts"


def rows(platform: Platform) -> dict[str, list[str]]:
    """Every row of the invoice tables as text, sorted, repeats kept."""
    return {s.name: sorted(str(row) for row in platform.sql(f"SELECT * FROM {{{s.name}}}")) for s in INVOICE_STREAMS}


def test_a_rebuild_equals_the_streams_row_for_row_and_the_streams_go_on(platform: Platform) -> None:
    platform.land("1.json", invoice("1", item("a"), item("b")), "bad", invoice("2"))
    platform.land("2.json", invoice("2"), invoice("3"))  # a number sent again is kept
    run_all(platform, ONE_FILE)
    streamed = rows(platform)

    for _ in range(2):  # a rebuild after a rebuild is no different
        summaries = rebuild(INVOICE_STREAMS, platform.open, platform.layout, run="test")
        assert rows(platform) == streamed
        assert [s.rows_added for s in summaries] == [0, 0, 0]

    assert [s.rows_added for s in run_all(platform)] == [0, 0, 0], "nothing is read twice"
    platform.land("3.json", invoice("4", item("a"), item("b")), "worse")
    assert [s.rows_added for s in run_all(platform)] == [2, 2, 1], "nothing that comes after is lost"
    assert platform.sql("SELECT InvoiceNumber FROM {invoices} WHERE reason IS NULL ORDER BY 1") == [
        ("1",),
        ("2",),
        ("2",),
        ("3",),
        ("4",),
    ]
    assert platform.count("invoices") == 7


@pytest.mark.slow
def test_a_rebuild_takes_in_files_that_no_stream_has_read_and_they_are_not_read_again(platform: Platform) -> None:
    platform.land("1.json", invoice("1"))
    run_all(platform)
    platform.land("2.json", invoice("2"))
    LandingFolder(platform.layout, "invoices", "invoices").admit()  # accepted, and the run ended there
    rebuild(INVOICE_STREAMS, platform.open, platform.layout, run="test")
    assert numbers(platform) == ["1", "2"]
    run_all(platform)
    assert numbers(platform) == ["1", "2"]
    assert platform.count("invoice_line_items") == 2


def test_a_rebuild_of_nothing_says_so(platform: Platform) -> None:
    with pytest.raises(PlatformError, match="nothing was ever accepted"):
        rebuild(INVOICE_STREAMS, platform.open, platform.layout, run="test")
    platform.land("1.json", invoice("1"))
    assert run(platform).rows_added == 1, "and leaves no note behind"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("available_now", "available_now"),
        (" Unspecified ", "unspecified"),
        ("30 seconds", "30 seconds"),
        ("1 Minute", "1 minutes"),
    ],
)
def test_triggers_are_read_in_their_three_forms(text: str, plain: str) -> None:
    assert Trigger.parse(text).text == plain


@pytest.mark.parametrize(
    "text", ["", "once", "30", "seconds", "0 seconds", "-1 second", "1 fortnight", "1 second; DROP"]
)
def test_a_wrong_trigger_is_refused_before_any_spark(text: str) -> None:
    with pytest.raises(PlatformError, match=r"trigger=.* is not a trigger: use 'available_now', an interval such as"):
        Trigger.parse(text)


def test_numbers_that_make_no_sense_are_refused_with_the_setting() -> None:
    with pytest.raises(PlatformError, match=r"max_files_per_trigger=-1: give a number of files from 1 up"):
        RunSettings(max_files_per_trigger=-1)
    with pytest.raises(PlatformError, match=r"run_for_seconds=0: give a time over 0"):
        RunSettings(Trigger.parse("1 second"), run_for_seconds=0)
    with pytest.raises(PlatformError, match="which ends by itself"):
        RunSettings(run_for_seconds=5)
