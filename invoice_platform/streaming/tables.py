"""Delta tables: declared as data, made by SQL, and their facts read from the Delta log without Spark."""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invoice_platform.errors import PlatformError, first_line
from invoice_platform.streaming.damage import Damage, Damaged, commit_file, parquet_file
from invoice_platform.streaming.evolution import Changed, Type, differences
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.session import RemoteSession
from invoice_platform.streaming.unfinished import finish_interrupted

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable
    from pyspark.sql import SparkSession

_NAME = re.compile(r"[A-Za-z0-9_]+")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\.parquet")
PREVIEW_ROWS = 10
BATCH_ROWS = 512
"""Rows that a query without Spark has in one piece."""
MAKING_SECONDS = 10.0
"""How long the first commit of a table may take from the making of its log's folder."""
OPENED_TABLES = 16
CHECKPOINT_COMMITS = 30
"""Commits of a table after which `checkpoint_log` makes a checkpoint of its log."""
SPARK_CHECKPOINT_COMMITS = 1_000
"""After which Spark would make one within a commit, as it does every 10 by default."""


@dataclass(frozen=True)
class Column:
    """One column of a table or of a landed record."""

    name: str
    type: str
    """Spark SQL type, e.g. `decimal(18,2)`."""
    comment: str
    required: bool = False
    """In a landed record: a record without it is quarantined. In a table: NOT NULL."""
    fields: tuple[Column, ...] = ()
    """Of a struct, or of the structs in an array: the fields that `type` names."""
    rounded: bool = False
    """In a landed record: a number of more decimals is rounded half up, not refused."""

    @property
    def is_array(self) -> bool:
        return self.type.startswith("array<")

    @property
    def is_struct(self) -> bool:
        return bool(self.fields) and not self.is_array

    @property
    def ddl(self) -> str:
        return f"`{self.name}` {self.type}"


@dataclass(frozen=True)
class Table:
    """A Delta table at `lakehouse/<name>`, known by the same name in the catalog."""

    name: str
    columns: tuple[Column, ...]
    comment: str
    properties: dict[str, str] = field(default_factory=dict)
    """Delta table properties, e.g. which columns get statistics."""

    def declare(self, spark: SparkSession, layout: Layout) -> None:
        """Make the table if it is not there, make it known by name in this session's catalog, add columns and nested fields.

        Raises
        ------
        PlatformError
            Before anything is written, when the table that is there has columns of other types.
        """
        path = layout.table(self.name)
        _clear_unmade(path)
        changes = self.changes(layout)
        if changes is None:
            # By path: the catalog may know the name of a table that was removed, and would then make none.
            columns = ", ".join(_described(c) for c in self.columns)
            declared = f"USING delta COMMENT {_quoted(self.comment)} TBLPROPERTIES ({self._properties()})"
            spark.sql(f"CREATE TABLE IF NOT EXISTS {by_path(path)} ({columns}) {declared}")
        told = _told(spark, layout)
        if told is None or not (told / self.name).exists():
            _tell(spark, layout, self.name, told)
        for change in changes or ():
            spark.sql(f"ALTER TABLE {by_path(path)} {change}")

    def changes(self, layout: Layout) -> list[str] | None:
        """What ALTER TABLE has to do so that the table is as declared, asking no Spark; None when there is no table.

        Columns and nested fields that it lacks are added, and a column is no longer NOT NULL when it need not be.
        A column that is not declared stays.

        Raises
        ------
        PlatformError
            For any other change.
        """
        found = open_delta(layout.table(self.name))
        if found is None:
            return None
        there = {f["name"].lower(): f for f in json.loads(found.schema().to_json())["fields"]}
        added: list[str] = []
        others: list[str] = []
        for column in self.columns:
            field = there.get(column.name.lower())
            if field is None:
                if column.required:
                    raise self._incompatible(layout, column.name, "not there", f"{column.type} NOT NULL")
                added.append(_described(column))
                continue
            if column.required and field["nullable"]:
                raise self._incompatible(layout, column.name, "without NOT NULL", "NOT NULL")
            if not column.required and not field["nullable"]:
                others.append(f"ALTER COLUMN `{column.name}` DROP NOT NULL")
            for difference in differences((column.name,), Type.of_delta(field["type"]), Type.parse(column.type)):
                if isinstance(difference, Changed):
                    raise self._incompatible(
                        layout,
                        ".".join(difference.path),
                        str(difference.there),
                        str(difference.declared or "not declared"),
                    )
                added.append(f"{'.'.join(f'`{part}`' for part in difference.path)} {difference.type}")
        return ([f"ADD COLUMNS ({', '.join(added)})"] if added else []) + others

    def _incompatible(self, layout: Layout, column: str, there: str, declared: str) -> PlatformError:
        return PlatformError(
            f"table {self.name}, column {column}: {there} in {layout.table(self.name)}, {declared} in its declaration, which "
            "no table can be changed to: give the new column another name (and do not require it), or, where a rebuild makes the "
            "table, move that folder away and run the rebuild job (`invoice-platform run rebuild_invoices`)"
        )

    def _properties(self) -> str:
        own = {"invoice_platform.declared": "true", "delta.checkpointInterval": str(SPARK_CHECKPOINT_COMMITS)}
        properties = own | self.properties
        return ", ".join(f"{_quoted(name)} = {_quoted(value)}" for name, value in properties.items())


@dataclass(frozen=True)
class TableFacts:
    """What the Delta log says of one version of a table."""

    version: int
    rows: int
    files: int
    bytes: int


@dataclass
class _Opened:
    """A table as it was last opened."""

    state: tuple[tuple[int, ...], ...]
    """Of the files that it was read from."""
    table: DeltaTable

    @cached_property
    def facts(self) -> TableFacts:
        return _count(self.table)


_opened: dict[Path, _Opened] = {}
"""A run of one file asks 35 times, for 3 states, and reading the log of 1,000 commits takes 0.03 s, to count its files 0.01. Nobody
changes what it is given."""


def _told(spark: SparkSession, layout: Layout) -> Path | None:
    """Where it is noted which tables the catalog was told of, for the root's warm Spark; None for another session.

    That one is told once, as long as it is up: each call that asks Hive takes 0.03 s, and leaves 2 to 3 kB in it for ever
    (DataNucleus keeps what a thread opened).
    """
    session = RemoteSession.of(spark)
    return layout.known_tables if session is not None and session.warm_server(layout) is not None else None


def _tell(spark: SparkSession, layout: Layout, name: str, told: Path | None) -> None:
    """Make a table known by name in this session's catalog, and note it in `told`, if there is such a place."""
    # Without columns: a comment that differs from what the table was made with would be refused.
    spark.sql(f"CREATE TABLE IF NOT EXISTS `{name}` USING delta LOCATION {_quoted(str(layout.table(name)))}")
    _note(name, told)


def _note(name: str, told: Path | None) -> None:
    if told is not None:
        told.mkdir(parents=True, exist_ok=True)
        (told / name).touch()


def _described(column: Column) -> str:
    return f"{column.ddl}{' NOT NULL' if column.required else ''} COMMENT {_quoted(column.comment)}"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def tables_on_disk(layout: Layout) -> list[str]:
    """Names of all Delta tables under the root's `lakehouse/`, sorted; a folder whose name no table can have is none."""
    return [name for name in _delta_folders(layout) if _NAME.fullmatch(name)]


def strange_tables(layout: Layout) -> list[str]:
    """Names of Delta folders that are passed over, because they could be taken for SQL."""
    return [name for name in _delta_folders(layout) if not _NAME.fullmatch(name)]


def _delta_folders(layout: Layout) -> list[str]:
    if not layout.lakehouse.is_dir():
        return []
    return sorted(folder.name for folder in layout.lakehouse.iterdir() if latest_version(folder) >= 0)


def _clear_unmade(path: Path) -> None:
    """Remove what a crash left of a table before its first commit: Spark makes no table in a folder that is not empty.

    That is a log of nothing but empty folders (Delta's `_staged_commits`) and hidden, partial files. Where another process is
    just making the table, its commit is waited for.
    """

    def unmade() -> bool:
        log = path / "_delta_log"
        return log.is_dir() and [p.name for p in path.iterdir()] == [log.name] and not any(_shown_files(log))

    for _ in range(int(MAKING_SECONDS / 0.1)):
        if not unmade():
            return
        time.sleep(0.1)
    if unmade():
        shutil.rmtree(path)


def _shown_files(folder: Path) -> Iterator[Path]:
    return (p for p in folder.rglob("*") if not p.name.startswith(".") and not p.is_dir())


def by_path(path: Path) -> str:
    """The Delta table at `path` as SQL names it."""
    return f"delta.`{str(path).replace('`', '``')}`"


def declare_existing(spark: SparkSession, layout: Layout, *, moved: bool = False) -> list[str]:
    """Make every table under the root known by name in this session's catalog; their names.

    Parameters
    ----------
    moved : bool
        Look whether the catalog knows a table from another place (a root that was moved brings its metastore with it),
        and point it here; no data is touched.
    """
    finish_interrupted(layout)
    known = {table.name for table in spark.catalog.listTables()}
    names, told = tables_on_disk(layout), _told(spark, layout)
    for name in names:
        if name in known and not (moved and _is_elsewhere(spark, layout, name)):
            _note(name, told)
            continue
        if name in known:
            spark.sql(f"DROP TABLE `{name}`")  # external: only the catalog's entry goes
        _tell(spark, layout, name, told)
    return names


def _is_elsewhere(spark: SparkSession, layout: Layout, name: str) -> bool:
    """Whether the catalog knows a table from another place than the root's."""
    details = spark.sql(f"DESCRIBE EXTENDED `{name}`").where("col_name = 'Location'").collect()
    return not details or details[0]["data_type"].removeprefix("file:").rstrip("/") != str(layout.table(name))


def open_delta(path: Path, version: int | None = None) -> DeltaTable | None:
    """The table at `path` through delta-rs, now or at a version, or None where there is none yet.

    Raises
    ------
    PlatformError
        When its log cannot be read: names the file that is damaged.
    """
    if not (path / "_delta_log").is_dir():
        return None
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    seen = _log_files(path) if version is None else None
    if seen is not None and (opened := _opened.get(path)) is not None and opened.state == seen:
        return opened.table
    try:
        table = DeltaTable(str(path), version=version) if DeltaTable.is_deltatable(str(path)) else None
    except DeltaError as error:
        if found := damage(path):
            raise Damaged(f"table {path.name}", found[0], path.name) from None
        raise PlatformError(f"table {path.name}: {path / '_delta_log'} cannot be read: {first_line(error)}") from error
    if seen is not None and table is not None:
        # A commit of meanwhile does no harm: by then the log has another state.
        _opened[path] = _Opened(seen, table)
        if len(_opened) > OPENED_TABLES:
            _opened.pop(next(iter(_opened)), None)
    return table


def _log_files(path: Path) -> tuple[tuple[int, ...], ...] | None:
    """The state of each file that the newest version is read from: its checkpoint and the commits after it; None when in doubt."""
    begin = last_checkpoint(path)
    files = [path / "_delta_log" / f"{begin:020d}.checkpoint.parquet"] if begin >= 0 else []
    files += [commit_path(path, number) for number in range(begin + 1, latest_version(path) + 1)]
    try:
        states = [file.stat() for file in files]
    except FileNotFoundError:
        return None
    return tuple((state.st_ino, state.st_size, state.st_mtime_ns) for state in states) or None


def damage(path: Path) -> list[Damage]:
    """The files of a table's log that a reader of its newest version needs and that are not whole, oldest first.

    That is the last checkpoint and each commit after it; costs a few file look-ups however long the log is.
    """
    log = path / "_delta_log"
    if not log.is_dir():
        return []
    begin, checkpoint = last_checkpoint(path), []
    if begin >= 0:
        checkpoint = sorted(file for file in log.glob(f"{begin:020d}.checkpoint*.parquet")) or [
            log / f"{begin:020d}.checkpoint.parquet"
        ]
    last = latest_version(path)
    # What a commit leaves beside it, when it was itself taken away.
    beside = (log / f"{last + 1:020d}.crc", log / f".{last + 1:020d}.json.crc")
    commits = [commit_path(path, number) for number in range(begin + 1, last + 1 + any(f.exists() for f in beside))]
    checked = [(file, parquet_file(file)) for file in checkpoint] + [(file, commit_file(file)) for file in commits]
    return [Damage(file, wrong) for file, wrong in checked if wrong is not None]


@dataclass(frozen=True)
class Transaction:
    """A micro-batch that a table has, as the commit that added it says."""

    application: str
    number: int
    milliseconds: int
    """When it was committed, since 1970."""


def last_transaction(path: Path) -> Transaction | None:
    """The newest micro-batch that a table has of any checkpoint, as far back as its log has commits; None for none."""
    version = latest_version(path)
    while commit_file(commit_path(path, version)) is None:
        actions = [json.loads(line) for line in commit_path(path, version).read_bytes().splitlines()]
        for txn in (action["txn"] for action in actions if "txn" in action):
            return Transaction(txn["appId"], txn["version"], txn.get("lastUpdated") or 0)
        version -= 1
    return None


def commit_path(path: Path, version: int) -> Path:
    """The file that makes a version of the table at `path`."""
    return path / "_delta_log" / f"{version:020d}.json"


def facts(path: Path, version: int | None = None) -> TableFacts | None:
    """Version, rows, files and bytes of the Delta table at `path`, now or at a version; None where there is none."""
    table = open_delta(path, version)
    if table is None:
        return None
    opened = _opened.get(path)
    return opened.facts if opened is not None and opened.table is table else _count(table)


def _count(table: DeltaTable) -> TableFacts:
    actions = add_actions(table, "num_records", "size_bytes")
    return TableFacts(
        version=table.version(),
        rows=sum(actions["num_records"]),
        files=len(actions["size_bytes"]),
        bytes=sum(actions["size_bytes"]),
    )


def add_actions(table: DeltaTable, *columns: str) -> dict[str, list[Any]]:
    """Of the live files of a table `columns` that there are: `path`, `size_bytes`, `num_records`, `null_count.<column>`, …

    Columns are made lists of one by one, which takes longer than all else: with statistics there are dozens.
    """
    import pyarrow as pa

    found = pa.table(table.get_add_actions(flatten=True))
    return {column: found[column].to_pylist() for column in columns if column in found.column_names}


def null_counts(path: Path, columns: Sequence[str]) -> dict[str, int]:
    """How many rows of the table at `path` lack each of `columns`, from the Delta log's statistics; 0 without a table."""
    table = open_delta(path)
    actions = add_actions(table, *(f"null_count.{column}" for column in columns)) if table is not None else {}
    return {column: sum(actions.get(f"null_count.{column}", [])) for column in columns}


def preview(path: Path, rows: int = PREVIEW_ROWS) -> list[dict[str, Any]]:
    """A few rows of the Delta table at `path`, in no particular order."""
    return query(path, f"SELECT * FROM t LIMIT {rows}")


def sum_column(path: Path, column: str) -> int:
    """The sum of a column of whole numbers of the Delta table at `path`; 0 without a table or rows."""
    found = query(path, f'SELECT sum("{column}") AS total FROM t')
    return (found[0]["total"] or 0) if found else 0


def query(path: Path, sql: str, version: int | None = None) -> list[dict[str, Any]]:
    """Rows of a query over the Delta table `t` at `path`, now or at a version; none without a table."""
    return [row for batch in query_batches(path, sql, version) for row in batch.to_pylist()]


def query_batches(path: Path, sql: str, version: int | None = None) -> Iterator[pa.RecordBatch]:
    """The same piece by piece: however many rows there are, a few thousand are in memory at once."""
    table = open_delta(path, version)
    if table is None:
        return
    import pyarrow as pa
    from deltalake import QueryBuilder

    # DataFusion inside delta-rs stops at a limit; to_pyarrow_dataset().head() aborts the process at exit.
    engine = QueryBuilder().register("t", table)
    # By default 8,192 rows a piece and a thread a core: a gigabyte of texts of 30 kB.
    for setting in (f"batch_size = {BATCH_ROWS}", "target_partitions = 1"):
        engine.execute(f"SET datafusion.execution.{setting}").read_all()
    yield from pa.RecordBatchReader.from_stream(engine.execute(sql))


def sql_text(text: str) -> str:
    """`text` as a literal of that SQL, which knows no escapes but the doubled quote."""
    return "'" + text.replace("'", "''") + "'"


def last_checkpoint(path: Path) -> int:
    """The version that the last checkpoint of a Delta log is of, -1 when there is none."""
    log = path / "_delta_log"
    try:
        return json.loads((log / "_last_checkpoint").read_bytes())["version"]
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or damaged: Delta, too, then looks for itself
        found = (file.name[:20] for file in log.glob("*.checkpoint*.parquet"))
        return max((int(number) for number in found if number.isdigit()), default=-1)


def checkpoint_log(path: Path) -> None:
    """Make a checkpoint of a table's log when it has `CHECKPOINT_COMMITS` since its last one.

    By delta-rs, which takes 0.004 s for a table of 10,000 files: the commit within which Spark makes one takes 0.9 to 1.3 s
    more. Whoever has just written the table does this. Where it cannot be done (disk, damage), the log only stays longer.
    """
    from deltalake.exceptions import DeltaError

    if latest_version(path) - max(last_checkpoint(path), 0) < CHECKPOINT_COMMITS:
        return
    try:
        if (table := open_delta(path)) is not None:
            table.create_checkpoint()
    except (OSError, DeltaError, PlatformError) as error:
        logging.getLogger(__name__).warning(f"table {path.name}: no checkpoint of its log: {first_line(error)}")


def checkpoints_of(path: Path) -> dict[int, Path]:
    """The checkpoints of a Delta log that are one file each, as Spark writes them, by version."""
    found = ((_CHECKPOINT.fullmatch(file.name), file) for file in (path / "_delta_log").glob("*.checkpoint.parquet"))
    return {int(match[1]): file for match, file in found if match is not None}


def latest_version(path: Path) -> int:
    """The newest version in a Delta log, -1 without a table; costs a few file look-ups however long the log is."""
    log = path / "_delta_log"
    version = last_checkpoint(path)
    if version < 0:
        names = (entry.name for entry in log.iterdir()) if log.is_dir() else iter(())
        commits = [int(name[:20]) for name in names if name.endswith(".json") and name[:20].isdigit()]
        version = max(commits, default=-1)
    while (log / f"{version + 1:020d}.json").exists():
        version += 1
    return version
