"""When things run by the clock."""

from typing import Any

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


def by_the_clock(name: str, job: Any, cron_schedule: str, description: str) -> dg.ScheduleDefinition:
    """A schedule that runs a job at given times (UTC), on by default."""
    return dg.ScheduleDefinition(
        name=name,
        job=job,
        cron_schedule=cron_schedule,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=description,
    )


SCHEDULES = (
    hourly_ingest,
    by_the_clock(
        "nightly_audit", audit_tables, "30 2 * * *", "Holds the tables people ask for against plain SQL, once a night."
    ),
    by_the_clock(
        "nightly_maintenance",
        maintain_tables,
        "30 3 * * *",
        "Joins small files and deletes what nobody needs any more, once a night.",
    ),
    # Each run lists the logs of its tables, so they are not left to grow for a day.
    by_the_clock(
        "hourly_trim",
        trim_history,
        "45 * * * *",
        "Deletes old runs and their logs and old commits of tables, once an hour.",
    ),
)
