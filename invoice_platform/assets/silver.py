"""What the landed records hold: line items of the valid ones, the text of the others.

Source: rows appended to `invoices` and to `kafka_invoices`. Sinks: `invoice_line_items` (one row a line item) and
`quarantined_invoices` (one row a record that is not valid), append. Checkpoint: one each, and a new one after a rebuild. Replay:
exactly once through the Delta sink.
"""

from functools import partial

from invoice_platform.assets.factory import stream_asset
from invoice_platform.expectations import Repeated, repeated_invoices
from invoice_platform.schemas import INVOICE_LINE_ITEMS, INVOICES, KAFKA_INVOICES, QUARANTINED_INVOICES
from invoice_platform.streaming.sinks import DeltaSink
from invoice_platform.streaming.sources import DeltaTable
from invoice_platform.streaming.stream import Stream
from invoice_platform.transforms import flatten_invoices, quarantine_invoices


def line_items_stream(repeated: Repeated) -> Stream:
    """The stream of line items, with those of an invoice number that came before kept or dropped."""
    return Stream(
        name="invoice_line_items",
        source=DeltaTable(INVOICES, KAFKA_INVOICES),
        transform=partial(flatten_invoices, repeated=repeated),
        sink=DeltaSink(INVOICE_LINE_ITEMS),
        keeps_state=repeated == "drop",
    )


LINE_ITEMS_STREAM = line_items_stream(repeated_invoices())

QUARANTINE_STREAM = Stream(
    name="quarantined_invoices",
    source=DeltaTable(INVOICES, KAFKA_INVOICES),
    transform=quarantine_invoices,
    sink=DeltaSink(QUARANTINED_INVOICES),
)

invoice_line_items = stream_asset(LINE_ITEMS_STREAM, group="silver")
quarantined_invoices = stream_asset(QUARANTINE_STREAM, group="silver")
