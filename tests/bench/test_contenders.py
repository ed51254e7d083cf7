"""Contenders with a tiny autoencoder or a card of one step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from diffplugin.bench.contenders import CONTENDERS, _with_autoencoder
from diffplugin.bench.worker import _steps
from diffplugin.bundle import default_bundle, open_bundle
from diffplugin.errors import EngineUnavailable
from diffplugin.runtime.planning.quality import get_quality
from diffplugin.runtime.restorer import Restorer


def test_the_tiny_autoencoder_is_taken_or_left_out() -> None:
    bundle = open_bundle(default_bundle())
    plain = {key: entry for key, entry in bundle.manifest.graphs.items() if not key.startswith("tiny_")}
    graphs = plain | {"tiny_encoder": plain["vae_encoder"], "tiny_decoder": plain["vae_decoder"]}
    both = replace(bundle, manifest=replace(bundle.manifest, graphs=graphs))
    assert _with_autoencoder(both, tiny=True).manifest.graphs == graphs
    assert _with_autoencoder(both, tiny=False).manifest.graphs == plain
    without = replace(bundle, manifest=replace(bundle.manifest, graphs=plain))
    with pytest.raises(EngineUnavailable, match="--tiny-vae"):
        _with_autoencoder(without, tiny=True)


def test_steps_of_a_contender() -> None:
    from diffplugin.engines.choice import get_builder

    bundle = open_bundle(default_bundle())
    for name, steps in {"fast": 6, "fast one step": 1, "balanced": 10, "f32": 20}.items():
        contender = CONTENDERS[f"diffplugin {name}"]
        quality = get_quality(contender.quality)
        with Restorer(bundle, get_builder("onnxruntime"), "fp32", quality=quality) as restorer:
            trial = {"contender": contender.name, "model": "embedded", "steps": 20}
            assert _steps(restorer, trial) == steps, name
