"""The Postgres side of the Postgres sink, against a real server; the rows that Spark's JDBC would stage are inserted by psycopg."""

from __future__ import annotations

import socket
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from psycopg import sql

from invoice_platform.errors import PlatformError
from invoice_platform.streaming import postgres as module
from invoice_platform.streaming.postgres import (
    PostgresConnection,
    create_staging,
    drop_old_staging,
    ensure_table,
    merge_staging,
    staging_name,
)
from invoice_platform.streaming.tables import Column, Table

if TYPE_CHECKING:
    from invoice_platform_tests.postgres_server import PostgresServer

pytest_plugins = ["invoice_platform_tests.postgres_server"]

SALES = Table(
    "sales",
    (
        Column("city", "string", "City of the store; it's a key"),
        Column("day", "date", "Day of the sale"),
        Column("total", "decimal(18,2)", "In rupees", required=True),
        Column("note", "string", "Free text"),
    ),
    "Sales by city and day; it's in rupees.",
)
KEYS = ("city", "day")
DAY = date(2026, 1, 31)


class Database:
    """The empty database of one test."""

    def __init__(self, server: PostgresServer, name: str) -> None:
        self.server = server
        self.name = name
        self.connection = server.database(name)

    def run(self, *statements: str) -> None:
        with self.server.connect(self.name) as opened:
            for statement in statements:
                opened.execute(statement.encode())

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return self.server.rows(self.name, query)

    def tables(self) -> list[str]:
        return [name for (name,) in self.rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")]

    def stage(self, *rows: tuple[Any, ...], table: Table = SALES, stream: str = "sales", batch_id: int = 0) -> str:
        """What Spark's JDBC writer does with a micro-batch."""
        name = create_staging(self.connection, table, stream, batch_id)
        with self.server.connect(self.name) as opened:
            for row in rows:
                opened.execute(
                    sql.SQL("INSERT INTO {} VALUES ({})").format(
                        sql.Identifier(name), sql.SQL(", ").join([sql.Placeholder()] * len(row))
                    ),
                    row,
                )
        return name

    def merge(self, *rows: tuple[Any, ...], table: Table = SALES, keys: tuple[str, ...] = KEYS, **options: Any) -> int:
        return merge_staging(self.connection, table, keys, self.stage(*rows, table=table), **options)


@pytest.fixture
def database(postgres: PostgresServer, request: pytest.FixtureRequest) -> Database:
    return Database(postgres, request.node.name[-60:])


@pytest.fixture
def sales(database: Database) -> Database:
    ensure_table(database.connection, SALES, KEYS)
    return database


def test_the_connection_comes_from_the_environment_and_never_shows_its_password(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTGRES_URL", postgres.url("a b") + "?sslmode=disable\n")
    connection = PostgresConnection.from_environment()
    assert (connection.user, connection.password, connection.database) == (postgres.user, postgres.password, "a b")
    assert postgres.password not in f"{connection!r} {connection}"
    options = connection.jdbc_options()
    assert options["url"] == f"jdbc:postgresql://127.0.0.1:{postgres.port}/a%20b?sslmode=disable&connectTimeout=10"
    assert (options["user"], options["password"]) == (postgres.user, postgres.password), "as they are, not encoded"


def test_a_url_without_port_sslmode_and_password_gets_the_drivers_own_defaults() -> None:
    connection = PostgresConnection.from_url("postgres://me@[::1]/db")
    assert (connection.host, connection.port, connection.sslmode) == ("::1", 5432, "prefer")
    assert connection.jdbc_options()["url"].startswith("jdbc:postgresql://[::1]:5432/db?sslmode=prefer")
    assert "password" not in connection.jdbc_options()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (None, "POSTGRES_URL is not set: set it to postgresql://"),
        ("  ", "POSTGRES_URL is not set"),
        ("mysql://u:secret@h/db", "no postgresql:// URL: give postgresql://"),
        ("postgresql://u:sec/ret@h/db", "cannot be read: give .* percent-encoded"),
        ("postgresql://u:sec#ret@h/db", "percent-encoded"),
        ("postgresql://u:%ffsecret@h/db", "cannot be read"),
        ("postgresql://u:secret@h:99999/db", "cannot be read"),
        ("postgresql://u:secret@h", "has no database"),
        ("postgresql://h/db", "has no user"),
        ("postgresql://u:secret@a,b/db", "cannot be read"),
        ("postgresql://u:secret@/db?host=/run/postgresql", "unix socket, which Spark's JDBC cannot reach: give a host"),
        ("postgresql://u:secret@%2Frun%2Fpostgresql/db", "unix socket"),
        ("postgresql://u:secret@/db", "names no host"),
        ("postgresql://u:secret@h/db?sslmode=yes", "sslmode='yes': give one of disable, allow"),
        ("postgresql://u:secret@h/db?options=-c", r"not known here \(options\): leave them out; sslmode"),
    ],
)
def test_a_setting_that_cannot_be_used_is_told_in_one_line_without_the_password(
    monkeypatch: pytest.MonkeyPatch, url: str | None, message: str
) -> None:
    if url is None:
        monkeypatch.delenv("POSTGRES_URL", raising=False)
    else:
        monkeypatch.setenv("POSTGRES_URL", url)
    with pytest.raises(PlatformError, match=message) as raised:
        PostgresConnection.from_environment()
    assert not any(part in str(raised.value) for part in ("secret", "sec/", "sec#", "ret@", "\n"))
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


def test_a_server_that_is_not_there_or_refuses_is_told_in_one_line_with_the_remedy(postgres: PostgresServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = free.getsockname()[1]
    there = f"127.0.0.1:{postgres.port}"
    for url, reason in (
        (f"postgresql://{postgres.user}:wrong-word@127.0.0.1:{closed}/postgres", "Connection refused"),
        (f"postgresql://{postgres.user}:wrong-word@localhost:{closed}/postgres", "Connection refused"),
        (f"postgresql://{postgres.user}:wrong-word@{there}/postgres", "password authentication failed"),
        (f"postgresql://nobody:wrong-word@{there}/postgres", "password authentication failed"),
        (postgres.url("no_such_database"), "does not exist"),
        (f"postgresql://{postgres.user}:wrong-word@{there}/postgres?sslmode=require", "SSL"),
    ):
        with pytest.raises(
            PlatformError, match=f"no connection .*{reason}.*: see that it is up, .* POSTGRES_URL"
        ) as raised:
            drop_old_staging(PostgresConnection.from_url(url), "sales")
        assert "\n" not in str(raised.value)
        assert "wrong-word" not in str(raised.value)
        assert postgres.password not in str(raised.value)


def test_a_table_is_made_with_types_comments_and_key_and_a_second_time_left_alone(sales: Database) -> None:
    described = sales.rows(
        "SELECT attname, format_type(atttypid, atttypmod), attnotnull, col_description(attrelid, attnum) "
        "FROM pg_attribute WHERE attrelid = 'sales'::regclass AND attnum > 0 ORDER BY attnum"
    )
    assert described == [
        ("city", "text", True, "City of the store; it's a key"),
        ("day", "date", True, "Day of the sale"),
        ("total", "numeric(18,2)", True, "In rupees"),
        ("note", "text", False, "Free text"),
    ]
    assert sales.rows("SELECT obj_description('sales'::regclass)") == [("Sales by city and day; it's in rupees.",)]
    assert sales.rows(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'sales'::regclass AND contype = 'p'"
    ) == [("PRIMARY KEY (city, day)",)]
    sales.merge(("Pune", DAY, 1, None))
    ensure_table(sales.connection, SALES, KEYS)
    assert sales.rows("SELECT count(*) FROM sales") == [(1,)]


def test_every_type_of_spark_that_has_a_counterpart_comes_back_as_it_was(database: Database) -> None:
    values: dict[str, Any] = {
        "string": "é\t'\"",
        "boolean": True,
        "smallint": -3,
        "int": 2**31 - 1,
        "BIGINT": 2**63 - 1,
        "float": 0.5,
        "double": 0.1,
        "decimal(38, 18)": Decimal("12345678901234567890.123456789012345678"),
        "date": DAY,
        "timestamp": datetime(2026, 1, 31, 23, 59, 59, 123456, timezone.utc),
        "timestamp_ntz": datetime(2026, 1, 31, 23, 59, 59, 123456),
        "binary": b"\x00\xff",
    }
    table = Table("every", tuple(Column(f"c{n}", kind, kind) for n, kind in enumerate(values)), "One of each.")
    ensure_table(database.connection, table, ("c3",))
    assert database.merge(tuple(values.values()), table=table, keys=("c3",)) == 1
    assert database.rows("SELECT * FROM every") == [tuple(values.values())]


@pytest.mark.parametrize("kind", ["array<string>", "map<string,int>", "struct<a:int>", "variant"])
def test_a_column_that_postgres_cannot_hold_is_refused_with_the_remedy(kind: str) -> None:
    table = Table("nested", (Column("id", "int", ""), Column("many", kind, "")), "")
    nowhere = PostgresConnection("127.0.0.1", 1, "db", "me")  # refused before anybody is asked
    with pytest.raises(PlatformError, match=r"table 'nested': column 'many' is .*: flatten it .* to_json"):
        ensure_table(nowhere, table, ("id",))


@pytest.mark.parametrize("keys", [(), ("shop",), ("city", "city")])
def test_keys_that_are_no_columns_are_refused(keys: tuple[str, ...]) -> None:
    with pytest.raises(PlatformError, match=r"table 'sales': keys=.*: name one or more different columns"):
        ensure_table(PostgresConnection("127.0.0.1", 1, "db", "me"), SALES, keys)


@pytest.mark.parametrize(
    ("made", "difference"),
    [
        ("city text, day date, total numeric(18,2), PRIMARY KEY (city, day)", r"\(note is missing\): .*ALTER TABLE"),
        ("city text, day date, total numeric(18,2), note text, x int, PRIMARY KEY (city, day)", "x is not declared"),
        (
            "city text, day date, total numeric(9,2), note varchar(5), PRIMARY KEY (city, day)",
            r"total is numeric\(9,2\) instead of numeric\(18,2\); note is character varying\(5\) instead of text",
        ),
        (
            "city text NOT NULL, day date NOT NULL, total numeric(18,2), note text",
            r'lets the keys repeat, so a replay would add rows twice: run .* ADD PRIMARY KEY \("city", "day"\)',
        ),
        ("city text, day date, total numeric(18,2), note text, PRIMARY KEY (city, day, total)", "lets the keys repeat"),
        ("city text NOT NULL, day date, total numeric(18,2), note text, UNIQUE (city, day)", "allows nulls in day"),
    ],
)
def test_a_table_that_does_not_fit_is_told_with_the_difference_and_the_remedy(
    database: Database, made: str, difference: str
) -> None:
    database.run(f"CREATE TABLE sales ({made})")
    with pytest.raises(PlatformError, match=f"table 'sales' in database .*{difference}"):
        ensure_table(database.connection, SALES, KEYS)
    assert database.rows("SELECT obj_description('sales'::regclass)") == [(None,)], "left as it was"


def test_a_table_that_somebody_made_with_a_unique_key_in_another_order_fits(database: Database) -> None:
    database.run(
        "CREATE TABLE sales (note text, day date NOT NULL, total numeric(18,2), city text NOT NULL)",
        "CREATE UNIQUE INDEX ON sales (day, city) INCLUDE (total)",
    )
    ensure_table(database.connection, SALES, KEYS)
    assert database.merge(("Pune", DAY, 1, None)) == 1


def test_a_view_and_an_index_on_some_rows_only_do_not_fit(database: Database) -> None:
    database.run("CREATE VIEW sales AS SELECT 1 AS city")
    with pytest.raises(
        PlatformError, match="it is a view or the like, not a table: give the sink's table another name"
    ):
        ensure_table(database.connection, SALES, KEYS)
    database.run(
        "DROP VIEW sales",
        "CREATE TABLE sales (city text NOT NULL, day date NOT NULL, total numeric(18,2), note text)",
        "CREATE UNIQUE INDEX ON sales (city, day) WHERE total > 0",
    )
    with pytest.raises(PlatformError, match="lets the keys repeat"):
        ensure_table(database.connection, SALES, KEYS)


def test_names_are_quoted_whatever_they_hold(database: Database) -> None:
    odd = Table('Or"der; DROP TABLE x', (Column('k"ey', "int", "it's"), Column("select", "string", "%s {}")), "'; --")
    ensure_table(database.connection, odd, ('k"ey',))
    assert database.merge((1, "a"), table=odd, keys=('k"ey',)) == 1
    assert database.rows('SELECT * FROM "Or""der; DROP TABLE x"') == [(1, "a")]


def test_a_name_longer_than_postgres_keeps_is_refused_and_nothing_is_made(database: Database) -> None:
    with pytest.raises(PlatformError, match="longer than Postgres allows: give the sink's table another name"):
        ensure_table(database.connection, Table("t" * 64, SALES.columns, ""), KEYS)
    assert database.tables() == []


def test_a_merge_adds_new_keys_replaces_known_ones_and_drops_its_staging_table(sales: Database) -> None:
    assert sales.merge(("Pune", DAY, 1, "first"), ("Delhi", DAY, 2, None)) == 2
    assert sales.merge(("Pune", DAY, Decimal("3.50"), None), ("Goa", DAY, 4, None)) == 2
    assert sales.rows("SELECT city, total, note FROM sales ORDER BY city") == [
        ("Delhi", Decimal("2.00"), None),
        ("Goa", Decimal("4.00"), None),
        ("Pune", Decimal("3.50"), None),
    ]
    assert sales.tables() == ["sales"]


def test_a_micro_batch_replayed_leaves_the_same_rows(sales: Database) -> None:
    batch = (("Pune", DAY, 1, None), ("Delhi", DAY, 2, "x"))
    sales.merge(*batch)
    before = sales.rows("SELECT * FROM sales ORDER BY 1")
    assert sales.merge(*batch) == 2
    assert sales.rows("SELECT * FROM sales ORDER BY 1") == before


def test_a_staging_table_that_a_first_try_filled_is_emptied_for_the_second(sales: Database) -> None:
    sales.stage(("Pune", DAY, 1, None), batch_id=7)
    staging = sales.stage(("Goa", DAY, 2, None), batch_id=7)
    assert merge_staging(sales.connection, SALES, KEYS, staging) == 1
    assert sales.rows("SELECT city FROM sales") == [("Goa",)]


def test_a_table_of_keys_alone_keeps_each_once(database: Database) -> None:
    cities = Table("cities", (Column("city", "string", "City"),), "Cities.")
    ensure_table(database.connection, cities, ("city",))
    assert database.merge(("Pune",), ("Goa",), table=cities, keys=("city",)) == 2
    assert database.merge(("Pune",), ("Delhi",), table=cities, keys=("city",)) == 1
    assert database.rows("SELECT city FROM cities ORDER BY 1") == [("Delhi",), ("Goa",), ("Pune",)]


def test_a_row_that_a_spark_task_wrote_twice_counts_once(sales: Database) -> None:
    assert sales.merge(("Pune", DAY, 1, None), ("Pune", DAY, 1, None)) == 1


def test_a_key_twice_with_different_values_is_refused_by_the_names_of_the_keys_and_changes_nothing(
    sales: Database,
) -> None:
    sales.merge(("Pune", DAY, 1, None))
    with pytest.raises(PlatformError, match=r"same key \(city, day\) that differ: make one row a key") as raised:
        sales.merge(("Pune", DAY, 2, "confidential"), ("Pune", DAY, 3, None), ("Goa", DAY, 4, None))
    assert raised.value.__suppress_context__, "what Postgres adds may hold a row's content"
    assert sales.rows("SELECT city, total FROM sales") == [("Pune", Decimal("1.00"))]


def test_a_row_without_key_or_required_column_is_refused_by_name_without_its_content(sales: Database) -> None:
    for row, column in ((("Pune", None, 1, "confidential"), "day"), (("Pune", DAY, None, "confidential"), "total")):
        with pytest.raises(PlatformError, match=f"rows without '{column}', which is a key or required") as raised:
            sales.merge(row)
        assert "confidential" not in str(raised.value)
        assert raised.value.__suppress_context__


def test_a_result_that_replaces_the_table_is_there_whole_or_not_at_all(sales: Database) -> None:
    sales.merge(("Pune", DAY, 1, None), ("Delhi", DAY, 2, None))
    with pytest.raises(PlatformError, match="rows without 'total'"):
        sales.merge(("Goa", DAY, None, None), replace=True)
    assert sales.rows("SELECT city FROM sales ORDER BY 1") == [("Delhi",), ("Pune",)]
    assert sales.merge(("Goa", DAY, 3, None), replace=True) == 1
    assert sales.rows("SELECT city FROM sales") == [("Goa",)]


def test_staging_names_need_no_quotes_fit_and_never_meet() -> None:
    streams = ["sales", "Sales", "sales_1", "sa les", "s" * 80, "s" * 81, "größe"]
    names = [staging_name(stream, batch) for stream in streams for batch in (0, 1, 11, 2**63 - 1)]
    assert len(set(names)) == len(names)
    assert all(len(name) <= 63 and name.isascii() and name == name.lower() for name in names)
    assert staging_name("sales", 12) == "_staging_sales_12"


def test_what_a_crashed_run_left_is_dropped_and_nothing_of_another_stream_or_person(sales: Database) -> None:
    for stream, batch in (("sales", 3), ("sales", 4), ("sales_1", 3), ("s" * 80, 1)):
        sales.stage(stream=stream, batch_id=batch)
    sales.run("CREATE TABLE _staging_sales_2026 (mine int)")
    assert drop_old_staging(sales.connection, "sales") == ["_staging_sales_3", "_staging_sales_4"]
    assert drop_old_staging(sales.connection, "s" * 80) == [staging_name("s" * 80, 1)]
    assert drop_old_staging(sales.connection, "sales") == []
    assert sales.tables() == ["_staging_sales_1_3", "_staging_sales_2026", "sales"]


def test_a_user_without_rights_and_a_table_that_went_away_are_told_with_the_remedy(
    sales: Database, postgres: PostgresServer
) -> None:
    sales.run("DROP ROLE IF EXISTS reader", "CREATE ROLE reader LOGIN PASSWORD 'r'")
    url = f"postgresql://reader:r@127.0.0.1:{postgres.port}/{sales.name}"
    with pytest.raises(PlatformError, match="permission denied for schema public: grant it to user 'reader'"):
        create_staging(PostgresConnection.from_url(url), SALES, "sales", 0)
    staging = sales.stage(("Pune", DAY, 1, None))
    sales.run("DROP TABLE sales")
    with pytest.raises(
        PlatformError, match=r'relation "sales" does not exist \(SQLSTATE 42P01\): nothing .* committed'
    ):
        merge_staging(sales.connection, SALES, KEYS, staging)
    sales.run("DROP OWNED BY reader", "DROP ROLE reader")


def test_a_merge_waits_for_a_lock_only_so_long(sales: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_TIMEOUT_SECONDS", 0.1)
    staging = sales.stage(("Pune", DAY, 1, None))
    with sales.server.connect(sales.name) as other, other.transaction():
        other.execute("LOCK TABLE sales")
        with pytest.raises(PlatformError, match=r"another session held a lock .* 0\.1 s: end it"):
            merge_staging(sales.connection, SALES, KEYS, staging)
    assert merge_staging(sales.connection, SALES, KEYS, staging) == 1
