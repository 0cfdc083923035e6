"""Asset checks: nothing lost, nothing twice, and what looks odd in the data.

What the Delta log, the ledger and a small table can tell is checked over the whole history at each run, at no cost that matters.
What needs the rows of a large table is checked over those that came since the check last passed (their line items are added to a
running count that the whole table is held against). `audit.py` looks at everything.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any

import dagster as dg
from pydantic import Field

from invoice_platform.assets.bronze import INVOICES_STREAM
from invoice_platform.assets.factory import checkpoint_pool, told
from invoice_platform.assets.gold import PRODUCT_SALES_STREAM, STORE_SALES_STREAM
from invoice_platform.errors import PlatformError
from invoice_platform.expectations import EXPECTATIONS, expectations, repeated_invoices
from invoice_platform.new_rows import BRONZE, START_OF_TIME, NewRows, count_not_once, look_at_new_rows, look_for_repeats
from invoice_platform.resources import Lakehouse, LandingZone, SparkResource
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.session import spark_errors
from invoice_platform.streaming.sources import DeltaTable
from invoice_platform.streaming.state import read_state, write_state
from invoice_platform.streaming.stream import Stream
from invoice_platform.streaming.tables import TableFacts, by_path, facts, null_counts, sum_column
from invoice_platform.transforms import WINDOWS_OF_AN_ITEM

KEY_COLUMNS = ("invoice_number", "created_time", "store_id", "line_number", "item_code")
NO_ROWS = TableFacts(version=-1, rows=0, files=0, bytes=0)

RECONCILED = "landed_is_accepted_plus_quarantined"
NO_NULL_KEYS = "no_null_keys"
NOT_RESENT = "invoice_numbers_sent_once"
REPEATS_AGREE = "repeated_invoices_agree"
ALL_DECLARED = "all_fields_declared"
QUARANTINE_SHARE = "quarantine_share"
ONE_OFFSET_ONE_ROW = "each_offset_once"
LATE = "late_line_items"


class CheckConfig(dg.Config):
    """Thresholds of the invoice checks."""

    max_quarantine_share: float = Field(
        default=0.05, description="Share of the new records (0 to 1) that may be quarantined without a warning."
    )


def _look(spark: SparkResource, layout: Layout, since: Mapping[str, str], *, for_repeats: bool = True) -> NewRows:
    try:
        rows = look_at_new_rows(layout, since)
        if for_repeats:
            look_for_repeats(layout, rows, since)
        if repeated_invoices() == "drop":
            with spark_errors("the checks could not read the tables", layout):
                rows.not_once = count_not_once(spark.session(), layout, since)
        return rows
    except PlatformError as error:
        raise told(error) from error


@dg.multi_asset_check(
    name="invoice_checks",
    specs=[
        dg.AssetCheckSpec(
            RECONCILED,
            asset="invoice_line_items",
            additional_deps=[*BRONZE, "quarantined_invoices"],
            blocking=True,
            description="Every landed record is in bronze once, and either its line items or its raw text went on.",
        ),
        dg.AssetCheckSpec(
            NO_NULL_KEYS, asset="invoice_line_items", description=f"No null in {', '.join(KEY_COLUMNS)}."
        ),
        *(
            dg.AssetCheckSpec(
                rule.name, asset="invoice_line_items", description=f"New records that do not meet it: {rule.says}."
            )
            for rule in EXPECTATIONS
        ),
        dg.AssetCheckSpec(
            NOT_RESENT,
            asset="invoice_line_items",
            description="No invoice number of the new rows came more than once, ever.",
        ),
        dg.AssetCheckSpec(
            REPEATS_AGREE,
            asset="invoice_line_items",
            description="An invoice number that came more than once came with the same content each time.",
        ),
        dg.AssetCheckSpec(
            ALL_DECLARED,
            asset="invoice_line_items",
            description="No new record has a field that was not declared; such fields are kept in rescued_data.",
        ),
        dg.AssetCheckSpec(
            QUARANTINE_SHARE,
            asset="quarantined_invoices",
            description="The share of new records that went to quarantine is under the threshold.",
        ),
    ],
    # Not while a run that writes it alone is between bronze and silver.
    pool=checkpoint_pool("kafka_invoices"),
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
    since = checked.get("through", {})
    items = checked.get("line_items", 0)  # what the records checked so far should have become
    bronze, silver = facts(layout.table("invoices")), facts(layout.table("invoice_line_items"))
    quarantine, kafka = facts(layout.table("quarantined_invoices")), facts(layout.table("kafka_invoices")) or NO_ROWS
    if silver is None or quarantine is None:
        raise told(PlatformError("the invoice tables are not all there: run ingest_invoices first"))
    bronze = bronze or NO_ROWS
    versions = [bronze.version, kafka.version]
    new = NewRows(through=since)
    if checked.get("versions") != versions:
        new = _look(spark, layout, since)
        items += new.line_items
        if items != silver.rows and since and repeated_invoices() == "keep":
            # Before it is said: all that ever came, counted anew. A clock that was set back hides rows from `since`.
            everything = _look(spark, layout, {}, for_repeats=False)
            items, new.through = everything.line_items, everything.through
    if not new.records and "rows" in checked:
        # Nothing is new: what was said of the last new rows still holds.
        known = {f.name for f in fields(NewRows)}
        new = NewRows(**{name: value for name, value in checked["rows"].items() if name in known})

    landed = landing.of(INVOICES_STREAM).ledger.totals()["records_drained"]
    accepted = sum(null_counts(layout.table(name), ["reason"])["reason"] for name in BRONZE)
    if repeated_invoices() == "drop":
        items = silver.rows + new.not_once  # how many there should be depends on which record came first
    reconciled = (
        landed == bronze.rows and bronze.rows + kafka.rows == accepted + quarantine.rows and silver.rows == items
    )
    if reconciled:
        state = {"through": new.through, "versions": versions, "line_items": items, "rows": asdict(new)}
        write_state(layout.checked, state)
    yield dg.AssetCheckResult(
        check_name=RECONCILED,
        asset_key="invoice_line_items",
        passed=reconciled,
        severity=dg.AssetCheckSeverity.ERROR,
        description=(
            f"landed {landed}, in invoices {bronze.rows}, in kafka_invoices {kafka.rows}; accepted {accepted} + "
            f"quarantined {quarantine.rows}; line items: expected {items}, found {silver.rows}"
        ),
        metadata={
            "landed": landed,
            "in_invoices": bronze.rows,
            "in_kafka_invoices": kafka.rows,
            "accepted": accepted,
            "quarantined": quarantine.rows,
            "line_items_expected": items,
            "line_items_found": silver.rows,
            "checked_through": dg.MetadataValue.json(new.through),
        },
    )
    nulls = null_counts(layout.table("invoice_line_items"), KEY_COLUMNS)
    yield dg.AssetCheckResult(
        check_name=NO_NULL_KEYS,
        asset_key="invoice_line_items",
        passed=not any(nulls.values()),
        metadata={f"null_{column}": count for column, count in nulls.items()},
    )
    actions = {rule.name: rule.action for rule in expectations()}
    for name, action in actions.items():
        count = new.not_met.get(name, 0)
        yield _warning(
            name,
            "invoice_line_items",
            count == 0,
            f"{count} of {new.records} new records do not meet it",
            {
                "records": new.records,
                "not_met": count,
                "action": action,
                "invoice_numbers": new.not_met_by.get(name, []),
            },
        )
    yield _warning(
        NOT_RESENT,
        "invoice_line_items",
        new.resent == 0,
        f"{new.resent} invoice numbers of the new records came more than once",
        {"resent": new.resent, "invoice_numbers": new.resent_numbers},
    )
    yield _warning(
        REPEATS_AGREE,
        "invoice_line_items",
        new.conflicts == 0,
        f"{new.conflicts} invoice numbers of the new records came more than once with other content",
        {"conflicts": new.conflicts, "invoice_numbers": new.conflicting_numbers},
    )
    unknown = ", ".join(f"{name} in {count}" for name, count in new.unknown_fields.items())
    yield _warning(
        ALL_DECLARED,
        "invoice_line_items",
        not new.unknown_fields,
        f"fields of the new records that were not declared, kept in rescued_data: {unknown or 'none'}",
        {"fields": dg.MetadataValue.json(new.unknown_fields)},
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


@dg.asset_check(
    asset="kafka_invoices",
    name=ONE_OFFSET_ONE_ROW,
    description="No record of the topic is in the table twice (new rows, against the last offset seen of each partition).",
)
def kafka_check(spark: SparkResource, lakehouse: Lakehouse) -> dg.AssetCheckResult:
    """Rows, repeats and gaps of what came since the check last passed."""
    layout = lakehouse.layout
    state = layout.checkpoints / "kafka_invoices" / "checked.json"  # who deletes the checkpoint deletes it, too
    before = {"version": -1, "through": START_OF_TIME, "offsets": {}, "rows": 0, "repeated": 0, "without_record": 0}
    checked = before | read_state(state)
    found = facts(layout.table("kafka_invoices")) or NO_ROWS
    if found.version != checked["version"]:
        try:
            with spark_errors("the check could not read kafka_invoices", layout):
                checked |= _look_at_offsets(spark, layout, checked) | {"version": found.version}
        except PlatformError as error:
            raise told(error) from error
        if not checked["repeated"]:
            write_state(state, checked)
    return dg.AssetCheckResult(
        passed=not checked["repeated"],
        severity=dg.AssetCheckSeverity.ERROR,
        description=(
            f"{checked['rows']} new rows, {checked['repeated']} of offsets that are there already, "
            f"{checked['without_record']} offsets without a row (expired, or a topic that is compacted or transactional)"
        ),
        metadata={key: checked[key] for key in ("rows", "repeated", "without_record")}
        | {"offsets": dg.MetadataValue.json(checked["offsets"])},
    )


def _look_at_offsets(spark: SparkResource, layout: Layout, checked: Mapping[str, Any]) -> dict[str, Any]:
    found = (
        spark.session()
        .sql(
            f"""SELECT concat(topic, '/', partition) AS place, count(*) AS rows, count(DISTINCT offset) AS offsets,
                  min(offset) AS first, max(offset) AS last, CAST(max(ingested_at) AS STRING) AS through
                FROM {by_path(layout.table("kafka_invoices"))}
                WHERE ingested_at > TIMESTAMP '{checked["through"]}' GROUP BY topic, partition"""
        )
        .collect()
    )
    seen: Mapping[str, int] = checked["offsets"]
    repeated = without_record = 0
    for row in found:
        next_offset = seen.get(row["place"], row["first"] - 1) + 1
        repeated += row["rows"] - row["offsets"] + max(next_offset - row["first"], 0)
        without_record += row["last"] - max(row["first"], next_offset) + 1 - row["offsets"]
        without_record += max(row["first"] - next_offset, 0)
    return {
        "through": max((row["through"] for row in found), default=checked["through"]),
        "offsets": dict(seen) | {row["place"]: row["last"] for row in found},
        "rows": sum(row["rows"] for row in found),
        "repeated": repeated,
        "without_record": max(without_record, 0),
    }


def _late(stream: Stream, lakehouse: Lakehouse, windows: int) -> dg.AssetCheckResult:
    """How often a line item came when the watermark had passed and was left out: what was read less what was added up."""
    layout = lakehouse.layout
    assert isinstance(stream.source, DeltaTable)
    assert stream.table is not None
    version = stream.source.drained_versions(layout, stream.name).get("invoice_line_items")
    read = facts(layout.table("invoice_line_items"), version) or NO_ROWS if version is not None else NO_ROWS
    late = max(windows * read.rows - sum_column(layout.table(stream.table.name), "line_items"), 0)
    each = f", of {windows} windows each" if windows > 1 else ""
    return dg.AssetCheckResult(
        passed=late == 0,
        severity=dg.AssetCheckSeverity.WARN,
        description=(
            f"{late} times one of {read.rows} line items{each} came behind the watermark and is not in {stream.table.name}; "
            "rebuild_invoices takes them in"
        ),
        metadata={"late": late, "line_items_read": read.rows},
    )


@dg.asset_check(asset="store_daily_sales", name=LATE, description="No line item came too late to be counted.")
def late_in_store_sales(lakehouse: Lakehouse) -> dg.AssetCheckResult:
    """Late line items of store_daily_sales."""
    return _late(STORE_SALES_STREAM, lakehouse, 1)


@dg.asset_check(
    asset="product_sales_windows", name=LATE, description="No line item came too late for one of its windows."
)
def late_in_product_sales(lakehouse: Lakehouse) -> dg.AssetCheckResult:
    """Late line items of product_sales_windows: one can be late for some of its windows and not for others."""
    return _late(PRODUCT_SALES_STREAM, lakehouse, WINDOWS_OF_AN_ITEM)


CHECKS = (invoice_checks, kafka_check, late_in_store_sales, late_in_product_sales)
