"""A root and the platform's own commands on it, as processes that are ended by their ids whatever happens to them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from invoice_platform.broker import free_port
from invoice_platform.streaming.layout import ROOT_VARIABLE, Layout
from invoice_platform.streaming.session import WarmServer
from invoice_platform.streaming.tables import facts
from invoice_platform_tests.conftest import wait_until

COMMAND = [sys.executable, "-m", "invoice_platform.cli"]


class Command:
    """A command of the platform's that runs, in a process group of its own; what it prints is in `said`."""

    def __init__(self, layout: Layout, *words: str) -> None:
        output, name = tempfile.mkstemp(prefix="said-")
        self._output = Path(name)
        self.process = subprocess.Popen(
            [*COMMAND, *words],
            env=os.environ | {ROOT_VARIABLE: str(layout.root), "COLUMNS": "200"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        os.close(output)

    @property
    def going(self) -> bool:
        return self.process.poll() is None

    @property
    def said(self) -> str:
        """All that it has printed so far."""
        return self._output.read_text(errors="replace")

    @property
    def last_line(self) -> str:
        """The last line printed: what a person sees of an error."""
        return next(reversed(self.said.strip().splitlines()), "")

    def group(self) -> list[psutil.Process]:
        """Every process of its group that lives: it, and a Spark embedded in it."""
        return [p for p in psutil.process_iter() if _in_group(p, self.process.pid)]

    def signal(self, number: signal.Signals) -> None:
        """To the command's own process alone."""
        self.process.send_signal(number)

    def wait(self, seconds: float = 240) -> int:
        """Wait for its end; its exit code."""
        return self.process.wait(seconds)

    def has_to_end(self, seconds: float, what: str) -> None:
        """Wait for its end; AssertionError, with `what` and all that it printed, when it goes on."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(seconds)
        assert not self.going, f"{what}: goes on after {seconds:g} s: {self.said}"

    def close(self) -> None:
        """End what is left of it."""
        for process in self.group():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        self._output.unlink(missing_ok=True)


def _in_group(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.Error):
        return False


@contextmanager
def command(layout: Layout, *words: str) -> Iterator[Command]:
    """A command that is ended when the block ends."""
    started = Command(layout, *words)
    try:
        yield started
    finally:
        started.close()


def done(layout: Layout, *words: str, ok: bool = True, seconds: float = 900) -> str:
    """Run a command to its end; what it printed."""
    with command(layout, *words) as ran:
        ran.has_to_end(seconds, " ".join(words))
        assert (ran.process.returncode == 0) is ok, ran.said
        return ran.said


class Warm:
    """`invoice-platform serve` of a root, and the Spark that it keeps."""

    def __init__(self, layout: Layout, seconds: float = 180) -> None:
        self.layout = layout
        self.serve = Command(layout, "serve", "--spark-port", str(free_port()))
        try:
            server = wait_until(lambda: "Ctrl-C ends it" in self.serve.said or not self.serve.going, seconds, "serve")
            assert self.serve.going, self.serve.said
            server = WarmServer.of(layout)
            assert server is not None
        except BaseException:
            self.serve.close()
            raise
        self.server = server

    def kill(self) -> None:
        """SIGKILL to the Spark itself, as the system does when memory is short."""
        with suppress(psutil.NoSuchProcess):
            psutil.Process(self.server.pid).kill()

    def close(self, seconds: float = 60) -> None:
        """End both, in order as far as they listen."""
        if self.serve.going:
            self.serve.signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.serve.wait(seconds)
        self.kill()
        self.serve.close()


@contextmanager
def warm(layout: Layout) -> Iterator[Warm]:
    """A warm Spark until the block ends."""
    started = Warm(layout)
    try:
        yield started
    finally:
        started.close()


def rows(layout: Layout, table: str) -> int:
    """Rows of a table by its Delta log; 0 where there is none."""
    found = facts(layout.table(table))
    return found.rows if found else 0


def put(path: Path, folder: Path) -> None:
    """Land a file in one step by moving it."""
    os.rename(path, folder / path.name)


def ended_in(process: Command, number: signal.Signals, seconds: float) -> float:
    """Send a signal; the seconds until its end, of it and of all that it started."""
    started = time.monotonic()
    process.signal(number)
    process.has_to_end(seconds, number.name)
    wait_until(lambda: not process.group(), seconds, "the end of all processes")
    return time.monotonic() - started
