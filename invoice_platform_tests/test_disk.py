"""A disk that is full or read-only, on real small file systems: one line says which and what to do, and nothing is lost.

`landing` and `accepted`, `checkpoints`, `lakehouse` are a tmpfs each. A filler leaves room for so many pages, from none
upwards, so that each write in turn is the one that fails. Mounting needs root.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest

from invoice_platform.errors import PlatformError
from invoice_platform.streaming.landing import land
from invoice_platform.streaming.stream import RunSettings, run_streams
from invoice_platform_tests.conftest import INVOICE_STREAMS, Platform
from invoice_platform_tests.oracle import Lines, judge
from invoice_platform_tests.processes import done

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.slow

PAGE = os.sysconf("SC_PAGE_SIZE")


@contextmanager
def tmpfs(folder: Path, megabytes: int = 32) -> Iterator[None]:
    """A small file system of its own at `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def room_for(folder: Path, pages: int) -> Iterator[None]:
    """Fill the file system of `folder` but for so many pages, until the block ends."""
    filler = folder / ".filler"
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize - pages * PAGE
    with filler.open("wb") as file:
        if free > 0:
            os.posix_fallocate(file.fileno(), 0, free)
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)


class Small:
    """A root on small disks, and what was landed in it."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.layout = platform.layout
        self.lines = Lines(Random(8))
        self.files = 0

    def land(self) -> None:
        self.files += 1
        file = self.lines.file(self.platform.sources / f"{self.files}.json", 8)
        land(file, self.layout.landing("invoices"))

    def attempt(self) -> str | None:
        """Run the streams; what a person is told when that fails, or None."""
        try:
            run_streams(INVOICE_STREAMS, self.platform.open, self.layout, RunSettings(), run="a run of the test")
        except PlatformError as error:
            return str(error)
        return None


@pytest.fixture
def small(tmp_path: Path, spark: SparkSession) -> Iterator[Small]:
    with ExitStack() as mounted:
        root = tmp_path / "root"
        mounted.enter_context(tmpfs(root))
        for name in ("checkpoints", "lakehouse"):
            mounted.enter_context(tmpfs(root / name))
        platform = Platform(root, spark)
        platform.sources = tmp_path
        yield Small(platform)
        for table in spark.catalog.listTables():
            if not table.isTemporary:
                spark.sql(f"DROP TABLE IF EXISTS `{table.name}`")
        platform.instance.dispose()


PAGES = {"root": range(0, 6, 2), "checkpoints": range(0, 15), "lakehouse": range(0, 40, 4)}
"""Pages left, from none to more than a run needs."""


@pytest.mark.parametrize("where", ["root", "checkpoints", "lakehouse"])
def test_a_full_disk_is_named_wherever_it_is_met_and_nothing_is_lost(small: Small, where: str) -> None:
    folder = small.layout.root if where == "root" else small.layout.root / where
    small.land()
    assert small.attempt() is None
    said: list[str] = []
    for pages in PAGES[where]:
        small.land()
        with room_for(folder, pages):
            message = small.attempt()
        print(pages, message)
        if message is not None:
            said.append(message)
    assert len(set(said)) > 1 or where == "root", "it was full at more than one write"
    assert not any("\n" in message for message in said)
    for message in said:
        assert f"{folder}" in message, message
        assert "could not be written, no space left on the device: make room there, then run again" in message, message
    small.platform.run("ingest_invoices")
    verdict = judge(small.layout, small.lines.landed)
    assert verdict.right, verdict


def test_a_command_on_a_full_root_says_so_in_one_line(small: Small) -> None:
    small.land()
    with room_for(small.layout.root, 0):
        said = done(small.layout, "run", "ingest_invoices", ok=False)
    print(said)
    assert "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"invoice-platform: {small.layout.root}")
    assert last.endswith("could not be written, no space left on the device: make room there, then run again")


def test_a_read_only_lakehouse_is_named_with_the_remedy(small: Small) -> None:
    small.land()
    assert small.attempt() is None
    small.land()
    with read_only(small.layout.lakehouse):
        message = small.attempt()
    print(message)
    assert message is not None
    assert str(small.layout.lakehouse) in message
    assert "could not be written, read-only file system: make it writable for this user" in message
    small.platform.run("ingest_invoices")
    verdict = judge(small.layout, small.lines.landed)
    assert verdict.right, verdict
