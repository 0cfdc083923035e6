"""What a person starts: the command line, Dagster's own command, and `up` with its warm Spark, sensors and UI, as processes.

One root goes through all of it: a job by Dagster's command with an embedded Spark, then `up`, then the command line again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil
import pytest

from invoice_platform.broker import free_port
from invoice_platform.generate import write_files
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.tables import facts
from invoice_platform_tests.conftest import invoice, wait_until

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "invoice_platform.cli"]


@dataclass
class Root:
    """A platform root and the commands on it."""

    path: Path

    @property
    def environment(self) -> dict[str, str]:
        # The project's folder must not be needed on the path: the package is installed.
        return {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"INVOICE_PLATFORM_ROOT": str(self.path)}

    def command(self, *words: str, ok: bool = True, seconds: float = 240) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*COMMAND, *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            cwd=self.path.parent,
        )
        assert (done.returncode == 0) is ok, done.stderr
        return done

    def tables(self) -> dict[str, Any]:
        return json.loads(self.command("status", "--format", "json").stdout)["tables"]

    def rows(self, table: str) -> int:
        found = facts(Layout.at(self.path).table(table))
        return found.rows if found else 0

    def sql(self, query: str) -> list[str]:
        return self.command("sql", query, "--format", "csv").stdout.splitlines()[1:]

    def land(self, name: str, *documents: dict[str, Any]) -> None:
        file = self.path.parent / name
        file.write_text("\n".join(json.dumps(d) for d in documents))
        self.command("land", str(file))


def processes_of(root: Root) -> list[psutil.Process]:
    """Every process whose environment or command names this root: what `up` started and did not end."""

    def is_of_root(process: psutil.Process) -> bool:
        try:
            return process.status() != psutil.STATUS_ZOMBIE and (
                process.environ().get("INVOICE_PLATFORM_ROOT") == str(root.path)
                or any(str(root.path) in word for word in process.cmdline())
            )
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False

    return [p for p in psutil.process_iter() if is_of_root(p)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Root:
    """A root that one job of Dagster's own command, with an embedded Spark, has filled: 1 file, 40 invoices."""
    made = Root(tmp_path_factory.mktemp("up") / "root")
    (file,) = write_files(made.path.parent, files=1, invoices_per_file=40, seed=11)
    made.command("land", str(file))
    execute = [
        sys.executable,
        "-m",
        "dagster",
        "job",
        "execute",
        "-m",
        "invoice_platform.definitions",
        "-j",
        "ingest_invoices",
    ]
    done = subprocess.run(
        execute,
        env=made.environment | {"DAGSTER_HOME": str(made.path.parent)},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return made


@dataclass
class Up:
    """`up`, running."""

    process: subprocess.Popen[str]
    url: str

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """Dagster's GraphQL."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urlopen(request, timeout=30) as answer:
            return json.load(answer)["data"]

    def runs(self, job: str) -> list[dict[str, Any]]:
        answer = self.ask(
            "query($job: String!) { runsOrError(filter: {pipelineName: $job}) { ... on Runs { results { runId status } } } }",
            job=job,
        )
        return answer["runsOrError"]["results"]


@contextmanager
def run_up(root: Root) -> Iterator[Up]:
    ports = ["--ui-port", str(free_port()), "--spark-port", str(free_port())]
    log = (root.path.parent / "up.log").open("a+")
    process = subprocess.Popen(
        [*COMMAND, "up", *ports],
        env=root.environment,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        cwd=root.path.parent,
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()  # printed when all is up; nothing when it failed
        assert url.startswith("http://127.0.0.1:"), (root.path.parent / "up.log").read_text()
        yield Up(process, url)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(90)
        process.stdout.close()
        log.close()


@pytest.fixture(scope="module")
def up(root: Root) -> Iterator[Up]:
    with run_up(root) as running:
        yield running


def test_dagsters_own_command_fills_the_tables_with_an_embedded_spark(root: Root) -> None:
    assert root.rows("invoices") == 40
    assert root.rows("invoice_line_items") > 40


def test_tables_made_before_are_known_by_name_to_every_client_of_the_warm_spark(root: Root, up: Up) -> None:  # noqa: ARG001
    assert (root.path / "metastore" / "known" / "invoices").exists(), "no run has to tell it again"
    assert root.sql("SELECT count(*) FROM invoices") == ["40"]
    assert "invoice_line_items" in "".join(root.sql("SHOW TABLES"))
    isolated = "spark.sql.artifact.isolation.enabled"
    assert root.sql(f"SET {isolated}") == [f"{isolated},false"], "what is compiled for one session serves the next"


def test_a_landed_file_is_in_the_tables_without_anyone_touching_anything(root: Root, up: Up) -> None:
    before = root.rows("invoice_line_items")
    root.land("by-sensor.json", invoice("90001"), invoice("90002"))
    wait_until(lambda: root.rows("invoice_line_items") == before + 2, 180, "the landed file")
    assert root.sql("SELECT InvoiceNumber FROM invoices WHERE length(InvoiceNumber) = 5 ORDER BY 1") == [
        "90001",
        "90002",
    ]
    wait_until(lambda: all(r["status"] == "SUCCESS" for r in up.runs("ingest_invoices")), 240, "the run's end")
    assert len(up.runs("ingest_invoices")) == 1, "one run was asked for"


def test_the_warm_spark_listens_on_loopback_and_wants_its_token(root: Root, up: Up) -> None:  # noqa: ARG001
    server = json.loads((root.path / "spark-connect.json").read_text())
    listening = [
        c.laddr.ip
        for p in processes_of(root)
        for c in p.net_connections(kind="tcp")
        if c.status == psutil.CONN_LISTEN and c.laddr
    ]
    assert listening
    assert {ip.removeprefix("::ffff:") for ip in listening} <= {"127.0.0.1", "::1"}
    environment = root.environment | {
        "SPARK_REMOTE": f"sc://localhost:{server['port']}",
        "SPARK_CONNECT_AUTHENTICATE_TOKEN": "wrong",
    }
    refused = subprocess.run(
        [*COMMAND, "sql", "SELECT 1"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert refused.returncode == 1
    assert "the Spark there refused" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr


def test_a_second_warm_spark_for_the_root_is_refused_in_one_line(root: Root, up: Up) -> None:  # noqa: ARG001
    refused = root.command("serve", "--spark-port", str(free_port()), ok=False)
    assert "a warm Spark is up for" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_warm_spark_of_another_root_is_refused(root: Root, up: Up, tmp_path: Path) -> None:  # noqa: ARG001
    server = json.loads((root.path / "spark-connect.json").read_text())
    other = root.environment | {
        "INVOICE_PLATFORM_ROOT": str(tmp_path),
        "SPARK_REMOTE": f"sc://localhost:{server['port']}",
        "SPARK_CONNECT_AUTHENTICATE_TOKEN": server["token"],
    }
    refused = subprocess.run([*COMMAND, "sql", "SELECT 1"], env=other, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 1
    assert f"that Spark serves {root.path}, not {tmp_path}" in refused.stderr


def test_a_stale_server_of_another_version_is_refused_with_the_remedy(root: Root, up: Up) -> None:  # noqa: ARG001
    """The client is made to believe that it is another version: two of them cannot be installed side by side."""
    code = (
        "import sys, pyspark; pyspark.__version__ = '4.9.9'; sys.argv[1:] = ['sql', 'SELECT 1']; "
        "import invoice_platform.cli as cli; cli.main()"
    )
    refused = subprocess.run(
        [sys.executable, "-c", code], env=root.environment, capture_output=True, text=True, timeout=120
    )
    assert refused.returncode == 1
    assert "a stale server, Spark 4.2.0 where this platform is 4.9.9; end it and start it anew" in refused.stderr


def test_jobs_of_the_command_line_use_the_warm_spark_and_the_same_history(root: Root, up: Up) -> None:
    before = root.rows("invoices")
    assert "rebuild_invoices" in root.command("run", "rebuild_invoices").stdout
    assert root.rows("invoices") == before
    (run,) = up.runs("rebuild_invoices")
    assert run["status"] == "SUCCESS"


def test_sql_prints_tables_json_and_csv_and_errors_in_one_line(root: Root, up: Up) -> None:  # noqa: ARG001
    query = (
        "SELECT 1 AS a, CAST(2.50 AS DECIMAL(4,2)) AS a, CAST(NULL AS INT) AS c, TIMESTAMP '2024-03-01 12:00:00' AS d"
    )
    assert root.command("sql", query, "--format", "csv").stdout == "a,a,c,d\n1,2.50,,2024-03-01 12:00:00\n"
    shown = root.command("sql", "SELECT 1 AS a, CAST(NULL AS INT) AS c", "--format", "json").stdout
    assert json.loads(shown) == [{"a": 1, "c": None}]
    assert "│ 1 " in root.command("sql", "SELECT 1 AS a").stdout
    refused = root.command("sql", "SELECT nothing FROM nowhere", ok=False).stderr
    assert "nowhere" in refused
    assert len(refused.strip().splitlines()) == 1, refused


def test_a_continuous_run_admits_what_lands_and_ends_clean_when_it_is_cancelled(root: Root, up: Up) -> None:
    (workspace,) = up.ask(
        "{ repositoriesOrError { ... on RepositoryConnection { nodes { name location { name } } } } }"
    )["repositoriesOrError"]["nodes"]
    selector = {
        "repositoryName": workspace["name"],
        "repositoryLocationName": workspace["location"]["name"],
        "pipelineName": "stream_invoices",
    }
    launched = up.ask(
        "mutation($p: ExecutionParams!) { launchRun(executionParams: $p) { __typename ... on LaunchRunSuccess { run { runId } } "
        "... on PythonError { message } } }",
        p={"selector": selector, "runConfigData": {}, "mode": "default"},
    )["launchRun"]
    run_id = launched["run"]["runId"]
    before = root.rows("invoice_line_items")
    wait_until(lambda: up.runs("stream_invoices")[0]["status"] == "STARTED", 120, "the run's start")
    root.land("while-streaming.json", invoice("91001"))
    wait_until(lambda: root.rows("invoice_line_items") == before + 1, 120, "the landed file")
    up.ask(
        "mutation($r: String!) { terminateRun(runId: $r) { __typename ... on TerminateRunSuccess { run { runId } } } }",
        r=run_id,
    )
    status = wait_until(
        lambda: (s := up.runs("stream_invoices")[0]["status"]) in ("CANCELED", "FAILURE", "SUCCESS") and s,
        60,
        "the run's end",
    )
    assert status == "CANCELED"
    root.land("after.json", invoice("91002"))
    wait_until(lambda: root.rows("invoice_line_items") == before + 2, 180, "the file landed after")
    assert root.sql(
        "SELECT count(*), count(DISTINCT InvoiceNumber) FROM invoices WHERE InvoiceNumber IN ('91001', '91002')"
    ) == ["2,2"]


def test_one_interrupt_ends_everything_and_leaves_no_process(root: Root, up: Up) -> None:
    assert len(processes_of(root)) > 3
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(90) == 0
    assert processes_of(root) == []
    assert not (root.path / "spark-connect.json").exists()


def test_without_the_warm_spark_the_same_tables_are_there(root: Root, up: Up) -> None:  # noqa: ARG001
    assert root.sql("SELECT count(*) FROM invoices") == [str(root.rows("invoices"))]


def test_the_demo_shows_what_came_out_and_says_the_second_time_that_nothing_is_new(tmp_path: Path) -> None:
    demo = Root(tmp_path / "root")
    first = demo.command("demo")
    assert "│ files admitted   │        3 │     3 │" in first.stdout
    assert "│ line items       │      730 │       │" in first.stdout
    assert "quarantined_invoices: 5 rows" in first.stdout
    assert "Open the UI: `make up`, then http://127.0.0.1:3000" in first.stdout
    assert "Traceback" not in first.stderr
    second = demo.command("demo")
    assert "Nothing is new: all 6 sample files were delivered before" in second.stdout
    assert demo.rows("invoice_line_items") == 730
