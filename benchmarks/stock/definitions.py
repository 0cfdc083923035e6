"""Landed invoices to the flat Delta table, the straightforward way.

Source: `<STOCK_ROOT>/landing`, JSON lines, read by Spark's file source where they lie. Sink: `<STOCK_ROOT>/invoice_line_items`,
append. Checkpoint: `<STOCK_ROOT>/checkpoint`. A new session each run, Delta's jars from Ivy, default settings, Dagster's own
multiprocess executor, a sensor every 30 s. Nothing is quarantined and nothing checked.
"""

import os
from pathlib import Path

import dagster as dg

from benchmarks.contestants.engine import SCHEMA, flat

ROOT = Path(os.environ.get("STOCK_ROOT", "stock-data"))
LANDING = ROOT / "landing"
TABLE = ROOT / "invoice_line_items"
PACKAGES = "io.delta:delta-spark_4.2_2.13:4.4.0"
SENSOR_SECONDS = int(os.environ.get("STOCK_SENSOR_SECONDS", "30"))
"""Less only where the benchmarks run tiny, for correctness."""


@dg.asset
def invoice_line_items() -> None:
    """One row per line item."""
    from pyspark.sql import SparkSession

    spark = (
        SparkSession.builder.appName("invoices")
        .config("spark.jars.packages", PACKAGES)
        # Not under the user's home, so that a benchmark leaves nothing there; full from the first run on.
        .config("spark.jars.ivy", str(ROOT / "ivy"))
        .config("spark.sql.extensions", "io.delta.sql.DeltaSparkSessionExtension")
        .config("spark.sql.catalog.spark_catalog", "org.apache.spark.sql.delta.catalog.DeltaCatalog")
        .getOrCreate()
    )
    invoices = spark.readStream.schema(SCHEMA).json(str(LANDING))
    query = (
        flat(invoices)
        .writeStream.format("delta")
        .option("checkpointLocation", str(ROOT / "checkpoint"))
        .trigger(availableNow=True)
        .start(str(TABLE))
    )
    query.awaitTermination()
    spark.stop()


ingest = dg.define_asset_job("ingest", selection=[invoice_line_items])


@dg.sensor(job=ingest, minimum_interval_seconds=SENSOR_SECONDS, default_status=dg.DefaultSensorStatus.RUNNING)
def new_files(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """One run for the files that came since the last tick."""
    seen = set(context.cursor.split("\n")) if context.cursor else set()
    there = {path.name for path in LANDING.glob("*.json")}
    if there <= seen:
        return dg.SkipReason("nothing new")
    return dg.SensorResult(run_requests=[dg.RunRequest()], cursor="\n".join(sorted(there)))


defs = dg.Definitions(assets=[invoice_line_items], jobs=[ingest], sensors=[new_files])
