"""A real Kafka broker for tests, started once a run when a test first asks for it; a second listener wants TLS and a login.

A test module asks for it with `pytest_plugins = ["invoice_platform_tests.servers"]`, so that all of them share one broker,
and imports nothing from here but for type checks.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme
from confluent_kafka import Consumer, Producer, TopicPartition
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from invoice_platform.broker import broker, free_port
from invoice_platform.streaming.kafka import KafkaConnection, LocalBroker, create_topic, offsets
from invoice_platform.streaming.layout import Layout

USERNAME = "tester"
PASSWORD = "p\"a\\s's=1;é $"  # what JAAS has to have escaped


class Record(NamedTuple):
    """A message as it is in a topic."""

    key: bytes | None
    value: bytes | None
    headers: dict[str, Any]
    partition: int | None
    offset: int | None


@dataclass(frozen=True)
class KafkaServer:
    """A running broker, and what a test does with it."""

    layout: Layout
    """The root that it is the broker of."""
    process: LocalBroker
    connection: KafkaConnection
    """Without TLS and login."""
    secured: KafkaConnection
    """The same broker by SASL_SSL, with a login and a certificate of the client's own."""

    def topic(self, partitions: int = 1, name: str = "test") -> str:
        """Make a topic that no other test has; its name begins with `name`."""
        topic = f"{name}-{uuid.uuid4().hex[:8]}"
        assert create_topic(self.connection, topic, partitions)
        return topic

    def send(
        self,
        topic: str,
        *values: str | bytes | None,
        key: str | bytes | None = None,
        headers: Mapping[str, str | bytes] | None = None,
        partition: int = -1,
    ) -> None:
        """Put messages into a topic, in this order, and wait until they are there; -1 is the partition of the key's choice."""
        refused: list[str] = []
        producer = Producer(self.connection.client_config() | {"enable.idempotence": True})
        for value in values:
            producer.produce(
                topic,
                value,
                key,
                partition,
                headers=list((headers or {}).items()),
                on_delivery=lambda error, _: refused.append(str(error)) if error else None,
            )
        left = producer.flush(30)
        assert not left, f"{left} messages not sent"
        assert not refused, refused

    def count(self, topic: str) -> int:
        """Messages in a topic."""
        return sum(part.high - part.low for part in offsets(self.connection, [topic])[topic].values())

    def read(self, topic: str) -> list[Record]:
        """All messages of a topic, by partition and offset."""
        ends = offsets(self.connection, [topic])[topic]
        wanted = sum(part.high - part.low for part in ends.values())
        config = self.connection.client_config() | {"group.id": uuid.uuid4().hex, "enable.auto.commit": False}
        consumer = Consumer(config)
        found: list[Record] = []
        deadline = time.monotonic() + 30
        try:
            consumer.assign([TopicPartition(topic, number, part.low) for number, part in ends.items()])
            while len(found) < wanted:
                assert time.monotonic() < deadline, f"{len(found)} of {wanted} messages read"
                message = consumer.poll(0.2)
                if message is None:
                    continue
                assert message.error() is None, message.error()
                headers = dict(message.headers() or [])
                found.append(Record(message.key(), message.value(), headers, message.partition(), message.offset()))
        finally:
            consumer.close()
        return sorted(found, key=lambda record: (record.partition, record.offset))


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """The one broker of the run; tests keep apart by topics of their own."""
    folder = tmp_path_factory.mktemp("kafka")
    layout = Layout.at(folder / "root")
    port, secure_port = free_port(), free_port()
    secured, settings = _secured(folder, secure_port)
    with broker(layout, port, settings=settings) as process:
        yield KafkaServer(layout, process, KafkaConnection(process.bootstrap_servers), secured)


def _secured(folder: Path, port: int) -> tuple[KafkaConnection, dict[str, str]]:
    """A connection by TLS with a login, and the broker's settings for it."""
    ca, trusted = trustme.CA(), folder / "ca.pem"
    ca.cert_pem.write_to_path(str(trusted))
    server, client = ca.issue_cert("127.0.0.1", "localhost"), ca.issue_cert("client.example")
    chain, key = folder / "client.pem", folder / "client.key"
    chain.write_text(_chain(client))
    key.write_text(_key(client))
    connection = KafkaConnection(
        f"127.0.0.1:{port}",
        "SASL_SSL",
        "PLAIN",
        USERNAME,
        PASSWORD,
        ssl_ca_location=str(trusted),
        ssl_certificate_location=str(chain),
        ssl_key_location=str(key),
    )
    quoted = PASSWORD.replace("\\", "\\\\").replace('"', '\\"')
    login = "org.apache.kafka.common.security"
    ours = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.certificate.chain": _chain(server),
        "ssl.keystore.key": _key(server),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.certificates": ca.cert_pem.bytes().decode(),
        "ssl.client.auth": "required",
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
        "plain.sasl.jaas.config": f'{login}.plain.PlainLoginModule required user_{USERNAME}="{quoted}";',
        "scram-sha-512.sasl.jaas.config": f"{login}.scram.ScramLoginModule required;",
    }
    settings = {f"listener.name.sasl_ssl.{name}": value for name, value in ours.items()}
    return connection, settings | {"listeners": f"SASL_SSL://127.0.0.1:{port}"}


def _chain(certificate: trustme.LeafCert) -> str:
    return "".join(blob.bytes().decode() for blob in certificate.cert_chain_pems)


def _key(certificate: trustme.LeafCert) -> str:
    """The key as PKCS#8, which is what Java reads."""
    key = load_pem_private_key(certificate.private_key_pem.bytes(), password=None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
