"""Small facts kept between runs as JSON files, each replaced in one step, so that a crash leaves the old or the new."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def read_state(path: Path) -> dict[str, Any]:
    """What was written last; empty when nothing was."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}


def write_state(path: Path, facts: dict[str, Any], mode: int = 0o644) -> None:
    """Replace what was written; `mode` are the file's permissions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        json.dump(facts, file)
    os.replace(partial, path)
