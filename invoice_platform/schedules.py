"""When things run by the clock."""

import dagster as dg

from invoice_platform.jobs import ingest_invoices
from invoice_platform.resources import Lakehouse
from invoice_platform.sensors import INGESTING, under_way


@dg.schedule(
    job=ingest_invoices,
    cron_schedule="0 * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
def hourly_ingest(context: dg.ScheduleEvaluationContext, lakehouse: Lakehouse) -> dg.RunRequest | dg.SkipReason:
    """The catch-up: whatever a sensor missed is in the tables within the hour."""
    if run := under_way(context.instance, INGESTING, lakehouse.layout):
        return dg.SkipReason(f"run {run.run_id} of {run.job_name} is under way")
    return dg.RunRequest()
