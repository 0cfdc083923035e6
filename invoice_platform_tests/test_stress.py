"""The stress program, for a short time with a fixed seed; by hand longer: `make stress MINUTES=60`."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import psutil
import pytest

MINUTES = float(os.environ.get("STRESS_MINUTES", "2"))
SEED = int(os.environ.get("STRESS_SEED", "1"))


@pytest.mark.slow
def test_nothing_is_lost_or_repeated_while_all_kinds_of_things_fail() -> None:
    command = [sys.executable, "-m", "invoice_platform_tests.stress", "--minutes", str(MINUTES), "--seed", str(SEED)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=MINUTES * 60 + 900, check=False)
    print(ran.stderr)
    assert ran.returncode == 0, ran.stderr
    figures = json.loads(ran.stdout.splitlines()[-1])
    assert (figures["lost"], figures["repeated"], figures["wrong"]) == (0, 0, [])
    assert figures["lines"] > 100
    assert sum(figures["happened"].values()) > 1, "something did happen"
    folder = next(line for line in ran.stderr.splitlines() if line.startswith(f"seed {SEED}")).rpartition(" in ")[2]
    assert not [p for p in psutil.process_iter(["cmdline"]) if any(folder in w for w in p.info["cmdline"] or [])]
