"""What must be in the tables, known from what was landed: the one judge of the crash and stress tests.

Every landed line carries an id that no other line has, good or bad. At the end each is in `invoices` exactly once, and
either all its line items are in `invoice_line_items` or its text is in `quarantined_invoices`, once; and the gold tables are
what DuckDB makes of those. Read by delta-rs and DuckDB, so that no cache or mistake of Spark's can hide anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import duckdb
import pyarrow as pa
from deltalake import DeltaTable

from invoice_platform.streaming.layout import Layout
from invoice_platform_tests.conftest import invoice, item

_ID = r"T\d{8}"
BAD_LINE = 0
"""In place of a number of line items: the line belongs in quarantine."""
START_MS = 1_709_294_400_000
SPREAD_MS = 12 * 3_600_000
"""Within what the sums wait for, whatever the order in which lines are read: none comes too late."""


class Lines:
    """Makes lines by chance, and remembers of each what must become of it.

    Parameters
    ----------
    chance : random.Random
        Decides everything, so that a seed gives the same lines.
    bad_share : float
        Share of lines (0 to 1) that belong in quarantine.
    """

    def __init__(self, chance: Random, bad_share: float = 0.1) -> None:
        self.chance = chance
        self.bad_share = bad_share
        self.landed: dict[str, int] = {}
        """Id of each line that was landed to its line items, or `BAD_LINE`."""

    def make(self, count: int) -> Iterator[bytes]:
        """The next lines, without newlines; they count as landed."""
        for _ in range(count):
            number = f"T{len(self.landed):08d}"
            items = [
                item(str(400 + self.chance.randrange(40)), self.chance.randrange(1, 40_000) / 100, 1 + i)
                for i in range(self.chance.randrange(1, 5))
            ]
            document = invoice(
                number,
                *items,
                StoreID=f"STR{1000 + self.chance.randrange(20)}",
                CustomerCardNo=str(2_000_000_000 + self.chance.randrange(50)),
                CreatedTime=START_MS + self.chance.randrange(SPREAD_MS),
            )
            good = self.chance.random() >= self.bad_share
            self.landed[number] = len(items) if good else BAD_LINE
            yield json.dumps(document).encode() if good else self._broken(document)

    def _broken(self, document: dict[str, object]) -> bytes:
        """A line that is no invoice and shows its id."""
        text = json.dumps(document).encode()
        return self.chance.choice(
            [
                text[: self.chance.randrange(60, len(text))],
                text + text,
                text + b" junk",
                b"[" + text + b"]",
                text.replace(b'"OAS', b'"OAS\xff'),
                json.dumps(document | {"CreatedTime": "yesterday"}).encode(),
                json.dumps({key: value for key, value in document.items() if key != "StoreID"}).encode(),
                json.dumps(document | {"InvoiceLineItems": []}).encode(),
            ]
        )

    def file(self, path: Path, count: int) -> Path:
        """Write a file of so many new lines, with no newline after the last."""
        path.write_bytes(b"\n".join(self.make(count)))
        return path


@dataclass(frozen=True)
class Verdict:
    """What the tables hold against what was landed."""

    landed: int
    lost: int
    """Lines, or line items of one, that a table should hold and does not."""
    repeated: int
    """Those that a table holds more often than it should, or should not hold at all."""
    wrong: list[str] = field(default_factory=list)
    """The first of each, and gold tables that are not what they should be, in words."""

    @property
    def right(self) -> bool:
        return not (self.lost or self.repeated or self.wrong)


# For each table: the ids that it holds, as often as it holds them, and how often it should hold one.
_HOLDS = {
    "invoices": (
        f"SELECT coalesce(InvoiceNumber, regexp_extract(raw, '{_ID}')) AS id FROM invoices",
        "SELECT id, 1 AS times FROM landed",
    ),
    "invoice_line_items": (
        "SELECT invoice_number AS id FROM invoice_line_items",
        f"SELECT id, items AS times FROM landed WHERE items <> {BAD_LINE}",
    ),
    "quarantined_invoices": (
        f"SELECT regexp_extract(raw, '{_ID}') AS id FROM quarantined_invoices",
        f"SELECT id, 1 AS times FROM landed WHERE items = {BAD_LINE}",
    ),
}
_COUNTED = """SELECT coalesce(f.id, e.id) AS id, coalesce(f.times, 0) AS found, coalesce(e.times, 0) AS expected
  FROM (SELECT id, count(*) AS times FROM ({found}) GROUP BY id) f FULL JOIN ({expected}) e ON f.id = e.id
  WHERE coalesce(f.times, 0) <> coalesce(e.times, 0) ORDER BY id"""
_SUMS = "count(*) AS line_items, sum(item_qty) AS item_qty, sum(total_value) AS total_value"
_GOLD = {
    "customer_rewards": """SELECT CustomerCardNo AS customer_card_no, count(*) AS invoices, sum(TotalAmount) AS total_amount
      FROM invoices WHERE reason IS NULL GROUP BY ALL""",
    "store_daily_sales": f"""SELECT store_id, CAST(created_time AS DATE) AS sales_date, {_SUMS}
      FROM invoice_line_items GROUP BY ALL""",
    "product_sales_windows": f"""SELECT time_bucket(INTERVAL '15 minutes', created_time) - k * INTERVAL '15 minutes'
      AS window_start, item_code, {_SUMS} FROM invoice_line_items, range(4) AS quarters(k) GROUP BY ALL""",
}


def judge(layout: Layout, landed: dict[str, int], *, gold: bool = True) -> Verdict:
    """Hold every table against what was landed.

    Parameters
    ----------
    landed : dict
        Id of each landed line to its line items, or `BAD_LINE`; see `Lines.landed`.
    gold : bool
        Whether the gold tables are to be there, too.
    """
    sums = _GOLD if gold else {}
    duck = duckdb.connect()
    duck.execute("SET TimeZone = 'UTC'")
    duck.register("landed", pa.table({"id": list(landed), "items": pa.array(list(landed.values()), pa.int64())}))
    lost = repeated = 0
    wrong: list[str] = []
    for table in (*_HOLDS, *sums):
        if not DeltaTable.is_deltatable(str(layout.table(table))):
            wrong.append(f"{table} is not there")
            return Verdict(len(landed), len(landed), 0, wrong)
        duck.register(table, DeltaTable(str(layout.table(table))).to_pyarrow_table())
    for table, (found, expected) in _HOLDS.items():
        differ = duck.execute(_COUNTED.format(found=found, expected=expected)).fetchall()
        lost += sum(max(should - there, 0) for _, there, should in differ)
        repeated += sum(max(there - should, 0) for _, there, should in differ)
        wrong += [f"{table}: {which} {there} times, not {should}" for which, there, should in differ[:3]]
    for table, expected in sums.items():
        duck.execute(f"CREATE OR REPLACE TEMP TABLE expected AS {expected}")
        names = ", ".join(name for (name, *_) in duck.execute("DESCRIBE expected").fetchall())
        found = f"SELECT {names} FROM {table}"
        for one, other, what in (("expected", found, "lacks"), (found, "expected", "should not have")):
            one, other = (f"({q})" if q.startswith("SELECT") else q for q in (one, other))
            rows = duck.execute(f"SELECT {names} FROM {one} EXCEPT ALL SELECT {names} FROM {other}").fetchall()
            if rows:
                wrong.append(f"{table} {what} {len(rows)} rows, such as {rows[0]}")
    return Verdict(len(landed), lost, repeated, wrong)
