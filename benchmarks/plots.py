"""A plot a measure: each value a dot, each series its median, limits where the goal has the unit of the series."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.measure import Goal, Measure, Series
from benchmarks.results import Result

LOG_FROM = 8.0
"""Where the greatest median is so many times the least one, the axis is logarithmic."""


def plot(measure: Measure, result: Result, file: Path) -> None:
    """Write a PNG: one panel for each unit, a row a series."""
    import matplotlib

    matplotlib.use("Agg")  # no display
    from matplotlib import pyplot as plt

    by_unit: dict[str, dict[str, Series]] = {}
    for name, series in result.series.items():
        by_unit.setdefault(series.unit, {})[name] = series
    rows = sum(len(panel) for panel in by_unit.values())
    figure, panels = plt.subplots(
        len(by_unit),
        1,
        figsize=(9, 1.1 * len(by_unit) + 0.42 * rows + 0.5),
        squeeze=False,
        gridspec_kw={"height_ratios": [len(panel) + 1 for panel in by_unit.values()]},
        layout="constrained",
    )
    for axes, (unit, panel) in zip(panels[:, 0], by_unit.items(), strict=True):
        limits = [_limit(axes, goal, panel) for goal in measure.goals if goal.unit == unit and _shown(goal, panel)]
        _panel(axes, unit, panel, limits)
    figure.suptitle(measure.title, fontsize=11)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _shown(goal: Goal, panel: Mapping[str, Series]) -> bool:
    """Whether a goal's limit is one of the values that the panel shows."""
    return goal.limit is not None and goal.of in panel and goal.how in ("p50", "p95", "max", "last")


def _limit(axes: Any, goal: Goal, panel: Mapping[str, Series]) -> float:
    """Mark a limit at the row of its series; where it is."""
    assert goal.limit is not None
    row = list(panel).index(goal.of)
    axes.plot([goal.limit] * 2, [row - 0.4, row + 0.4], color="tab:red", linewidth=2)
    of = f"{goal.how} " if goal.how in ("p50", "p95") else ""
    # Two of them on a row may lie close together.
    side = {"p50": "right", "p95": "left"}.get(goal.how, "center")
    label = f"goal {of}{_number(goal.limit)}"
    axes.annotate(label, (goal.limit, row - 0.42), color="tab:red", fontsize=8, ha=side, va="bottom")
    return goal.limit


def _panel(axes: Any, unit: str, panel: Mapping[str, Series], limits: list[float]) -> None:
    from matplotlib.ticker import LogFormatter

    medians: list[float] = []
    for row, series in enumerate(panel.values()):
        values = series.values
        medians.append(middle := statistics.median(values))
        axes.plot(values, [row] * len(values), "o", color="tab:blue", alpha=0.45, markersize=6)
        axes.plot([middle] * 2, [row - 0.28, row + 0.28], color="black", linewidth=2)
        axes.annotate(_number(middle), (middle, row + 0.3), fontsize=8, ha="center", va="top")
    axes.set_yticks(range(len(panel)), list(panel))
    axes.set_ylim(len(panel) - 0.3, -0.85)
    axes.set_xlabel(f"{unit} (dots: values; bar: median)", fontsize=9)
    every = [value for series in panel.values() for value in series.values] + limits
    if min(every) > 0 and max(medians) / min(medians) >= LOG_FROM:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        # 6, not 6 × 10⁰; none where they would be too many.
        axes.xaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False))
    else:
        # A label at 0 is not cut off; what grew less than nothing is shown.
        low, high = min(0.0, *every), max(*every, 1e-9)
        axes.set_xlim(low - 0.03 * (high - low), high + 0.06 * (high - low))
    axes.grid(axis="x", alpha=0.3)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
