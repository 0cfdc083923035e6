"""Compiles `LocalLogStore.java`, by which Spark lists Delta logs on a local disk; `make setup` runs this module.

Delta has a place for such a class (`spark.delta.logStore.file.impl`), and it can only be one of Java's. Where it was not made,
Spark uses Delta's own, and a run takes longer with each version that its tables' logs hold.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from invoice_platform.errors import PlatformError
from invoice_platform.jars import LOG_STORE_SOURCE, OLDEST_JAVA, SPARK, find_java, log_store_jar, spark_folder


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
    # Inside its own folder, so that the move is a rename within one file system.
    with tempfile.TemporaryDirectory(dir=jar.parent, prefix=".compiling-") as work:
        command = [compiler, "--release", str(OLDEST_JAVA), "-nowarn", "-cp", classes, "-d", work, LOG_STORE_SOURCE]
        ran = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if ran.returncode:
            raise PlatformError(
                f"{compiler} could not compile {LOG_STORE_SOURCE}: {' '.join(ran.stderr.split())[:300]}"
            )
        made = Path(work, jar.name)
        with zipfile.ZipFile(made, "w") as archive:
            for file in sorted(Path(work).rglob("*.class")):
                archive.write(file, file.relative_to(work))
        os.replace(made, jar)
    for other in jar.parent.glob("local-log-store-*.jar"):
        if other != jar:
            other.unlink(missing_ok=True)


def main() -> int:
    """Make the jar unless it is there. Spark starts without it, too, so that what hinders is said and no more."""
    jar = log_store_jar()
    if not jar.exists():
        try:
            make(jar)
        except PlatformError as error:
            print(
                f"Delta logs will be listed by Delta's own class, which takes longer with each version: {error}",
                file=sys.stderr,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
