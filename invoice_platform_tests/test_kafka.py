"""Kafka without Spark, against a real broker: connections, offsets, topics, `produce`, and the root's own broker."""

# confluent_kafka.admin does not say of the names that it documents that they are for others.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from confluent_kafka import Consumer, TopicPartition, admin

from invoice_platform import produce as produce_module
from invoice_platform.broker import TOPICS, broker, free_port
from invoice_platform.errors import PlatformError
from invoice_platform.produce import Produced, produce
from invoice_platform.server import end
from invoice_platform.streaming.kafka import KafkaConnection, LocalBroker, Offsets, create_topic, offsets, topic_names
from invoice_platform.streaming.layout import Layout
from invoice_platform_tests.conftest import invoice, wait_until
from invoice_platform_tests.test_cli import call, refused

if TYPE_CHECKING:
    from invoice_platform_tests.servers import KafkaServer

pytest_plugins = ["invoice_platform_tests.servers"]

PEM_FILE = "-----BEGIN CERTIFICATE-----\n"
LOGIN = {"KAFKA_SASL_MECHANISM": "PLAIN", "KAFKA_SASL_USERNAME": "me", "KAFKA_SASL_PASSWORD": "secret"}


@pytest.fixture
def nobody() -> KafkaConnection:
    """A connection to where nothing listens."""
    return KafkaConnection(f"127.0.0.1:{free_port()}")


@pytest.fixture
def in_environment(monkeypatch: pytest.MonkeyPatch) -> Callable[[KafkaConnection], None]:
    """Puts a connection into the environment, as a person does."""

    def put(connection: KafkaConnection) -> None:
        values = {
            "KAFKA_BOOTSTRAP_SERVERS": connection.bootstrap_servers,
            "KAFKA_SECURITY_PROTOCOL": connection.security_protocol,
            "KAFKA_SASL_MECHANISM": connection.sasl_mechanism,
            "KAFKA_SASL_USERNAME": connection.sasl_username,
            "KAFKA_SASL_PASSWORD": connection.sasl_password,
            "KAFKA_SSL_CA_LOCATION": connection.ssl_ca_location,
            "KAFKA_SSL_CERTIFICATE_LOCATION": connection.ssl_certificate_location,
            "KAFKA_SSL_KEY_LOCATION": connection.ssl_key_location,
        }
        for name, value in values.items():
            if value is not None:
                monkeypatch.setenv(name, value)

    return put


def one_line(error: BaseException) -> str:
    """The message, having seen that it is one line."""
    assert len(str(error).splitlines()) == 1
    return str(error)


# Connections


def test_environment_goes_before_the_roots_own_broker(
    kafka: KafkaServer, in_environment: Callable[[KafkaConnection], None], tmp_path: Path
) -> None:
    assert KafkaConnection.of(kafka.layout) == kafka.connection
    in_environment(kafka.secured)
    assert KafkaConnection.of(kafka.layout) == KafkaConnection.of(Layout.at(tmp_path)) == kafka.secured


def test_neither_environment_nor_broker_is_an_error_that_names_both(tmp_path: Path) -> None:
    layout = Layout.at(tmp_path)
    assert not KafkaConnection.configured(layout)
    with pytest.raises(PlatformError, match=r"KAFKA_BOOTSTRAP_SERVERS.*`invoice-platform kafka`") as caught:
        KafkaConnection.of(layout)
    one_line(caught.value)


def test_being_configured_asks_no_broker(
    tmp_path: Path, nobody: KafkaConnection, in_environment: Callable[[KafkaConnection], None]
) -> None:
    in_environment(nobody)
    before = time.monotonic()
    assert KafkaConnection.configured(Layout.at(tmp_path))
    assert time.monotonic() - before < 0.5


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"KAFKA_BOOTSTRAP_SERVERS": "localhost"}, "KAFKA_BOOTSTRAP_SERVERS=localhost: give host:port"),
        ({"KAFKA_BOOTSTRAP_SERVERS": "a:1,,b:2"}, "KAFKA_BOOTSTRAP_SERVERS=a:1,,b:2: give host:port"),
        ({"KAFKA_BOOTSTRAP_SERVERS": ""} | LOGIN, "KAFKA_SASL_MECHANISM is set, but KAFKA_BOOTSTRAP_SERVERS is not"),
        ({"KAFKA_SECURITY_PROTOCOL": "TLS"}, "KAFKA_SECURITY_PROTOCOL=TLS: give one of PLAINTEXT, SSL"),
        (LOGIN, "KAFKA_SASL_MECHANISM is set, but KAFKA_SECURITY_PROTOCOL is PLAINTEXT: set that to SASL_PLAINTEXT or"),
        ({"KAFKA_SSL_CA_LOCATION": "ca.pem"}, "KAFKA_SSL_CA_LOCATION is set, but KAFKA_SECURITY_PROTOCOL is PLAINTEXT"),
        ({"KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}, "set KAFKA_SASL_MECHANISM, KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD"),
        (
            {"KAFKA_SECURITY_PROTOCOL": "SASL_SSL"} | LOGIN | {"KAFKA_SASL_MECHANISM": "GSSAPI"},
            "KAFKA_SASL_MECHANISM=GSSAPI: give one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512",
        ),
        (
            {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_CERTIFICATE_LOCATION": "ca.pem"},
            "KAFKA_SSL_CERTIFICATE_LOCATION and KAFKA_SSL_KEY_LOCATION go together",
        ),
        (
            {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_CA_LOCATION": "none.pem"},
            "KAFKA_SSL_CA_LOCATION=none.pem: No such",
        ),
        (
            {
                "KAFKA_SECURITY_PROTOCOL": "SSL",
                "KAFKA_SSL_CERTIFICATE_LOCATION": "ca.pem",
                "KAFKA_SSL_KEY_LOCATION": "ca.pem",
            },
            "KAFKA_SSL_KEY_LOCATION=ca.pem: no PEM file with BEGIN PRIVATE KEY: give one (`openssl pkcs8",
        ),
    ],
)
def test_wrong_or_incomplete_setting_is_named(
    settings: dict[str, str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ca.pem").write_text(PEM_FILE)
    monkeypatch.chdir(tmp_path)
    for name, value in ({"KAFKA_BOOTSTRAP_SERVERS": "broker.example:9092"} | settings).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(PlatformError) as caught:
        KafkaConnection.of(Layout.at(tmp_path))
    assert named in one_line(caught.value)
    assert "secret" not in str(caught.value)


def test_secrets_are_not_shown(kafka: KafkaServer) -> None:
    password, username = kafka.secured.sasl_password, kafka.secured.sasl_username
    assert password
    assert username
    shown = f"{kafka.secured} {kafka.secured!r}"
    assert "SASL_SSL" in shown
    for secret in (password, repr(password), username, "client.key"):
        assert secret not in shown


def test_password_is_escaped_for_jaas() -> None:
    connection = KafkaConnection("a:1", "SASL_PLAINTEXT", "SCRAM-SHA-256", "me", 'a"b\\c\nd')
    assert connection.spark_options()["kafka.sasl.jaas.config"] == (
        "org.apache.kafka.common.security.scram.ScramLoginModule required "
        r'username="me" password="a\"b\\c\nd";'
    )


def test_timeouts_for_spark_agree_with_each_other() -> None:
    options = KafkaConnection("a:1").spark_options()
    assert int(options["kafka.request.timeout.ms"]) <= int(options["kafka.default.api.timeout.ms"])
    assert int(options["kafka.request.timeout.ms"]) <= int(options["kafka.delivery.timeout.ms"]) < 30_000


# Offsets and topics


def test_offsets_are_those_of_every_partition(kafka: KafkaServer) -> None:
    topic, other = kafka.topic(3), kafka.topic()
    kafka.send(topic, "a", "b", partition=1)
    assert offsets(kafka.connection, [topic, other]) == {
        topic: {0: Offsets(0, 0), 1: Offsets(0, 2), 2: Offsets(0, 0)},
        other: {0: Offsets(0, 0)},
    }


def test_pattern_matches_whole_names_and_never_kafkas_own_topics(kafka: KafkaServer) -> None:
    topic, other = kafka.topic(name="store-7"), kafka.topic(name="my-store-7")
    consumer = Consumer(kafka.connection.client_config() | {"group.id": "any"})
    consumer.committed([TopicPartition(topic, 0)], timeout=30)  # makes Kafka make __consumer_offsets
    consumer.close()
    assert set(offsets(kafka.connection, pattern="store-.*")) == {topic}
    everything = set(offsets(kafka.connection, pattern=".*"))
    assert {topic, other} <= everything
    assert topic_names(kafka.connection) - everything == {"__consumer_offsets"}
    assert offsets(kafka.connection, pattern="nothing-like-it") == {}


@pytest.mark.parametrize("given", [{}, {"topics": ["a"], "pattern": "a"}, {"pattern": "("}])
def test_what_names_no_topics_is_refused(kafka: KafkaServer, given: dict[str, str]) -> None:
    with pytest.raises(PlatformError, match="pattern"):
        offsets(kafka.connection, **given)  # pyright: ignore[reportArgumentType]


def test_missing_topic_is_named_with_the_remedy(kafka: KafkaServer) -> None:
    with pytest.raises(PlatformError, match=r"no topic 'no-such': create it.*--topic no-such --create") as caught:
        offsets(kafka.connection, [kafka.topic(), "no-such"])
    one_line(caught.value)


def test_topic_is_made_once(kafka: KafkaServer) -> None:
    topic = kafka.topic(2)
    assert not create_topic(kafka.connection, topic, 5)
    assert len(offsets(kafka.connection, [topic])[topic]) == 2
    with pytest.raises(PlatformError, match="topic 'a b' cannot be made"):
        create_topic(kafka.connection, "a b")


@pytest.mark.parametrize("ask", [{"topics": ["any"]}, {"pattern": "any"}])
def test_broker_that_is_down_is_one_line_within_the_time(
    nobody: KafkaConnection, ask: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    before = time.monotonic()
    with pytest.raises(
        PlatformError, match=r"does not answer within 1 s .*Connection refused.*`invoice-platform kafka`"
    ) as e:
        offsets(nobody, **ask, timeout_seconds=1)  # pyright: ignore[reportArgumentType]
    assert time.monotonic() - before < 5
    assert nobody.bootstrap_servers in one_line(e.value)
    assert capfd.readouterr() == ("", "")


# TLS and login


def test_client_gets_in_by_tls_and_login(kafka: KafkaServer) -> None:
    topic = kafka.topic()
    kafka.send(topic, "a")
    assert offsets(kafka.secured, [topic]) == {topic: {0: Offsets(0, 1)}}


def test_client_gets_in_by_scram(kafka: KafkaServer) -> None:
    by_scram = replace(kafka.secured, sasl_mechanism="SCRAM-SHA-512", sasl_username="scrammer")
    how = admin.ScramCredentialInfo(admin.ScramMechanism.SCRAM_SHA_512, 4096)
    user = admin.UserScramCredentialUpsertion("scrammer", how, (kafka.secured.sasl_password or "").encode())
    client = admin.AdminClient(kafka.connection.client_config())
    for made in client.alter_user_scram_credentials([user]).values():
        made.result(30)
    topic = kafka.topic()
    assert offsets(by_scram, [topic]) == {topic: {0: Offsets(0, 0)}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sasl_password": "wrong-secret"}, "refuses the login .*KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD"),
        ({"sasl_mechanism": "SCRAM-SHA-256"}, "refuses the login .*KAFKA_SASL_MECHANISM"),
        ({"ssl_ca_location": None}, "no common TLS .*KAFKA_SSL_CA_LOCATION"),
    ],
)
def test_login_that_is_refused_is_not_tried_until_time_is_up(
    kafka: KafkaServer, changes: dict[str, str | None], message: str
) -> None:
    before = time.monotonic()
    with pytest.raises(PlatformError, match=message) as caught:
        offsets(replace(kafka.secured, **changes), ["any"], timeout_seconds=30)  # pyright: ignore[reportArgumentType]
    assert time.monotonic() - before < 10
    assert "wrong-secret" not in one_line(caught.value)


# Producing


def send_lines(kafka: KafkaServer, file: Path, content: bytes, topic: str | None = None) -> str:
    """Send a file of this content by `produce` to a topic, made anew if none is given."""
    topic = topic or kafka.topic()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    list(produce(kafka.connection, topic, [file]))
    return topic


@pytest.mark.parametrize("name", ["a.json", "a.json.GZ", "ä b.txt.gz"])
def test_each_line_is_a_message_with_its_invoice_number_and_its_file(
    kafka: KafkaServer, tmp_path: Path, name: str
) -> None:
    lines = [json.dumps(invoice(number)) for number in ("91", "92")]
    content = "\n".join([lines[0], "", "  \t", lines[1]]).encode()
    file, topic = tmp_path / name, kafka.topic()
    file.write_bytes(gzip.compress(content) if name.lower().endswith(".gz") else content)
    assert list(produce(kafka.connection, topic, [file])) == [Produced(file, 2)]
    assert [(r.key, r.value, r.headers) for r in kafka.read(topic)] == [
        (b"91", lines[0].encode(), {"source_file": name.encode()}),
        (b"92", lines[1].encode(), {"source_file": name.encode()}),
    ]


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe not text",
        b"\x00",
        b"[]",
        b"no document",
        b'{"InvoiceNumber": 12}',
        b'{"InvoiceNumber": ""}',
        b'{"InvoiceNumber": "\\ud800"}',
        b'{"InvoiceNumber": "1"',
        b"[" * 100_000,
        b'  {"a":  1}  ',
    ],
)
def test_line_without_an_invoice_number_goes_as_it_is_and_without_a_key(
    kafka: KafkaServer, tmp_path: Path, line: bytes
) -> None:
    topic = send_lines(kafka, tmp_path / "a.json", line + b"\n")
    assert [(r.key, r.value) for r in kafka.read(topic)] == [(None, line)]


def test_ends_of_lines_and_the_byte_order_mark_are_not_sent(kafka: KafkaServer, tmp_path: Path) -> None:
    topic = send_lines(kafka, tmp_path / "a.json", b"\xef\xbb\xbfa\r\nb\n\r\nc")
    assert [r.value for r in kafka.read(topic)] == [b"a", b"b", b"c"]


def test_one_invoice_goes_to_one_partition_in_order(kafka: KafkaServer, tmp_path: Path) -> None:
    lines = [json.dumps({"InvoiceNumber": str(i % 7), "i": i}) for i in range(700)]
    topic = send_lines(kafka, tmp_path / "a.json", "\n".join(lines).encode(), kafka.topic(3))
    places: dict[bytes | None, set[int | None]] = {}
    orders: dict[bytes | None, list[int]] = {}
    for record in kafka.read(topic):
        places.setdefault(record.key, set()).add(record.partition)
        orders.setdefault(record.key, []).append(json.loads(record.value or b"")["i"])
    assert len(places) == 7
    assert all(len(partitions) == 1 for partitions in places.values())
    assert all(order == sorted(order) and len(order) == 100 for order in orders.values())


def test_more_than_the_queue_holds_is_sent(kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(produce_module, "QUEUE_BYTES", 64 << 10)
    line = b"x" * 10_000 + b"\n"
    assert kafka.count(send_lines(kafka, tmp_path / "a.txt", line * 500)) == 500


def test_message_that_the_topic_does_not_take_is_named(kafka: KafkaServer, tmp_path: Path) -> None:
    file, topic = tmp_path / "a.txt", kafka.topic()
    with pytest.raises(PlatformError, match=r"line 3 of .*a.txt was not accepted, 2 messages .*max.message.bytes") as e:
        send_lines(kafka, file, b"a\nb\n" + os.urandom(1 << 20).hex().encode(), topic)
    one_line(e.value)
    assert kafka.count(topic) == 2


def test_line_that_is_too_long_for_memory_is_named(
    kafka: KafkaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(produce_module, "LONGEST_LINE_BYTES", 1 << 20)
    topic = send_lines(kafka, tmp_path / "fits.txt", b"x" * (1 << 20) + b"\r\n")
    with pytest.raises(PlatformError, match=r"line 2 of .*a.txt is over 1 MiB long: part the file; 1 messages"):
        send_lines(kafka, tmp_path / "a.txt", b"a\n" + b"x" * ((1 << 20) + 1), topic)


def test_damaged_gzip_says_how_much_of_it_was_sent(kafka: KafkaServer, tmp_path: Path) -> None:
    file, topic = tmp_path / "a.gz", kafka.topic()
    packed = gzip.compress(b"".join(os.urandom(100).hex().encode() + b"\n" for _ in range(1000)))
    file.write_bytes(packed[:-1000])
    with pytest.raises(PlatformError, match=r"a.gz is a damaged gzip .*; \d+ messages were acknowledged") as caught:
        list(produce(kafka.connection, topic, [file]))
    assert f"; {kafka.count(topic)} messages were acknowledged" in one_line(caught.value)


def test_interrupt_lets_what_is_queued_arrive(kafka: KafkaServer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a\n" * 1000)
    topic = kafka.topic()

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(PlatformError, match="interrupted: 256 messages were acknowledged"):
        list(produce(kafka.connection, topic, [tmp_path / "a.txt"], progress=interrupt))
    assert kafka.count(topic) == 256


def test_progress_adds_up_to_the_files_sizes(kafka: KafkaServer, tmp_path: Path) -> None:
    plain, packed, read = tmp_path / "a.txt", tmp_path / "b.gz", []
    plain.write_bytes(b"a\n" * 1000)
    packed.write_bytes(gzip.compress(b"a\n" * 1000))
    list(produce(kafka.connection, kafka.topic(), [plain, packed], progress=read.append))
    assert sum(read) == plain.stat().st_size + packed.stat().st_size


def test_produce_command_counts_each_file_by_tls_and_login(
    kafka: KafkaServer,
    in_environment: Callable[[KafkaConnection], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    in_environment(kafka.secured)
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    files[0].write_text("a\nb\n")
    files[1].write_text("c")
    topic = f"new-{tmp_path.name}"
    message = refused(monkeypatch, capsys, "produce", str(files[0]), "--topic", topic)
    assert f"--topic {topic} --create" in message
    words = (*map(str, files), "--topic", topic, "--create", "--partitions", "2")
    assert call(monkeypatch, "produce", *words) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{files[0]}: 2 messages acknowledged\n{files[1]}: 1 messages acknowledged\n"
    assert shown.err == ""
    assert len(offsets(kafka.connection, [topic])[topic]) == 2
    assert sorted(r.value or b"" for r in kafka.read(topic)) == [b"a", b"b", b"c"]


def test_produce_command_sends_nothing_when_a_file_is_missing(
    kafka: KafkaServer,
    in_environment: Callable[[KafkaConnection], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    in_environment(kafka.connection)
    (tmp_path / "a.txt").write_text("a")
    topic = kafka.topic()
    words = ("produce", str(tmp_path / "a.txt"), str(tmp_path / "none.txt"), "--topic", topic)
    assert "none.txt is no file" in refused(monkeypatch, capsys, *words)
    assert kafka.count(topic) == 0


@pytest.mark.slow
def test_produce_command_gives_up_on_a_broker_that_is_down(
    nobody: KafkaConnection,
    in_environment: Callable[[KafkaConnection], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    in_environment(nobody)
    (tmp_path / "a.txt").write_text("a")
    before = time.monotonic()
    assert "does not answer" in refused(monkeypatch, capsys, "produce", str(tmp_path / "a.txt"))
    assert time.monotonic() - before < 15


# The root's own broker


def test_second_broker_for_a_root_is_refused(kafka: KafkaServer) -> None:
    with pytest.raises(PlatformError, match=f"is up .* already \\(process {kafka.process.pid}, port"):
        broker(kafka.layout, free_port()).__enter__()


def test_port_that_is_taken_is_named(kafka: KafkaServer, tmp_path: Path) -> None:
    with pytest.raises(PlatformError, match=f"port {kafka.process.port} is in use: .*--port"):
        broker(Layout.at(tmp_path), kafka.process.port).__enter__()
    assert not (tmp_path / "kafka.json").exists()


def test_what_a_dead_broker_left_behind_is_passed_over(kafka: KafkaServer, tmp_path: Path) -> None:
    layout = Layout.at(tmp_path)
    assert LocalBroker.of(layout) is None
    for pid in (os.getpid(), kafka.process.pid):  # a number that another process has now
        LocalBroker(pid, kafka.process.port, "").write(layout)
        assert LocalBroker.of(layout) is None
    layout.kafka_file.write_text("{}")
    assert LocalBroker.of(layout) is None


@pytest.mark.slow
def test_broker_that_ends_while_it_starts_says_where_the_log_is(tmp_path: Path) -> None:
    layout = Layout.at(tmp_path)
    for settings, message in (
        ({"log.retention.hours": "many"}, "formatted"),
        ({"listener.name.plaintext.max.connections": "many"}, "ended while it started"),
    ):
        with pytest.raises(PlatformError, match=message) as caught, broker(layout, free_port(), settings=settings):
            pass
        log = Path(one_line(caught.value).partition("see ")[2])
        assert "many" in log.read_text()
        assert not layout.kafka_file.exists()


@pytest.mark.slow
def test_data_outlives_the_broker_and_what_it_does_not_take_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout.at(tmp_path / "a root, nämlich")
    monkeypatch.setattr(produce_module, "DELIVERY_SECONDS", 2)
    (tmp_path / "a.txt").write_text("a\n" * 300)
    with broker(layout, free_port()) as first:
        connection = KafkaConnection.of(layout)
        create_topic(connection, "kept", 2)
        list(produce(connection, "kept", [tmp_path / "a.txt"]))
        before = offsets(connection, ["kept"])
        assert sum(part.high for part in before["kept"].values()) == 300

        def end_broker(_: int) -> None:
            psutil.Process(first.pid).kill()

        with pytest.raises(PlatformError, match=r"does not answer: line \d+ of .*a.txt was not accepted"):
            list(produce(connection, "kept", [tmp_path / "a.txt"], progress=end_broker))
        assert LocalBroker.of(layout) is None
    assert not layout.kafka_file.exists()
    with broker(layout, first.port) as second:
        assert second.pid != first.pid
        assert KafkaConnection.of(layout) == connection
        after = offsets(connection, ["kept"])
        assert sum(part.high for part in after["kept"].values()) >= 300


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["asked", "broker killed"])
def test_kafka_command_has_the_topics_and_leaves_no_process(tmp_path: Path, ending: str) -> None:
    layout, port = Layout.at(tmp_path / "root"), free_port()
    command = [sys.executable, "-m", "invoice_platform.cli", "kafka", "--port", str(port)]
    environment = os.environ | {"INVOICE_PLATFORM_ROOT": str(layout.root)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout
        assert process.stdout.readline().decode() == f"127.0.0.1:{port}\n"
        found = offsets(KafkaConnection.of(layout), pattern=".*")
        assert {topic: len(partitions) for topic, partitions in found.items()} == TOPICS
        running = LocalBroker.of(layout)
        assert running
        if ending == "asked":
            process.send_signal(signal.SIGINT)
        else:
            psutil.Process(running.pid).kill()
        out, err = process.communicate(timeout=60)
    finally:
        end(process)
    assert out == b""
    assert process.returncode == (0 if ending == "asked" else 1)
    assert ending == "asked" or "the Kafka broker ended" in err.decode().splitlines()[-1]
    wait_until(lambda: not psutil.pid_exists(running.pid), 10, "the broker is gone")
    assert not layout.kafka_file.exists()
