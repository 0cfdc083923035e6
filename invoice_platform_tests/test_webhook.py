"""The example of `foreach`: rows as Spark hands them over, posted to a real HTTP server in a thread. No Spark."""

from __future__ import annotations

import json
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pyspark.sql import Row

from invoice_platform.errors import PlatformError
from invoice_platform.webhook import Webhook

SALE = Row(city="Pune", total=Decimal("12.50"))
QUICK: dict[str, Any] = {"first_wait_seconds": 0.01, "timeout_seconds": 5.0}


@dataclass
class Receiver:
    """What the server was sent, what it is to answer, and what a receiver that drops repeats has kept."""

    url: str = ""
    answers: list[int | str] = field(default_factory=list)
    """Status of the next requests, `hang up` or `sleep`; 200 when there is none left."""
    retry_after: str = "0"
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    """Method, headers and body of each request."""
    kept: dict[str, Any] = field(default_factory=dict)
    """By `Idempotency-Key`."""
    times: list[float] = field(default_factory=list)
    free: threading.Event = field(default_factory=threading.Event)
    """Set when requests that sleep may go on."""

    @property
    def keys(self) -> list[str]:
        return [headers["Idempotency-Key"] for _, headers, _ in self.requests]

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, _, body in self.requests]


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("no_proxy", "*")
    made = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.requests.append((self.command, dict(self.headers), body))
            made.times.append(time.monotonic())
            answer = made.answers.pop(0) if made.answers else 200
            if answer == "sleep":
                made.free.wait(30)
            if isinstance(answer, str):
                return  # the connection closes without an answer
            if answer == 200:
                made.kept.setdefault(self.headers["Idempotency-Key"], json.loads(body))
            self.send_response(answer)
            self.send_header("Retry-After", made.retry_after)
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(b"confidential")

        do_GET = do_POST  # what urllib makes of a POST that is redirected

        def log_message(self, format: str, *args: Any) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_port}/hook/secret-path"
    try:
        yield made
    finally:
        made.free.set()
        server.shutdown()
        server.server_close()
        thread.join()


def send(webhook: Webhook, *rows: Row, epoch_id: int = 0) -> None:
    """What Spark does with one partition of a micro-batch."""
    sender = pickle.loads(pickle.dumps(webhook))  # as it reaches the machine that sends
    error = None
    try:
        if sender.open(1, epoch_id):
            for row in rows:
                sender.process(row)
    except Exception as raised:
        error = raised
        raise
    finally:
        sender.close(error)


def test_each_row_is_one_json_object_with_the_given_headers(receiver: Receiver) -> None:
    webhook = Webhook(receiver.url, headers={"Authorization": "Bearer token"})
    send(webhook, SALE, Row(city="Goa", total=None))
    assert receiver.bodies == [{"city": "Pune", "total": "12.50"}, {"city": "Goa", "total": None}]
    method, headers, _ = receiver.requests[0]
    assert (method, headers["Content-Type"], headers["Authorization"]) == ("POST", "application/json", "Bearer token")


def test_a_replayed_micro_batch_sends_the_same_keys_so_a_receiver_keeps_each_row_once(receiver: Receiver) -> None:
    rows = (SALE, Row(city="Goa", total=Decimal("1.00")))
    receiver.answers = [200, 400]  # fails half way
    with pytest.raises(PlatformError):
        send(Webhook(receiver.url), *rows)
    send(Webhook(receiver.url), *reversed(rows), epoch_id=1)  # a replay may come in another order and partition
    assert len(receiver.requests) == 4
    assert len(set(receiver.keys)) == 2
    assert sorted(row["city"] for row in receiver.kept.values()) == ["Goa", "Pune"]


def test_a_key_changes_with_any_value(receiver: Receiver) -> None:
    send(Webhook(receiver.url), SALE, Row(city="Pune", total=Decimal("12.5")), Row(city="Pune", total=None))
    assert len(set(receiver.keys)) == 3


@pytest.mark.parametrize("failure", [503, 500, 429, "hang up"])
def test_a_failure_that_passes_is_tried_again_with_the_same_key(receiver: Receiver, failure: int | str) -> None:
    receiver.answers = [failure, failure]
    send(Webhook(receiver.url, **QUICK), SALE)
    assert len(receiver.requests) == 3
    assert len(set(receiver.keys)) == 1
    assert list(receiver.kept.values()) == [{"city": "Pune", "total": "12.50"}]


def test_the_pause_doubles_and_a_longer_one_that_the_receiver_asks_for_is_kept(receiver: Receiver) -> None:
    receiver.answers = [503, 503]
    send(Webhook(receiver.url, first_wait_seconds=0.2), SALE)
    first, second = (b - a for a, b in zip(receiver.times, receiver.times[1:], strict=False))
    assert first >= 0.2
    assert second >= 0.4
    receiver.answers, receiver.retry_after = [429], "1"
    send(Webhook(receiver.url, first_wait_seconds=0.01), SALE)
    assert receiver.times[-1] - receiver.times[-2] >= 1


def test_a_failure_that_stays_ends_after_the_given_attempts(receiver: Receiver) -> None:
    receiver.answers = [503] * 9
    with pytest.raises(
        PlatformError, match=r"micro-batch 4, partition 1 .* with attempts=3 \(503 .*\): see that"
    ) as raised:
        send(Webhook(receiver.url, attempts=3, **QUICK), SALE, epoch_id=4)
    assert len(receiver.requests) == 3
    assert receiver.keys[0] in str(raised.value)


def test_a_receiver_that_is_not_there_or_does_not_answer_is_told_in_one_line(receiver: Receiver) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(PlatformError, match=r"attempts=2 \(.*refused\)"):
        send(Webhook(f"http://127.0.0.1:{port}/", attempts=2, **QUICK), SALE)
    receiver.answers = ["sleep"]
    with pytest.raises(PlatformError, match=r"attempts=1 \(timed out\)") as raised:
        send(Webhook(receiver.url, attempts=1, timeout_seconds=0.2), SALE)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_row_that_is_refused_fails_at_once_and_shows_neither_content_nor_path_nor_token(
    receiver: Receiver, status: int
) -> None:
    receiver.answers = [status]
    webhook = Webhook(receiver.url, headers={"Authorization": "Bearer token"})
    with pytest.raises(
        PlatformError, match=rf"Webhook\(http://127.0.0.1:\d+\) answered {status} .*: look for"
    ) as raised:
        send(webhook, Row(city="confidential"))
    assert len(receiver.requests) == 1
    for hidden in ("confidential", "secret-path", "token"):
        assert hidden not in f"{raised.value} {webhook!r}"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_an_error_and_never_a_row_lost_in_a_get(receiver: Receiver, status: int) -> None:
    receiver.answers = [status]
    with pytest.raises(PlatformError, match=f"answered {status}"):
        send(Webhook(receiver.url), SALE)
    assert [method for method, _, _ in receiver.requests] == ["POST"]


def test_values_reach_json_without_loss(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")  # Spark hands a timestamp over in the machine's local time
    time.tzset()
    try:
        row = Row(
            number=2**63 - 1,
            amount=Decimal("12345678901234567890.123456789012345678"),
            whole=Decimal("1E+2"),
            at=datetime(2026, 1, 31, 23, 59, 59, 123456),
            day=date(2026, 1, 31),
            raw=bytearray(b"\x00\xff"),
            share=0.1,
            odd=[float("nan"), float("inf"), float("-inf")],
            name='Zoë "Z" 😀',
            there=True,
            nothing=None,
            items=[Row(code="1", price=Decimal("0.10"))],
            rates={Decimal("2.5"): date(2026, 1, 1), True: 1, 7: None},
        )
        send(Webhook(receiver.url), row)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert receiver.bodies == [
        {
            "number": 9223372036854775807,
            "amount": "12345678901234567890.123456789012345678",
            "whole": "100",
            "at": "2026-01-31T18:29:59.123456Z",
            "day": "2026-01-31",
            "raw": "AP8=",
            "share": 0.1,
            "odd": ["NaN", "Infinity", "-Infinity"],
            "name": 'Zoë "Z" 😀',
            "there": True,
            "nothing": None,
            "items": [{"code": "1", "price": "0.10"}],
            "rates": {"2.5": "2026-01-01", "true": 1, "7": None},
        }
    ]


def test_a_value_that_json_has_no_form_for_is_refused_by_its_columns_name(receiver: Receiver) -> None:
    with pytest.raises(
        PlatformError, match="column 'odd' holds a object, which a webhook cannot send: make it a string"
    ):
        send(Webhook(receiver.url), Row(odd=object()))
    assert receiver.requests == []


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Webhook("file:///etc/passwd"), "the webhook's url cannot be used: give https://host/path"),
        (lambda: Webhook("https://"), "url cannot be used"),
        (lambda: Webhook("https://h:secret/"), "url cannot be used"),
        (lambda: Webhook("https://h/a secret"), "url cannot be used"),
        (lambda: Webhook("https://h/ü-secret"), "url cannot be used"),
        (lambda: Webhook("https://me:secret@h/"), "a user's name and password, if any, as the header Authorization"),
        (lambda: Webhook("https://h", headers={"Authorization": "secret\n"}), "header 'Authorization' .*: strip it"),
        (lambda: Webhook("https://h", attempts=0), "attempts=0.*give at least 1"),
        (lambda: Webhook("https://h", timeout_seconds=0), "timeout_seconds=0"),
    ],
)
def test_parameters_that_cannot_be_used_are_refused_where_the_sink_is_declared(
    make: Callable[[], Webhook], message: str
) -> None:
    with pytest.raises(PlatformError, match=message) as raised:
        make()
    assert "secret" not in str(raised.value)
