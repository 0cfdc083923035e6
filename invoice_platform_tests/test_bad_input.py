"""Bad and odd input through the real jobs: what each lands as, and what is said of it."""

from __future__ import annotations

import gzip
import json
import os
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from invoice_platform.assets.bronze import INVOICES_STREAM
from invoice_platform.assets.silver import line_items_stream
from invoice_platform.errors import PlatformError
from invoice_platform.expectations import repeated_invoices
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.rebuild import rebuild
from invoice_platform.streaming.settings import MAX_LINE_BYTES, MAX_RECORD_BYTES, RunSettings
from invoice_platform.streaming.stream import run_streams
from invoice_platform_tests.conftest import Platform, invoice, item
from invoice_platform_tests.test_jobs import checks, why

NAMES = (
    "a b.json",
    "new\nline.json",
    "emoji-😀.json",
    "a#b%20c:d.json",
    "_x.json",
    "ünï.json",
    "k=1.json",
    "it's `x`.json",
)


def drop(platform: Platform, name: str, content: bytes) -> None:
    (platform.layout.landing("invoices") / name).write_bytes(content)


def one(number: str) -> bytes:
    return json.dumps(invoice(number)).encode()


def test_every_file_is_admitted_or_left_with_a_reason_whatever_its_name_age_or_content(platform: Platform) -> None:
    landing = platform.layout.landing("invoices")
    for number, name in enumerate(NAMES):
        drop(platform, name, one(str(number)))
    week_old, to_come = time.time() - 30 * 86_400, time.time() + 30 * 86_400
    for number, (name, modified) in enumerate((("old.json", week_old), ("future.json", to_come)), start=len(NAMES)):
        drop(platform, name, one(str(number)))
        os.utime(landing / name, (modified, modified))
    drop(platform, "packed.json.gz", gzip.compress(one("10") + b"\n" + one("11")))
    left = {
        "empty.json": b"",
        "half.tmp": b"{}",
        "x.part": b"{}",
        ".hidden": b"{}",
        "bad.gz": b"no gzip",
        "x.zip": b"PK",
    }
    for name, content in left.items():
        drop(platform, name, content)
    (landing / "folder").mkdir()
    (landing / "link.json").symlink_to(landing / "old.json")
    with (landing / "growing.json").open("wb") as growing:
        growing.write(one("12"))
        growing.flush()
        platform.run("ingest_invoices")
    found = platform.sql(
        "SELECT InvoiceNumber FROM {invoices} WHERE reason IS NULL ORDER BY CAST(InvoiceNumber AS INT)"
    )
    assert found == [(str(n),) for n in range(12)]
    assert {p.name for p in landing.iterdir()} == {*left, "folder", "link.json", "growing.json"}
    platform.run("ingest_invoices")
    assert platform.count("invoices") == 13, "the one that was being written is read once it is whole"
    assert platform.count("invoice_line_items") == 13


def test_good_lines_go_through_beside_bad_ones_and_every_line_is_somewhere(platform: Platform) -> None:
    bom, bad = b"\xef\xbb\xbf", [b"{", b"\x00\x00", b"\xff\xfe", b"[]", b"{}{}", one("x")[:-5]]
    lines = [bom + one("1") + b"\r", b"", b"  \t\r", *bad, one("2")]
    drop(platform, "mixed.json", b"\n".join(lines))
    result = platform.run("ingest_invoices")
    assert platform.sql("SELECT InvoiceNumber FROM {invoices} WHERE reason IS NULL ORDER BY 1") == [("1",), ("2",)]
    assert platform.count("quarantined_invoices") == len(bad)
    whole = checks(result)["landed_is_accepted_plus_quarantined"]
    assert (whole.passed, whole.metadata["landed"].value) == (True, len(bad) + 2)


def test_rules_unknown_fields_and_repeats_are_counted_by_run_and_name_what_they_found(platform: Platform) -> None:
    address = {"City": "Pune", "Landmark": "mill"}
    platform.land(
        "1.json",
        invoice("1", NumberOfItems=3),
        invoice("2", item(), item() | {"Colour": "red"}, DeliveryAddress=address, Gift=1),
        invoice("3", Gift=2),
        invoice("4", item(quantity=-1)),
        invoice("5", CreatedTime=5),
        invoice("6"),
        invoice("6"),
        invoice("7"),
        invoice("7", CashierID="another"),
    )
    found = checks(platform.run("ingest_invoices"))
    counts = {name: check.metadata["not_met"].value for name, check in found.items() if "not_met" in check.metadata}
    assert counts == {
        "created_time_is_plausible": 1, "has_line_items": 0, "not_too_many_line_items": 0,
        "quantities_are_not_negative": 1, "number_of_items_agrees": 1, "line_totals_add_up": 0,
    }  # fmt: skip
    assert found["number_of_items_agrees"].metadata["invoice_numbers"].value == ["1"]
    assert found["number_of_items_agrees"].metadata["action"].value == "warn"
    unknown = found["all_fields_declared"]
    assert (unknown.passed, unknown.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert unknown.metadata["fields"].value == {
        "DeliveryAddress.Landmark": 1,
        "Gift": 2,
        "InvoiceLineItems.Colour": 1,
    }
    assert found["invoice_numbers_sent_once"].metadata["invoice_numbers"].value == ["6", "7"]
    assert found["repeated_invoices_agree"].metadata["invoice_numbers"].value == ["7"]
    platform.land("2.json", invoice("8"))
    found = checks(platform.run("ingest_invoices"))
    assert all(found[name].passed for name in counts), "the next run has its own counts"


def test_a_rule_that_is_set_to_fail_stops_the_run_before_anything_is_written(
    platform: Platform, session_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.layout.logs.mkdir()
    platform.layout.spark_log.symlink_to(
        Layout.at(session_root).spark_log
    )  # what a session of the root's own writes to
    platform.land("1.json", invoice("1"))
    platform.run("ingest_invoices")
    monkeypatch.setenv("INVOICE_PLATFORM_EXPECTATIONS", "number_of_items_agrees=fail")
    platform.land("2.json", invoice("2"), invoice("3", NumberOfItems=5))
    said = why(platform.run("ingest_invoices", ok=False), "invoices")
    assert "expectation number_of_items_agrees is set to fail, and a record of 000001/" in said
    assert "\n" not in said
    assert platform.count("invoices") == 1
    monkeypatch.delenv("INVOICE_PLATFORM_EXPECTATIONS")
    platform.run("ingest_invoices")
    assert platform.count("invoices") == 3


def test_repeated_invoices_are_kept_or_dropped_and_a_change_of_that_wants_a_rebuild(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping, dropping = ((INVOICES_STREAM, line_items_stream(policy)) for policy in ("keep", "drop"))

    def run(streams: Any) -> list[tuple[Any, ...]]:
        run_streams(streams, platform.open, platform.layout, RunSettings(), run="test")
        return platform.sql("SELECT invoice_number, item_code FROM {invoice_line_items} ORDER BY ALL")

    platform.land("1.json", invoice("1", item("a")))
    run(dropping)
    platform.land("2.json", invoice("1", item("b"), item("c")), invoice("2", item("d")))
    assert run(dropping) == [("1", "a"), ("2", "d")]
    platform.land("3.json", invoice("3", item("e")))
    with pytest.raises(PlatformError, match=r"was made with state, and it is now declared or set without: .*rebuild"):
        run(keeping)
    rebuild(keeping, platform.open, platform.layout, run="test")
    everything = [("1", "a"), ("1", "b"), ("1", "c"), ("2", "d"), ("3", "e")]
    assert run(keeping) == everything
    platform.land("4.json", invoice("1", item("f")))
    with pytest.raises(PlatformError, match="was made without state, and it is now declared or set with"):
        run(dropping)
    rebuild(dropping, platform.open, platform.layout, run="test")
    platform.land("5.json", invoice("3", item("g")), invoice("4", item("h")))
    assert run(dropping) == [("1", "a"), ("2", "d"), ("3", "e"), ("4", "h")], "the rebuild made the state, too"
    monkeypatch.setenv("INVOICE_PLATFORM_REPEATED_INVOICES", "merge")
    with pytest.raises(PlatformError, match="INVOICE_PLATFORM_REPEATED_INVOICES=merge: give keep or drop"):
        repeated_invoices()


@pytest.mark.slow
def test_lines_as_long_as_may_be_are_quarantined_in_bounded_memory_beside_good_ones(platform: Platform) -> None:
    """The session of the tests has the 2 GB that every one has; a line over the limit keeps its file out."""
    for name in ("1.json", "2.json"):
        drop(platform, name, one(name) + b"\n" + b'{"a": "' + b"x" * (MAX_LINE_BYTES - 100) + b'"}\n' + one(name + "b"))
    drop(platform, "over.json", one("o") + b"\n" + b"x" * (MAX_LINE_BYTES + 1))
    platform.run("ingest_invoices")
    reasons = platform.sql("SELECT DISTINCT reason, length(raw) FROM {quarantined_invoices}")
    assert reasons == [
        (f"longer than a record may be: {MAX_LINE_BYTES - 91} bytes, the limit is {MAX_RECORD_BYTES}", 65_536)
    ]
    assert (platform.count("quarantined_invoices"), platform.count("invoice_line_items")) == (2, 4)
    assert [p.name for p in platform.layout.landing("invoices").iterdir()] == ["over.json"]
