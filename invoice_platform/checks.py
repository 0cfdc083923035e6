"""Asset checks of the invoice tables: nothing lost, nothing twice, and what looks odd in the data.

What the Delta log and the ledger can tell (rows, nulls, records landed) is checked over the whole history at each run, at no
cost that matters. What needs the rows is checked over those admitted since the blocking check last passed; their line items are
added to a running count that the whole table is held against.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import dagster as dg
from pydantic import Field

from invoice_platform.assets.bronze import INVOICES_STREAM
from invoice_platform.assets.factory import told
from invoice_platform.errors import PlatformError
from invoice_platform.resources import Lakehouse, LandingZone, SparkResource
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.session import spark_errors
from invoice_platform.streaming.state import read_state, write_state
from invoice_platform.streaming.stream import OpenSession
from invoice_platform.streaming.tables import declare_existing, facts, null_count

KEY_COLUMNS = ("invoice_number", "created_time", "store_id", "line_number", "item_code")
NAMED = 20
"""Invoice numbers that a warning names, at most."""
START_OF_TIME = "1970-01-01 00:00:00"

RECONCILED = "landed_is_accepted_plus_quarantined"
NO_NULL_KEYS = "no_null_keys"
TOTALS_ADD_UP = "line_totals_add_up"
NOT_RESENT = "invoice_numbers_sent_once"
QUARANTINE_SHARE = "quarantine_share"


class CheckConfig(dg.Config):
    """Thresholds of the invoice checks."""

    max_quarantine_share: float = Field(
        default=0.05, description="Share of the new records (0 to 1) that may be quarantined without a warning."
    )


@dataclass
class NewRows:
    """What the rows admitted since the last passed check say."""

    records: int = 0
    quarantined: int = 0
    line_items: int = 0
    """What the valid ones should have become."""
    totals_differ: int = 0
    totals_differ_in: list[str] = field(default_factory=list)
    resent: int = 0
    resent_numbers: list[str] = field(default_factory=list)
    through: str = START_OF_TIME


def look_at_new_rows(spark: OpenSession, layout: Layout, since: str) -> NewRows:
    """Count what the checks need over the rows admitted after `since` (a UTC timestamp in text).

    Delta skips the files before `since` by their statistics; only re-sent numbers are looked up among all that came.
    """
    session = spark()
    declare_existing(session, layout)
    session.sql(
        f"""CREATE OR REPLACE TEMPORARY VIEW new_invoices AS SELECT *,
              aggregate(InvoiceLineItems, CAST(0 AS DECIMAL(38,2)), (sum, item) -> CAST(sum + item.TotalValue AS DECIMAL(38,2)))
                <> TotalAmount AS differs
            FROM invoices WHERE ingested_at > TIMESTAMP '{since}'"""
    )
    counts = session.sql(
        """SELECT count(*) AS records, count(reason) AS quarantined,
             coalesce(sum(CASE WHEN reason IS NULL THEN size(InvoiceLineItems) END), 0) AS line_items,
             count_if(differs) AS totals_differ, CAST(max(ingested_at) AS STRING) AS through
           FROM new_invoices"""
    ).collect()[0]
    rows = NewRows(
        records=counts["records"],
        quarantined=counts["quarantined"],
        line_items=counts["line_items"],
        totals_differ=counts["totals_differ"],
        through=counts["through"] or since,
    )
    if rows.totals_differ:
        named = session.sql(f"SELECT InvoiceNumber FROM new_invoices WHERE differs LIMIT {NAMED}").collect()
        rows.totals_differ_in = sorted(row[0] for row in named)
    resent = session.sql(
        f"""SELECT count(*), slice(sort_array(collect_list(InvoiceNumber)), 1, {NAMED}) FROM (
             SELECT InvoiceNumber FROM invoices
             WHERE InvoiceNumber IN (SELECT InvoiceNumber FROM new_invoices WHERE reason IS NULL)
             GROUP BY InvoiceNumber HAVING count(*) > 1)"""
    ).collect()[0]
    rows.resent, rows.resent_numbers = resent[0], list(resent[1])
    return rows


@dg.multi_asset_check(
    name="invoice_checks",
    specs=[
        dg.AssetCheckSpec(
            RECONCILED,
            asset="invoice_line_items",
            additional_deps=["invoices", "quarantined_invoices"],
            blocking=True,
            description="Every landed record is in invoices once, and either its line items or its raw text went on.",
        ),
        dg.AssetCheckSpec(
            NO_NULL_KEYS, asset="invoice_line_items", description=f"No null in {', '.join(KEY_COLUMNS)}."
        ),
        dg.AssetCheckSpec(
            TOTALS_ADD_UP, asset="invoices", description="The line totals add up to what the invoice says (new rows)."
        ),
        dg.AssetCheckSpec(
            NOT_RESENT, asset="invoices", description="No invoice number of the new rows came more than once, ever."
        ),
        dg.AssetCheckSpec(
            QUARANTINE_SHARE,
            asset="quarantined_invoices",
            description="The share of new records that went to quarantine is under the threshold.",
        ),
    ],
)
def invoice_checks(
    config: CheckConfig,
    spark: SparkResource,
    landing: LandingZone,
    lakehouse: Lakehouse,
) -> Iterator[dg.AssetCheckResult]:
    """All checks of the invoice tables, in one step that opens no Spark when nothing is new."""
    layout = lakehouse.layout
    checked = read_state(layout.checked)
    since = checked.get("through", START_OF_TIME)
    items = checked.get("line_items", 0)  # what the records checked so far should have become
    bronze, silver = facts(layout.table("invoices")), facts(layout.table("invoice_line_items"))
    quarantine = facts(layout.table("quarantined_invoices"))
    if bronze is None or silver is None or quarantine is None:
        raise told(PlatformError("the invoice tables are not all there: run ingest_invoices first"))
    new = NewRows(through=since)
    if checked.get("version") != bronze.version:
        try:
            with spark_errors("the checks could not read the tables", layout):
                new = look_at_new_rows(spark.session, layout, since)
        except PlatformError as error:
            raise told(error) from error
        items += new.line_items
    if not new.records and "rows" in checked:
        new = NewRows(**checked["rows"])  # nothing is new: what was said of the last new rows still holds

    landed = landing.of(INVOICES_STREAM).ledger.totals()["records_drained"]
    accepted = null_count(layout.table("invoices"), "reason")
    reconciled = landed == bronze.rows and bronze.rows == accepted + quarantine.rows and silver.rows == items
    if reconciled:
        state = {"through": new.through, "version": bronze.version, "line_items": items, "rows": asdict(new)}
        write_state(layout.checked, state)
    yield dg.AssetCheckResult(
        check_name=RECONCILED,
        asset_key="invoice_line_items",
        passed=reconciled,
        severity=dg.AssetCheckSeverity.ERROR,
        description=(
            f"landed {landed}, in invoices {bronze.rows} = accepted {accepted} + quarantined {quarantine.rows}; "
            f"line items: expected {items}, found {silver.rows}"
        ),
        metadata={
            "landed": landed,
            "in_invoices": bronze.rows,
            "accepted": accepted,
            "quarantined": quarantine.rows,
            "line_items_expected": items,
            "line_items_found": silver.rows,
            "checked_through": new.through,
        },
    )
    nulls = {column: null_count(layout.table("invoice_line_items"), column) for column in KEY_COLUMNS}
    yield dg.AssetCheckResult(
        check_name=NO_NULL_KEYS,
        asset_key="invoice_line_items",
        passed=not any(nulls.values()),
        metadata={f"null_{column}": count for column, count in nulls.items()},
    )
    yield _warning(
        TOTALS_ADD_UP,
        "invoices",
        new.totals_differ == 0,
        f"{new.totals_differ} of {new.records} new records have line totals that do not add up to TotalAmount",
        {"records": new.records, "differ": new.totals_differ, "invoice_numbers": new.totals_differ_in},
    )
    yield _warning(
        NOT_RESENT,
        "invoices",
        new.resent == 0,
        f"{new.resent} invoice numbers of the new records came more than once",
        {"resent": new.resent, "invoice_numbers": new.resent_numbers},
    )
    share = new.quarantined / new.records if new.records else 0.0
    yield _warning(
        QUARANTINE_SHARE,
        "quarantined_invoices",
        share <= config.max_quarantine_share,
        f"{new.quarantined} of {new.records} new records are quarantined",
        {
            "share": share,
            "max_share": config.max_quarantine_share,
            "quarantined": new.quarantined,
            "records": new.records,
        },
    )


def _warning(name: str, asset: str, passed: bool, description: str, metadata: dict[str, Any]) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=name,
        asset_key=asset,
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=description,
        metadata=metadata,
    )
