"""Where a stream writes to. A sink starts a query, or writes one micro-batch when it is one of several.

Adding one: a class with `start` (Spark writes) or `write` (the platform does, in `foreachBatch`); whatever Spark can write to
is a `ConnectorSink` without one.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from invoice_platform.errors import PlatformError
from invoice_platform.streaming.checkpoint import is_fresh
from invoice_platform.streaming.kafka import KafkaConnection, offsets
from invoice_platform.streaming.layout import Layout, segment_name
from invoice_platform.streaming.postgres import (
    PostgresConnection,
    create_staging,
    drop_old_staging,
    ensure_table,
    merge_staging,
)
from invoice_platform.streaming.sources import Service
from invoice_platform.streaming.tables import Table, by_path, open_delta

if TYPE_CHECKING:
    from pyspark.sql import DataFrame
    from pyspark.sql.readwriter import DataFrameWriter
    from pyspark.sql.streaming.query import StreamingQuery
    from pyspark.sql.streaming.readwriter import DataStreamWriter

    from invoice_platform.streaming.trigger import Trigger

_NO_DATA = "spark.sql.streaming.noDataMicroBatches.enabled"
OutputMode = Literal["append", "update", "complete"]


@dataclass(frozen=True)
class Query:
    """The query that a sink is asked to start: whose it is and where its checkpoint is."""

    stream: str
    segment: int
    layout: Layout
    trigger: Trigger
    kafka: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Spark's options of the Kafka connection, for a sink that needs it."""
    postgres: PostgresConnection | None = field(default=None, repr=False)
    """The Postgres connection, for a sink that needs it."""

    @classmethod
    def of(cls, stream: str, segment: int, layout: Layout, trigger: Trigger, services: frozenset[Service]) -> Query:
        """With the connections as this process's environment names them: over Connect `write` runs in the server's."""
        return cls(
            stream,
            segment,
            layout,
            trigger,
            KafkaConnection.of(layout).spark_options() if "kafka" in services else {},
            PostgresConnection.from_environment() if "postgres" in services else None,
        )

    @property
    def checkpoint(self) -> Path:
        return self.layout.checkpoint(self.stream, self.segment)

    @property
    def application_id(self) -> str:
        """Who writes, as Delta's `txn` has it: one for each checkpoint, whose micro-batches it numbers."""
        return f"{self.stream}/{segment_name(self.segment)}"


class Sink(ABC):
    """Where a stream writes to."""

    example: ClassVar[str]
    """How it is declared."""
    guarantee: ClassVar[str]
    """What a reader of it sees when a micro-batch is run again."""
    modes: ClassVar[tuple[OutputMode, ...]] = ("append", "update", "complete")
    """Output modes that it can write."""
    output_mode: OutputMode

    def __post_init__(self) -> None:
        if self.output_mode not in self.modes:
            raise PlatformError(
                f"{type(self).__name__}: output_mode={self.output_mode!r}: it writes {' or '.join(map(repr, self.modes))} only"
            )

    @property
    def keeps(self) -> Table | None:
        """The Delta table that it keeps, if it keeps one."""
        return None

    @property
    def sends(self) -> bool:
        """Whether it writes elsewhere than into a table that it keeps."""
        return self.keeps is None

    @property
    def services(self) -> frozenset[Service]:
        """Servers that it needs beside the root's own folders."""
        return frozenset()

    def application(self, query: Query, checkpoint_id: str | None) -> str | None:
        """Under which id the table that it keeps numbers the micro-batches that it has (Delta's `txn`); None if it does not."""
        return None

    def check(self, query: Query) -> None:  # noqa: B027
        """Look, before anything is written, whether it can be written to.

        Raises
        ------
        PlatformError
            When not, with the remedy.
        """

    def writer(self, rows: DataFrame, query: Query) -> DataStreamWriter:
        """The writer of a sink that Spark writes by itself, without what every query has."""
        return rows.writeStream.foreachBatch(lambda batch, number: self.write(batch, number, query))

    def start(self, rows: DataFrame, query: Query) -> StreamingQuery:
        """Start the query; its owner waits for it and stops it."""
        spark = rows.sparkSession
        # Makes the session the active one of this JVM thread, without which Delta's sink fails in any thread but
        # the one that opened the session (DELTA_INVALID_V1_TABLE_CALL).
        spark.createDataFrame([], "nothing int")
        writer = (
            self.writer(rows, query)
            .queryName(query.stream)
            .outputMode(self.output_mode)
            .option("checkpointLocation", str(query.checkpoint))
            .trigger(**query.trigger.arguments)
        )
        # In update mode a micro-batch without rows gives none: it only clears state, which the next one does as well.
        before = spark.conf.get(_NO_DATA, "true") or "true"
        spark.conf.set(_NO_DATA, "false" if self.output_mode == "update" else before)
        try:
            return writer.start()
        finally:
            spark.conf.set(_NO_DATA, before)

    def write(self, batch: DataFrame, number: int, query: Query) -> None:
        """Write one micro-batch; called again with the same number after a crash."""
        raise PlatformError(f"{type(self).__name__} cannot be one of several sinks of stream {query.stream!r}")

    def overwrite(self, rows: DataFrame, layout: Layout) -> None:
        """Replace all that it holds in one step: the batch twin's way to write."""
        if self.keeps is None:
            raise PlatformError(f"{type(self).__name__} keeps no table of its own, so it has no batch twin")
        rows.write.format("delta").mode("overwrite").save(str(layout.table(self.keeps.name)))


@dataclass(frozen=True)
class DeltaSink(Sink):
    """A Delta table that rows are added to (`append`), or that is replaced by the whole result (`complete`)."""

    example: ClassVar[str] = "DeltaSink(ORDERS)"
    guarantee: ClassVar[str] = "exactly once: each commit carries the checkpoint's id and the micro-batch's number"
    modes: ClassVar[tuple[OutputMode, ...]] = ("append", "complete")

    table: Table
    output_mode: OutputMode = "append"

    @property
    def keeps(self) -> Table:
        """The table."""
        return self.table

    def application(self, query: Query, checkpoint_id: str | None) -> str | None:
        """Delta's own sink takes the id that the checkpoint gave itself."""
        return checkpoint_id

    def check(self, query: Query) -> None:
        """As one of several sinks it numbers its micro-batches; see `_refuse_old_application`."""
        _refuse_old_application(self.table, query)

    def writer(self, rows: DataFrame, query: Query) -> DataStreamWriter:
        """Delta's own sink; by path, because the catalog need not know the table."""
        return rows.writeStream.format("delta").option("path", str(query.layout.table(self.table.name)))

    def write(self, batch: DataFrame, number: int, query: Query) -> None:
        """Add a micro-batch, unless the table has it already."""
        if (written := _last_written(self.table, query)) is not None and written >= number:
            # Computed and thrown away: the state of a stream with one (`dropDuplicates`) is made on the way, and without
            # it the micro-batch fails (STATE_STORE_COMMIT_VALIDATION_FAILED).
            batch.write.format("noop").mode("overwrite").save()
            return
        mode = "append" if self.output_mode == "append" else "overwrite"
        _numbered(batch.write.mode(mode), number, query).save(str(query.layout.table(self.table.name)))


def _numbered(writer: DataFrameWriter, number: int, query: Query) -> DataFrameWriter:
    """A Delta writer whose commit says which micro-batch of which checkpoint it is."""
    return writer.format("delta").option("txnAppId", query.application_id).option("txnVersion", number)


def _last_written(table: Table, query: Query) -> int | None:
    """The number of the last micro-batch that this checkpoint said it wrote into a table."""
    found = open_delta(query.layout.table(table.name))
    return found.transaction_version(query.application_id) if found is not None else None


def _refuse_old_application(table: Table, query: Query) -> None:
    """A new checkpoint numbers its micro-batches from 0: Delta would drop those that it has of an old one, in silence."""
    if is_fresh(query.checkpoint) and (written := _last_written(table, query)) is not None:
        raise PlatformError(
            f"stream {query.stream!r}: its checkpoint {query.checkpoint} is new, but table {table.name} was written by an "
            f"earlier one under the same application id (micro-batch {written}): new ones would be dropped, or sums begin "
            f"again. Put the checkpoint back, or run `invoice-platform repair {query.stream}`"
        )


@dataclass(frozen=True)
class DeltaUpsert(Sink):
    """A Delta table with one row a key: each micro-batch replaces the rows of its keys and adds the new ones (SQL MERGE)."""

    example: ClassVar[str] = 'DeltaUpsert(ORDERS, keys=("number",), output_mode="append", newest_by="changed")'
    modes: ClassVar[tuple[OutputMode, ...]] = ("append", "update")
    guarantee: ClassVar[str] = "exactly once: the MERGE sets the same rows to the same values again"

    table: Table
    keys: tuple[str, ...]
    output_mode: OutputMode = "update"
    newest_by: str | None = None
    """In append mode, the column that says which of several rows of a key is kept: the one where it is greatest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = {c.name for c in self.table.columns}
        if unknown := [k for k in (*self.keys, *filter(None, [self.newest_by])) if k not in names]:
            raise PlatformError(f"DeltaUpsert({self.table.name}): no such columns: {', '.join(unknown)}")
        if not self.keys:
            raise PlatformError(f"DeltaUpsert({self.table.name}): give the columns that make a row's key")
        if (self.output_mode == "append") != (self.newest_by is not None):
            raise PlatformError(
                f"DeltaUpsert({self.table.name}): rows of one key come more than once in append mode, and only there: give "
                "newest_by with output_mode='append', and neither otherwise"
            )

    @property
    def keeps(self) -> Table:
        """The table."""
        return self.table

    def check(self, query: Query) -> None:
        """Whether the checkpoint is the one that wrote the table."""
        _refuse_old_application(self.table, query)

    def write(self, batch: DataFrame, number: int, query: Query) -> None:
        """MERGE a micro-batch; the same one again sets the same rows to the same values."""
        spark, path = batch.sparkSession, query.layout.table(self.table.name)
        view = f"micro_batch_of_{query.stream}"
        self._one_a_key(batch).createOrReplaceTempView(view)
        same = " AND ".join(f"t.`{key}` <=> s.`{key}`" for key in self.keys)
        newer = f" AND s.`{self.newest_by}` >= t.`{self.newest_by}`" if self.newest_by else ""
        try:
            spark.sql(
                f"MERGE INTO {by_path(path)} t USING `{view}` s ON {same} "
                f"WHEN MATCHED{newer} THEN UPDATE SET * WHEN NOT MATCHED THEN INSERT *"
            )
        finally:
            spark.catalog.dropTempView(view)
        if _last_written(self.table, query) is None:
            # Who writes this table, once for each checkpoint. A MERGE itself takes it from the session's settings alone,
            # and over Connect all queries of a run share one session.
            nobody = spark.read.format("delta").load(str(path)).limit(0)
            _numbered(nobody.write.mode("append"), number, query).save(str(path))

    def _one_a_key(self, batch: DataFrame) -> DataFrame:
        from pyspark.sql import functions as F

        if self.newest_by is None:
            return batch  # an aggregation in update mode gives each key once
        newest = F.max_by(F.struct("*"), F.col(self.newest_by)).alias("newest")
        return batch.groupBy(*self.keys).agg(newest).select("newest.*")


@dataclass(frozen=True)
class FileSink(Sink):
    """Files under `exports/<stream>/<segment>`: Parquet, JSON or CSV, in folders by column values where asked."""

    example: ClassVar[str] = 'FileSink("csv", partition_by=("city",), options={"header": "true"})'
    guarantee: ClassVar[str] = "exactly once for readers that know `_spark_metadata` (Spark); else at least once"
    modes: ClassVar[tuple[OutputMode, ...]] = ("append",)

    format: Literal["parquet", "json", "csv"] = "parquet"
    partition_by: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    """Further options of Spark's writer, e.g. `{"header": "true"}`."""
    output_mode: OutputMode = "append"

    def folder(self, query: Query) -> Path:
        """Where the files of a checkpoint are."""
        return query.layout.exports / query.stream / segment_name(query.segment)

    def check(self, query: Query) -> None:
        """A new checkpoint on a folder with a log of an old one would have its files dropped in silence."""
        if self.folder(query).exists() and is_fresh(query.checkpoint):
            raise PlatformError(
                f"stream {query.stream!r}: its checkpoint {query.checkpoint} is new, but {self.folder(query)} is of an earlier "
                "one: new micro-batches would be dropped in silence (`_spark_metadata`), or replace old ones. Put the "
                "checkpoint back, or move the folder away"
            )

    def writer(self, rows: DataFrame, query: Query) -> DataStreamWriter:
        """Spark's own file sink."""
        writer = rows.writeStream.format(self.format).options(**self.options)
        writer = writer.option("path", str(self.folder(query)))
        return writer.partitionBy(*self.partition_by) if self.partition_by else writer

    def write(self, batch: DataFrame, number: int, query: Query) -> None:
        """A folder of its own for each micro-batch, replaced when it is run again."""
        writer = batch.write.format(self.format).options(**self.options).mode("overwrite")
        if self.partition_by:
            writer = writer.partitionBy(*self.partition_by)
        writer.save(str(self.folder(query) / f"batch={number:09d}"))


@dataclass(frozen=True)
class KafkaSink(Sink):
    """A Kafka topic: each row as a JSON value, with a key where asked, and a record id in the header `record-id`."""

    example: ClassVar[str] = 'KafkaSink("orders_seen", key="number")'
    guarantee: ClassVar[str] = "at least once: a repeat has the same `record-id`, by which a consumer drops it"
    modes: ClassVar[tuple[OutputMode, ...]] = ("append", "update")

    topic: str
    key: str | None = None
    """Column that becomes the record's key; records of one key keep their order."""
    id: tuple[str, ...] = ()
    """Columns that tell one row from every other; all of them when not given."""
    output_mode: OutputMode = "append"

    @property
    def services(self) -> frozenset[Service]:
        """The server."""
        return frozenset({"kafka"})

    def check(self, query: Query) -> None:
        """Whether the server answers and has the topic."""
        offsets(KafkaConnection.of(query.layout), (self.topic,), None)

    def records(self, rows: DataFrame) -> DataFrame:
        """Rows as `key` (string), `value` (JSON, nulls and all) and `headers`."""
        from pyspark.sql import functions as F

        keep_nulls = {"ignoreNullFields": "false"}
        identity = F.to_json(F.struct(*(self.id or rows.columns)), keep_nulls)
        header = F.struct(F.lit("record-id").alias("key"), F.encode(F.sha2(identity, 256), "UTF-8").alias("value"))
        return rows.select(
            (F.col(self.key).cast("string") if self.key else F.lit(None).cast("string")).alias("key"),
            F.to_json(F.struct("*"), keep_nulls).alias("value"),
            F.array(header).alias("headers"),
        )

    def writer(self, rows: DataFrame, query: Query) -> DataStreamWriter:
        """Spark's own Kafka sink."""
        return self.records(rows).writeStream.format("kafka").options(**self._options(query))

    def write(self, batch: DataFrame, number: int, query: Query) -> None:
        """Send a micro-batch."""
        self.records(batch).write.format("kafka").options(**self._options(query)).save()

    def _options(self, query: Query) -> dict[str, str]:
        return {**query.kafka, "topic": self.topic, "includeHeaders": "true"}


@dataclass(frozen=True)
class PostgresSink(Sink):
    """A Postgres table with one row a key: JDBC into a staging table, then `INSERT … ON CONFLICT DO UPDATE`."""

    example: ClassVar[str] = 'PostgresSink(ORDERS, keys=("number",))'
    guarantee: ClassVar[str] = "the same rows when a micro-batch is run again, in one transaction"

    relation: Table
    """Its columns; made in Postgres where it is not there yet."""
    keys: tuple[str, ...]
    """Columns that make a row's key; a micro-batch holds each key once."""
    output_mode: OutputMode = "append"

    @property
    def services(self) -> frozenset[Service]:
        """The server."""
        return frozenset({"postgres"})

    def check(self, query: Query) -> None:
        """Make the table, and drop what a killed run left half way."""
        assert query.postgres is not None
        ensure_table(query.postgres, self.relation, self.keys)
        drop_old_staging(query.postgres, query.stream)

    def write(self, batch: DataFrame, number: int, query: Query) -> None:
        """Stage a micro-batch and merge it."""
        connection = query.postgres
        assert connection is not None
        staging = create_staging(connection, self.relation, query.stream, number)
        rows = batch.select(*(c.name for c in self.relation.columns))
        rows.write.format("jdbc").mode("append").options(**connection.jdbc_options(), dbtable=staging).save()
        whole = self.output_mode == "complete"
        merge_staging(connection, self.relation, self.keys, staging, replace=whole)


@dataclass(frozen=True)
class ForeachSink(Sink):
    """A Python object of yours with `open(partition_id, epoch_id)`, `process(row)` and `close(error)`."""

    example: ClassVar[str] = 'ForeachSink(Webhook("http://localhost:8080/orders"))'
    guarantee: ClassVar[str] = (
        "at least once: `open` is told partition and micro-batch, by which it can pass over a repeat"
    )

    writes: Any
    output_mode: OutputMode = "append"

    def writer(self, rows: DataFrame, query: Query) -> DataStreamWriter:
        """Spark's own foreach: the object is copied to each partition's Python process."""
        return rows.writeStream.foreach(self.writes)

    def write(self, batch: DataFrame, number: int, query: Query) -> None:
        """A micro-batch as one partition, in the process that writes the other sinks."""
        error: Exception | None = None
        opened = self.writes.open(0, number) if hasattr(self.writes, "open") else True
        try:
            for row in batch.toLocalIterator() if opened else ():
                self.writes.process(row)
        except Exception as raised:
            error = raised
            raise
        finally:
            if hasattr(self.writes, "close"):
                self.writes.close(error)


@dataclass(frozen=True)
class ConnectorSink(Sink):
    """Whatever else Spark can write a stream to, by its format's name: `console` and `memory` for development, others."""

    example: ClassVar[str] = 'ConnectorSink("console")'
    guarantee: ClassVar[str] = "the connector's own"

    format: str
    options: Mapping[str, str] = field(default_factory=dict)
    output_mode: OutputMode = "append"
    data_source: type[Any] | None = None
    """A `pyspark.sql.datasource.DataSource` of that name, registered before it is written to."""

    def writer(self, rows: DataFrame, query: Query) -> DataStreamWriter:
        """The connector's own sink."""
        if self.data_source is not None:
            rows.sparkSession.dataSource.register(self.data_source)
        return rows.writeStream.format(self.format).options(**self.options)

    def write(self, batch: DataFrame, number: int, query: Query) -> None:
        """The connector's way to write a batch."""
        if self.data_source is not None:
            batch.sparkSession.dataSource.register(self.data_source)
        batch.write.format(self.format).options(**self.options).mode("append").save()


@dataclass(frozen=True, init=False)
class Several(Sink):
    """Several sinks of one stream: each micro-batch is computed once and written to one after the other."""

    example: ClassVar[str] = 'Several(DeltaSink(ORDERS), KafkaSink("orders_seen"))'
    guarantee: ClassVar[str] = "each sink's own; a crash between two repeats the first, which drops or marks the repeat"

    sinks: tuple[Sink, ...]

    def __init__(self, *sinks: Sink) -> None:
        modes = {sink.output_mode for sink in sinks}
        if len(modes) != 1:
            raise PlatformError(f"sinks of one stream have one output mode, not {', '.join(sorted(modes)) or 'none'}")
        if len([sink for sink in sinks if sink.keeps is not None]) > 1:
            raise PlatformError("a stream keeps one Delta table: declare a stream for each")
        object.__setattr__(self, "sinks", sinks)
        object.__setattr__(self, "output_mode", modes.pop())

    @property
    def keeps(self) -> Table | None:
        """The table of the one that keeps one."""
        return next((sink.keeps for sink in self.sinks if sink.keeps is not None), None)

    @property
    def sends(self) -> bool:
        """Whether one of them does."""
        return any(sink.sends for sink in self.sinks)

    @property
    def services(self) -> frozenset[Service]:
        """All that they need."""
        return frozenset(service for sink in self.sinks for service in sink.services)

    def application(self, query: Query, checkpoint_id: str | None) -> str | None:
        """The one that the platform gives a table to which rows are added."""
        return query.application_id if any(isinstance(sink, DeltaSink) for sink in self.sinks) else None

    def check(self, query: Query) -> None:
        """Whether each can be written to."""
        for sink in self.sinks:
            sink.check(query)

    def write(self, batch: DataFrame, number: int, query: Query) -> None:
        """Write a micro-batch to each, the first first."""
        batch.persist()
        try:
            for sink in self.sinks:
                sink.write(batch, number, query)
        finally:
            batch.unpersist()

    def overwrite(self, rows: DataFrame, layout: Layout) -> None:
        """The table's batch twin; what was sent elsewhere is not sent again."""
        next((s for s in self.sinks if s.keeps is not None), self.sinks[0]).overwrite(rows, layout)


SINKS: tuple[type[Sink], ...] = (
    DeltaSink,
    DeltaUpsert,
    FileSink,
    KafkaSink,
    PostgresSink,
    ForeachSink,
    ConnectorSink,
    Several,
)
