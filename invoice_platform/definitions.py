"""The one Definitions that Dagster loads. Imports no pyspark and reads no file."""

import dagster as dg

from invoice_platform.assets import bronze, silver, word_count
from invoice_platform.checks import invoice_checks
from invoice_platform.jobs import JOBS
from invoice_platform.logs import console
from invoice_platform.resources import Lakehouse, LandingZone, SparkResource
from invoice_platform.schedules import hourly_ingest
from invoice_platform.sensors import landed_invoices_sensor, landed_text_sensor

lakehouse = Lakehouse()

defs = dg.Definitions(
    assets=dg.load_assets_from_modules([bronze, silver, word_count]),
    asset_checks=[invoice_checks],
    jobs=JOBS,
    schedules=[hourly_ingest],
    sensors=[landed_invoices_sensor, landed_text_sensor],
    resources={
        "lakehouse": lakehouse,
        "landing": LandingZone(lakehouse=lakehouse),
        "spark": SparkResource(lakehouse=lakehouse),
    },
    executor=dg.in_process_executor,
    loggers={"console": console},
)
