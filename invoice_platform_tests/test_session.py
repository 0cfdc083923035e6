"""Sessions: which one is opened, with what settings, and what a person is told when none can be."""

from __future__ import annotations

import logging
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from py4j.java_gateway import GatewayClient
from py4j.protocol import Py4JError, Py4JNetworkError

from invoice_platform import warm_spark
from invoice_platform.broker import free_port
from invoice_platform.errors import PlatformError
from invoice_platform.jars import class_archive, require_java
from invoice_platform.resources import Lakehouse, SparkResource
from invoice_platform.server import require_free_port
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.session import WarmServer, extra_settings, open_session, spark_settings
from invoice_platform.warm_spark import KEPT_SECONDS, LOOK_SECONDS, forget_queries_soon, make_states_soon
from invoice_platform_tests.conftest import wait_until

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.at(tmp_path)


@pytest.fixture
def listener() -> Iterator[int]:
    """A port on which something that is no Spark listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_the_session_has_the_settings_for_small_runs(spark: SparkSession) -> None:
    wanted = {
        "spark.sql.session.timeZone": "UTC",
        "spark.ui.enabled": "false",
        "spark.databricks.delta.snapshotPartitions": "1",
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": "2",
        "spark.sql.sources.parallelPartitionDiscovery.threshold": "1000",
        "spark.sql.files.openCostInBytes": "16384",
    }
    assert {name: spark.conf.get(name) for name in wanted} == wanted


def test_java_takes_its_classes_from_the_archive_that_set_up_made(spark: SparkSession) -> None:
    """The same Java with the same class path, told to fail where the archive does not fit."""
    jvm = cast("Any", spark)._jvm.java.lang
    options = list(jvm.management.ManagementFactory.getRuntimeMXBean().getInputArguments())
    mapped = f"-XX:SharedArchiveFile={class_archive()}"
    assert mapped in options
    java = [
        str(require_java()),
        mapped,
        "-Xshare:on",
        "-Xlog:class+load",
        "-cp",
        jvm.System.getProperty("java.class.path"),
    ]
    program = ["org.apache.spark.deploy.SparkSubmit", "--version"]
    loaded = subprocess.run([*java, *program], capture_output=True, text=True, check=False).stdout
    assert "org.apache.spark.deploy.SparkSubmit source: shared objects file (top)" in loaded
    assert "io.delta.sql.DeltaSparkSessionExtension" in class_archive().read_bytes().decode("latin-1").replace("/", ".")


def test_sigint_is_given_back_to_whom_it_belonged(spark: SparkSession) -> None:  # noqa: ARG001
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "pytest's own, not PySpark's"


def test_a_session_that_is_there_is_used_and_left_alone(spark: SparkSession, layout: Layout) -> None:
    resource = SparkResource(lakehouse=Lakehouse(root=str(layout.root)), conf={"spark.sql.shuffle.partitions": "3"})
    before = spark.conf.get("spark.sql.shuffle.partitions")
    try:
        assert resource.session() is spark
        assert spark.conf.get("spark.sql.shuffle.partitions") == "3"
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", before or "2")
    resource.teardown_after_execution(None)  # type: ignore[arg-type]
    assert spark.range(3).count() == 3


def test_another_thread_finds_the_same_session_and_does_not_own_it(spark: SparkSession, layout: Layout) -> None:
    found: list[tuple[SparkSession, bool]] = []
    thread = threading.Thread(target=lambda: found.append(open_session(layout)))
    thread.start()
    thread.join()
    assert found == [(spark, False)]


def test_a_static_setting_in_a_running_spark_is_refused_with_the_remedy(spark: SparkSession, layout: Layout) -> None:  # noqa: ARG001
    with pytest.raises(PlatformError, match=r"spark.sql.extensions cannot be changed .*INVOICE_PLATFORM_SPARK_CONF"):
        open_session(layout, conf={"spark.sql.extensions": "x"})


def test_a_static_setting_that_spark_was_started_with_is_none_to_be_changed(
    spark: SparkSession, layout: Layout
) -> None:
    """As `INVOICE_PLATFORM_SPARK_CONF` is there for a warm Spark and for each of its clients."""
    session, owned = open_session(layout, conf={"spark.driver.memory": spark.conf.get("spark.driver.memory") or ""})
    assert (session, owned) == (spark, False)


def test_settings_from_the_environment_win_and_are_checked(monkeypatch: pytest.MonkeyPatch, layout: Layout) -> None:
    monkeypatch.setenv("INVOICE_PLATFORM_SPARK_CONF", "spark.ui.enabled=true 'spark.app.name=two words'")
    assert (spark_settings(layout) | extra_settings())["spark.ui.enabled"] == "true"
    assert extra_settings()["spark.app.name"] == "two words"
    monkeypatch.setenv("INVOICE_PLATFORM_SPARK_CONF", "ui.enabled=true")
    with pytest.raises(PlatformError, match=r"INVOICE_PLATFORM_SPARK_CONF: 'ui.enabled=true' is not spark"):
        extra_settings()
    with pytest.raises(PlatformError, match=r"'ui\.enabled' is not a Spark setting"):
        open_session(layout, conf={"ui.enabled": "true"})


@pytest.mark.parametrize(
    ("remote", "message"),
    [
        ("http://localhost:1", r"SPARK_REMOTE=http://localhost:1: give sc://host:port"),
        ("sc://localhost:1", r"no Spark answers there; start one \(`make up` .*unset SPARK_REMOTE"),
    ],
)
def test_a_server_that_is_not_there_is_said_at_once(layout: Layout, remote: str, message: str) -> None:
    with pytest.raises(PlatformError, match=message):
        open_session(layout, remote=remote)


def test_what_a_dead_server_left_is_passed_over(layout: Layout, listener: int) -> None:
    assert WarmServer.of(layout) is None
    WarmServer(pid=2**22 + 1, port=listener, token="t", started_at="").write(layout)
    assert WarmServer.of(layout) is None
    assert layout.server_file.stat().st_mode & 0o077 == 0, "it holds a token"
    layout.server_file.write_text("{broken")
    assert WarmServer.of(layout) is None


def test_a_port_in_use_names_the_option(listener: int) -> None:
    with pytest.raises(PlatformError, match=rf"port {listener} is in use: .* --ui-port"):
        require_free_port(listener, "--ui-port")


def test_a_root_that_is_a_url_is_refused() -> None:
    with pytest.raises(PlatformError, match="only a local folder works so far"):
        Layout.at("s3a://bucket/root")


def test_the_connect_server_forgets_a_query_a_minute_after_its_end_not_an_hour(spark: SparkSession) -> None:
    """As the warm Spark does before it serves, in the Java of the tests: Spark's own field, by its name."""
    jvm = cast("Any", spark)._jvm
    service = getattr(jvm.org.apache.spark.sql.connect.service, "SparkConnectService$")
    queries = getattr(service, "MODULE$").streamingSessionManager()
    forget_queries_soon(jvm)
    for name, seconds in {"stoppedQueryInactivityTimeout": KEPT_SECONDS, "sessionPollingPeriod": LOOK_SECONDS}.items():
        field = queries.getClass().getDeclaredField(name)
        field.setAccessible(True)
        assert field.get(queries).toSeconds() == seconds
    assert KEPT_SECONDS == 60


class Asked(threading.Event):
    """Counts how often somebody waited for it."""

    times = 0

    def wait(self, timeout: float | None = None) -> bool:
        self.times += 1
        return super().wait(timeout)


def test_the_warm_spark_has_the_state_of_a_new_version_before_anybody_asks(
    spark: SparkSession, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    session: Any = spark
    jvm, java_session, stop = session._jvm, session._jsparkSession, Asked()
    path = layout.table("numbers")

    def state_made(version: int) -> bool:
        snapshot = jvm.org.apache.spark.sql.delta.DeltaLog.forTable(java_session, str(path)).unsafeVolatileSnapshot()
        return snapshot.version() == version and snapshot._computedStateTriggered()

    def until_made(version: int) -> None:
        wait_until(lambda: state_made(version), 20, f"the state of version {version}")

    def until_looked() -> None:
        """Until a whole look, begun after this was called, is over."""
        before = stop.times
        wait_until(lambda: stop.times >= before + 2, 20, "a whole look")

    monkeypatch.setattr(warm_spark, "TABLES_LOOK_SECONDS", 0.0)
    spark.range(3).write.format("delta").save(str(path))
    looking = threading.Thread(target=make_states_soon, args=(jvm, java_session, layout, stop))
    looking.start()
    try:
        until_looked()
        assert not state_made(0), "what was there before is nobody's next micro-batch yet"
        for version in (1, 2):
            spark.range(3).write.format("delta").mode("append").save(str(path))
            until_made(version)
        shutil.rmtree(path)  # as `reset` does
        spark.range(3).write.format("delta").save(str(path))
        until_looked()
        spark.range(3).write.format("delta").mode("append").save(str(path))
        until_made(1)
    finally:
        stop.set()
        looking.join()


@pytest.mark.usefixtures("spark")
def test_a_java_that_is_gone_is_told_of_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """As when a run that is told to end has ended its Spark, and Python then forgets an object of it."""
    handler = logging.StreamHandler()
    logging.getLogger().addHandler(handler)
    try:
        gone = GatewayClient(port=free_port())
        with pytest.raises(Py4JError):
            gone.send_command("c\n")
        try:
            raise Py4JNetworkError("Answer from Java side is empty")
        except Py4JNetworkError:
            logging.exception("Exception while sending command.")
    finally:
        logging.getLogger().removeHandler(handler)
    said = capsys.readouterr().err
    assert "Spark's Java does not answer: Answer from Java side is empty" in said
    assert "Traceback" not in said
