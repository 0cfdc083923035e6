"""What every source is, and what is kept of one beside Spark's checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from invoice_platform.streaming.damage import Damage, Damaged
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.settings import RunSettings
from invoice_platform.streaming.state import read_state

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Service = Literal["kafka", "postgres"]


@dataclass(frozen=True)
class Leg:
    """A piece of work with one checkpoint: what a single streaming query reads."""

    segment: int
    """Number of the checkpoint: `checkpoints/<stream>/<segment>`."""
    through: Any = None
    """How far `drained` may be set once the query is through: a file id, or a version for each table."""
    files: int = 0
    bytes: int = 0


class Source(ABC):
    """Where a stream reads from."""

    example: ClassVar[str]
    """How it is declared."""
    services: ClassVar[frozenset[Service]] = frozenset()
    """Servers that it needs beside the root's own folders."""

    @property
    def tables_read(self) -> tuple[str, ...]:
        """Names of the tables of the lakehouse that it reads."""
        return ()

    @abstractmethod
    def pending(self, layout: Layout, stream: str) -> list[Leg]:
        """What is new, oldest first; asks no Spark."""

    def current(self, layout: Layout, stream: str) -> Leg:
        """The checkpoint in use, for a query that stays."""
        return Leg(1)

    def drained(self, layout: Layout, stream: str, leg: Leg) -> None:  # noqa: B027
        """Write down that a leg is committed; Spark's checkpoint says it for most sources."""

    @abstractmethod
    def read_stream(
        self, spark: SparkSession, layout: Layout, stream: str, leg: Leg, settings: RunSettings
    ) -> DataFrame:
        """A leg as a streaming DataFrame."""

    @abstractmethod
    def read_batch(self, spark: SparkSession, layout: Layout, stream: str) -> DataFrame:
        """All that there is, as a batch."""

    def begun(self, layout: Layout, stream: str, segment: int, table: Path | None) -> str | None:
        """What tells that a checkpoint which is not there was worked with, in words; None when nothing does.

        Asked where a query would begin anew: it would read again what `table` has. A few look-ups, no Spark.
        """
        return None

    def lost(self, progress: Mapping[str, Any]) -> int:
        """Records that a micro-batch should have read and that were not there any more."""
        return 0

    def remedy(self, error: str) -> str | None:
        """What to do about an error of Spark's that comes from this source, or None."""
        return None


def read_source_state(layout: Layout, stream: str, first: dict[str, Any]) -> dict[str, Any]:
    """What `source.json` holds, over `first`. One that is lost leaves the newest checkpoint in use."""
    try:
        kept = read_state(layout.source_state(stream))
    except ValueError:
        damage = Damage(layout.source_state(stream), "empty or cut short")
        raise Damaged(f"stream {stream!r}", damage, stream) from None
    if not kept:
        kept = {"segment": max([1, *checkpoints(layout, stream)])}
    return first | kept


def checkpoints(layout: Layout, stream: str) -> list[int]:
    """Numbers of the checkpoints that a stream has, in order."""
    return sorted(int(folder.name) for folder in (layout.checkpoints / stream).glob("[0-9]*") if folder.is_dir())
