"""A webhook: an example of what `foreach` is for, a receiver that Spark has no connector to.

Sink: an HTTP endpoint that takes one row a request, as a JSON object. Grain: a row. Replay: at least once, since a micro-batch that
failed half way is sent again from its start; each row carries an `Idempotency-Key` made from its content, by which a receiver
drops the repeats.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from decimal import Decimal
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, Request, build_opener

from invoice_platform.errors import PlatformError

if TYPE_CHECKING:
    from pyspark.sql import Row

LONGEST_WAIT_SECONDS = 30.0
TOO_MANY_REQUESTS = 429


class _NoRedirects(HTTPRedirectHandler):
    """Makes an error of a redirect: urllib would follow it with a GET, and the row would be lost behind a 200."""

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        del req, fp, code, msg, headers, newurl


@dataclass
class Webhook:
    """Posts each row to an HTTP endpoint; given to `foreach`, which opens one for each partition of a micro-batch.

    Parameters
    ----------
    url : str
        Where to post, `https://host/path`; errors and logs show its host alone, because the path of many webhooks is a secret.
    headers : Mapping[str, str]
        Sent with each request, e.g. `{"Authorization": "Bearer …"}`; never shown.
    attempts : int
        How often a row is sent before the micro-batch fails: after 429, 5xx, a lost connection or no answer in time.
    timeout_seconds : float
        How long to wait for a connection, and for each piece of an answer.
    first_wait_seconds : float
        Pause after the first failed attempt; it doubles with each, up to 30 s. A `Retry-After` in seconds may lengthen it
        as far.

    Raises
    ------
    PlatformError
        When a parameter cannot be used. Later, in the run: when the receiver refuses a row, when all attempts have failed,
        or when a column holds what JSON has no form for.

    Notes
    -----
    Nothing is lost on the way to JSON: decimals are strings (`"12.50"`: a number would be read as a double by most receivers),
    timestamps are strings in UTC with microseconds (`"2026-01-31T18:29:59.123456Z"`), dates `"2026-01-31"`, binary is base64,
    NaN and the infinities are `"NaN"`, `"Infinity"`, `"-Infinity"`. Of `timestamp_ntz` a row does not tell that it has no time
    zone: make it a string in the transform.

    Two rows with the same content have the same key, so a receiver that drops repeats keeps one: give the stream a column
    that tells them apart. An array of rows a request would be faster, but a replay may cut a micro-batch into other arrays,
    and then no key is stable.

    Examples
    --------
    >>> Webhook("https://example.org/hook", headers={"Authorization": "Bearer …"})
    Webhook(https://example.org)
    """

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    attempts: int = 5
    timeout_seconds: float = 10.0
    first_wait_seconds: float = 0.5
    _opener: OpenerDirector | None = field(default=None, init=False, repr=False, compare=False)
    _where: str = field(default="", init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # All of it here: what urllib says of a bad URL or header quotes it.
        if not _usable(self.url):
            raise PlatformError(
                "the webhook's url cannot be used: give https://host/path, percent-encoded, and a user's name and password, "
                "if any, as the header Authorization"
            )
        for name, value in self.headers.items():
            if not (name + value).isascii() or not (name + value).isprintable():
                raise PlatformError(
                    f"header {name!r} of the webhook holds a line break or another character that no header may hold: "
                    "strip it"
                )
        if self.attempts < 1 or self.timeout_seconds <= 0 or self.first_wait_seconds < 0:
            raise PlatformError(
                f"webhook with attempts={self.attempts}, timeout_seconds={self.timeout_seconds:g}, "
                f"first_wait_seconds={self.first_wait_seconds:g}: give at least 1, a time over 0 and a time from 0 up"
            )

    def __repr__(self) -> str:
        parts = urlsplit(self.url)
        return f"Webhook({parts.scheme}://{parts.netloc})"

    def open(self, partition_id: int, epoch_id: int) -> bool:
        """Begin a partition of a micro-batch; Spark calls it on the machine that sends."""
        self._where = f"micro-batch {epoch_id}, partition {partition_id}"
        self._opener = build_opener(_NoRedirects)  # made here, since it cannot be pickled
        return True

    def process(self, row: Row) -> None:
        """Send one row and wait for the receiver to say that it has it."""
        body = json.dumps(_plain(row, "the row"), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        key = hashlib.sha256(body).hexdigest()
        headers = {**self.headers, "Content-Type": "application/json", "Idempotency-Key": key}
        what = f"a row of {self._where} (Idempotency-Key {key})"
        problem = ""
        for attempt in range(1, self.attempts + 1):
            wait = 0.0
            try:
                self._send(Request(self.url, body, headers, method="POST"))
                return
            except HTTPError as error:
                error.close()
                problem = f"{error.code} {error.reason}"
                if error.code != TOO_MANY_REQUESTS and error.code < 500:
                    raise PlatformError(
                        f"{self!r} answered {problem} to {what}: look for the key in the receiver's log, then mend url or "
                        "headers of the webhook, or leave such rows out in the stream's transform"
                    ) from None
                wait = _seconds(error.headers.get("Retry-After"))
            except (OSError, HTTPException) as error:  # URLError and TimeoutError are OSErrors
                problem = str(getattr(error, "reason", "") or error) or type(error).__name__
            if attempt < self.attempts:
                wait = max(wait, self.first_wait_seconds * 2 ** (attempt - 1))
                # Up to a tenth longer, so that partitions that failed together do not come back together.
                time.sleep(min(wait, LONGEST_WAIT_SECONDS) * random.uniform(1.0, 1.1))
        raise PlatformError(
            f"{self!r} did not take {what} with attempts={self.attempts} ({problem}): see that the receiver is up, "
            "then run again; or raise attempts or timeout_seconds of the webhook"
        )

    def close(self, error: Exception | None) -> None:
        """End the partition; Spark calls it after an error too, and raises the error itself."""
        del error
        self._opener = None

    def _send(self, request: Request) -> None:
        if self._opener is None:
            raise PlatformError(
                f"{self!r} is not open: Spark's foreach calls open before process; a test has to as well"
            )
        with self._opener.open(request, timeout=self.timeout_seconds) as answer:
            answer.read()


def _usable(url: str) -> bool:
    try:
        parts = urlsplit(url)
        given = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:  # a port that is no number
        return False
    return bool(given) and "@" not in parts.netloc and url.isascii() and url.isprintable() and " " not in url


def _plain(value: Any, column: str) -> Any:
    """What `json` writes without loss, made of a row, a column's value or a part of one.

    Raises
    ------
    PlatformError
        When there is no form for it; names the column, not the value.
    """
    if isinstance(value, tuple) and hasattr(value, "__fields__"):  # a Row, known without importing pyspark
        fields: list[str] = value.__fields__  # pyright: ignore[reportAttributeAccessIssue]
        return {name: _plain(part, name) for name, part in zip(fields, value, strict=True)}
    if isinstance(value, Mapping):
        return {_text(_plain(name, column)): _plain(part, column) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part, column) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Decimal):
        return format(value, "f")  # never 1E+2
    if isinstance(value, datetime):
        # Spark gives a timestamp as the sending machine's local time, without a zone.
        return value.astimezone(timezone.utc).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    raise PlatformError(
        f"column {column!r} holds a {type(value).__name__}, which a webhook cannot send: make it a string in the transform"
    )


def _text(key: Any) -> str:
    """A map's key: JSON knows strings only."""
    return key if isinstance(key, str) else json.dumps(key, ensure_ascii=False)


def _seconds(retry_after: str | None) -> float:
    """The seconds of a `Retry-After`; 0 for none, and for one that is a date."""
    return float(retry_after) if retry_after and retry_after.strip().isdecimal() else 0.0
