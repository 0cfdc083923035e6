"""Admission: what leaves landing, under which name, and what stays and why. No Spark."""

from __future__ import annotations

import gzip
import os
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from invoice_platform.errors import PlatformError
from invoice_platform.streaming import landing as landing_module
from invoice_platform.streaming.landing import LandingFolder, being_written, land, read_landed, safe_name
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.settings import MAX_LINE_BYTES


@pytest.fixture
def folder(tmp_path: Path) -> LandingFolder:
    layout = Layout.at(tmp_path)
    layout.landing("invoices").mkdir(parents=True)
    return LandingFolder(layout, "invoices", "invoices")


def drop(folder: LandingFolder, name: str, content: bytes = b"one\ntwo") -> Path:
    path = folder.folder / name
    path.write_bytes(content)
    return path


def reasons(folder: LandingFolder) -> dict[str, str]:
    return {f.name: f.reason for f in folder.scan().left}


def test_an_admitted_file_leaves_landing_and_is_whole_in_its_segment(folder: LandingFolder) -> None:
    drop(folder, "a.json", b"one\n\n \t\ntwo")
    admission = folder.admit()
    assert (admission.files, admission.records, admission.bytes) == (1, 2, 11)
    assert list(folder.folder.iterdir()) == []
    (file,) = admission.admitted
    accepted = Path(folder.ledger.path_of(file.segment, file.name))
    assert accepted.read_bytes() == b"one\n\n \t\ntwo"
    assert accepted.parent.name == "000001"


def test_modification_times_are_fresh_and_rise_in_order_of_arrival(folder: LandingFolder) -> None:
    for day, name in ((3, "late.json"), (1, "early.json"), (2, "middle.json")):
        os.utime(drop(folder, name), (day * 86_400, day * 86_400))  # long ago: Spark would ignore it for ever
    first = folder.admit()
    assert [f.landed_name for f in first.admitted] == ["early.json", "middle.json", "late.json"]
    drop(folder, "next.json")
    times = [
        os.stat(folder.ledger.path_of(f.segment, f.name)).st_mtime_ns
        for f in (*first.admitted, *folder.admit().admitted)
    ]
    assert times == sorted(set(times)), "strictly rising, over admissions too"
    assert all(t > 1_700_000_000 * 10**9 for t in times)


def test_the_same_delivery_again_is_counted_and_not_read_twice(folder: LandingFolder) -> None:
    drop(folder, "a.json")
    folder.admit()
    drop(folder, "a.json")
    again = folder.admit()
    assert (again.files, again.repeated) == (0, ["a.json"])
    assert list(folder.folder.iterdir()) == []
    assert folder.ledger.totals()["files"] == 1


def test_the_same_name_with_other_content_and_other_names_with_the_same_are_all_kept(folder: LandingFolder) -> None:
    for name, content in (("a.json", b"1"), ("a.json", b"2"), ("b.json", b"1")):
        drop(folder, name, content)
        assert folder.admit().files == 1
    assert folder.ledger.totals()["files"] == 3


def test_a_delivery_is_recognised_in_every_earlier_segment(folder: LandingFolder) -> None:
    folder.segment_files = 1
    for n in range(4):
        drop(folder, f"{n}.json", b"%d" % n)
        folder.admit()
    drop(folder, "0.json", b"0")
    assert folder.admit().repeated == ["0.json"]
    assert folder.ledger.segments() == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["x.tmp", "x.json.part", ".hidden.json", "x.json~", "x.crdownload"])
def test_a_temporary_name_stays_with_a_reason(folder: LandingFolder, name: str) -> None:
    drop(folder, name)
    assert folder.admit().files == 0
    assert "temporary" in reasons(folder)[name]


def test_what_is_no_readable_file_stays_with_a_reason(folder: LandingFolder) -> None:
    drop(folder, "empty.json", b"")
    (folder.folder / "folder").mkdir()
    (folder.folder / "link.json").symlink_to(drop(folder, "x.bz2"))
    os.mkfifo(folder.folder / "pipe")
    drop(folder, "bad.gz", b"no gzip at all")
    admission = folder.admit()
    assert admission.files == 0
    found = {f.name: f.reason for f in admission.left}
    assert found["empty.json"] == "empty"
    assert "folder" in found["folder"]
    assert "symbolic link" in found["link.json"]
    assert "not a regular file" in found["pipe"]
    assert "packed" in found["x.bz2"]
    assert "damaged gzip" in found["bad.gz"]
    assert folder.scan().waiting == [], "what was found out by reading is remembered, and rings no bell again"
    drop(folder, "bad.gz", gzip.compress(b"mended"))
    assert folder.admit().files == 1


def test_a_file_open_for_writing_stays_until_it_is_closed(folder: LandingFolder) -> None:
    path = folder.folder / "growing.json"
    with path.open("wb") as writer:
        writer.write(b"half a ")
        writer.flush()
        assert being_written(path)
        (left,) = folder.admit().left
        assert left.reason == "still being written"
        writer.write(b"line")
    assert not being_written(path)
    assert folder.admit().bytes == len(b"half a line")


@pytest.mark.parametrize(
    "name",
    ["a b.json", "new\nline.json", "emoji-😀.json", "a#b%20c:d.json", "_x.json", "ünï.json", "k=1.json", "x" * 240],
)
def test_any_other_name_is_admitted_under_a_name_that_spark_reads(folder: LandingFolder, name: str) -> None:
    drop(folder, name)
    (file,) = folder.admit().admitted
    assert file.landed_name == name
    assert set(file.name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert file.name[0] not in "._"


def test_gzip_is_counted_as_it_will_be_read(folder: LandingFolder) -> None:
    drop(folder, "a.json.GZ", gzip.compress(b"one\ntwo\nthree"))
    (file,) = folder.admit().admitted
    assert file.records == 3
    assert file.name.endswith(".gz"), "the ending that makes Spark unpack it"


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 20])
def test_records_are_the_lines_that_are_not_blank_however_the_file_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(landing_module, "CHUNK_BYTES", chunk)
    content = b"\n a\n\n\r\nbb \r\n \t \nccc"
    path = tmp_path / "x"
    path.write_bytes(content)
    assert read_landed(path, "x")[1] == sum(1 for line in content.split(b"\n") if line.strip()) == 3


@pytest.mark.parametrize("packed", [False, True])
def test_a_line_too_long_for_spark_keeps_its_file_in_landing_and_says_which(
    folder: LandingFolder, packed: bool
) -> None:
    content = b"{}\n" + b"x" * (MAX_LINE_BYTES + 1)
    drop(folder, "long.json.gz" if packed else "long.json", gzip.compress(content, 1) if packed else content)
    drop(folder, "as long as may be.json", b"y" * MAX_LINE_BYTES + b"\n{}")
    admission = folder.admit()
    assert [(f.landed_name, f.records) for f in admission.admitted] == [("as long as may be.json", 2)]
    assert admission.left[0].reason.startswith("line 2 is longer than 16,777,216 bytes: end each record with a newline")
    assert folder.scan().waiting == [], "and is not read again until it changes"


def test_a_segment_closes_when_it_is_full_and_the_next_opens(folder: LandingFolder) -> None:
    folder.segment_files = 2
    for batch in (3, 1):
        for n in range(batch):
            drop(folder, f"{batch}-{n}.json", b"%d%d" % (batch, n))
        folder.admit()
    pending = folder.ledger.pending()
    assert [(p.segment, p.closed, p.files) for p in pending] == [(1, True, 3), (2, False, 1)]


def test_a_crash_before_the_rename_leaves_the_file_to_the_next_admission(
    folder: LandingFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(folder, "a.json")

    def crash(*paths: object) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            folder.admit()
    assert folder.ledger.pending() == []
    assert folder.admit().files == 1
    assert folder.ledger.totals()["files"] == 1


def test_a_crash_after_the_rename_loses_nothing_and_repeats_nothing(
    folder: LandingFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(folder, "a.json")

    rename = os.rename

    def crash(*paths: Any) -> None:
        rename(*paths)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", crash)
        with pytest.raises(KeyboardInterrupt):
            folder.admit()
    assert list(folder.folder.iterdir()) == []
    assert folder.admit().files == 0
    (pending,) = folder.ledger.pending()
    assert pending.files == 1


def test_a_lost_ledger_is_made_anew_from_the_archive(folder: LandingFolder) -> None:
    drop(folder, "a.json", b"one\ntwo")
    folder.admit()
    folder.ledger.path.unlink()
    drop(folder, "a.json", b"one\ntwo")
    drop(folder, "b.json", b"three")
    admission = folder.admit()
    assert (admission.files, admission.repeated) == (1, ["a.json"])
    assert folder.ledger.totals() == {"files": 2, "bytes": 12, "records": 3, "records_drained": 0}


def test_sums_are_of_all_that_was_accepted_in_a_ledger_of_before_too(folder: LandingFolder) -> None:
    drop(folder, "a.json", b"one\ntwo")
    folder.admit()
    with closing(sqlite3.connect(folder.ledger.path)) as connection:  # as it was made before there were sums
        for what in ("TRIGGER sums_insert", "TRIGGER sums_update", "TABLE sums"):
            connection.execute(f"DROP {what}")
        connection.execute("PRAGMA user_version = 1")
    drop(folder, "b.json", b"three")
    expected = {"files": 1, "bytes": 7, "records": 2, "records_drained": 0}
    assert folder.ledger.totals() == expected
    folder.admit()
    first, *_ = folder.ledger.files(1).values()
    folder.ledger.drained(1, through=first[0])
    assert folder.ledger.totals() == {"files": 2, "bytes": 12, "records": 3, "records_drained": 2}
    folder.ledger.leave(1, into=2, files=[first[0] + 1])
    folder.ledger.undrain(1)
    assert folder.ledger.totals() == {"files": 2, "bytes": 12, "records": 3, "records_drained": 0}
    assert folder.ledger.recover() == 0


def test_a_missing_landing_folder_is_named_with_the_remedy(folder: LandingFolder) -> None:
    shutil.rmtree(folder.folder)
    with pytest.raises(PlatformError, match=r"landing folder .* is missing: create it .*invoice-platform land"):
        folder.admit()


def test_landing_a_file_copies_it_whole_and_replaces_nothing(folder: LandingFolder, tmp_path: Path) -> None:
    source = tmp_path / "a.json"
    source.write_bytes(b"one")
    assert land(source, folder.folder).read_bytes() == b"one"
    source.write_bytes(b"two")
    with pytest.raises(PlatformError, match="still waiting to be admitted"):
        land(source, folder.folder)
    assert (folder.folder / "a.json").read_bytes() == b"one"
    assert [p.name for p in folder.folder.iterdir()] == ["a.json"], "no temporary file is left"
    with pytest.raises(PlatformError, match="no such file"):
        land(tmp_path / "absent", folder.folder)


def test_a_landed_file_is_as_readable_as_the_landing_folder_needs(folder: LandingFolder, tmp_path: Path) -> None:
    source = tmp_path / "a.json"
    source.write_bytes(b"one")
    source.chmod(0o600)
    assert stat.S_ISREG(land(source, folder.folder).stat().st_mode)
    assert folder.admit().files == 1


def test_a_file_replaced_while_others_are_read_is_left_for_the_next_admission(
    folder: LandingFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(folder, "a.json", b"first")
    folder.admit()
    drop(folder, "a.json", b"first")  # delivered again, and mended a moment later
    seen = folder.ledger.seen

    def mended_meanwhile(keys: Any) -> set[str]:
        (folder.folder / "new").write_bytes(b"mended")
        os.replace(folder.folder / "new", folder.folder / "a.json")
        return seen(keys)

    with monkeypatch.context() as patched:
        patched.setattr(folder.ledger, "seen", mended_meanwhile)
        admission = folder.admit()
    assert (admission.files, admission.repeated) == (0, [])
    assert (folder.folder / "a.json").read_bytes() == b"mended"
    assert folder.admit().files == 1


def test_a_file_that_cannot_be_moved_does_not_hold_up_the_others(
    folder: LandingFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.json", "b.json", "c.json"):
        drop(folder, name, name.encode())
    rename = os.rename

    def not_ours(source: str, target: str) -> None:
        if Path(source).name == "b.json":
            raise PermissionError
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", not_ours)
        admission = folder.admit()
    assert [f.landed_name for f in admission.admitted] == ["a.json", "c.json"]
    assert "belongs to another user" in reasons_of(admission)["b.json"]
    assert folder.ledger.unfinished() == 0
    assert folder.ledger.totals()["files"] == 2


def reasons_of(admission: Any) -> dict[str, str]:
    return {f.name: f.reason for f in admission.left}


def test_a_ledger_whose_making_was_interrupted_is_made_again(folder: LandingFolder) -> None:
    drop(folder, "a.json")
    folder.admit()
    folder.ledger.path.unlink()
    folder.ledger.path.touch()  # as left by a process killed in its first transaction
    assert folder.ledger.pending() == []
    drop(folder, "a.json")
    assert folder.admit().repeated == ["a.json"]


def test_a_byte_order_mark_alone_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbf")
    assert read_landed(tmp_path / "x", "x")[1] == 0


def test_safe_names_keep_their_ending() -> None:
    assert safe_name("x" * 300 + ".json").endswith(".json")
    assert safe_name("../../etc/passwd") == ".._.._etc_passwd"
