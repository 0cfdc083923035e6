"""Sources and sinks over the warm Spark, where what Python does runs in the server's processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from invoice_platform_tests.postgres_server import PostgresServer
    from invoice_platform_tests.servers import KafkaServer

pytest_plugins = ["invoice_platform_tests.servers", "invoice_platform_tests.postgres_server"]


@pytest.mark.slow
def test_every_kind_of_sink_works_over_the_warm_spark_with_the_connections_of_the_run(
    tmp_path: Path, kafka: KafkaServer, postgres: PostgresServer
) -> None:
    postgres.database("over_connect")
    topic = kafka.topic()
    settings = {
        "environment": {
            "KAFKA_BOOTSTRAP_SERVERS": kafka.connection.bootstrap_servers,
            "POSTGRES_URL": postgres.url("over_connect"),
        },
        "topic": topic,
    }
    program = Path(__file__).with_name("over_connect.py")
    environment = {n: v for n, v in os.environ.items() if n not in settings["environment"]}
    ran = subprocess.run(
        [sys.executable, str(program), str(tmp_path / "root")],
        input=json.dumps(settings),
        capture_output=True,
        text=True,
        timeout=400,
        env=environment,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    shown = json.loads(ran.stdout.splitlines()[-1])
    three = ["n0", "n1", "n2"]
    assert {key: shown[key] for key in ("copied", "files", "one_of_several")} == dict.fromkeys(
        ("copied", "files", "one_of_several"), three
    )
    assert shown["sums"] == [["n0", 0], ["n1", 1], ["n2", 7]]
    assert shown["each"] == three
    # Its catalog is told of a table once: each time costs it memory for ever.
    assert shown["told"] == shown["noted"] == ["copied", "sums", "three"]
    assert shown["told_once"] == ["copied", "sums"]
    assert shown["said"].startswith("stream 'refused' failed: the till is closed: open it (full account")
    assert [record.key for record in kafka.read(topic)] == [b"n0", b"n1", b"n2"]
    assert sorted(postgres.rows("over_connect", "SELECT id, value FROM numbers")) == [("n0", 0), ("n1", 1), ("n2", 2)]
