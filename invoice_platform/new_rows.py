"""What the bronze rows say that came since the checks last passed.

Source: the data files of `invoices` and `kafka_invoices` that the Delta log's statistics leave over, read without Spark. That is
faster, and it is another reader than the one that wrote them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING
from urllib.parse import unquote

from invoice_platform.errors import PlatformError, first_line
from invoice_platform.expectations import EXPECTATIONS
from invoice_platform.schemas import LANDED_INVOICE
from invoice_platform.streaming.key_index import KeyIndex, hashes, repeats
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.tables import add_actions, by_path, open_delta

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from pyspark.sql import SparkSession

BRONZE = ("invoices", "kafka_invoices")
NAMED = 20
"""Invoice numbers that a warning names, at most."""
NUMBERS_AT_ONCE = 4_000_000
"""Invoice numbers that are looked up in one go, which this process has in memory."""
READ_ROWS = 65_536
START_OF_TIME = "1970-01-01 00:00:00"
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_NESTED = {column.name for column in LANDED_INVOICE if column.fields}


@dataclass
class NewRows:
    """What the rows admitted since the last passed check say."""

    records: int = 0
    quarantined: int = 0
    line_items: int = 0
    """What the valid ones should have become."""
    not_met: dict[str, int] = field(default_factory=dict)
    """Records that do not meet an expectation, by its name; accepted or quarantined, as its action is."""
    not_met_by: dict[str, list[str]] = field(default_factory=dict)
    """Some of their invoice numbers, of those that were accepted."""
    unknown_fields: dict[str, int] = field(default_factory=dict)
    """Records with fields that nobody declared, by field."""
    resent: int = 0
    resent_numbers: list[str] = field(default_factory=list)
    not_once: int = 0
    """Invoice numbers whose line items are not those of one record, where repeated ones are dropped."""
    conflicts: int = 0
    """Of the invoice numbers sent again, those that came with other content."""
    conflicting_numbers: list[str] = field(default_factory=list)
    through: dict[str, str] = field(default_factory=dict)
    """For each bronze table the time at which the newest of them came (UTC)."""


def look_at_new_rows(layout: Layout, since: Mapping[str, str]) -> NewRows:
    """Count what the checks need over the bronze rows that came after `since` (a UTC timestamp for each table).

    Raises
    ------
    PlatformError
        When a data file cannot be read: names it.
    """
    rows = NewRows(not_met={rule.name: 0 for rule in EXPECTATIONS}, through=dict(since))
    unknown: Counter[str] = Counter()
    for name in BRONZE:
        newest = _microseconds(since.get(name, START_OF_TIME))
        columns = ["InvoiceNumber", "reason", "warnings", "rescued_data", "InvoiceLineItems"]
        for batch in _new_batches(layout.table(name), newest, columns):
            rows.records += batch.num_rows
            rows.quarantined += batch.num_rows - batch["reason"].null_count
            rows.through[name] = max(rows.through.get(name, ""), _text(batch["came"].to_numpy().max()))
            rows.line_items += len(batch["InvoiceLineItems"].flatten())  # an invalid record has none
            _count_rules(batch, rows)
            unknown.update(key for text in batch["rescued_data"].drop_null() for key in _undeclared(text.as_py()))
    rows.not_met_by = {name: sorted(numbers) for name, numbers in rows.not_met_by.items()}
    rows.unknown_fields = dict(sorted(unknown.items()))
    return rows


def look_for_repeats(layout: Layout, rows: NewRows, since: Mapping[str, str]) -> None:
    """Add to `rows` which of their invoice numbers came more than once among all that ever came; after `look_at_new_rows`."""
    import pyarrow as pa

    indexes = [
        KeyIndex(layout.key_indexes / name, layout.table(name), "InvoiceNumber", "content_hash") for name in BRONZE
    ]
    parts = rows.records // NUMBERS_AT_ONCE + 1
    for part in range(parts):
        numbers = []
        for name in BRONZE:
            newest = _microseconds(since.get(name, START_OF_TIME))
            for batch in _new_batches(layout.table(name), newest, ["InvoiceNumber"]):
                some = batch["InvoiceNumber"].drop_null()
                if parts > 1:
                    some = some.filter(pa.array(hashes(some.to_numpy(zero_copy_only=False)) % parts == part))
                numbers.append(some)
        found = repeats(indexes, pa.chunked_array(numbers, pa.string()))
        rows.resent += len(found.keys)
        rows.resent_numbers = sorted([*rows.resent_numbers, *found.keys])[:NAMED]
        rows.conflicts += len(found.conflicting)
        rows.conflicting_numbers = sorted([*rows.conflicting_numbers, *found.conflicting])[:NAMED]


def count_not_once(session: SparkSession, layout: Layout, since: Mapping[str, str]) -> int:
    """Of the new invoice numbers those whose line items are not of one record: over all line items that there are, by Spark."""
    new = " UNION ALL ".join(
        f"SELECT InvoiceNumber FROM {by_path(layout.table(name))} "
        f"WHERE reason IS NULL AND ingested_at > TIMESTAMP '{since.get(name, START_OF_TIME)}'"
        for name in BRONZE
        if open_delta(layout.table(name)) is not None
    )
    items = by_path(layout.table("invoice_line_items"))
    return session.sql(
        f"""SELECT count(*) FROM (SELECT DISTINCT InvoiceNumber FROM ({new}))
            LEFT JOIN (
              SELECT invoice_number, count(*) AS items, count(DISTINCT line_number) AS places,
                count(DISTINCT source_file) AS records
              FROM {items} GROUP BY invoice_number) ON invoice_number = InvoiceNumber
            WHERE items IS NULL OR items <> places OR records > 1"""
    ).collect()[0][0]


def _count_rules(batch: pa.RecordBatch, rows: NewRows) -> None:
    rule_of = batch["warnings"].flatten().to_numpy(zero_copy_only=False)
    record_of = batch["warnings"].value_parent_indices().to_numpy()
    for rule, number in Counter(rule_of).items():
        rows.not_met[rule] = rows.not_met.get(rule, 0) + number
        named = rows.not_met_by.setdefault(rule, [])
        named += batch["InvoiceNumber"].take(record_of[rule_of == rule][: NAMED - len(named)]).to_pylist()
    for reason in batch["reason"].drop_null().to_pylist():
        rule = reason.partition(": ")[0].removeprefix("rule ")
        if rule in rows.not_met and reason.startswith("rule "):
            rows.not_met[rule] += 1


def _undeclared(rescued: str) -> set[str]:
    """Names of the fields in `rescued_data`, those within a declared field with its name before them."""
    try:
        document = json.loads(rescued)
    except RecursionError:
        return {"(nested too deep to be named)"}
    names: set[str] = set()
    for key, value in document.items():
        if key not in _NESTED:
            names.add(key)
            continue
        for inner in value if isinstance(value, list) else [value]:
            names |= {f"{key}.{name}" for name in inner}
    return names


def _microseconds(text: str) -> int:
    """Microseconds since 1970 of a UTC time as `_text` writes it, with or without a fraction."""
    whole, _, fraction = text.partition(".")
    seconds = datetime.strptime(f"{whole}+0000", "%Y-%m-%d %H:%M:%S%z") - _EPOCH
    return int(seconds.total_seconds()) * 1_000_000 + int(fraction.ljust(6, "0"))


def _text(microseconds: int) -> str:
    return f"{_EPOCH + timedelta(microseconds=int(microseconds)):%Y-%m-%d %H:%M:%S.%f}"


def _new_batches(table: Path, since: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Rows of a bronze table that came after `since` (microseconds since 1970), with `columns` and `came` (the same unit).

    A column that a data file is older than is null.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = open_delta(table)
    actions = add_actions(found, "path", "max.ingested_at") if found is not None else {"path": []}
    # Statistics end at the millisecond.
    least = _EPOCH + timedelta(milliseconds=since // 1000)
    for path, newest in zip(actions["path"], actions.get("max.ingested_at", actions["path"]), strict=True):
        if isinstance(newest, datetime) and newest.replace(tzinfo=timezone.utc) < least:
            continue
        file = table / unquote(path)
        try:
            with pq.ParquetFile(file, coerce_int96_timestamp_unit="us") as parquet:
                leaves = [parquet.schema.column(at).path for at in range(parquet.metadata.num_columns)]
                # Of the line items one field, to count them.
                read = [leaf for leaf in leaves if "InvoiceLineItems." not in leaf or leaf.endswith(".ItemQty")]
                read = [leaf for leaf in read if leaf.partition(".")[0] in ("ingested_at", *columns)]
                for batch in parquet.iter_batches(READ_ROWS, columns=read):
                    came = batch["ingested_at"].cast(pa.int64())
                    rows = batch.append_column("came", came)
                    for column in set(columns) - set(batch.schema.names):
                        kind = pa.list_(pa.string()) if column == "warnings" else pa.string()
                        rows = rows.append_column(column, pa.nulls(len(rows), kind))
                    rows = rows.filter(pa.array(came.to_numpy() > since))
                    if len(rows):
                        yield rows
        except (OSError, pa.ArrowException) as error:
            raise PlatformError(f"the checks could not read {file}: {first_line(error, 200)}") from error
