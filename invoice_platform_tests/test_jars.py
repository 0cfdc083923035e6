"""The jars that Spark is given by path, and the Java that reads them."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from invoice_platform.errors import PlatformError
from invoice_platform.jars import JARS, find_java, jar_folder, jar_paths, java_version, require_java, resolve

JAVA_11 = """echo 'openjdk version "11.0.2" 2019-01-15' >&2"""


@pytest.fixture
def full_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own with all jars in it."""
    folder = tmp_path / "jars"
    folder.mkdir()
    for path in jar_paths():
        shutil.copy(path, folder)
    monkeypatch.setenv("INVOICE_PLATFORM_JARS", str(folder))
    return folder


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


def test_every_pinned_jar_is_there_and_whole() -> None:
    assert [path.name for path in jar_paths()] == [jar.file_name for jar in JARS]
    for path in jar_paths():
        with zipfile.ZipFile(path) as jar:
            assert jar.testzip() is None


def test_delta_jar_and_wheel_are_of_one_version() -> None:
    assert {jar.version for jar in JARS if jar.group == "io.delta"} == {version("delta-spark")}


def test_folder_is_inside_the_python_environment_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INVOICE_PLATFORM_JARS", raising=False)
    assert jar_folder().is_relative_to(sys.prefix)
    monkeypatch.setenv("INVOICE_PLATFORM_JARS", "elsewhere")
    assert jar_folder() == Path("elsewhere")


@pytest.mark.parametrize("damage", ["removed", "cut short"])
def test_missing_or_damaged_jar_is_named_with_its_folder_and_the_remedy(full_folder: Path, damage: str) -> None:
    jar = full_folder / JARS[0].file_name
    if damage == "removed":
        jar.unlink()
    else:
        os.truncate(jar, jar.stat().st_size // 2)
    with pytest.raises(PlatformError, match="make setup") as caught:
        jar_paths()
    message = str(caught.value)
    assert "\n" not in message
    assert str(full_folder) in message
    assert JARS[0].file_name in message
    assert JARS[1].file_name not in message


@pytest.mark.usefixtures("no_java")
def test_resolve_on_a_full_folder_needs_no_java(full_folder: Path) -> None:
    assert find_java() is None
    assert resolve() == [full_folder / jar.file_name for jar in JARS]


@pytest.mark.usefixtures("no_java")
def test_resolve_without_java_says_so_and_leaves_nothing_half_made(full_folder: Path) -> None:
    (full_folder / JARS[0].file_name).unlink()
    with pytest.raises(PlatformError, match="Java 17 or later is needed and none was found"):
        resolve()
    assert {path.name for path in full_folder.iterdir()} == {jar.file_name for jar in JARS[1:]}


def test_resolve_removes_other_versions_and_leaves_other_jars(full_folder: Path) -> None:
    for name in ("delta-storage-3.2.0.jar", "delta-spark_4.1_2.13-4.3.0.jar", "a-jar-of-the-user-1.0.jar"):
        (full_folder / name).touch()
    resolve()
    assert {path.name for path in full_folder.glob("*.jar")} == {
        *(jar.file_name for jar in JARS),
        "a-jar-of-the-user-1.0.jar",
    }


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
