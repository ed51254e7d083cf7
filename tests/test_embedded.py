"""The embedded model does what README promises: it improves photographs, without any heavy package."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import diffplugin
from diffplugin.bundle import default_bundle, open_bundle
from diffplugin.engines.choice import choose
from diffplugin.runtime.planning.quality import EXACT, QUALITIES
from diffplugin.runtime.restoration import Restoration
from diffplugin.runtime.restorer import Restorer
from diffplugin.spec import Array

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "docs" / "examples"
# Photographs that were never trained on, the request, the plugin that must answer, and the least gain in PSNR.
PHOTOS = [
    ("moose-dark.jpg", "moose.jpg", "brighten this dark photo", "lowlight", 10.0),
    ("mountains-hazy.jpg", "mountains.jpg", "remove the haze", "dehaze", 6.0),
    ("mountains-rainy.jpg", "mountains.jpg", "remove the rain", "derain", 3.5),
]
# Request, and mean gain in PSNR, dB, over both clean photographs, degraded with three seeds each at 256 pixels.
TASKS = [
    ("derain", "remove the rain", 9.38),
    ("desnow", "remove the snow", 9.18),
    ("lowlight", "brighten this dark photo", 11.65),
    ("dehaze", "remove the haze", 9.72),
    ("deblur", "remove the blur", 0.63),
    ("highlight", "remove the specular highlights", 2.83),
    ("face", "restore this face", 0.52),
    ("demoire", "remove the moire pattern", 4.34),
]


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    return diffplugin.load(engine="onnxruntime")


def _psnr(a: Array, b: Array) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def _rgb(name: str) -> Array:
    with Image.open(EXAMPLES / name) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(("degraded", "clean", "request_", "plugin", "gain"), PHOTOS, ids=[p[3] for p in PHOTOS])
def test_improves_photographs_it_has_not_seen(
    restorer: Restorer, degraded: str, clean: str, request_: str, plugin: str, gain: float
) -> None:
    result = restorer.restore(EXAMPLES / degraded, request_)
    assert result.selection.chosen == (plugin,)
    truth = _rgb(clean)
    before, after = _psnr(_rgb(degraded), truth), _psnr(result.array, truth)
    assert after - before >= gain, f"{degraded}: {before:.1f} -> {after:.1f} dB"


@pytest.mark.parametrize(("task", "request_", "gain"), TASKS, ids=[t[0] for t in TASKS])
def test_every_task_gains(restorer: Restorer, task: str, request_: str, gain: float) -> None:
    degradations = pytest.importorskip("diffplugin.plugins.train.degradations", exc_type=ImportError)
    gains = []
    for name in ("moose.jpg", "mountains.jpg"):
        with Image.open(EXAMPLES / name) as image:
            side = min(image.size)
            truth = np.asarray(image.convert("RGB").crop((0, 0, side, side)).resize((256, 256)))
        for seed in (1, 2, 3):
            degraded = degradations.degrade(truth, task, seed)
            result = restorer.restore(degraded, request_)
            assert result.selection.chosen == (task,)
            gains.append(_psnr(result.array, truth) - _psnr(degraded, truth))
    assert np.mean(gains) >= 0.8 * gain, f"{task}: {np.mean(gains):.2f} dB of {gain}: {np.round(gains, 2)}"


@pytest.mark.parametrize("words", ["make it a watercolor painting", "hello", "colour this old photo"])
def test_what_it_cannot_do_leaves_the_picture_untouched(restorer: Restorer, words: str) -> None:
    result = restorer.restore(EXAMPLES / "moose.jpg", words)
    assert result.untouched and np.array_equal(result.array, _rgb("moose.jpg"))


def test_same_seed_same_pixels(restorer: Restorer) -> None:
    photo = _rgb("moose-dark.jpg")[:128, :160]
    first, again, other = (restorer.restore(photo, plugins=["lowlight"], seed=s).array for s in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


@pytest.mark.parametrize(("degraded", "plugin"), [(p[0], p[3]) for p in PHOTOS], ids=[p[3] for p in PHOTOS])
def test_less_work_at_the_same_steps_is_nearly_the_same_picture(degraded: str, plugin: str) -> None:
    """At 20 steps, 128x128: 48.8 to 55.4 dB against the exact run were measured."""
    photo, made = np.ascontiguousarray(_rgb(degraded)[192:320, 256:384]), dict[str, Restoration]()
    alone: list[np.ndarray] = []
    for quality in ("exact", "balanced", "fast"):
        with diffplugin.load(engine="onnxruntime", precision="fp32", quality=quality) as restorer:
            made[quality] = restorer.restore(photo, plugins=[plugin], steps=20)
            alone.append(restorer.restore(photo, plugins=[plugin], steps=1).array)
        assert np.array_equal(alone[0], alone[-1]), "one step has nothing to share"
        assert made[quality].plan.quality == quality and made[quality].plan.unet_runs == 20
    for quality in ("balanced", "fast"):
        found = _psnr(made[quality].array, made["exact"].array)
        assert made[quality].plan.full_unet_runs < 20 and made[quality].plan.scb_runs < 20
        assert found >= 45, f"{plugin}, {quality}: {found:.1f} dB"


def test_high_quality_costs_little() -> None:
    """At 20 steps and float32, so that nothing else differs; 128x128."""
    photo, made = np.ascontiguousarray(_rgb("mountains-rainy.jpg")[192:320, 256:384]), {}
    builder, _, _ = choose("onnxruntime", "fp32")
    for quality in (EXACT, QUALITIES["high"]):
        with Restorer(open_bundle(default_bundle()), builder, "fp32", quality=quality) as restorer:
            result = restorer.restore(photo, plugins=["derain"], steps=20)
        made[result.plan.scb_runs] = result.array
    found = _psnr(made[11], made[20])
    assert 50 <= found < 99, f"{found:.1f} dB"


def test_no_heavy_package_is_imported_at_run_time() -> None:
    """A whole restoration, in a process where these packages cannot be imported."""
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "diffusers", "onnx", "onnx_ir", "onnxscript", "scipy",
                                       "cuda", "tensorrt", "tensorrt_rtx"}:
            raise AssertionError(f"{name} was imported")
sys.meta_path.insert(0, Refuse())
from diffplugin.runtime.cli import main
sys.exit(main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", code, str(EXAMPLES / "moose-dark.jpg"), "brighten it", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_the_python_example_of_readme_runs(tmp_path: Path) -> None:
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    shutil.copy(EXAMPLES / "moose-dark.jpg", tmp_path / "photo.jpg")
    command = [sys.executable, "-W", "error", "-c", block[1]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "bright.jpg").is_file() and "lowlight" in done.stdout
