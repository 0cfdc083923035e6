"""The jars that Spark and a Kafka broker are given by path, and the Java that reads them."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import pytest

from invoice_platform.errors import PlatformError
from invoice_platform.jars import (
    BROKER,
    SPARK,
    Jar,
    JarSet,
    class_archive,
    find_java,
    jar_folder,
    jar_paths,
    java_version,
    main,
    own_jar,
    require_java,
)

JAVA_11 = """echo 'openjdk version "11.0.2" 2019-01-15' >&2"""


@pytest.fixture(params=[SPARK, BROKER], ids=["spark", "broker"])
def full(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JarSet:
    """Jars of each kind, all of them in a folder of the test's own."""
    there = [path for jars in (SPARK, BROKER) for path in jars.paths()]
    folder, before = tmp_path / "jars", jar_folder()
    for path in there:
        (copy := folder / path.relative_to(before)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)
    monkeypatch.setenv("INVOICE_PLATFORM_JARS", str(folder))
    return request.param


@pytest.fixture
def no_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the only one on PATH, and no JAVA_HOME."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return folder


def put_java(folder: Path, script: str) -> Path:
    """Put a `java` into the folder that does what the shell script says."""
    folder.mkdir(parents=True, exist_ok=True)
    java = folder / "java"
    java.write_text(f"#!/bin/sh\n{script}\n")
    java.chmod(0o755)
    return java


def names_of(jars: Iterable[Jar]) -> set[str]:
    return {jar.file_name for jar in jars}


@pytest.mark.parametrize("jars", [SPARK, BROKER], ids=["spark", "broker"])
def test_every_pinned_jar_is_there_and_whole(jars: JarSet) -> None:
    assert [path.name for path in jars.paths()] == [jar.file_name for jar in jars.jars]
    for path in jars.paths():
        with zipfile.ZipFile(path) as jar:
            assert jar.testzip() is None


def test_delta_jar_and_wheel_are_of_one_version() -> None:
    assert {jar.version for jar in SPARK.jars if jar.group == "io.delta"} == {version("delta-spark")}


def test_kafka_connector_and_spark_are_of_one_version() -> None:
    assert {jar.version for jar in SPARK.jars if jar.group == "org.apache.spark"} == {version("pyspark")}


def test_jars_of_the_broker_are_not_among_those_of_spark() -> None:
    assert jar_paths() == [*SPARK.paths(), own_jar()]
    assert not {path.parent for path in SPARK.paths()} & {path.parent for path in BROKER.paths()}


def test_folder_is_inside_the_python_environment_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INVOICE_PLATFORM_JARS", raising=False)
    assert jar_folder().is_relative_to(sys.prefix)
    monkeypatch.setenv("INVOICE_PLATFORM_JARS", "elsewhere")
    assert jar_folder() == Path("elsewhere")


@pytest.mark.parametrize("damage", ["removed", "cut short"])
def test_missing_or_damaged_jar_is_named_with_its_folder_and_the_remedy(full: JarSet, damage: str) -> None:
    jar = full.folder / full.jars[0].file_name
    if damage == "removed":
        jar.unlink()
    else:
        os.truncate(jar, jar.stat().st_size // 2)
    with pytest.raises(PlatformError, match="make setup") as caught:
        full.paths()
    message = str(caught.value)
    assert "\n" not in message
    assert str(full.folder) in message
    assert full.jars[0].file_name in message
    assert full.jars[1].file_name not in message


def test_another_java_or_another_jar_has_an_archive_of_classes_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for jar in jar_paths():
        shutil.copy2(jar, tmp_path)
    here = class_archive()
    assert here.parent == jar_folder()
    monkeypatch.setenv("INVOICE_PLATFORM_JARS", str(tmp_path))
    there = class_archive()
    assert there.parent == tmp_path
    os.utime(tmp_path / SPARK.jars[0].file_name, (0, 0))
    touched = class_archive()
    monkeypatch.setenv("JAVA_HOME", str(put_java(tmp_path / "home" / "bin", "exit 1").parent.parent))
    assert len({path.name for path in (here, there, touched, class_archive())}) == 4


@pytest.mark.usefixtures("no_java")
def test_resolve_on_a_full_folder_needs_no_java(full: JarSet) -> None:
    assert find_java() is None
    assert full.resolve() == [full.folder / jar.file_name for jar in full.jars]
    assert main([]) == 0


@pytest.mark.usefixtures("no_java")
def test_resolve_without_java_says_so_and_leaves_nothing_half_made(
    full: JarSet, capsys: pytest.CaptureFixture[str]
) -> None:
    (full.folder / full.jars[0].file_name).unlink()
    with pytest.raises(PlatformError, match="Java 17 or later is needed and none was found"):
        full.resolve()
    assert {path.name for path in full.folder.iterdir() if path.is_file()} == names_of(full.jars[1:])
    assert main([]) == 1
    assert f"fetching the jars that {full.wanted_by} needs into {full.folder}" in capsys.readouterr().err


def test_resolve_removes_other_versions_and_leaves_other_jars(full: JarSet) -> None:
    others = (
        ("delta-storage-3.2.0.jar", "delta-spark_4.1_2.13-4.3.0.jar") if full is SPARK else ("kafka_2.13-3.9.0.jar",)
    )
    for name in (*others, "kafka-clients-3.0.0.jar", "a-jar-of-the-user-1.0.jar"):
        (full.folder / name).touch()
    full.resolve()
    assert {path.name for path in full.folder.glob("*.jar")} == {*names_of(full.jars), "a-jar-of-the-user-1.0.jar"}
    assert all(path.is_file() for jars in (SPARK, BROKER) for path in jars.paths())


def test_java_in_use_is_good_enough_for_spark() -> None:
    java = require_java()
    assert java == find_java()
    assert (java_version(java) or 0) >= 17


@pytest.mark.parametrize(
    ("script", "found"),
    [
        (JAVA_11, "is Java 11"),
        ("""echo 'java version "1.8.0_392"' >&2""", "is Java 8"),
        ("exit 1", "does not run"),
        (
            """[ "$1" = -version ] && echo 'openjdk version "21" 2023-09-19' >&2""",
            "lacks the module jdk.incubator.vector",
        ),
    ],
)
def test_java_that_spark_cannot_use_gives_one_line(no_java: Path, script: str, found: str) -> None:
    java = put_java(no_java, script)
    with pytest.raises(PlatformError) as caught:
        require_java()
    message = str(caught.value)
    assert "\n" not in message
    assert str(java) in message
    assert found in message
    assert "apt-get install openjdk-17" in message
    assert "JAVA_HOME" in message


def test_java_home_goes_before_path_as_it_does_in_spark(
    tmp_path: Path, no_java: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_java(no_java, "exit 1")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))
    with pytest.raises(PlatformError, match="jdk has no bin/java"):
        require_java()
    java = put_java(tmp_path / "jdk" / "bin", """echo 'openjdk version "25" 2025-09-16' >&2""")
    assert require_java() == java
