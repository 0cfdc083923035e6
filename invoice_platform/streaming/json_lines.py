"""Lines of JSON in Spark SQL, read so that nothing wrong passes for right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from invoice_platform.streaming.tables import Column

if TYPE_CHECKING:
    from pyspark.sql import Column as SparkColumn

BLANK = r"\A\s*\z"
"""A line that holds nothing, as a regular expression."""


def one_document(line: str) -> str:
    """SQL that is true when a line holds exactly one JSON document.

    Spark's parser reads the first document of `{…}{…}`, `{…},{…}` and `{…} junk` and flags nothing. Inside
    `[…,0]` one document gives two elements, several give more, and junk gives null.
    """
    return f"coalesce(json_array_length(concat('[', {line}, ',0]')) = 2, false)"


def from_json(
    line: str, columns: Sequence[Column], corrupt: str, options: Mapping[str, str] | None = None
) -> SparkColumn:
    """A struct of `columns`, with the text in `corrupt` when the line is not JSON of those columns and types."""
    from pyspark.sql import functions as F

    schema = ", ".join(c.ddl for c in columns) + f", `{corrupt}` string"
    strict = {
        "columnNameOfCorruptRecord": corrupt,
        # JSON has neither; Spark takes both unless told.
        "allowSingleQuotes": "false",
        "allowNonNumericNumbers": "false",
    }
    return F.from_json(line, schema, strict | dict(options or {}))
