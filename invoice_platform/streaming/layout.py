"""Where things are: every folder under the platform's root, by name, in one place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from invoice_platform.errors import PlatformError

ROOT_VARIABLE = "INVOICE_PLATFORM_ROOT"
UNUSABLE = "*?[]{}\\;%"
"""What no root may have in its path: Spark reads patterns in paths, Derby parts its settings at `;`, and Dagster takes `%20` for
a blank and would keep its history in another folder."""
SOURCE_STATE = "source.json"


def default_root() -> str:
    """The root when nothing is set: `data/` of the project, or of the working folder when installed without it."""
    project = Path(__file__).resolve().parents[2]
    return str((project if (project / "pyproject.toml").is_file() else Path.cwd()) / "data")


def root_from_environment() -> str:
    """`INVOICE_PLATFORM_ROOT`, or the default root."""
    return os.environ.get(ROOT_VARIABLE) or default_root()


@dataclass(frozen=True)
class Layout:
    """The folders under one root.

    Parameters
    ----------
    root : pathlib.Path
        An absolute local folder; it need not be there yet.
    """

    root: Path

    @classmethod
    def at(cls, root: str | Path | None = None) -> Layout:
        """The layout at `root`, or where the environment says.

        Raises
        ------
        PlatformError
            When the root is a URL: only local folders work so far. When its path holds what Spark, its metastore or
            Dagster would read as more than a name.
        """
        text = str(root or root_from_environment())
        if "://" in text:
            raise PlatformError(f"{ROOT_VARIABLE}={text}: only a local folder works so far; give a path")
        root = Path(text).expanduser().resolve()
        if unusable := next((c for c in str(root) if c in UNUSABLE or not c.isprintable()), None):
            raise PlatformError(f"{ROOT_VARIABLE}={str(root)!r}: {unusable!r} cannot be in it; give another folder")
        return cls(root)

    def landing(self, inbox: str) -> Path:
        """Where producers drop files of this kind."""
        return self.root / "landing" / inbox

    def accepted(self, stream: str) -> Path:
        """The archive of what a stream was given: `<segment>/<file>` and the ledger."""
        return self.root / "accepted" / stream

    @property
    def sent_again(self) -> Path:
        """Which quarantined records were sent again: goes with the archive in which they have their places."""
        return self.accepted("invoices") / "sent_again.sqlite"

    @property
    def lakehouse(self) -> Path:
        return self.root / "lakehouse"

    def table(self, name: str) -> Path:
        """A Delta table's folder."""
        return self.lakehouse / name

    @property
    def exports(self) -> Path:
        """Files that streams write for others, a folder a stream."""
        return self.root / "exports"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def checkpoint(self, stream: str, segment: int) -> Path:
        """One checkpoint of a stream."""
        return self.checkpoints / stream / segment_name(segment)

    def source_state(self, stream: str) -> Path:
        """Which checkpoint a stream that is fed by tables or topics is in, and how far."""
        return self.checkpoints / stream / SOURCE_STATE

    @property
    def staging(self) -> Path:
        """Where rebuilds make new tables, out of readers' sight: `<id>.json`, the plan of one, and `<id>/`, what it made."""
        return self.lakehouse / ".rebuild"

    @property
    def reset_note(self) -> Path:
        """Left by a reset that was interrupted."""
        return self.root / ".reset.json"

    def repair_note(self, stream: str) -> Path:
        """What a repair that was begun has still to do."""
        return self.checkpoints / stream / "repair.json"

    @property
    def set_aside(self) -> Path:
        """Where a repair puts what it replaces, in a folder a repair; nothing here is read again."""
        return self.root / "set-aside"

    @property
    def checked(self) -> Path:
        """Up to when the checks have looked at rows."""
        return self.checkpoints / "checked.json"

    @property
    def key_indexes(self) -> Path:
        """Indexes of tables' keys, a folder a table; they can be deleted at any time."""
        return self.root / "key_index"

    @property
    def dagster_home(self) -> Path:
        return self.root / "dagster"

    @property
    def metastore(self) -> Path:
        """The warm server's Hive metastore (embedded Derby)."""
        return self.root / "metastore"

    @property
    def known_tables(self) -> Path:
        """An empty file for each table that the warm server's catalog was told of since it started."""
        return self.metastore / "known"

    def run_lock(self, run_id: str) -> Path:
        """Held by a run as long as its process lives."""
        return self.root / "runs" / f"{run_id}.lock"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def spark_log(self) -> Path:
        """Spark's own log, stack traces and all."""
        return self.logs / "spark.log"

    @property
    def kafka(self) -> Path:
        """What this root's own Kafka broker keeps."""
        return self.root / "kafka"

    @property
    def kafka_file(self) -> Path:
        """Where this root's own Kafka broker listens, as long as it is up."""
        return self.root / "kafka.json"

    @property
    def server_file(self) -> Path:
        """Who serves this root, readable by its owner only: it holds the token."""
        return self.root / "spark-connect.json"


def segment_name(segment: int) -> str:
    """The folder name of a segment: six digits, so that names sort as numbers do."""
    return f"{segment:06d}"
