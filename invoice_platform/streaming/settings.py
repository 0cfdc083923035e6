"""How a stream is run: when it makes a micro-batch, how much it takes in one, when a continuous run ends."""

from __future__ import annotations

from dataclasses import dataclass, field

from invoice_platform.errors import PlatformError
from invoice_platform.streaming.trigger import Trigger

MAX_FILES_PER_TRIGGER = 1_000
MAX_OFFSETS_PER_TRIGGER = 100_000
"""Kafka's source has no default of its own: the first micro-batch would be the whole topic."""

MAX_RECORD_BYTES = 4 << 20
"""A longer line of a landed file, or Kafka message, is no record: it is quarantined, with the start of its text."""
MAX_LINE_BYTES = 16 << 20
"""A file with a longer line stays in landing: Spark holds a line in memory several times over, one for each core."""


@dataclass(frozen=True)
class RunSettings:
    """How a stream is run: the same settings on every stream; each source takes those that it knows.

    Raises
    ------
    PlatformError
        When a number is not positive, or a setting does not go with the trigger.
    """

    trigger: Trigger = field(default_factory=Trigger)
    max_files_per_trigger: int = MAX_FILES_PER_TRIGGER
    run_for_seconds: float | None = None
    """When a continuous run ends; None: when it is cancelled."""
    max_bytes_per_trigger: int | None = None
    """Bytes of files a micro-batch, in place of a number of files; at least one file is read."""
    max_offsets_per_trigger: int = MAX_OFFSETS_PER_TRIGGER
    """Kafka records a micro-batch."""
    fail_on_data_loss: bool = True
    """Whether a run fails when Kafka no longer has records that the stream has not read; when not, they are counted."""

    def __post_init__(self) -> None:
        _positive("max_files_per_trigger", self.max_files_per_trigger, "files", MAX_FILES_PER_TRIGGER)
        _positive("max_offsets_per_trigger", self.max_offsets_per_trigger, "records", MAX_OFFSETS_PER_TRIGGER)
        if self.max_bytes_per_trigger is not None:
            _positive("max_bytes_per_trigger", self.max_bytes_per_trigger, "bytes", None)
        if self.run_for_seconds is not None and not self.trigger.continuous:
            raise PlatformError(
                f"run_for_seconds={self.run_for_seconds:g} with trigger={self.trigger.text!r}, which ends by itself: "
                "give an interval such as '30 seconds', or leave run_for_seconds out"
            )
        if self.run_for_seconds is not None and self.run_for_seconds <= 0:
            raise PlatformError(f"run_for_seconds={self.run_for_seconds}: give a time over 0, or leave it out")

    def file_limits(self) -> dict[str, int]:
        """The options of a reader of files: Spark's file source takes one limit or the other."""
        if self.max_bytes_per_trigger is not None:
            return {"maxBytesPerTrigger": self.max_bytes_per_trigger}
        return {"maxFilesPerTrigger": self.max_files_per_trigger}


def _positive(setting: str, value: int, unit: str, default: int | None) -> None:
    if value < 1:
        usual = f"default {default:,}" if default is not None else "or leave it out"
        raise PlatformError(f"{setting}={value}: give a number of {unit} from 1 up ({usual})")
