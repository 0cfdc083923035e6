"""The ledger of what a stream was ever given: one SQLite file at `accepted/<stream>/ledger.sqlite`.

One row per accepted file, one per segment. It answers by key whether a delivery was seen before, says which
segment is open, which files the stream has not yet worked through, and how many records were landed in all, each
at a cost that does not grow with the archive. A move is written down before it is made (`moving`) and
afterwards (`accepted`), so that a crash between the two is mended from the folder at the next start.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from invoice_platform.errors import writing
from invoice_platform.streaming.layout import segment_name

SCHEMA = (
    """CREATE TABLE segments (
        number INTEGER PRIMARY KEY,
        closed INTEGER NOT NULL DEFAULT 0,
        drained_through INTEGER NOT NULL DEFAULT 0  -- the stream has committed every file up to this id
    )""",
    """CREATE TABLE files (
        id INTEGER PRIMARY KEY,  -- order of arrival
        key TEXT NOT NULL UNIQUE,  -- of landed name and content
        name TEXT NOT NULL,  -- in the segment's folder
        landed_name TEXT NOT NULL,
        segment INTEGER NOT NULL REFERENCES segments (number),
        bytes INTEGER NOT NULL,
        records INTEGER NOT NULL,
        accepted_ms INTEGER NOT NULL,  -- its modification time: strictly rising in order of arrival
        state TEXT NOT NULL DEFAULT 'moving' CHECK (state IN ('moving', 'accepted'))
    )""",
    "CREATE INDEX files_by_segment ON files (segment, id)",
    "CREATE INDEX files_moving ON files (state) WHERE state = 'moving'",
    """CREATE TABLE refused (  -- files in landing that were read and cannot be taken, until they change
        name TEXT PRIMARY KEY,
        bytes INTEGER NOT NULL,
        modified_ns INTEGER NOT NULL,
        reason TEXT NOT NULL
    )""",
)
SUMS = (
    "CREATE TABLE sums (files INTEGER NOT NULL, bytes INTEGER NOT NULL, records INTEGER NOT NULL)  -- of all accepted files",
    "INSERT INTO sums SELECT count(*), coalesce(sum(bytes), 0), coalesce(sum(records), 0) FROM files WHERE state = 'accepted'",
    *(
        f"CREATE TRIGGER sums_{event.lower()} AFTER {event} ON files WHEN new.state = 'accepted' {condition} BEGIN "
        "UPDATE sums SET files = files + 1, bytes = bytes + new.bytes, records = records + new.records; END"
        for event, condition in (("INSERT", ""), ("UPDATE", "AND old.state <> 'accepted'"))
    ),
)
"""Kept as files are accepted, because to count them takes longer with each that ever came; an accepted one is never deleted."""
VERSION = 2
# CROSS JOIN keeps the order (for each segment, its newest files by index), + keeps the state's index out.
_NOT_WORKED_THROUGH = (
    "CROSS JOIN files f ON f.segment = s.number AND f.id > s.drained_through AND +f.state = 'accepted'"
)


@dataclass(frozen=True)
class AcceptedFile:
    """One accepted file, as the ledger has it."""

    key: str
    name: str
    landed_name: str
    segment: int
    bytes: int
    records: int
    accepted_ms: int


@dataclass(frozen=True)
class Pending:
    """What a stream has not yet worked through in one segment."""

    segment: int
    closed: bool
    through: int
    """Id of the last file counted here; to be handed to `Ledger.drained`."""
    files: int
    bytes: int


def _version(connection: sqlite3.Connection) -> int:
    """0 of a ledger that has yet to be made; 1 of one without sums, which those of before are."""
    return connection.execute("PRAGMA user_version").fetchone()[0]


def _make(connection: sqlite3.Connection, version: int = 0) -> None:
    """Make all that a ledger of that version lacks."""
    for statement in (*(SCHEMA if version == 0 else ()), *SUMS):
        connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {VERSION}")


def _is_file(path: str) -> bool:
    """Whether a file was moved here; a link that a crash kept from being put back is none, and Spark must not follow it."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISLNK(mode):
        os.unlink(path)
    return stat.S_ISREG(mode)


class Ledger:
    """The ledger in `folder` (`accepted/<stream>`); opened for each call, so that nothing is held between runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "ledger.sqlite"

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """A transaction; the first one makes the ledger, all in one step."""
        with writing(self.path):
            self.folder.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=30, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                if (version := _version(connection)) < VERSION:
                    _make(connection, version)
                    if version == 0:
                        self._adopt(connection)
                yield connection
                connection.execute("COMMIT")

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        """The ledger, to look at; an empty one in memory where there is none yet."""
        if self.path.exists():
            # Not mode=ro: only a connection that may write can roll back what a killed process left half written.
            with closing(sqlite3.connect(f"{self.path.as_uri()}?mode=rw", uri=True, timeout=30)) as connection:
                if version := _version(connection):
                    if version < VERSION:
                        with self._write():
                            pass
                    connection.execute("PRAGMA query_only = ON")
                    yield connection
                    return
        with closing(sqlite3.connect(":memory:")) as connection:
            _make(connection)
            yield connection

    def _is_made(self) -> bool:
        if not self.path.exists():
            return False
        with closing(sqlite3.connect(self.path, timeout=30)) as connection:
            return _version(connection) != 0

    def _adopt(self, connection: sqlite3.Connection) -> None:
        """Fill a new ledger from the folders, should it have been lost: names carry the keys."""
        from invoice_platform.streaming.landing import read_landed

        for folder in sorted(p for p in self.folder.iterdir() if p.is_dir() and p.name.isdigit()):
            connection.execute("INSERT INTO segments (number) VALUES (?)", (int(folder.name),))
            for file in sorted(folder.iterdir(), key=lambda p: (p.stat().st_mtime_ns, p.name)):
                key, _, landed_name = file.name.partition("-")
                seen = file.stat()
                connection.execute(
                    "INSERT INTO files (key, name, landed_name, segment, bytes, records, accepted_ms, state) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, 'accepted')",
                    (
                        key,
                        file.name,
                        landed_name,
                        int(folder.name),
                        seen.st_size,
                        read_landed(file, landed_name)[1],
                        seen.st_mtime_ns // 1_000_000,
                    ),
                )

    def path_of(self, segment: int, name: str) -> str:
        """Where an accepted file lies."""
        return f"{self.folder}/{segment_name(segment)}/{name}"

    def recover(self) -> int:
        """Finish or forget the moves that a crash left half done; how many there were.

        A file that is in its segment was moved; one that is not is still in landing and is admitted anew.
        A ledger that was lost is made anew from the folders.
        """
        if self.folder.is_dir() and not self._is_made():
            with self._write():
                return 0
        with self._read() as connection:
            moving = connection.execute("SELECT id, segment, name FROM files WHERE state = 'moving'").fetchall()
        if moving:
            there = {file_id: _is_file(self.path_of(segment, name)) for file_id, segment, name in moving}
            with self._write() as connection:
                for file_id, moved in there.items():
                    if moved:
                        connection.execute("UPDATE files SET state = 'accepted' WHERE id = ?", (file_id,))
                    else:
                        connection.execute("DELETE FROM files WHERE id = ?", (file_id,))
        return len(moving)

    def seen(self, keys: Iterable[str]) -> set[str]:
        """Which of `keys` were accepted before, whenever that was."""
        wanted = list(keys)
        found: set[str] = set()
        with self._read() as connection:
            for start in range(0, len(wanted), 500):
                some = wanted[start : start + 500]
                marks = ",".join("?" * len(some))
                found.update(
                    row[0] for row in connection.execute(f"SELECT key FROM files WHERE key IN ({marks})", some)
                )
        return found

    def last_accepted_ms(self) -> int:
        """The newest modification time given to an accepted file; 0 when there is none."""
        with self._read() as connection:
            row = connection.execute("SELECT accepted_ms FROM files ORDER BY id DESC LIMIT 1").fetchone()
        return row[0] if row else 0

    def open_segment(self, capacity: int | None) -> int:
        """The segment that takes the next files; a new one is opened when the last is closed or holds `capacity`."""
        with self._write() as connection:
            row = connection.execute("SELECT number, closed FROM segments ORDER BY number DESC LIMIT 1").fetchone()
            number, closed = row or (0, 1)
            if not closed and capacity is not None:
                (count,) = connection.execute("SELECT count(*) FROM files WHERE segment = ?", (number,)).fetchone()
                closed = count >= capacity
            if closed:
                connection.execute("UPDATE segments SET closed = 1 WHERE number = ?", (number,))
                number += 1
                connection.execute("INSERT INTO segments (number) VALUES (?)", (number,))
        return number

    def begin(self, files: list[AcceptedFile]) -> None:
        """Write down the moves that are about to be made."""
        with self._write() as connection:
            connection.executemany(
                "INSERT INTO files (key, name, landed_name, segment, bytes, records, accepted_ms) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(f.key, f.name, f.landed_name, f.segment, f.bytes, f.records, f.accepted_ms) for f in files],
            )

    def unfinished(self) -> int:
        """Moves that were begun and not finished: a run that is going, or one that died."""
        with self._read() as connection:
            return connection.execute("SELECT count(*) FROM files WHERE state = 'moving'").fetchone()[0]

    def refused(self) -> dict[str, tuple[int, int, str]]:
        """Files of landing that were read and cannot be taken: name to bytes, modification time (ns) and reason."""
        with self._read() as connection:
            rows = connection.execute("SELECT name, bytes, modified_ns, reason FROM refused").fetchall()
        return {name: (size, modified, reason) for name, size, modified, reason in rows}

    def refuse(self, files: dict[str, tuple[int, int, str]]) -> None:
        """Replace what `refused` says."""
        with self._write() as connection:
            connection.execute("DELETE FROM refused")
            connection.executemany(
                "INSERT INTO refused (name, bytes, modified_ns, reason) VALUES (?, ?, ?, ?)",
                [(name, *facts) for name, facts in files.items()],
            )

    def segments(self) -> list[int]:
        """Every segment's number, oldest first."""
        with self._read() as connection:
            return [row[0] for row in connection.execute("SELECT number FROM segments ORDER BY number")]

    def pending(self) -> list[Pending]:
        """The segments that hold files the stream has not yet worked through, oldest first."""
        with self._read() as connection:
            rows = connection.execute(
                f"SELECT s.number, s.closed, max(f.id), count(*), sum(f.bytes) FROM segments s {_NOT_WORKED_THROUGH} "
                "GROUP BY s.number ORDER BY s.number"
            ).fetchall()
        return [Pending(n, bool(closed), through, files, size) for n, closed, through, files, size in rows]

    def drained(self, segment: int, through: int) -> None:
        """Write down that the stream has committed every file of `segment` up to the id `through`."""
        with self._write() as connection:
            connection.execute(
                "UPDATE segments SET drained_through = max(drained_through, ?) WHERE number = ?", (through, segment)
            )

    def close_all(self) -> int:
        """Close the open segment, so that the next file opens a new one; the id of the last file accepted so far."""
        with self._write() as connection:
            connection.execute("UPDATE segments SET closed = 1")
            (through,) = connection.execute("SELECT coalesce(max(id), 0) FROM files").fetchone()
        return through

    def all_drained(self, through: int) -> None:
        """Write down that every file up to the id `through` is in the stream's table, whatever its segment."""
        with self._write() as connection:
            connection.execute("UPDATE segments SET drained_through = max(drained_through, ?)", (through,))

    def files(self, segment: int) -> dict[str, tuple[int, int]]:
        """The accepted files of a segment: name to id and records."""
        with self._read() as connection:
            rows = connection.execute(
                "SELECT name, id, records FROM files WHERE segment = ? AND state = 'accepted' ORDER BY id", (segment,)
            ).fetchall()
        return {name: (file_id, records) for name, file_id, records in rows}

    def working(self) -> list[int]:
        """The segments whose checkpoints will be used again: they hold files not worked through, or take the next ones."""
        with self._read() as connection:
            rows = connection.execute(
                "SELECT number FROM segments s WHERE closed = 0 OR EXISTS (SELECT 1 FROM files f "
                "WHERE f.segment = s.number AND f.id > s.drained_through) ORDER BY number"
            ).fetchall()
        return [number for (number,) in rows]

    def drained_through(self, segment: int) -> int:
        """Id of the last file of `segment` that the stream is known to have committed; 0 for none."""
        with self._read() as connection:
            row = connection.execute("SELECT drained_through FROM segments WHERE number = ?", (segment,)).fetchone()
        return row[0] if row else 0

    def first_accepted_ms(self, segment: int) -> int | None:
        """The modification time of a segment's first file; None for one without files."""
        with self._read() as connection:
            return connection.execute("SELECT min(accepted_ms) FROM files WHERE segment = ?", (segment,)).fetchone()[0]

    def leave(self, segment: int, into: int, files: Iterable[int]) -> None:
        """Close a segment whose checkpoint is lost: all its files are committed but `files`, which segment `into` takes.

        The ledger is changed first, then the files are moved; called again after a crash it goes on.
        """
        with self._write() as connection:
            connection.execute(
                "UPDATE segments SET closed = 1, drained_through = max(drained_through, "
                "(SELECT coalesce(max(id), 0) FROM files)) WHERE number = ?",
                (segment,),
            )
            connection.execute("INSERT OR IGNORE INTO segments (number) VALUES (?)", (into,))
            moved = [(into, file_id) for file_id in files]
            connection.executemany("UPDATE files SET segment = ? WHERE id = ?", moved)
            rows = [connection.execute("SELECT name FROM files WHERE id = ?", (n,)).fetchone() for _, n in moved]
        (self.folder / segment_name(into)).mkdir(parents=True, exist_ok=True)
        for (name,) in rows:
            if os.path.exists(old := self.path_of(segment, name)):
                os.replace(old, self.path_of(into, name))

    def undrain(self, segment: int) -> None:
        """Forget what was worked through in `segment`: its stream begins with it again."""
        with self._write() as connection:
            connection.execute("UPDATE segments SET drained_through = 0 WHERE number = ?", (segment,))

    def totals(self) -> dict[str, int]:
        """`files`, `bytes` and `records` that were ever accepted, and the `records` among them worked through."""
        with self._read() as connection:
            files, size, records = connection.execute("SELECT files, bytes, records FROM sums").fetchone()
            (waiting,) = connection.execute(
                f"SELECT coalesce(sum(f.records), 0) FROM segments s {_NOT_WORKED_THROUGH}"
            ).fetchone()
        return {"files": files, "bytes": size, "records": records, "records_drained": records - waiting}
