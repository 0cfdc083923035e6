"""Text of others made fit for a terminal: a record may hold escape sequences and markup, and is shown, not obeyed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text


def visible(text: str) -> str:
    """`text` with each character that does not print (control characters, changes of direction, …) as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def cell(value: Any) -> Text:
    """A cell of a table that shows `value` as it is, whatever markup it holds; empty for None."""
    from rich.text import Text

    return Text("" if value is None else visible(str(value)))


def json_line(value: Any) -> str:
    """JSON on one line; what does not print is escaped, and letters of any script are left as they are."""
    text = json.dumps(value, ensure_ascii=False)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
