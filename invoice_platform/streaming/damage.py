"""Whether a file of Spark's or Delta's is whole: told from its form and from the checksum beside it, without Spark."""

from __future__ import annotations

import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from invoice_platform.errors import PlatformError

_CHECKSUM = re.compile(r"\.(.+)\.crc")


@dataclass(frozen=True)
class Damage:
    """A file or folder that is not as its writer left it."""

    file: Path
    what: str
    """What is wrong with it, in words that follow `is`."""

    def __str__(self) -> str:
        return f"{self.file} is {self.what}"


class Damaged(PlatformError):
    """A stream cannot go on because of a damaged file; nothing was read or written.

    Parameters
    ----------
    doing : str
        What was about to be done, e.g. `stream 'invoices'`.
    damage : Damage
        The file, and what is wrong with it.
    stream : str
        The stream to repair: the one whose checkpoint or table it is.
    """

    def __init__(self, doing: str, damage: Damage, stream: str) -> None:
        self.damage = damage
        self.stream = stream
        super().__init__(
            f"{doing}: {damage}: run `invoice-platform repair {stream}`, which proves from the table what was committed, "
            "shows its plan and asks first"
        )


def checksum_file(file: Path) -> Path:
    """Where Hadoop's local file system keeps the checksum of a file; it need not be there."""
    return file.with_name(f".{file.name}.crc")


def names(folder: Path) -> set[str]:
    """Names of the files that are in a folder, or were: a checksum is left where its file alone was taken away."""
    if not folder.is_dir():
        return set()
    found = {entry.name for entry in folder.iterdir()}
    return {name for name in found if not name.startswith(".")} | {
        match[1] for name in found if (match := _CHECKSUM.fullmatch(name))
    }


def json_file(file: Path, holds: str) -> str | None:
    """What is wrong with a file that is one JSON object with the field `holds`, or None."""
    content, wrong = _read(file)
    if wrong is not None:
        return wrong
    try:
        return None if json.loads(content)[holds] is not None else f"without {holds!r}"
    except (ValueError, KeyError, TypeError):
        return "cut short or no JSON"


def log_file(file: Path) -> str | None:
    """What is wrong with a file of a checkpoint's logs (a version, then a JSON value or `-` a line), or None."""
    content, wrong = _read(file)
    if wrong is not None:
        return wrong
    # The Kafka source puts a zero byte first.
    version, *entries = content.removeprefix(b"\0").splitlines()
    whole = re.fullmatch(rb"v\d+", version) is not None and all(e == b"-" or _is_json(e) for e in entries)
    return None if whole and entries else "cut short or changed"


def commit_file(file: Path) -> str | None:
    """What is wrong with a commit of a Delta log (a JSON object a line), or None."""
    content, wrong = _read(file)
    if wrong is not None:
        return wrong
    return None if all(_is_json(line) for line in content.splitlines()) else "cut short"


def parquet_file(file: Path) -> str | None:
    """What is wrong with a Parquet file, as far as its two ends tell, or None."""
    try:
        with file.open("rb") as opened:
            begin = opened.read(4)
            opened.seek(-4, 2)
            return None if begin == opened.read(4) == b"PAR1" else "cut short"
    except FileNotFoundError:
        return "missing"
    except OSError:
        return "empty"  # too short to seek in


def _read(file: Path) -> tuple[bytes, str | None]:
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return b"", "missing"
    except OSError as error:
        return b"", f"unreadable ({error.strerror})"
    if not content:
        return content, "empty"
    return content, "cut short or changed: its checksum differs" if _differs(file, content) else None


def _differs(file: Path, content: bytes) -> bool:
    """Whether the checksum beside a file is of another content; a file without one is taken as it is."""
    try:
        kept = checksum_file(file).read_bytes()
    except OSError:
        return False
    size = int.from_bytes(kept[4:8], "big")
    if kept[:4] != b"crc\0" or size < 1:
        return False  # itself no whole checksum
    chunks = (content[start : start + size] for start in range(0, len(content), size))
    return b"".join(zlib.crc32(chunk).to_bytes(4, "big") for chunk in chunks) != kept[8:]


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
