"""Sends the lines of files to a Kafka topic, each line that is not blank as a message, and waits for every acknowledgement.

A message's value is the line as it is; its key is the line's invoice number where it has one, so that all of one invoice
goes to one partition, in order; its header `source_file` is the file's name. A file sent twice is in the topic twice.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invoice_platform.errors import PlatformError
from invoice_platform.streaming.kafka import KafkaConnection, create_topic, offsets

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message

SOURCE_HEADER = "source_file"
LONGEST_LINE_BYTES = 8 << 20
"""What a topic takes is often less: 1 MiB by default."""
QUEUE_BYTES = 16 << 20
"""What has been read but is not acknowledged yet, at most."""
DELIVERY_SECONDS = 30
"""For one message, from when it is queued; a full queue is sent in time at 0.5 MiB/s."""
ENDING_SECONDS = 5
"""For what is queued when sending ends early."""
LINES_A_REPORT = 256


@dataclass(frozen=True)
class Produced:
    """A file of which every line is in the topic."""

    file: Path
    records: int
    """Messages acknowledged."""


def produce(
    connection: KafkaConnection,
    topic: str,
    files: Sequence[Path],
    *,
    create: bool = False,
    partitions: int = 3,
    progress: Callable[[int], None] = lambda _: None,
) -> Iterator[Produced]:
    """Send files, one after the other.

    Parameters
    ----------
    connection : KafkaConnection
        Which Kafka.
    topic : str
        Where to.
    files : sequence of pathlib.Path
        Files of lines, plain or `.gz`.
    create : bool
        Make the topic when it is not there.
    partitions : int
        Partitions of a topic that is made.
    progress : callable
        Told how many bytes of the files have been read since it was told last.

    Yields
    ------
    Produced
        Each file, when all of it is acknowledged by every replica that is in sync.

    Raises
    ------
    PlatformError
        When a file cannot be read, the topic is not there, the broker does not answer, or a message is refused or not
        acknowledged in time; says how many messages were acknowledged.
    """
    for file in files:
        if not file.is_file():
            raise PlatformError(f"{file} is no file: give files of lines, plain or .gz; nothing was sent")
    if create:
        create_topic(connection, topic, partitions)
    else:
        offsets(connection, [topic])  # says within seconds what is amiss, where a producer would go on trying
    sender = _Sender(connection, topic)
    try:
        for file in files:
            before = sender.acknowledged
            for number, line in _lines(file, progress):
                sender.send(file, number, line)
            sender.finish()
            yield Produced(file, sender.acknowledged - before)
    except KeyboardInterrupt:
        sender.end()
        raise PlatformError(f"interrupted: {sender.acknowledged} messages were acknowledged") from None
    except _Unreadable as error:
        sender.end()
        raise PlatformError(f"{error}; {sender.acknowledged} messages were acknowledged") from None


class _Unreadable(Exception):
    """A file that cannot be read on; the text says why."""


class _Sender:
    """A producer that counts what is acknowledged and stops at the first message that is not."""

    def __init__(self, connection: KafkaConnection, topic: str) -> None:
        from confluent_kafka import Producer

        self.connection = connection
        self.topic = topic
        self.acknowledged = 0
        self.refused: tuple[KafkaError, str] | None = None
        """The first message that was not acknowledged: why, and which."""
        own = {
            "enable.idempotence": True,  # a retry adds nothing twice and keeps the order
            "acks": "all",
            "message.timeout.ms": DELIVERY_SECONDS * 1000,
            "message.max.bytes": LONGEST_LINE_BYTES + (1 << 20),  # with its key and header
            "queue.buffering.max.kbytes": QUEUE_BYTES >> 10,
            "compression.type": "lz4",
        }
        self.producer = Producer(connection.client_config() | own)

    def send(self, file: Path, number: int, line: bytes) -> None:
        """Queue a line; waits while the queue is full."""
        from confluent_kafka import KafkaException

        which = f"line {number} of {file}"
        while True:
            self._check()
            try:
                self.producer.produce(
                    self.topic,
                    line,
                    _key(line),
                    headers=[(SOURCE_HEADER, os.fsencode(file.name))],
                    on_delivery=partial(self._delivered, which),
                )
            except BufferError:
                self.producer.poll(0.5)
            except KafkaException as raised:
                self._delivered(which, raised.args[0], None)
            else:
                self.producer.poll(0)
                return

    def finish(self) -> None:
        """Wait until all that is queued is acknowledged."""
        while self.producer.flush(0.5):
            self._check()
        self._check()

    def end(self) -> None:
        """Let what is queued arrive, for a moment, and forget the rest."""
        if self.refused is None:
            self.producer.flush(ENDING_SECONDS)
        self.producer.purge()
        self.producer.flush(1)

    def _delivered(self, which: str, error: KafkaError | None, _: Message | None) -> None:
        if error is None:
            self.acknowledged += 1
        elif self.refused is None:
            self.refused = error, which

    def _check(self) -> None:
        if self.refused is not None:
            error, which = self.refused
            self.end()
            raise self.connection.failure(
                error, f"{which} was not accepted, {self.acknowledged} messages were acknowledged"
            )


def _lines(file: Path, progress: Callable[[int], None]) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, without their ends, and their numbers from 1; never more than one in memory."""
    told = 0
    try:
        gzipped = file.name.lower().endswith(".gz")
        with file.open("rb") as packed, gzip.open(packed) if gzipped else nullcontext(packed) as lines:
            number = 0
            while line := lines.readline(LONGEST_LINE_BYTES + 2):
                number += 1
                line = line.removesuffix(b"\n").removesuffix(b"\r")
                if len(line) > LONGEST_LINE_BYTES:
                    raise _Unreadable(
                        f"line {number} of {file} is over {LONGEST_LINE_BYTES >> 20} MiB long: part the file"
                    )
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")  # as where files are landed
                if line and not line.isspace():
                    yield number, line
                if number % LINES_A_REPORT == 0:
                    progress(packed.tell() - told)
                    told = packed.tell()
            progress(packed.tell() - told)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _Unreadable(f"{file} is a damaged gzip ({error}): make it anew") from None
    except OSError as error:
        raise _Unreadable(f"{file} cannot be read ({error.strerror}): check its permissions") from None


def _key(line: bytes) -> bytes | None:
    """The invoice number, when the line is a document that has one."""
    try:
        document: Any = json.loads(line.decode())  # from bytes it would take other encodings too
        number = document.get("InvoiceNumber") if isinstance(document, dict) else None
        return number.encode() if isinstance(number, str) and number else None
    except (ValueError, RecursionError):
        return None
