"""The engine: one batch job in a Spark that is warm, from the same files to the same flat table. What Spark can do at best.

Source: files of JSON lines. Sink: a Delta table, append; its columns are those of `invoice_line_items`. Replay: the rows again.
Nothing is checked, nothing quarantined: a line that is no invoice gives no line items.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from invoice_platform.schemas import LANDED_INVOICE

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

SCHEMA = ", ".join(column.ddl for column in LANDED_INVOICE)


def flat(invoices: DataFrame) -> DataFrame:
    """Invoices as landed to line items in the columns of `invoice_line_items`; for a batch and for a stream."""
    from pyspark.sql import functions as F

    return invoices.select(
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
        F.posexplode("InvoiceLineItems").alias("position", "item"),
        F.col("_metadata.file_name").alias("source_file"),
        F.col("_metadata.file_modification_time").alias("ingested_at"),
    ).selectExpr(
        "* EXCEPT (position, item, source_file, ingested_at)",
        "position + 1 AS line_number",
        "item.ItemCode AS item_code",
        "item.ItemDescription AS item_description",
        "item.ItemPrice AS item_price",
        "item.ItemQty AS item_qty",
        "item.TotalValue AS total_value",
        "source_file",
        "ingested_at",
    )


def load(spark: SparkSession, folder: Path, table: Path) -> None:
    """Append the line items of every file in `folder` to the Delta table at `table`."""
    flat(spark.read.schema(SCHEMA).json(str(folder))).write.format("delta").mode("append").save(str(table))
