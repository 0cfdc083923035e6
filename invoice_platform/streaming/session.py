"""Spark sessions: embedded in this process, or a client of the warm Spark Connect server; settings for small, frequent runs."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlsplit

from invoice_platform.errors import PlatformError, first_line
from invoice_platform.jars import class_archive, jar_paths, own_jar, require_java, spark_folder
from invoice_platform.streaming.layout import ROOT_VARIABLE, Layout
from invoice_platform.streaming.state import read_state, write_state

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
    from pyspark.sql.connect.client.retries import RetryPolicy
    from pyspark.sql.connect.session import SparkSession as ConnectSession

CONF_VARIABLE = "INVOICE_PLATFORM_SPARK_CONF"
REMOTE_VARIABLE = "SPARK_REMOTE"
TOKEN_VARIABLE = "SPARK_CONNECT_AUTHENTICATE_TOKEN"
ROOT_SETTING = "spark.invoicePlatform.root"
PYTHON_VARIABLE = "PYSPARK_PYTHON"
"""The Python that Spark starts for `foreach` and Python data sources; the first on the PATH when not set."""
WITHOUT_C2 = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m"
"""Options of a Java that lives for minutes: its optimizing compiler takes as long as all else, and pays back too late.

By default a Java without C2 has room for 48 MB of code, not 240: some runs fill it, and it then sweeps and compiles without end.
"""
SHORT_LIVED = {"spark.driver.defaultJavaOptions": WITHOUT_C2}
"""For a Java that ends with its run."""
CONNECT_SECONDS = 3.0
CONNECT_RETRIES = 6
"""With pauses growing from 50 ms: about 20 s in all."""
FUNCTIONS = "invoice_platform"
"""The catalog of SQL functions of ours."""
LINES_OF_TEXT = "invoice_platform.LinesOfText"
"""The format of lines of text of ours."""
_FUNCTIONS_SETTING = f"spark.sql.catalog.{FUNCTIONS}"
_OWN_CLASSES = {
    # Delta's own looks at every file of a log each time that it wants the newest.
    "spark.delta.logStore.file.impl": "invoice_platform.LocalLogStore",
    _FUNCTIONS_SETTING: "invoice_platform.PlainRecords",
}
"""Settings that name classes of the jar that set-up makes, where there is a compiler."""


def spark_settings(layout: Layout, *java_options: str) -> dict[str, str]:
    """Settings of every JVM that the platform starts, and options of its Java; `extra_settings` can replace each.

    The defaults of Spark and Delta are made for large clusters; what differs was measured on runs of a few files.
    """
    log4j = resources.files("invoice_platform") / "log4j2.properties"
    return {
        # On the JVM's own class path: what `spark.jars` adds is loaded apart, and is not taken from the class-data archive.
        "spark.driver.extraClassPath": os.pathsep.join(str(path) for path in jar_paths()),
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.session.timeZone": "UTC",
        "spark.driver.memory": "2g",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.extraJavaOptions": " ".join(
            (
                f"-Dlog4j2.configurationFile={Path(str(log4j)).as_uri()}",
                _word(f"-Dinvoice_platform.log={layout.spark_log}"),
                _word(f"-Dderby.system.home={layout.metastore}"),
                "-Duser.timezone=UTC",
                *(_word(option) for option in java_options),
            )
        ),
        "spark.ui.enabled": "false",
        # What the UI would show is kept without one, too: by default the plans of 1,000 queries as texts, a run has dozens.
        "spark.sql.ui.retainedExecutions": "50",
        "spark.sql.ui.explainMode": "simple",
        "spark.ui.retainedJobs": "50",
        "spark.ui.retainedStages": "50",
        "spark.ui.retainedTasks": "1000",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.warehouse.dir": str(layout.lakehouse),
        # A Delta log of a few hundred files needs one task, not 50, to be read.
        "spark.databricks.delta.snapshotPartitions": "1",
        "spark.sql.shuffle.partitions": str(min(os.cpu_count() or 2, 8)),
        # Default 32: the files of a micro-batch, up to 1,000, are looked up in 0.15 s by a job, in 0.07 to 0.09 without.
        "spark.sql.sources.parallelPartitionDiscovery.threshold": "1000",
        # Default 10,000: more of them are looked up in a job of as many tasks.
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": "2",
        # Default 4 MiB: 10,000 small files become 313 tasks and 313 output files; with 64 KiB three, for two cores.
        "spark.sql.files.openCostInBytes": str(16 * 1024),
        # Default 128 MiB: 270 MB on two cores become three tasks, and one core waits for the third.
        "spark.sql.files.maxPartitionBytes": str(256 * 1024 * 1024),
        # By default each session, and each of its queries, has a class loader of its own for classes that it might add. What Spark
        # generates and compiles for one is then of no use to the next: 100 classes a run, each new to Java's compiler.
        "spark.sql.artifact.isolation.enabled": "false",
        # Default 100: all jobs together have about 260 of them.
        "spark.sql.codegen.cache.maxEntries": "1000",
        "spark.sql.streaming.stopTimeout": "10s",
        # Default 100: of each stream so many micro-batches stay in its checkpoint. Spark itself needs two.
        "spark.sql.streaming.minBatchesToRetain": "30",
        # The default starts a `chmod` and four `readlink` for each file of a checkpoint, which takes 0.03 s in place of 0.01.
        "spark.sql.streaming.checkpointFileManagerClass": (
            "org.apache.spark.sql.execution.streaming.checkpointing.FileSystemBasedCheckpointFileManager"
        ),
        # Delta's log is written by this class; the default puts a checksum beside each file, twice the names for whoever lists a
        # log, twice the processes that set permissions. Data files and checkpoints keep theirs, and Delta has its own (`.crc`).
        "spark.hadoop.fs.AbstractFileSystem.file.impl": "org.apache.hadoop.fs.local.RawLocalFs",
        **(_OWN_CLASSES if own_jar().exists() else {}),
        # State on disk: by default it is all in memory, about 400 bytes for every invoice number that ever came.
        "spark.sql.streaming.stateStore.providerClass": (
            "org.apache.spark.sql.execution.streaming.state.RocksDBStateStoreProvider"
        ),
        "spark.sql.streaming.stateStore.rocksdb.changelogCheckpointing.enabled": "true",
        "spark.sql.streaming.metricsEnabled": "false",
        # Default 250 MB: each query leaves a list of its segment's files there, which no other query can use.
        "spark.sql.hive.filesourcePartitionFileCacheSize": "0",
        # How often a query without an interval looks for new data. By default every 10 ms; a look at a Delta table takes 8.
        "spark.sql.streaming.pollingDelay": "100",
        ROOT_SETTING: str(layout.root),
    }


def has_own_classes(spark: SparkSession) -> bool:
    """Whether a Spark has the classes in `java/`: one that was started here, when there was a compiler at set-up."""
    return spark.conf.get(_FUNCTIONS_SETTING, None) is not None


def mapped_classes() -> list[str]:
    """Options of a Java that maps its classes from the archive made at set-up; none without one."""
    archive = class_archive()
    # Java goes without one that does not fit, and need not say so.
    return [f"-XX:SharedArchiveFile={archive}", "-Xlog:cds=off", "-Xlog:cds+dynamic=off"] if archive.exists() else []


def _word(text: str) -> str:
    """One word of Java options, as Spark's launcher parts them."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def extra_settings() -> dict[str, str]:
    """`spark.*` settings from `INVOICE_PLATFORM_SPARK_CONF`, written `name=value` and parted by blanks.

    Raises
    ------
    PlatformError
        For a word that is not `spark.<name>=<value>`.
    """
    settings: dict[str, str] = {}
    for word in shlex.split(os.environ.get(CONF_VARIABLE, "")):
        name, equals, value = word.partition("=")
        if not equals or not name.startswith("spark."):
            raise PlatformError(f"{CONF_VARIABLE}: {word!r} is not spark.<name>=<value>; part settings by blanks")
        settings[name] = value
    return settings


@dataclass(frozen=True)
class WarmServer:
    """The warm Spark Connect server of a root, as `invoice-platform serve` wrote it down."""

    pid: int
    port: int
    token: str
    started_at: str

    @property
    def url(self) -> str:
        # By name: for an address and a token the client insists on TLS.
        return f"sc://localhost:{self.port}"

    def write(self, layout: Layout) -> None:
        """Write it down, readable by this user only."""
        write_state(layout.server_file, asdict(self), mode=0o600)

    @classmethod
    def of(cls, layout: Layout) -> WarmServer | None:
        """The server that is up for this root, or None. What a dead server left is passed over."""
        try:
            server = cls(**read_state(layout.server_file))
        except (ValueError, TypeError):
            return None
        import psutil

        return server if psutil.pid_exists(server.pid) and _answers("localhost", server.port) else None


@dataclass(frozen=True)
class RemoteSession:
    """A session in a Spark Connect server, as another process can name it.

    The server ends what a session runs when the session is ended, not when its client dies.
    """

    address: str
    """`host:port` of the server."""
    session_id: str
    user: str
    """Whose session it is, as Connect has it; empty for nobody's."""

    @classmethod
    def of(cls, spark: SparkSession) -> RemoteSession | None:
        """How a session is named; None for an embedded one, which ends with its process."""
        if not type(spark).__module__.startswith("pyspark.sql.connect"):
            return None
        client = cast("ConnectSession", spark).client
        return cls(client._builder.endpoint, client._session_id, client._user_id or "")  # type: ignore[attr-defined]

    @classmethod
    def from_facts(cls, facts: Any) -> RemoteSession | None:
        """What `facts` wrote down, or None."""
        try:
            return cls(**facts)
        except TypeError:
            return None

    @property
    def facts(self) -> dict[str, str]:
        """To be written down; holds no secret."""
        return asdict(self)

    def warm_server(self, layout: Layout) -> WarmServer | None:
        """Its server, where that is the warm one of this root; None for any other."""
        server = WarmServer.of(layout)
        return server if server is not None and server.url == f"sc://{self.address}" else None

    @property
    def gone(self) -> bool:
        """Whether its server is."""
        return _refuses(self.address)

    def end(self, layout: Layout) -> bool:
        """End it and all that runs in it; False where its server is gone, and all of it with that.

        Raises
        ------
        PlatformError
            When its server does not let it be ended: what it runs would work beside whoever goes on.
        """
        host, _, port = self.address.rpartition(":")
        if not _answers(host, int(port)):
            return False
        if (server := self.warm_server(layout)) is not None:
            os.environ[TOKEN_VARIABLE] = server.token
        from pyspark.sql.connect.client import SparkConnectClient

        user = f";user_id={quote(self.user)}" if self.user else ""
        client = SparkConnectClient(f"sc://{self.address}/;session_id={self.session_id}{user}")
        client.set_retry_policies([_retries(self.address)])
        try:
            client.release_session()
        except Exception as error:
            raise PlatformError(
                f"session {self.session_id} of a process that died could not be ended in the Spark at {self.address} "
                f"({first_line(error)}), and its queries may still run: end that Spark and start it anew (`make up` or "
                "`invoice-platform serve`)"
            ) from None
        finally:
            client.close()
        return True


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=CONNECT_SECONDS):
            return True
    except OSError:
        return False


def _refuses(address: str) -> bool:
    """Whether nothing listens at `host:port`: a server that is gone, and not a network that is slow."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS):
            return False
    except ConnectionRefusedError:
        return True
    except OSError:
        return False


def _retries(address: str) -> RetryPolicy:
    """How often a client tries again: not at all when its server is gone, and its session with it.

    By default each call goes on for ten minutes, and ending a run takes a dozen calls.
    """
    from pyspark.sql.connect.client.retries import DefaultPolicy

    class WhileItListens(DefaultPolicy):
        def can_retry(self, e: BaseException) -> bool:
            return super().can_retry(e) and not _refuses(address)

    return WhileItListens(max_retries=CONNECT_RETRIES)


def open_session(
    layout: Layout, *, remote: str | None = None, master: str | None = None, conf: Mapping[str, str] | None = None
) -> tuple[SparkSession, bool]:
    """A session, and whether the caller owns it (and has to stop it).

    Tried in this order: `remote` or `SPARK_REMOTE`; a session that this process has already, which stays its owner's;
    the warm server of this root, when one is up; a new embedded session.

    Parameters
    ----------
    remote : str
        `sc://host:port` of a Spark Connect server.
    master : str
        Spark master of an embedded session, `local[*]` by default.
    conf : mapping of str to str
        `spark.*` settings that win over the platform's and over `INVOICE_PLATFORM_SPARK_CONF`.

    Raises
    ------
    PlatformError
        When the server does not answer, serves another root or speaks another version; when Java or a jar is
        missing; when a setting cannot be set.
    """
    conf = dict(conf or {})
    for name in conf:
        if not name.startswith("spark."):
            raise PlatformError(f"conf: {name!r} is not a Spark setting; names begin with 'spark.'")
    _quieten_pyspark()
    remote = remote or os.environ.get(REMOTE_VARIABLE)
    if remote is None:
        if (existing := _existing()) is not None:
            return _set(existing, conf), False
        if (server := WarmServer.of(layout)) is not None:
            os.environ[TOKEN_VARIABLE] = server.token
            remote = server.url
    if remote is not None:
        return _connect(layout, remote, extra_settings() | conf), True
    return _embed(layout, master or "local[*]", extra_settings() | conf), True


def spark_exceptions() -> tuple[type[Exception], ...]:
    """What Spark raises in Python, embedded or over Connect."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    return PySparkException, Py4JError


@contextmanager
def lazy_session(layout: Layout) -> Iterator[Callable[[], SparkSession]]:
    """A way to ask for a session, opened at the first call and stopped in the end if it was opened here."""
    opened: list[tuple[SparkSession, bool]] = []

    def session() -> SparkSession:
        if not opened:
            opened.append(open_session(layout))
        return opened[0][0]

    try:
        yield session
    finally:
        for spark, owned in opened:
            if owned:
                spark.stop()


@contextmanager
def spark_errors(doing: str, layout: Layout) -> Iterator[None]:
    """Turn what Spark raises into a PlatformError of one line that begins with `doing`."""
    try:
        yield
    except spark_exceptions() as error:
        raise PlatformError(f"{doing}: {first_line(error)} (full account in {layout.spark_log})") from error


def _quieten_pyspark() -> None:
    """Keep PySpark from printing each error as a line of JSON beside raising it, or what came too late for a session."""
    from pyspark.logger import PySparkLogger

    names = ["SQLQueryContextLogger", "DataFrameQueryContextLogger"]
    # It raises what it logs, or closes a connection to a Java that is gone, as after a run that was told to end.
    logging.getLogger("py4j").setLevel(logging.CRITICAL)
    if "SPARK_CONNECT_LOG_LEVEL" not in os.environ:  # Spark Connect's own way to ask for its log
        names.append("pyspark.sql.connect.logging")
    for name in names:
        PySparkLogger.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger().addFilter(_without_stack)


def _without_stack(record: logging.LogRecord) -> bool:
    # py4j writes both to the root's log, with their stacks, and raises them all the same.
    if record.msg == "Exception while sending command." and record.exc_info and record.exc_info[1]:
        record.msg, record.exc_info = f"Spark's Java does not answer: {first_line(record.exc_info[1])}", None
    return record.msg != "KeyboardInterrupt while sending command."


def _existing() -> SparkSession | None:
    """This process's session, whichever thread opened it."""
    from pyspark.errors import PySparkRuntimeError
    from pyspark.sql import SparkSession

    try:
        return SparkSession.active()
    except PySparkRuntimeError:
        return None


def _set(session: SparkSession, conf: Mapping[str, str]) -> SparkSession:
    for name, value in conf.items():
        if session.conf.get(name, None) == value:
            continue  # what it was started with can be a setting that none can change later
        try:
            session.conf.set(name, value)
        except Exception as error:
            raise PlatformError(
                f"{name} cannot be changed in a Spark that is up ({first_line(error)}): set it in {CONF_VARIABLE} "
                "and start Spark anew (`make up` or `invoice-platform serve`)"
            ) from None
    return session


def _connect(layout: Layout, remote: str, conf: Mapping[str, str]) -> SparkSession:
    address = urlsplit(remote)
    host, port = address.hostname, address.port or 15002
    if address.scheme != "sc" or host is None:
        raise PlatformError(f"{REMOTE_VARIABLE}={remote}: give sc://host:port")
    if not _answers(host, port):  # the client itself would go on trying for minutes
        raise PlatformError(
            f"{REMOTE_VARIABLE}={remote}: no Spark answers there; start one (`make up` or `invoice-platform serve`) "
            f"or unset {REMOTE_VARIABLE} to use an embedded Spark"
        )
    import pyspark
    from pyspark.sql import SparkSession

    try:
        session = SparkSession.builder.remote(remote).getOrCreate()
        cast("ConnectSession", session).client.set_retry_policies([_retries(f"{host}:{port}")])
        version, root = session.version, session.conf.get(ROOT_SETTING, "")
    except Exception as error:
        raise PlatformError(
            f"{REMOTE_VARIABLE}={remote}: the Spark there refused ({first_line(error)}); check {TOKEN_VARIABLE}, or start "
            "Spark anew (`make up` or `invoice-platform serve`)"
        ) from None
    if version != pyspark.__version__:
        session.stop()
        raise PlatformError(
            f"{REMOTE_VARIABLE}={remote}: a stale server, Spark {version} where this platform is {pyspark.__version__}; "
            "end it and start it anew (`make up` or `invoice-platform serve`)"
        )
    if root and root != str(layout.root):
        session.stop()
        raise PlatformError(
            f"{REMOTE_VARIABLE}={remote}: that Spark serves {root}, not {layout.root}; end it, or set {ROOT_VARIABLE} alike"
        )
    return _set(session, {"spark.sql.session.timeZone": "UTC"} | dict(conf))


def _embed(layout: Layout, master: str, conf: Mapping[str, str]) -> SparkSession:
    require_java()
    layout.logs.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault(PYTHON_VARIABLE, sys.executable)
    # By the same path as the warm Spark: the archive of classes wants that.
    os.environ["SPARK_HOME"] = str(spark_folder())
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master(master).appName("invoice_platform")
    settings = spark_settings(layout, *mapped_classes()) | SHORT_LIVED
    if not master.startswith("local"):
        settings["spark.jars"] = ",".join(str(path) for path in jar_paths())  # for the executors of a cluster
    for name, value in (settings | dict(conf)).items():
        builder = builder.config(name, value)
    try:
        with _sigint_kept():
            return builder.getOrCreate()
    except Exception as error:
        raise PlatformError(
            f"an embedded Spark could not start with master={master!r} ({first_line(error)}): see {layout.spark_log} and "
            f"the settings in {CONF_VARIABLE}"
        ) from None


@contextmanager
def _sigint_kept() -> Iterator[None]:
    """Give SIGINT back to whom it belonged (Dagster's cancellation): PySpark takes it when a session starts."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can have handlers, so PySpark sets none either
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
