"""The README's own example, run as written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from invoice_platform import connectors
from invoice_platform.assets.bronze import INVOICES_STREAM
from invoice_platform.assets.factory import STREAMS, downstream
from invoice_platform.schemas import INVOICE_LINE_ITEMS
from invoice_platform.streaming import sinks, sources
from invoice_platform.streaming.stream import RunSettings, run_streams
from invoice_platform.streaming.tables import Column, Table
from invoice_platform.webhook import Webhook
from invoice_platform_tests.conftest import INVOICE_STREAMS, Platform, invoice, item

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_readmes_stream_works_as_written(platform: Platform) -> None:
    found = re.search(r"<!-- example: test_readme runs this -->\n```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    example: dict[str, Any] = {}
    try:
        exec(found[1], example)
        assert [s.name for s in downstream(INVOICES_STREAM)][-1] == "big_tickets", "jobs and sensors take it along"
    finally:
        STREAMS.pop("big_tickets", None)
    assert example["big_tickets"].key.to_user_string() == "big_tickets"

    platform.land("1.json", invoice("1", item(price=10.0), item(price=2000.0)), invoice("2", item(price=1000.5)))
    streams = [*INVOICE_STREAMS, example["BIG_TICKETS_STREAM"]]
    run_streams(streams, platform.open, platform.layout, RunSettings(), run="test")
    rows = platform.sql("SELECT invoice_number, CAST(total_value AS STRING) FROM {big_tickets} ORDER BY 1")
    assert rows == [("1", "2000.00"), ("2", "1000.50")]


def test_the_readmes_tables_of_sources_and_sinks_are_those_of_the_declarations() -> None:
    assert connectors.put_into(README.read_text()) == README.read_text(), "run `make readme`"


def test_every_source_and_sink_is_declared_as_the_readme_shows() -> None:
    names = ("number", "changed", "city")
    orders = Table("orders", tuple(Column(name, "string", name) for name in names), "Orders.")
    known = (
        vars(sources) | vars(sinks) | {"ORDERS": orders, "INVOICE_LINE_ITEMS": INVOICE_LINE_ITEMS, "Webhook": Webhook}
    )
    shown = (*sources.SOURCES, *sinks.SINKS)
    assert all(isinstance(eval(kind.example, known), kind) for kind in shown)
    public = {
        k
        for m in (sources, sinks)
        for k in vars(m).values()
        if isinstance(k, type) and k.__module__.startswith(m.__name__)
    }
    kinds = {k for k in public if issubclass(k, (sources.Source, sinks.Sink))} - {sources.Source, sinks.Sink}
    assert kinds == set(shown), "none is left out"
