"""What a run prints to stderr: the platform's own lines. Dagster's events, stack traces and all, are in its own log."""

import logging
import sys

import dagster as dg


class _OwnLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = getattr(record, "dagster_meta", {}).get("orig_message") or record.getMessage()
        return f"{self.formatTime(record, '%H:%M:%S')} {text}"


def _is_own(record: logging.LogRecord) -> bool:
    # The engine's word on steps after a failed one only repeats the failure.
    return getattr(record, "dagster_meta", {}).get("dagster_event") is None and not record.getMessage().count(
        "Dependencies for step "
    )


def _console(init_context: dg.InitLoggerContext) -> logging.Logger:  # noqa: ARG001
    logger = logging.Logger("invoice_platform", logging.INFO)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OwnLine())
    handler.addFilter(_is_own)
    logger.addHandler(handler)
    return logger


console = dg.LoggerDefinition(_console, description="The platform's own lines, without Dagster's events.")
