"""Records of Kafka topics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from invoice_platform.errors import PlatformError
from invoice_platform.streaming.checkpoint import last_committed
from invoice_platform.streaming.kafka import KafkaConnection, Offsets, offsets
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.settings import RunSettings
from invoice_platform.streaming.sources.source import Leg, Service, Source, read_source_state
from invoice_platform.streaming.state import write_state
from invoice_platform.streaming.tables import facts

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


@dataclass(frozen=True, init=False)
class KafkaTopics(Source):
    """Records of Kafka topics, from the earliest on.

    Columns: as Spark's Kafka source gives them: `key` and `value` (binary), `topic`, `partition`, `offset`, `timestamp`,
    `timestampType`, `headers` (array of `key`, `value`). The server and its secrets come from the environment (`KAFKA_…`).

    Parameters
    ----------
    topics : str
        Names of topics, or none and a pattern.
    pattern : str
        A regular expression that the whole name of a topic has to match; topics that come later are read too.
    starting_offsets : str
        Where a new checkpoint begins; Spark's own default, `latest`, would make a first run read nothing.
    """

    example: ClassVar[str] = 'KafkaTopics("orders")'

    topics: tuple[str, ...]
    pattern: str | None
    starting_offsets: Literal["earliest", "latest"]

    services: ClassVar[frozenset[Service]] = frozenset({"kafka"})

    def __init__(
        self,
        *topics: str,
        pattern: str | None = None,
        starting_offsets: Literal["earliest", "latest"] = "earliest",
    ) -> None:
        if bool(topics) == (pattern is not None):
            raise PlatformError("KafkaTopics: give either names of topics or a pattern")
        object.__setattr__(self, "topics", topics)
        object.__setattr__(self, "pattern", pattern)
        object.__setattr__(self, "starting_offsets", starting_offsets)

    def _state(self, layout: Layout, stream: str) -> dict[str, Any]:
        """The checkpoint in use; from where it began, and how many rows the table had then, where a repair said so."""
        return read_source_state(layout, stream, {"segment": 1, "starting_offsets": None, "rows": 0})

    def committed(self, layout: Layout, stream: str) -> dict[str, dict[int, int]]:
        """Offsets up to which the stream has read, by topic and partition; empty before its first micro-batch."""
        state = self._state(layout, stream)
        last = last_committed(layout.checkpoint(stream, state["segment"]))
        read = last.offsets[0] if last is not None else state["starting_offsets"]
        return {topic: {int(p): offset for p, offset in of_topic.items()} for topic, of_topic in (read or {}).items()}

    def current(self, layout: Layout, stream: str) -> Leg:
        """The checkpoint in use, for a query that stays."""
        return Leg(self._state(layout, stream)["segment"])

    def begun(self, layout: Layout, stream: str, segment: int, table: Path | None) -> str | None:
        """Rows that the table did not have when the checkpoint was made."""
        found = facts(table) if table is not None else None
        came = found.rows - self._state(layout, stream)["rows"] if found is not None else 0
        return f"{came} rows came through it" if came > 0 else None

    def made_anew(self, layout: Layout, stream: str) -> list[str]:
        """Partitions (`topic/number`) whose offsets begin again below where the stream has read."""
        return _gone(self.committed(layout, stream), self.there(layout))[1]

    def restart(self, layout: Layout, stream: str, segment: int, starting: Mapping[str, Any], rows: int) -> None:
        """Leave the checkpoint for a new one, `segment`, that begins at `starting`: offsets by topic and partition."""
        write_state(layout.source_state(stream), {"segment": segment, "starting_offsets": starting, "rows": rows})

    def there(self, layout: Layout) -> dict[str, dict[int, Offsets]]:
        """What the server has, by topic and partition."""
        return offsets(KafkaConnection.of(layout), self.topics or None, self.pattern)

    def _starting(self, state: Mapping[str, Any], there: Mapping[str, Mapping[int, Offsets]]) -> str:
        """Where a new checkpoint begins, as Spark takes it: a word, or every partition by number (-2: its earliest)."""
        if (known := state["starting_offsets"]) is None:
            return self.starting_offsets
        return json.dumps(
            {topic: {str(p): known.get(topic, {}).get(str(p), -2) for p in held} for topic, held in there.items()}
        )

    def pending(self, layout: Layout, stream: str) -> list[Leg]:
        """One leg when a partition holds records beyond the checkpoint's offsets, or lacks some that were not read."""
        committed = self.committed(layout, stream)
        there = self.there(layout)
        new = any(
            held.high > committed.get(topic, {}).get(partition, held.low)
            for topic, partitions in there.items()
            for partition, held in partitions.items()
        )
        return [self.current(layout, stream)] if new or any(_gone(committed, there)) else []

    def read_stream(
        self, spark: SparkSession, layout: Layout, stream: str, leg: Leg, settings: RunSettings
    ) -> DataFrame:
        """The topics as a stream, at most `max_offsets_per_trigger` records a micro-batch.

        Raises
        ------
        PlatformError
            When records that were not read have expired and the run was not told to accept that.
        """
        there = self.there(layout)
        expired, anew = _gone(self.committed(layout, stream), there)
        if anew:
            raise PlatformError(
                f"stream {stream!r}: {', '.join(anew)} was deleted or made anew, so its offsets begin again: run "
                f"`invoice-platform repair {stream}` to read all that it now holds from the beginning"
            )
        if expired and settings.fail_on_data_loss:
            told = ", ".join(f"{'all' if n is None else n} of {partition}" for partition, n in expired.items())
            raise PlatformError(
                f"stream {stream!r}: Kafka no longer has records that were not read ({told}): keep them longer "
                "(the topic's retention.ms), and set fail_on_data_loss to false for one run (`--no-fail-on-data-loss`) to go "
                "on with what is there; the loss is then counted"
            )
        reader = (
            self._described(spark.readStream, KafkaConnection.of(layout))
            .option("startingOffsets", self._starting(self._state(layout, stream), there))
            .option("maxOffsetsPerTrigger", settings.max_offsets_per_trigger)
            .option("failOnDataLoss", settings.fail_on_data_loss)
        )
        return reader.load()

    def read_batch(self, spark: SparkSession, layout: Layout, stream: str) -> DataFrame:
        """All records that the topics hold now."""
        return self._described(spark.read, KafkaConnection.of(layout)).load()

    def _described(self, reader: Any, connection: KafkaConnection) -> Any:
        reader = reader.format("kafka").options(**connection.spark_options()).option("includeHeaders", True)
        if self.pattern is not None:
            return reader.option("subscribePattern", self.pattern)
        return reader.option("subscribe", ",".join(self.topics))

    def lost(self, progress: Mapping[str, Any]) -> int:
        """Offsets that a micro-batch passed over without a record; a topic that is compacted has such by itself.

        None are counted in a micro-batch in which a partition is new, because nobody says where it began.
        """
        start, end = progress["startOffset"], progress["endOffset"]
        if not start or not end:
            return 0
        passed = sum(
            offset - start[topic][partition]
            for topic, partitions in end.items()
            for partition, offset in partitions.items()
            if partition in start.get(topic, {})
        )
        new = any(p not in start.get(topic, {}) for topic, partitions in end.items() for p in partitions)
        return 0 if new else max(passed - progress["numInputRows"], 0)

    def remedy(self, error: str) -> str | None:
        """Records that expired while the query ran."""
        if "failOnDataLoss" in error or "data may have been lost" in error.lower() or "KAFKA_DATA_LOSS" in error:
            return "set fail_on_data_loss to false for one run to go on with what is there: the loss is then counted"
        return None


def _gone(
    committed: Mapping[str, Mapping[int, int]], there: Mapping[str, Mapping[int, Offsets]]
) -> tuple[dict[str, int | None], list[str]]:
    """What was not read and is not there any more.

    Returns
    -------
    tuple
        Records by `topic/partition`, None for a partition that was deleted; and partitions that were made anew.
    """
    expired: dict[str, int | None] = {}
    anew: list[str] = []
    for topic, partitions in committed.items():
        for partition, offset in partitions.items():
            held = there.get(topic, {}).get(partition)
            if held is None:
                expired[f"{topic}/{partition}"] = None
            elif held.high < offset:
                anew.append(f"{topic}/{partition}")
            elif held.low > offset:
                expired[f"{topic}/{partition}"] = held.low - offset
    return expired, anew
