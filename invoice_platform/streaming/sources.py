"""Where a stream reads from. A source says what is new (`pending`) and reads it, as a stream or as a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from invoice_platform.streaming.landing import SEGMENT_FILES, LandingFolder
from invoice_platform.streaming.layout import Layout, segment_name
from invoice_platform.streaming.state import read_state, write_state
from invoice_platform.streaming.tables import latest_version

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


@dataclass(frozen=True)
class Leg:
    """A piece of work with one checkpoint: what a single streaming query reads."""

    segment: int
    """Number of the checkpoint: `checkpoints/<stream>/<segment>`."""
    through: int
    """How far `drained` may be set once the query is through: a file id or a table version."""
    files: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class LandedFiles:
    """Files that producers drop into `landing/<inbox>`, read line by line from `accepted/<stream>`.

    Columns: `value` (string, one line), `source_file` (string, `<segment>/<file>`), `ingested_at` (timestamp, when
    the file was admitted).
    """

    inbox: str
    segment_files: int | None = SEGMENT_FILES
    """Files a segment; None for a stream with state, which cannot leave its checkpoint."""

    def landing(self, layout: Layout, stream: str) -> LandingFolder:
        """The inbox and the archive behind it."""
        return LandingFolder(layout, self.inbox, stream, self.segment_files)

    def pending(self, layout: Layout, stream: str) -> list[Leg]:
        """One leg for each segment that holds files not yet worked through, oldest first."""
        return [Leg(p.segment, p.through, p.files, p.bytes) for p in self.landing(layout, stream).ledger.pending()]

    def current(self, layout: Layout, stream: str) -> Leg:
        """The open segment, for a query that stays."""
        landing = self.landing(layout, stream)
        segment = landing.ledger.open_segment(self.segment_files)
        (landing.accepted / segment_name(segment)).mkdir(parents=True, exist_ok=True)
        return Leg(segment, 0)

    def drained(self, layout: Layout, stream: str, leg: Leg) -> None:
        """Write down that the leg's files are committed."""
        self.landing(layout, stream).ledger.drained(leg.segment, leg.through)

    def read_stream(self, spark: SparkSession, layout: Layout, stream: str, leg: Leg, max_files: int) -> DataFrame:
        """The leg's segment as a stream, at most `max_files` files a micro-batch."""
        reader = spark.readStream.format("text").option("lineSep", "\n").option("maxFilesPerTrigger", max_files)
        return _lines(reader.load(str(layout.accepted(stream) / segment_name(leg.segment))))

    def read_batch(self, spark: SparkSession, layout: Layout, stream: str) -> DataFrame:
        """Everything that was ever accepted, as a batch."""
        segments = self.landing(layout, stream).ledger.segments()
        folders = [str(f) for n in segments if (f := layout.accepted(stream) / segment_name(n)).is_dir()]
        return _lines(spark.read.format("text").option("lineSep", "\n").load(folders))


def _lines(text: DataFrame) -> DataFrame:
    from pyspark.sql import functions as F

    return text.select(
        "value",
        F.regexp_extract("_metadata.file_path", "[^/]+/[^/]+$", 0).alias("source_file"),
        # Set at admission and kept by the archive, so that a rebuild gives the same time again.
        F.col("_metadata.file_modification_time").alias("ingested_at"),
    )


@dataclass(frozen=True)
class DeltaTable:
    """The rows appended to another table of the lakehouse, in that table's columns.

    `checkpoints/<stream>/source.json` says which checkpoint is in use, from which version of the table it started,
    and through which version the stream is known to have worked.
    """

    table: str

    def _state(self, layout: Layout, stream: str) -> dict[str, Any]:
        first = {"segment": 1, "starting_version": None, "drained_version": -1}
        return first | read_state(layout.checkpoints / stream / "source.json")

    def _write_state(self, layout: Layout, stream: str, **changes: Any) -> None:
        write_state(layout.checkpoints / stream / "source.json", self._state(layout, stream) | changes)

    def pending(self, layout: Layout, stream: str) -> list[Leg]:
        """One leg when the table has versions not yet worked through."""
        state = self._state(layout, stream)
        latest = latest_version(layout.table(self.table))
        return [Leg(state["segment"], latest)] if latest > state["drained_version"] else []

    def current(self, layout: Layout, stream: str) -> Leg:
        """The checkpoint in use, for a query that stays."""
        return Leg(self._state(layout, stream)["segment"], 0)

    def drained(self, layout: Layout, stream: str, leg: Leg) -> None:
        """Write down through which version the stream has worked."""
        self._write_state(layout, stream, drained_version=leg.through)

    def restart_after(self, layout: Layout, stream: str, version: int) -> None:
        """Leave the checkpoint for a new one that reads what comes after `version` of the table.

        `version` must be followed by a commit already (Delta cannot start at a version to come).
        """
        segment = self._state(layout, stream)["segment"] + 1
        self._write_state(layout, stream, segment=segment, starting_version=version + 1, drained_version=version)

    def read_stream(
        self,
        spark: SparkSession,
        layout: Layout,
        stream: str,
        leg: Leg,  # noqa: ARG002
        max_files: int,
    ) -> DataFrame:
        """The table as a stream, at most `max_files` of its files a micro-batch."""
        reader = spark.readStream.format("delta").option("maxFilesPerTrigger", max_files)
        starting = self._state(layout, stream)["starting_version"]
        if starting is not None:
            reader = reader.option("startingVersion", starting)
        # By path: the catalog of a new session knows no table yet.
        return reader.load(str(layout.table(self.table)))

    def read_batch(self, spark: SparkSession, layout: Layout, stream: str) -> DataFrame:  # noqa: ARG002
        """The table as it stands."""
        return spark.read.format("delta").load(str(layout.table(self.table)))
