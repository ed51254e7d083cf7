"""The engine for tests of what stands above engines."""

from __future__ import annotations

import numpy as np
import pytest

from diffplugin.engines.base import Engine
from diffplugin.errors import EngineError, ShapeMismatch
from diffplugin.spec import GraphSpec, TensorSpec
from tests.engines.fake_engine import FakeEngine

SPEC = GraphSpec("double", (TensorSpec("x", "f32", (1, "n")),), (TensorSpec("y", "f32", (1, "n")),))


def test_it_checks_runs_counts_and_closes() -> None:
    fake = FakeEngine(SPEC, lambda inputs: {"y": inputs["x"] * 2})
    engine: Engine = fake
    assert engine.run({"x": np.full((1, 3), 2, np.float32)})["y"].tolist() == [[4, 4, 4]]
    with pytest.raises(ShapeMismatch, match="x is float64"):
        engine.run({"x": np.zeros((1, 3))})
    assert fake.runs == 1
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run({"x": np.zeros((1, 3), np.float32)})
