"""Landing and admission: the inbox that files leave, and the archive that they enter once, whole.

Source: `landing/<inbox>`. Sink: `accepted/<stream>/<segment>/<key>-<name>`. Grain: one file. All file-system calls
of landing are in this module. Replay: a move is in the ledger before it is made, so a crash at any point leaves each
file either in landing or in its segment, and the next admission goes on from there.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import re
import shutil
import stat
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, NamedTuple

from invoice_platform.errors import PlatformError, first_line, writing
from invoice_platform.streaming.layout import Layout, segment_name
from invoice_platform.streaming.ledger import AcceptedFile, Ledger
from invoice_platform.streaming.settings import MAX_LINE_BYTES

SEGMENT_FILES = 1_000
"""A segment that holds so many files takes no more at the next admission: Spark re-reads the list of all files that
a checkpoint ever saw at each start (0.1 s at 1,000 files, 3 s at 30,000)."""
ADMISSION_FILES = 10_000
"""Files moved in one step; a larger backlog is moved in several, into several segments."""
SETTLE_SECONDS = 2.0
"""Where the system cannot tell whether a file is open for writing, a file changed more recently than this waits."""
CHUNK_BYTES = 1 << 20
OPENING = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
READABLE = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH
"""Of a file that has all three nobody need be asked whether this user may read it."""

FileFormat = Literal["text", "json", "csv", "parquet"]

TEMPORARY_SUFFIXES = (".tmp", ".part", ".partial", ".crdownload", ".filepart", ".swp", "._copying_", "~")
UNREADABLE_SUFFIXES = (".bz2", ".deflate", ".lz4", ".snappy", ".xz", ".zip", ".zst", ".zstd", ".7z", ".tar", ".tgz")


@dataclass(frozen=True)
class Left:
    """A file that stays in landing, and why."""

    name: str
    reason: str


class Waiting(NamedTuple):
    """A file in landing that may be admitted; made for every file at every tick of a sensor, so it holds no more than it must."""

    modified_ns: int
    name: str
    folder: str
    bytes: int
    inode: int

    @property
    def path(self) -> str:
        """Where it lies; no Path, of which one for each look at each file takes longer than to read small files."""
        return f"{self.folder}/{self.name}"

    def changed(self) -> bool:
        """Whether the file is another than it was, or is being written."""
        now = os.lstat(self.path)
        return (now.st_size, now.st_mtime_ns, now.st_ino) != (
            self.bytes,
            self.modified_ns,
            self.inode,
        ) or being_written(self.path)


@dataclass
class Scan:
    """What lies in landing: files that may be admitted, in order of arrival, and those left with a reason."""

    waiting: list[Waiting] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)


@dataclass
class Admission:
    """What one admission did."""

    admitted: list[AcceptedFile] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    """Names of files delivered again with the same content: counted, taken out of landing, not read twice."""
    left: list[Left] = field(default_factory=list)
    refused: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    """Of those left, what was found out by reading them, as the ledger keeps it until they change."""
    seconds: float = 0.0

    @property
    def files(self) -> int:
        return len(self.admitted)

    @property
    def bytes(self) -> int:
        return sum(f.bytes for f in self.admitted)

    @property
    def records(self) -> int:
        """Lines that are not blank, counted as the files were hashed: what every table is later held against."""
        return sum(f.records for f in self.admitted)

    def add(self, other: Admission) -> None:
        """Count another admission of the same run into this one."""
        self.admitted += other.admitted
        self.repeated += other.repeated
        self.left = other.left
        self.seconds += other.seconds


class LandingFolder:
    """One inbox and the archive behind it.

    Parameters
    ----------
    layout : Layout
        Where the root is.
    inbox : str
        Folder under `landing/`.
    stream : str
        Whose archive it fills.
    segment_files : int or None
        Files after which a segment is closed. None keeps one segment for ever: a stream with state has its state
        in its one checkpoint.
    format : str
        What the files are; a Parquet file is looked at before it is taken.
    """

    def __init__(
        self,
        layout: Layout,
        inbox: str,
        stream: str,
        segment_files: int | None = SEGMENT_FILES,
        format: FileFormat = "text",
    ) -> None:
        self.folder = layout.landing(inbox)
        self.accepted = layout.accepted(stream)
        self.ledger = Ledger(self.accepted)
        self.segment_files = segment_files
        self.format: FileFormat = format

    def scan(self) -> Scan:
        """What lies in landing, by name, state and what was found out before: no file is opened.

        Raises
        ------
        PlatformError
            When the landing folder is missing.
        """
        scan = scan_folder(self.folder)
        if scan.waiting and (refused := self.ledger.refused()):
            waiting, scan.waiting = scan.waiting, []
            for file in waiting:
                size, modified_ns, reason = refused.get(file.name, (-1, -1, ""))
                if (size, modified_ns) == (file.bytes, file.modified_ns):
                    scan.left.append(Left(file.name, reason))
                else:
                    scan.waiting.append(file)
        return scan

    def admit(self) -> Admission:
        """Move every complete file out of landing into the open segment; the caller holds the stream's lock."""
        started = time.monotonic()
        self.ledger.recover()
        scan = self.scan()
        result = Admission(left=list(scan.left))
        for start in range(0, len(scan.waiting), ADMISSION_FILES):
            self._admit_some(scan.waiting[start : start + ADMISSION_FILES], result)
        if result.refused:
            still = {f.name for f in scan.left}
            self.ledger.refuse({n: f for n, f in self.ledger.refused().items() if n in still} | result.refused)
            result.left += [Left(name, reason) for name, (_, _, reason) in result.refused.items()]
        result.seconds = time.monotonic() - started
        return result

    def _admit_some(self, waiting: list[Waiting], result: Admission) -> None:
        read: list[tuple[Waiting, str, int]] = []
        for file in waiting:
            try:
                if being_written(file.path):
                    result.left.append(Left(file.name, "still being written"))
                else:
                    read.append((file, *read_landed(file.path, file.name, self.format)))
            except FileNotFoundError:
                continue  # its producer took it away again
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                self._refuse(file, result, f"damaged gzip: {error}")
            except NotThisFormat as error:
                self._refuse(file, result, str(error))
            except OSError as error:
                self._refuse(file, result, f"cannot be read: {error.strerror}")
        seen = self.ledger.seen(key for _, key, _ in read)
        accepted_ms = max(time.time_ns() // 1_000_000, self.ledger.last_accepted_ms() + 1)
        segment = self.ledger.open_segment(self.segment_files) if len(read) > len(seen) else 0
        moves: list[tuple[Waiting, AcceptedFile]] = []
        for file, key, records in read:
            if key in seen:
                # The same bytes are in accepted/ under the same name.
                if self._take_out(file, result, lambda f=file: os.unlink(f.path)):
                    result.repeated.append(file.name)
                continue
            name = f"{key}-{safe_name(file.name)}"
            moves.append((file, AcceptedFile(key, name, file.name, segment, file.bytes, records, accepted_ms)))
            accepted_ms += 1  # rising, so that Spark reads the files in order of arrival
        if not moves:
            return
        self.ledger.begin([accepted for _, accepted in moves])
        into = self.accepted / segment_name(segment)
        with writing(into):
            into.mkdir(parents=True, exist_ok=True)
            for file, accepted in moves:
                if self._take_out(file, result, lambda f=file, a=accepted: self._move(f, a)):
                    result.admitted.append(accepted)
        self.ledger.recover()  # what was moved is accepted; what was not is forgotten

    def _move(self, file: Waiting, accepted: AcceptedFile) -> None:
        path, target = file.path, self.ledger.path_of(accepted.segment, accepted.name)
        # Fresh before the rename: Spark ignores a file 7 days older than the newest it saw, for ever.
        times = (accepted.accepted_ms * 1_000_000, accepted.accepted_ms * 1_000_000)
        os.utime(path, ns=times, follow_symlinks=False)
        try:
            os.rename(path, target)
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise PlatformError(
                    f"{self.folder} and {self.accepted} are on different file systems, so no file can be moved "
                    "in one step: put both under one INVOICE_PLATFORM_ROOT on one file system"
                ) from None
            raise
        moved = os.lstat(target)
        # Put in its place since it was read: a link to anywhere, perhaps. A number alone may be given to the next file.
        if (moved.st_ino, moved.st_size, moved.st_mtime_ns) != (file.inode, file.bytes, times[1]) or not stat.S_ISREG(
            moved.st_mode
        ):
            _put_back(Path(target), Path(path))
            raise Replaced

    def _refuse(self, file: Waiting, result: Admission, reason: str) -> None:
        result.refused[file.name] = (file.bytes, file.modified_ns, reason)

    def _take_out(self, file: Waiting, result: Admission, how: Callable[[], None]) -> bool:
        """Take a file that was read out of landing, unless it is another by now; whether it is out."""
        try:
            if file.changed():
                result.left.append(Left(file.name, "still being written"))
                return False
            how()
        except FileNotFoundError:
            return False
        except Replaced:
            result.left.append(Left(file.name, "replaced while it was admitted"))
            return False
        except PermissionError:
            self._refuse(file, result, "belongs to another user: chown it, or land it with `invoice-platform land`")
            return False
        return True


class Replaced(Exception):
    """What was moved is not the file that was read."""


def _put_back(moved: Path, path: Path) -> None:
    """Undo a move; what has come to its old name meanwhile is not replaced, unless it is an empty folder by a folder."""
    if stat.S_ISDIR(moved.lstat().st_mode):
        os.rename(moved, path)
        return
    while True:
        try:
            os.link(moved, path, follow_symlinks=False)
            break
        except FileExistsError:
            path = path.with_name(f"{path.name}-")
    moved.unlink()


def open_landed(path: str | Path) -> IO[bytes]:
    """Open a file for reading: not through a symbolic link, and without waiting for the other end should it be a pipe."""
    return os.fdopen(os.open(path, OPENING), "rb", buffering=0)


def scan_folder(folder: Path) -> Scan:
    """What lies in a landing folder, judged by name and state alone."""
    scan = Scan()
    place = str(folder)
    try:
        entries = list(os.scandir(place))
    except FileNotFoundError:
        raise PlatformError(
            f"landing folder {folder} is missing: create it (mkdir -p), land a file with "
            "`invoice-platform land FILE`, or set INVOICE_PLATFORM_ROOT to where it is"
        ) from None
    for entry in entries:
        try:
            reason, seen = _why_left(entry)
        except FileNotFoundError:
            continue  # its producer took it away again
        if reason is not None:
            scan.left.append(Left(entry.name, reason))
        else:
            scan.waiting.append(Waiting(seen.st_mtime_ns, entry.name, place, seen.st_size, seen.st_ino))
    scan.waiting.sort()  # by time, then by name
    scan.left.sort(key=lambda f: f.name)
    return scan


def _why_left(entry: os.DirEntry[str]) -> tuple[str | None, os.stat_result]:
    """Why a file stays in landing, judged without opening it, or None; and its state."""
    seen = entry.stat(follow_symlinks=False)
    name, mode = entry.name.lower(), seen.st_mode
    if not stat.S_ISREG(mode):
        if stat.S_ISLNK(mode):
            return "a symbolic link is not followed: land the file itself", seen
        return "a folder: land the files in it" if stat.S_ISDIR(mode) else "not a regular file", seen
    if name.startswith(".") or name.endswith(TEMPORARY_SUFFIXES):
        return "a temporary name: rename it when it is complete", seen
    if name.endswith(UNREADABLE_SUFFIXES):
        return "packed in a way that is not read: land it plain or as .gz", seen
    if seen.st_size == 0:
        return "empty", seen
    if mode & READABLE != READABLE and not os.access(entry.path, os.R_OK):
        return "not readable: give this user read permission", seen
    return None, seen


def being_written(path: str | Path) -> bool:
    """Whether some process has the file open for writing.

    Linux grants a read lease only on a file that nobody has open for writing. Where leases do not work (another
    system, a network file system, someone else's file) a file changed in the last `SETTLE_SECONDS` counts as being written.
    """
    import fcntl
    import signal

    file = os.open(path, OPENING)
    try:
        # Should a writer come while the lease is held, the signal it brings is one that is ignored by default.
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except (OSError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno == errno.EAGAIN:
            return True
        changed = os.fstat(file)
        return time.time() - max(changed.st_ctime, changed.st_mtime) < SETTLE_SECONDS
    finally:
        os.close(file)
    return False


class _RecordCounter:
    """Counts the lines that are not blank in a file fed chunk by chunk, in bounded memory."""

    def __init__(self) -> None:
        self._ended = 0
        self._begun = False
        # Of the line that the last chunk broke off in:
        self._filled = False
        self._number = 1
        self._bytes = 0

    def feed(self, chunk: bytes) -> None:
        if not self._begun:
            chunk, self._begun = chunk.removeprefix(b"\xef\xbb\xbf"), True  # as Spark's reader does
        first, *others = chunk.split(b"\n")
        self._bytes += len(first)
        if self._bytes > MAX_LINE_BYTES:  # at once: it may go on for ever, packed
            raise NotThisFormat(
                f"line {self._number} is longer than {MAX_LINE_BYTES:,} bytes: end each record with a newline, "
                "or raise MAX_LINE_BYTES (streaming/settings.py)"
            )
        if others:
            self._number, self._bytes = self._number + len(others), len(others[-1])
        self._filled = self._filled or bool(first and not first.isspace())
        for line in others:
            self._ended += self._filled
            self._filled = bool(line and not line.isspace())

    @property
    def records(self) -> int:
        return self._ended + self._filled


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk


class NotThisFormat(Exception):
    """A file is not as its landing folder takes files; the text says what it is or lacks."""


def read_landed(path: str | Path, landed_name: str, format: FileFormat = "text") -> tuple[str, int]:
    """Key of a landed file (32 hex digits, of its landed name and content) and its records.

    Records are lines that are not blank, or the rows of a Parquet file. A `.gz` is counted as Spark will read it: unpacked.

    Raises
    ------
    NotThisFormat
        For a Parquet file that cannot be read as one, at which Spark would stop the stream for good; for a line that is too long.
    """
    digest = hashlib.blake2b(os.fsencode(landed_name) + b"\0", digest_size=16)
    counter = _RecordCounter()
    lines = format != "parquet"
    packed = lines and os.fspath(path).lower().endswith(".gz")
    with open_landed(path) as file:
        for chunk in _chunks(file):
            digest.update(chunk)
            if lines and not packed:
                counter.feed(chunk)
        file.seek(0)  # the same file again, whatever has its name by now
        if not lines:
            return digest.hexdigest(), _parquet_rows(file)
        if packed:
            with gzip.open(file, "rb") as unpacked:
                for chunk in iter(lambda: unpacked.read(CHUNK_BYTES), b""):
                    counter.feed(chunk)
    return digest.hexdigest(), counter.records


def _parquet_rows(file: IO[bytes]) -> int:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.read_metadata(file).num_rows
    except pa.ArrowInvalid as error:
        raise NotThisFormat(f"not a Parquet file: {first_line(error, 120)}") from None


def safe_name(name: str) -> str:
    """`name` with everything that a path, a URL or Spark could trip over replaced by `_`."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", os.fsencode(name).decode("ascii", "replace"))[-150:]
    return re.sub(r"(?i)\.gz$", ".gz", safe)  # Spark unpacks by this very ending


def land(file: Path, folder: Path) -> Path:
    """Copy a file into a landing folder so that it appears there in one step, whole; its new path.

    Raises
    ------
    PlatformError
        When the file cannot be read, or another of its name still waits there.
    """
    if not file.is_file():
        raise PlatformError(f"{file}: no such file to land")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / file.name
    partial = folder / f".{file.name[:100]}.{os.getpid()}.tmp"
    try:
        partial.unlink(missing_ok=True)
        with file.open("rb") as source, partial.open("xb") as copy:  # a link that lies there is not written through
            shutil.copyfileobj(source, copy)
        os.link(partial, target)  # unlike a rename, refuses to replace a file that waits
    except FileExistsError:
        raise PlatformError(
            f"{target} is still waiting to be admitted: run `invoice-platform run ingest_invoices`, or give the file another name"
        ) from None
    except OSError as error:
        raise PlatformError(f"{file} could not be landed in {folder}: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
    return target
