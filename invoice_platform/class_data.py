"""Makes the class-data archive: Spark's and Delta's classes as a JVM has them in memory, which each later start maps from a file.

A warm Spark is taken through a run, and writes down at its end what it loaded. Where the archive does not fit (another Java,
other jars) or is not there, a JVM reads the jars, as it would without it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from invoice_platform.errors import PlatformError
from invoice_platform.jars import class_archive, make_if_missing, put_in_place

INVOICES = 200
"""Enough to go through all that a run does."""


def make(archive: Path) -> None:
    """Make the archive, and remove those of other versions.

    Raises
    ------
    PlatformError
        When Spark does not start, does not run the streams or does not write the archive.
    """
    print("making the archive of Spark's classes, for quicker starts (about a minute)", file=sys.stderr)
    import invoice_platform.definitions  # noqa: F401  declares all streams
    from invoice_platform.broker import free_port
    from invoice_platform.generate import generate_files
    from invoice_platform.jobs import from_files
    from invoice_platform.server import warm_server
    from invoice_platform.streaming.landing import land
    from invoice_platform.streaming.layout import Layout
    from invoice_platform.streaming.session import lazy_session
    from invoice_platform.streaming.settings import RunSettings
    from invoice_platform.streaming.stream import run_streams

    with put_in_place(archive, "classes-*.jsa") as work:
        layout, made = Layout.at(work / "root"), work / archive.name
        layout.landing("invoices").mkdir(parents=True)
        for file in generate_files(work / "generated", files=1, invoices_per_file=INVOICES, seed=1, faults=0.05):
            land(file.path, layout.landing("invoices"))
        with warm_server(layout, free_port(), write_classes_to=made), lazy_session(layout) as spark:
            run_streams(from_files(), spark, layout, RunSettings(), run="making the archive of classes")
            spark().sql("SELECT city, sum(total_value) FROM invoice_line_items GROUP BY city").collect()
        if not made.exists():
            raise PlatformError(
                f"Java wrote no archive of classes; see what it can do with -XX:ArchiveClassesAtExit={made}"
            )


def main() -> int:
    """Make the archive unless it is there."""
    return make_if_missing(
        class_archive(), make, "no archive of Spark's classes was made, and each start takes some seconds longer"
    )


if __name__ == "__main__":
    sys.exit(main())
