"""The one Definitions that Dagster loads. Imports no pyspark and reads no file."""

import dagster as dg

from invoice_platform.assets import bronze, gold, silver, word_count
from invoice_platform.audit import gold_audit
from invoice_platform.checks import CHECKS
from invoice_platform.jobs import JOBS
from invoice_platform.logs import console
from invoice_platform.resources import Lakehouse, LandingZone, SparkResource
from invoice_platform.schedules import SCHEDULES
from invoice_platform.sensors import SENSORS

lakehouse = Lakehouse()

defs = dg.Definitions(
    assets=dg.load_assets_from_modules([bronze, silver, gold, word_count]),
    asset_checks=[*CHECKS, gold_audit],
    jobs=JOBS,
    schedules=SCHEDULES,
    sensors=SENSORS,
    resources={
        "lakehouse": lakehouse,
        "landing": LandingZone(lakehouse=lakehouse),
        "spark": SparkResource(lakehouse=lakehouse),
    },
    executor=dg.in_process_executor,
    loggers={"console": console},
)
