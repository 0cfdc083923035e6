"""The parser against a second one in plain Python, over random files of good and bad lines."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from invoice_platform.assets.bronze import INVOICES_STREAM
from invoice_platform.generate import InvoiceGenerator
from invoice_platform.schemas import LANDED_INVOICE
from invoice_platform.streaming import json_lines
from invoice_platform.streaming.landing import LandingFolder
from invoice_platform_tests.conftest import Platform, invoice, item
from invoice_platform_tests.reference import Number, Read, read

EXAMPLES = 2_000
SEED = 20_260_301

ODD_NUMBERS = (
    "0", "-0", "1", "-1", "12.5", "12.50000", "12.345", "0.001", "1.0", "1e2", "1.25E2", "1.2345678E7", "1e-3", "1E400", "-1e400",
    "1e100000000", "2147483647", "2147483648", "-2147483649", "9223372036854775807", "9223372036854775808", "9999999999999999.99",
    "10000000000000000", "99999999999999.99994", "99999999999999.99995", "191.47500000000002", "0.00005", "0.000049999",
    "1.00000000000000000000000000000000000000000001", "12345678901234567890123456789012345678901234567890", "01", "1.", ".5", "+1",
    "NaN", "Infinity", "-Infinity", "0x10", "1_000", "--1",
)  # fmt: skip
ODD_VALUES = (
    'null', 'true', '""', '"12"', '"12.5"', '"a\\"b"', '"\\u00e9\\n"', '"\\ud83d\\ude00"', '"\\ud800"', '"\\u0000"', '"tab\there"',
    '{}', '[]', '[null]', '{"a": 1}', '[{}]', '[1, "x"]', "'x'", "undefined", "", '"é😀"', '"a:b,{c}"', '"NaN"',
)  # fmt: skip
FIELDS = tuple(c.name for c in LANDED_INVOICE)

Document = list[tuple[str, Any]]
numbers = st.one_of(
    st.sampled_from(ODD_NUMBERS),
    st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**17), max_value=10**17).map(str),
    st.integers(-(10**20), 10**20).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
)
values = st.one_of(numbers, st.sampled_from(ODD_VALUES), st.text(max_size=8).map(json.dumps))
keys = st.one_of(
    st.sampled_from(FIELDS), st.sampled_from(FIELDS).map(str.lower), st.text("abcXYZ_ é.$'", min_size=1, max_size=4)
)


def _pairs(document: dict[str, Any]) -> Document:
    return [(key, json.dumps(value)) for key, value in document.items()]


def _write(document: Iterable[tuple[str, str]], colon: str = ": ", comma: str = ", ") -> str:
    return "{" + comma.join(json.dumps(key, ensure_ascii=False) + colon + value for key, value in document) + "}"


@st.composite
def objects(draw: st.DrawFn, base: dict[str, Any]) -> str:
    """An object as declared, with none, one or a few things changed."""
    pairs = _pairs(base)
    for _ in range(draw(st.sampled_from((0,) * 7 + (1, 1, 2)))):
        change = draw(st.sampled_from(("value", "value", "drop", "case", "repeat", "add", "shuffle")))
        place = draw(st.integers(0, len(pairs) - 1)) if pairs else 0
        if change == "shuffle":
            pairs = draw(st.permutations(pairs))
        elif change == "add":
            pairs.insert(place, (draw(keys), draw(values)))
        elif not pairs:
            continue
        elif change == "value":
            pairs[place] = (pairs[place][0], draw(values))
        elif change == "drop":
            del pairs[place]
        elif change == "case":
            pairs[place] = (pairs[place][0].swapcase(), pairs[place][1])
        elif change == "repeat":
            pairs.append(pairs[place])
    return _write(pairs, draw(st.sampled_from((": ", ":", " : ", ":\t"))), draw(st.sampled_from((", ", ",", " ,\r"))))


@st.composite
def records(draw: st.DrawFn) -> str:
    """One document: an invoice, its address and its line items each with changes of their own."""
    document = invoice("7", NumberOfItems=draw(st.integers(0, 2)), TotalAmount=draw(st.sampled_from((100.0, 1.5))))
    items = draw(st.lists(objects(item()), min_size=draw(st.sampled_from((1, 1, 1, 0))), max_size=2))
    inner = {"InvoiceLineItems": f"[{', '.join(items)}]"}
    if draw(st.booleans()):
        address = {"AddressLine": "1, Road", "City": "Pune", "ContactNumber": "1", "PinCode": "411", "State": "M"}
        inner["DeliveryAddress"] = draw(objects(address))
    marked = draw(objects(document | dict.fromkeys(inner, "\x01")))
    for name, text in inner.items():
        marked = marked.replace(f'"{name}": "\\u0001"', f'"{name}": {text}').replace(
            f'"{name}":"\\u0001"', f'"{name}":{text}'
        )
    return marked


generated = st.integers(0, 10**6).map(lambda n: next(iter(InvoiceGenerator(seed=n).lines(1))))


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """A line: a record, whole or broken, or anything else."""
    kind = draw(st.sampled_from(("record",) * 12 + ("generated", "broken", "broken", "bytes", "blank", "text")))
    if kind == "generated":
        return draw(generated)
    if kind == "bytes":
        return draw(st.binary(max_size=12)).replace(b"\n", b"")
    if kind == "blank":
        return draw(st.sampled_from((b"", b" ", b"\t\r", b"\x0b\x0c", b"\x00", b"\xef\xbb\xbf")))
    if kind == "text":
        return draw(values).encode(errors="surrogatepass").replace(b"\n", b"")
    line = draw(records()).encode(errors="surrogatepass")
    if kind == "broken":
        cut = draw(st.integers(0, len(line)))
        how = draw(st.sampled_from(("cut", "junk", "two", "comma", "array", "nul", "bytes", "bom", "cr")))
        return {
            "cut": line[:cut],
            "junk": line + b" junk",
            "two": line + line,
            "comma": line + b"," + line,
            "array": b"[" + line + b"]",
            "nul": line[:cut] + b"\x00" + line[cut:],
            "bytes": line[:cut] + b"\xff\xfe" + line[cut:],
            "bom": b"\xef\xbb\xbf" + line,
            "cr": line + b"\r",
        }[how]
    return line


files = st.builds(
    lambda many, end, mark: mark + b"\n".join(many) + end,
    st.lists(lines(), max_size=5),
    st.sampled_from((b"", b"\n", b"\r\n")),
    st.sampled_from((b"", b"", b"", b"\xef\xbb\xbf")),
)


def expected(file: bytes, ingested_ms: int) -> list[Read]:
    """What each record of a file has to become, in order; a byte order mark before the file is no part of it."""
    read_lines = (read(line, ingested_ms) for line in file.removeprefix(b"\xef\xbb\xbf").split(b"\n"))
    return [one for one in read_lines if one is not None]


def differences(platform: Platform, many: list[bytes]) -> dict[bytes, str]:
    """Land files, read them with the platform, and say for each that differs from the reference how."""
    layout = platform.layout
    folder = LandingFolder(layout, "invoices", "invoices", segment_files=None)
    shutil.rmtree(layout.accepted("invoices"), ignore_errors=True)
    contents = dict(enumerate(many))
    for number, content in contents.items():
        if content:  # an empty file stays in landing
            (layout.landing("invoices") / f"{number}.json").write_bytes(content)
    admitted = {int(file.landed_name.partition(".")[0]): file for file in folder.admit().admitted}
    (layout.landing("invoices") / ".keep").touch()
    found: dict[int, list[Any]] = {number: [] for number in contents}
    if admitted:
        source = INVOICES_STREAM.source.read_batch(platform.spark, layout, "invoices")
        for row in INVOICES_STREAM.transform(source).collect():
            found[int(row["source_file"].rpartition("-")[2].partition(".")[0])].append(row)
    differ: dict[bytes, str] = {}
    for number, content in contents.items():
        file = admitted.get(number)
        wanted = expected(content, file.accepted_ms if file else 0)
        counted = file.records if file else 0
        if counted != len(wanted):
            differ[content] = f"admission counted {counted} records, there are {len(wanted)}"
        elif said := _differs(found[number], wanted):
            differ[content] = said
    return differ


def _differs(rows: list[Any], wanted: list[Read]) -> str | None:
    if len(rows) != len(wanted):
        return f"{len(rows)} rows for {len(wanted)} records"
    for place, (row, one) in enumerate(zip(rows, wanted, strict=True)):
        if (row["reason"] is None) != (one.record is not None):
            return f"record {place}: reason {row['reason']!r}, should be wrong: {one.faults}"
        if one.record is None:
            unnamed = [fault for fault in one.faults[:5] if fault not in row["reason"]]
            if unnamed == ["JSON"] and re.search("a key is repeated|half of a surrogate pair", row["reason"]):
                unnamed = []  # in the first of two documents, say: both are so
            if unnamed or row["raw"] is None or row["InvoiceNumber"] is not None:
                return f"record {place}: {row['reason']!r} does not name {unnamed}"
            continue
        values = row.asDict(recursive=True)
        if {name: values[name] for name in FIELDS} != one.record:
            return f"record {place}: {values} is not {one.record}"
        rescued = json.loads(row["rescued_data"], parse_float=Decimal) if row["rescued_data"] else None
        if _plain(rescued) != _plain(one.rescued):
            return f"record {place}: rescued {rescued!r}, should be {one.rescued!r}"
        if (row["warnings"] or []) != one.warnings:
            return f"record {place}: warnings {row['warnings']}, should be {one.warnings}"
    return None


def _plain(value: Any) -> Any:
    """A document with its numbers as floats, of which 15 digits count: how they are written is not what is compared.

    Nor is the sign of a zero, which a whole number does not keep.
    """
    if isinstance(value, Number):
        value = float(value.text)
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        return f"{float(value) + 0.0:.14e}".replace("inf", "Infinity")  # as text: JSON has no such number
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    ("by_java", "many"), [(True, EXAMPLES), (False, EXAMPLES // 4)], ids=["plain lines by Java", "all by SQL"]
)
def test_random_files_are_read_as_plain_python_reads_them(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, by_java: bool, many: int
) -> None:
    """All examples are read by Spark in one go; a second pass over the same examples shrinks what differs."""
    if not by_java:
        monkeypatch.setattr(json_lines, "has_own_classes", lambda _: False)
    examples: list[bytes] = []
    how = settings(
        max_examples=many, database=None, deadline=None, phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example], print_blob=False,
    )  # fmt: skip

    @seed(SEED)
    @how
    @given(files)
    def collect(file: bytes) -> None:
        examples.append(file)

    collect()
    assert len(examples) >= many
    differ = differences(platform, list(dict.fromkeys(examples)))
    known = set(examples)
    print(f"{len(examples)} files of seed {SEED}, {len(known)} of them different; {len(differ)} are read otherwise")
    for said in list(differ.values())[:10]:
        print(said)
    records_in = sum(len(expected(file, 0)) for file in known)
    good = sum(one.record is not None for file in known for one in expected(file, 2**60))
    assert records_in / 5 < good < records_in * 4 / 5, f"{good} good records of {records_in}: one kind drowns the other"

    @seed(SEED)
    @how
    @given(files)
    def check(file: bytes) -> None:
        said = differ.get(file) if file in known else differences(platform, [file]).get(file)
        assert said is None, said

    check()


def test_the_reference_knows_good_from_bad_by_itself() -> None:
    """So that both parsers cannot agree on nonsense."""
    now = int(datetime(2026, 1, 1, tzinfo=timezone.utc).timestamp() * 1000)
    good = read(json.dumps(invoice("1")).encode(), now)
    assert good is not None
    assert good.record is not None
    assert good.record["TotalAmount"] == Decimal("100.00")
    for changed, fault in (
        ({"TotalAmount": "100.0"}, "TotalAmount"),
        ({"StoreID": 5}, "StoreID"),
        ({"CreatedTime": 1.0}, "CreatedTime"),
        ({"CreatedTime": 1}, "created_time_is_plausible"),
        ({"InvoiceLineItems": [item() | {"ItemPrice": 1.005}]}, "InvoiceLineItems[0].ItemPrice"),
        ({"cgst": 1}, "cgst"),
    ):
        bad = read(json.dumps(invoice("1") | changed).encode(), now)
        assert bad is not None
        assert bad.faults == [fault]
    assert read(b" \r", now) is None
