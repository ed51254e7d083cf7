"""Megapixel rows end to end on the embedded model; photos, classic filters, arithmetic and floor by themselves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip("skimage", reason="needs the extra [bench]")
pytest.importorskip("openvino", reason="needs the extra [bench]")
pytest.importorskip("onnx", reason="needs the extra [bench]")

from PIL import Image

from diffplugin.bench import floor, megapixels_report
from diffplugin.bench.arithmetic import products
from diffplugin.bench.classic import FILTERS, apply
from diffplugin.bench.cli import main
from diffplugin.bench.megapixels import PLAIN, parse_size, photo_of, picture_psnr
from diffplugin.bench.work import Work
from diffplugin.bundle import Bundle, open_bundle
from diffplugin.bundle import default_bundle as embedded
from diffplugin.errors import RequestError
from diffplugin.export.measures import psnr
from diffplugin.spec import GraphSpec


def test_rows_end_to_end_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFPLUGIN_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    asked = ["megapixels", "--size", "96x64", "--plugin", "derain", "--contender", PLAIN, "--contender", "median"]
    assert main([*asked, "--out", str(out)]) == 0
    result = json.loads((out / "results.json").read_text())
    plain, median = megapixels_report.rows(result)
    assert (plain["contender"], median["contender"]) == (PLAIN, "median")
    assert plain["psnr_db"] > plain["psnr_input_db"] + 1, "the network removes rain"
    assert plain["gap"] > 1 and plain["gmac"] > 1 and median["gap"] is None
    assert plain["peak_gib"] > 0.03 and plain["cpu_s"].median > 0 and 10 < median["psnr_exact_db"] < 60
    made = megapixels_report.parts(result, "96x64", PLAIN)
    named = {part["part"]: part for part in made}
    assert named["unet"]["runs"] >= 1 and named["the rest"]["cpu_s"] > 0
    assert sum(part["cpu_s"] for part in made) == pytest.approx(plain["cpu_s"].median)
    assert sum(part["gmac"] or 0 for part in made) == pytest.approx(plain["gmac"])
    text = (out / "results.md").read_text()
    assert "gap" in text and str(tmp_path) not in text

    before = (out / "samples.jsonl").read_text()
    assert main([*asked, "--out", str(out)]) == 2  # refuses to write over a result
    assert main([*asked, "--out", str(out), "--resume"]) == 0
    assert (out / "samples.jsonl").read_text() == before, "measured again what was there"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "ten"], "ten"),
        (["--size", "900"], "900"),
        (["--contender", "nobody"], "nobody"),
        (["--plugin", "nothing"], "nothing"),
        (["--photo", "absent.jpg"], "absent.jpg"),
        (["--photo", "absent.jpg", "--size", "1"], "--size"),
        (["--rounds", "0"], "rounds is 0"),
    ],
)
def test_complaints_are_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["megapixels", *words, "--out", str(tmp_path / "out")]) in (1, 2)
    complaint = capsys.readouterr().err
    assert complaint.startswith("dp-bench: ") and complaint.count("\n") == 1 and said in complaint
    assert not (tmp_path / "out").exists()


def test_sizes() -> None:
    assert parse_size("512x384") == Work(512, 384)
    for text in ("0.25", "1", "12", "48"):
        work = parse_size(text)
        assert work.width * work.height == pytest.approx(float(text) * 1e6, rel=2e-3)
        assert work.width / work.height == pytest.approx(4 / 3, rel=2e-3)
    with pytest.raises(RequestError, match="megapixels"):
        parse_size("1e9")


def test_photos_are_mirrored_beyond_a_megapixel() -> None:
    small, large = photo_of(Work(400, 300)), photo_of(Work(1600, 1200))
    assert small.shape == (300, 400, 3) and large.shape == (1200, 1600, 3)
    half = round(1600 * (1e6 / (1600 * 1200)) ** 0.5)
    assert np.array_equal(large[:, half : half + 100], large[:, half - 100 : half][:, ::-1])


def test_psnr_of_files(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (600, 40, 3), dtype=np.uint8) for _ in range(2)]
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for picture, file in zip(pictures, files, strict=True):
        Image.fromarray(picture).save(file)
    assert picture_psnr(*files) == pytest.approx(psnr(*pictures))
    assert picture_psnr(files[0], files[0]) == 99


@pytest.mark.parametrize("name", FILTERS)
def test_classic_filters_do_what_they_are_for(name: str) -> None:
    from scipy import ndimage

    clean = photo_of(Work(160, 120))
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 20, clean.shape), 0, 255).astype(np.uint8)
    blurred = ndimage.gaussian_filter(clean, (1, 1, 0))
    given = blurred if name == "unsharp" else noisy
    made = apply(name, given)
    assert made.dtype == np.uint8 and made.shape == clean.shape
    assert psnr(made, clean) > psnr(given, clean) + 0.5, name


@dataclass
class OneGraph:
    """What :func:`products` needs of a bundle."""

    path: Path
    graph: GraphSpec

    def spec(self, key: str) -> GraphSpec:
        return self.graph

    def graph_file(self, key: str) -> Path:
        return self.path


def test_multiplications_of_a_plain_graph(tmp_path: Path) -> None:
    path, spec = floor._onnx(tmp_path, 24, 32)
    found = products(cast(Bundle, OneGraph(path, spec)), "floor", {})
    assert [p.width for p in found] == [24] * floor.LAYERS
    assert sum(p.macs for p in found) == floor.LAYERS * 9 * 24 * 24 * 32 * 32


def test_multiplications_of_the_embedded_graphs() -> None:
    bundle = open_bundle(embedded())

    def macs(key: str, side: int) -> int:
        sizes = {"h": side, "w": side, "H": side * 8, "W": side * 8, "n": 1}
        return sum(p.macs for p in products(bundle, key, sizes))

    small, large = macs("vae_decoder", 16), macs("vae_decoder", 32)
    assert 0.9 < large / small / 4 < 1.1, "convolutions grow with the area"
    tokens, width = bundle.manifest.dims.tokens, bundle.manifest.dims.token_width
    kinds = [p.kind for p in products(bundle, f"tpb/{bundle.manifest.plugins[0]}", {"n": 1})]
    assert kinds == ["MatMul"] * 3 and macs(f"tpb/{bundle.manifest.plugins[0]}", 16) >= tokens * width**2
    attention = [p for p in products(bundle, "clip_vision", {}) if p.kind == "ScaledDotProductAttention"]
    assert attention and attention[0].macs == 2 * (tokens + 1) ** 2 * bundle.manifest.dims.vision_width


def engines() -> list[Any]:
    import importlib.util

    return [pytest.param(e, id=e) for e in floor.ENGINES if importlib.util.find_spec(e)]


@pytest.mark.parametrize("engine", engines())
def test_the_floor_is_the_same_convolution_in_every_engine(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outputs(name: str) -> np.ndarray[Any, Any]:
        made = floor._MAKERS[name](tmp_path, "fp32", 16, 32)()
        return np.asarray(next(iter(dict(cast(Any, made)).values())))

    expected, found = outputs("onnxruntime"), outputs(engine)
    error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    print(f"{engine}: relative error {error:.1e}")
    assert error < 1e-4
    monkeypatch.setattr(floor, "SECONDS", 0.05)
    rate = floor.rates(engine, "fp32", [32])[32]
    assert 1e8 < rate < 1e13, f"{engine}: {rate:.2e} multiplications a second"


def test_main_widths_of_the_embedded_model() -> None:
    bundle = open_bundle(embedded())
    widths = floor.main_widths(bundle, ("vae_encoder", "unet", "vae_decoder"))
    assert len(widths) == 4 and len(set(widths)) == 4 and all(8 <= width <= 512 for width in widths)
