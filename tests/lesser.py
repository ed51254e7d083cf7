"""Tests once more on a lesser processor, so that no branch that a processor decides waits for a machine that has it.

Each library has a ceiling of its own: OpenVINO one of what it reports and decides and one of the kernels of the oneDNN
inside it, PyTorch one of its kernels, NumPy a list of what is not used. ONNX Runtime has none.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.sources import ROOT


def openvino_below(ceiling: str) -> dict[str, str]:
    """``ceiling``: an instruction set in oneDNN's words, such as AVX2 or AVX512_CORE_VNNI."""
    return {"OV_CPU_MAX_ISA": ceiling, "ONEDNN_MAX_CPU_ISA": ceiling}


def plain_kernels() -> dict[str, str]:
    """PyTorch and NumPy without AVX2 and AVX-512."""
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    return {"ATEN_CPU_CAPABILITY": "default", "NPY_DISABLE_CPU_FEATURES": " ".join(found)}


def run_tests(ceilings: dict[str, str], *tests: str, cache: Path) -> None:
    """Tests (``FILE::NAME``) in a process below ``ceilings``: they pass, and none is skipped."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        env={**os.environ, **ceilings, "DIFFPLUGIN_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and " passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-3000:]
