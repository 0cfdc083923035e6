"""The pure transforms: what a landed line becomes."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from invoice_platform.errors import PlatformError
from invoice_platform.expectations import MAX_LINE_ITEMS, RAW_CHARACTERS
from invoice_platform.generate import InvoiceGenerator
from invoice_platform.schemas import INVOICE_LINE_ITEMS, INVOICES, KAFKA_INVOICES, LANDED_INVOICE, QUARANTINED_INVOICES
from invoice_platform.streaming import json_lines
from invoice_platform.streaming.json_lines import plain_record
from invoice_platform.streaming.settings import MAX_RECORD_BYTES
from invoice_platform.streaming.tables import Table
from invoice_platform.transforms import (
    count_words,
    flatten_invoices,
    parse_invoices,
    parse_kafka_invoices,
    quarantine_invoices,
)
from invoice_platform_tests.conftest import invoice, item

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

GOOD = json.dumps(invoice("1"))


def lines(spark: SparkSession, *values: str | bytes) -> DataFrame:
    """Landed lines as the file source gives them; bytes reach the column as they are."""
    from pyspark.sql import functions as F

    raw = [(v.encode() if isinstance(v, str) else v,) for v in values]
    frame = spark.createDataFrame(raw, "value binary").select(F.expr("CAST(value AS STRING)").alias("value"))
    return frame.withColumns(
        {"source_file": F.lit("000001/x.json"), "ingested_at": F.lit(datetime(2026, 1, 1)).cast("timestamp")}
    )


def parse(spark: SparkSession, *values: str | bytes) -> list[Any]:
    return parse_invoices(lines(spark, *values)).collect()


KAFKA_COLUMNS = (
    "key binary, value binary, topic string, partition int, offset bigint, timestamp timestamp, timestampType int, "
    "headers array<struct<key: string, value: binary>>"
)
SENT = datetime(2024, 3, 1, 12)


def messages(spark: SparkSession, *values: str | bytes | None, topic: str = "invoices") -> DataFrame:
    """Messages of one partition as Spark's Kafka source gives them, with offsets from 0."""
    raw = [v.encode() if isinstance(v, str) else v for v in values]
    headers = [("sender", b"till \xff"), ("sender", None)]
    return spark.createDataFrame(
        [(b"k\xff", value, topic, 0, offset, SENT, 0, headers) for offset, value in enumerate(raw)], KAFKA_COLUMNS
    )


def columns_and_types(spark: SparkSession, table: Table) -> list[tuple[str, Any]]:
    """Names and types of a table's columns, as Spark reads them."""
    declared = spark.createDataFrame([], ", ".join(c.ddl for c in table.columns)).schema
    return [(f.name, f.dataType) for f in declared]


def test_transforms_give_the_declared_columns_and_types(spark: SparkSession) -> None:
    bronze = parse_invoices(lines(spark, GOOD))
    kafka = parse_kafka_invoices(messages(spark, GOOD))
    both = bronze.unionByName(kafka, allowMissingColumns=True)
    for frame, table in (
        (bronze, INVOICES),
        (kafka, KAFKA_INVOICES),
        *((flatten_invoices(frame), INVOICE_LINE_ITEMS) for frame in (bronze, kafka, both)),
        *((quarantine_invoices(frame), QUARANTINED_INVOICES) for frame in (bronze, kafka, both)),
    ):
        assert [(f.name, f.dataType) for f in frame.schema] == columns_and_types(spark, table), table.name


def test_a_valid_record_is_kept_as_landed_without_its_raw_text(spark: SparkSession) -> None:
    document = invoice("7", item(price=10.5, quantity=2), CGST=191.47500000000002)
    (row,) = parse(spark, json.dumps(document))
    assert (row.reason, row.raw) == (None, None)
    assert row.InvoiceNumber == "7"
    assert row.TotalAmount == Decimal("21.00")
    assert Decimal("191.4750") == row.CGST, "float noise is rounded half up at the fourth decimal"
    assert row.InvoiceLineItems[0].ItemPrice == Decimal("10.50")


NO_MONEY = "is not a number of at most 16 digits before the point and 2 after it"
INVALID: list[tuple[str | bytes, str]] = [
    (GOOD + GOOD, "more than one JSON document"),
    (GOOD + "," + GOOD, "more than one JSON document"),
    (GOOD + " junk", "more than one JSON document"),
    (GOOD[:-20], "not a JSON document"),
    (f"[{GOOD}]", "not a JSON object"),
    ("[]", "not a JSON object"),
    ("3", "not a JSON object"),
    ('"x"', "not a JSON object"),
    ("null", "not a JSON object"),
    (GOOD.replace('"', "'"), "not a JSON document"),
    ("\ufeff" + GOOD, "not a JSON document: a byte order mark stands before it"),
    (GOOD.replace("STR1000", "STR\x001000"), "not a JSON document: there are NUL bytes in it"),
    ("\x00\x00\x00", "not a JSON document: there are NUL bytes in it"),
    ('{"a": ' * 1_100 + "1" + "}" * 1_100, "not a JSON document, or one nested over 1,000 levels deep"),
    ("[" * 100_000, "not a JSON document, or one nested over 1,000 levels deep"),
    (GOOD.encode().replace(b"STR1000", b"STR\xff\xfe"), "not valid UTF-8"),
    (GOOD.replace("STR1000", "\\ud83d"), "half of a surrogate pair"),
    ('"\\ud800"', "half of a surrogate pair"),
    ('"\\ud800", 1', "not a JSON document"),
    (GOOD.replace("1709294400000", '"yesterday"'), "CreatedTime is not a whole number of 64 bits"),
    (GOOD.replace("1709294400000", "1.5"), "CreatedTime is not a whole number of 64 bits"),
    (GOOD.replace("1709294400000", "99999999999999999999"), "CreatedTime is not a whole number of 64 bits"),
    (GOOD.replace('"ItemQty": 1', '"ItemQty": 1.5'), "InvoiceLineItems[0].ItemQty is not a whole number of 32 bits"),
    (GOOD.replace('"ItemQty": 1', '"ItemQty": 2147483648'), "InvoiceLineItems[0].ItemQty is not a whole number"),
    (GOOD.replace('"ItemQty": 1', '"ItemQty": "1"'), "InvoiceLineItems[0].ItemQty is not a whole number"),
    (GOOD.replace('"TotalAmount": 100.0', '"TotalAmount": NaN'), "not a JSON document"),
    (GOOD.replace('"TotalAmount": 100.0', '"TotalAmount": 1e400'), f"TotalAmount {NO_MONEY}"),
    (GOOD.replace('"TotalAmount": 100.0', '"TotalAmount": 1e100000000'), f"TotalAmount {NO_MONEY}"),
    (GOOD.replace('"TotalAmount": 100.0', '"TotalAmount": 100.001'), f"TotalAmount {NO_MONEY}"),
    (GOOD.replace('"TotalAmount": 100.0', '"TotalAmount": "100.0"'), f"TotalAmount {NO_MONEY}"),
    (GOOD.replace('"ItemPrice": 100.0', '"ItemPrice": 99.999'), f"InvoiceLineItems[0].ItemPrice {NO_MONEY}"),
    (GOOD.replace('"STR1000"', "1000"), "StoreID is not a string"),
    (GOOD.replace('"STR1000"', '{"a": 1}'), "StoreID is not a string"),
    (GOOD.replace('"STR1000"', '"a", "StoreID": "b"'), "a key is repeated: StoreID"),
    (
        GOOD.replace('"ItemCode": "458"', '"ItemCode": "1", "ItemCode": "1"'),
        "a key is repeated: InvoiceLineItems.ItemCode",
    ),
    (
        GOOD.replace('"STR1000"', '"a", "new": {"b": 1, "b": 2}'),
        "a key is repeated in what was not declared",
    ),
    ("{}", "InvoiceNumber is missing; CreatedTime is missing; StoreID is missing"),
    (json.dumps(invoice("1", StoreID=None)), "StoreID is missing"),
    (GOOD.replace('"STR1000"', "null"), "StoreID is missing"),
    (
        GOOD.replace("InvoiceNumber", "invoicenumber"),
        "InvoiceNumber is missing; invoicenumber is a declared field in another",
    ),
    (GOOD.replace("CGST", "cgst"), "cgst is a declared field in another case"),
    (json.dumps(invoice("1") | {"InvoiceLineItems": []}), "rule has_line_items: no line items"),
    (GOOD.replace('"InvoiceLineItems": [', '"InvoiceLineItems": [null, '), "InvoiceLineItems[0] is not an object"),
    (GOOD.replace('"ItemCode": "458", ', ""), "InvoiceLineItems[0].ItemCode is missing"),
    (GOOD.replace('"ItemQty": 1', '"ItemQty": -1'), "rule quantities_are_not_negative"),
    (GOOD.replace("1709294400000", "1709294400"), "rule created_time_is_plausible"),
    (GOOD.replace("1709294400000", "1700000000000000"), "rule created_time_is_plausible"),
]


@pytest.fixture(scope="module")
def invalid(spark: SparkSession) -> dict[bytes, tuple[Any, Any, int]]:
    """What became of each invalid line: its bronze row, its quarantine row, its line items; in one go, for speed."""
    bronze = parse_invoices(lines(spark, *(line for line, _ in INVALID)))
    rows, quarantined = bronze.collect(), quarantine_invoices(bronze).collect()
    items = flatten_invoices(bronze).count()
    return {_bytes(line): (row, q, items) for (line, _), row, q in zip(INVALID, rows, quarantined, strict=True)}


def _bytes(line: str | bytes) -> bytes:
    return line.encode() if isinstance(line, str) else line


@pytest.mark.parametrize(("line", "reason"), INVALID)
def test_an_invalid_line_keeps_its_text_and_says_why(
    invalid: dict[bytes, tuple[Any, Any, int]], line: str | bytes, reason: str
) -> None:
    row, quarantined, items = invalid[_bytes(line)]
    assert row.reason.startswith(reason)
    assert row.raw == (line if isinstance(line, str) else line.decode(errors="replace"))
    assert row.InvoiceNumber is None, "no half-read document passes for an invoice"
    assert (quarantined.raw, quarantined.reason) == (row.raw, row.reason)
    assert items == 0


def test_what_is_accepted_is_stored_as_it_was_landed_however_it_was_written(spark: SparkSession) -> None:
    shuffled = json.dumps(dict(reversed(invoice("1").items())), indent=None, separators=(" , ", " : "))
    for line, total in (
        (GOOD.replace('"TotalAmount": 100.0', '"TotalAmount": 9999999999999999.99'), "9999999999999999.99"),
        (GOOD.replace('"TotalAmount": 100.0', '"TotalAmount": 1.2345678E7'), "12345678.00"),
        (GOOD.replace('"TotalAmount": 100.0', '"TotalAmount": 12.500000'), "12.50"),
        (GOOD.replace('"TotalAmount": 100.0', '"TotalAmount": 7'), "7.00"),
        (GOOD.replace('"CARD"', '"C\\u0041RD"'), "100.00"),
        (shuffled, "100.00"),
    ):
        (row,) = parse(spark, line)
        assert (row.reason, row.TotalAmount, row.PaymentMethod) == (None, Decimal(total), "CARD")


def _with(old: str, new: str, line: str = GOOD) -> str:
    assert old in line
    return line.replace(old, new, 1)


PLAIN = {
    "as Python writes it": GOOD,
    "without blanks": json.dumps(invoice("1"), separators=(",", ":")),
    "blanks wherever they may be": "\t" + _with("{", " {\r", GOOD.replace(":", "\t: ").replace(",", "\r,")) + " \r",
    "in another order": json.dumps(dict(reversed(invoice("1").items()))),
    "no value": _with('"OAS100"', "null"),
    "an address": json.dumps(invoice("1", DeliveryAddress={"City": "Pune"})),
    "no field of an address": json.dumps(invoice("1", DeliveryAddress={})),
    "no line item": json.dumps(invoice("1") | {"InvoiceLineItems": []}),
    "80 line items, over 8 KB": json.dumps(invoice("1", *[item()] * 80)),
    "escapes": json.dumps(invoice("1", item() | {"ItemDescription": 'Photo frame 8" x 10"\\\b\f\n\r\t' * 3})),
    "an escaped slash": _with("CARD", "C\\/D"),
    "an escape at the end": _with("CARD", 'CARD\\"'),
    "escaped quotes, which end no string": _with("CARD", 'CARD\\",\\"x'),
    "characters by number": json.dumps(invoice("1", item() | {"ItemDescription": "\u20b9 5 \x7f \u00e9"})),
    "a character by two numbers": json.dumps(invoice("1", item() | {"ItemDescription": "\U0001f600"})),
    "characters as they are": json.dumps(invoice("\u20b9 \U0001f600", CashierID='\u20b9"'), ensure_ascii=False),
    "more decimals than there are, all of them zero": _with("100.0", "100.120000"),
    "rounded": json.dumps(invoice("1", CGST=191.47500000000002)),
    "rounded to a whole number": _with('"CGST": 2.5, "SGST": 2.5', '"CGST": -0.99995, "SGST": 0.00004999'),
    "as many digits as there may be": _with("100.0", "-9999999999999999.99"),
}  # fmt: skip
NOT_PLAIN = {
    "two documents": GOOD + GOOD,
    "text after it": GOOD + " x",
    "cut off": GOOD[:-1],
    "in an array": f"[{GOOD}]",
    "a field twice": _with("{", '{"StoreID": "x", '),
    "a field of a line item twice": _with('"ItemCode"', '"ItemQty": 1, "ItemCode"'),
    "a field that nobody declared": _with("{", '{"Gift": "x", '),
    "a field in another case": _with("StoreID", "storeID"),
    "a key with an escape": _with("StoreID", "Store\\u0049D"),
    "a required field without a value": _with('"CARD"', "null"),
    "no required field": _with('"PaymentMethod": "CARD", ', ""),
    "no required field of a line item": _with('"ItemQty": 1, ', "", json.dumps(invoice("1", item() | {"ItemQty": 1}))),
    "no value for a line item": _with('"InvoiceLineItems": [', '"InvoiceLineItems": [null, '),
    "a number for a string": _with('"CARD"', "5"),
    "a string for a number": _with("100.0", '"100.0"'),
    "an exponent": _with("100.0", "1.0E2"),
    "a decimal too many": _with("100.0", "100.001"),
    "a digit too many": _with("100.0", "10000000000000000.00"),
    "a whole number with a fraction": _with('"NumberOfItems": 1', '"NumberOfItems": 1.0'),
    "a whole number that may not fit": _with('"NumberOfItems": 1', '"NumberOfItems": 1000000000'),
    "a zero before": _with("100.0", "0100.0"),
    "a point and nothing": _with("100.0", "100."),
    "a plus": _with("100.0", "+100.0"),
    "a comma at the end": _with('"CARD"', '"CARD",').removesuffix("}") + ",}",
    "half of a pair": _with("CARD", "\\ud83d"),
    "halves of two pairs": _with("CARD", "\\ud83d\\ud83d"),
    "the other half": _with("CARD", "\\ude00"),
    "half a number": _with("CARD", "\\u12"),
    "an escape that there is none of": _with("CARD", "\\x41"),
    "a control character": _with("CARD", "CA\tRD"),
    "a control character after an escape": _with("CARD", "\\tCA\tRD"),
    "not UTF-8": GOOD.encode().replace(b"CARD", b"CA\xffRD"),
    "not UTF-8 after an escape": GOOD.encode().replace(b"CARD", b"\\tCA\xffRD"),
    "a byte order mark": "\ufeff" + GOOD,
    "nothing": "",
    "an open string": _with("CARD", "CARD\\")[: _with("CARD", "CARD\\").index("\\") + 1],
}  # fmt: skip


def test_a_line_is_plain_when_it_is_written_as_declared(spark: SparkSession) -> None:
    from pyspark.sql import functions as F

    texts = lines(spark, *PLAIN.values(), *NOT_PLAIN.values())
    found = [row[0] is not None for row in texts.select(F.expr(plain_record(LANDED_INVOICE))).collect()]
    assert dict(zip((*PLAIN, *NOT_PLAIN), found, strict=True)) == dict.fromkeys(PLAIN, True) | dict.fromkeys(
        NOT_PLAIN, False
    )


def test_a_plain_line_is_read_as_it_is_without_the_function(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = parse(spark, *PLAIN.values())
    monkeypatch.setattr(json_lines, "has_own_classes", lambda _: False)
    assert read == parse(spark, *PLAIN.values())
    assert [row.reason for row in read if row.reason] == ["rule has_line_items: no line items"]
    for row, line in zip(read, PLAIN.values(), strict=True):
        if row.reason:
            continue
        document = json.loads(line)
        assert [i.ItemDescription for i in row.InvoiceLineItems] == [
            i["ItemDescription"] for i in document["InvoiceLineItems"]
        ]
        assert (row.InvoiceNumber, row.PaymentMethod) == (document["InvoiceNumber"], document["PaymentMethod"])


def test_fields_that_nobody_declared_are_kept_in_the_shape_that_they_had(spark: SparkSession) -> None:
    address = {"City": "Pune", "Landmark": "the old mill"}
    document = invoice("1", item(), item() | {"Colour": "red"}, DeliveryAddress=address, Gift=True, Weight=1.25)
    plain, odd = parse(spark, GOOD, json.dumps(document))
    assert plain.rescued_data is None
    assert json.loads(odd.rescued_data) == {
        "Gift": True,
        "Weight": 1.25,
        "DeliveryAddress": {"Landmark": "the old mill"},
        "InvoiceLineItems": [{}, {"Colour": "red"}],
    }
    assert (odd.DeliveryAddress.City, len(odd.InvoiceLineItems), odd.reason) == ("Pune", 2, None)


def test_a_record_that_breaks_a_rule_is_warned_of_set_aside_or_fails_as_the_rule_is_set(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = json.dumps(invoice("1", NumberOfItems=5, TotalAmount=1.5))
    (row,) = parse(spark, odd)
    assert (row.reason, row.warnings) == (None, ["number_of_items_agrees", "line_totals_add_up"])
    monkeypatch.setenv("INVOICE_PLATFORM_EXPECTATIONS", "number_of_items_agrees=quarantine")
    (row,) = parse(spark, odd)
    assert (row.reason, row.warnings) == (
        "rule number_of_items_agrees: NumberOfItems is not the number of line items",
        None,
    )
    monkeypatch.setenv("INVOICE_PLATFORM_EXPECTATIONS", "line_totals_add_up=fail")
    with pytest.raises(
        Exception, match=r"expectation line_totals_add_up is set to fail, and a record of 000001/x\.json"
    ):
        parse(spark, odd)
    assert parse(spark, GOOD)[0].reason is None
    monkeypatch.setenv("INVOICE_PLATFORM_EXPECTATIONS", "line_totals=fail")
    with pytest.raises(
        PlatformError, match=r"INVOICE_PLATFORM_EXPECTATIONS: 'line_totals=fail' is not <rule>=<action>"
    ):
        parse(spark, GOOD)


def test_long_records_and_many_line_items_have_limits(spark: SparkSession) -> None:
    many = json.dumps(invoice("1", *[item()] * MAX_LINE_ITEMS))
    more = json.dumps(invoice("1", *[item()] * (MAX_LINE_ITEMS + 1)))
    long = json.dumps(invoice("1", CashierID="x" * MAX_RECORD_BYTES))
    good, over, cut = parse(spark, many, more, long)
    assert (good.reason, len(good.InvoiceLineItems)) == (None, 10_000)
    assert over.reason == "rule not_too_many_line_items: more than 10000 line items"
    assert cut.reason == f"longer than a record may be: {len(long)} bytes, the limit is {MAX_RECORD_BYTES}"
    assert cut.raw == long[:RAW_CHARACTERS]


def test_blank_lines_are_no_records_and_a_carriage_return_does_no_harm(spark: SparkSession) -> None:
    rows = parse(spark, "", "  \t", "\r", GOOD + "\r", GOOD)
    assert [row.reason for row in rows] == [None, None]


def test_every_kind_of_generated_fault_is_refused_and_no_good_invoice_is(spark: SparkSession) -> None:
    records = list(InvoiceGenerator(seed=5).records(600, faults=0.3))
    bronze = parse_invoices(lines(spark, *(r.data for r in records))).cache()
    assert bronze.where("reason IS NOT NULL").count() == sum(r.fault is not None for r in records) > 0
    assert flatten_invoices(bronze).count() == sum(r.line_items for r in records)
    bronze.unpersist()


def test_line_items_are_numbered_from_one_and_carry_the_invoice(spark: SparkSession) -> None:
    address = {
        "AddressLine": "1, Road",
        "City": "Pune",
        "ContactNumber": "0",
        "PinCode": "411001",
        "State": "Maharashtra",
    }
    document = invoice(
        "9", item("a", 10.0, 2), item("b", 2.5, 3), DeliveryType="HOME-DELIVERY", DeliveryAddress=address
    )
    first, second = (
        flatten_invoices(parse_invoices(lines(spark, json.dumps(document)))).orderBy("line_number").collect()
    )
    assert (first.line_number, first.item_code, first.total_value) == (1, "a", Decimal("20.00"))
    assert (second.line_number, second.item_code, second.item_qty) == (2, "b", 3)
    assert (first.city, first.state, first.pin_code) == ("Pune", "Maharashtra", "411001")
    (created,) = (
        flatten_invoices(parse_invoices(lines(spark, json.dumps(document))))
        .selectExpr("CAST(created_time AS STRING)")
        .distinct()
        .collect()
    )
    assert created[0] == "2024-03-01 12:00:00", "UTC"


# Each is a message's value, and how the reason why it is not valid begins (None: it is valid).
VALUES: list[tuple[str | bytes | None, str | None]] = [
    (GOOD, None),
    (None, "no value (a tombstone)"),
    ("", "a blank value"),
    (" \t\r\n", "a blank value"),
    (b"\xff\xfe", "not valid UTF-8"),
    (b" \xff", "not valid UTF-8"),
    (GOOD.encode().replace(b"STR1000", b"STR\xff\xfe"), "not valid UTF-8"),
    (GOOD + GOOD, "more than one JSON document"),
    (GOOD + "\n" + GOOD, "more than one JSON document"),
    (GOOD[:-20], "not a JSON document"),
    ("null", "not a JSON object"),
    ("{}", "InvoiceNumber is missing"),
    (json.dumps(invoice("1"), indent=2) + "\n", None),
]


def test_each_kafka_message_is_one_row_that_is_valid_or_says_why_not(spark: SparkSession) -> None:
    rows = parse_kafka_invoices(messages(spark, *(value for value, _ in VALUES))).collect()
    assert [row.offset for row in rows] == list(range(len(VALUES)))
    for row, (value, reason) in zip(rows, VALUES, strict=True):
        if reason is None:
            assert (row.reason, row.raw, row.InvoiceNumber) == (None, None, "1")
        else:
            assert row.reason.startswith(reason)
            assert row.raw == (value.decode(errors="replace") if isinstance(value, bytes) else value)
            assert row.InvoiceNumber is None


def test_a_kafka_row_keeps_the_messages_place_key_headers_and_time(spark: SparkSession) -> None:
    first, second = parse_kafka_invoices(messages(spark, GOOD, None, topic="tills.north-1")).collect()
    for offset, row in enumerate((first, second)):
        assert (row.topic, row.partition, row.offset) == ("tills.north-1", 0, offset)
        assert row.source_file == f"kafka:tills.north-1/0/{offset}"
        assert (bytes(row.key), row.timestamp) == (b"k\xff", SENT)
        headers = [(h.key, None if h.value is None else bytes(h.value)) for h in row.headers]
        assert headers == [("sender", b"till \xff"), ("sender", None)]
    assert first.ingested_at == second.ingested_at > SENT


def test_a_kafka_message_and_a_landed_line_of_the_same_text_are_read_alike(spark: SparkSession) -> None:
    texts = [line for line, _ in INVALID] + [GOOD]
    columns = [c.name for c in INVOICES.columns if c.name not in ("source_file", "ingested_at")]
    landed = parse_invoices(lines(spark, *texts)).select(*columns).collect()
    assert parse_kafka_invoices(messages(spark, *texts)).select(*columns).collect() == landed


def test_quarantine_says_the_place_in_kafka_and_none_for_files(spark: SparkSession) -> None:
    files = parse_invoices(lines(spark, "{}", GOOD))
    kafka = parse_kafka_invoices(messages(spark, GOOD, None, "[]"))
    places = ("source_file", "topic", "partition", "offset")
    from_file = ("000001/x.json", None, None, None)
    from_kafka = [(f"kafka:invoices/0/{offset}", "invoices", 0, offset) for offset in (1, 2)]
    for frame, expected in (
        (files, [from_file]),
        (kafka, from_kafka),
        (files.unionByName(kafka, allowMissingColumns=True), [from_file, *from_kafka]),
    ):
        assert [tuple(row) for row in quarantine_invoices(frame).select(*places).collect()] == expected


def test_line_items_of_files_and_of_kafka_are_in_one_frame(spark: SparkSession) -> None:
    files = parse_invoices(lines(spark, json.dumps(invoice("2", item("a"), item("b")))))
    kafka = parse_kafka_invoices(messages(spark, None, GOOD))
    rows = flatten_invoices(files.unionByName(kafka, allowMissingColumns=True)).collect()
    assert [(row.invoice_number, row.line_number, row.source_file) for row in rows] == [
        ("2", 1, "000001/x.json"),
        ("2", 2, "000001/x.json"),
        ("1", 1, "kafka:invoices/0/1"),
    ]


def test_words_end_at_blanks_and_full_stops_and_need_a_letter(spark: SparkSession) -> None:
    frame = spark.createDataFrame([("The cat.The CAT  sat",), ("42 - cat2.",), ("",)], "value string")
    counts = {row.word: row["count"] for row in count_words(frame).collect()}
    assert counts == {"the": 2, "cat": 2, "sat": 1, "cat2": 1}


def test_the_transforms_parse_each_record_once(spark: SparkSession) -> None:
    for frame in (parse_invoices(lines(spark, GOOD)), parse_kafka_invoices(messages(spark, GOOD))):
        plan = frame._jdf.queryExecution().optimizedPlan().toString()  # type: ignore[operator]
        assert plan.count("invoke(plain_record.invoke") == 1
        assert plan.count("SchemaOfVariant.schemaOfVariant(odd") == 1
