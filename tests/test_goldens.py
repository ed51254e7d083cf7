"""What the released inference scripts computed, met end to end by the reference and by every float32 engine.

Tolerances are those of the goldens: relative L2 error of every tensor, PSNR of the final 8-bit picture, selector
scores. The pictures go through the whole restorer: files, sizes, CLIP's view, noise, sampler, chain.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from PIL import Image

import diffplugin
from diffplugin.bench.goldens import distance
from diffplugin.bundle import list_files, open_bundle, write_manifest
from diffplugin.engines.choice import EngineName
from diffplugin.export.measures import psnr
from diffplugin.runtime.restorer import Restorer
from diffplugin.spec import Array

if TYPE_CHECKING:
    from diffplugin.export.checkpoints import Checkpoint

# (largest relative error of a tensor, smallest PSNR in dB)
TOLERANCE = {"reference": (1e-5, 80.0), "onnxruntime": (1e-4, 70.0), "openvino": (1e-4, 70.0), "ncnn": (5e-4, 70.0)}
SCORES = 1e-4
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def restorers(
    oracle: Path, oracle_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Restorer]]:
    """The oracle's model by engine, each loaded once."""
    loaded: dict[str, Restorer] = {}

    def get(engine: str) -> Restorer:
        if engine not in loaded:
            known = cast(EngineName, engine)
            if engine == "reference":
                loaded[engine] = _reference(oracle, oracle_bundle)
            elif engine == "ncnn":
                loaded[engine] = _engine(
                    _with_ncnn(oracle, oracle_bundle, tmp_path_factory.mktemp("ncnn") / "b"), known
                )
            else:
                loaded[engine] = _engine(oracle_bundle, known)
        return loaded[engine]

    yield get
    for restorer in loaded.values():
        restorer.close()


def _engine(bundle: Path, engine: EngineName) -> Restorer:
    if engine == "openvino":
        pytest.importorskip("openvino", reason="needs the extra [openvino]")
    return diffplugin.load(bundle, engine=engine, precision="fp32")


def _with_ncnn(oracle: Path, bundle: Path, out: Path) -> Path:
    """The bundle with graphs for ncnn besides."""
    pytest.importorskip("ncnn", reason="needs the extra [ncnn]")
    pytest.importorskip("pnnx", reason="needs the extra [ncnn-export]")
    from diffplugin.export.ncnn import export_ncnn

    shutil.copytree(bundle, out)
    variants = {"ncnn": export_ncnn(_checkpoint(oracle), out, lambda line: None)}
    write_manifest(out, replace(open_bundle(out).manifest, variants=variants, files=list_files(out)))
    return out


def _checkpoint(oracle: Path) -> Checkpoint:
    from diffplugin.export.checkpoints import find

    root = oracle / "checkpoint"
    return find(root / "stable-diffusion", root / "clip", root / "pre-trained")


def _reference(oracle: Path, bundle: Path) -> Restorer:
    from diffplugin.export.reference import ReferenceBuilder

    return Restorer(open_bundle(bundle), ReferenceBuilder(_checkpoint(oracle)), "fp32")


def _each(*quick_engines: str) -> list[object]:
    """All engines; those that are not named are slow."""
    return [pytest.param(engine, marks=() if engine in quick_engines else slow) for engine in TOLERANCE]


def _png(path: Path) -> Array:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _check_single(restorer: Restorer, engine: str, oracle: Path, name: str) -> None:
    found = distance(restorer, oracle, name)
    tensor_bound, picture_bound = TOLERANCE[engine]
    worse = {tensor: f"{error:.1e}" for tensor, error in sorted(found.errors.items()) if error > tensor_bound}
    assert not worse, f"{name} by {engine}, relative error over {tensor_bound:g}: {worse}"
    assert found.picture_db is None or found.picture_db >= picture_bound, f"{name} by {engine}: {found.picture_db} dB"


@pytest.mark.parametrize("engine", _each("onnxruntime"))
def test_derain_small_4(restorers: Callable[[str], Restorer], oracle: Path, engine: str) -> None:
    _check_single(restorers(engine), engine, oracle, "derain_small_4")


@slow
@pytest.mark.parametrize("name", ["lowlight_portrait_6", "deblur_landscape_20"])
@pytest.mark.parametrize("engine", list(TOLERANCE))
def test_other_single_plugins(restorers: Callable[[str], Restorer], oracle: Path, engine: str, name: str) -> None:
    _check_single(restorers(engine), engine, oracle, name)


@pytest.mark.parametrize("engine", _each("reference", "onnxruntime"))
def test_selector_scores(restorers: Callable[[str], Restorer], oracle: Path, engine: str) -> None:
    """Scores of the released demo within 1e-4, the same plugins chosen, and untouched pictures where none is."""
    for number in range(1, 5):
        golden = json.loads((oracle / f"golden/demo_{number}.json").read_text(encoding="utf-8"))
        photo = oracle / "golden/portrait.png"
        _, selection = restorers(engine).plan(photo, golden["prompt"], steps=3, size=512)
        expected = dict(zip(golden["tasks"], golden["scores"], strict=True))
        off = {task: abs(selection.scores[task] - score) for task, score in expected.items()}
        assert max(off.values()) <= SCORES, f"demo_{number} by {engine}: {off}"
        assert set(selection.chosen) == {task for task, score in expected.items() if score > 0 and task != "null"}
        if not selection.chosen:
            made = restorers(engine).restore(photo, golden["prompt"], steps=3, size=512)
            assert made.untouched and np.array_equal(made.array, _png(oracle / f"golden/demo_{number}.png"))


@slow
@pytest.mark.parametrize("engine", list(TOLERANCE))
def test_demo_chain(restorers: Callable[[str], Restorer], oracle: Path, engine: str) -> None:
    """demo_1 ran all three of its plugins, in the order of its own list of tasks, 8 bits between them."""
    golden = json.loads((oracle / "golden/demo_1.json").read_text(encoding="utf-8"))
    tasks = [task for task, score in zip(golden["tasks"], golden["scores"], strict=True) if score > 0]
    made = restorers(engine).restore(
        oracle / "golden/portrait.png", plugins=tasks, steps=3, size=512, output_size="working"
    )
    assert [stage.steps for stage in made.plan.chain] == [3, 3, 3]
    found = psnr(made.array, _png(oracle / "golden/demo_1.png"))
    assert found >= TOLERANCE[engine][1], f"demo_1 by {engine}: {found:.1f} dB"
