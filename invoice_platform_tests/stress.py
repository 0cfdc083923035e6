"""Land files while runs, streams, the warm Spark and the disk fail at random; at the end nothing is lost or there twice.

`python -m invoice_platform_tests.stress --minutes 5 --seed 1`. A writer lands files of random size, whole or slowly in place.
Meanwhile runs over a warm Spark are started and killed or told to end, two at once now and then; the warm Spark is killed and
started again; the lakehouse's disk is full for moments (a small file system of its own, where this may be mounted). All that is
chosen comes from the seed; when it happens depends on the machine. Then one run is let go through, and the oracle judges.
Prints a table on stderr and the same figures as JSON on stdout; exits with 1 when something is lost, repeated or wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.table import Table

from invoice_platform.streaming.landing import land
from invoice_platform.streaming.layout import Layout
from invoice_platform_tests.oracle import Lines, judge
from invoice_platform_tests.processes import Command, Warm, done

CONTINUOUS = '{"ops": {"stream_all_invoices": {"config": {"trigger": "1 second"}}}}'
LAKEHOUSE_MEGABYTES = 512
PATIENCE_SECONDS = 60
"""How long a run may take to go through, or to end when it is told to, before it is killed."""
START_SECONDS = 60
"""How long a run may take until it works before it is killed all the same."""

say = Console(stderr=True, soft_wrap=True)


class Writer(threading.Thread):
    """Lands files until it is told to stop: none, a few or thousands of lines, whole or slowly in place."""

    def __init__(self, layout: Layout, seed: int) -> None:
        super().__init__(name="writer")
        self.chance = Random(f"{seed} writer")
        self.lines = Lines(self.chance)
        self.folder = layout.landing("invoices")
        self.sources = layout.root.parent / "sources"
        self.sources.mkdir()
        self.told = threading.Event()
        self.files: Counter[str] = Counter()
        self.bytes = 0

    def run(self) -> None:
        while not self.told.is_set():
            self.land_one()
            self.told.wait(self.chance.choice([0.1, 0.5, 2.0]))

    def land_one(self) -> None:
        number = sum(self.files.values())
        most = self.chance.choice([0, 1, 10, 10, 100, 100, 400, 4_000])
        count = self.chance.randint(most // 2, most)
        data = b"\n".join(self.lines.make(count))
        self.bytes += len(data)
        if self.chance.random() < 0.5:
            file = self.sources / f"{number:06d}.json"
            file.write_bytes(data)
            land(file, self.folder)
            file.unlink()
            self.files["whole"] += 1
            return
        cuts = sorted(self.chance.randrange(len(data) + 1) for _ in range(5))
        with (self.folder / f"{number:06d}.json").open("wb", buffering=0) as file:
            for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
                file.write(data[start:end])
                time.sleep(self.chance.choice([0, 0.1, 0.4]))
        self.files["slowly in place"] += 1

    def stop(self) -> None:
        self.told.set()
        self.join()


class Stress:
    """One stress run: what fails, and how often it did."""

    def __init__(self, layout: Layout, seed: int, own_disk: bool) -> None:
        self.layout = layout
        self.chance = Random(f"{seed} faults")
        self.own_disk = own_disk
        self.writer = Writer(layout, seed)
        self.counts: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        """The last line of each run that failed by itself, without its particulars."""
        self.deaf = 0
        """Runs that did not end when they were told to."""
        self.warm = Warm(layout)

    def go(self, minutes: float) -> None:
        """Let things fail for so long."""
        deadline = time.monotonic() + minutes * 60
        self.writer.start()
        try:
            while time.monotonic() < deadline:
                self.one_run()
        finally:
            self.writer.stop()

    def one_run(self) -> None:
        """Start a run, let something happen to it, and end it one way or another."""
        chance = self.chance
        continuous = chance.random() < 0.5
        words = ("run", "stream_invoices", "--config", CONTINUOUS) if continuous else ("run", "ingest_invoices")
        ending = chance.choice(["SIGKILL"] * 3 + ["SIGTERM"] * 2 + (["SIGTERM"] if continuous else ["its own"]))
        during = chance.choice(["nothing", "nothing", "a second run", "full disk", "warm Spark killed"])
        works, waits = chance.uniform(0, 12), chance.uniform(0, 6)
        run = Command(self.layout, *words)
        try:
            self._wait_until_it_works(run)
            self._let(run, works)
            self._happen(during, run)
            self._let(run, waits)
            self._end(run, ending, "stream" if continuous else "run")
        finally:
            run.close()
        if not self.warm.serve.going:
            self.warm.close()
            self.warm = Warm(self.layout)

    def _wait_until_it_works(self, run: Command) -> None:
        deadline = time.monotonic() + START_SECONDS
        while run.going and time.monotonic() < deadline and f'"pid": {run.process.pid},' not in self._held():
            time.sleep(0.05)

    def _held(self) -> str:
        try:
            return (self.layout.checkpoints / "invoices" / ".lock.json").read_text()
        except OSError:
            return ""

    def _let(self, run: Command, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while run.going and time.monotonic() < deadline:
            time.sleep(0.05)

    def _happen(self, what: str, run: Command) -> None:
        if what == "a second run":
            second = Command(self.layout, "run", "ingest_invoices")
            try:
                self._let(second, PATIENCE_SECONDS)
                self.counts["second runs at once"] += 1
                if not second.going:
                    self._note(second)
            finally:
                second.close()
        elif what == "full disk" and self.own_disk:
            self.counts["full disk, for moments"] += 1
            with full(self.layout.lakehouse):
                self._let(run, self.chance.uniform(1, 6))
        elif what == "warm Spark killed":
            self.counts["SIGKILL of the warm Spark"] += 1
            self.warm.kill()
            self.warm.serve.wait(60)

    def _end(self, run: Command, how: str, kind: str) -> None:
        if how == "its own":
            self._let(run, PATIENCE_SECONDS)
            how = "SIGKILL"
        if not run.going:
            self._note(run)
            return
        self.counts[f"{how} of a {kind}"] += 1
        run.signal(signal.Signals[how])
        self._let(run, PATIENCE_SECONDS)
        if run.going:
            self.failures[f"{how} of a {kind} was not heard in {PATIENCE_SECONDS:g} s"] += 1
            self.deaf += 1

    def _note(self, run: Command) -> None:
        """Count a run that ended by itself."""
        if run.process.returncode == 0:
            self.counts["runs that went through"] += 1
            return
        self.counts["runs that failed in one line" if "Traceback" not in run.said else "runs with a stack trace"] += 1
        self.failures[run.last_line[:160].replace(str(self.layout.root), "ROOT")] += 1
        if "Traceback" in run.said:
            say.print(run.said[-3000:], markup=False)

    def finish(self) -> str:
        """Let one run go through; what it said."""
        return done(self.layout, "run", "ingest_invoices", seconds=1800)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Leave no room on the file system of `folder` until the block ends."""
    filler = folder / ".filler"
    disk = os.statvfs(folder)
    with filler.open("wb") as file:
        for part in (disk.f_bavail * disk.f_frsize, 64 * 1024, 4096):  # others may write meanwhile
            try:
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), part)
            except OSError:
                continue
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def own_disk(folder: Path) -> Iterator[bool]:
    """A small file system at `folder`, where this user may mount one; whether it is."""
    folder.mkdir(parents=True)
    size = f"size={LAKEHOUSE_MEGABYTES}m"
    mounted = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], capture_output=True).returncode == 0
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def stress(folder: Path, minutes: float, seed: int) -> dict[str, Any]:
    """All of it on a new root in `folder`; the figures."""
    layout = Layout.at(folder / "root")
    layout.landing("invoices").mkdir(parents=True)
    started = time.monotonic()
    with ExitStack() as stack:
        test = Stress(layout, seed, stack.enter_context(own_disk(layout.lakehouse)))
        stack.callback(lambda: test.warm.close())
        test.go(minutes)
        test.finish()
        landed = test.writer.lines.landed
        verdict = judge(layout, landed)
        left = sorted(p.name for p in layout.landing("invoices").iterdir() if p.stat().st_size)
    return {
        "seed": seed,
        "minutes": minutes,
        "seconds": round(time.monotonic() - started, 1),
        "files": dict(test.writer.files),
        "bytes": test.writer.bytes,
        "lines": len(landed),
        "happened": dict(sorted(test.counts.items())),
        "failures": dict(test.failures.most_common(12)),
        "not ended by a signal": test.deaf,
        "lost": verdict.lost,
        "repeated": verdict.repeated,
        "wrong": verdict.wrong,
        "left in landing": left,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5, help="how long things fail (default 5)")
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="decides all that is chosen (default: the time)"
    )
    parser.add_argument("--keep", action="store_true", help="leave the root for a look")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="stress-"))
    say.print(f"seed {given.seed}, {given.minutes:g} minutes, in {folder}", highlight=False)
    try:
        figures = stress(folder, given.minutes, given.seed)
    finally:
        if not given.keep:
            shutil.rmtree(folder, ignore_errors=True)
    table = Table("", "", title=f"stress, seed {given.seed}", show_header=False, title_justify="left")
    for name, value in figures.items():
        for key, count in value.items() if isinstance(value, dict) else [(name, value)]:
            table.add_row(f"{name}: {key}" if isinstance(value, dict) else name, str(count))
    say.print(table)
    print(json.dumps(figures))
    sys.exit(any(figures[what] for what in ("lost", "repeated", "wrong", "left in landing", "not ended by a signal")))


if __name__ == "__main__":
    main()
