"""Invoices through a real Kafka and the platform's jobs: what arrives, what is sent, what survives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from invoice_platform.assets.bronze import KAFKA_INVOICES_STREAM
from invoice_platform.generate import InvoiceGenerator
from invoice_platform.produce import produce
from invoice_platform.resources import Lakehouse
from invoice_platform.sensors import kafka_invoices_sensor
from invoice_platform.streaming.kafka import create_topic, topic_names
from invoice_platform.streaming.settings import RunSettings
from invoice_platform.streaming.sources import KafkaTopics
from invoice_platform.streaming.stream import Stream, run_stream
from invoice_platform.streaming.tables import facts
from invoice_platform_tests.conftest import Platform, invoice, item, wait_until
from invoice_platform_tests.test_jobs import checks, made, why

if TYPE_CHECKING:
    from invoice_platform_tests.servers import KafkaServer

pytest_plugins = ["invoice_platform_tests.servers"]
pytestmark = pytest.mark.slow

TOPICS = ("invoices", "loyalty_notifications")


def fresh_topics(kafka: KafkaServer) -> None:
    """The two topics of the platform, empty: a test has them to itself."""
    admin = AdminClient(kafka.connection.client_config())
    if there := [topic for topic in TOPICS if topic in topic_names(kafka.connection)]:
        for future in admin.delete_topics(there).values():
            future.result(30)
        wait_until(lambda: not set(there) & topic_names(kafka.connection), 30, "topics deleted")
    for topic in TOPICS:
        assert create_topic(kafka.connection, topic)


@pytest.fixture
def topics(platform: Platform, kafka: KafkaServer, monkeypatch: pytest.MonkeyPatch) -> KafkaServer:  # noqa: ARG001
    """A Kafka that the platform finds, with empty topics."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", kafka.connection.bootstrap_servers)
    fresh_topics(kafka)
    return kafka


def send(kafka: KafkaServer, *documents: dict[str, Any] | str | bytes | None) -> None:
    kafka.send("invoices", *(json.dumps(d) if isinstance(d, dict) else d for d in documents))


def bell(platform: Platform) -> dg.SensorResult:
    resources = {"lakehouse": Lakehouse(root=str(platform.layout.root))}
    with dg.build_sensor_context(instance=platform.instance, resources=resources) as context:
        result = kafka_invoices_sensor(context)
    assert isinstance(result, dg.SensorResult)
    return result


def says(platform: Platform) -> str:
    result = bell(platform)
    return (result.skip_reason.skip_message or "") if result.skip_reason is not None else "rings"


def test_records_of_the_topic_go_the_way_of_files_and_notifications_come_out(
    platform: Platform, topics: KafkaServer
) -> None:
    assert says(platform) == "nothing new"
    platform.land("1.json", invoice("f1", item(price=10.0)))
    topics.send("invoices", json.dumps(invoice("k1", item(), item())), key="k1", headers={"till": "7"})
    send(topics, "not an invoice", None, b'{"InvoiceNumber": "\xff"}', invoice("k2", CustomerType="NONPRIME"))
    assert says(platform) == "rings"
    platform.run("ingest_invoices")
    result = platform.run("ingest_kafka_invoices")

    assert platform.sql(
        "SELECT topic, partition, offset, CAST(key AS STRING), CAST(headers[0].value AS STRING), InvoiceNumber, "
        "timestamp IS NOT NULL, source_file FROM {kafka_invoices} WHERE reason IS NULL ORDER BY offset"
    ) == [
        ("invoices", 0, 0, "k1", "7", "k1", True, "kafka:invoices/0/0"),
        ("invoices", 0, 4, None, None, "k2", True, "kafka:invoices/0/4"),
    ]
    assert platform.sql(
        "SELECT topic, partition, offset, left(reason, 8), raw IS NULL FROM {quarantined_invoices} ORDER BY offset"
    ) == [
        ("invoices", 0, 1, "not a JS", False),
        ("invoices", 0, 2, "no value", True),
        ("invoices", 0, 3, "not vali", False),
    ]
    assert platform.sql("SELECT invoice_number FROM {invoice_line_items} ORDER BY 1") == [
        ("f1",), ("k1",), ("k1",), ("k2",),
    ]  # fmt: skip
    # All of them have the one card of `invoice`.
    assert [(i, str(p)) for i, p in platform.sql("SELECT invoices, points FROM {customer_rewards}")] == [(3, "6.2000")]

    sent = topics.read("loyalty_notifications")
    assert {json.loads(r.value or b"")["invoice_number"] for r in sent} == {"f1", "k1"}
    assert all(record.key == b"1000000001" for record in sent)
    assert len({record.headers["record-id"] for record in sent}) == 2
    assert platform.count("loyalty_notifications") == 2

    found = checks(result)
    assert all(check.passed for name, check in found.items() if name not in ("quarantine_share",)), found
    assert found["each_offset_once"].metadata["offsets"].value == {"invoices/0": 4}
    assert found["landed_is_accepted_plus_quarantined"].metadata["in_kafka_invoices"].value == 5
    shown = made(result)
    assert shown["kafka_invoices"]["source_offsets"][0]["end"] == {"invoices": {"0": 5}}
    assert shown["loyalty_notifications"]["rows_added"] == 2

    assert says(platform) == "nothing new"
    again = platform.run("ingest_kafka_invoices")
    assert made(again)["kafka_invoices"]["rows_added"] == 0
    assert len(topics.read("loyalty_notifications")) == 2
    audit = platform.run("audit_tables").get_asset_check_evaluations()
    assert {e.asset_key.to_user_string(): e.passed for e in audit} == {
        "customer_rewards": True, "store_daily_sales": True, "product_sales_windows": True, "loyalty_notifications": True,
    }  # fmt: skip


def test_a_repeated_offset_fails_the_check_of_the_topic(platform: Platform, topics: KafkaServer) -> None:
    send(topics, invoice("1"), invoice("2"))
    platform.run("ingest_kafka_invoices")
    path = str(platform.layout.table("kafka_invoices"))
    send(topics, invoice("3"))
    repeated = platform.spark.read.format("delta").load(path).where("offset = 1")
    repeated.selectExpr("* EXCEPT (ingested_at)", "current_timestamp() AS ingested_at").write.format("delta").mode(
        "append"
    ).save(path)
    result = platform.run("ingest_kafka_invoices")
    check = checks(result)["each_offset_once"]
    assert not check.passed
    assert check.metadata["repeated"].value == 1


def test_without_a_kafka_the_sensor_says_what_to_set(platform: Platform) -> None:
    assert "set KAFKA_BOOTSTRAP_SERVERS" in says(platform)
    assert "set KAFKA_BOOTSTRAP_SERVERS" in why(platform.run("ingest_kafka_invoices", ok=False), "kafka_invoices")


def test_a_broker_that_is_down_fails_the_run_in_one_line_and_nothing_is_lost(
    platform: Platform, topics: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(topics, invoice("1"))
    platform.run("ingest_kafka_invoices")
    send(topics, invoice("2"))
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    started = time.monotonic()
    failed = platform.run("ingest_kafka_invoices", ok=False)
    assert time.monotonic() - started < 30
    line = why(failed, "kafka_invoices")
    assert line.startswith("Kafka at 127.0.0.1:1 does not answer within")
    assert "\n" not in line
    assert says(platform).startswith("Kafka at 127.0.0.1:1 does not answer")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", topics.connection.bootstrap_servers)
    platform.run("ingest_kafka_invoices")
    assert platform.sql("SELECT InvoiceNumber FROM {kafka_invoices} ORDER BY offset") == [("1",), ("2",)]


def test_a_topic_that_is_missing_fails_the_run_in_one_line_and_nothing_is_lost(
    platform: Platform, topics: KafkaServer
) -> None:
    admin = AdminClient(topics.connection.client_config())
    for future in admin.delete_topics(["invoices"]).values():
        future.result(30)
    wait_until(lambda: "invoices" not in topic_names(topics.connection), 30, "topic deleted")
    line = why(platform.run("ingest_kafka_invoices", ok=False), "kafka_invoices")
    assert "has no topic 'invoices': create it" in line
    assert "has no topic 'invoices'" in says(platform)
    create_topic(topics.connection, "invoices", 2)
    send(topics, invoice("1"))
    platform.run("ingest_kafka_invoices")
    assert platform.count("kafka_invoices") == 1


def numbers_stream(topic: str, **options: Any) -> Stream:
    return Stream(
        "kafka_invoices", KafkaTopics(topic, **options), KAFKA_INVOICES_STREAM.transform, KAFKA_INVOICES_STREAM.sink
    )


def test_expired_offsets_stop_the_run_unless_told_to_accept_the_loss_which_is_counted(
    platform: Platform, topics: KafkaServer
) -> None:
    stream = numbers_stream("invoices")
    send(topics, *(invoice(str(n)) for n in range(3)))
    run_stream(stream, platform.open, platform.layout, RunSettings(), run="test")
    send(topics, *(invoice(str(n)) for n in range(3, 10)))
    admin = AdminClient(topics.connection.client_config())
    for future in admin.delete_records([TopicPartition("invoices", 0, 7)]).values():
        future.result(30)

    failed = platform.run("ingest_kafka_invoices", ok=False)
    assert "no longer has records that were not read (4 of invoices/0)" in why(failed, "kafka_invoices")
    assert "set fail_on_data_loss to false" in why(failed, "kafka_invoices")
    assert platform.count("kafka_invoices") == 3

    result = platform.run(
        "ingest_kafka_invoices", {"ops": {"kafka_invoices": {"config": {"fail_on_data_loss": False}}}}
    )
    assert made(result)["kafka_invoices"]["records_lost"] == 4
    assert [int(n) for (n,) in platform.sql("SELECT InvoiceNumber FROM {kafka_invoices} ORDER BY offset")] == [
        0, 1, 2, 7, 8, 9,
    ]  # fmt: skip
    assert checks(result)["each_offset_once"].metadata["without_record"].value == 4


def test_a_topic_made_anew_is_not_taken_for_the_old_one(platform: Platform, topics: KafkaServer) -> None:
    stream = numbers_stream("invoices")
    send(topics, *(invoice(str(n)) for n in range(3)))
    run_stream(stream, platform.open, platform.layout, RunSettings(), run="test")
    fresh_topics(topics)
    send(topics, invoice("new"))
    for settings in (RunSettings(), RunSettings(fail_on_data_loss=False)):
        with pytest.raises(Exception, match=r"invoices/0 was deleted or made anew, so its offsets begin again: run"):
            run_stream(stream, platform.open, platform.layout, settings, run="test")


def test_a_pattern_reads_every_topic_that_matches_and_those_that_come_later(
    platform: Platform, topics: KafkaServer
) -> None:
    first = topics.topic(name="tills")
    prefix = first.rsplit("-", 1)[0] + "-"
    stream = Stream(
        "kafka_invoices",
        KafkaTopics(pattern=f"{prefix}.*"),
        KAFKA_INVOICES_STREAM.transform,
        KAFKA_INVOICES_STREAM.sink,
    )
    topics.send(first, json.dumps(invoice("0")), json.dumps(invoice("1")))
    summary = run_stream(stream, platform.open, platform.layout, RunSettings(max_offsets_per_trigger=1), run="test")
    assert [batch.rows for batch in summary.batches] == [1, 1]
    second = topics.topic(name="tills")
    topics.send(second, json.dumps(invoice("2")))
    run_stream(stream, platform.open, platform.layout, RunSettings(), run="test")
    assert platform.sql("SELECT topic, InvoiceNumber FROM {kafka_invoices} ORDER BY 2") == [
        (first, "0"), (first, "1"), (second, "2"),
    ]  # fmt: skip


def test_spark_reads_and_writes_by_tls_with_a_login_from_the_environment_and_shows_no_secret(
    platform: Platform, topics: KafkaServer, session_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(topics, invoice("1"))
    secured = topics.secured
    for name, value in {
        "KAFKA_BOOTSTRAP_SERVERS": secured.bootstrap_servers,
        "KAFKA_SECURITY_PROTOCOL": secured.security_protocol,
        "KAFKA_SASL_MECHANISM": secured.sasl_mechanism,
        "KAFKA_SASL_USERNAME": secured.sasl_username,
        "KAFKA_SASL_PASSWORD": secured.sasl_password,
        "KAFKA_SSL_CA_LOCATION": secured.ssl_ca_location,
        "KAFKA_SSL_CERTIFICATE_LOCATION": secured.ssl_certificate_location,
        "KAFKA_SSL_KEY_LOCATION": secured.ssl_key_location,
    }.items():
        monkeypatch.setenv(name, value or "")
    result = platform.run("ingest_kafka_invoices")
    assert platform.count("kafka_invoices") == 1
    assert len(topics.read("loyalty_notifications")) == 1
    told = " ".join(str(event) for event in result.all_events)
    folders = (platform.layout.root, session_root)  # Spark's log is in the session's
    written = "".join(p.read_text(errors="replace") for f in folders for p in f.rglob("*") if p.is_file())
    assert secured.sasl_password
    assert secured.sasl_password not in told + written


def test_the_continuous_job_takes_files_and_kafka_side_by_side(platform: Platform, topics: KafkaServer) -> None:
    chosen = ["invoices", "kafka_invoices", "invoice_line_items", "store_daily_sales", "loyalty_notifications"]
    config = {
        "ops": {"stream_all_invoices": {"config": {"trigger": "unspecified", "run_for_seconds": 60, "streams": chosen}}}
    }
    results: list[dg.ExecuteInProcessResult] = []
    thread = threading.Thread(target=lambda: results.append(platform.run("stream_invoices", config)))
    thread.start()

    def rows(table: str, wanted: int) -> None:
        def there() -> bool:
            found = facts(platform.layout.table(table))
            return (found is not None and found.rows == wanted) or not thread.is_alive()

        wait_until(there, 120, f"{wanted} rows of {table}")

    try:
        platform.land("1.json", invoice("f1"))
        send(topics, invoice("k1"))
        rows("invoice_line_items", 2)
        send(topics, invoice("k2"))
        rows("loyalty_notifications", 3)
    finally:
        thread.join(240)
    assert results[0].success
    assert platform.count("invoice_line_items") == 3
    assert platform.sql("SELECT line_items FROM {store_daily_sales}") == [(3,)]
    assert {json.loads(r.value or b"")["invoice_number"] for r in topics.read("loyalty_notifications")} == {
        "f1", "k1", "k2",
    }  # fmt: skip


INVOICES = 5_000


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Five thousand distinct invoices in two files."""
    documents = [
        json.loads(line) | {"InvoiceNumber": str(n)} for n, line in enumerate(InvoiceGenerator(5).lines(INVOICES))
    ]
    halves = documents[::2], documents[1::2]
    paths = [tmp_path / "even.json", tmp_path / "odd.json"]
    for path, half in zip(paths, halves, strict=True):
        path.write_text("\n".join(map(json.dumps, half)))
    return paths


def test_five_thousand_invoices_through_a_killed_run_are_five_thousand(
    platform: Platform, topics: KafkaServer, files: list[Path]
) -> None:
    assert sum(sent.records for sent in produce(topics.connection, "invoices", files)) == INVOICES
    root = str(platform.layout.root)
    environment = os.environ | {"INVOICE_PLATFORM_ROOT": root}
    command = [sys.executable, "-m", "invoice_platform.cli", "run", "ingest_kafka_invoices", "--config"]
    slowly = json.dumps({"ops": {"kafka_invoices": {"config": {"max_offsets_per_trigger": 250}}}})
    log = (platform.layout.root / "killed.log").open("wb")
    process = subprocess.Popen([*command, slowly], env=environment, stdout=log, stderr=log, start_new_session=True)

    def half_way() -> bool:
        assert process.poll() is None, "it ended before it could be killed"
        found = facts(platform.layout.table("kafka_invoices"))
        return found is not None and found.rows >= INVOICES // 4

    try:
        wait_until(half_way, 240, "a quarter of the records")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()
    killed_at = facts(platform.layout.table("kafka_invoices"))
    assert killed_at is not None
    assert killed_at.rows < INVOICES
    result = platform.run("ingest_kafka_invoices")
    assert platform.sql("SELECT count(*), count(DISTINCT InvoiceNumber) FROM {kafka_invoices}") == [
        (INVOICES, INVOICES)
    ]
    assert checks(result)["landed_is_accepted_plus_quarantined"].passed
    assert checks(result)["each_offset_once"].passed
    assert platform.sql("SELECT sum(invoices) FROM {customer_rewards}") == platform.sql(
        "SELECT count(*) FROM {kafka_invoices} WHERE trim(CustomerCardNo) <> ''"
    )
