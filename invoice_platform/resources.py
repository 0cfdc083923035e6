"""What Dagster hands to assets, checks and sensors: the Spark session, the tables' and checkpoints' places, landing."""

from typing import Any

import dagster as dg
from pydantic import Field, PrivateAttr

from invoice_platform.streaming.landing import LandingFolder
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.lock import hold_run, let_go_of_run
from invoice_platform.streaming.sources import LandedFiles
from invoice_platform.streaming.stream import Stream


class Lakehouse(dg.ConfigurableResource):
    """Where tables and checkpoints are."""

    root: str | None = Field(
        default=None,
        description="The platform's root, a local folder; INVOICE_PLATFORM_ROOT or the project's data/ when not given.",
    )

    _held: Any = PrivateAttr(default=None)

    @property
    def layout(self) -> Layout:
        """Every folder under the root."""
        return Layout.at(self.root)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Show that the run lives, so that a sensor can tell a run that goes from one whose process died."""
        if context.run is not None:  # a sensor or a schedule has none
            self._held = hold_run(self.layout, context.run.run_id)

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:  # noqa: ARG002
        """The run's process is done with it."""
        if self._held is not None:
            let_go_of_run(self._held)
            self._held = None


class LandingZone(dg.ConfigurableResource):
    """Where producers drop files, and the archive behind it. Opens no Spark."""

    lakehouse: dg.ResourceDependency[Lakehouse]

    def of(self, stream: Stream) -> LandingFolder:
        """The inbox and archive of a stream that reads landed files."""
        if not isinstance(stream.source, LandedFiles):
            raise TypeError(f"stream {stream.name!r} reads no landed files")
        return stream.source.landing(self.lakehouse.layout, stream.name)


class SparkResource(dg.ConfigurableResource):
    """The Spark session: embedded in the run's process, or a client of a warm Spark Connect server.

    Opened when first asked for, so that a run with nothing new costs no session, and its log is in the run's own.
    Stopped by what started it: a session that was there before is left alone.
    """

    lakehouse: dg.ResourceDependency[Lakehouse]
    remote: str | None = Field(
        default=None,
        description="sc://host:port of a warm Spark; SPARK_REMOTE, then this root's own server when up, when not given.",
    )
    master: str | None = Field(
        default=None, description="Spark master of an embedded session; local[*] when not given."
    )
    conf: dict[str, str] = Field(
        default={},
        description="Any spark.* settings; they win over the platform's and over INVOICE_PLATFORM_SPARK_CONF.",
    )
    _session: Any = PrivateAttr(default=None)
    _owned: bool = PrivateAttr(default=False)

    def session(self) -> Any:
        """The `SparkSession`, opened at the first call (pyspark is imported no sooner).

        Raises
        ------
        PlatformError
            When it cannot be opened, with the setting and the remedy.
        """
        if self._session is None:
            from invoice_platform.streaming.session import open_session

            self._session, self._owned = open_session(
                self.lakehouse.layout, remote=self.remote, master=self.master, conf=self.conf
            )
        return self._session

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:  # noqa: ARG002
        """Stop the session if this resource started it."""
        session, self._session = self._session, None
        if session is not None and self._owned:
            session.stop()
