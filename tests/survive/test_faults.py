"""The program that does all of it at random."""

import subprocess
import sys


def test_runs_survive_random_faults():
    """The short version of benchmarks/results/faults.md."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--count=3", "--seed=3", "--most=1"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 of 3 runs ended equal" in result.stdout
