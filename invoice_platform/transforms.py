"""Pure functions DataFrame -> DataFrame, the same for a stream and for its batch twin.

pyspark is imported inside the functions, so that a declaration that names one costs no Spark import.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from invoice_platform.expectations import RAW_CHARACTERS, VARIABLE, Expectation, Repeated, expectations
from invoice_platform.schemas import KAFKA_PLACE, LANDED_INVOICE
from invoice_platform.streaming.json_lines import BLANK, read_records
from invoice_platform.streaming.settings import MAX_RECORD_BYTES

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

REWARD_SHARE = "0.02"
"""Points for each rupee, as an SQL decimal of two decimals: nothing is rounded."""

# How long after a day its sums still take line items that come late: a file that was forgotten for a week. State is kept for
# as long: one row a shop and open day.
STORE_DAYS_WATERMARK = "7 days"
# Shorter, because there is more to keep: four rows an item and hour in which it was sold.
PRODUCT_WINDOWS_WATERMARK = "1 day"
PRODUCT_WINDOW = "1 hour"
PRODUCT_WINDOW_SLIDE = "15 minutes"
WINDOWS_OF_AN_ITEM = 4
"""In how many windows a line item is: an hour by a quarter."""


def _rule_reason(rules: Sequence[Expectation]) -> str:
    """SQL: the first rule that a record does not meet and may not pass with, as a reason; null for none."""
    cases = []
    for rule in rules:
        if rule.action == "warn":
            continue
        said = f"'rule {rule.name}: {rule.says}'"
        if rule.action == "fail":
            said = (
                f"raise_error(concat('expectation {rule.name} is set to fail, and a record of ', source_file, ' does not meet it: "
                f"{rule.says}. Nothing of its micro-batch was written: set another action in {VARIABLE}, or mend the source'))"
            )
        cases.append(f"WHEN NOT coalesce({rule.holds}, false) THEN {said}")
    return f"CASE {' '.join(cases)} END" if cases else "CAST(NULL AS STRING)"


def _warnings(rules: Sequence[Expectation]) -> str:
    """SQL: names of the rules that only warn and that a record does not meet; null for none."""
    holds = {rule.name: f"coalesce({rule.holds}, false)" for rule in rules if rule.action == "warn"}
    if not holds:
        return "CAST(NULL AS array<string>)"
    names = ", ".join(f"IF({held}, NULL, '{name}')" for name, held in holds.items())
    # Most records meet all of them, which costs one look at each.
    return f"CASE WHEN NOT ({' AND '.join(holds.values())}) THEN filter(array({names}), name -> name IS NOT NULL) END"


def _parsed(records: DataFrame, *kept: str, sooner: Column | None = None) -> DataFrame:
    """Records with their text in `value`: the columns `kept`, `reason` and `raw`, the landed fields and what is said of them.

    Parameters
    ----------
    sooner : Column
        A reason that wins over those of the text, or null.
    """
    from pyspark.sql import functions as F

    rules = expectations()
    read = read_records(records, LANDED_INVOICE, MAX_RECORD_BYTES)
    fault = F.col("fault") if sooner is None else F.coalesce(sooner, F.col("fault"))
    return (
        # The fields by their own names, so that a rule reads as what it says.
        read.select(*kept, "value", fault.alias("fault"), "rescued", "record.*")
        .withColumn("reason", F.coalesce("fault", F.when(F.col("fault").isNull(), F.expr(_rule_reason(rules)))))
        .select(
            *kept,
            "reason",
            F.when(
                F.col("reason").isNotNull(),
                F.expr(
                    f"make_valid_utf8(IF(octet_length(value) > {MAX_RECORD_BYTES}, left(value, {RAW_CHARACTERS}), value))"
                ),
            ).alias("raw"),
            *(F.when(F.col("reason").isNull(), F.col(c.name)).alias(c.name) for c in LANDED_INVOICE),
            F.when(F.col("reason").isNull(), F.expr(_warnings(rules))).alias("warnings"),
            F.when(F.col("reason").isNull(), F.col("rescued")).alias("rescued_data"),
            F.when(F.col("reason").isNull(), F.xxhash64(*(c.name for c in LANDED_INVOICE))).alias("content_hash"),
        )
    )


def parse_invoices(lines: DataFrame) -> DataFrame:
    """Landed lines to bronze rows: the parsed record, or the raw text and why it is not valid.

    Parameters
    ----------
    lines : DataFrame
        `value` (string, a landed line), `source_file` (string), `ingested_at` (timestamp).

    Returns
    -------
    DataFrame
        The columns of `invoices`, one row per line that is not blank. A valid record has its landed fields and
        null `reason` and `raw`; an invalid one has `reason` and `raw` and null fields.
    """
    from pyspark.sql import functions as F

    return _parsed(lines.where(~F.col("value").rlike(BLANK)), "source_file", "ingested_at")


def parse_kafka_invoices(messages: DataFrame) -> DataFrame:
    """Kafka messages to bronze rows: the parsed record, or the raw text and why it is not valid.

    Parameters
    ----------
    messages : DataFrame
        As Spark's Kafka source gives them with `includeHeaders`: `key` and `value` (binary), `topic`, `partition`,
        `offset`, `timestamp`, `headers`; others are passed over.

    Returns
    -------
    DataFrame
        The columns of `kafka_invoices`, exactly one row per message: one without a value (a tombstone) or with a blank
        one has a reason, too. `ingested_at` is one time for all of a micro-batch.
    """
    from pyspark.sql import functions as F

    place = F.format_string("kafka:%s/%d/%d", "topic", "partition", "offset")
    nothing = F.when(F.col("value").isNull(), "no value (a tombstone)").when(
        F.col("value").rlike(BLANK), "a blank value"
    )
    return _parsed(
        # The cast keeps the bytes as they are; whether they are UTF-8 is one of the reasons.
        messages.withColumns(
            {"value": F.col("value").cast("string"), "source_file": place, "ingested_at": F.current_timestamp()}
        ),
        *("topic", "partition", "offset", "key", "headers", "timestamp", "source_file", "ingested_at"),
        sooner=nothing,
    )


def flatten_invoices(invoices: DataFrame, repeated: Repeated = "keep") -> DataFrame:
    """Bronze rows to line items: one row per line item of each valid record, in the columns of `invoice_line_items`.

    Parameters
    ----------
    repeated : str
        `drop`: of the records with one invoice number the first to come alone, as in `reward_customers`; that takes state.
    """
    from pyspark.sql import functions as F

    valid = invoices.where("reason IS NULL")
    if repeated == "drop":
        columns = (c for c in valid.columns if c in _FLATTENED)
        valid = _once(valid, *columns)
    return valid.select("*", F.posexplode("InvoiceLineItems").alias("position", "item")).select(
        F.col("InvoiceNumber").alias("invoice_number"),
        F.timestamp_millis("CreatedTime").alias("created_time"),
        F.col("StoreID").alias("store_id"),
        F.col("PosID").alias("pos_id"),
        F.col("CustomerType").alias("customer_type"),
        F.col("PaymentMethod").alias("payment_method"),
        F.col("DeliveryType").alias("delivery_type"),
        F.col("DeliveryAddress.City").alias("city"),
        F.col("DeliveryAddress.State").alias("state"),
        F.col("DeliveryAddress.PinCode").alias("pin_code"),
        (F.col("position") + 1).alias("line_number"),
        F.col("item.ItemCode").alias("item_code"),
        F.col("item.ItemDescription").alias("item_description"),
        F.col("item.ItemPrice").alias("item_price"),
        F.col("item.ItemQty").alias("item_qty"),
        F.col("item.TotalValue").alias("total_value"),
        "source_file",
        "ingested_at",
    )


_FLATTENED = (
    *("CreatedTime", "StoreID", "PosID", "CustomerType", "PaymentMethod", "DeliveryType", "DeliveryAddress"),
    *("InvoiceLineItems", "source_file", "ingested_at"),
)
"""What line items are made of, beside the invoice number."""


def _once(invoices: DataFrame, *columns: str) -> DataFrame:
    """`InvoiceNumber` and `columns` of the first record of each invoice number; see the notes of `reward_customers`."""
    from pyspark.sql import functions as F

    if invoices.isStreaming:
        # No more than this is shuffled; of it the state keeps the number alone.
        return invoices.select("InvoiceNumber", *columns).dropDuplicates(["InvoiceNumber"])
    record, order = F.struct(*columns), F.struct("ingested_at", "source_file")
    first = F.min_by(record, F.struct(order, record)).alias("first")
    return invoices.groupBy("InvoiceNumber").agg(first).select("InvoiceNumber", "first.*")


def quarantine_invoices(invoices: DataFrame) -> DataFrame:
    """Bronze rows to quarantine: the invalid ones, in the columns of `quarantined_invoices`.

    Parameters
    ----------
    invoices : DataFrame
        Rows of `invoices`, of `kafka_invoices`, or of both side by side. Where there is no `topic`, `partition` and
        `offset`, as in `invoices` alone, they are null.
    """
    from pyspark.sql import functions as F

    there = invoices.columns
    place = (F.col(c.name) if c.name in there else F.lit(None).cast(c.type).alias(c.name) for c in KAFKA_PLACE)
    return invoices.where("reason IS NOT NULL").select("raw", "source_file", "reason", "ingested_at", *place)


def _with_a_card(invoices: DataFrame) -> DataFrame:
    """Valid bronze rows that name a customer card."""
    return invoices.where("reason IS NULL AND trim(CustomerCardNo) <> ''")


def reward_customers(invoices: DataFrame) -> DataFrame:
    """Bronze rows to points: one row per customer card, each invoice number counted once.

    Parameters
    ----------
    invoices : DataFrame
        Rows of `invoices`, of `kafka_invoices`, or of both side by side.

    Returns
    -------
    DataFrame
        The columns of `customer_rewards`, key `customer_card_no`. As a stream for output mode update: each micro-batch
        gives the cards whose sums changed.

    Notes
    -----
    When a number comes again with another card or amount, the first to come counts, for good. A batch takes the one with
    the earliest `ingested_at`, of several at that time the one least by `source_file`, card and amount, and gives the
    same at each run. A stream counts what the earliest micro-batch brought, which is the same while the streams before it
    keep up; of several records within one micro-batch it takes any. That cannot be told to it: Spark sorts no stream, and
    a choice by aggregation may change later, which a sum after it would add instead of replace.

    The state holds every number that ever came (no watermark: a repeat may come at any time) and the sums of each card.
    """
    from pyspark.sql import functions as F

    once = _once(_with_a_card(invoices), "CustomerCardNo", "TotalAmount")
    return once.groupBy(F.col("CustomerCardNo").alias("customer_card_no")).agg(
        F.count("*").alias("invoices"),
        F.sum("TotalAmount").alias("total_amount"),
        F.sum(F.expr(f"TotalAmount * {REWARD_SHARE}BD")).alias("points"),
    )


def notify_loyal_customers(invoices: DataFrame) -> DataFrame:
    """Bronze rows to notifications: one row per valid record of a PRIME customer with a card; append mode.

    Parameters
    ----------
    invoices : DataFrame
        Rows of `invoices`, of `kafka_invoices`, or of both side by side.

    Returns
    -------
    DataFrame
        The columns of `loyalty_notifications`. An invoice that was sent twice is told of twice, each time with where it
        came from.
    """
    from pyspark.sql import functions as F

    return (
        _with_a_card(invoices)
        .where("CustomerType = 'PRIME'")
        .select(
            F.col("InvoiceNumber").alias("invoice_number"),
            F.col("CustomerCardNo").alias("customer_card_no"),
            F.timestamp_millis("CreatedTime").alias("created_time"),
            F.col("StoreID").alias("store_id"),
            F.col("TotalAmount").alias("total_amount"),
            F.expr(f"TotalAmount * {REWARD_SHARE}BD").alias("points"),
            "source_file",
            "ingested_at",
        )
    )


def _sales() -> list[Column]:
    """The sums that both tables of sales hold."""
    from pyspark.sql import functions as F

    return [
        F.count("*").alias("line_items"),
        F.sum("item_qty").alias("item_qty"),
        F.sum("total_value").alias("total_value"),
    ]


def sum_store_days(items: DataFrame) -> DataFrame:
    """Line items to sales: one row per shop and UTC day.

    Parameters
    ----------
    items : DataFrame
        Rows of `invoice_line_items`.

    Returns
    -------
    DataFrame
        The columns of `store_daily_sales`, key `store_id`, `sales_date`. As a stream for output mode update.

    Notes
    -----
    A stream closes a day, for all shops at once, when an earlier micro-batch held a line item made `STORE_DAYS_WATERMARK`
    after the day's end. An item of a closed day is left out; items read less the sum of `line_items` tells how many. A
    batch leaves none out.
    """
    from pyspark.sql import functions as F

    # The window begins at midnight UTC in any session time zone; a cast to date would take the session's day.
    day = F.expr("date_from_unix_date(CAST(unix_seconds(window.start) DIV 86400 AS INT))").alias("sales_date")
    return (
        items.select("store_id", "created_time", "item_qty", "total_value")
        .withWatermark("created_time", STORE_DAYS_WATERMARK)
        .groupBy("store_id", F.window("created_time", "1 day"))
        .agg(*_sales())
        .select("store_id", day, "line_items", "item_qty", "total_value")
    )


def sum_product_windows(items: DataFrame) -> DataFrame:
    """Line items to sales: one row per item and hour, an hour beginning every 15 minutes.

    Parameters
    ----------
    items : DataFrame
        Rows of `invoice_line_items`.

    Returns
    -------
    DataFrame
        The columns of `product_sales_windows`, key `window_start`, `item_code`. As a stream for output mode update.

    Notes
    -----
    A stream closes a window when an earlier micro-batch held a line item made `PRODUCT_WINDOWS_WATERMARK` after its end.
    An item is added to those of its four windows that are open: `WINDOWS_OF_AN_ITEM` times the items read, less the
    sum of `line_items`, tells how many times an item came too late for a window. A batch leaves none out.
    """
    from pyspark.sql import functions as F

    return (
        items.select("item_code", "created_time", "item_qty", "total_value")
        .withWatermark("created_time", PRODUCT_WINDOWS_WATERMARK)
        .groupBy(F.window("created_time", PRODUCT_WINDOW, PRODUCT_WINDOW_SLIDE), "item_code")
        .agg(*_sales())
        .select(
            F.col("window.start").alias("window_start"),
            F.col("window.end").alias("window_end"),
            "item_code",
            "line_items",
            "item_qty",
            "total_value",
        )
    )


def count_words(lines: DataFrame) -> DataFrame:
    """Lines of text to `word`, `count`.

    Sentences end at `.`, words at blanks; a word is trimmed and lower-cased and counts when it holds a letter.

    Parameters
    ----------
    lines : DataFrame
        `value` (string).
    """
    from pyspark.sql import functions as F

    return (
        lines.select(F.explode(F.split("value", r"\.")).alias("sentence"))
        .select(F.explode(F.split("sentence", r"\s+")).alias("word"))
        .select(F.lower(F.trim("word")).alias("word"))
        .where(F.col("word").rlike(r"\p{L}"))
        .groupBy("word")
        .count()
    )
