"""Compiles the classes in `java/`, which Spark has a place for and which can only be Java's; `make setup` runs this module.

`LocalLogStore` lists Delta logs on a local disk, `LinesOfText` reads small files, `PlainRecords` a line of JSON. Where they were
not made, Spark's and Delta's own do the same, in more time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from invoice_platform.errors import PlatformError
from invoice_platform.jars import (
    JAVA_SOURCES,
    OLDEST_JAVA,
    OWN_JAR,
    SPARK,
    find_java,
    java_sources,
    make_if_missing,
    own_jar,
    put_in_place,
    spark_folder,
)


def make(jar: Path) -> None:
    """Make the jar, and remove those of other versions.

    Raises
    ------
    PlatformError
        When there is no compiler beside the Java that Spark would start, or it does not compile.
    """
    java = find_java()
    compilers = [found.with_name("javac") for found in (java, java.resolve())] if java else []
    compiler = next((found for found in compilers if found.exists()), None)
    if compiler is None:
        raise PlatformError(
            f"there is no javac beside {java or 'Java'}: install one (Debian: apt-get install openjdk-{OLDEST_JAVA}-jdk-headless)"
        )
    classes = os.pathsep.join((*map(str, SPARK.paths()), str(spark_folder() / "jars" / "*")))
    with put_in_place(jar, f"{OWN_JAR}-*.jar") as work:
        command = [compiler, "--release", str(OLDEST_JAVA), "-nowarn", "-cp", classes, "-d", work, *java_sources()]
        ran = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if ran.returncode:
            raise PlatformError(f"{compiler} could not compile {JAVA_SOURCES}: {' '.join(ran.stderr.split())[:300]}")
        with zipfile.ZipFile(work / jar.name, "w") as archive:
            for file in sorted(work.rglob("*.class")):
                archive.write(file, file.relative_to(work))


def main() -> int:
    """Make the jar unless it is there."""
    return make_if_missing(
        own_jar(),
        make,
        "a run will take longer with each version of its tables, small files and lines of JSON several times as long",
    )


if __name__ == "__main__":
    sys.exit(main())
