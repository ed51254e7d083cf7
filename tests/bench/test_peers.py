"""Peers compute the released networks: the same result by another engine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the peers' networks are PyTorch's")

from diffplugin.bench.models import parse_model
from diffplugin.bench.peers import TimeTable
from diffplugin.bench.peers_torch import EagerBuilder
from diffplugin.bundle import default_bundle, open_bundle
from diffplugin.engines.choice import get_builder
from diffplugin.errors import EngineError
from diffplugin.export.measures import relative_error
from diffplugin.export.onnx import example_inputs
from diffplugin.runtime.sampling.time_features import sinusoidal


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DIFFPLUGIN_CACHE", str(tmp_path / "cache"))
    yield


def test_the_way_back_to_timesteps() -> None:
    table = TimeTable(open_bundle(default_bundle()).manifest)
    width = open_bundle(default_bundle()).manifest.dims.time_features
    wanted = np.array([0, 1, 500, 999])
    assert table(sinusoidal(wanted, width, **table.settings)).tolist() == wanted.tolist()
    turned = table.settings | {"flip_sin_to_cos": not table.settings["flip_sin_to_cos"]}
    with pytest.raises(EngineError, match="belong to none"):  # sine and cosine in the wrong order
        table(sinusoidal(wanted, width, **turned))


@pytest.mark.parametrize(("precision", "budget"), [("fp32", 1e-4), ("bf16", 5e-2)])
def test_the_eager_peer_agrees_with_our_engine(precision: str, budget: float) -> None:
    bundle, model = open_bundle(default_bundle()), parse_model("embedded")
    random = np.random.default_rng(3)
    spec = bundle.spec("unet")
    inputs = example_inputs(spec, {"h": 16, "w": 16})
    dims = bundle.manifest.dims
    inputs["time"] = sinusoidal(np.array([501]), dims.time_features, **TimeTable(bundle.manifest).settings)
    inputs["latents"] = random.standard_normal(inputs["latents"].shape).astype(np.float32)
    ours = get_builder("onnxruntime").load(bundle, "unet", precision="fp32", threads=1, cache=None).run(inputs)
    peer = EagerBuilder(model).load(bundle, "unet", precision=precision, threads=1, cache=None).run(inputs)
    error = relative_error(peer["eps"], ours["eps"])
    print(f"{precision}: relative error {error:.1e}")
    assert error < budget
    assert precision == "fp32" or error > 1e-5, "bf16 that is exact is not bf16"
