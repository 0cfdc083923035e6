"""When things run by the clock."""

import dagster as dg

from invoice_platform.jobs import audit_tables, ingest_invoices, maintain_tables, trim_history
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


nightly_audit = dg.ScheduleDefinition(
    name="nightly_audit",
    job=audit_tables,
    cron_schedule="30 2 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Holds the tables people ask for against plain SQL, once a night.",
)

nightly_trim = dg.ScheduleDefinition(
    name="nightly_trim",
    job=trim_history,
    cron_schedule="0 3 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Deletes old runs and their logs, once a night.",
)

nightly_maintenance = dg.ScheduleDefinition(
    name="nightly_maintenance",
    job=maintain_tables,
    cron_schedule="30 3 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Joins small files and deletes what nobody needs any more, once a night.",
)

SCHEDULES = (hourly_ingest, nightly_audit, nightly_trim, nightly_maintenance)
