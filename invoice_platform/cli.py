"""`invoice-platform`: the command line. Results go to stdout, all else to stderr."""

from __future__ import annotations

import csv
import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from invoice_platform.broker import KAFKA_PORT
from invoice_platform.errors import PlatformError, first_line
from invoice_platform.orchestrate import UI_PORT
from invoice_platform.server import CONNECT_PORT
from invoice_platform.streaming.kafka import KafkaConnection, LocalBroker, create_topic
from invoice_platform.streaming.layout import Layout
from invoice_platform.terminal import cell, json_line, visible

if TYPE_CHECKING:
    from invoice_platform.quarantine import SentAgain

app = typer.Typer(
    help="Invoices and texts, as they land, into tables people can query.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(soft_wrap=False)
say = Console(stderr=True)


class Inbox(str, Enum):
    """Where a file is landed."""

    invoices = "invoices"
    text = "text"


class Format(str, Enum):
    """How rows are printed."""

    table = "table"
    json = "json"
    csv = "csv"


def main() -> None:
    """The command; what a person can mend is one line on stderr and exit code 1."""
    try:
        app()
    except PlatformError as error:
        say.print(f"invoice-platform: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        sys.exit(0)


@app.command()
def land(
    files: Annotated[list[Path], typer.Argument(help="Files to land.")],
    to: Annotated[Inbox, typer.Option(help="Which landing folder.")] = Inbox.invoices,
) -> None:
    """Copy files into a landing folder, each appearing there in one step, whole."""
    from invoice_platform.streaming.landing import land as land_file

    folder = Layout.at().landing(to.value)
    for file in files:
        print(land_file(file, folder))


@app.command()
def generate(
    directory: Annotated[Path, typer.Argument(help="Where the files go; a landing folder will do.")],
    files: Annotated[int, typer.Option(help="Number of files.")] = 1,
    invoices: Annotated[int, typer.Option(help="Invoices a file.")] = 500,
    seed: Annotated[int, typer.Option(help="The same seed gives the same invoices.")] = 1,
    faults: Annotated[float, typer.Option(help="Share of lines (0 to 1) that are no valid invoice.")] = 0.0,
) -> None:
    """Make files of retail invoices as real ones are; prints each file's path."""
    from invoice_platform.generate import generate_files

    made = generate_files(directory, files=files, invoices_per_file=invoices, seed=seed, faults=faults)
    records = line_items = faulty = 0
    with Progress(console=say, transient=True) as progress:
        for file in progress.track(made, total=files, description="generating"):
            records, faulty, line_items = records + file.records, faulty + file.faulty, line_items + file.line_items
            print(file.path)
    say.print(f"{files} files: {records} records, of which {faulty} faulty; {line_items} line items in the others")


@app.command()
def produce(
    files: Annotated[list[Path], typer.Argument(help="Files of lines, plain or .gz.")],
    topic: Annotated[str, typer.Option(help="Where to.")] = "invoices",
    create: Annotated[bool, typer.Option("--create", help="Make the topic when it is not there.")] = False,
    partitions: Annotated[int, typer.Option(help="Partitions of a topic that is made.")] = 3,
) -> None:
    """Send each line of files to a Kafka topic; prints, for each file, how many messages were acknowledged."""
    from invoice_platform.produce import produce as send

    connection = KafkaConnection.of(Layout.at())
    # Rich, by default, shows on stderr what is printed meanwhile: right on a terminal, wrong where stdout is a pipe.
    shown = {"transient": True, "disable": not say.is_terminal, "redirect_stdout": sys.stdout.isatty()}
    with Progress(console=say, **shown) as progress:
        task = progress.add_task("sending", total=sum(file.stat().st_size for file in files if file.is_file()))

        def read(size: int) -> None:
            progress.advance(task, size)

        for sent in send(connection, topic, files, create=create, partitions=partitions, progress=read):
            print(f"{sent.file}: {sent.records} messages acknowledged")


@app.command()
def run(
    job: Annotated[str, typer.Argument(help="ingest_invoices, count_words, stream_invoices, rebuild_invoices, …")],
    config: Annotated[str | None, typer.Option(help="Dagster run config: JSON, or a YAML or JSON file.")] = None,
    trigger: Annotated[str | None, typer.Option(help="available_now, '30 seconds', unspecified.")] = None,
    max_files_per_trigger: Annotated[int | None, typer.Option(help="Files a micro-batch, at most.")] = None,
    run_for_seconds: Annotated[float | None, typer.Option(help="When a continuous run ends.")] = None,
    max_bytes_per_trigger: Annotated[int | None, typer.Option(help="Bytes of files a micro-batch, at most.")] = None,
    max_offsets_per_trigger: Annotated[int | None, typer.Option(help="Kafka records a micro-batch, at most.")] = None,
    fail_on_data_loss: Annotated[
        bool | None,
        typer.Option(
            "--fail-on-data-loss/--no-fail-on-data-loss",
            help="Whether to fail when Kafka no longer has records that were not read.",
        ),
    ] = None,
) -> None:
    """Run a job in this process; its history is the Dagster UI's."""
    from invoice_platform.orchestrate import run_job, stream_config

    settings = {
        "trigger": trigger,
        "max_files_per_trigger": max_files_per_trigger,
        "run_for_seconds": run_for_seconds,
        "max_bytes_per_trigger": max_bytes_per_trigger,
        "max_offsets_per_trigger": max_offsets_per_trigger,
        "fail_on_data_loss": fail_on_data_loss,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    if given and config is not None:
        raise PlatformError(f"give either --config or {', '.join(given)}: put the settings into the config")
    result = run_job(Layout.at(), job, _read_config(config) if config is not None else stream_config(job, given))
    table = Table(title=f"{job}: run {result.run_id}", title_justify="left")
    for column in ("table", "rows added", "rows", "micro-batches", "files", "seconds"):
        table.add_column(column, justify="left" if column == "table" else "right")
    for event in result.all_events:
        if event.event_type_value == "ASSET_MATERIALIZATION" and event.asset_key is not None:
            facts = {k: v.value for k, v in event.step_materialization_data.materialization.metadata.items()}
            shown = ("rows_added", "dagster/row_count", "micro_batches", "files", "seconds")
            table.add_row(event.asset_key.to_user_string(), *(str(facts.get(key, "")) for key in shown))
    if table.row_count:
        out.print(table)
    for event in result.all_events:
        if event.event_type_value == "ASSET_CHECK_EVALUATION":
            check = event.asset_check_evaluation_data
            if not check.passed:
                say.print(
                    f"{check.severity.value}: {check.check_name}: {check.description}", style="yellow", soft_wrap=True
                )


def _read_config(text: str) -> dict[str, Any]:
    import yaml

    try:
        source = Path(text).read_text(encoding="utf-8") if not text.lstrip().startswith("{") else text
        config = yaml.safe_load(source)  # JSON is YAML
    except OSError as error:
        raise PlatformError(f"--config {text}: {error.strerror}; give JSON, or a YAML or JSON file") from None
    except yaml.YAMLError as error:
        raise PlatformError(f"--config: {first_line(error)}; give JSON, or a YAML or JSON file") from None
    if not isinstance(config, dict):
        raise PlatformError("--config: give a mapping, such as {'ops': {'invoices': {'config': {…}}}}")
    return config


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="One SQL statement; the tables are there by name.")],
    format: Annotated[Format, typer.Option(help="How rows are printed.")] = Format.table,
) -> None:
    """Ask the tables; uses the warm Spark when one is up for this root, else an embedded one. Times are UTC."""
    from invoice_platform.streaming.session import open_session, spark_errors
    from invoice_platform.streaming.tables import declare_existing

    layout = Layout.at()
    session, owned = open_session(layout)
    try:
        with spark_errors("sql", layout):
            declare_existing(session, layout)
            _print_rows(session.sql(query), format)
    finally:
        if owned:
            session.stop()


def _print_rows(rows: Any, format: Format) -> None:
    from pyspark.sql import functions as F

    names = rows.columns
    if not names:
        return
    rows = rows.toDF(*(f"c{i}" for i in range(len(names))))  # two columns may have one name
    if format is Format.json:
        columns = (F.col(f"c{i}").alias(name) for i, name in enumerate(names))
        lines = rows.select(F.to_json(F.struct(*columns), {"ignoreNullFields": "false"})).toLocalIterator()
        print("[" + ",\n ".join(line[0] for line in lines) + "]")
        return
    text = rows.select(*(F.col(name).cast("string") for name in rows.columns))  # as Spark prints them, in UTC
    if format is Format.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(("" if value is None else value for value in row) for row in text.toLocalIterator())
        return
    table = Table()
    for name in names:
        table.add_column(cell(name))
    for row in text.toLocalIterator():
        table.add_row(*map(cell, row))
    out.print(table)


class PeekSink(str, Enum):
    """Where `peek` reads to."""

    memory = "memory"
    console = "console"


@app.command()
def peek(
    stream: Annotated[str, typer.Argument(help="Name of a stream, such as invoice_line_items.")],
    rows: Annotated[int, typer.Option(help="Rows to show, at most.")] = 10,
    sink: Annotated[PeekSink, typer.Option(help="memory, or Spark's console (its own print of each micro-batch).")] = (
        PeekSink.memory
    ),
    format: Annotated[Format, typer.Option(help="How rows are printed (memory).")] = Format.table,
) -> None:
    """Show the first rows that a stream makes, without touching its table, its checkpoint or landing."""
    from invoice_platform.assets.factory import STREAMS
    from invoice_platform.definitions import defs  # noqa: F401  (declares the streams)
    from invoice_platform.streaming.peek import peek as first_rows
    from invoice_platform.streaming.session import open_session

    if stream not in STREAMS:
        raise PlatformError(f"there is no stream {stream!r}: choose one of {', '.join(STREAMS)}")
    layout = Layout.at()
    session, owned = open_session(layout)
    try:
        with first_rows(STREAMS[stream], lambda: session, layout, rows, sink.value) as found:
            if found is not None:
                _print_rows(found, format)
    finally:
        if owned:
            session.stop()


@app.command()
def repair(
    stream: Annotated[str, typer.Argument(help="Name of a stream, such as invoices.")],
    yes: Annotated[bool, typer.Option("--yes", help="Carry out the plan without asking.")] = False,
) -> None:
    """Bring a stream back whose checkpoint or table is damaged, without loss or repeat; shows its plan and asks first."""
    from invoice_platform.assets.factory import STREAMS, downstream
    from invoice_platform.definitions import defs  # noqa: F401  (declares the streams)
    from invoice_platform.streaming.repair import apply, plan
    from invoice_platform.streaming.session import lazy_session

    if stream not in STREAMS:
        raise PlatformError(f"there is no stream {stream!r}: choose one of {', '.join(STREAMS)}")
    layout, of, fed = Layout.at(), STREAMS[stream], downstream(STREAMS[stream])
    made = plan(of, fed, layout)
    if made is None:
        print(f"{stream}: nothing to repair")
        return
    print(made.text, flush=True)
    if not yes:
        if not sys.stdin.isatty():
            raise PlatformError(f"nothing was changed: give --yes to carry out this plan (`repair {stream} --yes`)")
        if not typer.confirm("Do that?", err=True):
            raise PlatformError("nothing was changed")
    with lazy_session(layout) as spark:
        aside = apply(made, of, fed, spark, layout)
    print(f"{stream}: repaired; its next run goes on. What was replaced is in {aside}")


@app.command()
def status(
    format: Annotated[Format, typer.Option(help="table or json.")] = Format.table,
) -> None:
    """How things stand: files waiting, segments, each stream's last batch and offsets, each table's rows and version."""
    from invoice_platform.status import status as read_status

    facts = read_status(Layout.at())
    if format is Format.json:
        print(json.dumps(facts, indent=2))
        return
    if format is Format.csv:
        raise PlatformError("status has more than one table: use --format table or json")
    warm = facts["warm_spark"]
    out.print(f"root {facts['root']}; warm Spark: {warm['url'] if warm else 'none'}", soft_wrap=True, highlight=False)
    _table(
        "landing",
        ("inbox", "waiting", "left"),
        [(n, s["waiting"], len(s["left"])) for n, s in facts["landing"].items()],
    )
    for inbox, state in facts["landing"].items():
        for file in state["left"]:
            out.print(f"  landing/{inbox}: {file['file']!r} stays: {file['reason']}", markup=False, soft_wrap=True)
    keys = ("segments", "files_accepted", "files_pending", "last_batch")
    _table(
        "streams",
        ("stream", "segments", "accepted", "pending", "last batch"),
        [(n, *(s[k] for k in keys)) for n, s in facts["streams"].items()],
    )
    for name, stream in facts["streams"].items():
        if stream["offsets"]:
            where = f"  {name}: segment {stream['segment']} at {json.dumps(stream['offsets'])}"
            out.print(where, markup=False, highlight=False, soft_wrap=True)
    for name, part in (*facts["streams"].items(), *facts["tables"].items()):
        if part["damage"]:
            say.print(f"  {name}: {part['damage']}", style="red", markup=False, highlight=False, soft_wrap=True)
    keys = ("rows", "version", "files", "bytes")
    _table("tables", ("table", *keys), [(n, *(t[k] for k in keys)) for n, t in facts["tables"].items()])
    for name in facts["passed_over"]:
        where = f"  lakehouse: {name!r} is passed over: a table's name is of letters, digits and _; rename the folder"
        out.print(where, markup=False, highlight=False, soft_wrap=True)
    waits = facts["quarantine"]
    out.print(f"quarantine: {waits['open']} records open, {waits['sent_again']} sent again", highlight=False)


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    table = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(cell, row))
    out.print(table)


quarantine = typer.Typer(
    help="Records that are no valid invoice: look at them, mend them, send them again.", no_args_is_help=True
)
app.add_typer(quarantine, name="quarantine")
REASON = typer.Option(help="Only records whose reason holds this text.")
TEXT_WIDTH = 0.5
"""Of a table's width so many characters of a record's text are shown, folded as all else; json and csv have it whole."""


@quarantine.command("list")
def quarantine_list(
    reason: Annotated[str | None, REASON] = None,
    limit: Annotated[int, typer.Option(min=0, help="Records to show, at most.")] = 20,
    every: Annotated[bool, typer.Option("--all", help="Those that were sent again, too, and when.")] = False,
    format: Annotated[Format, typer.Option(help="table (text cut), json or csv (text whole).")] = Format.table,
) -> None:
    """Show quarantined records, newest first: place, when, reason, text; only those that were not sent again."""
    from invoice_platform.quarantine import Notes, Quarantine

    layout = Layout.at()
    found = Quarantine(layout)
    names = ["place", "ingested_at", "reason", "raw", *(["sent_again_in", "sent_again_at"] if every else [])]
    with Notes.reading(layout) as notes:
        chosen = islice((r for r in found.records(notes, reason=reason) if every or r.sent is None), limit)
        rows = (
            (r.place, r.ingested_at.isoformat(), r.reason, r.raw, *(_sent_again(r.sent) if every else ()))
            for r in chosen
        )
        if format is Format.json:
            print("[", end="")
            for position, row in enumerate(rows):
                print(",\n " if position else "", json_line(dict(zip(names, row, strict=True))), sep="", end="")
            print("]")
        elif format is Format.csv:
            writer = csv.writer(sys.stdout, lineterminator="\n")
            writer.writerow(names)
            shown = visible if sys.stdout.isatty() else str
            writer.writerows(("" if value is None else shown(value) for value in row) for row in rows)
        else:
            table = Table()
            for name in names:
                table.add_column(name, overflow="fold")
            most = int(out.width * TEXT_WIDTH)
            for row in rows:
                place, at, why, raw, *sent = row
                text = raw if len(raw) <= most else f"{raw[:most]}…"
                table.add_row(*(cell(value) for value in (place, at, why, text, *sent)))
            if table.row_count:
                out.print(table)
        counts = found.totals(notes)
    waiting = ", ".join(f"{visible(name)}: {n}" for name, (n, _) in sorted(counts.items(), key=lambda c: -c[1][0]) if n)
    say.print(
        f"{sum(n for n, _ in counts.values())} records open{f' ({waiting})' if waiting else ''}, "
        f"{sum(n for _, n in counts.values())} sent again",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    _say_lost(found.lost)


def _sent_again(sent: SentAgain | None) -> tuple[str | None, str | None]:
    return (sent.file, sent.at) if sent is not None else (None, None)


def _say_lost(lost: dict[str, str]) -> None:
    for file, problem in lost.items():
        say.print(
            f"{visible(file)}, quarantined: {problem}; the archive under accepted/invoices is not as it was, so they have no "
            "place to be sent again from; their text is in quarantined_invoices",
            style="yellow",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


@quarantine.command("export")
def quarantine_export(
    file: Annotated[Path, typer.Argument(help="A new file; - for stdout.")],
    reason: Annotated[str | None, REASON] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="Records, at most.")] = None,
) -> None:
    """Write the records that were not sent again as lines of JSON: mend `raw`, then `quarantine retry FILE`. Oldest first."""
    from invoice_platform.quarantine import export

    count, lost = export(Layout.at(), None if str(file) == "-" else file, reason=reason, limit=limit)
    if str(file) != "-":
        print(file)
    say.print(f"{count} records: mend `raw`, then `invoice-platform quarantine retry FILE`", highlight=False)
    _say_lost(lost)


@quarantine.command("retry")
def quarantine_retry(
    file: Annotated[Path | None, typer.Argument(help="An export whose `raw` was mended; - for stdin.")] = None,
    reason: Annotated[str | None, typer.Option(help="As they stand: records whose reason holds this text.")] = None,
    every: Annotated[bool, typer.Option("--all", help="As they stand: all.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Those that were sent again before, too.")] = False,
) -> None:
    """Land quarantined records again as one new file: mended ones, or as they stand (after the code or a rule was changed).

    Records from Kafka go through landing/invoices as well. One that is bad again is a new quarantined record; the old one stays
    as history. Either send records as they stand or run `rebuild_invoices`, which reads them from the archive anew: not both.
    """
    from invoice_platform.quarantine import retry, retry_mended

    if (file is not None) + (reason is not None) + every != 1:
        raise PlatformError("quarantine retry: give one of FILE (a mended export), --reason TEXT or --all")
    layout = Layout.at()
    if file is not None:
        done, lost = retry_mended(layout, None if str(file) == "-" else file, again=again)
    else:
        done, lost = retry(layout, reason=reason, again=again)
    if done.file is not None:
        print(done.file)
    for count, what in (
        (done.records, "records landed again"),
        (done.sent_before, "passed over: sent again before (--again sends them all the same)"),
        (done.no_line, "passed over: no text, or more than one line of it (Kafka): export, mend and retry them"),
    ):
        if count or what.endswith("landed again"):
            say.print(f"{count} {what}", markup=False, highlight=False, soft_wrap=True)
    _say_lost(lost)
    if done.accepted_before:
        say.print("this very file was accepted before: it will be counted, not read twice", style="yellow")
    if done.file is not None:
        say.print("next: `invoice-platform run ingest_invoices` (while `make up` is on, it runs by itself)")


@app.command()
def reset(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Forget everything that was made: tables, accepted files, checkpoints, exports. Landing and histories stay."""
    from invoice_platform.assets.factory import STREAMS
    from invoice_platform.definitions import defs  # noqa: F401  (declares the streams)
    from invoice_platform.streaming.reset import made
    from invoice_platform.streaming.reset import reset as forget

    layout = Layout.at()
    found = made(layout)
    if not found and not layout.reset_note.exists():
        say.print(f"{layout.root}: there is nothing to forget")
        return
    _table(
        f"to be removed from {layout.root}",
        ("folder", "rows", "files", "bytes"),
        [(m.what, m.rows, m.files, m.bytes) for m in found],
    )
    say.print(
        "Files that were accepted are in no other place, unless you kept them. What was sent to Kafka or Postgres stays "
        "there, and is sent again when it comes again.",
        soft_wrap=True,
    )
    if not yes:
        if not sys.stdin.isatty():
            raise PlatformError("nothing was removed: give --yes to remove it without being asked")
        if not typer.confirm("Remove all this?", err=True):
            raise PlatformError("nothing was removed")
    forget(layout, STREAMS, run="invoice-platform reset")
    say.print("forgotten")


@app.command()
def serve(spark_port: Annotated[int, typer.Option(help="Port of the Spark Connect server.")] = CONNECT_PORT) -> None:
    """Keep a warm Spark for this root on loopback, behind a token, until Ctrl-C."""
    from invoice_platform.orchestrate import Running
    from invoice_platform.server import warm_server

    layout = Layout.at()
    with until_told():
        say.print("starting a warm Spark …")
        with warm_server(layout, spark_port) as server:
            print(server.url, flush=True)
            say.print(
                f"warm Spark for {layout.root}; jobs and `sql` find it by themselves. Ctrl-C ends it.", soft_wrap=True
            )
            Running(server.url, (server.pid,)).wait()


@app.command()
def kafka(port: Annotated[int, typer.Option(help="Port of the broker.")] = KAFKA_PORT) -> None:
    """Keep a Kafka broker of this root's own on loopback, with the platform's topics, until Ctrl-C; its data stays."""
    from invoice_platform.broker import TOPICS, broker

    layout = Layout.at()
    with until_told() as told:
        say.print("starting a Kafka broker …")
        with broker(layout, port) as running:
            for topic, partitions in TOPICS.items():
                create_topic(KafkaConnection(running.bootstrap_servers), topic, partitions)
            print(running.bootstrap_servers, flush=True)
            say.print(
                f"Kafka for {layout.root} with {', '.join(TOPICS)}; streams and `produce` find it by themselves. "
                "Ctrl-C ends it.",
                soft_wrap=True,
            )
            while not told and LocalBroker.of(layout) is not None:
                time.sleep(0.5)
            if not told:
                raise PlatformError(f"the Kafka broker ended: see {layout.logs / 'kafka.log'}, then start it again")


@app.command()
def up(
    ui_port: Annotated[int, typer.Option(help="Port of Dagster's UI.")] = UI_PORT,
    spark_port: Annotated[int, typer.Option(help="Port of the Spark Connect server.")] = CONNECT_PORT,
) -> None:
    """Warm Spark and Dagster's UI with sensors and schedules on, until Ctrl-C, which ends all of it."""
    from invoice_platform.orchestrate import everything

    layout = Layout.at()
    with until_told():
        say.print("starting a warm Spark and Dagster …")
        with everything(layout, spark_port, ui_port) as running:
            print(running.url)
            say.print(
                f"drop files into {layout.root / 'landing'}/invoices or /text; logs in {layout.logs}. Ctrl-C ends all.",
                soft_wrap=True,
            )
            running.wait()


@app.command()
def demo() -> None:
    """The sample files through the real jobs, and what came out."""
    from invoice_platform.demo import demo as run_demo

    run_demo(Layout.at(), Path(__file__).resolve().parents[1] / "data" / "samples", out, say)


ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a service manager, a terminal that was closed."""


@contextmanager
def until_told() -> Iterator[list[int]]:
    """A block that one of `ENDINGS` ends, in order; a second one while things are being ended changes nothing.

    Gives the signals that came. Python drops an interrupt that comes at the wrong moment, such as in a weak reference's
    callback; so a block that does more than wait looks there too.
    """
    told: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        told.append(number)
        for ending in ENDINGS:
            signal.signal(ending, signal.SIG_IGN)
        say.print("ending …")
        raise KeyboardInterrupt

    before = {number: signal.signal(number, handler) for number in ENDINGS}
    try:
        with suppress(KeyboardInterrupt):
            yield told
        if told:
            say.print("ended")
    finally:
        for number, old in before.items():
            signal.signal(number, old)


if __name__ == "__main__":
    main()
