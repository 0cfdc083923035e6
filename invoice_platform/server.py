"""The warm Spark: a Spark Connect server on loopback, behind a token, with a Hive metastore under the root."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

from invoice_platform.errors import PlatformError
from invoice_platform.jars import require_java, spark_folder
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.session import (
    PYTHON_VARIABLE,
    SHORT_LIVED,
    TOKEN_VARIABLE,
    WarmServer,
    extra_settings,
    mapped_classes,
    open_session,
    spark_errors,
    spark_settings,
)
from invoice_platform.streaming.tables import declare_existing

CONNECT_PORT = 15002
SESSION_TIMEOUT = "10m"
START_SECONDS = 120
STOP_SECONDS = 15
LONG_LIVED = {
    "spark.driver.defaultJavaOptions": "-XX:G1PeriodicGCInterval=20000 -XX:-G1PeriodicGCInvokesConcurrent "
    "-XX:MinHeapFreeRatio=10 -XX:MaxHeapFreeRatio=20 "
    # What the compiler and RocksDB freed goes back to the system, too: 70 to 80 MB. An older Java knows no such option.
    "-XX:+IgnoreUnrecognizedVMOptions -XX:+UnlockExperimentalVMOptions -XX:TrimNativeHeapInterval=10000",
}
"""For a Java that mostly waits: after 20 s of it, it collects (0.2 s) and gives back to the system what the last run needed."""
# PySpark's workers of `foreachBatch` print the address of the server with its token. A process of its own, because the server
# outlives this one when that is killed.
_HIDE_TOKEN = """
import sys
token = sys.stdin.buffer.readline().strip()
for line in sys.stdin.buffer:
    sys.stdout.buffer.write(line.replace(token, b"(token)"))
    sys.stdout.buffer.flush()
"""


def require_free_port(port: int, setting: str) -> None:
    """See that nothing listens on a loopback port.

    Raises
    ------
    PlatformError
        When something does, naming the setting.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise PlatformError(
                f"port {port} is in use: end what listens there, or choose another with {setting}"
            ) from None


@contextmanager
def warm_server(
    layout: Layout, port: int = CONNECT_PORT, *, write_classes_to: Path | None = None
) -> Iterator[WarmServer]:
    """A Spark Connect server for this root, up and knowing every table, until the block ends.

    Parameters
    ----------
    write_classes_to : path
        A class-data archive that it makes when it ends, of what it has loaded by then.

    Raises
    ------
    PlatformError
        When Java or a jar is missing, the port is in use, a server is up for this root, or it does not start.
    """
    require_java()
    if (other := WarmServer.of(layout)) is not None:
        raise PlatformError(
            f"a warm Spark is up for {layout.root} already (process {other.pid}, port {other.port}): use it, or end that process"
        )
    require_free_port(port, "--spark-port")
    layout.logs.mkdir(parents=True, exist_ok=True)
    layout.server_file.unlink(missing_ok=True)  # of a server that died
    shutil.rmtree(layout.known_tables, ignore_errors=True)
    token = secrets.token_urlsafe(32)
    log = layout.logs / "spark-connect.log"
    with _without(token, log) as output:
        process = subprocess.Popen(
            _command(layout, port, write_classes_to),
            env={PYTHON_VARIABLE: sys.executable}
            | os.environ
            | {TOKEN_VARIABLE: token, "SPARK_HOME": str(spark_folder())},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # a Ctrl-C at the terminal is for us: we end it, in order
        )
    server = WarmServer(process.pid, port, token, datetime.now(timezone.utc).isoformat(timespec="seconds"))
    try:
        _wait_until_up(process, port, log)
        server.write(layout)
        _make_tables_known(layout)
        yield server
    finally:
        layout.server_file.unlink(missing_ok=True)
        end(process, START_SECONDS if write_classes_to else STOP_SECONDS)


@contextmanager
def _without(token: str, log: Path) -> Iterator[IO[bytes]]:
    """Where a server writes its log, which a token does not reach; followed until the last who writes there has ended."""
    with log.open("ab") as output:
        hiding = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _HIDE_TOKEN],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    assert hiding.stdin is not None
    with hiding.stdin as pipe:
        pipe.write(token.encode() + b"\n")
        pipe.flush()
        yield pipe


def _command(layout: Layout, port: int, write_classes_to: Path | None) -> list[str]:
    if write_classes_to is None:
        settings = spark_settings(layout, *mapped_classes()) | LONG_LIVED
    else:
        settings = spark_settings(layout, f"-XX:ArchiveClassesAtExit={write_classes_to}") | SHORT_LIVED
    settings |= {
        "spark.master": "local[*]",
        "spark.app.name": "invoice_platform warm Spark",
        "spark.pyspark.driver.python": sys.executable,  # of `warm_spark`; of workers it is PYSPARK_PYTHON
        "spark.connect.grpc.binding.address": "127.0.0.1",
        "spark.connect.grpc.binding.port": str(port),
        # A client whose machine is gone polls no more: what it left ends after that. By default an hour.
        "spark.connect.session.manager.defaultSessionTimeout": SESSION_TIMEOUT,
        # A client's calls are remembered, should one come twice. By default for half an hour; a continuous run makes 15 a second.
        "spark.connect.session.inactiveOperations.cacheExpiration": "5m",
        "spark.sql.catalogImplementation": "hive",
        "spark.hadoop.javax.jdo.option.ConnectionURL": f"jdbc:derby:{layout.metastore / 'db'};create=true",
    }
    settings |= extra_settings()
    command = [str(spark_folder() / "bin" / "spark-submit")]
    for name, value in settings.items():
        command += ["--conf", f"{name}={value}"]
    return [*command, str(Path(__file__).with_name("warm_spark.py"))]


def _wait_until_up(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise PlatformError(f"the warm Spark ended while it started (exit {process.returncode}): see {log}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise PlatformError(f"the warm Spark did not answer on port {port} within {START_SECONDS} s: see {log}")


def _make_tables_known(layout: Layout) -> None:
    """Put every table under the root into the metastore, which also wakes it up before the first run needs it."""
    session, _ = open_session(layout)
    try:
        with spark_errors("the warm Spark could not take up the tables", layout):
            declare_existing(session, layout, moved=True)
    finally:
        session.stop()


def end(
    process: subprocess.Popen[bytes], seconds: float = STOP_SECONDS, first: signal.Signals = signal.SIGTERM
) -> None:
    """End a process and all that it started: asked first, killed when it does not listen."""
    import psutil

    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(first)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.terminate()
    _, deaf = psutil.wait_procs(family, timeout=seconds)
    for member in deaf:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
