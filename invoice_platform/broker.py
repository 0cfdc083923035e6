"""A Kafka broker of the root's own, for development and tests: one process on loopback, KRaft, data that stays."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import get_args

from invoice_platform.errors import PlatformError
from invoice_platform.jars import BROKER, require_java, spark_folder
from invoice_platform.server import end, require_free_port
from invoice_platform.streaming.kafka import KafkaConnection, LocalBroker, Protocol, topic_names
from invoice_platform.streaming.layout import Layout

KAFKA_PORT = 9092
DATA = "data"
START_SECONDS = 60
STOP_SECONDS = 30
TOPICS = {"invoices": 3, "loyalty_notifications": 1}
"""What `invoice-platform kafka` makes when it is not there: partitions by topic."""

_LOG_SETTINGS = """
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{yyyy-MM-dd'T'HH:mm:ss.SSS} %p %c{1}: %m%n%ex
"""


@contextmanager
def broker(
    layout: Layout, port: int = KAFKA_PORT, *, settings: Mapping[str, str] | None = None
) -> Iterator[LocalBroker]:
    """A Kafka broker for this root, up and answering, until the block ends; its data stays under the root.

    Parameters
    ----------
    layout : Layout
        The root: data in `kafka/`, log in `logs/kafka.log`.
    port : int
        Loopback port.
    settings : mapping of str to str
        Entries of server.properties that win over the broker's own; `listeners` are added to its own instead.

    Raises
    ------
    PlatformError
        When Java or a jar is missing, the port is in use, a broker is up for this root, or it does not start.
    """
    java = require_java()
    jars = BROKER.paths()
    if (other := LocalBroker.of(layout)) is not None:
        raise PlatformError(
            f"a Kafka broker is up for {layout.root} already (process {other.pid}, port {other.port}): "
            "use it, or end that process"
        )
    require_free_port(port, "--port")
    layout.logs.mkdir(parents=True, exist_ok=True)
    layout.kafka_file.unlink(missing_ok=True)  # of a broker that died
    properties = _write_settings(layout, port, settings or {})
    # Spark's own jars come last: Scala, Jackson, SLF4J, log4j and the codecs are taken from there.
    class_path = os.pathsep.join([*map(str, jars), str(spark_folder() / "jars" / "*")])
    log_settings = f"-Dlog4j2.configurationFile={(layout.kafka / 'log4j2.properties').as_uri()}"
    command = [str(java), "-Xmx512m", "-cp", class_path, log_settings]
    log = layout.logs / "kafka.log"
    if not (layout.kafka / DATA / "meta.properties").is_file():
        _format([*command, "kafka.tools.StorageTool"], properties, log)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, "kafka.Kafka", str(properties)],
            cwd=layout.kafka,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # a Ctrl-C at the terminal is for us: we end it, in order
        )
    started = LocalBroker(process.pid, port, datetime.now(timezone.utc).isoformat(timespec="seconds"))
    try:
        _wait_until_up(process, started, log)
        started.write(layout)
        yield started
    finally:
        layout.kafka_file.unlink(missing_ok=True)
        end(process, STOP_SECONDS)


def _write_settings(layout: Layout, port: int, settings: Mapping[str, str]) -> Path:
    """Write server.properties, readable by this user only (it may hold passwords), and how to log; its path."""
    controller = f"127.0.0.1:{free_port()}"
    listeners = [f"PLAINTEXT://127.0.0.1:{port}", f"CONTROLLER://{controller}"]
    properties = {
        "process.roles": "broker,controller",
        "node.id": "1",
        # A fixed quorum is told at each start where it is; one that is not keeps its first port in its data.
        "controller.quorum.voters": f"1@{controller}",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": ",".join(f"{p}:{p}" for p in get_args(Protocol)) + ",CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        # In the folder that the process is started in: a comma in a path would part it.
        "log.dirs": DATA,
        "auto.create.topics.enable": "false",
        # The default is three brokers.
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        # After a crash a broker waits until it counts as gone: 9 s by default.
        "broker.session.timeout.ms": "3000",
        "broker.heartbeat.interval.ms": "1000",
        # A group of one need not wait for others to join.
        "group.initial.rebalance.delay.ms": "0",
        **settings,
        "listeners": ",".join([*listeners, *filter(None, [settings.get("listeners")])]),
    }
    layout.kafka.mkdir(parents=True, exist_ok=True)
    path = layout.kafka / "server.properties"
    path.touch(mode=0o600)
    # JSON's escapes are those of a Java properties file.
    path.write_text("".join(f"{name}={json.dumps(value)[1:-1]}\n" for name, value in properties.items()))
    (layout.kafka / "log4j2.properties").write_text(_LOG_SETTINGS, encoding="utf-8")
    return path


def free_port() -> int:
    """A loopback port that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _format(tool: list[str], properties: Path, log: Path) -> None:
    """Make the folder of the data one that a broker can start on."""
    # 128 bits, as Kafka writes them; with an equals sign, because it may begin with a hyphen.
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    arguments = ["format", f"--cluster-id={cluster}", "--config", str(properties), "--ignore-formatted"]
    with log.open("ab") as output:
        done = subprocess.run(
            [*tool, *arguments],
            cwd=properties.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
        )
    if done.returncode:
        raise PlatformError(f"Kafka's folder could not be formatted (exit {done.returncode}): see {log}")


def _wait_until_up(process: subprocess.Popen[bytes], started: LocalBroker, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    connection = KafkaConnection(started.bootstrap_servers)
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise PlatformError(f"the Kafka broker ended while it started (exit {process.returncode}): see {log}")
        try:
            topic_names(connection, timeout_seconds=0.5)
        except PlatformError:  # not yet
            continue
        return
    raise PlatformError(f"the Kafka broker did not answer on port {started.port} within {START_SECONDS} s: see {log}")
