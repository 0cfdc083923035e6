"""The first rows that a stream makes, for development: a query of its own that leaves no trace."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from invoice_platform.errors import PlatformError, StreamFailed
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.session import spark_exceptions
from invoice_platform.streaming.settings import RunSettings
from invoice_platform.streaming.sources import LandedFiles, Leg
from invoice_platform.streaming.stream import OpenSession, Stream
from invoice_platform.streaming.trigger import Trigger
from invoice_platform.streaming.unfinished import finish_interrupted

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

POLL_SECONDS = 0.1
PEEK_SECONDS = 120.0


@contextmanager
def peek(
    stream: Stream, spark: OpenSession, layout: Layout, rows: int, sink: Literal["memory", "console"] = "memory"
) -> Iterator[DataFrame | None]:
    """What a stream makes of the first that its source has, one file a micro-batch, until there are `rows` rows or no more.

    Its own sink, table, checkpoint and landing are left alone; of landed files it sees those admitted already, and a declared
    table that it reads is made, empty, where it is not there.

    Parameters
    ----------
    sink : str
        Spark's `memory` sink, whose rows are given to the block; or its `console` sink, which prints each micro-batch where
        Spark's own output goes, and gives nothing.

    Raises
    ------
    PlatformError
        When there is nothing to read yet.
    StreamFailed
        When the query ended with an error.
    """
    finish_interrupted(layout)
    session, view = spark(), f"peek_{stream.name}"
    # Under another name it has no state of the stream's, so a table or a topic is read from its beginning.
    name, leg = (
        (stream.name, _last_segment(stream, layout)) if isinstance(stream.source, LandedFiles) else (view, Leg(1))
    )
    with tempfile.TemporaryDirectory(prefix="peek-") as checkpoint:
        try:
            made = stream.transform(
                stream.source.read_stream(session, layout, name, leg, RunSettings(max_files_per_trigger=1))
            )
            writer = made.writeStream.format(sink).queryName(view).outputMode(stream.sink.output_mode)
            query = writer.option("checkpointLocation", checkpoint).trigger(**Trigger().arguments).start()
            try:
                deadline = time.monotonic() + PEEK_SECONDS
                while query.isActive and time.monotonic() < deadline:
                    time.sleep(POLL_SECONDS)
                    if sink == "memory" and session.table(view).limit(rows).count() >= rows:
                        break
                if not query.isActive and (error := query.exception()) is not None:
                    raise StreamFailed(stream.name, error, str(layout.spark_log))
            finally:
                query.stop()
            yield session.table(view).limit(rows) if sink == "memory" else None
        except spark_exceptions() as error:
            raise StreamFailed(stream.name, error, str(layout.spark_log)) from error
        finally:
            session.catalog.dropTempView(view)


def _last_segment(stream: Stream, layout: Layout) -> Leg:
    assert isinstance(stream.source, LandedFiles)
    segments = stream.source.landing(layout, stream.name).ledger.segments()
    if not segments:
        raise PlatformError(f"nothing was ever accepted for {stream.name!r}: land a file and run its job first")
    return Leg(segments[-1])
