"""The README's own example, run as written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from invoice_platform.assets.bronze import INVOICES_STREAM
from invoice_platform.assets.factory import STREAMS, downstream
from invoice_platform.streaming.stream import RunSettings, run_streams
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
