"""What a measure is: a name, goals as data, and a function that gives series of figures, round by round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.data import Corpus, make

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from benchmarks.platform import Platform

How = Literal["p50", "p95", "max", "last", "ratio", "spike"]
"""How one figure is made of series: a percentile, the greatest or the last value; `ratio`: of two series pair by pair, the median
of the pairs; `spike`: the greatest value in medians of the series."""

HOW_IN_WORDS: Mapping[How, str] = {
    "p50": "median of {of}",
    "p95": "95th percentile of {of}",
    "max": "greatest of {of}",
    "last": "last of {of}",
    "ratio": "{of} / {over}, round by round; median",
    "spike": "greatest of {of}, in medians of it",
}


@dataclass(frozen=True)
class Goal:
    """One figure that has to be at most, or at least, so much; or that is only to be known."""

    text: str
    """As the issue puts it."""
    limit: float | None
    """None for a figure that has no goal."""
    unit: str
    """Of the figure: s, ms, MB, ×, bytes."""
    how: How
    of: str
    """Series that the figure is made of."""
    over: str = ""
    """Series that a ratio is divided by."""
    at_least: bool = False
    """Whether more is better."""

    @property
    def in_words(self) -> str:
        return HOW_IN_WORDS[self.how].format(of=self.of, over=self.over)


@dataclass
class Series:
    """Values of one contestant, or of one size, in the rounds in which they were taken."""

    unit: str
    rounds: list[list[float]] = field(default_factory=list)
    """For each round its values; most measures take one a round."""

    @property
    def values(self) -> list[float]:
        return [value for values in self.rounds for value in values]


@dataclass
class Outcome:
    """What a measure gave."""

    series: dict[str, Series] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    """Sizes and counts, for the page and for tests: plain JSON."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know to read the figures."""

    def add(self, name: str, unit: str, *values: float) -> None:
        """Add the values of one round."""
        self.series.setdefault(name, Series(unit)).rounds.append(list(values))


@dataclass(frozen=True)
class Figure:
    """A goal and what was measured."""

    least: float
    median: float
    most: float
    figure: float
    """What is held against the limit."""
    met: bool | None
    """None where there is no goal."""


def figure(goal: Goal, series: Mapping[str, Series]) -> Figure:
    """Hold what was measured against a goal.

    Raises
    ------
    KeyError
        When the measure gave no such series.
    """
    values = series[goal.of].values
    if goal.how == "ratio":
        pairs = zip(series[goal.of].rounds, series[goal.over].rounds, strict=False)
        values = [statistics.median(a) / statistics.median(b) for a, b in pairs]
        found = statistics.median(values)
    elif goal.how == "spike":
        middle = statistics.median(values)
        values = [value / middle for value in values]
        found = max(values)
    elif goal.how == "max":
        found = max(values)
    elif goal.how == "last":
        found = values[-1]
    else:
        found = percentile(values, 0.95 if goal.how == "p95" else 0.5)
    return Figure(min(values), statistics.median(values), max(values), found, _met(goal, found))


def _met(goal: Goal, found: float) -> bool | None:
    if goal.limit is None:
        return None
    return found >= goal.limit if goal.at_least else found <= goal.limit


def met_in_words(met: bool | None) -> str:
    """How the page and the command say it."""
    return "no goal" if met is None else "met" if met else "not met"


def percentile(values: list[float], share: float) -> float:
    """The value at or under which `share` (0 to 1) of the values are, between two neighbours in proportion."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True)
class Bench:
    """How measures are run this time."""

    small: bool
    """Everything tiny: for correctness, not for figures."""
    work: Path
    """A folder that is thrown away; each measure makes its own in it."""
    backlog_gb: float
    """Size of the large backlog, in GB (10⁹ bytes)."""
    memory_runs: int | None
    """Runs after which the idle Spark's memory is looked at, half of them before a first look; None: one look after a few."""
    sizes_asked: str
    """Words of the command that set sizes of `memory`; empty for those of a plain call."""
    platform: Callable[[Path], AbstractContextManager[Platform]]
    """A warm Spark that measures share, with nothing in it, at this root for the first that asks; small, with what others left."""

    def size(self, full: int, small: int) -> int:
        """A size, or a number of rounds, as this call is."""
        return small if self.small else full

    @cached_property
    def corpus(self) -> Corpus:
        """400,000 invoices (270 MB) in 32 files; when small, 400 in 4. Made once for all measures."""
        return make(self.work / "corpus", files=self.size(32, 4), invoices=self.size(12_500, 100))

    def command(self, name: str) -> str:
        """By which a measure is run again, with the sizes that were asked for."""
        return f"python -m benchmarks {name} {self.sizes_asked}" if self.sizes_asked else f"make bench ONLY={name}"

    def folder(self, name: str) -> Path:
        """A new folder of that name."""
        made = self.work / name
        made.mkdir(parents=True)
        return made


@dataclass(frozen=True)
class Measure:
    """A row of the table of goals."""

    name: str
    """By which it is chosen."""
    title: str
    goals: tuple[Goal, ...]
    run: Callable[[Bench], Outcome]
    about: str
    """What is measured and how, in a few sentences."""
    own_processes: bool = False
    """Whether its contestants start every Spark themselves: small, it then goes on beside those that share one."""
