"""Every graph of the embedded model through every engine of this machine, at 256 px: ``pytest bench/suites``.

For work on a single graph or engine; ``dp-bench`` measures whole pictures beside the peers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from diffplugin.bundle import Bundle, default_bundle, open_bundle
from diffplugin.engines.base import Engine, EngineBuilder, missing_variant
from diffplugin.engines.choice import ENGINES, get_builder
from diffplugin.export.onnx import example_inputs

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

SIDE = 256


def _engines(bundle: Bundle) -> Iterator[tuple[EngineBuilder, str]]:
    for builder in map(get_builder, ENGINES):
        if not builder.unavailable_reason():
            yield from (
                (builder, precision) for precision in builder.precisions() if not missing_variant(bundle, precision)
            )


BUNDLE = open_bundle(default_bundle())
CASES = [
    pytest.param(key, builder, precision, id=f"{key}-{builder.name}-{precision}")
    for key in BUNDLE.manifest.graphs
    for builder, precision in _engines(BUNDLE)
]


@pytest.mark.parametrize(("key", "builder", "precision"), CASES)
def test_graph(key: str, builder: EngineBuilder, precision: str, benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    dims = BUNDLE.manifest.dims
    side = SIDE // dims.factor
    sizes = {"h": side, "w": side, "H": SIDE, "W": SIDE, "n": 1, "p": len(BUNDLE.manifest.plugins)}
    inputs = example_inputs(BUNDLE.spec(key), sizes)
    engine: Engine = builder.load(BUNDLE, key, precision=precision, threads=None, cache=tmp_path)
    benchmark.group = key
    benchmark.extra_info.update(engine=builder.name, precision=precision, version=builder.version())
    benchmark.pedantic(engine.run, (inputs,), rounds=5, warmup_rounds=1)  # type: ignore[no-untyped-call]
    engine.close()
