"""What a stream can read from and write to, as the README shows it: made from the declarations, so that it cannot go stale.

`python -m invoice_platform.connectors README.md` puts it between the two marks there.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from invoice_platform.streaming.sinks import SINKS
from invoice_platform.streaming.sources import SOURCES

MARKS = ("<!-- connectors: made by `make readme` -->", "<!-- end of connectors -->")


def tables() -> str:
    """Two Markdown tables: sources and sinks, a row each, with how it is declared."""
    lines = ["| source | reads |", "|---|---|"]
    lines += [f"| `{source.example}` | {_summary(source)} |" for source in SOURCES]
    lines += ["", "| sink | writes | when a micro-batch is run again |", "|---|---|---|"]
    lines += [f"| `{sink.example}` | {_summary(sink)} | {sink.guarantee} |" for sink in SINKS]
    return "\n".join(lines)


def _summary(declared: type) -> str:
    """The first sentence of a docstring, without its full stop."""
    paragraph = " ".join((declared.__doc__ or "").split("\n\n")[0].split())
    return paragraph.rstrip(".").replace("|", "\\|")


def put_into(text: str) -> str:
    """A document with the tables between its marks brought up to date."""
    first, last = map(re.escape, MARKS)
    if not re.search(f"{first}.*{last}", text, re.DOTALL):
        raise ValueError(f"the document has no {MARKS[0]} … {MARKS[1]}")
    made = f"{MARKS[0]}\n{tables()}\n{MARKS[1]}"
    return re.sub(f"{first}.*{last}", lambda _: made, text, flags=re.DOTALL)


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(put_into(document.read_text(encoding="utf-8")), encoding="utf-8")
