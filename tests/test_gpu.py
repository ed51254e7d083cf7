"""On an NVIDIA GPU: engines built for it here, the captured loop against the plain one. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from PIL import Image

import diffplugin
from diffplugin.engines.choice import EngineName, get_builder
from diffplugin.engines.cuda import CudaDriver
from diffplugin.runtime.execution.captured_stage import Difference
from diffplugin.runtime.options import Sampler
from diffplugin.runtime.restorer import Restorer
from diffplugin.spec import Array

pytestmark = pytest.mark.gpu
EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"
FIDELITY = 60.0  # dB of the fp16 picture against float32's, as bench.gpu_acceptance.bars
# Most that a value in [-1, 1] may differ between a replay and plain enqueues: these norms sum in no fixed order.
UNORDERED = {"onnxruntime-cuda": 2e-2}
LEFT = 64 * 2**20  # bytes that the libraries may keep


@pytest.fixture(scope="module")
def driver() -> CudaDriver:
    made = CudaDriver()
    if reason := made.unavailable_reason():
        pytest.skip(reason)
    return made


@pytest.fixture(scope="module", params=["onnxruntime-cuda", "tensorrt-rtx", "tensorrt"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The embedded model with engines for 256x256 and 192x256 pixels, and what built them."""
    builder = get_builder(request.param)
    if reason := builder.unavailable_reason() or builder.build_unavailable_reason():
        pytest.skip(reason)
    pytest.importorskip("torch", reason="needs the extra [export]")
    from diffplugin.export.checkpoints import embedded_checkpoint
    from diffplugin.export.exporter import export_bundle
    from diffplugin.export.prebuild import parse_size

    checkpoint, cards, name = embedded_checkpoint([])
    sizes = (parse_size("256"), parse_size("256x192"))
    out = tmp_path_factory.mktemp(request.param) / "embedded"
    export_bundle(
        checkpoint, out, name=name, cards=cards, engine=request.param, precision="fp16", sizes=sizes, validate=False
    )
    return out, request.param


@pytest.fixture(scope="module")
def restorer(bundle: tuple[Path, str]) -> Iterator[Restorer]:
    with diffplugin.load(bundle[0], engine=cast(EngineName, bundle[1]), precision="fp16") as made:
        yield made


def _photo(height: int, width: int, top: int = 200) -> Array:
    with Image.open(EXAMPLES / "mountains-rainy.jpg") as image:
        return np.ascontiguousarray(np.asarray(image.convert("RGB"))[top : top + height, 100 : 100 + width])


def _psnr(a: Array, b: Array) -> float:
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(float) - b.astype(float)) ** 2), 1e-12)))


def test_memory_streams_and_copies(driver: CudaDriver) -> None:
    sent, back = np.arange(1000, dtype=np.float32), np.zeros(1000, np.float32)
    address, stream = driver.malloc(sent.nbytes), driver.open_stream()
    driver.upload(address, sent, stream)
    driver.download(back, address, stream)
    driver.synchronize(stream)
    driver.close_stream(stream)
    driver.free(address)
    assert np.array_equal(back, sent) and address % 256 == 0


@pytest.mark.parametrize("plugins", [["derain"], ["lowlight"], ["derain", "dehaze"]])
def test_replays_are_plain_enqueues(restorer: Restorer, plugins: list[str]) -> None:
    """Bit for bit, where the library's sums have an order."""
    assert restorer.device is not None
    compared: list[Difference] = []
    restorer.device.compared = compared
    pictures = [restorer.restore(_photo(256, 256, top), plugins=plugins, steps=4).array for top in (100, 200, 100)]
    bound = UNORDERED.get(restorer.engine, 0.0)
    assert len(compared) >= 2 and all(found.largest <= bound for found in compared), compared
    if bound == 0:
        assert all(found.different == 0 for found in compared) and np.array_equal(pictures[0], pictures[2])
    assert _psnr(pictures[0], pictures[2]) >= 50 and not np.array_equal(pictures[0], pictures[1])
    captured = restorer.device._stages.values()
    assert all(picture.replays for picture in captured), [picture.plain_reason for picture in captured]


@pytest.mark.parametrize("sampler", ["unipc", "ddim"])
@pytest.mark.parametrize("size", [(256, 256), (192, 256)])
def test_pictures_are_those_of_the_float32_loop(restorer: Restorer, size: tuple[int, int], sampler: Sampler) -> None:
    with diffplugin.load(engine="onnxruntime", precision="fp32") as reference:
        for plugin in ("derain", "lowlight", "dehaze"):
            made = restorer.restore(_photo(*size), plugins=[plugin], steps=10, sampler=sampler)
            assert made.plan.loop == "device", made.plan.loop_reason
            expected = reference.restore(_photo(*size), plugins=[plugin], steps=10, sampler=sampler).array
            found = _psnr(made.array, expected)
            assert found >= FIDELITY, f"{plugin} {size} {sampler}: {found:.1f} dB"


@pytest.mark.parametrize("size", [(130, 200), (256, 400)])
def test_other_sizes_are_grown_or_cut(restorer: Restorer, size: tuple[int, int]) -> None:
    made = restorer.restore(_photo(*size), plugins=["derain"], steps=2)
    built = restorer.engine != "onnxruntime-cuda"  # which takes every size as it is
    assert made.array.shape == (*size, 3) and made.plan.loop == ("host" if built and size[1] > 256 else "device")


def test_the_host_runs_what_the_device_loop_does_not(restorer: Restorer) -> None:
    made = restorer.restore(_photo(256, 256), plugins=["derain"], steps=2, observe=lambda *_: None)
    device = restorer.restore(_photo(256, 256), plugins=["derain"], steps=2)
    assert _psnr(made.array, device.array) >= FIDELITY


def test_closing_gives_the_memory_back(bundle: tuple[Path, str], driver: CudaDriver) -> None:
    free = []
    for _ in range(3):
        with diffplugin.load(bundle[0], engine=cast(EngineName, bundle[1]), precision="fp16") as restorer:
            restorer.restore(_photo(256, 256), plugins=["derain"], steps=3)
        free.append(driver.memory()[0])
    assert free[0] - free[2] <= LEFT, f"free after each run: {free}"
