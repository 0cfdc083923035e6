"""Where a stream reads from. A source says what is new (`pending`) and reads it, as a stream or as a batch.

Adding one: a class with `pending`, `read_stream` and `read_batch`, and a place in `SOURCES`. Whatever Spark can read is a
`Connector` without one.
"""

from invoice_platform.streaming.sources.connector import Connector, Rate
from invoice_platform.streaming.sources.delta_table import DeltaTable
from invoice_platform.streaming.sources.kafka_topics import KafkaTopics
from invoice_platform.streaming.sources.landed_files import LandedFiles, tells_files
from invoice_platform.streaming.sources.source import Leg, Service, Source, checkpoints

__all__ = [
    "SOURCES",
    "Connector",
    "DeltaTable",
    "KafkaTopics",
    "LandedFiles",
    "Leg",
    "Rate",
    "Service",
    "Source",
    "checkpoints",
    "tells_files",
]

SOURCES: tuple[type[Source], ...] = (LandedFiles, DeltaTable, KafkaTopics, Rate, Connector)
