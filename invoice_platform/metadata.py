"""A run's summary as Dagster metadata: numbers as numbers, so that the UI plots them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.stream import RunSummary
from invoice_platform.streaming.tables import Table, preview
from invoice_platform.terminal import visible

CELL_CHARACTERS = 60
_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")
"""What Markdown could read as more than text; each can have a backslash before it."""


def table_schema(table: Table) -> dg.TableSchema:
    """Columns of a table with their types and descriptions."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(c.name, c.type, c.comment, dg.TableColumnConstraints(nullable=not c.required))
            for c in table.columns
        ]
    )


def run_metadata(summary: RunSummary, table: Table | None, layout: Layout) -> dict[str, Any]:
    """What a materialization shows of one run.

    Returns
    -------
    dict
        `rows_added`, `rows_read`, `records_lost` (Kafka), `micro_batches`, `files` and `bytes` (landed files that were read),
        `seconds` and `seconds_<phase>`, `trigger`, `source_offsets` (first start to last end, per segment); with a table
        `dagster/row_count` (rows in it), `delta_version`, its files and bytes, `dagster/column_schema`, `preview` (10 rows).
    """
    before, after = summary.before, summary.after
    metadata: dict[str, Any] = {
        "rows_added": summary.rows_added,
        "records_lost": summary.records_lost,
        "rows_read": summary.rows_read,
        "micro_batches": len(summary.batches),
        "seconds": round(summary.seconds, 3),
        "trigger": summary.trigger,
        "source_offsets": dg.MetadataValue.json(source_offsets(summary)),
    }
    if table is not None:
        metadata["dagster/uri"] = layout.table(table.name).as_uri()
        metadata["dagster/column_schema"] = table_schema(table)
        metadata["preview"] = preview_markdown(preview(layout.table(table.name)), table)
    metadata |= {f"seconds_{phase}": round(s, 3) for phase, s in summary.seconds_by_phase.items()}
    if after is not None:
        metadata["dagster/row_count"] = after.rows
        metadata["delta_version"] = after.version
        metadata["table_files"] = after.files
        metadata["table_bytes"] = after.bytes
        metadata["files_added"] = after.files - (before.files if before else 0)
        metadata["bytes_added"] = after.bytes - (before.bytes if before else 0)
    if summary.admission is not None:
        metadata["files"] = summary.files
        metadata["bytes"] = summary.bytes
        metadata["files_admitted"] = summary.admission.files
        metadata["records_admitted"] = summary.admission.records
        metadata["files_repeated"] = len(summary.admission.repeated)
        metadata["files_left"] = len(summary.admission.left)
        if summary.admission.left:
            metadata["left_in_landing"] = dg.MetadataValue.json(
                [{"file": f.name, "reason": f.reason} for f in summary.admission.left[:100]]
            )
    return metadata


def source_offsets(summary: RunSummary) -> list[dict[str, Any]]:
    """For each segment of a run: the offset it started from and the one it ended at, and its micro-batches."""
    segments: dict[int, dict[str, Any]] = {}
    for batch in summary.batches:
        covered = segments.setdefault(
            batch.segment, {"segment": batch.segment, "start": batch.start_offset, "first_batch": batch.number}
        )
        covered |= {"end": batch.end_offset, "last_batch": batch.number}
    return list(segments.values())


def preview_markdown(rows: Sequence[Mapping[str, Any]], table: Table) -> dg.MarkdownMetadataValue:
    """A few rows as a Markdown table; long cells are cut, and what they hold is shown as it is."""

    def cell(value: Any) -> str:
        text = visible(" ".join(str("" if value is None else value).split()))
        if len(text) > CELL_CHARACTERS:
            text = text[: CELL_CHARACTERS - 1] + "…"
        # Text of others: no link, image or HTML of theirs in the UI. A number or a time has nothing to escape.
        return _PUNCTUATION.sub(r"\\\g<0>", text) if isinstance(value, (str, list, dict)) else text

    names = [c.name for c in table.columns]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(cell(row.get(name)) for name in names) + " |" for row in rows]
    return dg.MetadataValue.md("\n".join(lines))


def data_version(summary: RunSummary) -> dg.DataVersion | None:
    """The table's Delta version, so that Dagster sees when nothing changed."""
    return dg.DataVersion(str(summary.after.version)) if summary.after is not None else None
