"""Whatever else Spark reads: a rate of rows, any connector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from invoice_platform.errors import PlatformError
from invoice_platform.streaming.checkpoint import has_unfinished
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.settings import RunSettings
from invoice_platform.streaming.sources.source import Leg, Source

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


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
