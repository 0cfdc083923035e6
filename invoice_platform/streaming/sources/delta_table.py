"""Rows that are appended to other tables of the lakehouse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from invoice_platform.errors import PlatformError
from invoice_platform.streaming.checkpoint import last_committed, last_planned, planned_before_last
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.settings import RunSettings
from invoice_platform.streaming.sources.source import Leg, Source, read_source_state
from invoice_platform.streaming.state import read_state, write_state
from invoice_platform.streaming.tables import Table, facts, latest_version

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


@dataclass(frozen=True, init=False)
class DeltaTable(Source):
    """The rows appended to one or more other tables of the lakehouse, side by side, in those tables' columns.

    A column that one of them lacks is null in its rows. `checkpoints/<stream>/source.json` says which checkpoint is in
    use, from which version of each table it started, and through which version the stream is known to have worked.

    Parameters
    ----------
    tables : Table or str
        A declared table is made, empty, where it is not there yet; one given by name has to be there.
    starting_version : int
        Version from which on to read, instead of the table as it stands and all that follows. A batch reads it whole.
    """

    example: ClassVar[str] = "DeltaTable(INVOICE_LINE_ITEMS)"

    tables: tuple[Table | str, ...]
    starting_version: int | None

    def __init__(self, *tables: Table | str, starting_version: int | None = None) -> None:
        object.__setattr__(self, "tables", tables)
        object.__setattr__(self, "starting_version", starting_version)

    @property
    def names(self) -> tuple[str, ...]:
        """The tables' names."""
        return tuple(table if isinstance(table, str) else table.name for table in self.tables)

    @property
    def tables_read(self) -> tuple[str, ...]:
        """The tables' names."""
        return self.names

    def _state(self, layout: Layout, stream: str) -> dict[str, Any]:
        starting = {} if self.starting_version is None else dict.fromkeys(self.names, self.starting_version)
        first = {"segment": 1, "starting_versions": starting, "drained_versions": {}}
        return read_source_state(layout, stream, first)

    def _write_state(self, layout: Layout, stream: str, **changes: Any) -> None:
        write_state(layout.source_state(stream), self._state(layout, stream) | changes)

    def _latest(self, layout: Layout) -> dict[str, int]:
        return {name: latest_version(layout.table(name)) for name in self.names}

    def pending(self, layout: Layout, stream: str) -> list[Leg]:
        """One leg when a table has versions not yet worked through."""
        state, latest = self._state(layout, stream), self._latest(layout)
        behind = any(version > state["drained_versions"].get(name, -1) for name, version in latest.items())
        # A table that is not there yet is made, empty, as version 0 before the query reads it.
        return [Leg(state["segment"], {name: max(version, 0) for name, version in latest.items()})] if behind else []

    def current(self, layout: Layout, stream: str) -> Leg:
        """The checkpoint in use, for a query that stays."""
        return Leg(self._state(layout, stream)["segment"])

    def drained(self, layout: Layout, stream: str, leg: Leg) -> None:
        """Write down through which version of each table the stream has worked."""
        self._write_state(layout, stream, drained_versions=leg.through)

    def drained_versions(self, layout: Layout, stream: str) -> dict[str, int]:
        """Through which version of each table the stream is known to have worked; a table not begun is not there."""
        return self._state(layout, stream)["drained_versions"]

    def begun(self, layout: Layout, stream: str, segment: int, table: Path | None) -> str | None:
        """Versions that were worked through with it, or rows of a stream of which nothing else is left."""
        if layout.source_state(stream).exists():
            state = self._state(layout, stream)
            drained = state["drained_versions"]
            if drained != state["starting_versions"]:
                return f"{', '.join(f'{name} up to version {v}' for name, v in drained.items())} went through it"
            return None
        found = facts(table) if table is not None else None
        return f"{found.rows} rows came through it" if found is not None and found.rows else None

    def versions_read(self, layout: Layout, stream: str) -> dict[str, int]:
        """The newest version of each table of which the stream has rows, or may have after a crash; none before it began.

        Raises
        ------
        Damaged
            When its checkpoint does not tell.
        """
        state = self._state(layout, stream)
        read = dict(state["drained_versions"])
        if (planned := last_planned(layout.checkpoint(stream, state["segment"]))) is not None:
            for name, offset in zip(self.names, planned.offsets, strict=False):
                if offset is not None:  # an index below 0: before the version's first file
                    version = offset["reservoirVersion"] - (offset["index"] < 0)
                    read[name] = max(version, read.get(name, -1))
        return read

    def versions_needed(self, layout: Layout, stream: str) -> dict[str, int]:
        """The oldest version of each table of which a query will read the log again; none of a stream that has yet to begin.

        That is where the last micro-batch but one ended, because Spark plans the last one again when it starts.

        Raises
        ------
        Damaged
            When its checkpoint does not tell.
        """
        state = self._state(layout, stream)
        needed: dict[str, int] = state["drained_versions"] | state["starting_versions"]
        if (planned := planned_before_last(layout.checkpoint(stream, state["segment"]))) is not None:
            told = dict(zip(self.names, planned.offsets, strict=False))
            # Without an offset: a table of which nothing was read yet.
            needed = {name: (told.get(name) or {"reservoirVersion": 0})["reservoirVersion"] for name in self.names}
        return needed

    def unread_from(self, layout: Layout, stream: str) -> dict[str, int]:
        """The oldest version of each table that may have rows which were not read; none of a stream that has yet to begin.

        Raises
        ------
        Damaged
            When its checkpoint does not tell.
        """
        state = self._state(layout, stream)
        unread = {name: version + 1 for name, version in state["drained_versions"].items()}
        if (done := last_committed(layout.checkpoint(stream, state["segment"]))) is not None:
            for name, offset in zip(self.names, done.offsets, strict=False):
                unread[name] = max(unread.get(name, 0), offset["reservoirVersion"] if offset is not None else 0)
        return unread

    def begins_late(self, layout: Layout, stream: str) -> bool:
        """Whether a rebuild let the checkpoint in use begin after what the tables held."""
        return bool(read_state(layout.source_state(stream)).get("starting_versions"))

    def restart(self, layout: Layout, stream: str, after: Mapping[str, int] | None) -> None:
        """Leave the checkpoint for a new one.

        Parameters
        ----------
        after : mapping of str to int
            For each table the version after which to read; a commit without data must follow it already, because Delta
            cannot start at a version to come. None: the tables as they stand and all that follows.
        """
        segment = self._state(layout, stream)["segment"] + 1
        first = {name: version + 1 for name, version in (after or {}).items()}
        # The first version to be read is without data, so it counts as worked through.
        self._write_state(layout, stream, segment=segment, starting_versions=first, drained_versions=first)

    def read_stream(
        self, spark: SparkSession, layout: Layout, stream: str, leg: Leg, settings: RunSettings
    ) -> DataFrame:
        """The tables as a stream, at most so many of their files, or bytes, a micro-batch."""
        if leg.segment != (state := self._state(layout, stream))["segment"]:
            raise AssertionError(f"leg of segment {leg.segment}, checkpoint in use {state['segment']}")
        read: list[DataFrame] = []
        for table, name in zip(self.tables, self.names, strict=True):
            _make_there(table, spark, layout, stream)
            reader = spark.readStream.format("delta").options(**settings.file_limits())
            if (version := state["starting_versions"].get(name)) is not None:
                reader = reader.option("startingVersion", version)
            # By path: the catalog of a new session knows no table yet.
            read.append(reader.load(str(layout.table(name))))
        return _side_by_side(read)

    def read_batch(self, spark: SparkSession, layout: Layout, stream: str) -> DataFrame:
        """The tables as they stand."""
        read: list[DataFrame] = []
        for table, name in zip(self.tables, self.names, strict=True):
            _make_there(table, spark, layout, stream)
            read.append(spark.read.format("delta").load(str(layout.table(name))))
        return _side_by_side(read)

    def remedy(self, error: str) -> str | None:
        """Rows that were deleted or changed in a source, columns that were, and a checkpoint of other sources need a rebuild."""
        if any(sign in error for sign in ("DELTA_SOURCE_TABLE_IGNORE_CHANGES", "DELTA_SOURCE_IGNORE_DELETE")):
            return (
                f"rows of {' or '.join(self.names)} were deleted, changed or overwritten, and a stream reads only what is "
                "added: run the rebuild job (`invoice-platform run rebuild_invoices`), after which the streams go on; it makes the "
                "table of landed files from all that was accepted, deleted rows too, and takes other tables as they are"
            )
        if "DELTA_STREAMING_INCOMPATIBLE_SCHEMA_CHANGE" in error:
            return (
                f"a column of {' or '.join(self.names)} was dropped, renamed or given another type after rows came that were not "
                "read: run the rebuild job (`invoice-platform run rebuild_invoices`), which reads the table as it is now; then the "
                "streams go on"
            )
        if "sources in the checkpoint offsets" in error:
            return (
                f"its checkpoint is of other tables than {', '.join(self.names)}: run the rebuild job "
                "(`invoice-platform run rebuild_invoices`), which begins a new one"
            )
        return None


def _make_there(table: Table | str, spark: SparkSession, layout: Layout, stream: str) -> None:
    if isinstance(table, Table):
        table.declare(spark, layout)
    elif latest_version(layout.table(table)) < 0:
        raise PlatformError(
            f"stream {stream!r} reads the Delta table {table!r}, which is not in {layout.lakehouse}: make it first, or "
            "give its declaration (a Table) in place of its name"
        )


def _side_by_side(frames: list[DataFrame]) -> DataFrame:
    first, *others = frames
    for other in others:
        first = first.unionByName(other, allowMissingColumns=True)
    return first
