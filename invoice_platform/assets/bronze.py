"""Landed invoices, one row a record.

Source: `landing/invoices`, admitted into segments. Sink: table `invoices`, append. Checkpoint: one a segment. Replay:
exactly once through the Delta sink.
"""

from invoice_platform.assets.factory import stream_asset
from invoice_platform.schemas import INVOICES
from invoice_platform.streaming.sinks import DeltaSink
from invoice_platform.streaming.sources import LandedFiles
from invoice_platform.streaming.stream import Stream
from invoice_platform.transforms import parse_invoices

INVOICES_STREAM = Stream(
    name="invoices",
    source=LandedFiles("invoices"),
    transform=parse_invoices,
    sink=DeltaSink(INVOICES),
)

invoices = stream_asset(INVOICES_STREAM, group="bronze")
