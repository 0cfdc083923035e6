"""A single node the other way: Polars reads the JSON, delta-rs writes the same table. No check, no quarantine."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import polars as pl

MONEY = pl.Decimal(18, 2)
ADDRESS = pl.Struct({"City": pl.String, "State": pl.String, "PinCode": pl.String})
ITEM = pl.Struct(
    # Polars reads no decimals from JSON: floats first, rounded to the two decimals that they were.
    {
        "ItemCode": pl.String,
        "ItemDescription": pl.String,
        "ItemPrice": pl.Float64,
        "ItemQty": pl.Int32,
        "TotalValue": pl.Float64,
    }
)
SCHEMA = {
    "InvoiceNumber": pl.String,
    "CreatedTime": pl.Int64,
    "StoreID": pl.String,
    "PosID": pl.String,
    "CustomerType": pl.String,
    "PaymentMethod": pl.String,
    "DeliveryType": pl.String,
    "DeliveryAddress": ADDRESS,
    "InvoiceLineItems": pl.List(ITEM),
}
COLUMNS = {
    "invoice_number": pl.col("InvoiceNumber"),
    "created_time": pl.from_epoch("CreatedTime", time_unit="ms").cast(pl.Datetime("us", "UTC")),
    "store_id": pl.col("StoreID"),
    "pos_id": pl.col("PosID"),
    "customer_type": pl.col("CustomerType"),
    "payment_method": pl.col("PaymentMethod"),
    "delivery_type": pl.col("DeliveryType"),
    "city": pl.col("DeliveryAddress").struct.field("City"),
    "state": pl.col("DeliveryAddress").struct.field("State"),
    "pin_code": pl.col("DeliveryAddress").struct.field("PinCode"),
    "line_number": pl.col("line_number"),
    "item_code": pl.col("item").struct.field("ItemCode"),
    "item_description": pl.col("item").struct.field("ItemDescription"),
    "item_price": pl.col("item").struct.field("ItemPrice").round(2).cast(MONEY),
    "item_qty": pl.col("item").struct.field("ItemQty"),
    "total_value": pl.col("item").struct.field("TotalValue").round(2).cast(MONEY),
    "source_file": pl.col("source_file").str.split("/").list.last(),
}


def load(folder: Path, table: Path) -> None:
    """Append the line items of every file in `folder` to the Delta table at `table`."""
    read = pl.scan_ndjson(
        sorted(folder.glob("*.json")), schema=SCHEMA, ignore_errors=True, include_file_paths="source_file"
    )
    places = pl.int_ranges(1, pl.col("InvoiceLineItems").list.len() + 1, dtype=pl.Int32)
    (
        read.with_columns(line_number=places)
        .rename({"InvoiceLineItems": "item"})
        .explode("item", "line_number")
        .select(**COLUMNS, ingested_at=pl.lit(datetime.now(timezone.utc)))
        .collect(engine="streaming")
        .write_delta(str(table), mode="append")
    )
