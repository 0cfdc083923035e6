"""What the checks read of the newest bronze rows agrees with counting them one by one, whatever they lie in."""

from datetime import datetime, timedelta, timezone
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from invoice_platform import new_rows
from invoice_platform.errors import PlatformError
from invoice_platform.expectations import EXPECTATIONS
from invoice_platform.new_rows import BRONZE, NAMED, NewRows, look_at_new_rows, look_for_repeats
from invoice_platform.streaming.layout import Layout

NOON = datetime(2026, 1, 2, 12, tzinfo=timezone.utc)
WARNS = [rule.name for rule in EXPECTATIONS if rule.action == "warn"]
SETS_ASIDE = [rule for rule in EXPECTATIONS if rule.action == "quarantine"]
SCHEMA = pa.schema(
    {
        "ingested_at": pa.timestamp("us", "UTC"),
        "reason": pa.string(),
        "InvoiceNumber": pa.string(),
        "InvoiceLineItems": pa.list_(pa.struct({"ItemCode": pa.string(), "ItemQty": pa.int32()})),
        "warnings": pa.list_(pa.string()),
        "rescued_data": pa.string(),
        "content_hash": pa.int64(),
    }
)
Row = dict[str, Any]


def row(number: str, microseconds: int = 0, items: int = 1, **other: object) -> Row:
    came = NOON + timedelta(microseconds=microseconds)
    lines = [{"ItemCode": "1", "ItemQty": n} for n in range(items)]
    valid = {"InvoiceNumber": number, "InvoiceLineItems": lines, "content_hash": 1}
    return {"ingested_at": came} | ({} if "reason" in other else valid) | other


def put(layout: Layout, table: str, rows: list[Row], schema: pa.Schema = SCHEMA) -> None:
    path = str(layout.table(table))
    write_deltalake(path, pa.Table.from_pylist(rows, schema), mode="append", schema_mode="merge")


def look(layout: Layout, since: dict[str, str] | None = None) -> NewRows:
    rows = look_at_new_rows(layout, since or {})
    look_for_repeats(layout, rows, since or {})
    return rows


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.at(tmp_path / "root")


def test_nothing_is_there_yet(layout: Layout) -> None:
    assert look(layout) == NewRows(not_met={rule.name: 0 for rule in EXPECTATIONS})


@pytest.mark.parametrize("seed", range(3))
def test_it_agrees_with_counting_over_several_runs(layout: Layout, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_rows, "READ_ROWS", 7)
    monkeypatch.setattr(new_rows, "NUMBERS_AT_ONCE", 20)
    chance, came, through, all_numbers = Random(seed), 0, {}, list[str]()
    for _ in range(6):
        new: list[Row] = []
        for table in BRONZE:
            for _ in range(chance.choice([0, 1, 2])):
                rows: list[Row] = []
                for _ in range(chance.choice([1, 10, 40])):
                    came += chance.choice([1, 400, 1_000_000])  # often within one millisecond
                    rule = chance.choice(SETS_ASIDE)
                    odd: dict[str, object] = chance.choice(
                        [
                            {},
                            {"warnings": chance.sample(WARNS, chance.choice([1, len(WARNS)]))},
                            {"rescued_data": '{"Colour":1}'},
                            {"reason": f"rule {rule.name}: {rule.says}"},
                            {"reason": "not a JSON document"},
                        ]
                    )
                    rows.append(row(str(chance.randrange(300)), came, chance.randrange(1, 4), **odd))
                put(layout, table, rows)
                new += rows
        found = look(layout, through)

        valid = [r for r in new if "reason" not in r]
        assert (found.records, found.quarantined) == (len(new), len(new) - len(valid))
        assert found.line_items == sum(len(r["InvoiceLineItems"]) for r in valid)
        for rule in EXPECTATIONS:
            warned = [r["InvoiceNumber"] for r in valid if rule.name in r.get("warnings", [])]
            aside = [r for r in new if r.get("reason", "").startswith(f"rule {rule.name}: ")]
            assert found.not_met[rule.name] == len(warned) + len(aside)
            named = found.not_met_by.get(rule.name, [])
            assert len(named) == min(len(warned), NAMED)
            assert set(named) <= set(warned)
        assert found.unknown_fields.get("Colour", 0) == sum("rescued_data" in r for r in new)
        numbers = [r["InvoiceNumber"] for r in valid]
        all_numbers += numbers
        again = sorted({number for number in numbers if all_numbers.count(number) > 1})
        assert (found.resent, found.resent_numbers) == (len(again), again[:NAMED])
        through = found.through
    assert look(layout, through).records == 0


def test_what_came_later_within_the_millisecond_that_was_seen_last_is_new(layout: Layout) -> None:
    put(layout, "kafka_invoices", [row("1", 100)])
    through = look(layout).through
    assert through == {"kafka_invoices": "2026-01-02 12:00:00.000100"}
    put(layout, "kafka_invoices", [row("2", 900)])  # of which the log's statistics say 0: they end at the millisecond
    assert look(layout, through).records == 1
    assert look(layout, {"kafka_invoices": "2026-01-02 12:00:00.0001"}).records == 1, "as Spark wrote it"
    assert look(layout, {"kafka_invoices": "2026-01-02 12:00:00"}).records == 2


def test_files_that_are_older_than_a_column_or_were_merged_are_read(layout: Layout) -> None:
    older = pa.schema([f for f in SCHEMA if f.name not in ("warnings", "rescued_data", "content_hash")])
    put(layout, "invoices", [row("1")], older)
    put(layout, "invoices", [row("2", 1_000, warnings=WARNS[:1])])
    assert look(layout).not_met[WARNS[0]] == 1
    DeltaTable(str(layout.table("invoices"))).optimize.compact()
    assert look(layout, {"invoices": "2026-01-02 12:00:00"}).records == 1


def test_undeclared_fields_are_named_with_where_they_are(layout: Layout) -> None:
    rescued = ['{"a":{"b":1},"DeliveryAddress":{"c":1},"InvoiceLineItems":[{},{"d":1},{"d":2,"e":[]}]}', '{"a":1}']
    deep = '{"a":' + "[" * 2_000 + "]" * 2_000 + "}"
    put(layout, "invoices", [row(str(n), rescued_data=text) for n, text in enumerate([*rescued, deep])])
    names = ("DeliveryAddress.c", "InvoiceLineItems.d", "InvoiceLineItems.e")
    assert look(layout).unknown_fields == {"(nested too deep to be named)": 1, "a": 2, **dict.fromkeys(names, 1)}


def test_a_data_file_that_is_damaged_or_gone_is_named(layout: Layout) -> None:
    put(layout, "invoices", [row("1")])
    (file,) = layout.table("invoices").glob("*.parquet")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(PlatformError, match=file.name):
        look(layout)
    file.unlink()
    with pytest.raises(PlatformError, match=file.name):
        look(layout)
