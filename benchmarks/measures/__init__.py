"""The measures, in the order of the issue's table; each is a module with a `MEASURE`."""

from __future__ import annotations

from importlib import import_module

from benchmarks.measure import Measure

NAMES: tuple[str, ...] = (
    "latency",
    "continuous",
    "throughput",
    "small_files",
    "history",
    "large_tables",
    "queries",
    "sensor_tick",
    "cold_start",
    "memory",
    "retention",
)


def measure(name: str) -> Measure:
    """The measure of that name; its contestants are imported no sooner."""
    found: Measure = import_module(f"benchmarks.measures.{name}").MEASURE
    return found
