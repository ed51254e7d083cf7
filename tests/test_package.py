"""The import name: what it offers and what it costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import diffplugin

ROOT = Path(__file__).resolve().parents[1]


def test_all_is_importable_and_nothing_else_is_promised() -> None:
    for name in diffplugin.__all__:
        assert getattr(diffplugin, name) is not None, name
    assert set(diffplugin.__all__) <= set(dir(diffplugin))
    with pytest.raises(AttributeError, match="no attribute 'restore'"):
        _ = diffplugin.restore


def test_one_file_alone_calls_the_cuda_runtime() -> None:
    folders = ("bench", "core", "engines", "export", "plugins", "runtime")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py") if not path.is_symlink()]
    found = {path.relative_to(ROOT).as_posix() for path in sources if "cuda.bindings" in path.read_text("utf-8")}
    assert found == {"engines/cuda.py"}


def test_import_is_quick() -> None:
    """Under 0.3 s, the best of five: NumPy and Pillow come with the first call, not with the import."""
    code = (
        "import time; began = time.perf_counter(); import diffplugin; took = time.perf_counter() - began; "
        "import sys; print(took, 'numpy' in sys.modules)"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
        ).stdout.split()
        for _ in range(5)
    ]
    assert min(float(seconds) for seconds, _ in runs) < 0.3, runs
    assert all(loaded == "False" for _, loaded in runs)
