"""What the platform raises when a person has to act: one line that names the setting and the remedy."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SAYS_NOTHING = ("Exception thrown in awaitResult", "Job aborted")
_WRAPPED = "[TASK_WRITE_FAILED]"
"""How Spark begins what a write of Delta's met, of which it gives a client neither text nor cause."""
LOG_BYTES = 1 << 20
"""How far back the cause of an error is looked for in Spark's log."""


class PlatformError(Exception):
    """Something a person can mend: the message is one line and names the setting and the remedy."""


class StreamLocked(PlatformError):
    """Another run holds the stream's checkpoint.

    Parameters
    ----------
    stream : str
        Name of the stream.
    holder : str
        Who holds it, in words: run, process id, host, since when.
    """

    def __init__(self, stream: str, holder: str) -> None:
        self.stream = stream
        self.holder = holder
        super().__init__(
            f"the checkpoint of stream {stream!r} is held by {holder}: wait for that run to end, or stop it, then run again"
        )


class StreamFailed(PlatformError):
    """A streaming query ended with an error; nothing of its last micro-batch was committed.

    Parameters
    ----------
    stream : str
        Name of the stream.
    cause : BaseException
        What Spark said; its first line becomes part of the message.
    log : str
        Where the full account is.
    remedy : str
        What a person has to do, where the next run would fail alike.
    """

    def __init__(self, stream: str, cause: BaseException, log: str, remedy: str | None = None) -> None:
        self.stream = stream
        self.cause = cause
        said = first_line(cause)
        if said.startswith(_WRAPPED):
            said = _logged_cause(str(cause), Path(log)) or said
        what_next = "what was committed stays, and the next run goes on from there"
        super().__init__(
            f"stream {stream!r} failed: {f'{remedy}: ' if remedy else ''}{said} "
            f"(full account in {log}; {what_next if remedy is None else 'what was committed stays'})"
        )


def first_line(error: BaseException, limit: int = 500) -> str:
    """The line that says most in an error's text, at most `limit` characters, without a stack trace.

    That is what the platform itself said in a Python process of Spark's, else what the innermost cause said where the text
    names causes and begins with none, else the first line.
    """
    text = str(error)
    if ours := re.findall(r"^.*?invoice_platform\.errors\.\w+: (.+)$", text, re.MULTILINE):
        return ours[-1].strip()[:limit]
    if text.lstrip().startswith(_SAYS_NOTHING) and (cause := getattr(error, "cause", None)) is not None:
        return first_line(cause, limit)
    if text.startswith("<_") and (details := re.search(r'details = "(.+)"', text)):  # gRPC's own way to print an error
        return details[1][:limit]
    for line in text.splitlines():
        if line.strip():
            return line.strip()[:limit]
    return type(error).__name__


def _logged_cause(error: str, log: Path, limit: int = 500) -> str | None:
    """What the innermost cause of a query's error says, from Spark's log by the query's run id; None where that is not there."""
    run = re.search(r"runId = [0-9a-f-]+", error)
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return None
    ended = text.rfind(f"{run[0]}] terminated with error") if run is not None else -1
    causes = re.findall(r"^Caused by: (.+)$", text[ended:], re.MULTILINE) if ended >= 0 else []
    if not causes:
        return None
    said = re.sub(r" SQLSTATE: \w+\s*$", "", causes[-1].partition(": ")[2])
    return said.removeprefix("[USER_RAISED_EXCEPTION] ").strip()[:limit] or None


LEAST_BYTES = 1 << 20
"""A disk with less room than this is full."""
MAKE_ROOM = "make room there, then run again"
MAKE_WRITABLE = "make it writable for this user (mount -o remount,rw, chown, chmod), then run again"
_REFUSED = {
    errno.ENOSPC: ("no space left on the device", MAKE_ROOM),
    errno.EDQUOT: ("the disk quota is exceeded", MAKE_ROOM),
    errno.EROFS: ("read-only file system", MAKE_WRITABLE),
    errno.EACCES: ("permission denied", MAKE_WRITABLE),
    errno.EPERM: ("operation not permitted", MAKE_WRITABLE),
    errno.EIO: ("input/output error", "check the disk (dmesg), then run again"),
}
_REFUSED_BY_SQLITE = {
    "disk is full": _REFUSED[errno.ENOSPC],
    "disk I/O error": ("the disk is full or failing", MAKE_ROOM),
    "readonly database": _REFUSED[errno.EROFS],
    "unable to open database file": ("it cannot be opened or made", MAKE_WRITABLE),
}
_REFUSED_BY_SPARK = {
    "No space left on device": _REFUSED[errno.ENOSPC],
    "Disk quota exceeded": _REFUSED[errno.EDQUOT],
    "Read-only file system": _REFUSED[errno.EROFS],
    "Permission denied": _REFUSED[errno.EACCES],
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system refuses of the platform's own writes into one line that names the file and the remedy.

    Parameters
    ----------
    path : Path
        What is written, where the system's error does not say it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        raise _refused(error.filename2 or error.filename or path, *_REFUSED[error.errno]) from error
    except sqlite3.OperationalError as error:
        for sign, why in _REFUSED_BY_SQLITE.items():
            if sign in str(error):
                raise _refused(path, *why) from error
        raise


def refused_by_disk(error: str, *folders: Path) -> str | None:
    """What to do where Spark could not write, or None when that is not why it failed.

    Parameters
    ----------
    error : str
        What Spark said; a failed task's own words are not always in it.
    folders : Path
        Where it was writing: the one that is full or read-only is named, whatever was said.
    """
    refusing = [(folder, why) for folder in folders if (why := _takes_nothing(folder)) is not None]
    for sign, why in _REFUSED_BY_SPARK.items():
        if sign in error:
            named = re.search(rf"(/[^\s():]+) \({sign}\)", error)
            where = (
                named[1] if named else " or ".join(str(folder) for folder, _ in refusing or [(f, why) for f in folders])
            )
            return str(_refused(where, *why))
    return str(_refused(refusing[0][0], *refusing[0][1])) if refusing else None


def _takes_nothing(folder: Path) -> tuple[str, str] | None:
    """Why nothing can be written into a folder, by its file system; None where something can."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return None
    if disk.f_flag & os.ST_RDONLY:
        return _REFUSED[errno.EROFS]
    return _REFUSED[errno.ENOSPC] if disk.f_bavail * disk.f_frsize < LEAST_BYTES else None


def _refused(path: object, what: str, remedy: str) -> PlatformError:
    return PlatformError(f"{path} could not be written, {what}: {remedy}")
