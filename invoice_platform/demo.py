"""`make demo`: the samples through the real jobs, and what came out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from invoice_platform.errors import PlatformError
from invoice_platform.orchestrate import UI_PORT, prepare, run_job
from invoice_platform.streaming.landing import land
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.session import open_session
from invoice_platform.streaming.tables import preview
from invoice_platform.terminal import cell

if TYPE_CHECKING:
    from dagster import ExecuteInProcessResult

SHOWN_ROWS = 5
SHOWN_COLUMNS = {
    "invoices": ("InvoiceNumber", "StoreID", "CustomerType", "TotalAmount", "NumberOfItems"),
    "invoice_line_items": ("invoice_number", "city", "item_description", "item_qty", "total_value"),
    "quarantined_invoices": ("reason", "raw"),
    "customer_rewards": ("customer_card_no", "invoices", "total_amount", "points"),
    "store_daily_sales": ("store_id", "sales_date", "line_items", "total_value"),
    "word_count": ("word", "count"),
}


def demo(layout: Layout, samples: Path, out: Console, say: Console) -> None:
    """Land the samples, run `ingest_invoices` and `count_words`, print figures and some rows to `out`, progress to `say`."""
    if not samples.is_dir():
        raise PlatformError(f"{samples} is missing: run `make demo` in a clone of the project")
    prepare(layout)
    started = time.monotonic()
    for inbox in ("invoices", "text"):
        files = sorted(f for f in (samples / inbox).iterdir() if f.is_file())
        for file in files:
            if not (layout.landing(inbox) / file.name).exists():  # else it still waits, from a demo that was stopped
                land(file, layout.landing(inbox))
        say.print(f"landed {len(files)} files in {layout.landing(inbox)}")
    say.print("running ingest_invoices and count_words (a cold Spark takes its time to start) …")
    session, owned = open_session(layout)
    try:
        made = _made(run_job(layout, "ingest_invoices")) | _made(run_job(layout, "count_words"))
    finally:
        if owned:
            session.stop()
    seconds = time.monotonic() - started

    new = sum(made[name]["files_admitted"] for name in ("invoices", "word_count"))
    if new == 0:
        repeated = sum(made[name]["files_repeated"] for name in ("invoices", "word_count"))
        out.print(
            f"Nothing is new: all {repeated} sample files were delivered before, and the tables hold them once.\n"
        )
    figures = Table()
    for column in ("", "invoices", "texts"):
        figures.add_column(column, justify="left" if not column else "right")
    invoices, words = made["invoices"], made["word_count"]
    for label, key in (
        ("files admitted", "files_admitted"),
        ("delivered before", "files_repeated"),
        ("records", "records_admitted"),
    ):
        figures.add_row(label, str(invoices[key]), str(words[key]))
    figures.add_row("line items", str(made["invoice_line_items"]["rows_added"]), "")
    figures.add_row("quarantined", str(made["quarantined_invoices"]["rows_added"]), "")
    figures.add_row("micro-batches", str(invoices["micro_batches"]), str(words["micro_batches"]))
    figures.add_row(
        "seconds", f"{sum(made[n]['seconds'] for n in made if n != 'word_count'):.1f}", f"{words['seconds']:.1f}"
    )
    out.print(figures)
    for name, columns in SHOWN_COLUMNS.items():
        rows = made[name]["dagster/row_count"]
        out.print(f"\n{name}: {rows} rows, {min(rows, SHOWN_ROWS)} of them", highlight=False)
        out.print(_some_rows(layout, name, columns))
    out.print(f"\nAll in {seconds:.1f} s, under {layout.root}.")
    out.print(f"Open the UI: `make up`, then http://127.0.0.1:{UI_PORT}")
    out.print(
        'Ask the tables: `.venv/bin/invoice-platform sql "SELECT city, sum(total_value) FROM invoice_line_items GROUP BY city"`',
        soft_wrap=True,
    )


def _made(result: ExecuteInProcessResult) -> dict[str, dict[str, Any]]:
    """Metadata of each table that a job materialized."""
    return {
        event.asset_key.to_user_string(): {
            key: value.value for key, value in event.step_materialization_data.materialization.metadata.items()
        }
        for event in result.all_events
        if event.event_type_value == "ASSET_MATERIALIZATION" and event.asset_key is not None
    }


def _some_rows(layout: Layout, name: str, columns: tuple[str, ...]) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column, no_wrap=True, overflow="ellipsis", max_width=44)
    for row in preview(layout.table(name), SHOWN_ROWS):
        table.add_row(*(cell(row[column]) for column in columns))
    return table
