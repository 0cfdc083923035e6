"""Retail invoices as real tills send them, made up from a seed.

Grain: one line is one invoice with its line items, a JSON document in UTF-8 with the keys of the landed record.
The oddities of real invoices are in it on purpose, and none of them makes a record bad: float noise in the taxes,
totals that do not add up, numbers sent twice, no newline after the last line. Records that *are* bad come only on
request (`faults`), and every one of them belongs in quarantine.

The same seed and arguments give the same bytes, on every Python: the only source of chance is `Random.random()`, the
one method whose sequence Python promises to keep. Stores, customers and items are the same for all seeds, so that
customers come back whichever seeds are mixed. No person, card or phone number is real.
"""

from __future__ import annotations

import json
import os
import secrets
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from invoice_platform.errors import PlatformError

# Friday 1 March 2024, 17:30 in India. Late in the day, so that even a few hundred invoices span two days.
DEFAULT_START_MS = 1_709_294_400_000

CUSTOMER_COUNT = 2_000
# Prices are round numbers and the taxes are computed in binary floats, as tills do: about a third of them show noise.
CGST_RATE = SGST_RATE = 0.025
CESS_RATE = 0.00125

WRONG_TOTAL_SHARE = 0.04
SENT_TWICE_SHARE = 0.005
# A repeat follows its first sending by up to this many lines.
SENT_TWICE_WITHIN_LINES = 60

MAX_GAP_MS = 180_000
OPENS_MS = 9 * 3_600_000
CLOSES_MS = 22 * 3_600_000
DAY_MS = 24 * 3_600_000
# India keeps one time zone, five and a half hours ahead of UTC, all year.
INDIA_OFFSET_MS = 19_800_000

# Invoice numbers are 8 digits without a leading zero. Each seed has its own block of the 90 million, so that up to 90
# successive seeds never share a number. The step makes neighbours look unrelated, and has no factor in common with the
# 90 million, so that every number comes up once before any comes again.
_FIRST_NUMBER = 10_000_000
_NUMBERS = 90_000_000
_NUMBERS_PER_SEED = 1_000_000
_NUMBER_STEP = 48_271_393
_NUMBER_OFFSET = 31_415_927

# 1 to 6 line items, 2.6 on average.
_ITEM_COUNTS = (1, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4, 4, 5, 6)
_ITEM_QUANTITIES = (1, 1, 1, 1, 2, 2, 3, 4)

# City -> state, first three digits of its PIN codes.
_CITIES = {
    "Ahmedabad": ("Gujarat", "380"),
    "Bengaluru": ("Karnataka", "560"),
    "Bhopal": ("Madhya Pradesh", "462"),
    "Bhubaneswar": ("Odisha", "751"),
    "Chandigarh": ("Chandigarh", "160"),
    "Chennai": ("Tamil Nadu", "600"),
    "Coimbatore": ("Tamil Nadu", "641"),
    "Dehradun": ("Uttarakhand", "248"),
    "Guwahati": ("Assam", "781"),
    "Hyderabad": ("Telangana", "500"),
    "Indore": ("Madhya Pradesh", "452"),
    "Jaipur": ("Rajasthan", "302"),
    "Kochi": ("Kerala", "682"),
    "Kolkata": ("West Bengal", "700"),
    "Kota": ("Rajasthan", "324"),
    "Lucknow": ("Uttar Pradesh", "226"),
    "Ludhiana": ("Punjab", "141"),
    "Mumbai": ("Maharashtra", "400"),
    "Mysuru": ("Karnataka", "570"),
    "Nagpur": ("Maharashtra", "440"),
    "New Delhi": ("Delhi", "110"),
    "Panaji": ("Goa", "403"),
    "Patna": ("Bihar", "800"),
    "Pune": ("Maharashtra", "411"),
    "Raipur": ("Chhattisgarh", "492"),
    "Ranchi": ("Jharkhand", "834"),
    "Surat": ("Gujarat", "395"),
    "Thiruvananthapuram": ("Kerala", "695"),
    "Varanasi": ("Uttar Pradesh", "221"),
    "Visakhapatnam": ("Andhra Pradesh", "530"),
}

_STREETS = (
    "Station Road",
    "Lake View Road",
    "Temple Street",
    "Garden Lane",
    "Old Mill Road",
    "Market Street",
    "College Road",
    "Hill Top Lane",
    "River Bank Road",
    "Orchard Avenue",
    "Clock Tower Street",
    "Bus Depot Road",
)

# Description, price in paise (hundredths of a rupee). Commas, a quote and an accent are in it because real ones have
# them, and because they are what CSV, JSON and encodings trip over.
_ITEMS = (
    ("Steel water bottle 1 l", 64900),
    ("Cotton bath towel", 44900),
    ("Tea towels, set of 3", 29900),
    ("Ceramic mug", 19900),
    ("Glass tumblers, set of 6", 54900),
    ("Non-stick frying pan 24 cm", 129900),
    ("Pressure cooker 5 l", 219900),
    ("Wooden rolling pin", 17500),
    ("Bread knife", 32500),
    ("Chopping board, bamboo", 49900),
    ("Tiffin box, 3 tiers", 79900),
    ("Crêpe bandage 10 cm", 14250),
    ("Spice tin, round", 89900),
    ("Kitchen scale", 119900),
    ("Door mat, coir", 37500),
    ("Curtain rod 1.5 m", 69900),
    ("Cushion cover", 24950),
    ("Double bed sheet", 139900),
    ("Pillow, medium", 59900),
    ("Woollen blanket", 189900),
    ("Laundry basket", 84900),
    ("Clothes pegs, 24", 9900),
    ("Ironing board", 249900),
    ("Bucket 16 l", 34900),
    ("Floor mop", 54950),
    ("Soft broom", 15900),
    ("Dish soap 750 ml", 16500),
    ("Washing powder 2 kg", 42500),
    ("LED bulb 9 W", 12900),
    ("Extension lead, 4 sockets", 74900),
    ("Torch, rechargeable", 99900),
    ("AA batteries, pack of 10", 24900),
    ("Wall clock", 89950),
    ('Photo frame 8" x 10"', 45900),
    ("Storage box 20 l", 64950),
    ("Step stool", 109900),
    ("Screwdriver set", 57500),
    ("Claw hammer", 39900),
    ("Plant pot, terracotta", 22500),
    ("Watering can 5 l", 47500),
    ("Mosquito net, double", 94900),
    ("Umbrella", 52500),
)

# What every record must have, whatever else is optional.
_REQUIRED_KEYS = ("InvoiceNumber", "CreatedTime", "StoreID", "InvoiceLineItems")

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Fault(Enum):
    """What can be wrong with a line. Each kind is a reason to quarantine it."""

    TRUNCATED = "truncated document"
    TWO_DOCUMENTS = "two documents on a line"
    TRAILING_JUNK = "junk after the document"
    ARRAY = "array around the document"
    BARE_VALUE = "value that is no document"
    TIME_AS_WORD = "CreatedTime is a word"
    FRACTIONAL_QUANTITY = "ItemQty is 1.5"
    MISSING_FIELD = "required field missing"
    EMPTY_OBJECT = "empty document"
    NO_LINE_ITEMS = "empty list of line items"
    NUL_BYTE = "NUL byte in a string"
    BAD_UTF8 = "byte that is not UTF-8 in a string"
    KEY_IN_OTHER_CASE = "required key in another case"


_FAULTS = tuple(Fault)


class GeneratedLine(NamedTuple):
    """One line of the stream, and what is true of it."""

    data: bytes
    """The line, without a newline."""
    fault: Fault | None
    """What is wrong with it; None for a good one."""
    line_items: int
    """Line items that a reader must find in it: 0 for a faulty line."""


@dataclass(frozen=True)
class GeneratedFile:
    """What was written to one file, for comparison with what a run reports."""

    path: Path
    """The file."""
    records: int
    """Lines in it: `good + faulty`. A number sent twice counts twice."""
    good: int
    """Lines to accept."""
    faulty: int
    """Lines to quarantine."""
    line_items: int
    """Line items of the good lines."""


class _Customer(NamedTuple):
    card: str
    type: str
    address: dict[str, str]
    stores: tuple[str, ...]


class InvoiceGenerator:
    """An endless stream of invoices; each call continues where the last one ended.

    Parameters
    ----------
    seed : int
        0 or more. Decides everything but the stores, customers and items.
    start_ms : int
        Epoch milliseconds before which no invoice is made, for example `1709294400000`. Outside shop hours (9 to 22
        in India) the first invoice waits until the shops open.

    Raises
    ------
    PlatformError
        If a setting is negative.

    Notes
    -----
    Invoice numbers repeat only when the same line is sent twice, as long as a seed makes at most 90 million. Seeds less
    than 90 apart share no number, as long as each makes at most a million.

    Examples
    --------
    >>> first, second = InvoiceGenerator(seed=7).lines(2)
    >>> first[:28]
    b'{"InvoiceNumber":"12415927",'
    """

    def __init__(self, seed: int, start_ms: int = DEFAULT_START_MS) -> None:
        _at_least("seed", seed, 0)
        _at_least("start_ms", start_ms, 0)
        self._random = Random(seed).random
        # Faults have chances of their own, so that asking for them leaves every other line as it was.
        self._fault_random = Random(f"{seed} faults").random
        self._customers = _customers()
        self._now_ms = start_ms
        self._next_index = seed * _NUMBERS_PER_SEED
        self._lines_made = 0
        self._faults_made = 0
        self._repeats: deque[tuple[int, GeneratedLine]] = deque()
        self._previous = b""

    def lines(self, count: int, faults: float = 0.0) -> Iterator[bytes]:
        """Return the next `count` lines, without newlines. See `records` for the parameters."""
        return (line.data for line in self.records(count, faults))

    def records(self, count: int, faults: float = 0.0) -> Iterator[GeneratedLine]:
        """Return the next `count` lines with what is true of each.

        Parameters
        ----------
        count : int
            0 or more. Faulty lines and repeats count too.
        faults : float
            The share of faulty lines, from 0 to 1. Each line is faulty with this chance. A faulty line stands *in
            place of* a good one; all other lines are the same as without faults. The kinds take turns, in the order
            of `Fault`.

        Raises
        ------
        PlatformError
            If a parameter is out of bounds; at the call, not at the first line.
        """
        _at_least("count", count, 0)
        _check_share("faults", faults)
        return self._records(count, faults)

    def _records(self, count: int, faults: float) -> Iterator[GeneratedLine]:
        for _ in range(count):
            line = self._next_good_line()
            if faults and self._fault_random() < faults:
                fault = _FAULTS[self._faults_made % len(_FAULTS)]
                self._faults_made += 1
                broken = _broken(line.data, fault, self._previous or line.data, self._fault_random)
                self._previous = line.data
                yield GeneratedLine(broken, fault, 0)
            else:
                self._previous = line.data
                yield line

    def _next_good_line(self) -> GeneratedLine:
        self._lines_made += 1
        if self._repeats and self._repeats[0][0] <= self._lines_made:
            return self._repeats.popleft()[1]
        line = self._invoice()
        if self._random() < SENT_TWICE_SHARE:
            due = self._lines_made + 1 + int(self._random() * SENT_TWICE_WITHIN_LINES)
            self._repeats.append((due, line))
        return line

    def _invoice(self) -> GeneratedLine:
        random = self._random
        # Squared, so that some customers are regulars and most are not.
        customer = self._customers[int(random() ** 2 * CUSTOMER_COUNT)]
        store = customer.stores[int(random() * len(customer.stores))]
        items, total_paise = self._line_items()
        if random() < WRONG_TOTAL_SHARE:
            # A discount that the lines do not show.
            total_paise -= max(1, int(total_paise * (0.01 + 0.09 * random())))
        total = total_paise / 100
        invoice: dict[str, Any] = {
            "InvoiceNumber": str(_FIRST_NUMBER + (self._next_index * _NUMBER_STEP + _NUMBER_OFFSET) % _NUMBERS),
            "CreatedTime": self._tick(),
            "StoreID": store,
            # A store has 4 tills and 9 cashiers, whose numbers follow from the store's.
            "PosID": f"POS{100 + (int(store[3:]) * 7 + int(random() * 4)) % 900}",
            "CashierID": f"OAS{100 + (int(store[3:]) * 11 + int(random() * 9)) % 900}",
            "CustomerType": customer.type,
            "CustomerCardNo": customer.card,
            "TotalAmount": total,
            "NumberOfItems": len(items),
            "PaymentMethod": "CARD" if random() < 0.6 else "CASH",
            "TaxableAmount": total,
            "CGST": total * CGST_RATE,
            "SGST": total * SGST_RATE,
            "CESS": total * CESS_RATE,
        }
        if random() < 0.5:
            invoice["DeliveryType"] = "HOME-DELIVERY"
            invoice["DeliveryAddress"] = customer.address
        else:
            invoice["DeliveryType"] = "TAKEAWAY"
        invoice["InvoiceLineItems"] = items
        self._next_index += 1
        return GeneratedLine(_encode(invoice).encode(), None, len(items))

    def _line_items(self) -> tuple[list[dict[str, Any]], int]:
        random = self._random
        wanted = _ITEM_COUNTS[int(random() * len(_ITEM_COUNTS))]
        # A dict keeps the order in which items were scanned; a till puts an item on one line only.
        scanned: dict[int, int] = {}
        total_paise = 0
        items: list[dict[str, Any]] = []
        while len(scanned) < wanted:
            number = int(random() * len(_ITEMS))
            if number in scanned:
                continue
            quantity = scanned[number] = _ITEM_QUANTITIES[int(random() * len(_ITEM_QUANTITIES))]
            description, price_paise = _ITEMS[number]
            total_paise += price_paise * quantity
            items.append(
                {
                    "ItemCode": str(401 + number * 7),
                    "ItemDescription": description,
                    "ItemPrice": price_paise / 100,
                    "ItemQty": quantity,
                    "TotalValue": price_paise * quantity / 100,
                }
            )
        return items, total_paise

    def _tick(self) -> int:
        """Move the clock on to the next invoice, and to the next opening when the shops are closed."""
        self._now_ms += 1 + int(self._random() * MAX_GAP_MS)
        since_midnight = (self._now_ms + INDIA_OFFSET_MS) % DAY_MS
        if since_midnight < OPENS_MS:
            self._now_ms += OPENS_MS - since_midnight
        elif since_midnight >= CLOSES_MS:
            self._now_ms += DAY_MS + OPENS_MS - since_midnight
        return self._now_ms


def generate_files(
    folder: str | os.PathLike[str],
    *,
    files: int,
    invoices_per_file: int,
    seed: int,
    faults: float = 0.0,
    start_ms: int = DEFAULT_START_MS,
) -> Iterator[GeneratedFile]:
    """Write files of invoices one by one, and say of each what is in it.

    Parameters
    ----------
    folder : path
        A local folder, made if missing. The files are `invoices-seed<seed>-<nnnn>.json`, numbered from 0000.
    files, invoices_per_file : int
        1 or more each. Faulty lines and repeats count as invoices.
    seed : int
        0 or more.
    faults : float
        The share of faulty lines, from 0 to 1; each stands in place of a good one.
    start_ms : int
        Epoch milliseconds before which no invoice is made.

    Returns
    -------
    Iterator[GeneratedFile]
        One for each file, after it is in place. A file is written when the iterator is advanced.

    Raises
    ------
    PlatformError
        If a parameter is out of bounds or a file is already there, before anything is written; or if a file cannot be
        written.

    Notes
    -----
    A file appears whole or not at all, and never in place of another: it is written under a name that begins with a
    dot, and then linked to its own name. After a kill, a hidden file may be left over, which no reader takes.
    """
    _at_least("files", files, 1)
    _at_least("invoices_per_file", invoices_per_file, 1)
    _check_share("faults", faults)
    generator = InvoiceGenerator(seed, start_ms)
    paths = [Path(folder) / f"invoices-seed{seed}-{number:04d}.json" for number in range(files)]
    for path in paths:
        if os.path.lexists(path):
            raise _already_there(path)
    return (_write_file(path, generator.records(invoices_per_file, faults)) for path in paths)


def write_files(
    folder: str | os.PathLike[str],
    *,
    files: int,
    invoices_per_file: int,
    seed: int,
    faults: float = 0.0,
    start_ms: int = DEFAULT_START_MS,
    on_file: Callable[[GeneratedFile], None] | None = None,
) -> list[Path]:
    """Write all files at once; otherwise as `generate_files`.

    Parameters
    ----------
    on_file : callable, optional
        Called with what is in a file, as soon as it is in place.

    Returns
    -------
    list[Path]
        The files, in the order written.
    """
    paths: list[Path] = []
    for written in generate_files(
        folder, files=files, invoices_per_file=invoices_per_file, seed=seed, faults=faults, start_ms=start_ms
    ):
        paths.append(written.path)
        if on_file is not None:
            on_file(written)
    return paths


def _write_file(path: Path, lines: Iterator[GeneratedLine]) -> GeneratedFile:
    records = faulty = line_items = 0
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with hidden.open("xb") as out:
                for line in lines:
                    if records:
                        out.write(b"\n")
                    out.write(line.data)
                    records += 1
                    faulty += line.fault is not None
                    line_items += line.line_items
            _link(hidden, path)
        finally:
            hidden.unlink(missing_ok=True)
    except OSError as error:
        raise PlatformError(f"cannot write {path}: {error.strerror or error}") from error
    return GeneratedFile(path, records, records - faulty, faulty, line_items)


def _link(hidden: Path, path: Path) -> None:
    # A rename would replace a file that came in the meantime; a link refuses to.
    try:
        os.link(hidden, path)
    except FileExistsError as error:
        raise _already_there(path) from error


def _already_there(path: Path) -> PlatformError:
    return PlatformError(f"{path} is already there and is not replaced: choose another folder or seed, or move it away")


def _broken(line: bytes, fault: Fault, previous: bytes, random: Callable[[], float]) -> bytes:
    """Return a line that has this fault, made from a good one."""
    if fault is Fault.TRUNCATED:
        return line[: 1 + int(random() * (len(line) - 1))]
    if fault is Fault.TWO_DOCUMENTS:
        # What an append after a missing last newline leaves behind.
        return previous + line
    if fault is Fault.TRAILING_JUNK:
        return line + _pick((b" junk", b",", b"}", b"]"), random)
    if fault is Fault.ARRAY:
        return b"[" + line + b"]"
    if fault is Fault.BARE_VALUE:
        return _pick((b"42", b'"invoice"', b"true", b"null"), random)
    if fault is Fault.EMPTY_OBJECT:
        return b"{}"
    if fault is Fault.NUL_BYTE:
        return line.replace(b'"OAS', b'"OAS\0', 1)
    if fault is Fault.BAD_UTF8:
        return line.replace(b'"OAS', b'"OAS\xff', 1)
    if fault is Fault.KEY_IN_OTHER_CASE:
        key = _pick(_REQUIRED_KEYS, random).encode()
        return line.replace(b'"' + key + b'"', b'"' + key.lower() + b'"', 1)
    invoice = json.loads(line)
    if fault is Fault.TIME_AS_WORD:
        invoice["CreatedTime"] = "yesterday"
    elif fault is Fault.FRACTIONAL_QUANTITY:
        invoice["InvoiceLineItems"][0]["ItemQty"] = 1.5
    elif fault is Fault.MISSING_FIELD:
        del invoice[_pick(_REQUIRED_KEYS, random)]
    else:
        assert fault is Fault.NO_LINE_ITEMS, fault
        invoice["InvoiceLineItems"] = []
    return _encode(invoice).encode()


@lru_cache(maxsize=1)
def _customers() -> tuple[_Customer, ...]:
    """Return the customers, each with an address and the stores of the city."""
    random = Random(20240301).random
    cities = tuple(_CITIES)
    # One to three stores a city. The numbers are spread out, and differ because 1237 and 9000 have no common factor.
    stores: dict[str, tuple[str, ...]] = {}
    opened = 0
    for city in cities:
        count = 1 + int(random() * 3)
        stores[city] = tuple(f"STR{1000 + (opened + n) * 1237 % 9000}" for n in range(count))
        opened += count
    customers: list[_Customer] = []
    for number in range(CUSTOMER_COUNT):
        city = _pick(cities, random)
        state, pin_prefix = _CITIES[city]
        address = {
            "AddressLine": f"{1 + int(random() * 250)}, {_pick(_STREETS, random)}",
            "City": city,
            # No subscriber's number begins with 0; a reader that takes it for a number shows at once.
            "ContactNumber": f"0{int(random() * 1_000_000_000):09d}",
            "PinCode": f"{pin_prefix}{1 + int(random() * 120):03d}",
            "State": state,
        }
        card = 1_000_000_000 + (number * 7_654_321_987 + 123_456_789) % 9_000_000_000
        customer_type = "PRIME" if random() < 0.4 else "NONPRIME"
        customers.append(_Customer(str(card), customer_type, address, stores[city]))
    return tuple(customers)


def _pick(choices: tuple[Any, ...], random: Callable[[], float]) -> Any:
    return choices[int(random() * len(choices))]


def _at_least(setting: str, value: int, least: int) -> None:
    if value < least:
        raise PlatformError(f"{setting} is {value}: give {least} or more")


def _check_share(setting: str, value: float) -> None:
    # Written so that NaN fails as well.
    if not 0 <= value <= 1:
        raise PlatformError(f"{setting} is {value}: give a share from 0 to 1, such as 0.05")
