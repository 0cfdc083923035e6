"""What is deleted of tables and checkpoints because nobody will read it again, and what stays because a stream still may.

Stay: every version of a table that a stream has yet to read, or read in its last micro-batch (Spark plans that again when it
starts); the last two checkpoints of a table's log and the commits since, from which a repair reads; the checkpoint of every
segment that is open or not worked through. Replay: what is deleted is needed by none of what stays, in any order.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from invoice_platform.streaming.damage import Damaged, parquet_file
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.sources import DeltaTable, LandedFiles, checkpoints
from invoice_platform.streaming.stream import Stream
from invoice_platform.streaming.tables import checkpoints_of, commit_path, last_checkpoint, latest_version

RETAIN_HOURS = 168
"""A week: Delta's own least, too."""
LOG_RETAIN_HOURS = 24
"""Delta's own is 30 days: at a run a minute 43,000 commits a table, whose names Spark lists at each start."""
NIGHT_HOURS = 24
"""Between one maintenance and the next."""
HOUR_SECONDS = 3_600
_OF_VERSION = re.compile(r"\.?(\d{20})\.")


def needed_from(table: str, streams: Iterable[Stream], layout: Layout) -> int:
    """The oldest version of a table that a stream still needs of its log; 0 where a checkpoint does not tell."""
    needed = [latest_version(layout.table(table))]
    for stream in streams:
        if isinstance(stream.source, DeltaTable) and table in stream.source.names:
            try:
                needed.append(stream.source.versions_needed(layout, stream.name).get(table, needed[0]))
            except Damaged:
                return 0
    return max(min(needed), 0)


def behind(
    table: str, streams: Iterable[Stream], layout: Layout, hours: float, *, now: float | None = None
) -> list[str]:
    """Streams that have yet to read what came into a table that long ago: its data files must stay."""
    before = (time.time() if now is None else now) - hours * HOUR_SECONDS
    found: list[str] = []
    for stream in streams:
        if not isinstance(stream.source, DeltaTable) or table not in stream.source.names:
            continue
        try:
            unread = stream.source.unread_from(layout, stream.name).get(table)
            if unread is None or unread > latest_version(layout.table(table)):
                continue
            commit = commit_path(layout.table(table), unread)
            if not commit.exists() or commit.stat().st_mtime < before:
                found.append(stream.name)
        except Damaged:
            found.append(stream.name)
    return found


def trim_log(path: Path, needed: int, hours: float = LOG_RETAIN_HOURS, *, now: float | None = None) -> int:
    """Delete the commits and checkpoints of a Delta log that come before a checkpoint of that age; how many files.

    Delta itself does so when it writes a checkpoint, by days (`delta.logRetentionDuration`), and looks at no stream. The
    checksums of all commits before the last checkpoint but one go at any age: who reads an old version can do without, and
    whatever reads or writes the table lists every name.

    Parameters
    ----------
    needed : int
        A version that has to stay, with all that come after it.
    """
    log, before = path / "_delta_log", (time.time() if now is None else now) - hours * HOUR_SECONDS
    last = last_checkpoint(path)
    found = checkpoints_of(path)
    if last not in found or parquet_file(found[last]) is not None:
        return 0
    # The last one stays with one before it, from which a repair reads when the last is damaged.
    whole = [number for number, file in found.items() if number < last and parquet_file(file) is None]
    first = max((n for n in whole if n <= needed and found[n].stat().st_mtime < before), default=0)
    unsummed = max(whole, default=0)
    # Oldest first, so that an interruption leaves a log without holes.
    gone = sorted(
        (version, file)
        for file in log.iterdir()
        if (m := _OF_VERSION.match(file.name))
        and ((version := int(m[1])) < first or (version < unsummed and file.suffix == ".crc"))
    )
    for _, file in gone:
        file.unlink(missing_ok=True)
    return len(gone)


def trim_checkpoints(stream: Stream, layout: Layout, hours: float = RETAIN_HOURS, *, now: float | None = None) -> int:
    """Delete checkpoints that no query will be started with again; how many. The caller holds the stream's lock.

    Those are of segments that are closed and worked through, and those that a rebuild or a repair has left for a new one. The
    newest always stays, because its number tells the next one's.
    """
    before = (time.time() if now is None else now) - hours * HOUR_SECONDS
    if layout.repair_note(stream.name).exists() or any(layout.staging.glob("*.json")):
        return 0  # whoever finishes what was begun may look for them
    if isinstance(stream.source, LandedFiles):
        working = stream.source.landing(layout, stream.name).ledger.working()
    else:
        working = [stream.source.current(layout, stream.name).segment]
    there = checkpoints(layout, stream.name)
    # A number above those in use is of a rebuild that is under way.
    ended = [n for n in there[:-1] if n not in working and n < max(working, default=there[-1])]
    old = [path for n in ended if _last_change(path := layout.checkpoint(stream.name, n)) < before]
    for path in old:
        shutil.rmtree(path)
    return len(old)


def _last_change(checkpoint: Path) -> float:
    """When something was last written into a checkpoint."""
    return max((file.stat().st_mtime for file in (checkpoint, *checkpoint.iterdir())), default=0.0)
