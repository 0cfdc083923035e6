"""Landed invoices and invoices from Kafka, one row a record.

Source: `landing/invoices`, admitted into segments; the topic `invoices`. Sinks: tables `invoices` and `kafka_invoices`, append.
Checkpoint: one a segment; one. Replay: exactly once through the Delta sink.
"""

from invoice_platform.assets.factory import stream_asset
from invoice_platform.schemas import INVOICES, KAFKA_INVOICES
from invoice_platform.streaming.sinks import DeltaSink
from invoice_platform.streaming.sources import KafkaTopics, LandedFiles
from invoice_platform.streaming.stream import Stream
from invoice_platform.transforms import parse_invoices, parse_kafka_invoices

INVOICES_STREAM = Stream(
    name="invoices",
    source=LandedFiles("invoices"),
    transform=parse_invoices,
    sink=DeltaSink(INVOICES),
)

KAFKA_INVOICES_STREAM = Stream(
    name="kafka_invoices",
    source=KafkaTopics("invoices"),
    transform=parse_kafka_invoices,
    sink=DeltaSink(KAFKA_INVOICES),
)

invoices = stream_asset(INVOICES_STREAM, group="bronze")
kafka_invoices = stream_asset(KAFKA_INVOICES_STREAM, group="bronze")
