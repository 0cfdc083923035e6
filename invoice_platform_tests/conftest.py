"""What the tests share: one Spark session for the whole run, and a platform root of its own for each test."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from invoice_platform.assets.bronze import INVOICES_STREAM
from invoice_platform.assets.silver import LINE_ITEMS_STREAM, QUARANTINE_STREAM
from invoice_platform.definitions import defs
from invoice_platform.resources import Lakehouse, LandingZone, SparkResource
from invoice_platform.streaming.landing import land
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.session import SHORT_LIVED, open_session

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

INVOICE_STREAMS = (INVOICES_STREAM, LINE_ITEMS_STREAM, QUARANTINE_STREAM)

# Nothing of the person's own setting, warm Spark or history may reach a test.
OWN = ("INVOICE_PLATFORM_ROOT", "INVOICE_PLATFORM_SPARK_CONF", "SPARK_REMOTE", "DAGSTER_HOME", "POSTGRES_URL")
for name in (*OWN, *(name for name in os.environ if name.startswith("KAFKA_"))):
    os.environ.pop(name, None)


@pytest.fixture(scope="session")
def session_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of the one session: its log and its warehouse."""
    return tmp_path_factory.mktemp("spark")


@pytest.fixture(scope="session")
def spark(session_root: Path) -> Iterator[SparkSession]:
    """The one Spark session of the run, as the platform opens it; jobs in tests find it and leave it alone."""
    session, owned = open_session(
        Layout.at(session_root),
        master="local[2]",
        conf=dict.fromkeys(SHORT_LIVED, ""),  # it lives for the whole run
    )
    assert owned
    yield session
    session.stop()


class Platform:
    """A platform root of one test, and what a test does with it."""

    def __init__(self, root: Path, spark: SparkSession) -> None:
        self.layout = Layout.at(root)
        self.spark = spark
        self.instance = dg.DagsterInstance.ephemeral()
        self.sources = root / "sources"
        self.sources.mkdir(parents=True)
        for inbox in ("invoices", "text"):
            self.layout.landing(inbox).mkdir(parents=True)

    def open(self) -> SparkSession:
        """The session, as a run asks for it."""
        return self.spark

    @property
    def resources(self) -> dict[str, Any]:
        lakehouse = Lakehouse(root=str(self.layout.root))
        return {
            "lakehouse": lakehouse,
            "landing": LandingZone(lakehouse=lakehouse),
            "spark": SparkResource(lakehouse=lakehouse),
        }

    def land(self, name: str, *lines: str | bytes | dict[str, Any], to: str = "invoices") -> Path:
        """Land a file of these lines (documents, text or bytes), with no newline after the last."""
        return land(self.write(name, *lines), self.layout.landing(to))

    def write(self, name: str, *lines: str | bytes | dict[str, Any]) -> Path:
        """Write a file that is not landed yet."""
        raw = [
            json.dumps(x).encode() if isinstance(x, dict) else x.encode() if isinstance(x, str) else x for x in lines
        ]
        path = self.sources / name
        path.write_bytes(b"\n".join(raw))
        return path

    def run(self, job: str, config: dict[str, Any] | None = None, *, ok: bool = True) -> dg.ExecuteInProcessResult:
        """Run a job for real, on this root and its own Dagster instance."""
        definition = dg.Definitions.merge(
            _without_resources(), dg.Definitions(resources=self.resources)
        ).resolve_job_def(job)
        result = definition.execute_in_process(run_config=config or {}, instance=self.instance, raise_on_error=False)
        assert result.success is ok, [e.message for e in result.all_events if e.is_failure]
        return result

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        """Rows of a query over this root's tables; `{table}` stands for a table."""
        tables = (
            {p.name: f"delta.`{p}`" for p in self.layout.lakehouse.iterdir()} if self.layout.lakehouse.is_dir() else {}
        )
        return [tuple(row) for row in self.spark.sql(query.format_map(tables)).collect()]

    def count(self, table: str) -> int:
        """Rows of a table."""
        return self.sql(f"SELECT count(*) FROM {{{table}}}")[0][0]


def _without_resources() -> dg.Definitions:
    return dg.Definitions(
        assets=defs.assets, asset_checks=defs.asset_checks, jobs=defs.jobs, executor=defs.executor, loggers=defs.loggers
    )


@pytest.fixture
def platform(tmp_path: Path, spark: SparkSession) -> Iterator[Platform]:
    """A root of the test's own; the catalog forgets its tables afterwards, because the session is shared."""
    made = Platform(tmp_path / "root", spark)
    try:
        yield made
    finally:
        made.instance.dispose()
        for table in spark.catalog.listTables():
            if not table.isTemporary:
                spark.sql(f"DROP TABLE IF EXISTS `{table.name}`")


def item(code: str = "458", price: float = 100.0, quantity: int = 1) -> dict[str, Any]:
    """A line item as landed."""
    total = round(price * quantity, 2)
    return {
        "ItemCode": code,
        "ItemDescription": f"Item {code}",
        "ItemPrice": price,
        "ItemQty": quantity,
        "TotalValue": total,
    }


def invoice(number: str, *items: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """An invoice as landed, with one line item unless others are given; `changes` replace fields, None takes one away."""
    bought = list(items) or [item()]
    total = round(sum(i["TotalValue"] for i in bought), 2)
    document = {
        "InvoiceNumber": number,
        "CreatedTime": 1_709_294_400_000,
        "StoreID": "STR1000",
        "PosID": "POS100",
        "CashierID": "OAS100",
        "CustomerType": "PRIME",
        "CustomerCardNo": "1000000001",
        "TotalAmount": total,
        "NumberOfItems": len(bought),
        "PaymentMethod": "CARD",
        "TaxableAmount": total,
        "CGST": total * 0.025,
        "SGST": total * 0.025,
        "CESS": total * 0.00125,
        "DeliveryType": "TAKEAWAY",
        "InvoiceLineItems": bought,
    } | changes
    return {key: value for key, value in document.items() if value is not None}


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Wait for a condition to hold, looking often; its value. The time is a limit, never a measure."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"{what}: not within {seconds} s")
