"""The tables people ask for: sums by plain SQL, the same sums as a stream in update mode, and what comes too late."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from invoice_platform.generate import InvoiceGenerator
from invoice_platform.schemas import (
    CUSTOMER_REWARDS,
    INVOICE_LINE_ITEMS,
    LOYALTY_NOTIFICATIONS,
    PRODUCT_SALES_WINDOWS,
    STORE_DAILY_SALES,
)
from invoice_platform.transforms import (
    REWARD_SHARE,
    WINDOWS_OF_AN_ITEM,
    flatten_invoices,
    notify_loyal_customers,
    parse_invoices,
    parse_kafka_invoices,
    reward_customers,
    sum_product_windows,
    sum_store_days,
)
from invoice_platform_tests.conftest import invoice, item
from invoice_platform_tests.test_transforms import GOOD, columns_and_types, lines, messages

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    Transform = Callable[[DataFrame], DataFrame]
    MakeFed = Callable[[Transform, int], "Fed"]

START = datetime(2024, 3, 1)
LIMIT_SECONDS = 120


def bronze(
    spark: SparkSession, *documents: dict[str, Any], hour: int = 0, source_file: str = "000001/x.json"
) -> DataFrame:
    """Rows of `invoices` from one file that was admitted at that hour."""
    from pyspark.sql import functions as F

    admitted = F.lit(START + timedelta(hours=hour)).cast("timestamp")
    landed = lines(spark, *(json.dumps(d) for d in documents))
    return parse_invoices(landed.withColumns({"source_file": F.lit(source_file), "ingested_at": admitted}))


def sold(spark: SparkSession, *items: tuple[str, str, str], quantity: int = 1, value: str = "10.00") -> DataFrame:
    """Rows of `invoice_line_items` from store, item and time; the other columns are null."""
    names = [c.name for c in INVOICE_LINE_ITEMS.columns]
    values = [
        {
            "store_id": store,
            "item_code": code,
            "created_time": datetime.fromisoformat(time),
            "item_qty": quantity,
            "total_value": Decimal(value),
        }
        for store, code, time in items
    ]
    schema = ", ".join(c.ddl for c in INVOICE_LINE_ITEMS.columns)
    return spark.createDataFrame([tuple(v.get(n) for n in names) for v in values], schema)


def keyed(frame: DataFrame, keys: int) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """Rows by their key columns, which come first."""
    rows = [tuple(row) for row in frame.collect()]
    found = {row[:keys]: row[keys:] for row in rows}
    assert len(found) == len(rows), "each key once"
    return found


@contextmanager
def session_zone(spark: SparkSession, zone: str) -> Iterator[None]:
    """The shared session in another time zone, for a while."""
    before = spark.conf.get("spark.sql.session.timeZone")
    spark.conf.set("spark.sql.session.timeZone", zone)
    try:
        yield
    finally:
        spark.conf.set("spark.sql.session.timeZone", str(before))


class Fed:
    """A transform as a query in update mode over a table that grows; `rows` is what a MERGE by key would hold."""

    def __init__(self, spark: SparkSession, folder: Path, transform: Transform, keys: int) -> None:
        self._spark, self._folder, self._transform, self._keys = spark, folder, transform, keys
        self.rows: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        self.batches: list[dict[tuple[Any, ...], tuple[Any, ...]]] = []
        self._query: Any = None

    def feed(self, frame: DataFrame) -> None:
        """One micro-batch of these rows, then as many without data as Spark wants."""
        frame.coalesce(1).write.format("delta").mode("append").save(str(self._folder / "table"))
        if self._query is None:
            read = self._spark.readStream.format("delta").load(str(self._folder / "table"))
            writer = self._transform(read).writeStream.outputMode("update").foreachBatch(self._collect)
            self._query = writer.option("checkpointLocation", str(self._folder / "checkpoint")).start()
        self._query.processAllAvailable()

    def _collect(self, batch: DataFrame, _: int) -> None:
        if changed := keyed(batch, self._keys):
            self.batches.append(changed)
        self.rows |= changed

    def restart(self) -> None:
        """End the query; the next rows come to a new one on the same checkpoint."""
        self.stop()
        self._query = None

    def stop(self) -> None:
        """End the query."""
        if self._query is not None:
            self._query.stop()

    def dropped_as_spark_counts(self) -> int:
        """What Spark says that it left out behind the watermark."""
        return sum(o.numRowsDroppedByWatermark for p in self._query.recentProgress for o in p.stateOperators)


@pytest.fixture
def fed(spark: SparkSession, tmp_path: Path) -> Iterator[MakeFed]:
    """Make a stream of a transform with that many key columns, first in the row; it is stopped after the test."""
    made: list[Fed] = []

    def make(transform: Transform, keys: int) -> Fed:
        made.append(Fed(spark, tmp_path / str(len(made)), transform, keys))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def test_transforms_give_the_declared_columns_and_types(spark: SparkSession) -> None:
    invoices = bronze(spark, invoice("1"))
    items = flatten_invoices(invoices)
    for frame, table in (
        (reward_customers(invoices), CUSTOMER_REWARDS),
        (notify_loyal_customers(invoices), LOYALTY_NOTIFICATIONS),
        (sum_store_days(items), STORE_DAILY_SALES),
        (sum_product_windows(items), PRODUCT_SALES_WINDOWS),
    ):
        assert [(f.name, f.dataType) for f in frame.schema] == columns_and_types(spark, table), table.name


def test_rewards_equal_a_plain_sum_over_distinct_numbers(spark: SparkSession) -> None:
    records = [r.data for r in InvoiceGenerator(seed=11).records(300, faults=0.05)]
    sent = parse_invoices(lines(spark, *records, *records[:20]))
    found = keyed(reward_customers(sent), 1)
    sent.createOrReplaceTempView("sent")
    plain = spark.sql(
        """SELECT CustomerCardNo, count(DISTINCT InvoiceNumber), sum(TotalAmount), sum(TotalAmount) * 2 / 100
           FROM (SELECT DISTINCT InvoiceNumber, CustomerCardNo, TotalAmount FROM sent WHERE reason IS NULL)
           GROUP BY CustomerCardNo"""
    ).collect()
    spark.catalog.dropTempView("sent")
    assert found == {(row[0],): tuple(row)[1:] for row in plain}


def test_a_card_earns_points_whatever_the_customer_type_and_no_card_earns_none(spark: SparkSession) -> None:
    rows = reward_customers(
        bronze(
            spark,
            invoice("1", CustomerType="NONPRIME", CustomerCardNo="7"),
            invoice("2", CustomerCardNo=None),
            invoice("3", CustomerCardNo=""),
            invoice("4", CustomerCardNo="  "),
            invoice("5", CustomerCardNo="8", StoreID=None),  # not valid
        )
    ).collect()
    assert [tuple(row) for row in rows] == [("7", 1, Decimal("100.00"), Decimal("2.0000"))]


def test_points_are_two_per_cent_to_the_last_of_four_decimals_and_the_greatest_amounts_add_up(
    spark: SparkSession,
) -> None:
    greatest = Decimal("9999999999999999.99")
    documents = [
        json.dumps(invoice(str(n), CustomerCardNo="7")).replace('"TotalAmount": 100.0', f'"TotalAmount": {amount}')
        for n, amount in enumerate((greatest, greatest, Decimal("0.01")))
    ]
    (row,) = reward_customers(parse_invoices(lines(spark, *documents))).collect()
    assert row.total_amount == 2 * greatest + Decimal("0.01")
    assert row.points == row.total_amount * Decimal("0.02")
    assert Decimal(REWARD_SHARE) == Decimal("0.02")


def test_of_a_number_with_two_contents_the_first_to_come_counts_in_a_stream_and_in_its_batch_twin(
    spark: SparkSession, fed: MakeFed
) -> None:
    first = bronze(spark, invoice("1", item(price=300), CustomerCardNo="7"), hour=1, source_file="000001/b.json")
    later = bronze(spark, invoice("1", item(price=200), CustomerCardNo="6"), hour=2, source_file="000001/a.json")
    expected = {("7",): (1, Decimal("300.00"), Decimal("6.0000"))}
    stream = fed(reward_customers, 1)
    stream.feed(first)
    stream.feed(later)
    assert stream.rows == expected
    for batch in (first.union(later), later.union(first)):
        assert keyed(reward_customers(batch), 1) == expected


def test_the_batch_twin_takes_the_same_of_two_contents_in_one_file_whatever_their_order(spark: SparkSession) -> None:
    one, other = invoice("1", item(price=300)), invoice("1", item(price=200))
    expected = {("1000000001",): (1, Decimal("200.00"), Decimal("4.0000"))}
    assert keyed(reward_customers(bronze(spark, one, other)), 1) == expected
    assert keyed(reward_customers(bronze(spark, other, one)), 1) == expected


def test_a_stream_of_rewards_counts_a_number_once_over_micro_batches_and_restarts(
    spark: SparkSession, fed: MakeFed
) -> None:
    stream = fed(reward_customers, 1)
    stream.feed(bronze(spark, invoice("1"), invoice("1"), invoice("2", CustomerCardNo="7")))
    assert stream.rows == {
        ("1000000001",): (1, Decimal("100.00"), Decimal("2.0000")),
        ("7",): (1, Decimal("100.00"), Decimal("2.0000")),
    }
    stream.restart()
    stream.feed(bronze(spark, invoice("1"), invoice("2", CustomerCardNo="7"), invoice("3", item(price=50))))
    assert stream.rows == {
        ("1000000001",): (2, Decimal("150.00"), Decimal("3.0000")),
        ("7",): (1, Decimal("100.00"), Decimal("2.0000")),
    }
    assert len(stream.batches[-1]) == 1, "a card with nothing new is not given again"


def test_streams_in_micro_batches_give_what_their_batch_twins_give(spark: SparkSession, fed: MakeFed) -> None:
    records = [json.loads(r.data) for r in InvoiceGenerator(seed=3).records(160)]
    parts = [bronze(spark, *records[:80], hour=1).cache(), bronze(spark, *records[70:], hour=2).cache()]
    whole = parts[0].union(parts[1])
    for transform, keys, before in (
        (reward_customers, 1, lambda invoices: invoices),
        (sum_store_days, 2, flatten_invoices),
        (sum_product_windows, 3, flatten_invoices),
    ):
        stream = fed(transform, keys)
        for part in parts:
            stream.feed(before(part))
        stream.stop()
        assert stream.rows == keyed(transform(before(whole)), keys), transform.__name__
    for part in parts:
        part.unpersist()


def test_a_day_ends_at_midnight_utc_in_a_session_of_any_zone(spark: SparkSession) -> None:
    items = sold(
        spark,
        ("A", "1", "2024-03-01T00:00:00"),
        ("A", "2", "2024-03-01T23:59:59.999999"),
        ("A", "1", "2024-03-02T00:00:00"),
        ("B", "1", "1969-12-31T23:00:00"),
        quantity=3,
    )
    expected = {
        ("A", date(2024, 3, 1)): (2, 6, Decimal("20.00")),
        ("A", date(2024, 3, 2)): (1, 3, Decimal("10.00")),
        ("B", date(1969, 12, 31)): (1, 3, Decimal("10.00")),
    }
    items = items.cache()  # times are told in the zone of the session, which is UTC here
    assert items.count() == 4
    for zone in ("UTC", "Asia/Kolkata", "America/Los_Angeles"):
        with session_zone(spark, zone):
            assert keyed(sum_store_days(items), 2) == expected
    items.unpersist()


def test_an_item_is_in_the_four_hours_around_it(spark: SparkSession) -> None:
    rows = sum_product_windows(
        sold(spark, ("A", "1", "2024-03-01T12:00:00"), ("B", "1", "2024-03-01T12:50:00"), quantity=2)
    ).collect()
    found = {(r.window_start.strftime("%H:%M"), r.window_end.strftime("%H:%M")): tuple(r)[2:] for r in rows}
    assert found == {
        (start, end): ("1", items, 2 * items, 10 * Decimal(items).quantize(Decimal("0.00")))
        for start, end, items in (
            ("11:15", "12:15", 1),
            ("11:30", "12:30", 1),
            ("11:45", "12:45", 1),
            ("12:00", "13:00", 2),
            ("12:15", "13:15", 1),
            ("12:30", "13:30", 1),
            ("12:45", "13:45", 1),
        )
    }
    assert sum(r.line_items for r in rows) == 2 * WINDOWS_OF_AN_ITEM


def test_an_item_of_a_closed_day_is_left_out_of_the_stream_and_the_difference_tells_how_many(
    spark: SparkSession, fed: MakeFed
) -> None:
    stream = fed(sum_store_days, 2)
    first = sold(spark, ("A", "1", "2024-03-01T12:00:00"), ("B", "1", "2024-03-09T00:00:00"))
    # The watermark is now 2 March, 00:00: 1 March has just closed.
    second = sold(
        spark,
        ("A", "1", "2024-03-01T23:59:59"),
        ("A", "2", "2024-03-01T12:00:00"),
        ("C", "2", "2024-02-01T12:00:00"),
        ("A", "1", "2024-03-02T00:00:00"),
    )
    stream.feed(first)
    stream.feed(second)
    assert {key: row[0] for key, row in stream.rows.items()} == {
        ("A", date(2024, 3, 1)): 1,
        ("A", date(2024, 3, 2)): 1,
        ("B", date(2024, 3, 9)): 1,
    }
    read = first.count() + second.count()
    assert read - sum(row[0] for row in stream.rows.values()) == 3, "as many as were left out"
    assert stream.dropped_as_spark_counts() == 2, "Spark counts sums of a task, not items: it cannot be used"
    assert sum(row[0] for row in keyed(sum_store_days(first.union(second)), 2).values()) == read, "the batch has all"


def test_an_item_behind_the_watermark_is_counted_while_its_day_is_open(spark: SparkSession, fed: MakeFed) -> None:
    stream = fed(sum_store_days, 2)
    stream.feed(sold(spark, ("A", "1", "2024-03-08T23:59:59")))  # the watermark: 1 March, 23:59:59
    stream.feed(sold(spark, ("A", "1", "2024-03-01T00:00:00"), ("A", "1", "2024-02-29T23:59:59")))
    assert stream.rows[("A", date(2024, 3, 1))][0] == 1
    assert ("A", date(2024, 2, 29)) not in stream.rows


def test_items_of_the_micro_batch_that_closes_a_day_are_counted_in_it(spark: SparkSession, fed: MakeFed) -> None:
    stream = fed(sum_store_days, 2)
    stream.feed(sold(spark, ("A", "1", "2024-03-30T00:00:00"), ("A", "1", "2024-03-01T00:00:00")))
    assert {key: row[0] for key, row in stream.rows.items()} == {
        ("A", date(2024, 3, 1)): 1,
        ("A", date(2024, 3, 30)): 1,
    }


def test_an_item_can_be_too_late_for_some_of_its_hours_and_the_difference_counts_each(
    spark: SparkSession, fed: MakeFed
) -> None:
    stream = fed(sum_product_windows, 3)
    first = sold(spark, ("A", "1", "2024-03-02T12:30:00"))
    # The watermark is now 1 March, 12:30: hours that ended by then are closed.
    second = sold(
        spark,
        ("A", "1", "2024-03-01T11:00:00"),  # too late for all of 10:15, 10:30, 10:45, 11:00
        ("A", "1", "2024-03-01T11:50:00"),  # for 11:00, 11:15, 11:30, not for 11:45
        ("B", "1", "2024-03-01T11:50:00"),
        ("A", "1", "2024-03-01T12:15:00"),  # for 11:30, not for 11:45, 12:00, 12:15
        ("A", "2", "2024-03-01T12:30:00"),  # for none: behind no window's end
    )
    stream.feed(first)
    stream.feed(second)
    counted = sum(row[0] for row in stream.rows.values())
    read = first.count() + second.count()
    times_too_late = 4 + 3 + 3 + 1 + 0
    assert WINDOWS_OF_AN_ITEM * read - counted == times_too_late, "four items, one of them wholly: 11, not 4 or 1"
    at_quarter_to_twelve = (datetime(2024, 3, 1, 11, 45), datetime(2024, 3, 1, 12, 45), "1")
    assert stream.rows[at_quarter_to_twelve] == (3, 3, Decimal("30.00"))
    assert stream.dropped_as_spark_counts() < times_too_late, "Spark counts sums of a task, not items"


def test_each_valid_invoice_of_a_prime_customer_with_a_card_is_a_notification(spark: SparkSession) -> None:
    invoices = bronze(
        spark,
        invoice("1", item(price=99.99), CustomerCardNo="7"),
        invoice("1", item(price=99.99), CustomerCardNo="7"),
        invoice("2", CustomerType="NONPRIME"),
        invoice("3", CustomerCardNo=None),
        invoice("4", CustomerCardNo=" "),
        invoice("5", StoreID=None),  # not valid
        hour=5,
        source_file="000002/y.json",
    )
    rows = notify_loyal_customers(invoices).collect()
    noon, admitted = datetime(2024, 3, 1, 12), START + timedelta(hours=5)
    amounts = (Decimal("99.99"), Decimal("1.9998"))
    assert [tuple(row) for row in rows] == [("1", "7", noon, "STR1000", *amounts, "000002/y.json", admitted)] * 2


def test_notifications_of_files_and_of_kafka_say_where_the_record_came_from(spark: SparkSession) -> None:
    kafka = parse_kafka_invoices(messages(spark, GOOD, topic="invoices"))
    both = bronze(spark, invoice("2")).unionByName(kafka, allowMissingColumns=True)
    sources = {row.invoice_number: row.source_file for row in notify_loyal_customers(both).collect()}
    assert sources == {"2": "000001/x.json", "1": "kafka:invoices/0/0"}
    assert keyed(reward_customers(both), 1) == {("1000000001",): (2, Decimal("200.00"), Decimal("4.0000"))}


def test_notifications_are_a_stream_in_append_mode(spark: SparkSession, tmp_path: Path) -> None:
    bronze(spark, invoice("1"), invoice("2", CustomerType="NONPRIME")).write.format("delta").save(str(tmp_path / "in"))
    told = notify_loyal_customers(spark.readStream.format("delta").load(str(tmp_path / "in")))
    writer = told.writeStream.format("delta").outputMode("append").trigger(availableNow=True)
    query = writer.option("checkpointLocation", str(tmp_path / "checkpoint")).start(str(tmp_path / "out"))
    assert query.awaitTermination(LIMIT_SECONDS)
    assert [row.invoice_number for row in spark.read.format("delta").load(str(tmp_path / "out")).collect()] == ["1"]
