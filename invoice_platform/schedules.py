"""When things run by the clock."""

import dagster as dg

from invoice_platform.jobs import ingest_invoices

hourly_ingest = dg.ScheduleDefinition(
    name="hourly_ingest",
    job=ingest_invoices,
    cron_schedule="0 * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="The catch-up: whatever a sensor missed is in the tables within the hour.",
)
