"""Taking times: contestants in turns, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.measure import Outcome


def seconds(work: Callable[[], Any]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def alternate(outcome: Outcome, contestants: Mapping[str, Callable[[], float]], rounds: int) -> None:
    """Let each contestant give its seconds once a round, another one first in each round."""
    names = list(contestants)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            outcome.add(name, "s", contestants[name]())


def wait_until(condition: Callable[[], Any], limit_seconds: float, what: str, pause_seconds: float = 0.02) -> Any:
    """Wait until a condition holds; its value.

    Raises
    ------
    TimeoutError
        When it does not within the limit.
    """
    deadline = time.monotonic() + limit_seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(pause_seconds)
    raise TimeoutError(f"{what}: not within {limit_seconds:g} s")
