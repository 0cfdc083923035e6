"""Files that land, in any of their formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from invoice_platform.errors import PlatformError
from invoice_platform.streaming.json_lines import BLANK, from_json, one_document
from invoice_platform.streaming.landing import SEGMENT_FILES, FileFormat, LandingFolder
from invoice_platform.streaming.layout import Layout, segment_name
from invoice_platform.streaming.session import LINES_OF_TEXT, has_own_classes
from invoice_platform.streaming.settings import RunSettings
from invoice_platform.streaming.sources.source import Leg, Source
from invoice_platform.streaming.tables import Column, open_delta, query

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

CORRUPT_RECORD = "_corrupt_record"
"""In what a source of JSON or CSV reads: the text of a line that is not as declared, else null."""


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
        reader = self._described(spark, spark.readStream).options(**settings.file_limits())
        return self._rows(reader.load(str(layout.accepted(stream) / segment_name(leg.segment))))

    def read_batch(self, spark: SparkSession, layout: Layout, stream: str) -> DataFrame:
        """Everything that was ever accepted, as a batch."""
        segments = self.landing(layout, stream).ledger.segments()
        folders = [str(f) for n in segments if (f := layout.accepted(stream) / segment_name(n)).is_dir()]
        return self._rows(self._described(spark, spark.read).load(folders))

    def _described(self, spark: SparkSession, reader: Any) -> Any:
        if self.format in ("text", "json"):  # lines of JSON are parsed by `_rows`, which misses nothing
            lines = LINES_OF_TEXT if has_own_classes(spark) else "text"
            return reader.format(lines).option("lineSep", "\n").schema("value string")
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
