"""The landed record read by plain Python: what a line has to become, said a second time and without Spark.

Kept apart from the package on purpose: nothing here calls its parser.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from invoice_platform.schemas import LANDED_INVOICE
from invoice_platform.streaming.tables import Column

MONEY_LIMIT = Decimal(10) ** 16
TAX_LIMIT = Decimal(10) ** 14
LONG = re.compile(r"[0-9][0-9.]{37}")


@dataclass(frozen=True)
class Number:
    """A number as it was written."""

    text: str

    @property
    def is_whole(self) -> bool:
        return re.fullmatch(r"-?[0-9]+", self.text) is not None

    @property
    def as_variant(self) -> Decimal | float:
        """A double when written with an exponent or too long for a decimal of 38 digits, else as it is."""
        value = Decimal(self.text)
        digits, exponent = value.as_tuple().digits, value.as_tuple().exponent
        assert isinstance(exponent, int)
        if "e" in self.text.lower() or -exponent > 38 or max(len(digits), -exponent) > 38:
            return float(self.text)
        return value


class RepeatedKeyError(ValueError):
    pass


@dataclass
class Read:
    """What became of a line."""

    record: dict[str, Any] | None = None
    faults: list[str] = field(default_factory=list)
    """Paths of the fields that are wrong, or one word for the whole line."""
    rescued: Any = None
    warnings: list[str] = field(default_factory=list)


def read(line: bytes, ingested_ms: int) -> Read | None:
    """What a line becomes; None for a blank one, which is no record."""
    if not line.strip(b" \t\n\x0b\x0c\r"):
        return None
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return Read(faults=["UTF-8"])
    try:
        json.loads(text, parse_constant=_refuse)  # a text that is no JSON at all is that first
        document = json.loads(
            text, parse_float=Number, parse_int=Number, parse_constant=_refuse, object_pairs_hook=_once
        )
        _no_half_characters(document)
    except RepeatedKeyError:
        return Read(faults=["repeated"])
    except UnicodeEncodeError:
        return Read(faults=["surrogate"])
    except ValueError:
        return Read(faults=["JSON"])
    if not isinstance(document, dict):
        return Read(faults=["object"])
    faults = _faults(document, LANDED_INVOICE, "", text)
    if faults:
        return Read(faults=faults)
    record = _record(document, LANDED_INVOICE)
    items = record["InvoiceLineItems"]
    if not 946_684_800_000 <= record["CreatedTime"] <= ingested_ms + 86_400_000:
        return Read(faults=["created_time_is_plausible"])
    if not items:
        return Read(faults=["has_line_items"])
    if any(item["ItemQty"] < 0 for item in items):
        return Read(faults=["quantities_are_not_negative"])
    warnings = []
    if record["NumberOfItems"] != len(items):
        warnings.append("number_of_items_agrees")
    if record["TotalAmount"] != sum(item["TotalValue"] for item in items):
        warnings.append("line_totals_add_up")
    return Read(record, rescued=_unknown(document, LANDED_INVOICE) or None, warnings=warnings)


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise RepeatedKeyError
    return document


def _no_half_characters(value: Any) -> None:
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, dict):
        for key, inner in value.items():
            key.encode()
            _no_half_characters(inner)
    elif isinstance(value, list):
        for inner in value:
            _no_half_characters(inner)


def _faults(document: dict[str, Any], columns: Sequence[Column], path: str, line: str) -> list[str]:
    own, nested = [], []
    for column in columns:
        value = document.get(column.name)
        if value is None:
            own += [path + column.name] if column.required else []
        elif not _fits(value, column, line):
            own.append(path + column.name)
        elif column.is_struct:
            nested += _faults(value, column.fields, f"{path}{column.name}.", line)
        elif column.is_array:
            for place, item in enumerate(value):
                at = f"{path}{column.name}[{place}]"
                nested += _faults(item, column.fields, f"{at}.", line) if isinstance(item, dict) else [at]
    names = {column.name for column in columns}
    lower = {name.lower() for name in names}
    other_case = [path + key for key in document if key not in names and key.lower() in lower]
    return own + other_case + nested


def _fits(value: Any, column: Column, line: str) -> bool:
    if column.is_array:
        return isinstance(value, list)
    if column.is_struct:
        return isinstance(value, dict)
    if column.type == "string":
        return isinstance(value, str)
    if not isinstance(value, Number):
        return False
    if column.type in ("int", "bigint"):
        limit = 2**31 if column.type == "int" else 2**63
        return value.is_whole and -limit <= int(value.text) < limit
    number = value.as_variant
    if column.rounded:
        return abs(number) < 10**20 and abs(_rounded(number, 4)) < TAX_LIMIT
    if isinstance(number, Decimal):
        return abs(number) < MONEY_LIMIT and number == _rounded(number, 2)
    if LONG.search(line) or abs(number) >= MONEY_LIMIT:
        return False
    exact = _rounded(number, 10)
    return exact == _rounded(exact, 2) and float(exact) == number


def _rounded(number: Decimal | float, decimals: int) -> Decimal:
    exact = number if isinstance(number, Decimal) else Decimal(repr(number))
    return exact.quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)


def _record(document: dict[str, Any], columns: Sequence[Column]) -> dict[str, Any]:
    return {column.name: _value(document.get(column.name), column) for column in columns}


def _value(value: Any, column: Column) -> Any:
    if value is None or column.type == "string":
        return value
    if column.is_array:
        return [_record(item, column.fields) for item in value]
    if column.is_struct:
        return _record(value, column.fields)
    if column.type in ("int", "bigint"):
        return int(value.text)
    return _rounded(value.as_variant, 4 if column.rounded else 2)


def _unknown(document: dict[str, Any], columns: Sequence[Column]) -> dict[str, Any]:
    names = {column.name for column in columns}
    found = {key: value for key, value in document.items() if key not in names}
    for column in columns:
        value = document.get(column.name)
        if column.is_struct and value and (inner := _unknown(value, column.fields)):
            found[column.name] = inner
        elif column.is_array and value and any(every := [_unknown(item, column.fields) for item in value]):
            found[column.name] = every
    return found
