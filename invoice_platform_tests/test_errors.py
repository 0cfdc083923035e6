"""What a person is told when the system refuses a write: one line with the file and the remedy."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from invoice_platform.errors import PlatformError, refused_by_disk, writing

FULL = Path("/dev/full")
"""The system's own file on a disk that is always full."""


def test_a_full_disk_is_said_with_the_file() -> None:
    with pytest.raises(PlatformError) as told, writing(Path("ledger")), FULL.open("wb", buffering=0) as file:
        file.write(b"more")
    assert (
        str(told.value) == "ledger could not be written, no space left on the device: make room there, then run again"
    )


def test_a_readonly_database_is_said_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with closing(sqlite3.connect(path)) as made:
        made.execute("CREATE TABLE t (x)")
    with (
        pytest.raises(
            PlatformError, match=r"ledger\.sqlite could not be written, read-only file system: make it writable"
        ),
        writing(path),
        closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as found,
    ):
        found.execute("INSERT INTO t VALUES (1)")


def test_what_is_no_fault_of_the_disk_goes_through_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), writing(tmp_path):
        (tmp_path / "nowhere" / "file").write_text("x")
    with pytest.raises(sqlite3.OperationalError), writing(tmp_path), closing(sqlite3.connect(":memory:")) as found:
        found.execute("SELECT nothing FROM nowhere")


def test_spark_is_understood_when_it_could_not_write(tmp_path: Path) -> None:
    said = "java.io.FileNotFoundException: /data/lakehouse/orders/part-0 (Read-only file system)\n\tat java.base/…"
    assert refused_by_disk(said, tmp_path) == (
        "/data/lakehouse/orders/part-0 could not be written, read-only file system: "
        "make it writable for this user (mount -o remount,rw, chown, chmod), then run again"
    )
    said = "java.io.IOException: No space left on device"
    assert (refused_by_disk(said, tmp_path) or "").startswith(f"{tmp_path} could not be written, no space left")
    assert refused_by_disk("[TABLE_OR_VIEW_NOT_FOUND] orders", tmp_path) is None
