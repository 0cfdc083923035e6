"""Compiles `LocalLogStore.java`, by which Spark lists Delta logs on a local disk; `make setup` runs this module.

Delta has a place for such a class (`spark.delta.logStore.file.impl`), and it can only be one of Java's. Where it was not made,
Spark uses Delta's own, and a run takes longer with each version that its tables' logs hold.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from invoice_platform.errors import PlatformError
from invoice_platform.jars import (
    LOG_STORE_SOURCE,
    OLDEST_JAVA,
    SPARK,
    find_java,
    log_store_jar,
    make_if_missing,
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
    with put_in_place(jar, "local-log-store-*.jar") as work:
        command = [compiler, "--release", str(OLDEST_JAVA), "-nowarn", "-cp", classes, "-d", work, LOG_STORE_SOURCE]
        ran = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if ran.returncode:
            raise PlatformError(
                f"{compiler} could not compile {LOG_STORE_SOURCE}: {' '.join(ran.stderr.split())[:300]}"
            )
        with zipfile.ZipFile(work / jar.name, "w") as archive:
            for file in sorted(work.rglob("*.class")):
                archive.write(file, file.relative_to(work))


def main() -> int:
    """Make the jar unless it is there."""
    return make_if_missing(
        log_store_jar(), make, "Delta logs will be listed by Delta's own class, which takes longer with each version"
    )


if __name__ == "__main__":
    sys.exit(main())
