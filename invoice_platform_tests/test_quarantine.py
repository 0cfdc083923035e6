"""Quarantined records: their places, the way out to be mended and back in, and nothing sent twice."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from invoice_platform import cli
from invoice_platform.errors import PlatformError
from invoice_platform.quarantine import Notes, Quarantine, Record, export, retry, retry_mended, summary
from invoice_platform.streaming.landing import land
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.ledger import Ledger
from invoice_platform.streaming.rebuild import rebuild
from invoice_platform.streaming.stream import RunSettings, run_streams
from invoice_platform.terminal import json_line, visible
from invoice_platform_tests.conftest import INVOICE_STREAMS, Platform, invoice
from invoice_platform_tests.test_cli import call, refused

BASE = datetime(2026, 3, 1, tzinfo=timezone.utc)


class Root:
    """A root with an archive and a quarantine, written without Spark."""

    def __init__(self, path: Path) -> None:
        self.layout = Layout.at(path)
        self.files = 0

    def file(self, name: str, content: bytes, bad: dict[str, str]) -> str:
        """Archive a file; `bad` are texts of it that are in quarantine, with their reasons. Its source file."""
        self.files += 1
        source = f"000001/{self.files:032x}-{name}"
        path = self.layout.accepted("invoices") / source
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        texts = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").split("\n")
        self.rows((text, source, bad[text]) for text in reversed(texts) if text in bad)
        return source

    def rows(self, rows: Any) -> None:
        """Rows of the table (text, source file, reason), later than those before."""
        import pyarrow as pa
        from deltalake import write_deltalake

        at = BASE + timedelta(minutes=self.files)
        columns = {"raw": [], "source_file": [], "reason": [], "ingested_at": []}
        for row in rows:
            for column, value in zip(columns.values(), (*row, at), strict=True):
                column.append(value)
        schema = pa.schema(
            [(name, pa.string()) for name in ("raw", "source_file", "reason")]
            + [("ingested_at", pa.timestamp("us", "UTC"))]
        )
        write_deltalake(str(self.layout.table("quarantined_invoices")), pa.table(columns, schema), mode="append")

    def kafka(self, *texts: str | None, reason: str = "bad") -> None:
        self.files += 1
        self.rows((text, f"kafka:invoices/0/{n}", reason) for n, text in enumerate(texts))

    def records(self, **chosen: Any) -> list[Record]:
        quarantine = Quarantine(self.layout)
        with Notes.reading(self.layout) as notes:
            found = list(quarantine.records(notes, **chosen))
        assert quarantine.lost == {}
        return found

    def open(self) -> list[str]:
        return [record.place for record in self.records() if record.sent is None]

    def landed(self) -> list[Path]:
        folder = self.layout.landing("invoices")
        return sorted(folder.iterdir()) if folder.is_dir() else []


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Root:
    monkeypatch.setenv("INVOICE_PLATFORM_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("COLUMNS", "250")
    return Root(tmp_path / "root")


def write_export(file: Path, *records: Any) -> Path:
    file.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records))
    return file


# Through the real jobs


@pytest.mark.slow
def test_bad_lines_have_their_place_and_come_back_mended(platform: Platform, tmp_path: Path) -> None:
    def ingest() -> None:
        run_streams(INVOICE_STREAMS, platform.open, platform.layout, RunSettings(), run="test")

    cut = b'{"InvoiceNumber": "3", "StoreI'
    lines = [b"\xef\xbb\xbf" + cut, invoice("1"), "", cut + b"\r", cut, b"\xff\xfe{", invoice("2")]
    plain = platform.land("plain.json", *lines)
    (platform.sources / "packed.json.gz").write_bytes(gzip.compress(plain.read_bytes()))
    land(platform.sources / "packed.json.gz", platform.layout.landing("invoices"))
    ingest()

    quarantine = Quarantine(platform.layout)
    with Notes.reading(platform.layout) as notes:
        records = list(quarantine.records(notes))
    assert (len(records), quarantine.lost) == (8, {})
    for name in ("plain.json", "packed.json.gz"):
        places = [record.place for record in records if name in record.place]
        assert [place.rpartition(":")[2] for place in places] == ["1", "4", "5", "6"]
    raw_of_table = sorted(row[0] for row in platform.sql("SELECT raw FROM {quarantined_invoices}"))
    assert sorted(record.raw for record in records) == raw_of_table, "as Spark replaces bytes that are no UTF-8"

    export(platform.layout, tmp_path / "bad.jsonl")
    exported = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    for number, line in enumerate(exported):
        line["raw"] = json.dumps(invoice(str(100 + number)))
    exported[-1]["raw"] = "still bad"
    mended = write_export(tmp_path / "mended.jsonl", *exported)
    assert retry_mended(platform.layout, mended)[0].records == 8
    assert summary(platform.layout) == {"open": 0, "sent_again": 8}
    ingest()
    assert summary(platform.layout) == {"open": 1, "sent_again": 8}

    assert retry_mended(platform.layout, mended, again=True)[0].accepted_before
    assert retry(platform.layout)[0].records == 1
    ingest()
    assert platform.sql("SELECT count(*), count(DISTINCT invoice_number) FROM {invoice_line_items}") == [(11, 9)]
    assert (
        platform.sql("SELECT raw FROM {quarantined_invoices} WHERE source_file LIKE '%retry-%'") == [("still bad",)] * 2
    )
    assert retry(platform.layout)[0].records == 1, (
        "from its new place: another file than the last, though the text is the same"
    )

    ingest()
    landed = Ledger(platform.layout.accepted("invoices")).totals()["records"]
    assert (landed, platform.count("invoices"), platform.count("quarantined_invoices")) == (22, 22, 11)
    rebuild(INVOICE_STREAMS, platform.open, platform.layout, run="test")
    with Notes.reading(platform.layout) as notes:
        sent = {record.place for record in Quarantine(platform.layout).records(notes) if record.sent}
    assert {record.place for record in records} <= sent
    assert summary(platform.layout) == {"open": 1, "sent_again": 10}


# Places


def test_newest_file_first_and_lines_in_order_the_same_text_taking_them_one_by_one(root: Root) -> None:
    old = root.file("old.json", b"bad\ngood\nbad\nworse\r\nbad", {"bad": "r", "worse\r": "s"})
    new = root.file("new.json.gz", b"\xef\xbb\xbfx\n\ny\n", {"x": "r", "y": "r"})
    assert [r.place for r in root.records()] == [f"{new}:1", f"{new}:3", f"{old}:1", f"{old}:3", f"{old}:4", f"{old}:5"]
    assert [r.place for r in root.records(oldest_first=True)][:2] == [f"{old}:1", f"{old}:3"]
    assert [(r.place, r.line) for r in root.records(reason="S")] == [(f"{old}:4", b"worse\r")]
    assert [r.place for r in root.records(sources={new})] == [f"{new}:1", f"{new}:3"]


def test_a_record_cut_in_the_table_is_found_and_sent_whole(root: Root) -> None:
    long = "x" * 70_000
    source = root.file("long.json", f"{long}y\n{long}z\nshort\n".encode(), {"short": "bad"})
    root.rows([(long, source, "too long"), (long, source, "too long")])
    assert [r.place for r in root.records()] == [f"{source}:{n}" for n in (1, 2, 3)]
    retry(root.layout, reason="too long")
    assert root.landed()[0].read_text() == f"{long}y\n{long}z\n"


def test_a_record_that_is_not_in_the_archive_is_said_and_the_others_are_shown(
    root: Root, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = root.file("gone.json", b"a", {"a": "bad"})
    changed = root.file("changed.json", b"b\nc", {"b": "bad", "c": "bad"})
    linked = root.file("linked.json", b"d", {"d": "bad"})
    outside = root.file("x.json", b"", {})
    root.rows([("root:x", "../../../etc/passwd", "bad")])
    archive = root.layout.accepted("invoices")
    (archive / gone).unlink()
    (archive / changed).write_bytes(b"c")
    (archive / linked).unlink()
    (archive / linked).symlink_to(archive / outside)
    assert call(monkeypatch, "quarantine", "list", "--format", "csv") == 0
    shown = capsys.readouterr()
    assert [row[0] for row in csv.reader(io.StringIO(shown.out))] == ["place", f"{changed}:1"]
    for said in (
        f"{gone}, quarantined: 1 records: No such file or directory",
        f"{changed}, quarantined: 1 records are not in it",
        f"{linked}, quarantined: 1 records: Too many levels of symbolic links",
        "../../../etc/passwd, quarantined: 1 records: not the name of an archived file",
    ):
        assert said in shown.err


@pytest.mark.slow
def test_a_quarantine_of_many_records_does_not_fill_memory(root: Root) -> None:
    """In a process of its own: 60,000 records of 5,000 bytes, 300 MB, in two files."""
    for n in range(2):
        lines = [f"{n}-{i} {'x' * 5000}" for i in range(30_000)]
        root.file(f"{n}.json", "\n".join(lines).encode(), dict.fromkeys(lines, "bad"))
    code = (
        "import sys; from invoice_platform.quarantine import *; import deltalake, pyarrow\n"
        "print('begun', flush=True); sys.stdin.readline(); print(retry(Layout.at())[0].records)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        watched = psutil.Process(process.pid)
        before = most = watched.memory_info().rss
        process.stdin.write("\n")
        process.stdin.flush()
        while process.poll() is None:
            with suppress(psutil.Error):
                most = max(most, watched.memory_info().rss)
            time.sleep(0.02)
        assert process.stdout.read() == "60000\n"
    assert (most - before) // 2**20 < 200, "MiB"


# What a person sees


def test_list_shows_what_is_open_and_says_the_reasons(
    root: Root, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = root.file("a.json", b"one\ntwo\nthree", {"one": 'it\'s "bad"', "two": "worse", "three": "worse"})
    retry(root.layout, reason="it's")
    (landed,) = root.landed()

    assert call(monkeypatch, "quarantine", "list", "--format", "json") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == [
        {"place": f"{source}:{n}", "ingested_at": "2026-03-01T00:01:00+00:00", "reason": "worse", "raw": raw}
        for n, raw in ((2, "two"), (3, "three"))
    ]
    assert shown.err == "2 records open (worse: 2), 1 sent again\n"

    assert call(monkeypatch, "quarantine", "list", "--all", "--limit", "1", "--format", "json") == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert (record["place"], record["sent_again_in"]) == (f"{source}:1", landed.name)
    assert datetime.fromisoformat(record["sent_again_at"]).utcoffset() == timedelta(0)

    assert call(monkeypatch, "quarantine", "list", "--all", "--format", "csv") == 0
    header, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    assert header[-1] == "sent_again_at"
    assert [row[:1] + row[2:4] + [bool(row[4])] for row in rows] == [
        [f"{source}:1", 'it\'s "bad"', "one", True],
        [f"{source}:2", "worse", "two", False],
        [f"{source}:3", "worse", "three", False],
    ]

    assert call(monkeypatch, "quarantine", "list") == 0
    table = capsys.readouterr().out
    assert f"{source}:2" in table
    assert "│ two " in table
    assert call(monkeypatch, "status", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)["quarantine"] == {"open": 2, "sent_again": 1}


def test_each_column_of_the_list_has_its_part_of_a_narrow_terminal(
    root: Root, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "x" * 10_000
    root.file("a.json", text.encode(), {text: "far too long to be an invoice"})
    monkeypatch.setattr(cli.out, "width", 80)
    assert call(monkeypatch, "quarantine", "list") == 0
    row = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    place, at, reason, raw = ("".join(part.strip() for part in parts) for parts in zip(*row, strict=True))
    assert place.endswith("a.json:1")
    assert at == "2026-03-01T00:01:00+00:00"
    assert reason.replace(" ", "") == "fartoolongtobeaninvoice"
    assert raw == "x" * 40 + "…"


def test_a_text_is_shown_and_not_obeyed(
    root: Root, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b[2J[red]x[/nothing]\x9b31m\u202e'; DROP TABLE t --"
    root.file("a.json", evil.encode(), {evil: "[bold]\x1b[31m"})
    for format in ("table", "json"):
        assert call(monkeypatch, "quarantine", "list", "--format", format) == 0
        shown = capsys.readouterr()
        assert "[red]x[/nothing]" in shown.out
        for character in "\x1b\x9b\u202e":
            assert character not in shown.out + shown.err
        assert "[bold]\\x1b[31m: 1" in shown.err
    assert json.loads(json_line([evil, "ü😀"])) == [evil, "ü😀"]
    assert "ü😀" in json_line("ü😀")
    assert visible("a\tb\nc") == "a\\tb\\nc"


def test_an_empty_quarantine_is_an_empty_answer(
    root: Root,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, "quarantine", "list", "--format", "json") == 0
    assert capsys.readouterr() == ("[]\n", "0 records open, 0 sent again\n")
    assert call(monkeypatch, "quarantine", "export", "-") == 0
    assert capsys.readouterr().out == ""
    assert call(monkeypatch, "quarantine", "retry", "--all") == 0
    assert capsys.readouterr() == ("", "0 records landed again\n")


# Export and retry


def test_an_export_mended_and_sent_is_one_new_file_and_the_places_are_noted(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root.file("new.json", b"a\nb", {"a": "bad", "b": "bad"})
    root.kafka("k")
    out = tmp_path / "out.jsonl"
    assert call(monkeypatch, "quarantine", "export", str(out)) == 0
    assert capsys.readouterr().out == f"{out}\n"
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["raw"] for line in lines] == ["a", "b", "k"], "oldest first"
    assert set(lines[0]) == {"place", "reason", "ingested_at", "raw"}
    assert lines[2]["place"] == "kafka:invoices/0/0"
    assert "is there already" in refused(monkeypatch, capsys, "quarantine", "export", str(out))
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["out.jsonl"]

    out.write_bytes(b"\xef\xbb\xbf" + out.read_bytes().replace(b'"raw": "b"', '"raw": "mended ü"'.encode()) + b"\n\n")
    assert call(monkeypatch, "quarantine", "retry", str(out)) == 0
    shown = capsys.readouterr()
    (landed,) = root.landed()
    assert shown.out == f"{landed}\n"
    assert "3 records landed again" in shown.err
    assert "invoice-platform run ingest_invoices" in shown.err
    assert landed.read_text() == "a\nmended ü\nk\n"
    assert root.open() == []

    assert call(monkeypatch, "quarantine", "retry", str(out)) == 0
    shown = capsys.readouterr()
    assert (shown.out, root.landed()) == ("", [landed])
    assert "0 records landed again\n3 passed over: sent again before" in shown.err
    out.write_text(out.read_text(encoding="utf-8-sig").replace("mended ü", "mended better"))
    assert call(monkeypatch, "quarantine", "retry", str(out), "--again") == 0
    assert len(root.landed()) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not a JSON document in UTF-8"),
        ("[" * 100_000, "line 2: not a JSON document in UTF-8"),
        ([1], "line 2: no text under 'place'"),
        ({"place": "X:1"}, "line 2: no text under 'raw'"),
        ({"place": "X:1", "raw": None}, "line 2: no text under 'raw'"),
        ({"place": "X:1", "raw": {"InvoiceNumber": "1"}}, "line 2: no text under 'raw'"),
        ({"place": "X:1", "raw": "a\nb"}, "line 2: raw holds a newline"),
        ({"place": "X:1", "raw": " \t"}, "line 2: raw is blank"),
        ({"place": "X:1", "raw": "\ud800"}, "line 2: half a character"),
        ({"place": "X:2", "raw": "x"}, "line 2: no quarantined record has the place"),
        ({"place": "../../etc/passwd:1", "raw": "x"}, "line 2: no quarantined record has the place"),
        ({"place": "') OR 1=1 --:1", "raw": "x"}, "line 2: no quarantined record has the place"),
        ({"place": "\udcff", "raw": "x"}, "line 2: half a character"),
        ({"place": "FIRST", "raw": "x"}, "was there before: keep one of the two"),
    ],
)
def test_what_is_no_mended_export_is_refused_by_line_before_anything_is_landed(
    root: Root,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: Any,
    message: str,
) -> None:
    source = root.file("a.json", b"a\nfine", {"a": "bad"})
    if isinstance(line, dict):
        line = line | {"place": line["place"].replace("X", source).replace("FIRST", f"{source}:1")}
    file = write_export(tmp_path / "m", {"place": f"{source}:1", "raw": "x"}, line)
    said = refused(monkeypatch, capsys, "quarantine", "retry", str(file))
    assert message in said
    assert "nothing was landed" in said
    assert root.landed() == []
    assert root.open() == [f"{source}:1"]


@pytest.mark.parametrize("words", [(), ("x", "--all"), ("--all", "--reason", "x")])
def test_retry_takes_one_kind_of_choice(
    root: Root,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
) -> None:
    assert "give one of FILE" in refused(monkeypatch, capsys, "quarantine", "retry", *words)


def test_as_they_stand_records_are_sent_byte_for_byte_oldest_first(root: Root) -> None:
    root.file("a.json", b"\xff\xfe{\nfine\n", {"\ufffd\ufffd{": "not valid UTF-8"})
    root.file("b.json", "first\n\ufeff".encode(), {"\ufeff": "bad"})
    assert retry(root.layout)[0].records == 2
    assert root.landed()[0].read_bytes() == b"\xff\xfe{\n\xef\xbb\xbf\n"


def test_a_byte_order_mark_that_is_a_records_own_text_is_not_lost_at_the_start_of_a_file(root: Root) -> None:
    root.file("b.json", "first\n\ufeff".encode(), {"\ufeff": "bad"})
    retry(root.layout)
    assert root.landed()[0].read_bytes() == b"\xef\xbb\xbf" * 2 + b"\n", "Spark takes the first of the two away"


def test_messages_without_a_line_of_text_are_counted_and_stay_open(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root.kafka("one", None, " ", '{\n"InvoiceNumber": 1}')
    assert call(monkeypatch, "quarantine", "retry", "--all") == 0
    assert "3 passed over: no text, or more than one line of it" in capsys.readouterr().err
    assert root.landed()[0].read_text() == "one\n"
    assert sorted(root.open()) == [f"kafka:invoices/0/{n}" for n in (1, 2, 3)]
    file = write_export(tmp_path / "m", {"place": "kafka:invoices/0/3", "raw": '{"InvoiceNumber": 1}'})
    assert retry_mended(root.layout, file)[0].records == 1
    assert sorted(root.open()) == [f"kafka:invoices/0/{n}" for n in (1, 2)]


def test_more_sources_than_a_query_names_are_picked_out(root: Root, tmp_path: Path) -> None:
    root.kafka(*(str(n) for n in range(1200)))
    places = [{"place": f"kafka:invoices/0/{n}", "raw": "x"} for n in range(1100)]
    assert retry_mended(root.layout, write_export(tmp_path / "m", *places))[0].records == 1100
    assert len(root.open()) == 100


# Crashes and two at once


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_retry_killed_at_the_landing_sends_each_record_once_in_the_end(root: Root, when: str) -> None:
    root.file("a.json", b"a\nb", {"a": "bad", "b": "bad"})
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    steps = (kill, "link(*where)") if when == "before" else ("link(*where)", kill)
    code = (
        "import os, signal\nlink = os.link\n"
        f"def killed(*where):\n    {steps[0]}\n    {steps[1]}\n"
        "os.link = killed\n"
        "from invoice_platform.quarantine import *\nretry(Layout.at())"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == -signal.SIGKILL
    assert len(root.open()) == (2 if when == "before" else 0)
    root.file("c.json", b"c", {"c": "bad"})  # so that the next retry is not the same
    assert retry(root.layout)[0].records == (3 if when == "before" else 1)
    landed = [p.read_text() for p in root.landed() if p.suffix == ".json"]
    assert sorted("".join(landed).split()) == ["a", "b", "c"]
    assert summary(root.layout) == {"open": 0, "sent_again": 3}


def test_a_retry_whose_landing_fails_notes_nothing(root: Root) -> None:
    source = root.file("a.json", b"a", {"a": "bad"})
    root.layout.landing("invoices").parent.mkdir()
    root.layout.landing("invoices").touch()
    with pytest.raises((PlatformError, OSError)):
        retry(root.layout)
    assert root.open() == [f"{source}:1"]
    root.layout.landing("invoices").unlink()
    assert retry(root.layout)[0].records == 1


def test_two_retries_at_once_are_refused_and_a_look_is_not(root: Root) -> None:
    source = root.file("a.json", b"a", {"a": "bad"})
    with FileLock(root.layout.sent_again.with_suffix(".lock")):
        with pytest.raises(PlatformError, match="another `quarantine retry` is going on"):
            retry(root.layout)
        assert root.open() == [f"{source}:1"]
    assert not os.path.exists(root.layout.landing("invoices"))
