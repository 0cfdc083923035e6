"""A declaration that changes: what it adds is added, and what cannot be changed is refused before anything is written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from invoice_platform.errors import PlatformError
from invoice_platform.schemas import INVOICES, KAFKA_INVOICES, LINE_ITEM
from invoice_platform.streaming.evolution import Added, Changed, Type, differences
from invoice_platform.streaming.rebuild import rebuild
from invoice_platform.streaming.sinks import DeltaSink
from invoice_platform.streaming.sources import DeltaTable, LandedFiles
from invoice_platform.streaming.stream import RunSettings, Stream, run_streams
from invoice_platform.streaming.tables import Column, Table, latest_version
from invoice_platform_tests.conftest import INVOICE_STREAMS, Platform, invoice

ITEMS = "array<struct<code: string, price: decimal(18,2)>>"
ITEMS_WITH_DISCOUNT = "array<struct<code: string, price: decimal(18,2), discount: struct<percent: int>>>"


def streams(*columns: Column) -> tuple[Stream, Stream]:
    """Orders with these columns, as files of JSON, and a table fed by them."""
    orders = Table("orders", (*columns, Column("source_file", "string", "Where from")), "Orders as landed.")
    codes = Table("codes", (Column("number", "string", "Order"), Column("code", "string", "Item")), "One row an item.")
    landed = LandedFiles("orders", format="json", columns=columns)
    return (
        Stream("orders", landed, lambda rows: rows.select(*(c.name for c in orders.columns)), DeltaSink(orders)),
        Stream(
            "codes",
            DeltaTable(orders),
            lambda rows: rows.selectExpr("CAST(number AS STRING) AS number", "explode(items.code) AS code"),
            DeltaSink(codes),
        ),
    )


NUMBER = Column("number", "string", "Order")
FIRST = (NUMBER, Column("items", ITEMS, "What was ordered"))
LATER = (NUMBER, Column("items", ITEMS_WITH_DISCOUNT, "What was ordered"), Column("note", "string", "Wish"))


def run(platform: Platform, chain: tuple[Stream, ...]) -> list[int]:
    return [s.rows_added for s in run_streams(chain, platform.open, platform.layout, RunSettings(), run="test")]


def order(number: str, **more: Any) -> dict[str, Any]:
    item: dict[str, Any] = {"code": f"c{number}", "price": 1.25}
    if "discount" in more:
        item["discount"] = more.pop("discount")
    return {"number": number, "items": [item]} | more


@pytest.fixture
def two_orders(platform: Platform) -> Platform:
    """Two streams that have run over one file."""
    platform.layout.landing("orders").mkdir(parents=True)
    platform.land("1.json", order("1"), order("2"), to="orders")
    assert run(platform, streams(*FIRST)) == [2, 2]
    return platform


def test_new_optional_columns_and_nested_fields_roll_out_and_every_stream_goes_on(two_orders: Platform) -> None:
    two_orders.land("2.json", order("3"), to="orders")
    (orders, _) = streams(*FIRST)
    run(two_orders, (orders,))  # the second stream is behind: it reads rows of before and of after in one micro-batch
    two_orders.land("3.json", order("4", discount={"percent": 10}, note="gift"), order("5"), to="orders")
    assert run(two_orders, streams(*LATER)) == [2, 3]
    assert two_orders.sql(
        "SELECT number, note, items[0].price, items[0].discount.percent FROM {orders} ORDER BY 1"
    ) == [
        (n, "gift" if n == "4" else None, pytest.approx(1.25), 10 if n == "4" else None)
        for n in ("1", "2", "3", "4", "5")
    ]
    assert two_orders.sql("SELECT code FROM {codes} ORDER BY 1") == [(f"c{n}",) for n in range(1, 6)]

    version = latest_version(two_orders.layout.table("orders"))
    assert run(two_orders, streams(*LATER)) == [0, 0]
    assert latest_version(two_orders.layout.table("orders")) == version, "declared again, it changes nothing"
    rebuild(streams(*LATER), two_orders.open, two_orders.layout, run="test")
    assert two_orders.count("codes") == 5


def with_discounts(table: Table) -> Table:
    columns = [
        replace(c, type=c.type.replace(">>", ", Discount: decimal(18,2)>>")) if c.name == "InvoiceLineItems" else c
        for c in table.columns
    ]
    return replace(table, columns=(*columns, Column("Channel", "string", "Where it was ordered")))


def test_the_invoices_take_a_new_field_in_their_line_items_and_what_they_feed_goes_on(platform: Platform) -> None:
    platform.land("1.json", invoice("1"))
    run(platform, INVOICE_STREAMS)
    platform.land("2.json", invoice("2"))
    invoices, kafka_invoices = with_discounts(INVOICES), with_discounts(KAFKA_INVOICES)
    source, *fed = INVOICE_STREAMS
    fields = ", ".join(f"i.{c.name}" for c in LINE_ITEM)
    chain = (
        replace(
            source,
            transform=lambda lines: source.transform(lines).selectExpr(
                "* EXCEPT (InvoiceLineItems)",
                f"transform(InvoiceLineItems, i -> struct({fields}, CAST(2.5 AS decimal(18,2)) AS Discount)) AS InvoiceLineItems",
                "'web' AS Channel",
            ),
            sink=DeltaSink(invoices),
        ),
        *(replace(stream, source=DeltaTable(invoices, kafka_invoices)) for stream in fed),
    )
    assert run(platform, chain) == [1, 1, 0], "old checkpoints go on"
    assert platform.sql(
        "SELECT Channel, CAST(InvoiceLineItems[0].Discount AS STRING), InvoiceLineItems[0].ItemQty FROM {invoices} ORDER BY 1"
    ) == [(None, None, 1), ("web", "2.50", 1)]
    assert platform.sql("SELECT invoice_number FROM {invoice_line_items} ORDER BY 1") == [("1",), ("2",)]
    assert (invoices.changes(platform.layout), kafka_invoices.changes(platform.layout)) == ([], [])


REFUSED: list[tuple[tuple[Column, ...], str]] = [
    ((Column("number", "bigint", ""), FIRST[1]), r"column number: string in \S+/lakehouse/orders, bigint in its"),
    (
        (NUMBER, Column("items", ITEMS.replace("(18,2)", "(20,4)"), "")),
        r"column items\.element\.price: decimal\(18,2\) in .*, decimal\(20,4\) in",
    ),
    (
        (NUMBER, Column("items", "array<struct<code: string>>", "")),
        r"column items\.element\.price: decimal\(18,2\) in .*, not declared in",
    ),
    ((NUMBER, Column("items", "string", "")), r"column items: array<struct<`code`: string, .*, string in its"),
    (
        (*FIRST, Column("till", "string", "", required=True)),
        r"column till: not there in .*, string NOT NULL in its",
    ),
    (
        (Column("number", "string", "", required=True), FIRST[1]),
        r"column number: without NOT NULL in .*, NOT NULL in its",
    ),
]


def test_what_cannot_be_changed_is_refused_before_anything_is_written(two_orders: Platform) -> None:
    layout = two_orders.layout
    two_orders.land("2.json", order("3"), to="orders")
    versions = {name: latest_version(layout.table(name)) for name in ("orders", "codes")}
    for columns, message in REFUSED:
        # The stream that writes the table, and the one that reads it.
        for chain in (streams(*columns), streams(*columns)[1:]):
            with pytest.raises(
                PlatformError, match=f"^table orders, {message}.*give the new column another"
            ) as refused:
                run(two_orders, chain)
            assert "\n" not in str(refused.value)
        with pytest.raises(PlatformError, match=r"^table orders"):
            rebuild(streams(*columns), two_orders.open, layout, run="test")
    assert [p.name for p in layout.landing("orders").iterdir()] == ["2.json"], "nothing was admitted"
    assert {name: latest_version(layout.table(name)) for name in ("orders", "codes")} == versions
    assert run(two_orders, streams(*FIRST)) == [1, 1], "with the old declaration it goes on"


def test_another_type_is_had_by_moving_the_table_away_and_rebuilding_it(two_orders: Platform) -> None:
    layout = two_orders.layout
    columns = (Column("number", "bigint", "Order"), FIRST[1])
    two_orders.land("2.json", {"number": 3, "items": []}, to="orders")
    layout.table("orders").rename(layout.root / "orders of before")
    chain = streams(*columns)
    rebuild(chain, two_orders.open, layout, run="test")
    assert two_orders.sql("SELECT count(*), count(number) FROM {orders}") == [(2, 0)], '"1" is no number'
    assert run(two_orders, chain) == [1, 0]
    assert two_orders.sql("SELECT number FROM {orders} WHERE number IS NOT NULL") == [(3,)]


def test_a_column_that_is_not_required_any_more_takes_nulls(platform: Platform) -> None:
    old = Table("t", (Column("a", "int", "", required=True),), "")
    new = Table("t", (Column("a", "int", ""),), "")
    old.declare(platform.spark, platform.layout)
    new.declare(platform.spark, platform.layout)
    assert new.changes(platform.layout) == []
    platform.spark.sql(f"INSERT INTO delta.`{platform.layout.table('t')}` VALUES (NULL)")
    assert platform.sql("SELECT * FROM {t}") == [(None,)]


def test_types_are_read_as_spark_writes_them_and_compared_by_what_they_mean() -> None:
    declared = Type.parse(
        "array<struct<a: INTEGER, `b c` decimal( 18 , 2 ) NOT NULL COMMENT 'x, y>', m: map<string,long>>>"
    )
    assert str(declared) == "array<struct<`a`: int, `b c`: decimal(18,2), `m`: map<string, bigint>>>"
    assert list(differences(("c",), declared, Type.parse(str(declared)))) == []
    less = Type.parse("array<struct<A: int, m: map<string, int>>>")
    assert list(differences(("c",), less, declared)) == [
        Added(("c", "element", "b c"), Type("decimal(18,2)")),
        Changed(("c", "element", "m", "value"), Type("int"), Type("bigint")),
    ]
    assert Type.parse("dec(4)") == Type.of_delta("decimal(4,0)")
    assert Type.parse("varchar(10)") == Type.of_delta("string")
    assert [Type.parse(t) for t in ("tinyint", "smallint", "int", "bigint", "timestamp_ntz")] == [
        Type.of_delta(t) for t in ("byte", "short", "integer", "long", "timestamp_ntz")
    ]
