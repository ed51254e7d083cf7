"""The base class of engines: checks, turns and closing, once for all."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from diffplugin.engines.base import Engine
from diffplugin.errors import EngineError, ShapeMismatch
from diffplugin.spec import Array, GraphSpec, ModelDims, TensorSpec, check_outputs, graph_specs

SPEC = GraphSpec("double", (TensorSpec("x", "f32", (1, "h")),), (TensorSpec("y", "f32", (1, "H")),), 2)
X = {"x": np.ones((1, 3), np.float32)}
DIMS = ModelDims(
    factor=8,
    latent_channels=4,
    residual_channels=2,
    deep_channels=6,
    time_features=2,
    tokens=3,
    token_width=8,
    vision_width=3,
    vision_size=16,
    context=8,
    native_latent=16,
)


class Doubling(Engine):
    """Counts how many runs are inside at once, and how often it was released."""

    name = "doubling"

    def __init__(self, made: Array | None = None) -> None:
        super().__init__(SPEC)
        self.made = made
        self.inside = self.most = self.released = 0
        self._count = threading.Lock()

    def _run(self, inputs: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        with self._count:
            self.inside += 1
            self.most = max(self.most, self.inside)
        time.sleep(0.02)
        with self._count:
            self.inside -= 1
        return {"y": inputs["x"].repeat(2, 1) * 2 if self.made is None else self.made}

    def _release(self) -> None:
        assert self.inside == 0, "released during a run"
        self.released += 1


class Parallel(Doubling):
    parallel = True


@pytest.mark.parametrize(("kind", "most"), [(Doubling, 1), (Parallel, 4)])
def test_runs_take_turns_unless_the_engine_is_parallel(kind: type[Doubling], most: int) -> None:
    engine = kind()
    with ThreadPoolExecutor(4) as pool:
        for made in pool.map(lambda _: engine.run(X)["y"], range(8)):
            np.testing.assert_array_equal(made, np.full((1, 6), 2))
    assert engine.most <= most
    assert (engine.most > 1) == engine.parallel


@pytest.mark.parametrize("kind", [Doubling, Parallel])
def test_closing_waits_for_the_runs_and_happens_once(kind: type[Doubling]) -> None:
    engine = kind()
    runner = threading.Thread(target=engine.run, args=(X,))
    runner.start()
    while not engine.inside:
        time.sleep(0.001)
    engine.close()
    engine.close()
    runner.join()
    assert engine.released == 1
    with pytest.raises(EngineError, match="double: this engine is closed"):
        engine.run(X)


def test_a_run_that_fails_leaves_the_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Doubling()

    def fail(inputs: object, sizes: object) -> dict[str, Array]:
        raise EngineError("no")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_run", fail)
        with pytest.raises(EngineError, match="no"):
            engine.run(X)
    assert engine.run(X)["y"].shape == (1, 6)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (np.zeros((1, 3), np.float32), "output y is float32 1x3, expected float32 1x6"),
        (np.zeros((1, 6), np.float64), "output y is float64 1x6, expected float32 1x6"),
        (np.zeros(6, np.float32), "output y is float32 6, expected float32 1x6"),
    ],
)
def test_outputs_are_checked_as_inputs_are(made: Array, said: str) -> None:
    with pytest.raises(ShapeMismatch, match=said):
        Doubling(made).run(X)
    with pytest.raises(ShapeMismatch, match="x is float64"):
        Doubling().run({"x": np.zeros((1, 3))})


def test_sides_of_outputs_follow_from_those_of_inputs() -> None:
    """An 8x8 picture of a 16x16 latent, and a latent of another size than its picture, are refused."""
    specs = graph_specs(DIMS)
    sizes = {"h": 16, "w": 12}
    check_outputs(specs["vae_decoder"], {"image": np.zeros((1, 3, 128, 96), np.float32)}, sizes)
    with pytest.raises(ShapeMismatch, match=r"vae_decoder: output image is float32 1x3x8x8, expected .* 1x3x128x96"):
        check_outputs(specs["vae_decoder"], {"image": np.zeros((1, 3, 8, 8), np.float32)}, sizes)
    check_outputs(specs["vae_encoder"], {"cond": np.zeros((1, 4, 16, 12), np.float32)}, {"H": 128, "W": 96})
    with pytest.raises(ShapeMismatch, match="cond is float32 1x4x16x16, expected float32 1x4x16x12"):
        check_outputs(specs["vae_encoder"], {"cond": np.zeros((1, 4, 16, 16), np.float32)}, {"H": 128, "W": 96})
    check_outputs(specs["selector"], {"scores": np.zeros((1, 4), np.float32)}, {"p": 3})
    with pytest.raises(ShapeMismatch, match="scores is float32 1x3, expected float32 1x4"):
        check_outputs(specs["selector"], {"scores": np.zeros((1, 3), np.float32)}, {"p": 3})
    with pytest.raises(ShapeMismatch, match="unet: output deep is missing"):
        check_outputs(specs["unet"], {"eps": np.zeros((1, 4, 16, 12), np.float32)}, sizes)
