"""Quarantined records: found at their place, exported to be mended, landed again.

Source: rows of `quarantined_invoices`, and the archive `accepted/invoices` that the files among them came in. Sink: one new file
in `landing/invoices` a retry, which the next `ingest_invoices` reads like any other; a record that is bad again is a new
quarantined record at a new place, and the old one stays as history. Grain: one record, named by its place:
`<segment>/<file>:<line>`, or `kafka:<topic>/<partition>/<offset>`. Spark does not say on which line of a file a record stood,
so the line is looked up in the archived file when it is asked for; archives never change, so neither do places, a rebuild
included. Replay: which places are being sent is noted before the file is landed, and that they were after it, so a crash at any
point leaves a note that the next look holds against landing and the ledger.

No Spark is needed, and what is in memory does not grow with the quarantine.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import sqlite3
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from invoice_platform.errors import PlatformError
from invoice_platform.schemas import INVOICES, QUARANTINED_INVOICES
from invoice_platform.streaming.landing import land, read_landed
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.ledger import Ledger
from invoice_platform.streaming.tables import facts, query_batches, sql_text
from invoice_platform.terminal import json_line

INBOX = "invoices"
KAFKA = "kafka:"
RECORDS_AT_ONCE = 20_000
"""Records looked up in one step, more where one file holds more; their hashes are on disk meanwhile."""
SOURCES_IN_QUERY = 500
"""Up to so many files are named in a query; more are picked out of all rows."""
CUT_FROM_CHARACTERS = 1 << 16
"""A text of at least so many characters may be the beginning of a longer record."""
CACHE_KIB = 32 * 1024

_ARCHIVED = re.compile(r"\d{6,}/[^/]+")
_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS sends (
        number INTEGER PRIMARY KEY,
        file TEXT NOT NULL,  -- in landing/invoices
        key TEXT NOT NULL,  -- by which the ledger knows it
        sent_at TEXT NOT NULL,
        landed INTEGER NOT NULL DEFAULT 0  -- 0: about to be landed
    )""",
    """CREATE TABLE IF NOT EXISTS places (
        place TEXT PRIMARY KEY,
        source_file TEXT NOT NULL,
        reason TEXT NOT NULL,
        send INTEGER NOT NULL REFERENCES sends (number)
    ) WITHOUT ROWID""",
)


@dataclass(frozen=True)
class SentAgain:
    """In which landed file a record was sent again, and when (UTC, ISO 8601)."""

    file: str
    at: str


@dataclass(frozen=True)
class Record:
    """A quarantined record."""

    place: str
    source_file: str
    reason: str
    ingested_at: datetime
    line: bytes | None
    """The line as it is in the archive; of a Kafka message the text in the table, None where it has none."""
    sent: SentAgain | None

    @property
    def raw(self) -> str:
        """Its text; bytes that are no UTF-8 replaced, as in the table."""
        return (self.line or b"").decode("utf-8", "replace")

    def exported(self) -> dict[str, str]:
        """What a person mends: `raw`."""
        return {
            "place": self.place,
            "reason": self.reason,
            "ingested_at": self.ingested_at.isoformat(),
            "raw": self.raw,
        }


@dataclass
class Retried:
    """What a retry did."""

    file: Path | None = None
    """The file in landing; None when there was nothing to send."""
    records: int = 0
    sent_before: int = 0
    """Passed over, because they were sent again before."""
    no_line: int = 0
    """Passed over, because they hold no text, or more than one line of it."""
    accepted_before: bool = False
    """Whether this very file was accepted before: it will be counted, not read."""


class Notes:
    """Which places were sent again: a small SQLite file beside the archive's ledger."""

    def __init__(self, layout: Layout, connection: sqlite3.Connection) -> None:
        self.connection = connection
        landing, ledger = layout.landing(INBOX), Ledger(layout.accepted(INVOICES.name))
        begun = connection.execute("SELECT number, file, key FROM sends WHERE landed = 0").fetchall()
        self.never_landed = {n for n, file, key in begun if not (landing / file).exists() and not ledger.seen([key])}
        """Sends that a crash cut off before their file was in landing."""

    @classmethod
    @contextmanager
    def reading(cls, layout: Layout) -> Iterator[Notes]:
        """The notes, to look at; empty ones in memory where there are none yet."""
        path = layout.sent_again
        # Not mode=ro: only a connection that may write can roll back what a killed process left half written.
        file = f"{path.as_uri()}?mode=rw" if path.exists() else ":memory:"
        with closing(sqlite3.connect(file, uri=True)) as there, closing(sqlite3.connect(":memory:")) as none:
            _make(none)
            made = there.execute("SELECT 1 FROM sqlite_master WHERE name = 'sends'").fetchone()
            yield cls(layout, there if made else none)

    @classmethod
    @contextmanager
    def writing(cls, layout: Layout) -> Iterator[Notes]:
        """The notes, to add to: one process at a time. What is added is kept by `keep`.

        Raises
        ------
        PlatformError
            When another retry is going.
        """
        path = layout.sent_again
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise PlatformError(f"another `quarantine retry` is going on {layout.root}: wait for it to end") from None
        with lock, closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            _make(connection)
            notes = cls(layout, connection)
            for number in notes.never_landed:
                connection.execute("DELETE FROM places WHERE send = ?", (number,))
                connection.execute("DELETE FROM sends WHERE number = ?", (number,))
            connection.execute("UPDATE sends SET landed = 1")
            notes.never_landed = set()
            yield notes

    def keep(self) -> None:
        """Commit, and go on."""
        self.connection.execute("COMMIT")
        self.connection.execute("BEGIN IMMEDIATE")

    def of(self, place: str) -> SentAgain | None:
        """When and in what file a place was sent again last, or None."""
        row = self.connection.execute(
            "SELECT send, file, sent_at FROM places JOIN sends ON number = send WHERE place = ?", (place,)
        ).fetchone()
        return SentAgain(row[1], row[2]) if row and row[0] not in self.never_landed else None

    def by_file(self) -> dict[tuple[str, str], int]:
        """How many places were sent again, by source file and reason."""
        rows = self.connection.execute(
            "SELECT source_file, reason, send, count(*) FROM places GROUP BY source_file, reason, send"
        )
        counts: dict[tuple[str, str], int] = {}
        for source_file, reason, send, count in rows:
            if send not in self.never_landed:
                counts[source_file, reason] = counts.get((source_file, reason), 0) + count
        return counts


def _make(connection: sqlite3.Connection) -> None:
    for statement in _SCHEMA:
        connection.execute(statement)


@dataclass
class Quarantine:
    """The quarantined records of a root.

    Parameters
    ----------
    layout : Layout
        Which root.
    """

    layout: Layout
    lost: dict[str, str] = field(default_factory=dict)
    """Filled by `records`: archived files in which quarantined records were not found, and what is wrong."""

    def records(
        self,
        notes: Notes,
        *,
        reason: str | None = None,
        sources: set[str] | None = None,
        oldest_first: bool = False,
    ) -> Iterator[Record]:
        """Every quarantined record at its place, newest file first (or oldest), the lines of a file in order.

        Parameters
        ----------
        notes : Notes
            Which of them were sent again.
        reason : str
            Only those whose reason holds this text, in any case of letters.
        sources : set of str
            Only those of these source files.
        """
        conditions = [f"strpos(lower(reason), {sql_text(reason.lower())}) > 0"] if reason else []
        if sources is not None and len(sources) <= SOURCES_IN_QUERY:
            conditions.append(f"source_file IN ({', '.join(map(sql_text, sorted(sources))) or 'NULL'})")
        for first, last in self._spans(conditions, oldest_first):
            span = f"ingested_at BETWEEN {_utc(first)} AND {_utc(last)}"
            rows = self._query("source_file, raw, reason, ingested_at", [*conditions, span])
            with _index(rows, sources) as index:
                yield from self._placed(index, notes, oldest_first)

    def _spans(self, conditions: list[str], oldest_first: bool) -> Iterator[tuple[datetime, datetime]]:
        """Spans of time, one after the other, that hold about `RECORDS_AT_ONCE` records each."""
        end = f"GROUP BY ingested_at ORDER BY ingested_at {'ASC' if oldest_first else 'DESC'}"
        times: list[datetime] = []
        records = 0
        for at, count in self._query("ingested_at, count(*)", conditions, end):
            times.append(at)
            records += count
            if records >= RECORDS_AT_ONCE:
                yield min(times), max(times)
                times, records = [], 0
        if times:
            yield min(times), max(times)

    def _query(self, columns: str, conditions: list[str], end: str = "") -> Iterator[tuple[Any, ...]]:
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        for batch in query_batches(
            self.layout.table(QUARANTINED_INVOICES.name), f"SELECT {columns} FROM t {where} {end}"
        ):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    def _placed(self, index: sqlite3.Connection, notes: Notes, oldest_first: bool) -> Iterator[Record]:
        files = index.execute(
            "SELECT source_file, max(ingested_at), sum(rows) FROM wanted GROUP BY source_file "
            f"ORDER BY 2 {'ASC' if oldest_first else 'DESC'}, 1"
        )
        for source_file, ingested_at, rows in files:
            at = datetime.fromisoformat(ingested_at)
            if source_file.startswith(KAFKA):
                for reason, raw in index.execute(
                    "SELECT reason, raw FROM wanted WHERE source_file = ?", (source_file,)
                ):
                    line = None if raw is None else raw.encode()
                    yield Record(source_file, source_file, reason, at, line, notes.of(source_file))
                continue
            left = rows
            try:
                for number, line, reason in self._found(index, source_file, rows):
                    place = f"{source_file}:{number}"
                    left -= 1
                    yield Record(place, source_file, reason, at, line, notes.of(place))
            except (OSError, EOFError, zlib.error) as error:
                self.lost[source_file] = f"{left} records: {getattr(error, 'strerror', None) or error}"
            else:
                if left:
                    self.lost[source_file] = f"{left} records are not in it"

    def _found(self, index: sqlite3.Connection, source_file: str, rows: int) -> Iterator[tuple[int, bytes, str]]:
        """The wanted lines of an archived file: number, line, reason; the same text twice takes the lines in order."""
        lengths = index.execute("SELECT DISTINCT cut FROM wanted WHERE source_file = ? AND cut > 0", (source_file,))
        cuts = [length for (length,) in lengths]
        for number, line in _lines(self.layout.accepted(INVOICES.name), source_file):
            text = line.decode("utf-8", "replace")
            for known_as in (text, *(text[:cut] for cut in cuts if cut < len(text))):
                key = (source_file, _hash(known_as))
                row = index.execute("SELECT reason FROM wanted WHERE source_file = ? AND hash = ? AND rows > 0", key)
                if (found := row.fetchone()) is not None:
                    index.execute("UPDATE wanted SET rows = rows - 1 WHERE source_file = ? AND hash = ?", key)
                    yield number, line, found[0]
                    rows -= 1
                    break
            if rows == 0:
                return

    def totals(self, notes: Notes) -> dict[str, tuple[int, int]]:
        """For each reason how many records wait to be mended, and how many were sent again.

        Notes
        -----
        A record that a rebuild under other rules found valid is not in the table any more, and its note counts no more.
        """
        rows: dict[str, int] = dict(self._query("reason, count(*)", [], "GROUP BY reason"))
        noted = notes.by_file()
        there: Counter[tuple[str, str]] = Counter()
        if noted:
            there.update(pair for pair in self._query("source_file, reason", []) if pair in noted)
        sent: Counter[str] = Counter()
        for (source_file, reason), count in noted.items():
            sent[reason] += min(count, there[source_file, reason])
        return {reason: (count - sent[reason], sent[reason]) for reason, count in rows.items()}


def summary(layout: Layout) -> dict[str, int]:
    """`open` and `sent_again`: how many quarantined records wait to be mended, and how many were sent again."""
    if not layout.sent_again.exists():  # the Delta log knows
        found = facts(layout.table(QUARANTINED_INVOICES.name))
        return {"open": found.rows if found else 0, "sent_again": 0}
    with Notes.reading(layout) as notes:
        counts = Quarantine(layout).totals(notes).values()
    return {"open": sum(n for n, _ in counts), "sent_again": sum(n for _, n in counts)}


def export(
    layout: Layout, file: Path | None, *, reason: str | None = None, limit: int | None = None
) -> tuple[int, dict[str, str]]:
    """Write the records that were not sent again as lines of JSON (`place`, `reason`, `ingested_at`, `raw`), oldest first.

    Parameters
    ----------
    file : pathlib.Path or None
        Appears in one step, whole; None is stdout.

    Returns
    -------
    tuple of int and dict of str to str
        How many, and `Quarantine.lost`.

    Raises
    ------
    PlatformError
        When the file is there already, or cannot be written.
    """
    quarantine = Quarantine(layout)
    with Notes.reading(layout) as notes, ExitStack() as written:
        to: IO[str] = sys.stdout if file is None else written.enter_context(_in_one_step(file))
        count = 0
        chosen = (r for r in quarantine.records(notes, reason=reason, oldest_first=True) if r.sent is None)
        for record in islice(chosen, limit):
            to.write(json_line(record.exported()) + "\n")
            count += 1
    return count, quarantine.lost


def retry(layout: Layout, *, reason: str | None = None, again: bool = False) -> tuple[Retried, dict[str, str]]:
    """Land quarantined records as they stand, in the order in which they came: after the code or a rule was changed.

    Lines of files are sent byte for byte; a Kafka message as the table has it.

    Returns
    -------
    tuple of Retried and dict of str to str
        What was done, and `Quarantine.lost`.
    """
    quarantine = Quarantine(layout)
    with Notes.writing(layout) as notes:
        records = quarantine.records(notes, reason=reason, oldest_first=True)
        return _send(layout, notes, records, again), quarantine.lost


def retry_mended(layout: Layout, file: Path | None, *, again: bool = False) -> tuple[Retried, dict[str, str]]:
    """Land the `raw` of each line of an export that a person has mended, in the order of that file.

    Parameters
    ----------
    file : pathlib.Path or None
        None is stdin. A line that was taken out is not sent.

    Raises
    ------
    PlatformError
        Before anything is landed: when a line is not such a record, or its place is not in quarantine; names the line.
    """
    quarantine = Quarantine(layout)
    with Notes.writing(layout) as notes:
        mended = notes.connection
        mended.execute(
            "CREATE TEMP TABLE mended "
            "(number INTEGER PRIMARY KEY, place TEXT UNIQUE, raw BLOB, source_file TEXT, reason TEXT, at TEXT)"
        )
        sources: set[str] = set()
        for number, place, raw in _mended_lines(file):
            try:
                mended.execute("INSERT INTO mended (number, place, raw) VALUES (?, ?, ?)", (number, place, raw))
            except sqlite3.IntegrityError:
                raise _refused(file, number, f"place {place!r} was there before: keep one of the two") from None
            sources.add(place if place.startswith(KAFKA) else place.rpartition(":")[0])
        unknown = mended.execute("SELECT count(*) FROM mended").fetchone()[0]
        for record in quarantine.records(notes, sources=sources):
            unknown -= mended.execute(
                "UPDATE mended SET source_file = ?, reason = ?, at = ? WHERE place = ? AND reason IS NULL",
                (record.source_file, record.reason, record.ingested_at.isoformat(), record.place),
            ).rowcount
            if not unknown:
                break
        row = mended.execute("SELECT number, place FROM mended WHERE reason IS NULL ORDER BY number").fetchone()
        if row is not None:
            raise _refused(
                file, row[0], f"no quarantined record has the place {row[1]!r}: leave the places as exported"
            )
        # A cursor of its own, read to its end: what is noted meanwhile goes into other tables.
        rows = mended.execute("SELECT place, source_file, reason, at, raw FROM mended ORDER BY number")
        records = (Record(p, s, r, datetime.fromisoformat(at), raw, notes.of(p)) for p, s, r, at, raw in rows)
        return _send(layout, notes, records, again), quarantine.lost


def _send(layout: Layout, notes: Notes, records: Iterable[Record], again: bool) -> Retried:
    """Land records as one new file, and note it: that it will be landed, then that it was."""
    done = Retried()
    at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="retry-") as folder:
        made = Path(folder) / "made"
        # Of the places, too: a line that is sent from its next place is another record, and must not be taken for the first.
        digest = hashlib.blake2b(digest_size=16)
        cursor = notes.connection.execute("INSERT INTO sends (file, key, sent_at) VALUES ('', '', ?)", (at,))
        send = cursor.lastrowid
        with made.open("wb") as out:
            for record in records:
                line = record.line
                if line is None or not line.strip() or b"\n" in line:
                    done.no_line += 1
                elif record.sent is not None and not again:
                    done.sent_before += 1
                else:
                    if not done.records and line.startswith(b"\xef\xbb\xbf"):
                        out.write(b"\xef\xbb\xbf")  # the first of a file is not part of its text
                    out.write(line + b"\n")
                    digest.update(record.place.encode() + b"\0" + line + b"\n")
                    notes.connection.execute(
                        "INSERT OR REPLACE INTO places (place, source_file, reason, send) VALUES (?, ?, ?, ?)",
                        (record.place, record.source_file, record.reason, send),
                    )
                    done.records += 1
        if not done.records:
            return done
        whole = made.rename(made.with_name(f"retry-{digest.hexdigest()}.json"))
        key, _ = read_landed(whole, whole.name)
        done.accepted_before = bool(Ledger(layout.accepted(INVOICES.name)).seen([key]))
        notes.connection.execute("UPDATE sends SET file = ?, key = ? WHERE number = ?", (whole.name, key, send))
        notes.keep()
        done.file = layout.landing(INBOX) / whole.name
        if not done.file.exists():  # the name is of its content
            land(whole, layout.landing(INBOX))
        notes.connection.execute("UPDATE sends SET landed = 1 WHERE number = ?", (send,))
        notes.keep()
    return done


def _mended_lines(file: Path | None) -> Iterator[tuple[int, str, bytes]]:
    """Number, place and mended text of each line of an export; blank lines are passed over."""
    with ExitStack() as opened:
        try:
            lines = sys.stdin.buffer if file is None else opened.enter_context(file.open("rb"))
        except OSError as error:
            raise PlatformError(f"{file}: {error.strerror}; give an export of `quarantine export`") from None
        for number, line in enumerate(lines, 1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if text.strip():
                yield number, *_mended(file, number, text)


def _mended(file: Path | None, number: int, text: bytes) -> tuple[str, bytes]:
    try:
        document = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        raise _refused(file, number, "not a JSON document in UTF-8; write one record a line, as exported") from None
    fields: dict[str, Any] = document if isinstance(document, dict) else {}
    for name in ("place", "raw"):
        if not isinstance(fields.get(name), str):
            raise _refused(file, number, f"no text under {name!r}: give place and raw, as exported")
    place, raw = fields["place"], fields["raw"]
    if "\n" in raw:
        raise _refused(file, number, "raw holds a newline (\\n), and a record is one line: take it out")
    if not raw.strip(" \t\r\x0b\x0c"):
        raise _refused(file, number, "raw is blank: take the line out if the record is not to be sent")
    try:
        place.encode()
        return place, raw.encode()
    except UnicodeEncodeError:
        raise _refused(file, number, "half a character (a lone \\ud800 to \\udfff) in it: write it whole") from None


def _refused(file: Path | None, number: int, why: str) -> PlatformError:
    return PlatformError(f"{file or 'stdin'} line {number}: {why}; nothing was landed")


@contextmanager
def _in_one_step(file: Path) -> Iterator[IO[str]]:
    """A new text file that appears whole or not at all, and replaces none."""
    there = f"{file} is there already: give another name, or remove it"
    if os.path.lexists(file):
        raise PlatformError(there)
    partial = file.with_name(f".{file.name[:100]}.{os.getpid()}.tmp")
    try:
        try:
            with partial.open("x", encoding="utf-8", newline="\n") as to:
                yield to
            os.link(partial, file)  # unlike a rename, refuses to replace
        finally:
            partial.unlink(missing_ok=True)
    except FileExistsError:
        raise PlatformError(there) from None
    except OSError as error:
        raise PlatformError(f"{file} could not be written: {error.strerror}") from None


@contextmanager
def _index(rows: Iterable[tuple[Any, ...]], sources: set[str] | None) -> Iterator[sqlite3.Connection]:
    """Rows of the table by source file and hash of their text, in a database on disk that ends with the block."""
    with closing(sqlite3.connect("", isolation_level=None)) as index:
        index.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        index.execute(
            """CREATE TABLE wanted (
                source_file TEXT, hash BLOB, reason TEXT, ingested_at TEXT,
                raw TEXT,  -- of Kafka messages alone: lines are in the archive
                rows INTEGER NOT NULL DEFAULT 1,
                cut INTEGER NOT NULL,  -- characters of a text that may be cut
                PRIMARY KEY (source_file, hash)
            ) WITHOUT ROWID"""
        )
        index.execute("BEGIN")
        for source_file, raw, reason, at in rows:
            if sources is not None and source_file not in sources:
                continue
            text = raw or ""
            kafka = source_file.startswith(KAFKA)
            cut = len(text) if len(text) >= CUT_FROM_CHARACTERS else 0
            index.execute(
                "INSERT INTO wanted (source_file, hash, reason, ingested_at, raw, cut) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET rows = rows + 1",
                (source_file, _hash(text), reason, at.isoformat(), raw if kafka else None, cut),
            )
        yield index


def _lines(archive: Path, source_file: str) -> Iterator[tuple[int, bytes]]:
    """The lines of an archived file as Spark reads them, with their numbers from 1."""
    if not _ARCHIVED.fullmatch(source_file):
        raise OSError(0, "not the name of an archived file")
    opened = os.fdopen(os.open(archive / source_file, os.O_RDONLY | os.O_NOFOLLOW), "rb")
    with opened, gzip.open(opened) if source_file.endswith(".gz") else opened as file:
        for number, line in enumerate(file, 1):
            text = line.removesuffix(b"\n")
            yield number, text.removeprefix(b"\xef\xbb\xbf") if number == 1 else text


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _utc(time: datetime) -> str:
    """A time as SQL."""
    return sql_text(time.astimezone(timezone.utc).isoformat(timespec="microseconds"))
