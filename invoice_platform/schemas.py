"""The landed record and the tables, as data: names, types, meanings. No Spark is imported here.

Money is `decimal(18,2)`. Taxes are `decimal(18,4)`, because producers compute them in binary floats and
send 191.47500000000002 for 191.475: rounding half up at the fourth decimal gives back what was meant.
Sums have ten digits more than what they add up, so that ten thousand million rows of the greatest amount fit.
Times are UTC.
"""

from __future__ import annotations

from invoice_platform.streaming.tables import Column, Table

MONEY = "decimal(18,2)"
TAX = "decimal(18,4)"
POINTS = "decimal(21,4)"
"""Of one invoice: a share of two decimals of `MONEY` is exact."""
SUM_OF_MONEY = "decimal(28,2)"
SUM_OF_POINTS = "decimal(31,4)"

LINE_ITEM: tuple[Column, ...] = (
    Column("ItemCode", "string", "Code of the item in the catalogue", required=True),
    Column("ItemDescription", "string", "Name of the item"),
    Column("ItemPrice", MONEY, "Price of one piece, in rupees", required=True),
    Column("ItemQty", "int", "Pieces sold", required=True),
    Column("TotalValue", MONEY, "Price times pieces, in rupees, as the producer computed it", required=True),
)

DELIVERY_ADDRESS: tuple[Column, ...] = (
    Column("AddressLine", "string", "House and street"),
    Column("City", "string", "City"),
    Column("ContactNumber", "string", "Telephone of the receiver"),
    Column("PinCode", "string", "Postal code, six digits"),
    Column("State", "string", "State"),
)


def _struct(columns: tuple[Column, ...]) -> str:
    return f"struct<{', '.join(f'{c.name}: {c.type}' for c in columns)}>"


LANDED_INVOICE: tuple[Column, ...] = (
    Column("InvoiceNumber", "string", "Number of the invoice; producers re-send a few", required=True),
    Column("CreatedTime", "bigint", "When the invoice was made, milliseconds since 1970-01-01 UTC", required=True),
    Column("StoreID", "string", "Shop", required=True),
    Column("PosID", "string", "Till in the shop", required=True),
    Column("CashierID", "string", "Cashier"),
    Column("CustomerType", "string", "PRIME or NONPRIME", required=True),
    Column("CustomerCardNo", "string", "Loyalty card"),
    Column("TotalAmount", MONEY, "What the invoice says it adds up to, in rupees", required=True),
    Column("NumberOfItems", "int", "How many line items the invoice says it has", required=True),
    Column("PaymentMethod", "string", "CARD or CASH", required=True),
    Column("TaxableAmount", MONEY, "Amount taxed, in rupees"),
    Column("CGST", TAX, "Central tax, in rupees", rounded=True),
    Column("SGST", TAX, "State tax, in rupees", rounded=True),
    Column("CESS", TAX, "Cess, in rupees", rounded=True),
    Column("DeliveryType", "string", "HOME-DELIVERY or TAKEAWAY", required=True),
    Column("DeliveryAddress", _struct(DELIVERY_ADDRESS), "Where to; none for TAKEAWAY", fields=DELIVERY_ADDRESS),
    Column("InvoiceLineItems", f"array<{_struct(LINE_ITEM)}>", "What was bought", required=True, fields=LINE_ITEM),
)
"""One JSON document a line, UTF-8. `required` columns are checked on every record."""

SOURCE_FILE = Column("source_file", "string", "Accepted file it came in, as <segment>/<file> under accepted/<stream>")
INGESTED_AT = Column("ingested_at", "timestamp", "When that file was admitted (UTC); the same after a rebuild")
ANY_SOURCE = Column(
    "source_file", "string", "Accepted file it came in, <segment>/<file>, or kafka:<topic>/<partition>/<offset>"
)
ANY_INGESTED_AT = Column("ingested_at", "timestamp", "When its file was admitted, or it was read from Kafka (UTC)")
REASON = Column("reason", "string", "Why the record was not valid; null for a valid one")
RAW = Column(
    "raw",
    "string",
    "The landed line when it was not valid, bytes that are no UTF-8 replaced, and cut short when it was too long; else null",
)
WARNINGS = Column(
    "warnings", "array<string>", "Names of the expectations that a valid record does not meet; null for none"
)
RESCUED = Column("rescued_data", "string", "Fields of a valid record that were not declared, as JSON; null for none")

KAFKA_PLACE: tuple[Column, ...] = (
    Column("topic", "string", "Kafka topic it came from; null for a file"),
    Column("partition", "int", "Partition of the topic; null for a file"),
    Column("offset", "bigint", "Offset in the partition; null for a file"),
)

CONTENT = Column(
    "content_hash", "bigint", "Hash of all landed fields of a valid record: the same when it is sent again as it was"
)

# Null in an invalid record, so that no half-read document passes for an invoice.
_LANDED_OR_NULL = (*(Column(c.name, c.type, c.comment) for c in LANDED_INVOICE), WARNINGS, RESCUED, CONTENT)

INVOICES = Table(
    "invoices",
    # The platform's own columns first: Delta keeps statistics on the first 32 leaf columns.
    (SOURCE_FILE, INGESTED_AT, REASON, RAW, *_LANDED_OR_NULL),
    "Bronze: one row per landed record, nested as landed; an invalid one has its raw text and a reason instead.",
    {"delta.dataSkippingStatsColumns": "ingested_at,reason,InvoiceNumber,CreatedTime"},
)

KAFKA_INVOICES = Table(
    "kafka_invoices",
    (
        Column("topic", "string", "Kafka topic"),
        Column("partition", "int", "Partition of the topic"),
        Column("offset", "bigint", "Offset in the partition: with topic and partition, the message's own name"),
        Column("key", "binary", "Key of the message, as sent"),
        Column(
            "headers", "array<struct<key: string, value: binary>>", "Headers of the message, as sent; null for none"
        ),
        Column("timestamp", "timestamp", "The message's time (UTC): when it was made or appended, as the topic is set"),
        Column("source_file", "string", "kafka:<topic>/<partition>/<offset>"),
        Column("ingested_at", "timestamp", "When it was read from Kafka (UTC): the time of its micro-batch"),
        REASON,
        Column("raw", "string", "The value when it was not valid, bytes that are no UTF-8 replaced; else null"),
        *_LANDED_OR_NULL,
    ),
    "Bronze: one row per Kafka message, none left out; one that is no valid invoice has its raw text and a reason instead.",
    {"delta.dataSkippingStatsColumns": "topic,partition,offset,ingested_at,reason,InvoiceNumber,CreatedTime"},
)

INVOICE_LINE_ITEMS = Table(
    "invoice_line_items",
    (
        Column("invoice_number", "string", "Number of the invoice"),
        Column("created_time", "timestamp", "When the invoice was made (UTC)"),
        Column("store_id", "string", "Shop"),
        Column("pos_id", "string", "Till in the shop"),
        Column("customer_type", "string", "PRIME or NONPRIME"),
        Column("payment_method", "string", "CARD or CASH"),
        Column("delivery_type", "string", "HOME-DELIVERY or TAKEAWAY"),
        Column("city", "string", "City of delivery; null for TAKEAWAY"),
        Column("state", "string", "State of delivery; null for TAKEAWAY"),
        Column("pin_code", "string", "Postal code of delivery; null for TAKEAWAY"),
        Column("line_number", "int", "Place of the item on its invoice, from 1"),
        Column("item_code", "string", "Code of the item in the catalogue"),
        Column("item_description", "string", "Name of the item"),
        Column("item_price", MONEY, "Price of one piece, in rupees"),
        Column("item_qty", "int", "Pieces sold"),
        Column("total_value", MONEY, "Price times pieces, in rupees, as the producer computed it"),
        ANY_SOURCE,
        ANY_INGESTED_AT,
    ),
    "Silver: one row per line item of every valid landed record.",
    # What people look for, what the checks count nulls of; each column more takes its time at every write.
    {
        "delta.dataSkippingStatsColumns": "invoice_number,created_time,store_id,pin_code,line_number,item_code,"
        "source_file,ingested_at"
    },
)

QUARANTINED_INVOICES = Table(
    "quarantined_invoices",
    # New columns stand last, where Delta adds them to a table that is there.
    (RAW, ANY_SOURCE, Column("reason", "string", "Why the record was not valid"), ANY_INGESTED_AT, *KAFKA_PLACE),
    "One row per landed record or Kafka message that is not a valid invoice.",
    {"delta.dataSkippingStatsColumns": "reason,source_file,ingested_at"},
)

CUSTOMER_REWARDS = Table(
    "customer_rewards",
    (
        Column("customer_card_no", "string", "Loyalty card", required=True),
        Column("invoices", "bigint", "Valid invoices with this card, each number counted once"),
        Column("total_amount", SUM_OF_MONEY, "What they add up to, in rupees, as they say themselves"),
        Column("points", SUM_OF_POINTS, "Points earned: 2 % of total_amount, not rounded"),
    ),
    "Gold: one row per customer card, of valid invoices, each invoice number counted once. Key: customer_card_no.",
)

STORE_DAILY_SALES = Table(
    "store_daily_sales",
    (
        Column("store_id", "string", "Shop", required=True),
        Column("sales_date", "date", "Day on which the invoices were made (UTC)", required=True),
        Column("line_items", "bigint", "Line items added up"),
        Column("item_qty", "bigint", "Pieces sold"),
        Column("total_value", SUM_OF_MONEY, "What the line items add up to, in rupees"),
    ),
    "Gold: one row per shop and day, of line items. Key: store_id, sales_date.",
)

PRODUCT_SALES_WINDOWS = Table(
    "product_sales_windows",
    (
        Column("window_start", "timestamp", "Begin of the hour (UTC), a full quarter; belongs to it", required=True),
        Column("window_end", "timestamp", "End of the hour (UTC); does not belong to it", required=True),
        Column("item_code", "string", "Code of the item in the catalogue", required=True),
        Column("line_items", "bigint", "Line items added up; each is in four hours"),
        Column("item_qty", "bigint", "Pieces sold"),
        Column("total_value", SUM_OF_MONEY, "What the line items add up to, in rupees"),
    ),
    "Gold: one row per item and hour, an hour beginning every 15 minutes, of line items. Key: window_start, item_code.",
)

LOYALTY_NOTIFICATIONS = Table(
    "loyalty_notifications",
    (
        Column("invoice_number", "string", "Number of the invoice"),
        Column("customer_card_no", "string", "Loyalty card to tell"),
        Column("created_time", "timestamp", "When the invoice was made (UTC)"),
        Column("store_id", "string", "Shop"),
        Column("total_amount", MONEY, "What the invoice says it adds up to, in rupees"),
        Column("points", POINTS, "Points earned by this invoice: 2 % of total_amount, not rounded"),
        ANY_SOURCE,
        ANY_INGESTED_AT,
    ),
    "Gold: one row per valid record of a PRIME customer with a card; a record sent twice is there twice.",
)

WORD_COUNT = Table(
    "word_count",
    (
        Column("word", "string", "Lower-cased word that holds a letter"),
        Column("count", "bigint", "How often it occurs in all texts accepted so far"),
    ),
    "How often each word occurs in the landed texts.",
)
