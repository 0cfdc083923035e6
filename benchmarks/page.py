"""docs/benchmarks.md, written from the results."""

from __future__ import annotations

import statistics
from pathlib import Path

from benchmarks.measure import Figure, Goal, Measure, Series, met_in_words
from benchmarks.measures import NAMES, measure
from benchmarks.results import Result, held

HEAD = """# Benchmarks

Written by `make bench`; do not edit. `make bench SMALL=1` runs everything tiny, for correctness alone, and writes elsewhere.
A single measure is run anew by its command and replaces its own part. The goals are the project's own; what was changed for them,
and what holds back where one is not met, is in [performance.md](performance.md). On a machine that does other things at the
same time, ratios count and seconds do not. All but `memory` and those with processes of their own share one warm Spark: a measure
that is run alone begins with a new one, whose code is not yet compiled.

Contestants: *stock* is the straightforward way, written out in [benchmarks/stock](../benchmarks/stock); *engine* is one batch
job in a warm Spark, what this engine can do at best; *duckdb* and *polars* read the JSON on a single node and write the same
table by delta-rs; *platform* is this project.
"""


def write_page(output: Path, results: dict[str, Result]) -> None:
    """Write the page beside the output folder, from every result there is."""
    shown = [(measure(name), results[name]) for name in NAMES if name in results]
    parts = [HEAD, _machines(shown), _table(shown), *(_section(output, m, r) for m, r in shown)]
    if missing := [name for name in NAMES if name not in results]:
        parts.append(f"Not run yet: {', '.join(missing)}.\n")
    page = output.with_suffix(".md")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(parts), encoding="utf-8")


def _machines(shown: list[tuple[Measure, Result]]) -> str:
    """What the figures were taken on; more than one machine only where results of several are kept."""
    machines: dict[str, list[str]] = {}
    for found, result in shown:
        line = ", ".join(f"{name} {value}" for name, value in result.machine.items())
        machines.setdefault(line, []).append(found.name)
    if len(machines) == 1:
        return f"Machine: {next(iter(machines))}.\n"
    return "".join(f"Machine of {', '.join(names)}: {line}.\n\n" for line, names in machines.items())


def _table(shown: list[tuple[Measure, Result]]) -> str:
    lines = [
        "| measure | goal | figure | min / median / max | | command | date |",
        "|---|---|---|---|---|---|---|",
    ]
    for found, result in shown:
        for number, (goal, figure) in enumerate(held(found, result)):
            title = f"[{found.title}](#{found.name})" if number == 0 else ""
            command = f"`{result.command}`" if number == 0 else ""
            date = f"{result.date}{' (small)' if result.small else ''}" if number == 0 else ""
            shown_figure = ("not measured", "", "")
            if figure is not None:
                shown_figure = (_value(figure.figure, goal.unit), _range(goal, figure), met_in_words(figure.met))
            cells = (title, goal.text, *shown_figure, command, date)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _section(output: Path, found: Measure, result: Result) -> str:
    lines = [f'<a id="{found.name}"></a>', f"## {found.title}", "", found.about, ""]
    if result.small:
        lines += ["**Tiny sizes: these figures say nothing about speed.**", ""]
    lines += [f"![{found.title}]({output.name}/{found.name}.png)", ""]
    lines += ["| series | values | min | median | max |", "|---|---|---|---|---|"]
    for name, series in result.series.items():
        lines.append(f"| {name} | {len(series.values)} | {' | '.join(_spread(series))} |")
    lines += ["", *(f"- {goal.text}: {goal.in_words}." for goal in found.goals)]
    lines += [f"- {note}" for note in result.notes]
    if simple := {k: v for k, v in result.facts.items() if not isinstance(v, (dict, list))}:
        lines.append(f"- Sizes: {', '.join(f'{name} {_number(value)}' for name, value in simple.items())}.")
    lines += [f"- Took {result.seconds:.0f} s in all.", ""]
    return "\n".join(lines)


def _spread(series: Series) -> list[str]:
    values = series.values
    return [_value(v, series.unit) for v in (min(values), statistics.median(values), max(values))]


def _range(goal: Goal, figure: Figure) -> str:
    return " / ".join(_value(v, goal.unit) for v in (figure.least, figure.median, figure.most))


def _value(value: float, unit: str) -> str:
    shown = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{shown} {unit}"


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
