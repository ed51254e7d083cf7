"""Fixtures that several folders of tests share."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from diffplugin.bundle import Bundle, default_bundle, list_files, open_bundle
from diffplugin.integrity import sha256
from diffplugin.manifest import GraphEntry
from diffplugin.shapes import Range, full_profile

if TYPE_CHECKING:
    from tests.engines.fake_driver import FakeDriver
    from tests.engines.fake_tensorrt import FakeTensorRt

ROOT = Path(__file__).resolve().parents[1]
PACKED = ROOT / "tests" / "data" / "oracle.tar.xz"


@pytest.fixture
def signals_are_heard() -> Iterator[None]:
    """By child processes: they inherit what nohup, or a job in a shell's background, ignores."""
    numbers = [signal.SIGINT, *([signal.SIGHUP] if os.name == "posix" else [])]
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if before[number] == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    yield
    for number in numbers:
        signal.signal(number, before[number])


@pytest.fixture(scope="session")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random-weight model in the released layouts, and what the released scripts computed from it.

    The whole set where it lies beside the repository (or in ``DIFFPLUGIN_ORACLE``); else the copy in the repository,
    which has the same files with fewer tensors in them. A test compares every tensor that a golden file holds.
    """
    beside = Path(os.environ.get("DIFFPLUGIN_ORACLE", ROOT.parent / "shared" / "oracle"))
    if (beside / "golden").is_dir():
        return beside
    folder = tmp_path_factory.mktemp("oracle")
    with tarfile.open(PACKED) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def oracle_bundle(oracle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The oracle's checkpoint exported without validation: the goldens are its validation."""
    pytest.importorskip("torch", reason="needs the extra [export]")
    from diffplugin.export.checkpoints import find
    from diffplugin.export.exporter import export_bundle

    root = oracle / "checkpoint"
    checkpoint = find(root / "stable-diffusion", root / "clip", root / "pre-trained")
    return export_bundle(checkpoint, tmp_path_factory.mktemp("bundle") / "oracle", name="oracle", validate=False)


@pytest.fixture(scope="session")
def device_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The embedded model with a ``step`` graph and engines of the fake TensorRT: latent sides 8 to 32, up to 4
    timesteps of the SCB at once."""
    ir = pytest.importorskip("onnx_ir", reason="needs the extra [export]")
    from diffplugin.export.step import to_step
    from tests.engines.fake_tensorrt import fake_engines

    source = open_bundle(default_bundle())
    folder = tmp_path_factory.mktemp("device") / "embedded"
    shutil.copytree(source.path, folder)
    graph = ir.load(folder / "onnx/unet.onnx")
    to_step(graph, source.spec("step"))
    ir.save(graph, folder / "onnx/step.onnx")
    step = GraphEntry(file="onnx/step.onnx", sha256=sha256(folder / "onnx/step.onnx"), weights_bytes=0)
    manifest = replace(source.manifest, graphs={**source.manifest.graphs, "step": step})
    side = Range(8, 16, 32)
    profile = full_profile(side, side, manifest.dims, batch=4, plugins=len(manifest.plugins))
    engines = fake_engines(Bundle(folder, manifest), [profile])
    return Bundle(folder, replace(manifest, engines=engines, files=list_files(folder)))


@pytest.fixture(scope="session")
def half_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with one plugin, derain, and its fp16 variant; no engines."""
    pytest.importorskip("torch", reason="needs the extra [export]")
    from diffplugin.bundle import write_manifest
    from diffplugin.export.checkpoints import embedded_checkpoint
    from diffplugin.export.fp16.variant import export_fp16

    out = tmp_path_factory.mktemp("half") / "embedded"
    shutil.copytree(default_bundle(), out)
    manifest = open_bundle(out).manifest
    for plugin in set(manifest.plugins) - {"derain"}:
        shutil.rmtree(out / "plugins" / plugin)
    graphs = {k: e for k, e in manifest.graphs.items() if k.partition("/")[2] in ("", "derain")}
    manifest = replace(manifest, graphs=graphs, plugins=("derain",))
    variants = {"fp16": export_fp16(embedded_checkpoint(["derain"])[0], out, lambda line: None)}
    write_manifest(out, replace(manifest, variants=variants, files=list_files(out)))
    return out


@pytest.fixture(scope="session")
def ncnn_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with its graphs for ncnn."""
    pytest.importorskip("torch", reason="needs the extra [export]")
    pytest.importorskip("ncnn", reason="needs the extra [ncnn]")
    pytest.importorskip("pnnx", reason="needs the extra [ncnn-export]")
    from diffplugin.bundle import write_manifest
    from diffplugin.export.checkpoints import embedded_checkpoint
    from diffplugin.export.ncnn import export_ncnn

    out = tmp_path_factory.mktemp("ncnn") / "embedded"
    shutil.copytree(default_bundle(), out)
    variants = {"ncnn": export_ncnn(embedded_checkpoint([])[0], out, lambda line: None)}
    write_manifest(out, replace(open_bundle(out).manifest, variants=variants, files=list_files(out)))
    return out


@pytest.fixture(scope="session")
def cuda_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with one plugin, derain, and its graphs for ONNX Runtime's CUDA provider: all in float16, in
    float32 all but the autoencoder's."""
    pytest.importorskip("torch", reason="needs the extra [export]")
    ir = pytest.importorskip("onnx_ir", reason="needs the extra [export]")
    from diffplugin.bundle import list_files, write_manifest
    from diffplugin.export.checkpoints import embedded_checkpoint
    from diffplugin.export.cuda import cuda_graph
    from diffplugin.export.fp16.convert import to_fp16
    from diffplugin.export.fp16.variant import write, write_step
    from diffplugin.export.graphs import graph_keys, module_for

    out = tmp_path_factory.mktemp("cuda") / "embedded"
    shutil.copytree(default_bundle(), out)
    manifest = open_bundle(out).manifest
    for plugin in set(manifest.plugins) - {"derain"}:
        shutil.rmtree(out / "plugins" / plugin)
    card = out / "plugins" / "derain" / "card.toml"  # shown as decoded: all of a stage is in its graph then
    card.write_text(
        re.sub(r'output = "residual"\n(coring\w* = \d+\n)+', 'output = "decoded"\n', card.read_text("utf-8")), "utf-8"
    )
    graphs = {k: e for k, e in manifest.graphs.items() if k.partition("/")[2] in ("", "derain")}
    manifest = replace(manifest, graphs=graphs, plugins=("derain",))
    checkpoint, bundle = embedded_checkpoint(["derain"])[0], Bundle(out, manifest)
    variants: dict[str, dict[str, GraphEntry]] = {"cuda-fp16": {}, "cuda-fp32": {}}
    for key in graph_keys(checkpoint):
        spec, module = bundle.spec(key), module_for(checkpoint, key)
        if key.startswith("vae"):
            model = cuda_graph(module, spec, "fp16", factor=manifest.dims.factor)
        else:  # but for the autoencoder's norms the two are traced alike
            model = cuda_graph(module, spec, "fp32", factor=manifest.dims.factor)
            variants["cuda-fp32"][key] = write(model, out, key, "cuda-fp32", beside=key == "unet")
            model = ir.load(out / variants["cuda-fp32"][key].file)
            to_fp16(model, spec.graph)
        variants["cuda-fp16"][key] = write(model, out, key, "cuda-fp16", beside=key == "unet")
    for variant, entries in variants.items():
        entries["step"] = write_step(out, bundle.spec("step"), variant)
    write_manifest(out, replace(manifest, variants=variants, files=list_files(out)))
    return out


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder of dp-train with two test photos."""
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    rows = []
    for i in range(2):
        smooth = np.clip(rng.normal(128, 40, (9, 9, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(smooth).resize((96, 80), Image.Resampling.BICUBIC).save(tmp_path / f"photos/p{i}.png")
        fields = {"package": "p", "source": "s", "licence": "CC0", "holder": "h", "split": "test"}
        rows.append({"file": f"p{i}.png", **fields})
    (tmp_path / "photos.json").write_text(json.dumps(rows))
    return tmp_path


@pytest.fixture
def driver() -> FakeDriver:
    """A device that is the host's memory."""
    from tests.engines.fake_driver import FakeDriver

    return FakeDriver()


@pytest.fixture
def library(driver: FakeDriver) -> FakeTensorRt:
    """TensorRT's API on that device."""
    from tests.engines.fake_tensorrt import FakeTensorRt

    return FakeTensorRt(driver)
