"""`deploy/setup` for real, in a folder of the test's own: what it says when something is missing, what it repairs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from invoice_platform.jars import jar_folder, require_java
from invoice_platform_tests.conftest import wait_until

PROJECT = Path(__file__).parent.parent

# What the script calls; a PATH of these alone is a machine that has neither Java nor Python.
TOOLS = ("sh", "dirname", "cat", "cksum", "grep", "mkdir", "rm")

# A project that installs without a network: it has no dependency and builds itself. With a file `hang` it never ends.
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
BACKEND = """
import pathlib, time, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    pathlib.Path("builds").open("a").write("one\\n")
    while pathlib.Path("hang").exists():
        time.sleep(0.1)
    info = "tiny-1.dist-info/"
    with zipfile.ZipFile(pathlib.Path(folder) / "tiny-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1\\nProvides-Extra: dev\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return "tiny-1-py3-none-any.whl"
"""


class Tree:
    """A copy of what set-up needs, around a project that takes no time to install."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in (
            "deploy/setup",
            "invoice_platform/__init__.py",
            "invoice_platform/errors.py",
            "invoice_platform/jars.py",
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT / name, folder / name)
        # They would work with a Spark that is not installed here; test_java_classes.py and test_session.py look at the real ones.
        for name in ("java_classes.py", "class_data.py"):
            (folder / "invoice_platform" / name).touch()
        (folder / "pyproject.toml").write_text(PYPROJECT)
        (folder / "backend.py").write_text(BACKEND)
        (folder / "constraints.txt").touch()
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.environment = {
            "PATH": str(self.bin),
            "INVOICE_PLATFORM_JARS": str(jar_folder()),
            "PIP_NO_INDEX": "1",
        }
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found
            self.bin.joinpath(tool).symlink_to(found)

    def put(self, name: str, script: str) -> Path:
        """Put a program on the PATH that does what the shell script says."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def put_real(self, *names: str) -> None:
        """Put the Java or the Python that this test runs with on the PATH, under these names."""
        for name in names:
            found = sys.executable if name.startswith("python") else require_java()
            self.put(name, f'exec {found} "$@"')

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.folder / "deploy" / "setup", *arguments],
            cwd="/",
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def setup(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """Run set-up to its end: its exit code, and what it said; it never writes to stdout."""
        run = self.start(*arguments, **environment)
        out, said = run.communicate(timeout=120)
        assert out == ""
        return run.returncode, said

    @property
    def builds(self) -> int:
        path = self.folder / "builds"
        return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "a project")


def assert_one_line(result: tuple[int, str], *parts: str) -> None:
    code, said = result
    assert code == 1
    assert said.count("\n") == 1
    assert said.endswith("\n")
    for part in parts:
        assert part in said


def test_no_java_gives_one_line(tree: Tree) -> None:
    tree.put_real("python3")
    assert_one_line(
        tree.setup(), "Java 17 or later is needed and none was found", "apt-get install openjdk-17", "JAVA_HOME"
    )
    assert not (tree.folder / ".venv").exists()


def test_old_java_gives_one_line(tree: Tree) -> None:
    tree.put_real("python3")
    java = tree.put("java", """echo 'openjdk version "11.0.2" 2019-01-15' >&2""")
    assert_one_line(tree.setup(), f"Java 17 or later is needed and {java} is Java 11")


def test_no_python_gives_one_line(tree: Tree) -> None:
    tree.put_real("java")
    assert_one_line(tree.setup(), "Python 3.10 to 3.13 is needed and none was found", "apt-get install python3")


def test_old_python_gives_one_line(tree: Tree) -> None:
    tree.put_real("java", "python3")
    python = tree.put("old-python", "echo 3.9 old")
    assert_one_line(tree.setup(PYTHON=str(python)), f"Python 3.10 to 3.13 is needed and {python} is Python 3.9")


def test_python_that_does_not_run_gives_one_line_when_it_was_asked_for(tree: Tree) -> None:
    tree.put_real("java", "python3")
    assert_one_line(tree.setup(PYTHON="/no/python"), "PYTHON=/no/python does not run")


def test_python_without_venv_gives_one_line(tree: Tree) -> None:
    tree.put_real("java")
    tree.put("python3", "echo 3.11 novenv")
    assert_one_line(tree.setup(), "without its venv module", "apt-get install python3.11-venv")


def test_pythons_that_do_not_run_or_do_not_suit_are_passed_over(tree: Tree) -> None:
    tree.put_real("java", "python3.10")
    tree.put("python3", "echo 3.9 old")
    tree.put("python3.12", "echo 'this shim has no Python behind it' >&2; exit 127")
    tree.put("python3.11", "echo 3.11 novenv")
    assert tree.setup("--check") == (0, "")


@pytest.mark.slow
def test_second_call_says_nothing_and_changed_pins_or_a_moved_folder_are_noticed(tree: Tree, tmp_path: Path) -> None:
    tree.put_real("java", "python3")
    code, said = tree.setup()
    assert code == 0, said
    assert [line.split()[0] for line in said.splitlines()] == ["making", "installing"]

    # Nor does it need Java or another Python than the one in .venv.
    (tree.bin / "java").unlink()
    (tree.bin / "python3").unlink()
    assert tree.setup() == (0, "")
    assert tree.builds == 1

    tree.put_real("java", "python3")
    (tree.folder / "constraints.txt").write_text("# changed\n")
    assert tree.setup() == (0, "installing packages (a minute or two)\n")
    assert tree.setup() == (0, "")
    assert tree.builds == 2

    # The scripts in .venv hold the path that they were made at.
    tree.folder = tree.folder.rename(tmp_path / "moved")
    tree.environment["PATH"] = str(tree.folder / "bin")
    assert tree.setup()[1].startswith("making .venv")
    assert str(tree.folder) in (tree.folder / ".venv" / "bin" / "activate").read_text()


@pytest.mark.slow
def test_set_up_killed_at_work_is_repaired_by_the_next(tree: Tree) -> None:
    tree.put_real("java", "python3")
    hang = tree.folder / "hang"
    hang.touch()
    killed = tree.start()
    wait_until(lambda: tree.builds == 1, 60, "the installation begins")
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    hang.unlink()
    left_behind = tree.folder / ".venv" / "left-behind"
    left_behind.touch()

    code, said = tree.setup()
    assert code == 0, said
    assert said.startswith("making .venv")
    assert not left_behind.exists()
    assert tree.setup() == (0, "")


@pytest.mark.slow
def test_broken_venv_is_made_anew(tree: Tree) -> None:
    tree.put_real("java", "python3")
    broken = tree.folder / ".venv" / "bin"
    broken.mkdir(parents=True)
    broken.joinpath("python").symlink_to("/no/python")
    code, said = tree.setup()
    assert code == 0, said
    assert tree.setup() == (0, "")
