"""Dagster from outside: its home under the root, its jobs run from the command line, its UI and daemon beside the warm Spark."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.request import urlopen

from invoice_platform.errors import PlatformError, writing
from invoice_platform.server import CONNECT_PORT, end, require_free_port, warm_server
from invoice_platform.streaming.layout import ROOT_VARIABLE, Layout
from invoice_platform.streaming.session import REMOTE_VARIABLE, TOKEN_VARIABLE

if TYPE_CHECKING:
    from dagster import DagsterInstance, ExecuteInProcessResult

UI_PORT = 3000
UI_SECONDS = 120
INBOXES = ("invoices", "text")


def dagster_home(layout: Layout) -> Path:
    """`DAGSTER_HOME`, or the one under the root: history is in one place however a job was started."""
    return Path(os.environ.get("DAGSTER_HOME") or layout.dagster_home)


def prepare(layout: Layout) -> None:
    """Make the landing folders and Dagster's home, with the platform's settings in it."""
    for inbox in INBOXES:
        layout.landing(inbox).mkdir(parents=True, exist_ok=True)
    home = dagster_home(layout)
    home.mkdir(parents=True, exist_ok=True)
    settings = home / "dagster.yaml"
    if not settings.exists():
        source = resources.files("invoice_platform") / "dagster.yaml"
        settings.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")


@dataclass(frozen=True)
class Running:
    """What was started."""

    url: str
    """Of Dagster's UI."""
    pids: tuple[int, ...]

    def wait(self) -> None:
        """Wait until told to stop.

        Raises
        ------
        PlatformError
            When one of its processes ends by itself.
        """
        import psutil

        while all(psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE for p in self.pids):
            time.sleep(1)
        raise PlatformError("the warm Spark or Dagster ended by itself: see the logs under the root, and start again")


@contextmanager
def instance(layout: Layout) -> Iterator[DagsterInstance]:
    """The Dagster instance of this root (or of `DAGSTER_HOME`), so that history is in one place however a job was started.

    Raises
    ------
    PlatformError
        When its history cannot be written.
    """
    home = dagster_home(layout)
    with writing(home):
        prepare(layout)
    import dagster as dg
    from sqlalchemy.exc import OperationalError

    try:
        with dg.DagsterInstance.from_config(str(home)) as found:
            yield found
    except OperationalError as error:
        with writing(home / "history"):
            raise error.orig or error from error


def limit_pools(layout: Layout) -> None:
    """Give every checkpoint's pool its limit before the first run asks for it.

    Dagster does that when it first sees a run of a pool, and lets all runs of that moment pass: two that share a table would
    start at once, and one of them fail at the other's lock.
    """
    with instance(layout) as history:
        from invoice_platform.assets.factory import STREAMS, checkpoint_pool
        from invoice_platform.definitions import defs  # noqa: F401  (declares the streams)

        for name in STREAMS:
            history.event_log_storage.initialize_concurrency_limit_to_default(checkpoint_pool(name))


def run_job(layout: Layout, name: str, config: Mapping[str, Any] | None = None) -> ExecuteInProcessResult:
    """Run a job in this process.

    Raises
    ------
    PlatformError
        For an unknown job; for a configuration that Dagster refuses; when the job fails, with its reason in one line.
    """
    with instance(layout) as history:
        import dagster as dg

        from invoice_platform.definitions import defs

        try:
            result = defs.resolve_job_def(_known(name)).execute_in_process(
                run_config={"loggers": {"console": {}}} | dict(config or {}), instance=history, raise_on_error=False
            )
        except dg.DagsterInvalidConfigError as error:
            raise PlatformError(f"--config for {name}: {error.errors[0].message}") from None
    if not result.success:
        raise PlatformError(f"{name} failed: {_why(result)}")
    return result


def _why(result: ExecuteInProcessResult) -> str:
    from invoice_platform.assets.factory import RunCancelled

    for event in result.all_events:
        if event.event_type_value == "STEP_FAILURE":
            data = event.step_failure_data
            if data.user_failure_data is not None and data.user_failure_data.description:
                return data.user_failure_data.description
            error = data.error.cause if data.error is not None and data.error.cause is not None else data.error
            if error is not None and error.cls_name == RunCancelled.__name__:
                return "it was told to end; its next run goes on from there"
            if error is not None:
                return error.message.strip().splitlines()[0]
    return "see its log in the Dagster UI (`make up`)"


def stream_config(job: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Run config that gives each stream of a job the same settings (`trigger`, `max_files_per_trigger`, …)."""
    if not settings:
        return {}
    from invoice_platform.definitions import defs

    definition = defs.resolve_job_def(_known(job))
    ops = [node.name for node in definition.nodes if "trigger" in _fields(node.definition)]
    if not ops:
        raise PlatformError(f"{job} runs no stream, so it takes no {', '.join(settings)}: leave out those options")
    return {"ops": {op: {"config": dict(settings)} for op in ops}}


def _fields(definition: Any) -> Collection[str]:
    """Names of an op's settings."""
    schema = getattr(definition, "config_schema", None)
    return getattr(schema.config_type, "fields", {}) if schema is not None else {}


def _known(job: str) -> str:
    from invoice_platform.jobs import JOBS

    names = [known.name for known in JOBS]
    if job not in names:
        raise PlatformError(f"there is no job {job!r}: choose one of {', '.join(names)}")
    return job


def workspace_file() -> Path:
    """The project's workspace.yaml.

    Raises
    ------
    PlatformError
        When the package is installed without it.
    """
    path = Path(__file__).resolve().parents[1] / "workspace.yaml"
    if not path.is_file():
        raise PlatformError(f"{path} is missing: run `invoice-platform up` from a clone of the project")
    return path


@contextmanager
def dagster_ui(layout: Layout, port: int = UI_PORT, environment: Mapping[str, str] | None = None) -> Iterator[Running]:
    """Dagster's UI, daemon, sensors and schedules, on loopback, until the block ends.

    Raises
    ------
    PlatformError
        When the port is in use, or the UI does not start.
    """
    require_free_port(port, "--ui-port")
    limit_pools(layout)
    log = layout.logs / "dagster.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "dagster", "dev", "-w", str(workspace_file()), "-h", "127.0.0.1", "-p", str(port)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=dagster_home(layout),
            env=os.environ
            | {"DAGSTER_HOME": str(dagster_home(layout)), ROOT_VARIABLE: str(layout.root)}
            | dict(environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + UI_SECONDS
        while not serves(url):
            if process.poll() is not None:
                raise PlatformError(f"Dagster ended while it started (exit {process.returncode}): see {log}")
            if time.monotonic() > deadline:
                raise PlatformError(f"Dagster's UI did not answer at {url} within {UI_SECONDS} s: see {log}")
            time.sleep(0.2)
        yield Running(url, (process.pid,))
    finally:
        end(process, first=signal.SIGINT)


def serves(url: str) -> bool:
    """Whether a Dagster UI answers there."""
    try:
        with urlopen(f"{url}/server_info", timeout=2) as answer:
            return answer.status == 200
    except (URLError, OSError):
        return False


@contextmanager
def everything(layout: Layout, spark_port: int = CONNECT_PORT, ui_port: int = UI_PORT) -> Iterator[Running]:
    """Warm Spark and Dagster, until the block ends."""
    require_free_port(ui_port, "--ui-port")
    with contextlib.ExitStack() as started:
        server = started.enter_context(warm_server(layout, spark_port))
        warm = {REMOTE_VARIABLE: server.url, TOKEN_VARIABLE: server.token}
        ui = started.enter_context(dagster_ui(layout, ui_port, warm))
        yield Running(ui.url, (server.pid, *ui.pids))
