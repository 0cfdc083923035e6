"""Kafka without Spark: which broker and how to log in, for Spark and for librdkafka; offsets and topics.

The connection comes from the environment (`KAFKA_BOOTSTRAP_SERVERS` and its like), else it is the root's own broker
while that is up (`invoice-platform kafka`). Nothing is asked of a broker without a limit of time.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

from invoice_platform.errors import PlatformError
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.state import read_state, write_state

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, TopicPartition

SERVERS_VARIABLE = "KAFKA_BOOTSTRAP_SERVERS"
PROTOCOL_VARIABLE = "KAFKA_SECURITY_PROTOCOL"
MECHANISM_VARIABLE = "KAFKA_SASL_MECHANISM"
USERNAME_VARIABLE = "KAFKA_SASL_USERNAME"
PASSWORD_VARIABLE = "KAFKA_SASL_PASSWORD"
CA_VARIABLE = "KAFKA_SSL_CA_LOCATION"
CERTIFICATE_VARIABLE = "KAFKA_SSL_CERTIFICATE_LOCATION"
KEY_VARIABLE = "KAFKA_SSL_KEY_LOCATION"

Protocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
Mechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]

ANSWER_SECONDS = 10.0
"""How long a broker is given to answer all that one call asks of it."""
REQUEST_MS = 5_000
"""Spark: one request to a broker; by default 30 s."""
API_MS = 10_000
"""Spark: one call of a client's, with its retries; by default 60 s."""
DELIVERY_MS = 20_000
"""Spark: one message written, with its retries; by default 120 s. At least linger.ms + `REQUEST_MS`."""
SILENT = 0
"""librdkafka's log level: by default it writes each failed attempt to connect to stderr."""

_ADDRESS = re.compile(r"[^\s,]+:\d{1,5}")

T = TypeVar("T")
K = TypeVar("K")


@dataclass(frozen=True)
class LocalBroker:
    """The Kafka broker of a root, as `invoice-platform kafka` wrote it down."""

    pid: int
    port: int
    started_at: str

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    def write(self, layout: Layout) -> None:
        write_state(layout.kafka_file, asdict(self))

    @classmethod
    def of(cls, layout: Layout) -> LocalBroker | None:
        """The broker that runs for this root, or None; asks the machine, not the network."""
        try:
            broker = cls(**read_state(layout.kafka_file))
        except (ValueError, TypeError):
            return None
        import psutil

        try:
            command = psutil.Process(broker.pid).cmdline()
        except psutil.Error:
            return None
        # The number may have gone to another process since.
        return broker if any(word.startswith(str(layout.kafka)) for word in command) else None


@dataclass(frozen=True)
class Offsets:
    """The messages of one partition: from `low` to `high`, which is the offset of the next one to come."""

    low: int
    high: int


@dataclass(frozen=True)
class KafkaConnection:
    """A broker and how to log in there; what is secret is never shown.

    Raises
    ------
    PlatformError
        When something is missing, or does not go with the rest: names the variable.
    """

    bootstrap_servers: str
    """`host:port`, more of them parted by commas."""
    security_protocol: Protocol = "PLAINTEXT"
    sasl_mechanism: Mechanism | None = None
    sasl_username: str | None = field(default=None, repr=False)
    sasl_password: str | None = field(default=None, repr=False)
    ssl_ca_location: str | None = field(default=None, repr=False)
    """PEM file of who signed the broker's certificate; who the system trusts when not given."""
    ssl_certificate_location: str | None = field(default=None, repr=False)
    """PEM file of the client's own certificate, where the broker wants one."""
    ssl_key_location: str | None = field(default=None, repr=False)
    """PEM file of that certificate's key, PKCS#8 and without a password."""

    def __post_init__(self) -> None:
        if not all(_ADDRESS.fullmatch(address) for address in self.bootstrap_servers.split(",")):
            raise PlatformError(
                f"{SERVERS_VARIABLE}={self.bootstrap_servers}: give host:port, more of them parted by commas"
            )
        _one_of(PROTOCOL_VARIABLE, self.security_protocol, Protocol)
        kinds = self.security_protocol.split("_")
        login = {
            MECHANISM_VARIABLE: self.sasl_mechanism,
            USERNAME_VARIABLE: self.sasl_username,
            PASSWORD_VARIABLE: self.sasl_password,
        }
        files = {
            CA_VARIABLE: self.ssl_ca_location,
            CERTIFICATE_VARIABLE: self.ssl_certificate_location,
            KEY_VARIABLE: self.ssl_key_location,
        }
        for kind, settings in (("SASL", login), ("SSL", files)):
            given = [variable for variable, value in settings.items() if value is not None]
            if given and kind not in kinds:
                choices = " or ".join(name for name in get_args(Protocol) if kind in name.split("_"))
                raise PlatformError(
                    f"{given[0]} is set, but {PROTOCOL_VARIABLE} is {self.security_protocol}: set that to {choices}, "
                    f"or unset {given[0]}"
                )
        if "SASL" in kinds:
            if missing := [variable for variable, value in login.items() if not value]:
                raise PlatformError(f"{PROTOCOL_VARIABLE} is {self.security_protocol}: set {', '.join(missing)} too")
            _one_of(MECHANISM_VARIABLE, self.sasl_mechanism, Mechanism)
        if (self.ssl_certificate_location is None) != (self.ssl_key_location is None):
            raise PlatformError(f"{CERTIFICATE_VARIABLE} and {KEY_VARIABLE} go together: set both, or none")
        for variable, location in files.items():
            if location is not None:
                _pem(variable, location)

    @classmethod
    def of(cls, layout: Layout) -> KafkaConnection:
        """What the environment says, else the root's own broker while that is up.

        Raises
        ------
        PlatformError
            When there is neither, or when the environment says something incomplete.
        """
        settings = {
            PROTOCOL_VARIABLE: "security_protocol",
            MECHANISM_VARIABLE: "sasl_mechanism",
            USERNAME_VARIABLE: "sasl_username",
            PASSWORD_VARIABLE: "sasl_password",
            CA_VARIABLE: "ssl_ca_location",
            CERTIFICATE_VARIABLE: "ssl_certificate_location",
            KEY_VARIABLE: "ssl_key_location",
        }
        given = {variable: value for variable in settings if (value := os.environ.get(variable))}
        if servers := _servers():
            chosen: dict[str, Any] = {settings[variable]: value for variable, value in given.items()}
            return cls(servers, **chosen)
        if given:
            raise PlatformError(f"{next(iter(given))} is set, but {SERVERS_VARIABLE} is not: set it to host:port")
        if (broker := LocalBroker.of(layout)) is not None:
            return cls(broker.bootstrap_servers)
        raise PlatformError(
            f"no Kafka for {layout.root}: set {SERVERS_VARIABLE} to host:port, or start a broker of the root's own "
            "(`invoice-platform kafka`)"
        )

    @staticmethod
    def configured(layout: Layout) -> bool:
        """Whether there is a Kafka to ask: named in the environment, or the root's own that runs. Asks no network."""
        return bool(_servers()) or LocalBroker.of(layout) is not None

    def spark_options(self) -> dict[str, str]:
        """The options of Spark's Kafka source and sink: where, how to log in, and how long to wait.

        Notes
        -----
        With these a query whose broker is gone fails in less than 30 s; by Spark's and Kafka's defaults it takes minutes.
        They hold the password and the key: pass them to `options(**…)`, and write them nowhere.
        """
        options = {
            "kafka.bootstrap.servers": self.bootstrap_servers,
            "kafka.security.protocol": self.security_protocol,
            "kafka.request.timeout.ms": str(REQUEST_MS),
            "kafka.default.api.timeout.ms": str(API_MS),
            "kafka.max.block.ms": str(API_MS),
            "kafka.delivery.timeout.ms": str(DELIVERY_MS),
            # Asked once more, on top of the client's own retries; by default three times.
            "fetchOffset.numRetries": "1",
            # A poll on an executor; by default spark.network.timeout, 120 s.
            "kafkaConsumer.pollTimeoutMs": str(API_MS),
        }
        if self.sasl_mechanism is not None:
            module = "plain.PlainLoginModule" if self.sasl_mechanism == "PLAIN" else "scram.ScramLoginModule"
            options |= {
                "kafka.sasl.mechanism": self.sasl_mechanism,
                "kafka.sasl.jaas.config": (
                    f"org.apache.kafka.common.security.{module} required "
                    f"username={_jaas(self.sasl_username or '')} password={_jaas(self.sasl_password or '')};"
                ),
            }
        # By content and not by path: an executor of a cluster may not have the file.
        if self.ssl_ca_location is not None:
            options |= {
                "kafka.ssl.truststore.type": "PEM",
                "kafka.ssl.truststore.certificates": _pem(CA_VARIABLE, self.ssl_ca_location),
            }
        if self.ssl_certificate_location is not None and self.ssl_key_location is not None:
            options |= {
                "kafka.ssl.keystore.type": "PEM",
                "kafka.ssl.keystore.certificate.chain": _pem(CERTIFICATE_VARIABLE, self.ssl_certificate_location),
                "kafka.ssl.keystore.key": _pem(KEY_VARIABLE, self.ssl_key_location),
            }
        return options

    def client_config(self) -> dict[str, Any]:
        """The configuration of a librdkafka client (confluent-kafka): where, how to log in, and no log on stderr."""
        config = {
            "bootstrap.servers": self.bootstrap_servers,
            "security.protocol": self.security_protocol,
            "sasl.mechanism": self.sasl_mechanism,
            "sasl.username": self.sasl_username,
            "sasl.password": self.sasl_password,
            "ssl.ca.location": self.ssl_ca_location,
            "ssl.certificate.location": self.ssl_certificate_location,
            "ssl.key.location": self.ssl_key_location,
            "client.id": "invoice_platform",
            "log_level": SILENT,
        }
        return {name: value for name, value in config.items() if value is not None}

    def failure(self, error: KafkaError, what: str) -> PlatformError:
        """The error to raise when a broker, or the way to it, refuses something; `what` is that in words."""
        from confluent_kafka import KafkaError

        where, said = f"Kafka at {self.bootstrap_servers}", _said(error)
        login = (KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED)
        denied = (
            KafkaError.TOPIC_AUTHORIZATION_FAILED,
            KafkaError.GROUP_AUTHORIZATION_FAILED,
            KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        )
        if error.code() in login:
            variables = ", ".join((USERNAME_VARIABLE, PASSWORD_VARIABLE, MECHANISM_VARIABLE))
            return PlatformError(f"{where} refuses the login ({said}): check {variables}")
        if error.code() == KafkaError._SSL:
            variables = ", ".join((PROTOCOL_VARIABLE, CA_VARIABLE, CERTIFICATE_VARIABLE))
            return PlatformError(f"{where} and this client find no common TLS ({said}): check {variables}")
        if error.code() in denied:
            return PlatformError(
                f"{where}: {what} ({said}): give the user in {USERNAME_VARIABLE} the right, or take another"
            )
        if error.code() == KafkaError._MSG_TIMED_OUT:
            return PlatformError(f"{where} does not answer: {what}: see whether it is up, and check {SERVERS_VARIABLE}")
        if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            return PlatformError(f"{where}: {what} ({said}): raise the topic's max.message.bytes")
        return PlatformError(f"{where}: {what} ({said}): see the broker's log")


def offsets(
    connection: KafkaConnection,
    topics: Sequence[str] | None = None,
    pattern: str | None = None,
    timeout_seconds: float = ANSWER_SECONDS,
) -> dict[str, dict[int, Offsets]]:
    """The first and the next offset of every partition.

    Parameters
    ----------
    connection : KafkaConnection
        Which Kafka.
    topics : sequence of str
        Names of topics; each has to be there.
    pattern : str
        In place of names: a regular expression, to match a topic's whole name, as Spark's `subscribePattern` does. Kafka's
        own topics never match, and none need match.
    timeout_seconds : float
        Seconds for all of it.

    Returns
    -------
    dict of str to dict of int to Offsets
        By topic and partition.

    Raises
    ------
    PlatformError
        When a topic is not there, the pattern is none, the login is refused, or no answer came in time.
    """
    from confluent_kafka import TopicPartition

    if (topics is None) == (pattern is None):
        raise PlatformError("give either the names of topics or a pattern, not both")
    asked = _Asked(connection, timeout_seconds)
    if pattern is None:
        described = asked.describe(topics or ())
    else:
        matching = asked.describe(asked.names_like(pattern))
        described = {name: topic for name, topic in matching.items() if not topic.is_internal}
    if not described:
        return {}
    partitions = [TopicPartition(name, part.id) for name, topic in described.items() for part in topic.partitions]
    low, high = asked.ends(partitions)
    result: dict[str, dict[int, Offsets]] = {name: {} for name in described}
    for partition in partitions:
        result[partition.topic][partition.partition] = Offsets(low[partition].offset, high[partition].offset)
    return result


def topic_names(connection: KafkaConnection, timeout_seconds: float = ANSWER_SECONDS) -> set[str]:
    """The name of every topic that this user may see, Kafka's own among them.

    Raises
    ------
    PlatformError
        When the login is refused, or no answer came in time.
    """
    return set(_Asked(connection, timeout_seconds).names())


def create_topic(
    connection: KafkaConnection, topic: str, partitions: int = 1, timeout_seconds: float = ANSWER_SECONDS
) -> bool:
    """Make a topic, replicated as the broker has it by default; False when it is there already, however many its partitions.

    Raises
    ------
    PlatformError
        When the broker will not make it, the login is refused, or no answer came in time.
    """
    from confluent_kafka import KafkaError
    from confluent_kafka.admin import NewTopic  # pyright: ignore[reportPrivateImportUsage]  # the documented place

    if partitions < 1:
        raise PlatformError(f"partitions={partitions}: give a number from 1 up")
    asked = _Asked(connection, timeout_seconds)
    new = NewTopic(topic, num_partitions=partitions)
    made = asked.client.create_topics([new], operation_timeout=asked.left(), request_timeout=asked.left())
    if not asked.results(made, f"topic {topic!r} cannot be made", passed_over=KafkaError.TOPIC_ALREADY_EXISTS):
        return False
    while not asked.found([topic]):  # the controller has made it, and the brokers hear of it a moment later
        if time.monotonic() > asked.deadline:
            raise asked.silence()
        time.sleep(0.05)
    return True


class _NoLeaderYet(PlatformError):
    """A partition has no leader at the moment, or another one than this client has heard of."""


class _Asked:
    """An admin client within a limit of time, that knows why it gets no answer."""

    def __init__(self, connection: KafkaConnection, timeout_seconds: float) -> None:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        self.connection = connection
        self.timeout_seconds = timeout_seconds
        self.deadline = time.monotonic() + timeout_seconds
        self.trouble: KafkaError | None = None
        config: dict[str, Any] = connection.client_config() | {"error_cb": self._note}
        try:
            self.client = AdminClient(config)
        except KafkaException as raised:
            raise connection.failure(raised.args[0], "no connection") from None

    def _note(self, error: KafkaError) -> None:
        from confluent_kafka import KafkaError

        if error.code() != KafkaError._ALL_BROKERS_DOWN:  # that says less than what was said of each
            self.trouble = error

    def left(self) -> float:
        """Seconds left, never none: librdkafka refuses that."""
        return max(self.deadline - time.monotonic(), 0.1)

    def look(self) -> None:
        """Hear what became of the connection; a login that is refused is not tried until time is up."""
        from confluent_kafka import KafkaError

        self.client.poll(0)
        if self.trouble is not None and self.trouble.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL):
            raise self.connection.failure(self.trouble, "no connection")

    def silence(self) -> PlatformError:
        why = f" ({_said(self.trouble)})" if self.trouble is not None else ""
        return PlatformError(
            f"Kafka at {self.connection.bootstrap_servers} does not answer within {self.timeout_seconds:g} s{why}: start it "
            f"(`invoice-platform kafka`) or check {SERVERS_VARIABLE} and {PROTOCOL_VARIABLE}"
        )

    def results(self, futures: Mapping[K, Future[T]], doing: str, passed_over: int | None = None) -> dict[K, T]:
        """What became of each request; those that failed with the error `passed_over` are left out."""
        from confluent_kafka import KafkaError, KafkaException

        while wait_for(futures.values(), timeout=0.05).not_done:
            self.look()
            if time.monotonic() > self.deadline + 0.5:  # the client's own limit comes first
                raise self.silence()
        done: dict[K, T] = {}
        for key, future in futures.items():
            try:
                done[key] = future.result()
            except KafkaException as raised:
                error = cast("KafkaError", raised.args[0])
                self.look()
                if error.code() in (KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN):
                    raise self.silence() from None
                failure = self.connection.failure(error, doing)
                if error.code() in (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE):
                    raise _NoLeaderYet(*failure.args) from None
                if error.code() != passed_over:
                    raise failure from None
        return done

    def ends(self, partitions: Sequence[TopicPartition]) -> list[Mapping[TopicPartition, Any]]:
        """The first and the next offset of each; a topic that was just made, or that moves, may want a moment."""
        from confluent_kafka.admin import OffsetSpec  # pyright: ignore[reportPrivateImportUsage]  # the documented place

        ends = [cast("OffsetSpec", end) for end in (OffsetSpec.earliest(), OffsetSpec.latest())]
        while True:
            requests = [
                self.client.list_offsets(dict.fromkeys(partitions, end), request_timeout=self.left()) for end in ends
            ]
            try:
                return [self.results(request, "offsets cannot be read") for request in requests]
            except _NoLeaderYet:
                if time.monotonic() > self.deadline:
                    raise
                time.sleep(0.1)

    def names(self) -> list[str]:
        """Every topic, Kafka's own among them."""
        from confluent_kafka import KafkaException

        while True:
            try:
                # In slices: while it waits, the client tells nobody what is amiss.
                return list(self.client.list_topics(timeout=min(self.left(), 0.5)).topics)
            except KafkaException:
                self.look()
                if time.monotonic() > self.deadline:
                    raise self.silence() from None

    def names_like(self, pattern: str) -> list[str]:
        try:
            wanted = re.compile(pattern)
        except re.error as error:
            raise PlatformError(f"the topic pattern {pattern!r} is no regular expression ({error})") from None
        return [name for name in self.names() if wanted.fullmatch(name)]

    def found(self, names: Sequence[str]) -> dict[str, Any]:
        """Those of the topics that are there, by name."""
        from confluent_kafka import KafkaError, TopicCollection

        asked = self.client.describe_topics(TopicCollection(list(names)), request_timeout=self.left())
        return self.results(asked, "topics cannot be read", passed_over=KafkaError.UNKNOWN_TOPIC_OR_PART)

    def describe(self, names: Sequence[str]) -> dict[str, Any]:
        """Topics by name.

        Raises
        ------
        PlatformError
            When one is not there.
        """
        found = self.found(names) if names else {}
        if missing := [name for name in names if name not in found]:
            listed = ", ".join(repr(name) for name in missing)
            raise PlatformError(
                f"Kafka at {self.connection.bootstrap_servers} has no topic {listed}: create it, for example with "
                f"`invoice-platform produce FILE --topic {missing[0]} --create`"
            )
        return found


def _servers() -> str:
    return os.environ.get(SERVERS_VARIABLE, "").strip()


def _one_of(variable: str, value: object, choices: Any) -> None:
    if value not in get_args(choices):
        raise PlatformError(f"{variable}={value}: give one of {', '.join(get_args(choices))}")


def _pem(variable: str, location: str) -> str:
    """The text of a PEM file, such as Java can read.

    Raises
    ------
    PlatformError
        When it cannot be read, or is of another format; its content is never shown.
    """
    try:
        text = Path(location).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise PlatformError(f"{variable}={location}: {error.strerror}: give the path of a PEM file") from None
    except UnicodeDecodeError:
        text = ""
    kind = "PRIVATE KEY" if variable == KEY_VARIABLE else "CERTIFICATE"
    if f"-----BEGIN {kind}-----" not in text:
        how = " (`openssl pkcs8 -topk8 -nocrypt` makes one of other kinds)" if variable == KEY_VARIABLE else ""
        raise PlatformError(f"{variable}={location}: no PEM file with BEGIN {kind}: give one{how}")
    return text


def _said(error: KafkaError) -> str:
    """What an error says in one line, without the address that librdkafka begins with and how long it took."""
    return re.sub(r"^\S+:\d+/\S+: | \(after \d+ms in state \w+\)", "", " ".join(error.str().split()))


def _jaas(value: str) -> str:
    """A text as JAAS configuration wants it: in quotes, escaped as in Java."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"}
    return '"' + "".join(escapes.get(letter, letter) for letter in value) + '"'
