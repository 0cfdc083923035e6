"""The generator: what its invoices look like, that a seed always gives the same bytes, that no file is replaced."""

from __future__ import annotations

import doctest
import json
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from invoice_platform import generate
from invoice_platform.errors import PlatformError
from invoice_platform.generate import (
    DEFAULT_START_MS,
    Fault,
    GeneratedFile,
    InvoiceGenerator,
    generate_files,
    write_files,
)
from invoice_platform.schemas import DELIVERY_ADDRESS, LANDED_INVOICE, LINE_ITEM

SAMPLES = Path(__file__).parents[1] / "data" / "samples" / "invoices"

STATE_OF_CITY = {
    city: state
    for state, cities in {
        "Andhra Pradesh": ("Visakhapatnam",),
        "Assam": ("Guwahati",),
        "Bihar": ("Patna",),
        "Chandigarh": ("Chandigarh",),
        "Chhattisgarh": ("Raipur",),
        "Delhi": ("New Delhi",),
        "Goa": ("Panaji",),
        "Gujarat": ("Ahmedabad", "Surat"),
        "Jharkhand": ("Ranchi",),
        "Karnataka": ("Bengaluru", "Mysuru"),
        "Kerala": ("Kochi", "Thiruvananthapuram"),
        "Madhya Pradesh": ("Bhopal", "Indore"),
        "Maharashtra": ("Mumbai", "Nagpur", "Pune"),
        "Odisha": ("Bhubaneswar",),
        "Punjab": ("Ludhiana",),
        "Rajasthan": ("Jaipur", "Kota"),
        "Tamil Nadu": ("Chennai", "Coimbatore"),
        "Telangana": ("Hyderabad",),
        "Uttar Pradesh": ("Lucknow", "Varanasi"),
        "Uttarakhand": ("Dehradun",),
        "West Bengal": ("Kolkata",),
    }.items()
    for city in cities
}


@pytest.fixture(scope="module")
def lines() -> list[bytes]:
    return list(InvoiceGenerator(seed=1).lines(5_000))


@pytest.fixture(scope="module")
def invoices(lines: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def test_a_seed_always_gives_the_same_lines_and_another_seed_gives_others(lines: list[bytes]) -> None:
    assert list(InvoiceGenerator(seed=1).lines(5_000)) == lines
    assert not set(InvoiceGenerator(seed=2).lines(5_000)) & set(lines)


def test_a_generator_continues_where_it_stopped(lines: list[bytes]) -> None:
    generator = InvoiceGenerator(seed=1)
    assert [*generator.lines(1_000), *generator.lines(0), *generator.lines(4_000)] == lines


def test_each_line_is_one_document_with_the_keys_of_the_landed_record_in_order(
    lines: list[bytes], invoices: list[dict[str, Any]]
) -> None:
    assert not any(b"\n" in line or b"\r" in line for line in lines)
    keys = [column.name for column in LANDED_INVOICE]
    for invoice in invoices:
        assert list(invoice) == [key for key in keys if key != "DeliveryAddress" or "DeliveryAddress" in invoice]
        for item in invoice["InvoiceLineItems"]:
            assert list(item) == [column.name for column in LINE_ITEM]


def test_values_have_the_form_of_real_ones(invoices: list[dict[str, Any]]) -> None:
    digits = {"InvoiceNumber": ("", 8), "StoreID": ("STR", 4), "PosID": ("POS", 3), "CashierID": ("OAS", 3)}
    digits["CustomerCardNo"] = ("", 10)
    for invoice in invoices:
        for key, (prefix, count) in digits.items():
            assert invoice[key].startswith(prefix)
            assert invoice[key][len(prefix) :].isdigit()
            assert len(invoice[key]) == len(prefix) + count
        assert invoice["NumberOfItems"] == len(invoice["InvoiceLineItems"])
        assert 1 <= invoice["NumberOfItems"] <= 6
        assert invoice["TotalAmount"] == round(invoice["TotalAmount"], 2) > 0
        for item in invoice["InvoiceLineItems"]:
            assert item["TotalValue"] == round(item["ItemPrice"] * item["ItemQty"], 2)
    assert {invoice["CustomerType"] for invoice in invoices} == {"PRIME", "NONPRIME"}
    assert {invoice["PaymentMethod"] for invoice in invoices} == {"CARD", "CASH"}


def test_only_a_home_delivery_has_an_address_and_its_city_lies_in_its_state(invoices: list[dict[str, Any]]) -> None:
    seen: set[str] = set()
    for invoice in invoices:
        assert ("DeliveryAddress" in invoice) == (invoice["DeliveryType"] == "HOME-DELIVERY")
        if address := invoice.get("DeliveryAddress"):
            assert list(address) == [column.name for column in DELIVERY_ADDRESS]
            assert address["State"] == STATE_OF_CITY[address["City"]]
            assert len(address["PinCode"]) == 6
            assert len(address["ContactNumber"]) == 10
            seen.add(address["City"])
    assert seen == set(STATE_OF_CITY)
    assert {invoice["DeliveryType"] for invoice in invoices} == {"HOME-DELIVERY", "TAKEAWAY"}


def test_time_only_moves_on_and_only_while_the_shops_are_open(
    lines: list[bytes], invoices: list[dict[str, Any]]
) -> None:
    first_sendings = dict(zip(lines, invoices, strict=True)).values()
    times = [invoice["CreatedTime"] for invoice in first_sendings]
    assert times == sorted(set(times))
    assert times[0] > DEFAULT_START_MS
    india = timezone(timedelta(hours=5, minutes=30))
    hours = {datetime.fromtimestamp(ms / 1000, india).hour for ms in times}
    assert hours == set(range(9, 22))


def test_invoices_start_after_the_given_instant() -> None:
    start_ms = 1_735_700_000_000
    assert json.loads(next(InvoiceGenerator(seed=1, start_ms=start_ms).lines(1)))["CreatedTime"] > start_ms


def test_about_a_third_show_float_noise(invoices: list[dict[str, Any]]) -> None:
    noisy = sum(len(repr(invoice["CGST"])) > 12 for invoice in invoices)
    assert 0.2 < noisy / len(invoices) < 0.45


def test_about_four_in_a_hundred_totals_do_not_add_up(invoices: list[dict[str, Any]]) -> None:
    wrong = sum(
        round(sum(item["TotalValue"] for item in invoice["InvoiceLineItems"]), 2) != invoice["TotalAmount"]
        for invoice in invoices
    )
    assert 0.02 < wrong / len(invoices) < 0.06


def test_a_few_numbers_are_sent_twice_as_exactly_the_same_line(
    lines: list[bytes], invoices: list[dict[str, Any]]
) -> None:
    sendings = Counter(invoice["InvoiceNumber"] for invoice in invoices)
    twice = sum(count == 2 for count in sendings.values())
    assert 0.001 < twice / len(invoices) < 0.012
    assert max(sendings.values()) == 2
    assert len(set(lines)) == len(sendings)


def test_customers_come_back_with_the_same_card_type_and_address(invoices: list[dict[str, Any]]) -> None:
    types = {(invoice["CustomerCardNo"], invoice["CustomerType"]) for invoice in invoices}
    addresses = {
        (invoice["CustomerCardNo"], str(invoice["DeliveryAddress"]))
        for invoice in invoices
        if "DeliveryAddress" in invoice
    }
    cards = {card for card, _ in types}
    assert len(cards) == len(types) < len(invoices) / 2
    assert len(addresses) == len({card for card, _ in addresses})


def test_faults_replace_their_share_of_lines_and_leave_the_others_as_they_are(lines: list[bytes]) -> None:
    records = list(InvoiceGenerator(seed=1).records(5_000, faults=0.1))
    faulty = [record for record in records if record.fault]
    assert 0.07 < len(faulty) / len(records) < 0.13
    assert {record.fault for record in faulty} == set(Fault)
    assert all(record.line_items == 0 for record in faulty)
    for record, line in zip(records, lines, strict=True):
        assert (record.data == line) == (record.fault is None)
        if record.fault is None:
            assert record.line_items == len(json.loads(line)["InvoiceLineItems"])


def test_every_faulty_line_has_the_fault_that_it_is_said_to_have() -> None:
    required = {column.name for column in LANDED_INVOICE if column.required}
    for record in InvoiceGenerator(seed=3).records(2_000, faults=1.0):
        assert record.fault is not None
        assert b"\n" not in record.data
        try:
            value = json.loads(record.data)
        except ValueError:
            # A strict parser refuses it: no more to show.
            assert record.fault in {
                Fault.TRUNCATED,
                Fault.TWO_DOCUMENTS,
                Fault.TRAILING_JUNK,
                Fault.NUL_BYTE,
                Fault.BAD_UTF8,
            }
            continue
        if record.fault is Fault.ARRAY:
            assert isinstance(value, list)
        elif record.fault is Fault.BARE_VALUE:
            assert not isinstance(value, (dict, list))
        elif record.fault is Fault.TIME_AS_WORD:
            assert value["CreatedTime"] == "yesterday"
        elif record.fault is Fault.FRACTIONAL_QUANTITY:
            assert value["InvoiceLineItems"][0]["ItemQty"] == 1.5
        elif record.fault is Fault.NO_LINE_ITEMS:
            assert value["InvoiceLineItems"] == []
        else:
            assert record.fault in {Fault.EMPTY_OBJECT, Fault.MISSING_FIELD, Fault.KEY_IN_OTHER_CASE}
            assert required - value.keys()


def test_files_hold_what_they_are_said_to_hold_and_end_without_a_newline(tmp_path: Path) -> None:
    told: list[GeneratedFile] = []
    folder = tmp_path / "made" / "here"
    paths = write_files(folder, files=3, invoices_per_file=200, seed=5, faults=0.05, on_file=told.append)
    assert [path.name for path in paths] == [f"invoices-seed5-000{number}.json" for number in range(3)]
    assert [file.path for file in told] == paths
    assert sorted(folder.iterdir()) == paths, "a hidden file was left behind"
    records = InvoiceGenerator(seed=5).records(600, faults=0.05)
    for file in told:
        expected = [next(records) for _ in range(200)]
        assert file.path.read_bytes() == b"\n".join(record.data for record in expected)
        assert file.records == 200
        assert file.faulty == sum(record.fault is not None for record in expected) > 0
        assert file.good == 200 - file.faulty
        assert file.line_items == sum(record.line_items for record in expected)


def test_files_are_written_one_by_one_as_they_are_asked_for(tmp_path: Path) -> None:
    files = generate_files(tmp_path, files=3, invoices_per_file=1, seed=5)
    assert not list(tmp_path.iterdir())
    next(files)
    assert len(list(tmp_path.iterdir())) == 1


def test_nothing_is_written_when_one_of_the_files_is_already_there(tmp_path: Path) -> None:
    there = tmp_path / "invoices-seed5-0001.json"
    there.write_text("mine")
    with pytest.raises(PlatformError, match=r"invoices-seed5-0001\.json is already there"):
        write_files(tmp_path, files=3, invoices_per_file=10, seed=5)
    assert list(tmp_path.iterdir()) == [there]
    assert there.read_text() == "mine"


def test_a_file_that_comes_while_another_is_written_is_not_replaced(tmp_path: Path) -> None:
    files = generate_files(tmp_path, files=1, invoices_per_file=10, seed=5)
    there = tmp_path / "invoices-seed5-0000.json"
    there.write_text("mine")
    with pytest.raises(PlatformError, match="is already there and is not replaced"):
        next(files)
    assert list(tmp_path.iterdir()) == [there]
    assert there.read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PlatformError, match=r"cannot write .*file.invoices-seed5-0000\.json: "):
        write_files(tmp_path / "file", files=1, invoices_per_file=1, seed=5)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("files", 0),
        ("files", -1),
        ("invoices_per_file", -1),
        ("seed", -1),
        ("start_ms", -1),
        ("faults", -0.1),
        ("faults", 1.1),
        ("faults", float("nan")),
    ],
)
def test_a_setting_out_of_bounds_is_named_before_anything_is_written(
    tmp_path: Path, setting: str, value: float
) -> None:
    settings: dict[str, Any] = {"files": 1, "invoices_per_file": 1, "seed": 5, setting: value}
    with pytest.raises(PlatformError, match=f"^{setting} is {value}: give "):
        generate_files(tmp_path / "new", **settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("setting", "call"),
    [
        ("count", lambda: InvoiceGenerator(seed=1).lines(-1)),
        ("faults", lambda: InvoiceGenerator(seed=1).lines(1, faults=2)),
        ("faults", lambda: InvoiceGenerator(seed=1).records(1, faults=2)),
    ],
)
def test_lines_name_a_setting_out_of_bounds_at_the_call(setting: str, call: Callable[[], object]) -> None:
    with pytest.raises(PlatformError, match=f"^{setting} is "):
        call()


def test_the_samples_are_made_again_byte_for_byte(tmp_path: Path) -> None:
    made = write_files(tmp_path, files=2, invoices_per_file=100, seed=7)
    made += write_files(tmp_path, files=1, invoices_per_file=100, seed=8, faults=0.05)
    assert sorted(path.name for path in SAMPLES.iterdir()) == [path.name for path in made]
    for path in made:
        assert path.read_bytes() == (SAMPLES / path.name).read_bytes(), path.name


def test_the_example_in_the_documentation_is_true() -> None:
    result = doctest.testmod(generate)
    assert result.attempted > 0
    assert result.failed == 0
