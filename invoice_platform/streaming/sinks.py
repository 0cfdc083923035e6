"""Where a stream writes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from invoice_platform.streaming.tables import Table

if TYPE_CHECKING:
    from pathlib import Path

    from pyspark.sql import DataFrame
    from pyspark.sql.streaming.query import StreamingQuery

    from invoice_platform.streaming.trigger import Trigger

OutputMode = Literal["append", "complete"]


@dataclass(frozen=True)
class DeltaSink:
    """A Delta table; exactly once, because each commit carries the checkpoint's query id and the micro-batch's number."""

    table: Table
    output_mode: OutputMode = "append"
    """`append` adds rows; `complete` replaces the table with the whole result at each micro-batch."""

    def start(self, rows: DataFrame, checkpoint: Path, trigger: Trigger, name: str) -> StreamingQuery:
        """Start the query; its owner waits for it and stops it."""
        # Makes the session the active one of this JVM thread, without which Delta's toTable fails in any thread but
        # the one that opened the session (DELTA_INVALID_V1_TABLE_CALL).
        rows.sparkSession.createDataFrame([], "nothing int")
        return (
            rows.writeStream.format("delta")  # toTable alone takes the session's default format
            .queryName(name)
            .outputMode(self.output_mode)
            .option("checkpointLocation", str(checkpoint))
            .trigger(**trigger.arguments)
            .toTable(self.table.name)
        )

    def overwrite(self, rows: DataFrame) -> None:
        """Replace the table's rows in one commit: the batch twin's way to write."""
        rows.write.format("delta").mode("overwrite").insertInto(self.table.name)
