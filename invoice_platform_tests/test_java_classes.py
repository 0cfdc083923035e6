"""The classes of ours that Spark is given, made at set-up, give what Spark's and Delta's own give; for JSON see test_parser."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any, cast

import pytest
from py4j.protocol import Py4JJavaError
from pyspark.errors import AnalysisException
from pyspark.sql import SparkSession

from invoice_platform import java_classes
from invoice_platform.jars import OWN_JAR, own_jar
from invoice_platform.streaming.session import FUNCTIONS, LINES_OF_TEXT
from invoice_platform_tests.test_jars import put_java

NAMES = (
    *(f"{n:020d}.json" for n in range(12)),
    *(f"{n:020d}.crc" for n in (9, 10, 11)),
    "00000000000000000005.checkpoint.parquet",
    "00000000000000000010.checkpoint.parquet",
    ".00000000000000000005.checkpoint.parquet.crc",
    "_last_checkpoint",
    "a name with blanks: %20, ü.json",
)


@pytest.fixture
def listings(spark: SparkSession) -> Any:
    """What each of the two stores lists from a path on: name, size, time and whether it is a folder."""
    session = cast("Any", spark)
    jvm, conf = session._jvm, session._jsc.hadoopConfiguration()
    loader = jvm.java.lang.Thread.currentThread().getContextClassLoader()
    stores = [
        loader.loadClass(name).getConstructors()[0]
        for name in ("io.delta.storage.HDFSLogStore", session.conf.get("spark.delta.logStore.file.impl"))
    ]

    def listed(path: str, only: int | None = None) -> list[list[tuple[Any, ...]]]:
        found = []
        for constructor in stores if only is None else [stores[only]]:
            arguments = session.sparkContext._gateway.new_array(jvm.java.lang.Object, 1)
            arguments[0] = conf
            files = constructor.newInstance(arguments).listFrom(jvm.org.apache.hadoop.fs.Path(path), conf)
            each = []
            while files.hasNext():
                file = files.next()
                each.append((file.getPath().toString(), file.getLen(), file.getModificationTime(), file.isDirectory()))
            found.append(each)
        return found

    return listed


@pytest.mark.parametrize("start", [0, 5, 11, 12])
def test_it_lists_what_deltas_own_store_lists(listings: Any, tmp_path: Path, start: int) -> None:
    log = tmp_path / "a table" / "_delta_log"
    (log / "_sidecars").mkdir(parents=True)
    for size, name in enumerate(NAMES):
        (log / name).write_bytes(b"x" * size)
    deltas, ours = listings(f"file:{log}/{start:020d}.")
    assert ours == deltas
    assert len(ours) > 2


@pytest.mark.parametrize(("kind", "error"), [("nothing", "FileNotFoundException"), ("a file", "IOException")])
def test_a_log_that_cannot_be_listed_is_not_taken_for_none(
    listings: Any, tmp_path: Path, kind: str, error: str
) -> None:
    log = tmp_path / "_delta_log"
    if kind == "a file":
        log.touch()
    with pytest.raises(Py4JJavaError, match=rf"java\.io\.{error}: {log}"):
        listings(f"file:{log}/{0:020d}.", only=-1)


def test_a_table_that_is_not_there_is_none_for_either(spark: SparkSession, tmp_path: Path) -> None:
    jvm = cast("Any", spark)._jvm
    path = str(tmp_path / "nothing")
    assert not jvm.io.delta.tables.DeltaTable.isDeltaTable(path)
    spark.range(3).write.format("delta").save(path)
    spark.range(2).write.format("delta").mode("append").save(path)
    assert spark.read.format("delta").load(path).count() == 5
    assert spark.read.format("delta").option("versionAsOf", 0).load(path).count() == 3


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("plain_record(value, CAST(NULL AS STRUCT<day: DATE>))", "plain_record: no field may be DATE"),
        (f"plain_record(value, CAST(NULL AS STRUCT<{', '.join(f'c{n}: INT' for n in range(65))}>))", "over 64 fields"),
        ("plain_record(value, 1)", r"plain_record\(line STRING, shape STRUCT\)"),
        ("plain_records(value)", "UNRESOLVED_ROUTINE"),
    ],
)
def test_what_the_function_cannot_read_is_refused(spark: SparkSession, call: str, says: str) -> None:
    with pytest.raises(AnalysisException, match=says):
        spark.sql("SELECT '{}' AS value").selectExpr(f"{FUNCTIONS}.{call}")


@pytest.mark.parametrize("kind", ["decimal(38,20)", "decimal(38,2)", "decimal(18,18)", "decimal(17,2)"])
def test_a_number_of_too_many_digits_for_its_type_is_not_plain(spark: SparkSession, kind: str) -> None:
    call = f"{FUNCTIONS}.plain_record(value, CAST(NULL AS STRUCT<a: {kind}>))"
    many = spark.sql(f"""SELECT '{{"a": {"9" * 20}.{"1" * 20}}}' AS value""").selectExpr(call)
    assert many.collect()[0][0] is None


FILES = {
    "nothing": b"",
    "one line": b"a",
    "an end": b"a\n",
    "blank lines": b"\n\na\n\n",
    "carriage returns": b"a\r\nb\rc\r\n",
    "a mark": b"\xef\xbb\xbfa\n\xef\xbb\xbfb",
    "a mark alone": b"\xef\xbb\xbf",
    "a mark and an end": b"\xef\xbb\xbf\n",
    "half a mark": b"\xef\xbb",
    "no UTF-8": b"\xff\xfe\n\x00\n",
    "a name with %20, \u00fc": b"a\n",
    "a megabyte": b"x\n" * (1 << 19),
    "more": b"0123456789\n" * 200_000,
    "packed.gz": gzip.compress(b"a\nb\n"),
}


def test_lines_of_files_are_those_of_sparks_own_format(spark: SparkSession, tmp_path: Path) -> None:
    from pyspark.sql import functions as F

    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    # So that some files are read in parts.
    read = spark.read.option("lineSep", "\n").option("maxPartitionBytes", 1 << 19)
    theirs, ours = (
        read.format(name).load(str(tmp_path)).select("value", "_metadata.file_name", F.hex("value"))
        for name in ("text", LINES_OF_TEXT)
    )
    assert ours.schema == theirs.schema
    assert ours.count() == theirs.count() == 724_305
    assert (ours.exceptAll(theirs).collect(), theirs.exceptAll(ours).collect()) == ([], [])


def test_a_file_that_is_gone_is_told_of_as_by_sparks_own_format(spark: SparkSession, tmp_path: Path) -> None:
    (file := tmp_path / "a.json").write_bytes(b"a\n")
    read = spark.read.format(LINES_OF_TEXT).option("lineSep", "\n").load(str(tmp_path))
    file.unlink()
    with pytest.raises(Exception, match=r"FAILED_READ_FILE\.FILE_NOT_EXIST"):
        read.collect()


def test_they_are_made_anew_when_they_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / own_jar().name
    (old := tmp_path / f"{OWN_JAR}-of-before.jar").touch()
    monkeypatch.setattr(java_classes, "own_jar", lambda: made)
    assert java_classes.main() == 0
    assert made.stat().st_size > 1000
    assert list(tmp_path.iterdir()) == [made], f"{old} is gone"


def test_without_a_compiler_spark_does_without_them_and_set_up_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(put_java(tmp_path / "home" / "bin", "exit 1").parent.parent))
    monkeypatch.setattr(java_classes, "own_jar", lambda: tmp_path / "none.jar")
    assert java_classes.main() == 0
    said = capsys.readouterr().err
    assert "small files and lines of JSON several times as long" in said
    assert "there is no javac beside" in said
    assert "install one" in said
    assert not (tmp_path / "none.jar").exists()
