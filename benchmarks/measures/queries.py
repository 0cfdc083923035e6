"""Five questions that users ask of `invoice_line_items`, at 1 M and at 100 M rows, by Spark and by DuckDB."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
from deltalake import write_deltalake

from benchmarks.contestants import duckdb_delta
from benchmarks.data import live_files, rows
from benchmarks.measure import Bench, Goal, Measure, Outcome
from benchmarks.timing import alternate, seconds
from invoice_platform.streaming.tables import add_actions, by_path, open_delta

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@dataclass(frozen=True)
class Question:
    """A query in SQL that Spark and DuckDB share."""

    name: str
    select: str
    where: str
    """With names of `facts_for` in braces."""
    after: str = ""
    bounds: tuple[tuple[str, str, str], ...] = ()
    """Columns that `where` bounds, each with the names of the least and the greatest value asked for; empty for no bound."""


COUNT = "count(*) AS n, sum(total_value) AS total"
QUESTIONS = (
    Question("one invoice", COUNT, "invoice_number = '{invoice}'", bounds=(("invoice_number", "invoice", "invoice"),)),
    Question(
        "one store and day",
        COUNT,
        "store_id = '{store}' AND created_time >= TIMESTAMP '{day}' AND created_time < TIMESTAMP '{next_day}'",
        bounds=(("store_id", "store", "store"), ("created_time", "day", "next_day")),
    ),
    Question(
        "top items",
        "item_code, sum(total_value) AS total",
        "true",
        "GROUP BY item_code ORDER BY total DESC, item_code LIMIT 10",
    ),
    Question("last hour", COUNT, "created_time >= TIMESTAMP '{hour}'", bounds=(("created_time", "hour", ""),)),
    # The card is not in the table: a customer is the place to which goods go.
    Question("one customer", COUNT, "pin_code = '{pin}'", bounds=(("pin_code", "pin", "pin"),)),
)


def grow_in_time(model: list[str], table: Path, copies: int) -> None:
    """Append copies of some line items to a Delta table, each in its own part of their time and with invoice numbers of its own.

    The copies follow one another in time, as files do that come in day by day; together they cover the time of the model.
    """
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET VARIABLE model = $1", [model])
        connection.execute(
            "CREATE VIEW model AS SELECT *, min(created_time) OVER () AS begin, max(created_time) OVER () AS finish "
            "FROM read_parquet(getvariable('model'))"
        )
        connection.execute(
            "CREATE TABLE span AS SELECT any_value(begin) AS a, any_value(finish) - any_value(begin) AS length FROM model"
        )

        def append(number: int) -> None:
            with connection.cursor() as own:
                own.execute("SET TimeZone = 'UTC'")
                own.execute("SET VARIABLE model = $1", [model])
                copy = own.sql(
                    f"""SELECT * REPLACE (
                          (SELECT a + length * {number} / {copies} FROM span)
                            + (created_time - (SELECT a FROM span)) / {copies} AS created_time,
                          invoice_number || '{number:03d}' AS invoice_number)
                        FROM read_parquet(getvariable('model'))"""
                )
                write_deltalake(str(table), copy.to_arrow_reader(250_000), mode="append")

        append(0)  # makes the table
        with ThreadPoolExecutor(2) as both:  # each writes by one core
            list(both.map(append, range(1, copies)))


def facts_for(table: Path) -> dict[str, str]:
    """What is asked for: taken from the middle of the table, the same in each round."""
    files = live_files(table)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        found = connection.execute(
            """WITH one AS (SELECT * FROM read_parquet($files[len($files) // 2 + 1]) WHERE pin_code IS NOT NULL
                 ORDER BY invoice_number LIMIT 1)
               SELECT invoice_number, store_id, pin_code, strftime(created_time, '%Y-%m-%d 00:00:00'),
                 strftime(created_time + INTERVAL 1 DAY, '%Y-%m-%d 00:00:00'),
                 (SELECT strftime(max(created_time) - INTERVAL 1 HOUR, '%Y-%m-%d %H:%M:%S') FROM read_parquet($files))
               FROM one""",
            {"files": files},
        ).fetchone()
    assert found is not None
    return dict(zip(("invoice", "store", "pin", "day", "next_day", "hour"), found, strict=True))


def files_needed(table: Path, question: Question, values: dict[str, str]) -> list[str]:
    """The live files whose statistics do not rule them out, as any reader of a Delta log may choose them."""
    found = open_delta(table)
    assert found is not None
    statistics = (f"{end}.{column}" for column, *_ in question.bounds for end in ("min", "max"))
    actions = add_actions(found, "path", *statistics)
    needed = []
    for number, path in enumerate(actions["path"]):
        bounds = [
            (_as_text(actions[f"min.{c}"][number]), low, high, _as_text(actions[f"max.{c}"][number]))
            for c, low, high in question.bounds
        ]
        if all(
            (not high or least <= values[high]) and (not low or most >= values[low])
            for least, low, high, most in bounds
        ):
            needed.append(str(table / path))
    return needed


def _as_text(value: Any) -> str:
    """A value of a file's statistics as `facts_for` has it; times sort as their texts do."""
    return value.strftime("%Y-%m-%d %H:%M:%S.%f") if hasattr(value, "strftime") else str(value)


def run(bench: Bench) -> Outcome:
    outcome = Outcome()
    work = bench.folder("queries")
    duckdb_delta.load(bench.corpus.folder, work / "model")
    model = live_files(work / "model")
    sizes = {"1 M rows": 1, "100 M rows": bench.size(97, 3)}
    skipped: dict[str, dict[str, str]] = {}
    with bench.platform(work / "root") as platform:
        for size, copies in sizes.items():
            table = work / size.replace(" ", "-")
            grow_in_time(model, table, copies)
            values = facts_for(table)
            total = len(live_files(table))
            for question in QUESTIONS:
                sql = f"SELECT {question.select} FROM {{source}} WHERE {question.where.format_map(values)} {question.after}"
                spark_sql = sql.format(source=by_path(table))
                needed = files_needed(table, question, values)
                answers = {"Spark": ask_spark(platform.spark, spark_sql), "DuckDB": ask_duckdb(sql, needed)}
                if answers["Spark"] != answers["DuckDB"]:
                    raise RuntimeError(f"{question.name} at {size}: {answers}")
                read = len(platform.spark.sql(spark_sql).inputFiles())
                skipped.setdefault(question.name, {})[size] = (
                    f"Spark {total - read}, DuckDB {total - len(needed)} of {total}"
                )
                contestants = {
                    f"{question.name}, {size}, Spark": lambda q=spark_sql: seconds(
                        lambda: ask_spark(platform.spark, q)
                    ),
                    f"{question.name}, {size}, DuckDB": lambda q=sql, f=needed: seconds(lambda: ask_duckdb(q, f)),
                }
                alternate(outcome, contestants, bench.size(5, 1))
            outcome.facts[f"line items at {size}"] = rows(table)
    outcome.facts["files skipped"] = skipped
    outcome.notes += [
        f"Files skipped, {name}: {'; '.join(f'{s}: {t}' for s, t in by.items())}." for name, by in skipped.items()
    ]
    outcome.notes.append(
        "A customer's card is not in this table (it is in `invoices` and `customer_rewards`): the question is of "
        "one pin code of delivery."
    )
    return outcome


def ask_spark(spark: SparkSession, sql: str) -> list[tuple[Any, ...]]:
    """The answer of the warm Spark."""
    return [tuple(row) for row in spark.sql(sql).collect()]


def ask_duckdb(sql: str, files: list[str]) -> list[tuple[Any, ...]]:
    """The answer of DuckDB, from the files that the Delta log's statistics leave over."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET VARIABLE files = $1", [files])
        return connection.execute(sql.format(source="read_parquet(getvariable('files'))")).fetchall()


MEASURE = Measure(
    name="queries",
    title="Five queries on invoice_line_items at 100 M rows, by Spark and by DuckDB",
    goals=tuple(
        Goal(f"{question.name}, 100 M rows, {engine}", None, "s", "p50", f"{question.name}, 100 M rows, {engine}")
        for question in QUESTIONS
        for engine in ("Spark", "DuckDB")
    ),
    run=run,
    about=(
        "A warm Spark through its session, and DuckDB in this process over the files that the Delta log's "
        "statistics leave over. The table is of 97 files of a million rows, written for this: copies of 400,000 "
        "invoices' line items, each moved into its own part of their time, so that files follow one another in time "
        "as landed ones do, with invoice numbers of its own. Answers are compared."
    ),
)
