"""The benchmarks, tiny: each measure gives figures, contestants make the same table, the page is written. No time is judged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measure import Bench, Goal, Outcome, figure, percentile
from benchmarks.measures import NAMES, measure
from benchmarks.page import write_page
from benchmarks.platform import warm_platform
from benchmarks.results import Result, read, write

PROJECT = Path(__file__).resolve().parents[1]


def benchmarks(*words: str) -> subprocess.CompletedProcess[str]:
    """`python -m benchmarks`, in a process of its own: Spark's session in this one must not be found."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *words],
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a tiny run of all measures wrote."""
    folder = tmp_path_factory.mktemp("bench")
    done = benchmarks("--small", "--memory-runs", "2", "--output", str(folder / "benchmarks"), "--work", str(folder))
    assert done.returncode == 0, done.stderr[-5000:]
    return folder / "benchmarks"


@pytest.fixture(scope="module")
def results(output: Path) -> dict[str, Any]:
    return json.loads((output / "results.json").read_text())


@pytest.mark.slow
def test_each_measure_gives_a_figure_for_each_of_its_goals(results: dict[str, Any]) -> None:
    assert set(results) == set(NAMES)
    for name, result in results.items():
        for goal in measure(name).goals:
            assert goal.of in result["series"], (name, goal.text)
            assert not goal.over or goal.over in result["series"], (name, goal.text)
        assert all(values for series in result["series"].values() for values in series["rounds"]), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["throughput", "small_files", "latency", "cold_start"])
def test_all_contestants_make_the_same_table(results: dict[str, Any], name: str) -> None:
    made = results[name]["facts"]["content"]
    assert len(made) > 1
    assert len({(content["rows"], content["total_value"]) for content in made.values()}) == 1, made
    assert all(content["rows"] for content in made.values())


@pytest.mark.slow
def test_the_page_and_a_plot_for_each_measure_are_written_beside_each_other(output: Path) -> None:
    page = output.with_suffix(".md").read_text()
    for name in NAMES:
        assert f'<a id="{name}"></a>' in page
        assert (output / f"{name}.png").stat().st_size > 5_000
    assert str(PROJECT) not in page


def test_a_small_run_leaves_the_projects_own_page_alone() -> None:
    done = benchmarks("--small", "sensor_tick")  # needs no Spark
    assert done.returncode == 0, done.stderr
    page = Path(done.stdout.strip())
    assert page.name == "benchmarks.md"
    assert PROJECT not in page.parents
    shutil.rmtree(page.parent)


def test_measures_and_their_goals_are_listed_without_a_run() -> None:
    listed = benchmarks("--list")
    assert listed.returncode == 0
    for name in NAMES:
        assert f"{name} " in listed.stdout
    unknown = benchmarks("--small", "no_such_measure")
    assert unknown.returncode == 2
    assert "no such measure: no_such_measure" in unknown.stderr


def test_a_ratio_is_made_pair_by_pair_and_a_goal_may_be_at_least() -> None:
    outcome = Outcome()
    for ours, theirs in ((2.0, 12.0), (1.0, 12.0), (4.0, 12.0)):
        outcome.add("platform", "s", ours, ours)
        outcome.add("stock", "s", theirs)
    found = figure(Goal("6 x", 6, "×", "ratio", "stock", "platform", at_least=True), outcome.series)
    assert (found.least, found.median, found.most, found.figure, found.met) == (3, 6, 12, 6, True)


def test_percentiles_lie_between_neighbours() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([0.0, 10.0], 0.95) == pytest.approx(9.5)


def test_a_measure_that_is_not_run_again_keeps_its_result(tmp_path: Path) -> None:
    outcome = Outcome()
    for name in ("platform", "platform, whole job", "stock"):
        outcome.add(name, "s", 1.0)
    found = measure("cold_start")
    result = Result.of(found, outcome, 3.0, Bench(True, tmp_path, 1.0, None, "", warm_platform), {"cores": "2"})
    write(tmp_path / "benchmarks", {"cold_start": result})
    again = read(tmp_path / "benchmarks")
    assert again == {"cold_start": result}
    write_page(tmp_path / "benchmarks", again)
    page = (tmp_path / "benchmarks.md").read_text()
    assert "Not run yet: latency" in page
    assert result.date in page
