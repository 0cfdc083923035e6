"""Contestants as processes: the stock way's Dagster, the platform's own commands. Each ends with its block."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.platform import OWN, free_port
from benchmarks.timing import wait_until
from invoice_platform.orchestrate import serves
from invoice_platform.server import end
from invoice_platform.streaming.layout import ROOT_VARIABLE

PROJECT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
INHERITED = dict(os.environ)
"""Of this process as it began: while it is measured beside others, its environment changes."""
START_SECONDS = 240.0
COMMAND_SECONDS = 900.0


def child_environment(**values: str) -> dict[str, str]:
    """The environment of a process of a contestant's: nothing of a person's own platform, and this project importable."""
    kept = {name: value for name, value in INHERITED.items() if name not in OWN}
    return kept | {"PYTHONPATH": str(PROJECT)} | values


@contextmanager
def background(
    command: list[str], env: Mapping[str, str], log: Path, cwd: Path, last_wish: signal.Signals = signal.SIGINT
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs while the block does; what it prints is in `log`."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end(process, seconds=60, first=last_wish)


def finished(command: list[str], env: Mapping[str, str], log: Path, cwd: Path) -> float:
    """Run a command to its end; the seconds that it took.

    Raises
    ------
    RuntimeError
        When it fails.
    """
    started = time.perf_counter()
    with background(command, env, log, cwd) as process:
        if process.wait(COMMAND_SECONDS) != 0:
            raise RuntimeError(f"{' '.join(command[1:])} failed: {log.read_text(errors='replace')[-2000:]}")
        return time.perf_counter() - started


@contextmanager
def up(root: Path) -> Iterator[None]:
    """`invoice-platform up` on a root, all of it up."""
    ui_port = free_port()
    log = root.parent / "up.log"
    command = [PYTHON, "-m", "invoice_platform.cli", "up", "--ui-port", str(ui_port), "--spark-port", str(free_port())]
    with background(command, child_environment(**{ROOT_VARIABLE: str(root)}), log, root.parent) as process:
        _wait(process, lambda: "Ctrl-C ends all" in log.read_text(errors="replace"), log)
        yield


class Stock:
    """The stock way on a root of its own."""

    def __init__(self, root: Path, sensor_seconds: int = 30) -> None:
        self.root = root
        self.landing = root / "landing"
        self.table = root / "invoice_line_items"
        self.home = root / "dagster"
        for folder in (self.landing, self.home):
            folder.mkdir(parents=True)
        self.log = root / "stock.log"
        self.env = child_environment(
            STOCK_ROOT=str(root),
            STOCK_SENSOR_SECONDS=str(sensor_seconds),
            DAGSTER_HOME=str(self.home),
        )

    def run(self) -> float:
        """One run by Dagster's own command; its seconds."""
        words = ["job", "execute", "-m", "benchmarks.stock.definitions", "-j", "ingest"]
        return finished([PYTHON, "-m", "dagster", *words], self.env, self.log, self.root)

    def put(self, file: Path, name: str) -> None:
        """Land a file in one step."""
        os.link(file, self.landing / name)

    @contextmanager
    def sensing(self) -> Iterator[None]:
        """`dagster dev`, with the sensor on."""
        port = free_port()
        command = [
            PYTHON,
            "-m",
            "dagster",
            "dev",
            "-m",
            "benchmarks.stock.definitions",
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
        ]
        with background(command, self.env, self.log, self.root) as process:
            _wait(process, lambda: serves(f"http://127.0.0.1:{port}"), self.log)
            yield


def _wait(process: subprocess.Popen[bytes], up_yet: Callable[[], bool], log: Path) -> None:
    def looked() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"it ended while it started: {log.read_text(errors='replace')[-2000:]}")
        return up_yet()

    wait_until(looked, START_SECONDS, f"the start (see {log.name})", pause_seconds=0.2)
