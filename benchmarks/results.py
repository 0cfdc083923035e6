"""Results on disk: `results.json` in the root of the output folder, where a measure keeps its last result until it is run again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.measure import Bench, Figure, Goal, Measure, Outcome, Series, figure

FILE = "results.json"


@dataclass(frozen=True)
class Result:
    """What one measure gave, when and on what."""

    measure: str
    date: str
    """UTC, YYYY-MM-DD."""
    seconds: float
    """How long the measure took in all."""
    small: bool
    command: str
    """By which it is run again."""
    machine: dict[str, str]
    series: dict[str, Series]
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, measure: Measure, outcome: Outcome, spent: float, bench: Bench, machine: dict[str, str]) -> Result:
        """What a measure gave, and how it was run."""
        return cls(
            measure.name,
            datetime.now(timezone.utc).date().isoformat(),
            round(spent, 1),
            bench.small,
            bench.command(measure.name),
            machine,
            outcome.series,
            outcome.facts,
            outcome.notes,
        )


def held(measure: Measure, result: Result) -> list[tuple[Goal, Figure | None]]:
    """The measure's goals of today against what was measured; None for a goal that it was not made for."""
    found: list[tuple[Goal, Figure | None]] = []
    for goal in measure.goals:
        there = goal.of in result.series and (not goal.over or goal.over in result.series)
        found.append((goal, figure(goal, result.series) if there else None))
    return found


def read(folder: Path) -> dict[str, Result]:
    """The results of before, by measure; none where there is no file."""
    file = folder / FILE
    if not file.exists():
        return {}
    found: dict[str, Result] = {}
    for name, raw in json.loads(file.read_text(encoding="utf-8")).items():
        raw["series"] = {key: Series(**value) for key, value in raw["series"].items()}
        found[name] = Result(**raw)
    return found


def write(folder: Path, results: dict[str, Result]) -> None:
    """Replace the file."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({name: asdict(result) for name, result in results.items()}, indent=1, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")
