"""`python -m benchmarks [--small] [NAME …]`: runs measures, one after the other, and writes their results, plots and page."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import NoReturn

from benchmarks.machine import machine_facts
from benchmarks.measure import Bench, Measure, met_in_words
from benchmarks.measures import NAMES, measure
from benchmarks.page import write_page
from benchmarks.platform import SharedPlatform
from benchmarks.plots import plot
from benchmarks.results import Result, held, read, write
from invoice_platform.streaming.session import WITHOUT_C2

PROJECT = Path(__file__).resolve().parents[1]
BACKLOG_GB = 1.0
"""5 is the goal's own size; all measures together may take 40 minutes on 2 cores."""


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 when every measure gave its figures, whatever they are; 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="measures to run; all of them when none is given")
    parser.add_argument("--list", action="store_true", help="show the measures and their goals, and run nothing")
    parser.add_argument("--small", action="store_true", help="everything tiny: for correctness, not for figures")
    parser.add_argument(
        "--output",
        type=Path,
        help="where results and plots go, the page beside it; docs/benchmarks, or a new folder when small",
    )
    parser.add_argument("--work", type=Path, help="where data is made, to be thrown away; a temporary folder")
    parser.add_argument("--backlog-gb", type=float, help=f"size of the backlog of `memory` in GB; {BACKLOG_GB:g}")
    parser.add_argument("--memory-runs", type=int, help="runs of `memory`, from 2 up, with a look after half of them")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in NAMES]:
        parser.error(f"no such measure: {', '.join(unknown)}; choose from {', '.join(NAMES)}")
    if options.memory_runs is not None and options.memory_runs < 2:
        parser.error(f"--memory-runs {options.memory_runs}: give 2 or more, half of them for each look")
    chosen = options.names or list(NAMES)
    if options.list:
        for name in chosen:
            found = measure(name)
            print(f"{name:13} {found.title}")
            for goal in found.goals:
                print(f"{'':13}   {goal.text} ({goal.in_words})")
        return 0
    if options.small:
        os.environ["JAVA_TOOL_OPTIONS"] = WITHOUT_C2
    output = options.output or (
        Path(tempfile.mkdtemp(prefix="benchmarks-")) / "benchmarks"
        if options.small
        else PROJECT / "docs" / "benchmarks"
    )
    with tempfile.TemporaryDirectory(prefix="benchmarks-work-", dir=options.work) as work:
        backlog = options.backlog_gb or (0.002 if options.small else BACKLOG_GB)
        sizes = {"--memory-runs": options.memory_runs, "--backlog-gb": options.backlog_gb}
        asked = " ".join(f"{word} {size:g}" for word, size in sizes.items() if size)
        shared = SharedPlatform(emptied=not options.small)
        try:
            bench = Bench(options.small, Path(work), backlog, options.memory_runs, asked, shared)
            failed = run(chosen, bench, output.resolve())
        finally:
            shared.close()
    return 1 if failed else 0


def run(names: list[str], bench: Bench, output: Path) -> list[str]:
    """Run measures; those that failed. What each gave is on disk as soon as it has ended."""
    machine = machine_facts()
    results = read(output)
    failed: list[str] = []
    measures = [measure(name) for name in names]
    # What the jobs print to stdout is not the benchmarks' own. Small, those with processes of their own go on beside the others.
    with contextlib.redirect_stdout(sys.stderr), ThreadPoolExecutor(1) as beside:
        apart = {
            m.name: beside.submit(_measured, m, bench, machine) for m in measures if bench.small and m.own_processes
        }
        for found in sorted(measures, key=lambda m: m.name in apart):
            result = apart[found.name].result() if found.name in apart else _measured(found, bench, machine)
            if result is None:
                failed.append(found.name)
                continue
            results[found.name] = result
            plot(found, result, output / f"{found.name}.png")
            write(output, results)
            write_page(output, results)
            for goal, figure in held(found, result):
                if figure is not None:
                    told = f"{figure.figure:.3g} {goal.unit} ({met_in_words(figure.met)})"
                    _say(f"  {found.name}, {goal.text}: {told}; {result.seconds:.0f} s")
    print(output.with_suffix(".md"))
    return failed


def _measured(found: Measure, bench: Bench, machine: dict[str, str]) -> Result | None:
    """What a measure gave; None when it failed, which is said."""
    _say(f"{found.name}: {found.title}")
    started = time.monotonic()
    try:
        outcome = found.run(bench)
    except Exception as error:
        _say(f"{found.name} failed after {time.monotonic() - started:.0f} s: {type(error).__name__}: {error}")
        return None
    return Result.of(found, outcome, time.monotonic() - started, bench, machine)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")  # at once, as `print` does not: measures may go on beside each other
    sys.stderr.flush()


def _told_to_end(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    """As an interrupt does: what was started ends, too."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _told_to_end)
    sys.exit(main())
