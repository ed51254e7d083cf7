"""The native operators by CMake and ctest: host code, and the device's where there is a CUDA compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TOOLS = ("cmake", "ctest", "c++")


def test_builds_without_warnings_and_meets_its_references(tmp_path: Path) -> None:
    if lacking := [tool for tool in TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"needs {', '.join(lacking)}")
    gpus = "80;120"  # the oldest and the newest; CMakeLists.txt has them all
    steps = (
        ["cmake", "-S", str(ROOT), "-B", str(tmp_path), f"-DDIFFPLUGIN_GPUS={gpus}"],
        ["cmake", "--build", str(tmp_path), "--parallel", str(os.cpu_count() or 1)],
        ["ctest", "--test-dir", str(tmp_path), "--output-on-failure", "--no-tests=error"],
    )
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{step[0]}: {(done.stdout + done.stderr)[-3000:]}"
    if shutil.which("nvcc"):
        assert list(tmp_path.glob("*diffplugin_kernels*")), "there is a CUDA compiler, and no kernels"
