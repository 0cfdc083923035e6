"""What comes from outside stays data: no name, path or record leaves the root, is run as SQL or as markup; secrets stay in."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import deltalake
import psutil
import pyarrow as pa
import pytest

from invoice_platform.broker import free_port
from invoice_platform.errors import PlatformError
from invoice_platform.metadata import preview_markdown
from invoice_platform.schemas import INVOICE_LINE_ITEMS
from invoice_platform.status import status
from invoice_platform.streaming import landing as landing_module
from invoice_platform.streaming.landing import LandingFolder, land, read_landed
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.tables import by_path, declare_existing, tables_on_disk
from invoice_platform_tests.conftest import Platform, invoice, item
from invoice_platform_tests.test_cli import call, refused
from invoice_platform_tests.test_kafka_jobs import fresh_topics

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from invoice_platform_tests.servers import KafkaServer

pytest_plugins = ["invoice_platform_tests.servers"]

COMMAND = [sys.executable, "-m", "invoice_platform.cli"]
ODD_NAME = """it's a `#1` "root" $x ü"""
SECRET = "a-secret-of-nobody-71c9"
EVIL = "'); DROP TABLE invoices; -- `x` ${spark.driver.memory} {{7*7}} <script>alert(1)</script> [a](javascript:b) \\' \"+1 %s"


@pytest.fixture
def folder(tmp_path: Path) -> LandingFolder:
    layout = Layout.at(tmp_path / "root")
    layout.landing("invoices").mkdir(parents=True)
    return LandingFolder(layout, "invoices", "invoices")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file outside of the root that nothing may read, move or change."""
    path = tmp_path / "outside.json"
    path.write_text(SECRET)
    os.utime(path, (1_000_000_000, 1_000_000_000))
    return path


def untouched(outside: Path) -> bool:
    return outside.read_text() == SECRET and outside.stat().st_mtime == 1_000_000_000


def everything_under(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_symlink() or path.is_file()]


# Landing


def test_no_symbolic_link_is_followed(folder: LandingFolder, outside: Path) -> None:
    (folder.folder / "link.json").symlink_to(outside)
    (folder.folder / "folder.json").symlink_to(outside.parent)
    admission = folder.admit()
    assert admission.files == 0
    assert {f.reason for f in admission.left} == {"a symbolic link is not followed: land the file itself"}
    with pytest.raises(OSError, match="symbolic link"):
        read_landed(folder.folder / "link.json", "link.json")
    assert untouched(outside)


def by_link(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def by_link_to_itself(path: Path, outside: Path) -> None:
    """The very file that was read, moved out of landing, and a link to it left there."""
    del outside
    path.symlink_to(path.parent.parent.parent.parent / "moved.json")


def by_folder(path: Path, outside: Path) -> None:
    del outside
    path.mkdir()


def by_pipe(path: Path, outside: Path) -> None:
    del outside
    os.mkfifo(path)


def by_file(path: Path, outside: Path) -> None:
    del outside
    path.write_text("another")


REPLACEMENTS = (by_link, by_link_to_itself, by_folder, by_pipe, by_file)


@pytest.mark.parametrize("replace", REPLACEMENTS)
@pytest.mark.parametrize("step", ["being_written", "read_landed", "rename"])
def test_a_file_replaced_at_any_step_of_its_admission_brings_nothing_in(
    folder: LandingFolder,
    outside: Path,
    monkeypatch: pytest.MonkeyPatch,
    replace: Callable[[Path, Path], None],
    step: str,
) -> None:
    """The attacker acts just before a step, the last of which is the rename itself, after all looks."""
    landed = folder.folder / "a.json"
    landed.write_text("one")
    module: Any = os if step == "rename" else landing_module
    real = getattr(module, step)

    def attacked(path: Path, *others: Any) -> Any:
        monkeypatch.setattr(module, step, real)
        Path(path).rename(folder.folder.parent.parent.parent / "moved.json")
        replace(Path(path), outside)
        return real(path, *others)

    monkeypatch.setattr(module, step, attacked)
    admission = folder.admit()
    assert admission.records == 0
    assert untouched(outside)
    archived = [p for p in everything_under(folder.accepted) if p.name.endswith("a.json")]
    assert archived == []
    assert os.path.lexists(landed), "it stays, to be judged at the next admission"
    assert [f.name for f in admission.left] == ["a.json"]
    assert folder.ledger.unfinished() == 0


def test_a_file_that_came_meanwhile_is_not_replaced_by_one_put_back(
    folder: LandingFolder, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    landed = folder.folder / "a.json"
    landed.write_text("one")
    real = os.rename

    def attacked(place: str, target: str) -> None:
        monkeypatch.setattr(os, "rename", real)
        path = Path(place)
        path.unlink()
        path.symlink_to(outside)
        real(path, target)
        path.write_text("new")

    monkeypatch.setattr(os, "rename", attacked)
    assert folder.admit().left[0].reason == "replaced while it was admitted"
    assert landed.read_text() == "new"
    assert (folder.folder / "a.json-").is_symlink()
    assert folder.admit().records == 1
    assert untouched(outside)


def test_a_link_that_a_crash_left_in_the_archive_is_taken_out(folder: LandingFolder, outside: Path) -> None:
    from invoice_platform.streaming.ledger import AcceptedFile

    segment = folder.ledger.open_segment(None)
    half_done = AcceptedFile("k" * 32, f"{'k' * 32}-a.json", "a.json", segment, 1, 1, 1)
    folder.ledger.begin([half_done])
    path = Path(folder.ledger.path_of(segment, half_done.name))
    path.parent.mkdir(parents=True)
    path.symlink_to(outside)
    folder.admit()
    assert not os.path.lexists(path)
    assert folder.ledger.totals()["files"] == 0
    assert untouched(outside)


@pytest.mark.parametrize("name", ["..", ".", "../../x.json", "a/../../../x.json"])
def test_land_takes_only_the_name_of_a_file(folder: LandingFolder, tmp_path: Path, name: str) -> None:
    """The path is the person's own; what lands is under the landing folder, by its last part."""
    (tmp_path / "x.json").write_text("one")
    (tmp_path / "root" / "a" / "b").mkdir(parents=True)
    given = tmp_path / "root" / "a" / name
    if name in ("..", "."):
        with pytest.raises(PlatformError, match="no such file to land"):
            land(given, folder.folder)
    else:
        assert land(tmp_path / "root" / "a" / "b" / "../../.." / "x.json", folder.folder) == folder.folder / "x.json"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["root", "x.json"]


def test_land_writes_through_no_link_that_waits_in_landing(
    folder: LandingFolder, outside: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_text("one")
    (folder.folder / f".a.json.{os.getpid()}.tmp").symlink_to(outside)
    (folder.folder / "b.json").symlink_to(outside)
    (tmp_path / "b.json").write_text("one")
    assert land(tmp_path / "a.json", folder.folder).read_text() == "one"
    with pytest.raises(PlatformError, match="still waiting to be admitted"):
        land(tmp_path / "b.json", folder.folder)
    assert untouched(outside)
    assert not (folder.folder / "a.json").is_symlink()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("peek", "../../../etc"), "there is no stream '../../../etc'"),
        (("peek", "x`; DROP TABLE invoices"), "there is no stream"),
        (("run", "../ingest_invoices"), "there is no job '../ingest_invoices'"),
        (("run", "ingest_invoices; DROP TABLE x"), "there is no job"),
        (("land", "/etc/shadow/../nothing"), "no such file to land"),
    ],
)
def test_a_name_that_is_none_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setenv("INVOICE_PLATFORM_ROOT", str(tmp_path / "root"))
    assert message in refused(monkeypatch, capsys, *words)


def test_generate_replaces_no_file_and_writes_through_no_link(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "invoices-seed1-0000.json").symlink_to(outside)
    assert "already there" in refused(monkeypatch, capsys, "generate", str(tmp_path / "made"), "--invoices", "1")
    assert untouched(outside)


# Names and SQL

STRANGE = ("x`; DROP TABLE invoices", "a b", "x'", "..x", "ü", "x\ny", "[red]x")


def test_a_folder_whose_name_no_table_can_have_is_passed_over_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = Layout.at(tmp_path)
    for name in (*STRANGE, "good_1"):
        made = layout.table("made")
        deltalake.write_deltalake(str(made), pa.table({"x": [1]}))
        made.rename(layout.table(name))
    assert tables_on_disk(layout) == ["good_1"]
    assert status(layout)["passed_over"] == sorted(STRANGE)
    monkeypatch.setenv("INVOICE_PLATFORM_ROOT", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    assert call(monkeypatch, "status") == 0
    shown = capsys.readouterr().out
    assert "'x`; DROP TABLE invoices' is passed over: a table's name is of letters, digits and _" in shown
    assert r"'x\ny'" in shown
    assert "'[red]x'" in shown


def test_strange_folders_and_records_of_sql_and_markup_come_through_as_text(platform: Platform) -> None:
    for name in STRANGE:
        (platform.layout.table(name) / "_delta_log").mkdir(parents=True)
    evil = invoice("1", item(code=EVIL) | {"ItemDescription": EVIL})
    fields = ("InvoiceNumber", "StoreID", "PosID", "CashierID", "CustomerCardNo")
    address = dict.fromkeys(("AddressLine", "City", "ContactNumber", "PinCode", "State"), EVIL)
    platform.land(
        "a b'`#%;$(x).json",
        evil | dict.fromkeys(fields, EVIL) | {"DeliveryAddress": address, "DeliveryType": "HOME-DELIVERY"},
        f"no document: {EVIL}",
    )
    result = platform.run("ingest_invoices")
    columns = ("invoice_number", "store_id", "pos_id", "city", "state", "pin_code", "item_code", "item_description")
    assert platform.sql(f"SELECT {', '.join(columns)} FROM {{invoice_line_items}}") == [(EVIL,) * len(columns)]
    assert platform.sql("SELECT raw FROM {quarantined_invoices}") == [(f"no document: {EVIL}",)]
    assert platform.sql("SELECT customer_card_no FROM {customer_rewards}") == [(EVIL,)]
    (source,) = {row[0] for row in platform.sql("SELECT source_file FROM {invoices}")}
    assert (platform.layout.accepted("invoices") / source).is_file()
    assert not set(STRANGE) & set(declare_existing(platform.spark, platform.layout))
    previews = [
        str(value.value)
        for event in result.all_events
        if event.event_type_value == "ASSET_MATERIALIZATION"
        for name, value in event.step_materialization_data.materialization.metadata.items()
        if name == "preview"
    ]
    assert previews
    for markdown in previews:
        assert not re.search(r"(?<!\\)[<>\[\]`]", markdown.split("\n", 2)[2])


def test_a_preview_shows_text_as_text_and_numbers_as_they_are() -> None:
    row = {
        "invoice_number": "<b>|[x](javascript:y)`\n&lt; https://e.org\x1b[1m",
        "created_time": datetime(2026, 3, 1, tzinfo=timezone.utc),
        "item_qty": -2,
    }
    shown = (preview_markdown([row], INVOICE_LINE_ITEMS).value or "").split("\n")
    assert len(shown) == 3, "a row is a line"
    first, second, *_ = shown[2].strip("| ").split(" | ")
    assert first == r"\<b\>\|\[x\]\(javascript\:y\)\` \&lt\; https\:\/\/e\.org\\x1b\[1m"
    assert second == "2026-03-01 00:00:00+00:00"
    assert " | -2 | " in shown[2]


def test_a_table_shows_markup_and_control_characters_and_obeys_none(
    spark: SparkSession, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    from invoice_platform import cli

    monkeypatch.setattr(cli, "out", Console(width=120))
    cli._print_rows(spark.sql(r"SELECT '[red]x[/nothing]\u001b[2J' AS `[bold]a`"), cli.Format.table)
    shown = capsys.readouterr().out
    assert r"[red]x[/nothing]\x1b[2J" in shown
    assert "[bold]a" in shown
    assert "\x1b" not in shown


# Roots


@pytest.mark.parametrize("name", ["a*b", "a?b", "a[b]", "a{b,c}", "a\nb", "a\\b", "a\x1bb", "a;b", "a%20b", "a\udcffb"])
def test_a_root_that_would_be_read_as_more_than_a_name_is_refused_up_front(tmp_path: Path, name: str) -> None:
    """`%20`, for one: Dagster would keep its history in another folder, outside of the root."""
    with pytest.raises(
        PlatformError, match=r"INVOICE_PLATFORM_ROOT=.*: .* cannot be in it; give another folder"
    ) as caught:
        Layout.at(tmp_path / name)
    assert str(caught.value).isprintable()


def test_a_table_is_named_by_its_path_whatever_is_in_it() -> None:
    assert by_path(Path("/a`b/c")) == "delta.`/a``b/c`"


# As processes


@contextmanager
def command_lines() -> Iterator[set[str]]:
    """Every command line that any process of this machine shows while the block lasts."""
    seen: set[str] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    seen.add(" ".join(process.cmdline()))
            ended.wait(0.05)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


@pytest.mark.slow
def test_a_root_of_an_odd_name_works_cold_and_warm_and_no_secret_is_written_anywhere(
    kafka: KafkaServer, tmp_path: Path
) -> None:
    """With all secrets at once: the warm Spark's token, a login and a key at Kafka, a password at Postgres."""
    fresh_topics(kafka)
    kafka.send("invoices", json.dumps(invoice("k1")))
    root = tmp_path / ODD_NAME
    login = kafka.secured
    environment = os.environ | {
        "INVOICE_PLATFORM_ROOT": str(root),
        "KAFKA_BOOTSTRAP_SERVERS": login.bootstrap_servers,
        "KAFKA_SECURITY_PROTOCOL": login.security_protocol,
        "KAFKA_SASL_MECHANISM": login.sasl_mechanism or "",
        "KAFKA_SASL_USERNAME": login.sasl_username or "",
        "KAFKA_SASL_PASSWORD": login.sasl_password or "",
        "KAFKA_SSL_CA_LOCATION": login.ssl_ca_location or "",
        "KAFKA_SSL_CERTIFICATE_LOCATION": login.ssl_certificate_location or "",
        "KAFKA_SSL_KEY_LOCATION": login.ssl_key_location or "",
        "POSTGRES_URL": f"postgresql://someone:{SECRET}@127.0.0.1:1/nowhere",
    }
    (tmp_path / "a.json").write_text(json.dumps(invoice("f1")) + "\nbad")
    told: list[str] = []

    def command(*words: str, ok: bool = True) -> str:
        done = subprocess.run(
            [*COMMAND, *words], env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path, check=False
        )
        assert (done.returncode == 0) is ok, done.stderr[-3000:]
        told.extend((done.stdout, done.stderr))
        return done.stdout

    with command_lines() as seen:
        command("land", "a.json")
        command("run", "ingest_invoices")
        serve = [*COMMAND, "serve", "--spark-port", str(free_port())]
        with (tmp_path / "serve.log").open("w+") as log:
            process = subprocess.Popen(
                serve, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=log, text=True
            )
            try:
                assert process.stdout is not None
                assert process.stdout.readline().startswith("sc://"), (tmp_path / "serve.log").read_text()
                token = json.loads((root / "spark-connect.json").read_text())["token"]
                assert (root / "spark-connect.json").stat().st_mode & 0o077 == 0
                command("run", "ingest_kafka_invoices")
                counted = command("sql", "SELECT invoice_number FROM invoice_line_items ORDER BY 1", "--format", "csv")
                assert counted == "invoice_number\nf1\nk1\n"
                # One that fails with the login in its hands.
                environment["KAFKA_SASL_PASSWORD"] = SECRET
                command("run", "ingest_kafka_invoices", ok=False)
                assert "refuses the login" in told[-1]
            finally:
                process.send_signal(signal.SIGINT)
                told.append(process.communicate(timeout=90)[0])
        told.append((tmp_path / "serve.log").read_text())
    assert json.loads(command("status", "--format", "json"))["quarantine"]["open"] == 1
    assert {p.name for p in tmp_path.iterdir()} == {ODD_NAME, "a.json", "serve.log"}, (
        "nothing was written beside the root"
    )

    key = Path(login.ssl_key_location or "").read_text().splitlines()[1]
    password = login.sasl_password or ""
    escaped = password.replace("\\", "\\\\").replace('"', '\\"')  # as in JSON, JAAS and repr
    secrets = {SECRET, token, key, password, escaped, json.dumps(password)[1:-1], quote(password, safe="")}
    places = {str(path): path.read_bytes() for path in everything_under(root)}
    places |= {f"what command {n} said": text.encode() for n, text in enumerate(told)}
    places |= {f"process {line}": line.encode() for line in seen}
    assert any("spark.log" in place for place in places)
    assert any("warm_spark.py" in place for place in places)
    for secret in secrets:
        assert len(secret) > 8
        assert [place for place, text in places.items() if secret.encode() in text] == []
