from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_it_trains_and_tells_time_and_memory(oracle: Path, tmp_path: Path) -> None:
    root = oracle / "checkpoint"
    command = [sys.executable, "-P", "-m", "diffplugin.bench.paper_training", str(tmp_path / "out")]
    options = ["--base", str(root / "stable-diffusion"), "--clip", str(root / "clip"), "--resolution", "64"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "recipe paper" in done.stdout and "GiB a process" in done.stdout, done.stdout
    assert done.stdout.count(" s a step") == 2, "each of the two"
    found = re.search(r"2 steps in \d+ s with loading; peak resident (\d\.\d\d) GiB", done.stdout)
    assert found and float(found[1]) > 0.1, done.stdout
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["pairs"]
