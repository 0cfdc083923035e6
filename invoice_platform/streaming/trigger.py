"""When a streaming query makes a micro-batch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from invoice_platform.errors import PlatformError

AVAILABLE_NOW = "available_now"
UNSPECIFIED = "unspecified"
_INTERVAL = re.compile(r"\s*(\d+)\s*(millisecond|second|minute|hour)s?\s*", re.IGNORECASE)

_SECONDS = {"millisecond": 0.001, "second": 1, "minute": 60, "hour": 3600}


@dataclass(frozen=True)
class Trigger:
    """`available_now` (all that is new, then stop), an interval such as `30 seconds`, or `unspecified` (no pause)."""

    text: str = AVAILABLE_NOW

    @classmethod
    def parse(cls, text: str) -> Trigger:
        """Check what a person wrote, before any JVM sees it.

        Raises
        ------
        PlatformError
            For anything else than the three forms.
        """
        plain = text.strip().lower()
        if plain in (AVAILABLE_NOW, UNSPECIFIED):
            return cls(plain)
        match = _INTERVAL.fullmatch(text)
        if match is None or int(match[1]) == 0:
            raise PlatformError(
                f"trigger={text!r} is not a trigger: use {AVAILABLE_NOW!r}, an interval such as '30 seconds', "
                f"or {UNSPECIFIED!r}"
            )
        return cls(f"{int(match[1])} {match[2].lower()}s")

    @property
    def continuous(self) -> bool:
        """Whether the query stays until it is stopped."""
        return self.text != AVAILABLE_NOW

    @property
    def seconds(self) -> float:
        """Between the starts of two micro-batches; 0 for unspecified."""
        match = _INTERVAL.fullmatch(self.text)
        return int(match[1]) * _SECONDS[match[2].lower()] if match is not None else 0

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of Spark's `DataStreamWriter.trigger`."""
        if self.text == AVAILABLE_NOW:
            return {"availableNow": True}
        # Spark's unspecified trigger is an interval of zero: the next micro-batch begins as soon as the last ends.
        return {"processingTime": "0 seconds" if self.text == UNSPECIFIED else self.text}
