"""Runs and comparisons that are killed go on: kill_runs.py, kill_comparisons.py."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

KILLS = 25  # more: python tests/tost/kill_runs.py FOLDER 50 0


def killing(script: str, folder: Path, kills: int) -> Any:
    """What the script prints."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), str(folder), str(kills), "0"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_runs_killed_at_any_moment_end_with_the_same_bits(tmp_path: Path) -> None:
    counts = killing("kill_runs.py", tmp_path, KILLS)
    assert counts["kills"] == KILLS
    assert counts["amid_a_save"] > 0
    assert counts["resumed"] > KILLS // 4  # the others were killed before their first checkpoint


def test_a_comparison_killed_at_any_moment_ends_with_the_same_record(tmp_path: Path) -> None:
    counts = killing("kill_comparisons.py", tmp_path, 6)
    assert counts["runs"] == 2 * (1 + 3 + 2 * 3)  # a seed: a teacher, three rounds of a lottery, two masks for three variants
    assert len(set(counts["killed_at"])) > 1
