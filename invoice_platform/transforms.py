"""Pure functions DataFrame -> DataFrame, the same for a stream and for its batch twin.

pyspark is imported inside the functions, so that a declaration that names one costs no Spark import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from invoice_platform.schemas import LANDED_INVOICE, LINE_ITEM

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

_CORRUPT = "_corrupt"


def _one_document(line: str) -> str:
    """SQL that is true when a line holds exactly one JSON document.

    Spark's parser reads the first document of `{…}{…}`, `{…},{…}` and `{…} junk` and flags nothing. Inside
    `[…,0]` one document gives two elements, several give more, and junk gives null.
    """
    return f"coalesce(json_array_length(concat('[', {line}, ',0]')) = 2, false)"


def _reason(line: str, record: str) -> Column:
    """Why a line is not a valid invoice, or null; the first that holds wins."""
    from pyspark.sql import functions as F

    missing = [f"IF({record}.{c.name} IS NULL, '{c.name}', NULL)" for c in LANDED_INVOICE if c.required]
    item = " OR ".join(f"item.{c.name} IS NULL" for c in LINE_ITEM if c.required)
    named = ", ".join(c.name for c in LINE_ITEM if c.required)
    return F.expr(
        f"""CASE
          WHEN NOT is_valid_utf8({line}) THEN 'not valid UTF-8'
          WHEN {record} IS NULL OR {record}.{_CORRUPT} IS NOT NULL
            THEN 'not a JSON document of the declared fields and types'
          WHEN NOT {_one_document(line)} THEN 'more than one JSON document, or text after it, on the line'
          WHEN concat_ws(', ', {", ".join(missing)}) <> ''
            THEN concat('missing: ', concat_ws(', ', {", ".join(missing)}))
          WHEN size({record}.InvoiceLineItems) = 0 THEN 'no line items'
          WHEN exists({record}.InvoiceLineItems, item -> item IS NULL OR {item})
            THEN 'a line item lacks one of {named}'
        END"""
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

    schema = ", ".join(c.ddl for c in LANDED_INVOICE) + f", `{_CORRUPT}` string"
    options = {
        "columnNameOfCorruptRecord": _CORRUPT,
        # JSON has neither; Spark takes both unless told.
        "allowSingleQuotes": "false",
        "allowNonNumericNumbers": "false",
    }
    return (
        lines.where(~F.col("value").rlike(r"\A\s*\z"))
        .withColumn("parsed", F.from_json("value", schema, options))
        .withColumn("reason", _reason("value", "parsed"))
        .withColumn("record", F.when(F.col("reason").isNull(), F.col("parsed")))
        .select(
            "source_file",
            "ingested_at",
            "reason",
            F.when(F.col("reason").isNotNull(), F.expr("make_valid_utf8(value)")).alias("raw"),
            *(F.col(f"record.{c.name}").alias(c.name) for c in LANDED_INVOICE),
        )
    )


def flatten_invoices(invoices: DataFrame) -> DataFrame:
    """Bronze rows to line items: one row per line item of each valid record, in the columns of `invoice_line_items`."""
    from pyspark.sql import functions as F

    return (
        invoices.where("reason IS NULL")
        .select("*", F.posexplode("InvoiceLineItems").alias("position", "item"))
        .select(
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
    )


def quarantine_invoices(invoices: DataFrame) -> DataFrame:
    """Bronze rows to quarantine: the invalid ones, in the columns of `quarantined_invoices`."""
    return invoices.where("reason IS NOT NULL").select("raw", "source_file", "reason", "ingested_at")


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
