"""What `spark-submit` runs in the warm Spark: its Connect server, for which `SparkConnectServer.main` would not do.

That one keeps each stopped query for an hour, with its session and plans: 3 to 4 MB, for which there is no setting
(`SparkConnectStreamingQueryCache`). A run asks what became of its query within seconds. And it gives each session a class
loader of its own, whatever the configuration says (`spark.sql.artifact.isolation.enabled`): see `session.spark_settings`.

Beside that it makes the state of each table's newest version, which Delta otherwise makes when the next micro-batch asks which
micro-batches the table has: half of the time of one that brings a file.
"""

import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from py4j.java_gateway import GatewayParameters, JavaGateway
from py4j.protocol import Py4JError

from invoice_platform.errors import PlatformError
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.session import ROOT_SETTING
from invoice_platform.streaming.tables import commit_path, latest_version, tables_on_disk

KEPT_SECONDS = 60
LOOK_SECONDS = 10
"""How often the server looks for what it need not keep. By default each minute."""
COMMIT_LOOK_SECONDS = 0.05
"""How often it looks for new commits; a look-up of one file name a table."""
TABLES_LOOK_SECONDS = 5.0
"""How often it looks for new tables."""
SEEN_SECONDS = 2.0
"""Until Delta, too, has taken note of a commit that is on disk; it never does of another process's."""


def main() -> None:
    """Serve until this Java ends."""
    gateway = JavaGateway(
        gateway_parameters=GatewayParameters(
            port=int(os.environ["PYSPARK_GATEWAY_PORT"]), auth_token=os.environ["PYSPARK_GATEWAY_SECRET"]
        )
    )
    jvm: Any = gateway.jvm
    forget_queries_soon(jvm)
    session = jvm.org.apache.spark.sql.classic.SparkSession.builder().getOrCreate()
    service = _service(jvm)
    service.start(session.sparkContext())
    layout = Layout.at(session.conf().get(ROOT_SETTING))
    threading.Thread(target=make_states_soon, args=(jvm, session, layout, threading.Event()), daemon=True).start()
    service.server().awaitTermination()


def _service(jvm: Any) -> Any:
    return getattr(getattr(jvm.org.apache.spark.sql.connect.service, "SparkConnectService$"), "MODULE$")


def forget_queries_soon(jvm: Any) -> None:
    """Set how long this Java's Connect server keeps a query after its end, and how often it looks."""
    queries = _service(jvm).streamingSessionManager()
    times = {"stoppedQueryInactivityTimeout": KEPT_SECONDS, "sessionPollingPeriod": LOOK_SECONDS}
    for name, seconds in times.items():
        field = queries.getClass().getDeclaredField(name)
        field.setAccessible(True)
        field.set(queries, jvm.scala.concurrent.duration.Duration.create(seconds, "seconds"))


def make_states_soon(jvm: Any, session: Any, layout: Layout, stop: threading.Event) -> None:
    """Make the state of each table's newest version as soon as it is committed, until told to stop.

    Delta makes a version's state once, for all sessions, and whoever asks meanwhile waits for it.
    """
    known: dict[Path, int] = {}
    look_at = time.monotonic()
    while not stop.wait(COMMIT_LOOK_SECONDS):
        # A table may be deleted, made anew or repaired meanwhile; one that is damaged is for whoever uses it to name.
        if (now := time.monotonic()) >= look_at:
            look_at = now + TABLES_LOOK_SECONDS
            with suppress(OSError):
                known = _newest(layout, known)
        for path, version in list(known.items()):
            with suppress(OSError, PlatformError, Py4JError):
                if commit_path(path, version + 1).exists():
                    known[path] = latest_version(path)
                    _make_state(jvm, session, path, known[path])


def _newest(layout: Layout, known: dict[Path, int]) -> dict[Path, int]:
    """The tables there are, with the newest version of those that are new or were made anew."""
    found: dict[Path, int] = {}
    for path in map(layout.table, tables_on_disk(layout)):
        there = path in known and commit_path(path, known[path]).exists()
        found[path] = known[path] if there else latest_version(path)
    return found


def _make_state(jvm: Any, session: Any, path: Path, version: int) -> None:
    until = time.monotonic() + SEEN_SECONDS
    log = jvm.org.apache.spark.sql.delta.DeltaLog.forTable(session, str(path))
    while (snapshot := log.unsafeVolatileSnapshot()).version() < version:
        if time.monotonic() > until:
            return
        time.sleep(COMMIT_LOOK_SECONDS / 5)
    snapshot.numOfFiles()  # of its state


if __name__ == "__main__":
    main()
