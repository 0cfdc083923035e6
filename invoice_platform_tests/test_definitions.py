"""What Dagster sees: assets, jobs, pools, names that users rely on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import yaml

from invoice_platform.assets.factory import STREAMS
from invoice_platform.definitions import defs
from invoice_platform.orchestrate import instance, limit_pools
from invoice_platform.schemas import INVOICE_LINE_ITEMS, INVOICES, LANDED_INVOICE
from invoice_platform.streaming.layout import Layout

PROJECT = Path(__file__).resolve().parents[1]


def graph() -> dg.AssetGraph:  # type: ignore[name-defined]
    return defs.resolve_asset_graph()


def test_assets_are_the_tables_and_depend_as_data_flows() -> None:
    parents = {
        k.to_user_string(): {p.to_user_string() for p in graph().get(k).parent_keys}
        for k in graph().get_all_asset_keys()
    }
    assert parents == {
        "invoices": set(),
        "kafka_invoices": set(),
        "invoice_line_items": {"invoices", "kafka_invoices"},
        "quarantined_invoices": {"invoices", "kafka_invoices"},
        "customer_rewards": {"invoices", "kafka_invoices"},
        "loyalty_notifications": {"invoices", "kafka_invoices"},
        "store_daily_sales": {"invoice_line_items"},
        "product_sales_windows": {"invoice_line_items"},
        "word_count": set(),
    }


def test_each_checkpoint_has_a_pool_of_its_own_that_lets_one_run_in() -> None:
    pools = {
        asset.node_def.name: asset.node_def.pool
        for asset in defs.assets or []
        if isinstance(asset, dg.AssetsDefinition) and isinstance(asset.node_def, dg.OpDefinition)
    }
    assert pools == {name: f"checkpoint_{name}" for name in pools}
    settings = yaml.safe_load((PROJECT / "invoice_platform" / "dagster.yaml").read_text())
    assert settings["concurrency"]["pools"]["default_limit"] == 1


def test_every_pool_has_its_limit_before_the_first_run(tmp_path: Path) -> None:
    layout = Layout.at(tmp_path)
    limit_pools(layout)
    with instance(layout) as history:
        limits = {pool.name: pool.limit for pool in history.event_log_storage.get_pool_limits()}
    assert limits == {f"checkpoint_{name}": 1 for name in STREAMS}


def test_the_settings_are_ones_that_dagster_takes(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text((PROJECT / "invoice_platform" / "dagster.yaml").read_text())
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.get_concurrency_config().pool_config.default_pool_limit == 1
        assert not instance.telemetry_enabled


def test_the_jobs_are_named_as_users_rely_on_and_run_in_one_process() -> None:
    names = {job.name for job in defs.resolve_all_job_defs() if not job.name.startswith("__")}
    assert names == {
        "ingest_invoices", "ingest_kafka_invoices", "count_words", "stream_invoices", "rebuild_invoices",
        "rebuild_word_count", "audit_tables", "maintain_tables", "trim_history",
    }  # fmt: skip
    for name in names:
        assert defs.resolve_job_def(name).executor_def.name == "in_process", name


def test_files_are_ingested_without_any_server_and_kafka_brings_its_own_job() -> None:
    def tables(job: str) -> set[str]:
        keys = defs.resolve_job_def(job).asset_layer.executable_asset_keys
        return {key.to_user_string() for key in keys}

    everything = tables("ingest_invoices") | tables("ingest_kafka_invoices")
    assert everything - tables("ingest_invoices") == {"kafka_invoices", "loyalty_notifications"}
    assert everything - tables("ingest_kafka_invoices") == {"invoices"}
    assert tables("audit_tables") == set()


def test_every_stream_takes_the_same_settings() -> None:
    for asset in defs.assets or []:
        assert isinstance(asset, dg.AssetsDefinition)
        node: Any = asset.node_def
        assert set(node.config_schema.config_type.fields) == {
            "trigger", "max_files_per_trigger", "run_for_seconds", "max_bytes_per_trigger", "max_offsets_per_trigger",
            "fail_on_data_loss",
        }  # fmt: skip


def test_line_items_have_the_columns_that_users_rely_on() -> None:
    assert [c.name for c in INVOICE_LINE_ITEMS.columns] == [
        "invoice_number", "created_time", "store_id", "pos_id", "customer_type", "payment_method", "delivery_type", "city",
        "state", "pin_code", "line_number", "item_code", "item_description", "item_price", "item_qty", "total_value",
        "source_file", "ingested_at",
    ]  # fmt: skip
    types = {c.name: c.type for c in INVOICE_LINE_ITEMS.columns}
    assert types["created_time"] == "timestamp"
    assert types["item_price"] == types["total_value"] == "decimal(18,2)"
    landed = [c.name for c in LANDED_INVOICE]
    said_of_them = ["warnings", "rescued_data", "content_hash"]
    assert [c.name for c in INVOICES.columns][-len(landed) - 3 :] == [*landed, *said_of_them], "nested as landed"


def test_every_column_says_what_it_means() -> None:
    tables = [stream.table for stream in STREAMS.values() if stream.table is not None]
    assert len(tables) == 9
    for table in tables:
        assert all(column.comment for column in table.columns)
