"""Streams over a warm Spark, as a program of its own (a process has one kind of session): ROOT, and settings on stdin.

Prints as JSON what the sinks hold at the end. The connections are put into the environment after the server was started: a
server knows none of them.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql.datasource import DataSource, SimpleDataSourceStreamReader

from invoice_platform.broker import free_port
from invoice_platform.errors import PlatformError
from invoice_platform.server import warm_server
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.session import open_session
from invoice_platform.streaming.settings import RunSettings
from invoice_platform.streaming.sinks import (
    DeltaSink,
    DeltaUpsert,
    FileSink,
    ForeachSink,
    KafkaSink,
    PostgresSink,
    Several,
)
from invoice_platform.streaming.sources import Connector, DeltaTable, KafkaTopics
from invoice_platform.streaming.stream import Stream, run_stream
from invoice_platform.streaming.tables import Column, Table

COLUMNS = (Column("id", "string", "Which one", required=True), Column("value", "bigint", "How much"))


def numbers(name: str) -> Table:
    return Table(name, COLUMNS, "Numbers.")


class WriteFiles:
    """A foreach object that writes a file for each row."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def process(self, row: Any) -> None:
        Path(self.folder).mkdir(exist_ok=True)
        (Path(self.folder) / row["id"]).touch()


class Refuses:
    """One that says no."""

    def process(self, row: Any) -> None:  # noqa: ARG002
        raise PlatformError("the till is closed: open it")


class Reader(SimpleDataSourceStreamReader):
    """Three rows, then none."""

    def initialOffset(self) -> dict[str, int]:
        return {"n": 0}

    def read(self, start: dict[str, int]) -> Any:
        return self.readBetweenOffsets(start, {"n": 3}), {"n": 3}

    def readBetweenOffsets(self, start: dict[str, int], end: dict[str, int]) -> Any:
        return iter([(f"n{n}", n) for n in range(start["n"], end["n"])])


class Three(DataSource):
    """A Python data source."""

    @classmethod
    def name(cls) -> str:
        return "three"

    def schema(self) -> str:
        return "id string, value bigint"

    def simpleStreamReader(self, schema: Any) -> Reader:  # noqa: ARG002
        return Reader()


def tables(session: SparkSession) -> list[str]:
    """Names that the catalog knows."""
    return sorted(table.name for table in session.catalog.listTables() if not table.isTemporary)


def main(layout: Layout, settings: dict[str, Any]) -> dict[str, Any]:
    def summed(rows: Any) -> Any:
        from pyspark.sql import functions as F

        return rows.groupBy("id").agg(F.sum("value").alias("value"))

    def run(stream: Stream) -> None:
        run_stream(stream, lambda: session, layout, RunSettings(), run="test")

    layout.known_tables.mkdir(parents=True)
    (layout.known_tables / "three").touch()  # as an earlier warm Spark left it
    with warm_server(layout, free_port()):
        os.environ.update(settings["environment"])
        session, _ = open_session(layout)
        three, upstream = numbers("three"), DeltaTable(numbers("three"))
        run(Stream("three", Connector("three", data_source=Three), lambda rows: rows, DeltaSink(three)))
        everywhere = Several(
            DeltaSink(numbers("copied")),
            KafkaSink(settings["topic"], key="id"),
            PostgresSink(numbers("numbers"), ("id",)),
            ForeachSink(WriteFiles(str(layout.root / "one_of_several"))),
        )
        run(Stream("copied", upstream, lambda rows: rows, everywhere))
        sums = Stream("sums", upstream, summed, DeltaUpsert(numbers("sums"), ("id",)))
        run(sums)
        session.sql(f"INSERT INTO delta.`{layout.table('three')}` VALUES ('n2', 5)")
        run(sums)
        run(
            Stream(
                "files", KafkaTopics(settings["topic"]), lambda r: r.selectExpr("CAST(key AS STRING) AS id"), FileSink()
            )
        )
        run(Stream("each", upstream, lambda rows: rows, ForeachSink(WriteFiles(str(layout.root / "each")))))
        try:
            run(Stream("refused", upstream, lambda rows: rows, ForeachSink(Refuses())))
            said = ""
        except PlatformError as error:
            said = str(error)
        told = tables(session)
        session.sql("DROP TABLE three")
        three.declare(session, layout)
        try:
            return {
                "told": told,
                "noted": sorted(p.name for p in layout.known_tables.iterdir()),
                "told_once": tables(session),
                "copied": sorted(
                    row["id"] for row in session.read.format("delta").load(str(layout.table("copied"))).collect()
                ),
                "sums": sorted(map(list, session.read.format("delta").load(str(layout.table("sums"))).collect())),
                "files": sorted(r["id"] for r in session.read.parquet(str(layout.exports / "files" / "*")).collect()),
                "one_of_several": sorted(p.name for p in (layout.root / "one_of_several").iterdir()),
                "each": sorted(p.name for p in (layout.root / "each").iterdir()),
                "said": said,
            }
        finally:
            session.stop()


if __name__ == "__main__":
    print(json.dumps(main(Layout.at(sys.argv[1]), json.loads(sys.stdin.read()))))
