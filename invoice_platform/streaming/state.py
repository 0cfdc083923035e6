"""Small facts kept between runs as JSON files, each replaced in one step, so that a crash leaves the old or the new."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from invoice_platform.errors import writing


def read_state(path: Path) -> dict[str, Any]:
    """What was written last; empty when nothing was."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}


def write_state(path: Path, facts: dict[str, Any], mode: int = 0o644) -> None:
    """Replace what was written; `mode` are the file's permissions."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        try:
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
                json.dump(facts, file)
            os.replace(partial, path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
