"""A single node at best: DuckDB reads the JSON, delta-rs writes the same table. No check, no quarantine."""

from __future__ import annotations

from pathlib import Path

import duckdb
from deltalake import write_deltalake

COLUMNS = """{InvoiceNumber: 'VARCHAR', CreatedTime: 'BIGINT', StoreID: 'VARCHAR', PosID: 'VARCHAR', CustomerType: 'VARCHAR',
  PaymentMethod: 'VARCHAR', DeliveryType: 'VARCHAR', DeliveryAddress: 'STRUCT(City VARCHAR, State VARCHAR, PinCode VARCHAR)',
  InvoiceLineItems: 'STRUCT(ItemCode VARCHAR, ItemDescription VARCHAR, ItemPrice DECIMAL(18,2), ItemQty INTEGER,
    TotalValue DECIMAL(18,2))[]'}"""
FLAT = f"""
  SELECT InvoiceNumber AS invoice_number, make_timestamptz(CreatedTime * 1000) AS created_time, StoreID AS store_id,
    PosID AS pos_id, CustomerType AS customer_type, PaymentMethod AS payment_method, DeliveryType AS delivery_type,
    DeliveryAddress.City AS city, DeliveryAddress.State AS state, DeliveryAddress.PinCode AS pin_code, place AS line_number,
    item.ItemCode AS item_code, item.ItemDescription AS item_description, item.ItemPrice AS item_price,
    item.ItemQty AS item_qty, item.TotalValue AS total_value, parse_filename(filename) AS source_file, now() AS ingested_at
  FROM (
    SELECT *, unnest(InvoiceLineItems) AS item, CAST(generate_subscripts(InvoiceLineItems, 1) AS INTEGER) AS place
    FROM read_json($files, format = 'newline_delimited', columns = {COLUMNS}, ignore_errors = true, filename = true))"""


def load(folder: Path, table: Path) -> None:
    """Append the line items of every file in `folder` to the Delta table at `table`."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        # Piece by piece: the rows are never all in memory.
        rows = connection.sql(FLAT, params={"files": str(folder / "*.json")}).to_arrow_reader(250_000)
        write_deltalake(str(table), rows, mode="append")
