"""What a checkpoint says of itself, read from Spark's own files without Spark."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Committed:
    """The last micro-batch that a checkpoint committed."""

    batch: int
    offsets: list[Any]
    """Where each source stood at its end, in the order of the query's sources."""


def last_committed(checkpoint: Path) -> Committed | None:
    """The last committed micro-batch of a checkpoint, or None where there is none yet."""
    batch = max(_batches(checkpoint / "commits"), default=None)
    if batch is None:
        return None
    # The offset log's first line is its format, the second the batch's own settings, then a line a source.
    lines = (checkpoint / "offsets" / str(batch)).read_text(encoding="utf-8").splitlines()[2:]
    return Committed(batch, [None if line == "-" else json.loads(line) for line in lines])


def is_fresh(checkpoint: Path) -> bool:
    """Whether no micro-batch was ever planned with this checkpoint."""
    return not _batches(checkpoint / "offsets")


def has_unfinished(checkpoint: Path) -> bool:
    """Whether a micro-batch was planned and not committed: the next query begins with it."""
    return max(_batches(checkpoint / "offsets"), default=-1) > max(_batches(checkpoint / "commits"), default=-1)


def _batches(folder: Path) -> list[int]:
    return [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
