"""Whether the tables people ask for are what plain SQL over everything that ever came gives: `audit_tables`, once a night."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from invoice_platform.assets.factory import told
from invoice_platform.errors import PlatformError
from invoice_platform.new_rows import BRONZE
from invoice_platform.resources import Lakehouse, SparkResource
from invoice_platform.streaming.session import spark_errors
from invoice_platform.streaming.tables import declare_existing
from invoice_platform.transforms import REWARD_SHARE

EQUALS_SQL = "equals_plain_sql"

_ONCE = """SELECT InvoiceNumber, first(CustomerCardNo) AS customer_card_no, first(TotalAmount) AS total_amount
  FROM bronze WHERE reason IS NULL AND trim(CustomerCardNo) <> '' GROUP BY InvoiceNumber"""
PLAIN_SQL = {
    "customer_rewards": f"""SELECT customer_card_no, count(*) AS invoices, sum(total_amount) AS total_amount,
        sum(total_amount * {REWARD_SHARE}BD) AS points FROM ({_ONCE}) GROUP BY customer_card_no""",
    "store_daily_sales": """SELECT store_id, date(created_time) AS sales_date, count(*) AS line_items,
        sum(item_qty) AS item_qty, sum(total_value) AS total_value FROM invoice_line_items GROUP BY ALL""",
    "product_sales_windows": """SELECT window.start AS window_start, window.end AS window_end, item_code,
        count(*) AS line_items, sum(item_qty) AS item_qty, sum(total_value) AS total_value
        FROM (SELECT *, window(created_time, '1 hour', '15 minutes') AS window FROM invoice_line_items) GROUP BY ALL""",
    "loyalty_notifications": """SELECT InvoiceNumber AS invoice_number, source_file, TotalAmount AS total_amount
        FROM bronze WHERE reason IS NULL AND CustomerType = 'PRIME' AND trim(CustomerCardNo) <> ''""",
}
"""What each table should hold, said another way than the stream says it; the columns are those compared."""


@dg.multi_asset_check(
    name="gold_audit",
    specs=[
        dg.AssetCheckSpec(
            EQUALS_SQL, asset=table, description="Equal, row for row, to plain SQL over everything that ever came."
        )
        for table in PLAIN_SQL
    ],
    can_subset=True,
)
def gold_audit(
    context: dg.AssetCheckExecutionContext, spark: SparkResource, lakehouse: Lakehouse
) -> Iterator[dg.AssetCheckResult]:
    """Compare whole tables with what they should be: as long as the history is, so by a job of its own."""
    layout = lakehouse.layout
    try:
        with spark_errors("the audit could not read the tables", layout):
            session = spark.session()
            known = declare_existing(session, layout)
            bronze = [
                f"SELECT InvoiceNumber, CustomerCardNo, CustomerType, TotalAmount, reason, source_file, ingested_at FROM {name}"
                for name in BRONZE
                if name in known
            ]
            if bronze:
                session.sql(f"CREATE OR REPLACE TEMPORARY VIEW bronze AS {' UNION ALL '.join(bronze)}")
            for key in sorted(context.selected_asset_check_keys):
                table = key.asset_key.to_user_string()
                yield _compared(session, table) if bronze and table in known else _nothing_yet(table)
    except PlatformError as error:
        raise told(error) from error


def _nothing_yet(table: str) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=EQUALS_SQL, asset_key=table, passed=True, description=f"{table} has not been made yet"
    )


def _compared(session: Any, table: str) -> dg.AssetCheckResult:
    """Rows that a table lacks and rows that it should not have, repeats counted."""
    expected = session.sql(PLAIN_SQL[table])
    found = session.table(table).select(*expected.columns)
    lacking, unwanted = expected.exceptAll(found).count(), found.exceptAll(expected).count()
    return dg.AssetCheckResult(
        check_name=EQUALS_SQL,
        asset_key=table,
        passed=not (lacking or unwanted),
        severity=dg.AssetCheckSeverity.WARN,  # a stream may be behind its sources, and late rows are counted elsewhere
        description=f"{table}: {lacking} rows that plain SQL gives are not there, {unwanted} that it does not give are",
        metadata={"lacking": lacking, "unwanted": unwanted, "rows": found.count()},
    )
