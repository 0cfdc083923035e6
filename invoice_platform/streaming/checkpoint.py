"""What a checkpoint says of itself, and whether its files are whole, read from Spark's own files without Spark."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invoice_platform.streaming.damage import Damage, Damaged, json_file, log_file, names


@dataclass(frozen=True)
class Committed:
    """The last micro-batch that a checkpoint committed."""

    batch: int
    offsets: list[Any]
    """Where each source stood at its end, in the order of the query's sources."""


def last_committed(checkpoint: Path) -> Committed | None:
    """The last committed micro-batch of a checkpoint, or None where there is none yet.

    Raises
    ------
    Damaged
        When the file that says it is damaged.
    """
    batch = max(batches(checkpoint / "commits"), default=None)
    return None if batch is None else Committed(batch, _offsets(checkpoint, batch))


def last_planned(checkpoint: Path) -> Committed | None:
    """The last micro-batch that was planned, committed or not; None where there is none yet.

    Raises
    ------
    Damaged
        When the file that says it is damaged.
    """
    batch = max(batches(checkpoint / "offsets"), default=None)
    return None if batch is None else Committed(batch, _offsets(checkpoint, batch))


def planned_before_last(checkpoint: Path) -> Committed | None:
    """The micro-batch before the last one that was planned, or the one that was planned; None where there is none yet.

    Raises
    ------
    Damaged
        When the file that says it is damaged.
    """
    two = sorted(batches(checkpoint / "offsets"))[-2:]
    return Committed(two[0], _offsets(checkpoint, two[0])) if two else None


def _offsets(checkpoint: Path, batch: int) -> list[Any]:
    file = checkpoint / "offsets" / str(batch)
    if (wrong := log_file(file)) is not None:
        stream = checkpoint.parent.name
        raise Damaged(f"stream {stream!r}", Damage(file, wrong), stream)
    # The offset log's first line is its format, the second the batch's own settings, then a line a source.
    lines = file.read_text(encoding="utf-8").splitlines()[2:]
    return [None if line == "-" else json.loads(line) for line in lines]


def is_fresh(checkpoint: Path) -> bool:
    """Whether no micro-batch was ever planned with this checkpoint."""
    return not batches(checkpoint / "offsets")


def has_unfinished(checkpoint: Path) -> bool:
    """Whether a micro-batch was planned and not committed: the next query begins with it."""
    return max(batches(checkpoint / "offsets"), default=-1) > max(batches(checkpoint / "commits"), default=-1)


def batches(folder: Path) -> list[int]:
    """Numbers of the micro-batches that have a file in a folder of a checkpoint."""
    return [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []


def checkpoint_id(checkpoint: Path) -> str | None:
    """The id that a checkpoint gave itself, under which Delta's own sink numbers its micro-batches; None without one."""
    file = checkpoint / "metadata"
    return json.loads(file.read_bytes())["id"] if json_file(file, "id") is None else None


def damage(checkpoint: Path) -> list[Damage]:
    """The files of a checkpoint that Spark needs to go on and that are not whole.

    Those are its id, the last two micro-batches' offsets, the last commit, and of a source's log what follows its last
    summary. Older ones stay for a while and are not read again, whatever is in them.
    """
    found: list[tuple[Path, str | None]] = []
    planned, done = numbers(checkpoint / "offsets"), numbers(checkpoint / "commits")
    metadata = checkpoint / "metadata"
    if planned or done or "metadata" in names(checkpoint):
        found.append((metadata, json_file(metadata, "id")))
    last = max(planned | done, default=-1)  # one that is committed was planned
    for batch in range(max(last - 1, 0), last + 1):
        file = checkpoint / "offsets" / str(batch)
        found.append((file, log_file(file)))
    if done:
        file = checkpoint / "commits" / str(max(done))
        found.append((file, log_file(file)))
    for source in sorted(checkpoint.glob("sources/*")):
        found += [(file, log_file(file)) for file in _needed(source, _log_offset(checkpoint, last, source))]
    return [Damage(file, wrong) for file, wrong in found if wrong is not None]


def numbers(folder: Path) -> set[int]:
    """Numbers of the micro-batches that have a file in a folder of a checkpoint, or had one that was taken away."""
    return {int(name) for name in names(folder) if name.isdigit()}


def _log_offset(checkpoint: Path, batch: int, source: Path) -> int:
    """Up to which entry of a source's log a micro-batch reads, -1 where it does not say."""
    if log_file(checkpoint / "offsets" / str(batch)) is not None or not source.name.isdigit():
        return -1
    offsets = _offsets(checkpoint, batch)
    offset = offsets[int(source.name)] if int(source.name) < len(offsets) else None
    return offset.get("logOffset", -1) if isinstance(offset, dict) else -1


def _needed(source: Path, through: int) -> list[Path]:
    """The files of a source's log that its next start reads."""
    entries = {int(m[1]): name for name in names(source) if (m := re.fullmatch(r"(\d+)(\.compact)?", name))}
    summaries = [number for number, name in entries.items() if name.endswith(".compact")]
    first, last = max(summaries, default=0), max([*entries, through])
    return [source / entries.get(number, str(number)) for number in range(first, last + 1)]
