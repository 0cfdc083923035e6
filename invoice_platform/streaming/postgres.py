"""What a Postgres sink needs besides Spark's JDBC writer: the connection, the table, and the merge of a micro-batch.

Source: a staging table, which `create_staging` makes and Spark's JDBC writer fills with one micro-batch. Sink: the table
that `ensure_table` makes. Grain: a row a key. Replay: a micro-batch merged again leaves the same rows, because a row
replaces the one with its key; and a crash before the merge's commit leaves the table as it was.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from invoice_platform.errors import PlatformError, first_line
from invoice_platform.streaming.tables import Column, Table

if TYPE_CHECKING:
    from psycopg import Cursor, sql

URL_VARIABLE = "POSTGRES_URL"
URL_FORM = "postgresql://user:password@host:port/database?sslmode=require"
JDBC_DRIVER = "org.postgresql.Driver"
CONNECT_TIMEOUT_SECONDS = 10
LOCK_TIMEOUT_SECONDS = 60
"""How long a merge waits for whoever holds a lock on the table, before it fails and the micro-batch is tried again."""

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
# libpq and pgjdbc both know these, by the same names and with the same meaning; of the others that is not sure.
_URL_SETTINGS = ("sslmode", "sslrootcert")
_STAGING_PREFIX = "_staging_"
_STREAM_IN_NAME = 25  # characters; with the hash and the longest number within the 63 that Postgres keeps of a name

# Spark SQL type to Postgres type, as Postgres itself spells it when asked for a column's type.
_TYPES = {
    "string": "text",
    "boolean": "boolean",
    "tinyint": "smallint",
    "smallint": "smallint",
    "int": "integer",
    "integer": "integer",
    "bigint": "bigint",
    "float": "real",
    "double": "double precision",
    "date": "date",
    "timestamp": "timestamp with time zone",
    "timestamp_ntz": "timestamp without time zone",
    "binary": "bytea",
}


@dataclass(frozen=True)
class PostgresConnection:
    """Where a Postgres database is and who asks; its text never shows the password."""

    host: str
    port: int
    database: str
    user: str
    password: str = field(default="", repr=False)
    """Empty: the server asks for none."""
    sslmode: str = "prefer"
    sslrootcert: str = ""
    """Path of the certificate that `verify-ca` and `verify-full` trust; empty: the drivers' own default."""

    @classmethod
    def from_environment(cls) -> PostgresConnection:
        """The connection that `POSTGRES_URL` names; it is kept nowhere else.

        Raises
        ------
        PlatformError
            When the setting is not there, is no such URL, or names what JDBC cannot reach.
        """
        url = os.environ.get(URL_VARIABLE, "").strip()
        if not url:
            raise PlatformError(f"{URL_VARIABLE} is not set: set it to {URL_FORM}")
        return cls.from_url(url)

    @classmethod
    def from_url(cls, url: str) -> PostgresConnection:
        """The connection that a `postgresql://` URL names, its parts percent-decoded.

        Raises
        ------
        PlatformError
            As `from_environment`; the message holds nothing of the URL but names, since any part may be a password
            that was not encoded.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or 5432
            user, password, host, database = (
                unquote(part or "", errors="strict")
                for part in (parts.username, parts.password, parts.hostname, parts.path.removeprefix("/"))
            )
            settings = dict(parse_qsl(parts.query, keep_blank_values=True, errors="strict"))
        except ValueError:
            # Not from the cause: it quotes the part that it could not read, which may be half a password.
            raise PlatformError(f"{URL_VARIABLE} cannot be read: {_encoding_remedy()}") from None
        if parts.scheme not in ("postgresql", "postgres"):
            raise PlatformError(f"{URL_VARIABLE} is no postgresql:// URL: {_encoding_remedy()}")
        if host.startswith("/") or settings.get("host", "").startswith("/") or (not host and "host" not in settings):
            raise PlatformError(
                f"{URL_VARIABLE} names no host, or a unix socket, which Spark's JDBC cannot reach: "
                f"give a host and port, {URL_FORM}"
            )
        if unknown := sorted(settings.keys() - set(_URL_SETTINGS)):
            raise PlatformError(
                f"{URL_VARIABLE} has settings that are not known here ({', '.join(unknown)}): "
                f"leave them out; {' and '.join(_URL_SETTINGS)} are known"
            )
        missing = [name for name, value in (("user", user), ("database", database)) if not value]
        if missing or parts.fragment or "," in host or "/" in database:
            what = f"has no {' and no '.join(missing)}" if missing else "cannot be read"
            raise PlatformError(f"{URL_VARIABLE} {what}: {_encoding_remedy()}")
        sslmode = settings.get("sslmode") or "prefer"
        if sslmode not in SSL_MODES:
            raise PlatformError(f"{URL_VARIABLE} has sslmode={sslmode!r}: give one of {', '.join(SSL_MODES)}")
        return cls(host, port, database, user, password, sslmode, settings.get("sslrootcert", ""))

    def __str__(self) -> str:
        return f"database {self.database!r} at {self.host}:{self.port}"

    def jdbc_options(self) -> dict[str, str]:
        """Options for Spark's JDBC reader and writer, all but `dbtable`; the URL holds no credentials."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        settings = {"sslmode": self.sslmode, "connectTimeout": str(CONNECT_TIMEOUT_SECONDS)}
        if self.sslrootcert:
            settings["sslrootcert"] = self.sslrootcert
        address = f"{host}:{self.port}/{quote(self.database, safe='')}"
        options = {
            "url": f"jdbc:postgresql://{address}?{urlencode(settings)}",
            "user": self.user,
            "driver": JDBC_DRIVER,
        }
        return options | ({"password": self.password} if self.password else {})


def ensure_table(connection: PostgresConnection, table: Table, keys: tuple[str, ...]) -> None:
    """Make the table if it is not there, with comments and the keys as its primary key; else see that it fits.

    Parameters
    ----------
    keys : tuple[str, ...]
        Columns that together name a row, e.g. `("invoice_number", "item_code")`.

    Raises
    ------
    PlatformError
        When a column's type has no counterpart in Postgres, when a key is no column, when a table of that name has other
        columns or types, or when its keys may repeat or be null; the table is left as it was.

    Notes
    -----
    The table is made and looked for in the user's current schema (`public`, unless the user's `search_path` differs).
    """
    from psycopg import sql

    wanted = {column.name: postgres_type(table, column) for column in table.columns}
    _check_keys(table, keys)
    with _transaction(connection) as cursor:
        if _find(cursor, table.name) is None:
            required = {c.name for c in table.columns if c.required} | set(keys)
            columns = [
                sql.SQL("{} {}{}").format(
                    sql.Identifier(name), _type(kind), sql.SQL(" NOT NULL" if name in required else "")
                )
                for name, kind in wanted.items()
            ]
            cursor.execute(
                sql.SQL("CREATE TABLE {} ({}, PRIMARY KEY ({}))").format(
                    sql.Identifier(table.name), sql.SQL(", ").join(columns), _names(keys)
                )
            )
            cursor.execute(
                sql.SQL("COMMENT ON TABLE {} IS {}").format(sql.Identifier(table.name), sql.Literal(table.comment))
            )
            for column in table.columns:
                cursor.execute(
                    sql.SQL("COMMENT ON COLUMN {} IS {}").format(
                        sql.Identifier(table.name, column.name), sql.Literal(column.comment)
                    )
                )
        _check_table(cursor, connection, table, wanted, keys)


def postgres_type(table: Table, column: Column) -> str:
    """The Postgres type of a column, e.g. `numeric(18,2)` of `decimal(18,2)`.

    Raises
    ------
    PlatformError
        When there is none: an array, a map, a struct, or a type that is not known.
    """
    spark_type = re.sub(r"\s+", "", column.type.lower())
    if decimal := re.fullmatch(r"decimal(?:\((\d+)(?:,(\d+))?\))?", spark_type):
        return f"numeric({decimal[1] or 10},{decimal[2] or 0})"
    if spark_type not in _TYPES:
        raise PlatformError(
            f"table {table.name!r}: column {column.name!r} is {column.type[:60]}, which a Postgres sink cannot hold: "
            "flatten it in the stream's transform, or make it text there with to_json"
        )
    return _TYPES[spark_type]


def staging_name(stream: str, batch_id: int) -> str:
    """The name of a micro-batch's staging table: lower-case letters, digits and `_`, so it needs no quotes anywhere."""
    name = re.sub(r"[^a-z0-9_]", "_", stream.lower())[:_STREAM_IN_NAME]
    if name != stream:
        name += f"_{hashlib.sha256(stream.encode()).hexdigest()[:8]}"
    return f"{_STAGING_PREFIX}{name}_{batch_id}"


def create_staging(connection: PostgresConnection, table: Table, stream: str, batch_id: int) -> str:
    """Make the empty staging table of a micro-batch, with the types of `table`; its name.

    Notes
    -----
    Spark's JDBC writer then appends to it. Left to make it itself, Spark chooses the types by its own settings, and
    `drop_old_staging` would have to tell staging tables from a person's tables by their names. The table is unlogged: it
    costs half the writing, and what a crash of the server takes from it, the replay of the micro-batch brings again.
    """
    from psycopg import sql

    name = staging_name(stream, batch_id)
    columns = [sql.SQL("{} {}").format(sql.Identifier(c.name), _type(postgres_type(table, c))) for c in table.columns]
    with _transaction(connection) as cursor:
        _drop_staging(cursor, stream, name)  # of this micro-batch's first try
        cursor.execute(
            sql.SQL("CREATE UNLOGGED TABLE {} ({})").format(sql.Identifier(name), sql.SQL(", ").join(columns))
        )
        cursor.execute(
            sql.SQL("COMMENT ON TABLE {} IS {}").format(sql.Identifier(name), sql.Literal(_staging_comment(stream)))
        )
    return name


def merge_staging(
    connection: PostgresConnection, table: Table, keys: tuple[str, ...], staging: str, *, replace: bool = False
) -> int:
    """Merge a staging table into its table and drop it, in one transaction; how many rows were inserted or replaced.

    Parameters
    ----------
    replace : bool
        Take all rows out of the table first, for a micro-batch or a batch twin that holds the whole result. Readers
        see the old rows until the commit.

    Raises
    ------
    PlatformError
        When two rows of the micro-batch have the same key and differ, when a key or a required column is null, when another
        session holds the table for long, or when Postgres refuses or cannot be reached; nothing is changed then.

    Notes
    -----
    Rows that are the same in every column count as one, because a Spark task that is tried again may have written its rows
    twice.
    """
    from psycopg import errors, sql

    _check_keys(table, keys)
    columns = [column.name for column in table.columns]
    others = [name for name in columns if name not in keys]
    if others:
        action = sql.SQL("DO UPDATE SET {}").format(
            sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name)) for name in others)
        )
    else:
        action = sql.SQL("DO NOTHING")
    merge = sql.SQL("INSERT INTO {} ({}) SELECT DISTINCT {} FROM {} ON CONFLICT ({}) {}").format(
        sql.Identifier(table.name), _names(columns), _names(columns), sql.Identifier(staging), _names(keys), action
    )
    with _transaction(connection) as cursor:
        if replace:
            cursor.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table.name)))
        try:
            cursor.execute(merge)
        except errors.CardinalityViolation:
            # Not from the cause: what Postgres adds to it may hold a row's content.
            raise PlatformError(
                f"table {table.name!r}: a micro-batch has rows with the same key ({', '.join(keys)}) that differ: make one "
                "row a key in the stream's transform (dropDuplicates or an aggregate), or declare more columns as keys"
            ) from None
        except errors.NotNullViolation as error:
            raise PlatformError(
                f"table {table.name!r}: a micro-batch has rows without {error.diag.column_name!r}, which is a key or "
                "required: leave such rows out in the stream's transform"
            ) from None
        rows = cursor.rowcount
        cursor.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(staging)))
    return rows


def drop_old_staging(connection: PostgresConnection, stream: str) -> list[str]:
    """Drop what crashed or failed runs of this stream left behind; the names. Only tables of `create_staging` are dropped.

    Notes
    -----
    Its caller holds the stream's lock, or it would drop what another run is about to merge.
    """
    with _transaction(connection) as cursor:
        return _drop_staging(cursor, stream)


def _drop_staging(cursor: Cursor[Any], stream: str, name: str | None = None) -> list[str]:
    """Drop the stream's staging tables, or the one of this name if it is there."""
    from psycopg import sql

    cursor.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r' "
        "AND starts_with(relname, %s) AND obj_description(oid, 'pg_class') = %s AND relname = coalesce(%s, relname) "
        "ORDER BY relname",
        (_STAGING_PREFIX, _staging_comment(stream), name),
    )
    names = [row[0] for row in cursor.fetchall()]
    for found in names:
        cursor.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(found)))
    return names


def _staging_comment(stream: str) -> str:
    # Marks the table as ours: a person's own table may well be called _staging_orders_2026.
    return f"Staging of stream {stream}, made by invoice_platform; safe to drop while the stream is not running."


def _check_keys(table: Table, keys: tuple[str, ...]) -> None:
    unknown = [key for key in keys if key not in {column.name for column in table.columns}]
    if unknown or not keys or len(set(keys)) < len(keys):
        raise PlatformError(
            f"table {table.name!r}: keys={keys!r}: name one or more different columns of the table, which together name a row"
        )


def _check_table(
    cursor: Cursor[Any], connection: PostgresConnection, table: Table, wanted: dict[str, str], keys: tuple[str, ...]
) -> None:
    """See that the table is one, has these columns and no others, and that its keys are unique and never null."""
    where = f"table {table.name!r} in {connection}"
    found = _find(cursor, table.name)
    if found is None or found[1] not in ("r", "p"):
        what = "its name is longer than Postgres allows" if found is None else "it is a view or the like, not a table"
        raise PlatformError(f"{where}: {what}: give the sink's table another name")
    cursor.execute(
        "SELECT attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute "
        "WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped",
        (found[0],),
    )
    there = {name: (kind, never_null) for name, kind, never_null in cursor.fetchall()}
    differences = [f"{name} is missing" for name in wanted if name not in there]
    differences += [f"{name} is not declared" for name in there if name not in wanted]
    differences += [
        f"{name} is {there[name][0]} instead of {kind}"
        for name, kind in wanted.items()
        if name in there and there[name][0] != kind
    ]
    if differences:
        raise PlatformError(
            f"{where} has other columns than the stream declares ({'; '.join(differences)}): "
            "change it with ALTER TABLE, change the declaration, or give the sink's table another name"
        )
    cursor.execute(
        # What ON CONFLICT takes for these keys: unique in all rows, checked at once, over just these columns.
        "SELECT 1 FROM pg_index i WHERE i.indrelid = %s "
        "AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL AND "
        "(SELECT array_agg(a.attname::text ORDER BY a.attname::text) FROM pg_attribute a WHERE a.attrelid = i.indrelid "
        "AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])) = %s",
        (found[0], sorted(keys)),
    )
    nullable = [key for key in keys if not there[key][1]]
    if cursor.fetchone() is None or nullable:
        what = f"allows nulls in {', '.join(nullable)}" if nullable else "lets the keys repeat"
        names = ", ".join(f'"{key}"' for key in keys)
        raise PlatformError(
            f'{where} {what}, so a replay would add rows twice: run ALTER TABLE "{table.name}" ADD PRIMARY KEY ({names}), '
            "or give the sink's table another name"
        )


def _find(cursor: Cursor[Any], name: str) -> tuple[int, str] | None:
    """The oid and the kind (`r`: a table) of what the current schema has by this name, None for nothing."""
    cursor.execute(
        # As text, since a parameter of Postgres's type `name` would be cut to 63 characters and then match.
        "SELECT oid, relkind::text FROM pg_class "
        "WHERE relname = %s::text AND relnamespace = current_schema()::regnamespace",
        (name,),
    )
    return cursor.fetchone()


def _names(columns: tuple[str, ...] | list[str]) -> sql.Composed:
    from psycopg import sql

    return sql.SQL(", ").join(map(sql.Identifier, columns))


def _type(name: str) -> sql.SQL:
    from psycopg import sql

    return sql.SQL(name)  # pyright: ignore[reportArgumentType]  # from postgres_type: one of _TYPES, or numeric and digits


@contextmanager
def _transaction(connection: PostgresConnection) -> Iterator[Cursor[Any]]:
    """A connection of its own and one transaction in it: committed at the end, rolled back on any error, closed in any case.

    Raises
    ------
    PlatformError
        For whatever psycopg raises, in one line; not from its cause once rows are involved, since Postgres quotes them.
    """
    import psycopg

    try:
        opened = psycopg.connect(
            host=connection.host,
            port=connection.port,
            dbname=connection.database,
            user=connection.user,
            password=connection.password or None,
            sslmode=connection.sslmode,
            sslrootcert=connection.sslrootcert or None,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            application_name="invoice_platform",
        )
    except psycopg.Error as error:
        raise PlatformError(
            f"no connection to Postgres, {connection}, as user {connection.user!r}: {_reason(error)}: "
            f"see that it is up, and that host, port, user, password, database and sslmode in {URL_VARIABLE} are right"
        ) from error
    try:
        with opened, opened.cursor() as cursor:
            # In the transaction, not at connect: a pooler such as PgBouncer refuses settings that it does not know.
            cursor.execute("SELECT set_config('lock_timeout', %s, true)", (f"{LOCK_TIMEOUT_SECONDS}s",))
            yield cursor
    except psycopg.errors.LockNotAvailable:
        raise PlatformError(
            f"Postgres, {connection}: another session held a lock on the table for {LOCK_TIMEOUT_SECONDS} s: "
            "end it (pg_stat_activity names it), then run again"
        ) from None
    except psycopg.errors.InsufficientPrivilege as error:
        raise PlatformError(
            f"Postgres, {connection}: {_reason(error)}: grant it to user {connection.user!r}, "
            f"or name another user in {URL_VARIABLE}"
        ) from None
    except psycopg.Error as error:
        raise PlatformError(
            f"Postgres, {connection}: {_reason(error)} (SQLSTATE {error.sqlstate or 'none'}): "
            "nothing of this step was committed; mend the cause, then run again"
        ) from None


def _reason(error: BaseException) -> str:
    """What went wrong, in one line: of several attempts (a name with several addresses), the last."""
    attempts = [line for line in str(error).splitlines() if line.startswith("- ")]
    text = attempts[-1] if attempts else first_line(error)
    return text.rpartition("failed: ")[2].removeprefix("FATAL:").strip().rstrip(":.")


def _encoding_remedy() -> str:
    return f"give {URL_FORM}, with special characters of the password percent-encoded (/ as %2F, @ as %40)"
