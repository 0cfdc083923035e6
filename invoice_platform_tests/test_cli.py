"""The command line where no Spark is needed: what it prints and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from invoice_platform.assets.factory import STREAMS
from invoice_platform.cli import main
from invoice_platform_tests.conftest import Platform, invoice


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INVOICE_PLATFORM_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "root"


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["invoice-platform", *words])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert call(monkeypatch, *words) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.strip().splitlines()) == 1, shown.err
    return shown.err


def test_landed_paths_go_to_stdout(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("x")
    assert call(monkeypatch, "land", str(tmp_path / "a.txt"), "--to", "text") == 0
    assert capsys.readouterr().out == f"{root}/landing/text/a.txt\n"


def test_generated_paths_go_to_stdout_and_figures_to_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("generate", str(tmp_path), "--files", "2", "--invoices", "20", "--seed", "5", "--faults", "0.5")
    assert call(monkeypatch, *words) == 0
    shown = capsys.readouterr()
    paths = [Path(line) for line in shown.out.splitlines()]
    assert [p.name for p in paths] == ["invoices-seed5-0000.json", "invoices-seed5-0001.json"]
    assert all(p.is_file() for p in paths)
    assert "2 files: 40 records" in shown.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("land", "/no/such/file"), "/no/such/file: no such file to land"),
        (("generate", "somewhere", "--faults", "2"), "faults"),
        (("run", "no_such_job"), "there is no job 'no_such_job': choose one of ingest_invoices, ingest_kafka"),
        (("peek", "no_such_stream"), "there is no stream 'no_such_stream': choose one of invoices, kafka_invoices"),
        (("run", "rebuild_invoices", "--trigger", "1 second"), "rebuild_invoices runs no stream"),
        (("run", "ingest_invoices", "--config", "/no/such.yaml"), "--config /no/such.yaml: No such file or directory"),
        (("run", "ingest_invoices", "--config", "{"), "--config"),
        (("run", "ingest_invoices", "--config", "{'ops': {'nothing': {}}}"), "--config for ingest_invoices"),
        (("run", "ingest_invoices", "--trigger", "often"), "trigger='often' is not a trigger"),
        (("run", "ingest_invoices", "--max-files-per-trigger", "-1"), "max_files_per_trigger=-1: give a number"),
        (
            ("run", "ingest_invoices", "--max-offsets-per-trigger", "0"),
            "max_offsets_per_trigger=0: give a number of records",
        ),
        (("run", "rebuild_invoices", "--no-fail-on-data-loss"), "so it takes no fail_on_data_loss"),
        (("status", "--format", "csv"), "use --format table or json"),
    ],
)
def test_what_cannot_be_done_is_one_line_that_names_the_setting(
    root: Path,  # noqa: ARG001
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(monkeypatch, capsys, *words)


def test_status_says_what_waits_what_stays_and_what_is_there(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    platform.land("1.json", invoice("1"), invoice("2"))
    platform.run("ingest_invoices", {"ops": {"invoices": {"config": {"max_files_per_trigger": 1}}}})
    platform.land("2.json", invoice("3"))
    (platform.layout.landing("invoices") / "x.tmp").touch()
    monkeypatch.setenv("INVOICE_PLATFORM_ROOT", str(platform.layout.root))
    monkeypatch.setenv("COLUMNS", "200")

    assert call(monkeypatch, "status", "--format", "json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["landing"]["invoices"]["waiting"] == 1
    assert facts["landing"]["invoices"]["left"][0]["file"] == "x.tmp"
    stream = facts["streams"]["invoices"]
    assert (stream["segments"], stream["files_accepted"], stream["records_accepted"], stream["files_pending"]) == (
        1,
        1,
        2,
        0,
    )
    assert (stream["segment"], stream["last_batch"], stream["offsets"]) == (1, 0, [{"logOffset": 0}])
    assert facts["streams"]["invoice_line_items"]["offsets"][0]["reservoirVersion"] == 2
    assert set(facts["streams"]) <= set(STREAMS)
    assert facts["tables"]["invoices"]["rows"] == 2
    assert facts["tables"]["invoice_line_items"]["version"] == 1

    assert call(monkeypatch, "status") == 0
    shown = capsys.readouterr().out
    assert "'x.tmp' stays: a temporary name" in shown
    assert "invoice_line_items" in shown


def test_status_of_a_root_where_nothing_was_ever_done_is_empty(
    root: Path,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, "status", "--format", "json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["landing"], facts["streams"], facts["tables"]) == ({}, {}, {})
