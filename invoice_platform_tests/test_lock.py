"""The lock of a stream: held by one process, and taken over from a dead one, which is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from invoice_platform.errors import StreamLocked
from invoice_platform.orchestrate import instance
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.lock import stream_lock
from invoice_platform.streaming.state import read_state, write_state

HOLD = """
import sys, time
from invoice_platform.streaming.layout import Layout
from invoice_platform.streaming.lock import stream_lock
with stream_lock(Layout.at(sys.argv[1]), "orders", "run 12"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_of_a_killed_process_is_taken_over_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layout = Layout.at(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(StreamLocked, match=rf"held by run 12 \(process {holder.pid} on "),
            stream_lock(layout, "orders", "run 13"),
        ):
            pass
        holder.kill()
    for _ in range(2):
        with stream_lock(layout, "orders", "run 14"):
            assert read_state(layout.checkpoints / "orders" / ".lock.json")["run"] == "run 14"
    (said,) = caplog.messages
    assert said.startswith(f"orders: checkpoint taken over from run 12 (process {holder.pid} on ")
    assert said.endswith(", dead)")


def test_a_lock_that_was_let_go_is_not_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for run in ("run 1", "run 2"):
        with stream_lock(Layout.at(tmp_path), "orders", run):
            pass
    assert caplog.messages == []


def test_a_take_over_is_in_the_log_of_the_run_that_the_ui_shows(tmp_path: Path) -> None:
    layout = Layout.at(tmp_path)
    dead = {"run": "run 12", "pid": 1, "host": "here", "since": "long ago"}
    write_state(layout.checkpoints / "orders" / ".lock.json", dead)

    @dg.op
    def work() -> None:
        with stream_lock(layout, "orders", "run 13"):
            pass

    @dg.job(executor_def=dg.in_process_executor)
    def working() -> None:
        work()

    with instance(layout) as history:
        result = working.execute_in_process(instance=history)
        said = [entry.user_message for entry in history.all_logs(result.run_id)]
    assert "orders: checkpoint taken over from run 12 (process 1 on here, since long ago, dead)" in said
