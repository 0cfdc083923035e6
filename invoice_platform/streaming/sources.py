"""Where a stream reads from. A source says what is new (`pending`) and reads it, as a stream or as a batch.

Adding one: a class with `pending`, `read_stream` and `read_batch`; whatever Spark can read is a `Connector` without one.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from invoice_platform.errors import PlatformError
from invoice_platform.streaming.checkpoint import has_unfinished, last_committed, last_planned, planned_before_last
from invoice_platform.streaming.damage import Damage, Damaged
from invoice_platform.streaming.json_lines import BLANK, from_json, one_document
from invoice_platform.streaming.kafka import KafkaConnection, Offsets, offsets
from invoice_platform.streaming.landing import SEGMENT_FILES, FileFormat, LandingFolder
from invoice_platform.streaming.layout import Layout, segment_name
from invoice_platform.streaming.settings import RunSettings
from invoice_platform.streaming.state import read_state, write_state
from invoice_platform.streaming.tables import Column, Table, facts, latest_version, open_delta, query

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

Service = Literal["kafka", "postgres"]
CORRUPT_RECORD = "_corrupt_record"
"""In what a source of JSON or CSV reads: the text of a line that is not as declared, else null."""


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


@dataclass(frozen=True)
class LandedFiles(Source):
    """Files that producers drop into `landing/<inbox>`, read from `accepted/<stream>`; `.gz` is unpacked.

    Columns: for `text` `value` (string, one line), for the other formats the declared columns, and for `json` and `csv`
    `_corrupt_record` (string, a line that is not as declared; null for a good one); then `source_file` (string,
    `<segment>/<file>`) and `ingested_at` (timestamp, when the file was admitted).
    """

    example: ClassVar[str] = 'LandedFiles("orders", format="csv", columns=ORDERS.columns, options={"header": "true"})'

    inbox: str
    format: FileFormat = "text"
    """`text` (lines, of JSON too), `json` (one document a line), `csv` or `parquet`."""
    columns: tuple[Column, ...] = ()
    """What `json`, `csv` and `parquet` files hold."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Further options of Spark's reader, e.g. `{"header": "true"}`."""
    segment_files: int | None = SEGMENT_FILES
    """Files a segment; None for a stream with state, which cannot leave its checkpoint."""

    def __post_init__(self) -> None:
        if (self.format == "text") == bool(self.columns):
            raise PlatformError(
                f"landing/{self.inbox}: text has no columns and {self.format!r} files need them: "
                "give columns with format 'json', 'csv' or 'parquet' only"
            )

    def landing(self, layout: Layout, stream: str) -> LandingFolder:
        """The inbox and the archive behind it."""
        return LandingFolder(layout, self.inbox, stream, self.segment_files, self.format)

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

    def begun(self, layout: Layout, stream: str, segment: int, table: Path | None) -> str | None:
        """Files of the segment that the ledger has as committed, or, after a run that was killed, rows that the table has."""
        ledger = self.landing(layout, stream).ledger
        through = ledger.drained_through(segment)
        if committed := sum(file_id <= through for file_id, _ in ledger.files(segment).values()):
            return f"{committed} files of segment {segment} went through it"
        since = ledger.first_accepted_ms(segment)
        if table is None or since is None or not tells_files(table):
            return None
        rows = query(
            table,
            # The time lets Delta pass over what is older than the segment by its statistics.
            f"SELECT count(*) AS n FROM t WHERE ingested_at >= to_timestamp_millis({since}) "
            f"AND source_file LIKE '{segment_name(segment)}/%'",
        )
        return f"{n} rows of segment {segment} are in the table" if (n := rows[0]["n"]) else None

    def read_stream(
        self, spark: SparkSession, layout: Layout, stream: str, leg: Leg, settings: RunSettings
    ) -> DataFrame:
        """The leg's segment as a stream, at most so many files, or bytes, a micro-batch."""
        reader = self._described(spark.readStream).options(**settings.file_limits())
        return self._rows(reader.load(str(layout.accepted(stream) / segment_name(leg.segment))))

    def read_batch(self, spark: SparkSession, layout: Layout, stream: str) -> DataFrame:
        """Everything that was ever accepted, as a batch."""
        segments = self.landing(layout, stream).ledger.segments()
        folders = [str(f) for n in segments if (f := layout.accepted(stream) / segment_name(n)).is_dir()]
        return self._rows(self._described(spark.read).load(folders))

    def _described(self, reader: Any) -> Any:
        if self.format in ("text", "json"):  # lines of JSON are parsed by `_rows`, which misses nothing
            return reader.format("text").option("lineSep", "\n")
        ddl = ", ".join(c.ddl for c in self.columns)
        if self.format == "csv":
            reader = reader.option("columnNameOfCorruptRecord", CORRUPT_RECORD)
            ddl += f", `{CORRUPT_RECORD}` string"
        return reader.format(self.format).options(**self.options).schema(ddl)

    def _rows(self, read: DataFrame) -> DataFrame:
        from pyspark.sql import functions as F

        if self.format == "json":
            read = _parsed(read, self.columns, self.options)
        return read.select(
            "*",
            F.substring_index("_metadata.file_path", "/", -2).alias("source_file"),
            # Set at admission and kept by the archive, so that a rebuild gives the same time again.
            F.col("_metadata.file_modification_time").alias("ingested_at"),
        )


def tells_files(table: Path, version: int | None = None) -> bool:
    """Whether each row of a table, now or at a version, says which accepted file it is of."""
    found = open_delta(table, version)
    return found is not None and {"source_file", "ingested_at"} <= {field.name for field in found.schema().fields}


def _read_source_state(layout: Layout, stream: str, first: dict[str, Any]) -> dict[str, Any]:
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


def _parsed(lines: DataFrame, columns: tuple[Column, ...], options: Mapping[str, str]) -> DataFrame:
    """Lines of JSON to the declared columns and `_corrupt_record`; blank lines are passed over."""
    from pyspark.sql import functions as F

    good = F.expr(f"parsed.`{CORRUPT_RECORD}` IS NULL AND parsed IS NOT NULL AND is_valid_utf8(value)") & F.expr(
        one_document("value")
    )
    return (
        lines.where(~F.col("value").rlike(BLANK))
        .withColumn("parsed", from_json("value", columns, CORRUPT_RECORD, options))
        .withColumn("good", good)
        .select(
            *(F.when(F.col("good"), F.col(f"parsed.{c.name}")).alias(c.name) for c in columns),
            F.when(~F.col("good"), F.expr("make_valid_utf8(value)")).alias(CORRUPT_RECORD),
        )
    )


@dataclass(frozen=True, init=False)
class DeltaTable(Source):
    """The rows appended to one or more other tables of the lakehouse, side by side, in those tables' columns.

    A column that one of them lacks is null in its rows. `checkpoints/<stream>/source.json` says which checkpoint is in
    use, from which version of each table it started, and through which version the stream is known to have worked.

    Parameters
    ----------
    tables : Table or str
        A declared table is made, empty, where it is not there yet; one given by name has to be there.
    starting_version : int
        Version from which on to read, instead of the table as it stands and all that follows. A batch reads it whole.
    """

    example: ClassVar[str] = "DeltaTable(INVOICE_LINE_ITEMS)"

    tables: tuple[Table | str, ...]
    starting_version: int | None

    def __init__(self, *tables: Table | str, starting_version: int | None = None) -> None:
        object.__setattr__(self, "tables", tables)
        object.__setattr__(self, "starting_version", starting_version)

    @property
    def names(self) -> tuple[str, ...]:
        """The tables' names."""
        return tuple(table if isinstance(table, str) else table.name for table in self.tables)

    @property
    def tables_read(self) -> tuple[str, ...]:
        """The tables' names."""
        return self.names

    def _state(self, layout: Layout, stream: str) -> dict[str, Any]:
        starting = {} if self.starting_version is None else dict.fromkeys(self.names, self.starting_version)
        first = {"segment": 1, "starting_versions": starting, "drained_versions": {}}
        return _read_source_state(layout, stream, first)

    def _write_state(self, layout: Layout, stream: str, **changes: Any) -> None:
        write_state(layout.source_state(stream), self._state(layout, stream) | changes)

    def _latest(self, layout: Layout) -> dict[str, int]:
        return {name: latest_version(layout.table(name)) for name in self.names}

    def pending(self, layout: Layout, stream: str) -> list[Leg]:
        """One leg when a table has versions not yet worked through."""
        state, latest = self._state(layout, stream), self._latest(layout)
        behind = any(version > state["drained_versions"].get(name, -1) for name, version in latest.items())
        # A table that is not there yet is made, empty, as version 0 before the query reads it.
        return [Leg(state["segment"], {name: max(version, 0) for name, version in latest.items()})] if behind else []

    def current(self, layout: Layout, stream: str) -> Leg:
        """The checkpoint in use, for a query that stays."""
        return Leg(self._state(layout, stream)["segment"])

    def drained(self, layout: Layout, stream: str, leg: Leg) -> None:
        """Write down through which version of each table the stream has worked."""
        self._write_state(layout, stream, drained_versions=leg.through)

    def drained_versions(self, layout: Layout, stream: str) -> dict[str, int]:
        """Through which version of each table the stream is known to have worked; a table not begun is not there."""
        return self._state(layout, stream)["drained_versions"]

    def begun(self, layout: Layout, stream: str, segment: int, table: Path | None) -> str | None:
        """Versions that were worked through with it, or rows of a stream of which nothing else is left."""
        if layout.source_state(stream).exists():
            state = self._state(layout, stream)
            drained = state["drained_versions"]
            if drained != state["starting_versions"]:
                return f"{', '.join(f'{name} up to version {v}' for name, v in drained.items())} went through it"
            return None
        found = facts(table) if table is not None else None
        return f"{found.rows} rows came through it" if found is not None and found.rows else None

    def versions_read(self, layout: Layout, stream: str) -> dict[str, int]:
        """The newest version of each table of which the stream has rows, or may have after a crash; none before it began.

        Raises
        ------
        Damaged
            When its checkpoint does not tell.
        """
        state = self._state(layout, stream)
        read = dict(state["drained_versions"])
        if (planned := last_planned(layout.checkpoint(stream, state["segment"]))) is not None:
            for name, offset in zip(self.names, planned.offsets, strict=False):
                if offset is not None:  # an index below 0: before the version's first file
                    version = offset["reservoirVersion"] - (offset["index"] < 0)
                    read[name] = max(version, read.get(name, -1))
        return read

    def versions_needed(self, layout: Layout, stream: str) -> dict[str, int]:
        """The oldest version of each table of which a query will read the log again; none of a stream that has yet to begin.

        That is where the last micro-batch but one ended, because Spark plans the last one again when it starts.

        Raises
        ------
        Damaged
            When its checkpoint does not tell.
        """
        state = self._state(layout, stream)
        needed: dict[str, int] = state["drained_versions"] | state["starting_versions"]
        if (planned := planned_before_last(layout.checkpoint(stream, state["segment"]))) is not None:
            told = dict(zip(self.names, planned.offsets, strict=False))
            # Without an offset: a table of which nothing was read yet.
            needed = {name: (told.get(name) or {"reservoirVersion": 0})["reservoirVersion"] for name in self.names}
        return needed

    def unread_from(self, layout: Layout, stream: str) -> dict[str, int]:
        """The oldest version of each table that may have rows which were not read; none of a stream that has yet to begin.

        Raises
        ------
        Damaged
            When its checkpoint does not tell.
        """
        state = self._state(layout, stream)
        unread = {name: version + 1 for name, version in state["drained_versions"].items()}
        if (done := last_committed(layout.checkpoint(stream, state["segment"]))) is not None:
            for name, offset in zip(self.names, done.offsets, strict=False):
                unread[name] = max(unread.get(name, 0), offset["reservoirVersion"] if offset is not None else 0)
        return unread

    def begins_late(self, layout: Layout, stream: str) -> bool:
        """Whether a rebuild let the checkpoint in use begin after what the tables held."""
        return bool(read_state(layout.source_state(stream)).get("starting_versions"))

    def restart(self, layout: Layout, stream: str, after: Mapping[str, int] | None) -> None:
        """Leave the checkpoint for a new one.

        Parameters
        ----------
        after : mapping of str to int
            For each table the version after which to read; a commit without data must follow it already, because Delta
            cannot start at a version to come. None: the tables as they stand and all that follows.
        """
        segment = self._state(layout, stream)["segment"] + 1
        first = {name: version + 1 for name, version in (after or {}).items()}
        # The first version to be read is without data, so it counts as worked through.
        self._write_state(layout, stream, segment=segment, starting_versions=first, drained_versions=first)

    def read_stream(
        self, spark: SparkSession, layout: Layout, stream: str, leg: Leg, settings: RunSettings
    ) -> DataFrame:
        """The tables as a stream, at most so many of their files, or bytes, a micro-batch."""
        if leg.segment != (state := self._state(layout, stream))["segment"]:
            raise AssertionError(f"leg of segment {leg.segment}, checkpoint in use {state['segment']}")
        read: list[DataFrame] = []
        for table, name in zip(self.tables, self.names, strict=True):
            _make_there(table, spark, layout, stream)
            reader = spark.readStream.format("delta").options(**settings.file_limits())
            if (version := state["starting_versions"].get(name)) is not None:
                reader = reader.option("startingVersion", version)
            # By path: the catalog of a new session knows no table yet.
            read.append(reader.load(str(layout.table(name))))
        return _side_by_side(read)

    def read_batch(self, spark: SparkSession, layout: Layout, stream: str) -> DataFrame:
        """The tables as they stand."""
        read: list[DataFrame] = []
        for table, name in zip(self.tables, self.names, strict=True):
            _make_there(table, spark, layout, stream)
            read.append(spark.read.format("delta").load(str(layout.table(name))))
        return _side_by_side(read)

    def remedy(self, error: str) -> str | None:
        """Rows that were deleted or changed in a source, columns that were, and a checkpoint of other sources need a rebuild."""
        if any(sign in error for sign in ("DELTA_SOURCE_TABLE_IGNORE_CHANGES", "DELTA_SOURCE_IGNORE_DELETE")):
            return (
                f"rows of {' or '.join(self.names)} were deleted, changed or overwritten, and a stream reads only what is "
                "added: run the rebuild job (`invoice-platform run rebuild_invoices`), after which the streams go on; it makes the "
                "table of landed files from all that was accepted, deleted rows too, and takes other tables as they are"
            )
        if "DELTA_STREAMING_INCOMPATIBLE_SCHEMA_CHANGE" in error:
            return (
                f"a column of {' or '.join(self.names)} was dropped, renamed or given another type after rows came that were not "
                "read: run the rebuild job (`invoice-platform run rebuild_invoices`), which reads the table as it is now; then the "
                "streams go on"
            )
        if "sources in the checkpoint offsets" in error:
            return (
                f"its checkpoint is of other tables than {', '.join(self.names)}: run the rebuild job "
                "(`invoice-platform run rebuild_invoices`), which begins a new one"
            )
        return None


def _make_there(table: Table | str, spark: SparkSession, layout: Layout, stream: str) -> None:
    if isinstance(table, Table):
        table.declare(spark, layout)
    elif latest_version(layout.table(table)) < 0:
        raise PlatformError(
            f"stream {stream!r} reads the Delta table {table!r}, which is not in {layout.lakehouse}: make it first, or "
            "give its declaration (a Table) in place of its name"
        )


def _side_by_side(frames: list[DataFrame]) -> DataFrame:
    first, *others = frames
    for other in others:
        first = first.unionByName(other, allowMissingColumns=True)
    return first


@dataclass(frozen=True, init=False)
class KafkaTopics(Source):
    """Records of Kafka topics, from the earliest on.

    Columns: as Spark's Kafka source gives them: `key` and `value` (binary), `topic`, `partition`, `offset`, `timestamp`,
    `timestampType`, `headers` (array of `key`, `value`). The server and its secrets come from the environment (`KAFKA_…`).

    Parameters
    ----------
    topics : str
        Names of topics, or none and a pattern.
    pattern : str
        A regular expression that the whole name of a topic has to match; topics that come later are read too.
    starting_offsets : str
        Where a new checkpoint begins; Spark's own default, `latest`, would make a first run read nothing.
    """

    example: ClassVar[str] = 'KafkaTopics("orders")'

    topics: tuple[str, ...]
    pattern: str | None
    starting_offsets: Literal["earliest", "latest"]

    services: ClassVar[frozenset[Service]] = frozenset({"kafka"})

    def __init__(
        self,
        *topics: str,
        pattern: str | None = None,
        starting_offsets: Literal["earliest", "latest"] = "earliest",
    ) -> None:
        if bool(topics) == (pattern is not None):
            raise PlatformError("KafkaTopics: give either names of topics or a pattern")
        object.__setattr__(self, "topics", topics)
        object.__setattr__(self, "pattern", pattern)
        object.__setattr__(self, "starting_offsets", starting_offsets)

    def _state(self, layout: Layout, stream: str) -> dict[str, Any]:
        """The checkpoint in use; from where it began, and how many rows the table had then, where a repair said so."""
        return _read_source_state(layout, stream, {"segment": 1, "starting_offsets": None, "rows": 0})

    def committed(self, layout: Layout, stream: str) -> dict[str, dict[int, int]]:
        """Offsets up to which the stream has read, by topic and partition; empty before its first micro-batch."""
        state = self._state(layout, stream)
        last = last_committed(layout.checkpoint(stream, state["segment"]))
        read = last.offsets[0] if last is not None else state["starting_offsets"]
        return {topic: {int(p): offset for p, offset in of_topic.items()} for topic, of_topic in (read or {}).items()}

    def current(self, layout: Layout, stream: str) -> Leg:
        """The checkpoint in use, for a query that stays."""
        return Leg(self._state(layout, stream)["segment"])

    def begun(self, layout: Layout, stream: str, segment: int, table: Path | None) -> str | None:
        """Rows that the table did not have when the checkpoint was made."""
        found = facts(table) if table is not None else None
        came = found.rows - self._state(layout, stream)["rows"] if found is not None else 0
        return f"{came} rows came through it" if came > 0 else None

    def made_anew(self, layout: Layout, stream: str) -> list[str]:
        """Partitions (`topic/number`) whose offsets begin again below where the stream has read."""
        return _gone(self.committed(layout, stream), self.there(layout))[1]

    def restart(self, layout: Layout, stream: str, segment: int, starting: Mapping[str, Any], rows: int) -> None:
        """Leave the checkpoint for a new one, `segment`, that begins at `starting`: offsets by topic and partition."""
        write_state(layout.source_state(stream), {"segment": segment, "starting_offsets": starting, "rows": rows})

    def there(self, layout: Layout) -> dict[str, dict[int, Offsets]]:
        """What the server has, by topic and partition."""
        return offsets(KafkaConnection.of(layout), self.topics or None, self.pattern)

    def _starting(self, state: Mapping[str, Any], there: Mapping[str, Mapping[int, Offsets]]) -> str:
        """Where a new checkpoint begins, as Spark takes it: a word, or every partition by number (-2: its earliest)."""
        if (known := state["starting_offsets"]) is None:
            return self.starting_offsets
        return json.dumps(
            {topic: {str(p): known.get(topic, {}).get(str(p), -2) for p in held} for topic, held in there.items()}
        )

    def pending(self, layout: Layout, stream: str) -> list[Leg]:
        """One leg when a partition holds records beyond the checkpoint's offsets, or lacks some that were not read."""
        committed = self.committed(layout, stream)
        there = self.there(layout)
        new = any(
            held.high > committed.get(topic, {}).get(partition, held.low)
            for topic, partitions in there.items()
            for partition, held in partitions.items()
        )
        return [self.current(layout, stream)] if new or any(_gone(committed, there)) else []

    def read_stream(
        self, spark: SparkSession, layout: Layout, stream: str, leg: Leg, settings: RunSettings
    ) -> DataFrame:
        """The topics as a stream, at most `max_offsets_per_trigger` records a micro-batch.

        Raises
        ------
        PlatformError
            When records that were not read have expired and the run was not told to accept that.
        """
        there = self.there(layout)
        expired, anew = _gone(self.committed(layout, stream), there)
        if anew:
            raise PlatformError(
                f"stream {stream!r}: {', '.join(anew)} was deleted or made anew, so its offsets begin again: run "
                f"`invoice-platform repair {stream}` to read all that it now holds from the beginning"
            )
        if expired and settings.fail_on_data_loss:
            told = ", ".join(f"{'all' if n is None else n} of {partition}" for partition, n in expired.items())
            raise PlatformError(
                f"stream {stream!r}: Kafka no longer has records that were not read ({told}): keep them longer "
                "(the topic's retention.ms), and set fail_on_data_loss to false for one run (`--no-fail-on-data-loss`) to go "
                "on with what is there; the loss is then counted"
            )
        reader = (
            self._described(spark.readStream, KafkaConnection.of(layout))
            .option("startingOffsets", self._starting(self._state(layout, stream), there))
            .option("maxOffsetsPerTrigger", settings.max_offsets_per_trigger)
            .option("failOnDataLoss", settings.fail_on_data_loss)
        )
        return reader.load()

    def read_batch(self, spark: SparkSession, layout: Layout, stream: str) -> DataFrame:
        """All records that the topics hold now."""
        return self._described(spark.read, KafkaConnection.of(layout)).load()

    def _described(self, reader: Any, connection: KafkaConnection) -> Any:
        reader = reader.format("kafka").options(**connection.spark_options()).option("includeHeaders", True)
        if self.pattern is not None:
            return reader.option("subscribePattern", self.pattern)
        return reader.option("subscribe", ",".join(self.topics))

    def lost(self, progress: Mapping[str, Any]) -> int:
        """Offsets that a micro-batch passed over without a record; a topic that is compacted has such by itself.

        None are counted in a micro-batch in which a partition is new, because nobody says where it began.
        """
        start, end = progress["startOffset"], progress["endOffset"]
        if not start or not end:
            return 0
        passed = sum(
            offset - start[topic][partition]
            for topic, partitions in end.items()
            for partition, offset in partitions.items()
            if partition in start.get(topic, {})
        )
        new = any(p not in start.get(topic, {}) for topic, partitions in end.items() for p in partitions)
        return 0 if new else max(passed - progress["numInputRows"], 0)

    def remedy(self, error: str) -> str | None:
        """Records that expired while the query ran."""
        if "failOnDataLoss" in error or "data may have been lost" in error.lower() or "KAFKA_DATA_LOSS" in error:
            return "set fail_on_data_loss to false for one run to go on with what is there: the loss is then counted"
        return None


def _gone(
    committed: Mapping[str, Mapping[int, int]], there: Mapping[str, Mapping[int, Offsets]]
) -> tuple[dict[str, int | None], list[str]]:
    """What was not read and is not there any more.

    Returns
    -------
    tuple
        Records by `topic/partition`, None for a partition that was deleted; and partitions that were made anew.
    """
    expired: dict[str, int | None] = {}
    anew: list[str] = []
    for topic, partitions in committed.items():
        for partition, offset in partitions.items():
            held = there.get(topic, {}).get(partition)
            if held is None:
                expired[f"{topic}/{partition}"] = None
            elif held.high < offset:
                anew.append(f"{topic}/{partition}")
            elif held.low > offset:
                expired[f"{topic}/{partition}"] = held.low - offset
    return expired, anew


@dataclass(frozen=True)
class Rate(Source):
    """Numbered rows, for demonstrations and load tests: `rows` each micro-batch.

    Columns: `timestamp` (timestamp), `value` (bigint, from 0, each number once).
    """

    example: ClassVar[str] = "Rate(rows=1_000)"

    rows: int = 1_000

    def pending(self, layout: Layout, stream: str) -> list[Leg]:
        """There is always one more micro-batch."""
        return [Leg(1)]

    def read_stream(
        self,
        spark: SparkSession,
        layout: Layout,
        stream: str,
        leg: Leg,
        settings: RunSettings,
    ) -> DataFrame:
        """`rows` rows each micro-batch; Spark's plain `rate` gives an availableNow run none."""
        return spark.readStream.format("rate-micro-batch").option("rowsPerBatch", self.rows).load()

    def read_batch(self, spark: SparkSession, layout: Layout, stream: str) -> DataFrame:
        """A rate has no end."""
        raise PlatformError(f"stream {stream!r} reads a rate, which has no end: it has no batch twin")


@dataclass(frozen=True)
class Connector(Source):
    """Whatever else Spark can read as a stream: a format and its options, or a Python data source.

    Columns: the connector's own.
    """

    example: ClassVar[str] = 'Connector("socket", options={"host": "localhost", "port": "9999"})'

    format: str
    options: Mapping[str, str] = field(default_factory=dict)
    schema: str | None = None
    """DDL, for a format that wants one."""
    data_source: type[Any] | None = None
    """A `pyspark.sql.datasource.DataSource` of that name, registered before it is read."""

    def pending(self, layout: Layout, stream: str) -> list[Leg]:
        """Only Spark can ask the connector, so each run does.

        Twice after a crash: Spark's way to give a connector an end (most know none) then finishes the planned micro-batch alone.
        """
        return [Leg(1)] * (2 if has_unfinished(layout.checkpoint(stream, 1)) else 1)

    def read_stream(
        self,
        spark: SparkSession,
        layout: Layout,
        stream: str,
        leg: Leg,
        settings: RunSettings,
    ) -> DataFrame:
        """The connector's stream; how much a micro-batch takes is one of its own options."""
        return self._described(spark, spark.readStream).load()

    def read_batch(self, spark: SparkSession, layout: Layout, stream: str) -> DataFrame:
        """The connector's batch."""
        return self._described(spark, spark.read).load()

    def _described(self, spark: SparkSession, reader: Any) -> Any:
        if self.data_source is not None:
            spark.dataSource.register(self.data_source)
        reader = reader.format(self.format).options(**self.options)
        return reader.schema(self.schema) if self.schema is not None else reader


SOURCES: tuple[type[Source], ...] = (LandedFiles, DeltaTable, KafkaTopics, Rate, Connector)
