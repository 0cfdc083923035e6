"""Invoices to measure with, and what a table of them holds."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import duckdb

from invoice_platform.generate import InvoiceGenerator, generate_files
from invoice_platform.streaming.tables import facts, open_delta


@dataclass(frozen=True)
class Corpus:
    """Files of invoices, and what any reader must find in them."""

    files: tuple[Path, ...]
    records: int
    line_items: int
    faulty: int

    @property
    def folder(self) -> Path:
        """Where the files are, with no others."""
        return self.files[0].parent

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


def make(folder: Path, *, files: int, invoices: int, seed: int = 1, faults: float = 0.0) -> Corpus:
    """Write so many files of `invoices` each, as `invoice-platform generate` does."""
    made = list(generate_files(folder, files=files, invoices_per_file=invoices, seed=seed, faults=faults))
    return Corpus(
        tuple(f.path for f in made),
        sum(f.records for f in made),
        sum(f.line_items for f in made),
        sum(f.faulty for f in made),
    )


def make_split(folder: Path, *, files: int, invoices: int, seed: int = 1) -> Corpus:
    """The same number of invoices, and the same invoices, in as many files as are asked for."""
    if invoices % files:
        raise ValueError(f"{invoices} invoices do not go into {files} files alike")
    folder.mkdir(parents=True, exist_ok=True)
    records = list(InvoiceGenerator(seed).records(invoices))
    each, paths = invoices // files, []
    for number in range(files):
        paths.append(folder / f"part-{number:06d}.json")
        paths[-1].write_bytes(b"\n".join(r.data for r in records[number * each : (number + 1) * each]))
    return Corpus(tuple(paths), invoices, sum(r.line_items for r in records), 0)


@dataclass(frozen=True)
class Content:
    """What a flat table holds, as far as two contestants' tables must agree."""

    rows: int
    total_value: Decimal

    @property
    def facts(self) -> dict[str, str | int]:
        """As JSON has it."""
        return {"rows": self.rows, "total_value": str(self.total_value)}


def rows(table: Path) -> int:
    """Rows of a Delta table, by its log; 0 without one."""
    found = facts(table)
    return found.rows if found else 0


def live_files(table: Path) -> list[str]:
    """Paths of a Delta table's live data files; none without a table."""
    found = open_delta(table)
    return [uri.removeprefix("file://") for uri in found.file_uris()] if found is not None else []


def content(table: Path, where: str = "true") -> Content:
    """Read a Delta table of line items back."""
    files = live_files(table)
    if not files:
        return Content(0, Decimal(0))
    with duckdb.connect() as connection:
        query = f"SELECT count(*), coalesce(sum(total_value), 0.00) FROM read_parquet($files) WHERE {where}"
        row = connection.execute(query, {"files": files}).fetchone()
    assert row is not None
    return Content(row[0], Decimal(row[1]))
