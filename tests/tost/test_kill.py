"""Runs that are killed go on: tests/tost/kill_runs.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

KILLS = 50


def test_runs_killed_at_any_moment_end_with_the_same_bits(tmp_path: Path) -> None:
    script = Path(__file__).with_name("kill_runs.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(KILLS), "0"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert counts["kills"] == KILLS
    assert counts["amid_a_save"] > 0
    assert counts["resumed"] > KILLS // 4  # the others were killed before their first checkpoint
