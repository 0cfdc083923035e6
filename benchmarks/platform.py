"""The platform as a contestant: a root with a warm Spark, and runs of its own jobs on it, through its public functions."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from benchmarks.data import rows
from benchmarks.timing import seconds
from invoice_platform.assets.factory import STREAMS
from invoice_platform.broker import free_port
from invoice_platform.definitions import defs
from invoice_platform.orchestrate import instance, prepare
from invoice_platform.server import warm_server
from invoice_platform.streaming.layout import ROOT_VARIABLE, Layout
from invoice_platform.streaming.reset import reset
from invoice_platform.streaming.session import CONF_VARIABLE, REMOTE_VARIABLE, TOKEN_VARIABLE, WarmServer, open_session

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

FLAT = ("invoices", "invoice_line_items", "quarantined_invoices")
"""What stands between a landed file and the flat table: bronze, the flat table, quarantine. Their checks go with them."""
OWN = (ROOT_VARIABLE, CONF_VARIABLE, REMOTE_VARIABLE, TOKEN_VARIABLE, "DAGSTER_HOME", "KAFKA_BOOTSTRAP_SERVERS")


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """This process's environment with nothing of a person's own platform in it, but `values`."""
    before = {name: os.environ.pop(name, None) for name in {*OWN, *values}}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


class Platform:
    """A root with a warm Spark, used by this process."""

    def __init__(
        self,
        layout: Layout,
        server: WarmServer,
        spark: SparkSession,
        history: dg.DagsterInstance,
        scratch: Path,
        gc_log: Path,
    ) -> None:
        self.layout = layout
        self.server = server
        self.spark = spark
        self.history = history
        self.scratch = scratch
        """Spark's folder for what it shuffles and spills."""
        self.gc_log = gc_log
        self._landed = 0

    def put(self, files: Iterable[Path]) -> str:
        """Land files as fast as can be, by links, under names that no file had before; what these begin with."""
        self._landed += 1
        prefix = f"put{self._landed}-"
        for file in files:
            os.link(file, self.layout.landing("invoices") / f"{prefix}{file.name}")
        return prefix

    def run(self, job: str = "ingest_invoices", assets: Sequence[str] = (), **settings: Any) -> None:
        """Run a job here and now, as `invoice-platform run` does, or a part of it with the checks of that part.

        Parameters
        ----------
        **settings
            Of the stream of bronze.

        Raises
        ------
        RuntimeError
            When the job fails.
        """
        chosen: Any = [dg.AssetKey(name) for name in assets] or None
        result = defs.resolve_job_def(job).execute_in_process(
            instance=self.history,
            raise_on_error=False,
            asset_selection=chosen,
            run_config={
                "loggers": {"console": {}},  # not Dagster's own, which prints every event
                "ops": {"invoices": {"config": settings}} if settings else {},
            },
        )
        if not result.success:
            raise RuntimeError(f"{job}: {_why(result)}")

    def ingest(self, **settings: Any) -> None:
        """From landing to the flat table, with quarantine and all their checks."""
        self.run(assets=FLAT, **settings)

    def ingest_one(self, file: Path) -> float:
        """Land one file and ingest it; the seconds of the latter."""
        self.put([file])
        return seconds(self.ingest)

    def reset(self) -> None:
        """Forget everything that was made."""
        reset(self.layout, STREAMS, run="benchmark")

    def rows(self, table: str) -> int:
        """Rows of a table by its Delta log."""
        return rows(self.layout.table(table))


def _why(result: dg.ExecuteInProcessResult) -> str:
    """What failed, and what the checks that did not pass say."""
    said = [event.message or "" for event in result.all_events if event.is_failure]
    for event in result.all_events:
        if event.event_type_value == "ASSET_CHECK_EVALUATION" and not event.asset_check_evaluation_data.passed:
            check = event.asset_check_evaluation_data
            said.append(f"{check.check_name}: {check.description}")
    return "; ".join(said)


@contextmanager
def warm_platform(root: Path) -> Iterator[Platform]:
    """A new root with a warm Spark of its own, which ends with the block."""
    layout = Layout.at(root)
    scratch, gc_log = root.with_name(f"{root.name}-scratch"), str(root.with_name(f"{root.name}-gc-%p.log"))
    scratch.mkdir(parents=True)
    variables = {
        ROOT_VARIABLE: str(root),
        CONF_VARIABLE: f"spark.local.dir={scratch}",
        # Read by every JVM, each with a log of its own; nothing else, so that what the platform itself sets stays as it is.
        "JAVA_TOOL_OPTIONS": f"{os.environ.get('JAVA_TOOL_OPTIONS', '')} -Xlog:gc:file={gc_log}".strip(),
    }
    with environment(**variables):
        prepare(layout)
        with warm_server(layout, free_port()) as server, instance(layout) as history:
            spark, owned = open_session(layout)
            try:
                yield Platform(layout, server, spark, history, scratch, Path(gc_log.replace("%p", str(server.pid))))
            finally:
                if owned:
                    spark.stop()


class SharedPlatform:
    """One warm Spark for several blocks; ended by `close`.

    Parameters
    ----------
    emptied : bool
        Whether a block finds nothing of those before. To make all tables anew takes as long as five small runs.
    """

    def __init__(self, *, emptied: bool) -> None:
        self._emptied = emptied
        self._held = ExitStack()
        self._platform: Platform | None = None

    @contextmanager
    def __call__(self, root: Path) -> Iterator[Platform]:
        """The shared one; at `root` when it is the first to be asked for."""
        if self._platform is None:
            self._platform = self._held.enter_context(warm_platform(root))
        if self._emptied:
            self._platform.reset()
        with environment(**{ROOT_VARIABLE: str(self._platform.layout.root)}):
            yield self._platform

    def close(self) -> None:
        """End it."""
        self._held.close()
