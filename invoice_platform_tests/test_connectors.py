"""Every source with every sink, each interrupted in the middle and run again; and what each of them does of its own."""

from __future__ import annotations

import gzip
import json
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from pyspark.sql.datasource import DataSource, SimpleDataSourceStreamReader

from invoice_platform.errors import PlatformError, StreamFailed
from invoice_platform.streaming.peek import peek
from invoice_platform.streaming.rebuild import rebuild
from invoice_platform.streaming.settings import RunSettings
from invoice_platform.streaming.sinks import (
    ConnectorSink,
    DeltaSink,
    DeltaUpsert,
    FileSink,
    ForeachSink,
    KafkaSink,
    PostgresSink,
    Several,
    Sink,
)
from invoice_platform.streaming.sources import Connector, DeltaTable, KafkaTopics, LandedFiles, Rate, Source
from invoice_platform.streaming.stream import RunSummary, Stream, run_stream
from invoice_platform.streaming.tables import Column, Table
from invoice_platform_tests.conftest import Platform

if TYPE_CHECKING:
    from invoice_platform_tests.postgres_server import PostgresServer
    from invoice_platform_tests.servers import KafkaServer

pytest_plugins = ["invoice_platform_tests.servers", "invoice_platform_tests.postgres_server"]

COLUMNS = (Column("id", "string", "Which one", required=True), Column("value", "bigint", "How much"))
NUMBERS = Table("numbers", COLUMNS, "Numbers, for the tests.")
ONE = RunSettings(max_files_per_trigger=1, max_offsets_per_trigger=2)


class Interrupted(Exception):
    """What ends a run in the middle."""


@dataclass(frozen=True)
class Place:
    """A root and the servers beside it."""

    platform: Platform
    kafka: KafkaServer
    postgres: PostgresServer
    topic: str
    out_topic: str
    database: str


@dataclass
class From:
    """A source as the tests use it."""

    source: Callable[[Place], Source]
    put: Callable[[Place, Sequence[int]], None]
    """Give it numbers, in a file, a commit, some records of their own."""
    shape: str = "id, value"
    """SQL that makes `id` and `value` of its columns."""
    own: bool = False
    """Whether it makes numbers itself, from 0 on."""


def put_json(platform: Platform, numbers: Sequence[int]) -> None:
    platform.land(f"{numbers[0]}.json", *({"id": f"n{n}", "value": n} for n in numbers), to="numbers")


def put_delta(platform: Platform, numbers: Sequence[int]) -> None:
    rows = [(f"n{n}", n) for n in numbers]
    frame = platform.spark.createDataFrame(rows, "id string, value bigint").coalesce(1)
    frame.write.format("delta").mode("append").save(str(platform.layout.table("upstream")))


class CountedReader(SimpleDataSourceStreamReader):
    """Lines of a text file that grows; offsets are line numbers."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def _lines(self) -> list[str]:
        return self.path.read_text().split() if self.path.exists() else []

    def initialOffset(self) -> dict[str, int]:
        return {"line": 0}

    def read(self, start: dict[str, int]) -> tuple[Iterator[tuple[str, int]], dict[str, int]]:
        lines = self._lines()
        return self.readBetweenOffsets(start, {"line": len(lines)}), {"line": len(lines)}

    def readBetweenOffsets(self, start: dict[str, int], end: dict[str, int]) -> Iterator[tuple[str, int]]:
        return iter([(f"n{n}", int(n)) for n in self._lines()[start["line"] : end["line"]]])

    def commit(self, end: dict[str, int]) -> None:
        pass


class Lines(DataSource):
    """A Python data source of the tests' own."""

    @classmethod
    def name(cls) -> str:
        return "lines_of_numbers"

    def schema(self) -> str:
        return "id string, value bigint"

    def simpleStreamReader(self, schema: Any) -> CountedReader:  # noqa: ARG002
        return CountedReader(self.options["path"])


def put_line(platform: Platform, numbers: Sequence[int]) -> None:
    with (platform.sources / "lines.txt").open("a") as file:
        file.writelines(f"{n}\n" for n in numbers)


def put_kafka(place: Place, numbers: Sequence[int]) -> None:
    place.kafka.send(place.topic, *(json.dumps({"id": f"n{n}", "value": n}) for n in numbers))


SOURCES: dict[str, From] = {
    "files": From(
        lambda _: LandedFiles("numbers", "json", COLUMNS, segment_files=None), lambda p, n: put_json(p.platform, n)
    ),
    "delta": From(lambda _: DeltaTable("upstream"), lambda p, n: put_delta(p.platform, n)),
    "kafka": From(
        lambda p: KafkaTopics(p.topic),
        put_kafka,
        "get_json_object(CAST(value AS STRING), '$.id') AS id, "
        "CAST(get_json_object(CAST(value AS STRING), '$.value') AS BIGINT) AS value",
    ),
    "rate": From(lambda _: Rate(rows=4), lambda *_: None, "concat('n', value) AS id, value", own=True),
    "connector": From(
        lambda p: Connector("lines_of_numbers", {"path": str(p.platform.sources / "lines.txt")}, data_source=Lines),
        lambda p, n: put_line(p.platform, n),
    ),
}


@dataclass
class To:
    """A sink as the tests use it."""

    sink: Callable[[Place], Sink]
    read: Callable[[Place], list[str]]
    """Ids that it holds, repeats and all."""
    exactly_once: bool = True
    aggregates: bool = False


def ids_of_table(platform: Platform) -> list[str]:
    return [row[0] for row in platform.sql("SELECT id FROM {numbers}")]


def ids_of_files(place: Place) -> list[str]:
    folder = place.platform.layout.exports / "numbers" / "000001"
    return [row[0] for row in place.platform.spark.read.parquet(str(folder)).select("id").collect()]


def ids_of_topic(place: Place) -> list[str]:
    by_record: dict[bytes, str] = {}
    for record in place.kafka.read(place.out_topic):
        value = json.loads(record.value or b"")
        assert record.key == value["id"].encode()
        by_record[record.headers["record-id"]] = value["id"]
    return list(by_record.values())


class WriteFiles:
    """A foreach object that writes each row to a file of its own."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def open(self, partition_id: int, epoch_id: int) -> bool:  # noqa: ARG002
        Path(self.folder).mkdir(exist_ok=True)
        return True

    def process(self, row: Any) -> None:
        (Path(self.folder) / f"{row['id']}-{uuid.uuid4()}").touch()

    def close(self, error: Exception | None) -> None:
        pass


SINKS: dict[str, To] = {
    "delta": To(lambda _: DeltaSink(NUMBERS), lambda p: ids_of_table(p.platform)),
    "complete": To(lambda _: DeltaSink(NUMBERS, "complete"), lambda p: ids_of_table(p.platform), aggregates=True),
    "upsert": To(
        lambda _: DeltaUpsert(NUMBERS, ("id",), "append", newest_by="value"), lambda p: ids_of_table(p.platform)
    ),
    "update": To(lambda _: DeltaUpsert(NUMBERS, ("id",)), lambda p: ids_of_table(p.platform), aggregates=True),
    "files": To(lambda _: FileSink("parquet"), ids_of_files),
    "kafka": To(lambda p: KafkaSink(p.out_topic, key="id"), ids_of_topic),
    "postgres": To(
        lambda _: PostgresSink(NUMBERS, ("id",)),
        lambda p: [row[0] for row in p.postgres.rows(p.database, "SELECT id FROM numbers")],
    ),
    "foreach": To(
        lambda p: ForeachSink(WriteFiles(str(p.platform.sources / "out"))),
        lambda p: [f.name.split("-")[0] for f in (p.platform.sources / "out").iterdir()],
        exactly_once=False,
    ),
    "several": To(
        lambda p: Several(DeltaSink(NUMBERS), KafkaSink(p.out_topic, key="id")), lambda p: ids_of_table(p.platform)
    ),
}


@pytest.fixture
def place(platform: Platform, kafka: KafkaServer, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> Place:
    database = f"db_{uuid.uuid4().hex[:8]}"
    postgres.database(database)
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", kafka.connection.bootstrap_servers)
    monkeypatch.setenv("POSTGRES_URL", postgres.url(database))
    platform.layout.landing("numbers").mkdir()
    return Place(platform, kafka, postgres, kafka.topic(), kafka.topic(), database)


def declared(place: Place, origin: From, target: To) -> Stream:
    def transform(rows: Any) -> Any:
        from pyspark.sql import functions as F

        shaped = rows.selectExpr(*_columns(origin.shape))
        return shaped.groupBy("id").agg(F.max("value").alias("value")) if target.aggregates else shaped

    return Stream("numbers", origin.source(place), transform, target.sink(place))


def _columns(shape: str) -> list[str]:
    return [part.strip() for part in shape.replace(" AS id, ", " AS id; ").replace("id, value", "id; value").split(";")]


def run(platform: Platform, stream: Stream, settings: RunSettings = ONE, **options: Any) -> RunSummary:
    return run_stream(stream, platform.open, platform.layout, settings, run="test", **options)


def interrupt(stream: str, batch: Any) -> None:  # noqa: ARG001
    raise Interrupted


def forget_last_commit(platform: Platform) -> None:
    """Leave the checkpoint as a run does that was killed after the sink had written a micro-batch."""
    (checkpoint,) = [p for p in (platform.layout.checkpoints / "numbers").iterdir() if p.name.isdigit()]
    commits = [p for p in (checkpoint / "commits").iterdir() if p.name.isdigit()]
    last = max(commits, key=lambda p: int(p.name))
    last.unlink()
    last.with_name(f".{last.name}.crc").unlink(missing_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("sink", SINKS)
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_feeds_every_sink_through_a_crash_after_the_write(place: Place, source: str, sink: str) -> None:
    origin, target, platform = SOURCES[source], SINKS[sink], place.platform
    for numbers in ((0, 1), (2, 3), (4, 5)):
        origin.put(place, numbers)
    stream = declared(place, origin, target)
    with pytest.raises(Interrupted):
        run(platform, stream, on_batch=interrupt)
    assert platform.spark.streams.active == []
    forget_last_commit(platform)

    origin.put(place, (6, 7))
    run(platform, stream)
    found = Counter(target.read(place))
    if origin.own:
        assert set(found) == {f"n{n}" for n in range(len(found))}
        assert len(found) >= 4
    else:
        assert set(found) == {f"n{n}" for n in range(8)}
    if target.exactly_once:
        assert set(found.values()) == {1}


def write_parquet(path: Path) -> None:
    parquet.write_table(pa.table({"id": ["a", "b"], "value": [1, 2]}), path)


def write_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(b'{"id": "a", "value": 1}\n{"id": "b", "value": 2}\n'))


FORMATS: dict[str, tuple[LandedFiles, Callable[[Path], Any], str]] = {
    "a.txt": (LandedFiles("numbers"), lambda p: p.write_text("a 1\nb 2"), "split(value, ' ')[0] AS id"),
    "a.json": (
        LandedFiles("numbers", "json", COLUMNS),
        lambda p: p.write_text('{"id": "a", "value": 1}\n\n{"value": 2, "id": "b"}'),
        "id",
    ),
    "a.csv": (
        LandedFiles("numbers", "csv", COLUMNS, options={"header": "true"}),
        lambda p: p.write_text("id,value\na,1\nb,2\n"),
        "id",
    ),
    "a.parquet": (LandedFiles("numbers", "parquet", COLUMNS), write_parquet, "id"),
    "a.json.gz": (LandedFiles("numbers", "json", COLUMNS), write_gzip, "id"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_files_of_every_format_are_read_with_where_and_when_they_came(platform: Platform, name: str) -> None:
    source, write, shape = FORMATS[name]
    platform.layout.landing("numbers").mkdir()
    seen = Table(
        "seen",
        (
            Column("id", "string", "Which"),
            Column("source_file", "string", "Where"),
            Column("ingested_at", "timestamp", "When"),
        ),
        "What was read.",
    )
    stream = Stream("seen", source, lambda rows: rows.selectExpr(shape, "source_file", "ingested_at"), DeltaSink(seen))
    write(platform.layout.landing("numbers") / name)
    run(platform, stream)
    rows = platform.sql("SELECT id, source_file, ingested_at FROM {seen} ORDER BY id")
    assert [row[0] for row in rows] == ["a", "b"]
    assert {row[1].split("-", 1)[1] for row in rows} == {name}
    assert all(row[2] is not None for row in rows)


def test_a_file_that_is_not_parquet_stays_in_landing_with_the_reason(platform: Platform) -> None:
    folder = platform.layout.landing("numbers")
    folder.mkdir()
    (folder / "a.parquet").write_text("not at all")
    write_parquet(folder / "b.parquet")
    stream = Stream(
        "numbers",
        LandedFiles("numbers", "parquet", COLUMNS),
        lambda rows: rows.select("id", "value"),
        DeltaSink(NUMBERS),
    )
    summary = run(platform, stream)
    assert summary.admission is not None
    ((left),) = summary.admission.left
    assert left.name == "a.parquet"
    assert left.reason.startswith("not a Parquet file")
    assert summary.rows_added == 2


@pytest.mark.parametrize(
    "line", ['{"id": "x"}{"id": "y"}', '{"id": "x"} junk', "[]", '{"id": "x", "value": "much"}', b'{"id": "\xff"}', "7"]
)
def test_a_wrong_line_of_json_is_kept_as_text_beside_the_good_ones(platform: Platform, line: str | bytes) -> None:
    platform.layout.landing("numbers").mkdir()
    kept = Table("kept", (Column("id", "string", "Which"), Column("wrong", "string", "The line")), "Lines.")
    stream = Stream(
        "kept",
        LandedFiles("numbers", "json", COLUMNS),
        lambda rows: rows.selectExpr("id", "_corrupt_record AS wrong"),
        DeltaSink(kept),
    )
    platform.land("a.json", {"id": "good", "value": 1}, line, to="numbers")
    run(platform, stream)
    wrong = line.decode("utf-8", "replace") if isinstance(line, bytes) else line
    assert sorted(platform.sql("SELECT * FROM {kept}"), key=str) == [("good", None), (None, wrong)]


def test_a_number_of_bytes_bounds_a_micro_batch_as_a_number_of_files_does(platform: Platform) -> None:
    platform.layout.landing("numbers").mkdir()
    stream = Stream(
        "numbers",
        LandedFiles("numbers", "json", COLUMNS),
        lambda rows: rows.select("id", "value"),
        DeltaSink(NUMBERS),
    )
    for n in range(4):
        put_json(platform, [n])
    one = next((platform.layout.landing("numbers")).iterdir()).stat().st_size
    summary = run(platform, stream, RunSettings(max_bytes_per_trigger=2 * one))
    assert [b.rows for b in summary.batches] == [2, 2]


def upstream(platform: Platform, *versions: Sequence[int]) -> Stream:
    """A table of as many versions, and the stream that reads it."""
    for numbers in versions:
        put_delta(platform, numbers)
    return Stream("numbers", DeltaTable("upstream"), lambda rows: rows.select("id", "value"), DeltaSink(NUMBERS))


def test_a_table_can_be_read_from_a_version_on(platform: Platform) -> None:
    whole = upstream(platform, [1], [2], [3])
    stream = Stream("numbers", DeltaTable("upstream", starting_version=1), whole.transform, whole.sink)
    run(platform, stream)
    assert sorted(ids_of_table(platform)) == ["n2", "n3"]


def test_a_number_of_files_bounds_a_micro_batch_of_a_table(platform: Platform) -> None:
    assert [b.rows for b in run(platform, upstream(platform, [1], [2], [3, 4])).batches] == [1, 1, 2]


def test_a_stream_goes_on_after_its_table_was_optimized(platform: Platform) -> None:
    stream = upstream(platform, [1], [2])
    run(platform, stream)
    platform.spark.sql(f"OPTIMIZE delta.`{platform.layout.table('upstream')}`")
    put_delta(platform, [3])
    run(platform, stream)
    assert sorted(ids_of_table(platform)) == ["n1", "n2", "n3"]


@pytest.mark.parametrize(
    "change", ["DELETE FROM {} WHERE value = 1", "UPDATE {} SET value = 9 WHERE value = 1", "overwrite"]
)
def test_rows_deleted_or_changed_upstream_stop_the_stream_with_the_remedy(platform: Platform, change: str) -> None:
    stream = upstream(platform, [1, 2])
    run(platform, stream)
    path = str(platform.layout.table("upstream"))
    if change == "overwrite":
        platform.spark.read.format("delta").load(path).write.format("delta").mode("overwrite").save(path)
    else:
        platform.spark.sql(change.format(f"delta.`{path}`"))
    put_delta(platform, [3])
    for _ in range(2):
        with pytest.raises(StreamFailed, match=r"a stream reads only what is added: run the rebuild job") as failed:
            run(platform, stream)
        assert "\n" not in str(failed.value)
    assert sorted(ids_of_table(platform)) == ["n1", "n2"], "nothing is taken in silence"


@pytest.mark.parametrize("change", ["DROP COLUMN value", "RENAME COLUMN value TO other"])
def test_a_column_dropped_or_renamed_upstream_stops_the_stream(platform: Platform, change: str) -> None:
    whole = upstream(platform, [1])
    stream = Stream("numbers", whole.source, lambda rows: rows.selectExpr("id", "0L AS value"), whole.sink)
    run(platform, stream)
    path = f"delta.`{platform.layout.table('upstream')}`"
    mapped = "'delta.columnMapping.mode' = 'name', 'delta.minReaderVersion' = '2', 'delta.minWriterVersion' = '5'"
    platform.spark.sql(f"ALTER TABLE {path} SET TBLPROPERTIES ({mapped})")
    put_delta(platform, [2])
    platform.spark.sql(f"ALTER TABLE {path} {change}")
    with pytest.raises(StreamFailed, match=r"a column of upstream was dropped, renamed .*: run the rebuild job"):
        run(platform, stream)
    assert ids_of_table(platform) == ["n1"], "nothing is taken in silence"


def test_a_table_that_is_not_there_is_named(platform: Platform) -> None:
    stream = upstream(platform)
    assert run(platform, stream).batches == [], "nothing is there yet"
    two = Stream("numbers", DeltaTable("upstream", "elsewhere"), stream.transform, stream.sink)
    put_delta(platform, [1])
    with pytest.raises(PlatformError, match=r"reads the Delta table 'elsewhere', which is not in .*make it first"):
        run(platform, two)


def test_two_tables_are_read_side_by_side(platform: Platform) -> None:
    put_delta(platform, [1])
    other = Table("other", (*COLUMNS, Column("more", "string", "What the first lacks")), "Other numbers.")
    stream = Stream(
        "numbers",
        DeltaTable("upstream", other),
        lambda rows: rows.selectExpr("coalesce(more, id) AS id", "value"),
        DeltaSink(NUMBERS),
    )
    run(platform, stream)
    platform.spark.sql("INSERT INTO other VALUES ('n2', 2, 'm2')")
    put_delta(platform, [3])
    run(platform, stream)
    assert sorted(ids_of_table(platform)) == ["m2", "n1", "n3"]
    assert stream.source.pending(platform.layout, "numbers") == []


def test_a_new_checkpoint_under_an_old_application_id_is_refused(platform: Platform) -> None:
    base = upstream(platform, [1], [2])
    stream = Stream("numbers", base.source, base.transform, DeltaUpsert(NUMBERS, ("id",), "append", newest_by="value"))
    run(platform, stream)
    shutil.rmtree(platform.layout.checkpoints / "numbers")
    put_delta(platform, [3])
    with pytest.raises(
        PlatformError, match=r"is new, but table numbers was written by an earlier one .*Put the checkpoint back"
    ):
        run(platform, stream)


def test_one_of_several_sinks_is_not_left_out_under_a_new_checkpoint(platform: Platform) -> None:
    base = upstream(platform, [1], [2])
    stream = Stream("numbers", base.source, base.transform, Several(DeltaSink(NUMBERS), ConnectorSink("noop")))
    run(platform, stream)
    shutil.rmtree(platform.layout.checkpoints / "numbers")
    with pytest.raises(PlatformError, match="is new, but table numbers was written by an earlier one"):
        run(platform, stream)


def test_files_are_written_from_one_segment_after_the_other(platform: Platform) -> None:
    platform.layout.landing("numbers").mkdir()
    stream = Stream(
        "numbers",
        LandedFiles("numbers", "json", COLUMNS, segment_files=1),
        lambda rows: rows.select("id", "value"),
        FileSink("parquet"),
    )
    for n in range(3):
        put_json(platform, [n])
        run(platform, stream)
    found = platform.spark.read.parquet(str(platform.layout.exports / "numbers" / "*"))
    assert sorted(row["id"] for row in found.collect()) == ["n0", "n1", "n2"]


def test_what_a_persons_code_says_is_what_the_run_says(platform: Platform) -> None:
    class Refuses:
        def process(self, row: Any) -> None:  # noqa: ARG002
            raise PlatformError("the till is closed: open it")

    base = upstream(platform, [1])
    for sink in (ForeachSink(Refuses()), Several(ForeachSink(Refuses()), DeltaSink(NUMBERS))):
        stream = Stream("numbers", base.source, base.transform, sink)
        with pytest.raises(StreamFailed, match=r"^stream 'numbers' failed: the till is closed: open it \(full"):
            run(platform, stream)


def test_a_rebuild_waits_for_what_has_yet_to_be_sent_and_then_the_stream_goes_on(platform: Platform) -> None:
    first = Stream(
        "numbers",
        LandedFiles("numbers", "json", COLUMNS),
        lambda rows: rows.select("id", "value"),
        DeltaSink(NUMBERS),
    )
    sent = Stream("sent", DeltaTable(NUMBERS), lambda rows: rows, FileSink("json"))
    platform.layout.landing("numbers").mkdir()
    put_json(platform, [1])
    for stream in (first, sent):
        run(platform, stream)
    put_json(platform, [2])
    run(platform, first)
    with pytest.raises(PlatformError, match="stream 'sent' has yet to send what came last"):
        rebuild([first, sent], platform.open, platform.layout, run="test")
    run(platform, sent)
    rebuild([first, sent], platform.open, platform.layout, run="test")
    put_json(platform, [3])
    for stream in (first, sent):
        run(platform, stream)
    found = platform.spark.read.json(str(platform.layout.exports / "sent" / "*"))
    assert sorted(row["id"] for row in found.collect()) == ["n1", "n2", "n3"], "each is sent once"


def test_a_new_checkpoint_on_an_old_folder_of_files_is_refused(platform: Platform) -> None:
    base = upstream(platform, [1])
    stream = Stream("numbers", base.source, base.transform, FileSink("json", partition_by=("id",)))
    run(platform, stream)
    assert (platform.layout.exports / "numbers" / "000001" / "id=n1").is_dir()
    shutil.rmtree(platform.layout.checkpoints / "numbers")
    with pytest.raises(PlatformError, match=r"exports/numbers/000001 is of an earlier one: .*move the folder away"):
        run(platform, stream)


def test_of_several_rows_of_a_key_the_newest_is_kept_whenever_it_comes(platform: Platform) -> None:
    newest = Table("newest", (*COLUMNS, Column("at", "int", "When it was changed")), "Newest rows.")
    stream = Stream(
        "newest",
        LandedFiles("numbers", "json", newest.columns),
        lambda rows: rows.select("id", "value", "at"),
        DeltaUpsert(newest, ("id",), "append", newest_by="at"),
    )
    platform.layout.landing("numbers").mkdir()
    rows = ((1, 5), (2, 6), (3, 4))
    platform.land("a.json", *({"id": "n", "value": v, "at": at} for v, at in rows), to="numbers")
    run(platform, stream)
    assert platform.sql("SELECT value FROM {newest}") == [(2,)]
    platform.land("b.json", {"id": "n", "value": 4, "at": 3}, {"id": "m", "value": 1, "at": 1}, to="numbers")
    run(platform, stream)
    assert sorted(platform.sql("SELECT id, value FROM {newest}")) == [("m", 1), ("n", 2)], "an older one comes late"


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (lambda: DeltaUpsert(NUMBERS, ("who",)), r"DeltaUpsert\(numbers\): no such columns: who"),
        (lambda: DeltaUpsert(NUMBERS, ()), "give the columns that make a row's key"),
        (lambda: DeltaUpsert(NUMBERS, ("id",), "append"), "give newest_by with output_mode='append'"),
        (lambda: DeltaSink(NUMBERS, "update"), "it writes 'append' or 'complete' only"),
        (lambda: FileSink("csv", output_mode="complete"), "it writes 'append' only"),
        (lambda: Several(DeltaSink(NUMBERS), DeltaSink(NUMBERS)), "a stream keeps one Delta table"),
        (
            lambda: Several(DeltaSink(NUMBERS), DeltaUpsert(NUMBERS, ("id",))),
            "have one output mode, not append, update",
        ),
        (
            lambda: Stream("numbers", LandedFiles("numbers"), lambda rows: rows, DeltaUpsert(NUMBERS, ("id",))),
            "keeps state in its checkpoint, and a segment has one of its own",
        ),
        (lambda: KafkaTopics(), "give either names of topics or a pattern"),
        (lambda: KafkaTopics("a", pattern="b"), "give either names of topics or a pattern"),
        (lambda: LandedFiles("numbers", "csv"), "text has no columns and 'csv' files need them"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused_at_once(declare: Callable[[], Any], message: str) -> None:
    with pytest.raises(PlatformError, match=message):
        declare()


def test_a_peek_shows_rows_and_leaves_no_trace(platform: Platform) -> None:
    stream = upstream(platform, [1, 2], [3])
    with peek(stream, platform.open, platform.layout, rows=10) as found:
        assert found is not None
        assert sorted(row["id"] for row in found.collect()) == ["n1", "n2", "n3"]
    with peek(stream, platform.open, platform.layout, rows=2) as found:
        assert found is not None
        assert len(found.collect()) == 2
    assert not (platform.layout.checkpoints / "numbers").exists()
    assert not platform.layout.table("numbers").exists()
    assert platform.spark.streams.active == []
    run(platform, stream)
    assert len(ids_of_table(platform)) == 3


def test_a_peek_can_be_printed_by_sparks_console(platform: Platform, request: pytest.FixtureRequest) -> None:
    with peek(upstream(platform, [1, 2]), platform.open, platform.layout, rows=10, sink="console") as found:
        assert found is None
    # The JVM writes where it was told when it started, which only the capture of the whole run sees.
    capture: Any = request.config.pluginmanager.getplugin("capturemanager")
    if capture.is_globally_capturing():  # not with `pytest -s`
        assert "Batch: 0" in capture.read_global_capture().out


def test_a_peek_at_files_sees_what_was_admitted(platform: Platform) -> None:
    source = LandedFiles("numbers", "json", COLUMNS)
    stream = Stream("numbers", source, lambda rows: rows.select("id", "value"), DeltaSink(NUMBERS))
    platform.layout.landing("numbers").mkdir()
    with (
        pytest.raises(PlatformError, match="nothing was ever accepted"),
        peek(stream, platform.open, platform.layout, 5),
    ):
        pass
    put_json(platform, [1])
    run(platform, stream)
    with peek(stream, platform.open, platform.layout, rows=5) as found:
        assert found is not None
        assert [row["id"] for row in found.collect()] == ["n1"]


def test_a_connector_of_sparks_own_needs_its_name_and_options(platform: Platform) -> None:
    stream = Stream(
        "numbers",
        Connector("rate-micro-batch", {"rowsPerBatch": "3"}),
        lambda rows: rows.selectExpr("concat('n', value) AS id", "value"),
        ConnectorSink("noop"),
    )
    assert run(platform, stream).rows_read == 3
