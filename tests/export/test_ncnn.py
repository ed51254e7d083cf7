"""Conversion for ncnn, and what an export does with it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra [export]")
pytest.importorskip("ncnn", reason="needs the extra [ncnn]")
pytest.importorskip("pnnx", reason="needs the extra [ncnn-export]")

import pnnx
import torch

from diffplugin.bundle import open_bundle
from diffplugin.engines.ncnn import NcnnEngine, folder_name
from diffplugin.errors import EngineError, MissingDependency, ParityError
from diffplugin.export import ncnn
from diffplugin.export.checkpoints import embedded_checkpoint, find
from diffplugin.export.exporter import export_bundle
from diffplugin.export.graphs import module_for
from diffplugin.export.maintenance import verify
from diffplugin.export.measures import relative_error
from diffplugin.export.onnx import example_inputs
from diffplugin.export.prebuild import parse_size
from diffplugin.plugins.networks.attention import Attention
from diffplugin.spec import GraphSpec, graph_specs

Decoder = tuple[torch.nn.Module, GraphSpec, int]


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    checkpoint = embedded_checkpoint([])[0]
    spec = graph_specs(checkpoint.dims)["vae_decoder"]
    return module_for(checkpoint, "vae_decoder"), spec, checkpoint.dims.factor


def test_the_same_network_gives_the_same_files(decoder: Decoder, ncnn_bundle: Path, tmp_path: Path) -> None:
    module, spec, factor = decoder
    ncnn.convert(module, spec, tmp_path / "vae_decoder.param", factor=factor)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["vae_decoder.bin", "vae_decoder.param"]
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (ncnn_bundle / folder_name() / path.name).read_bytes(), path.name
    text = (tmp_path / "vae_decoder.param").read_text()
    assert "Input latents 0 1 latents" in text and str(tmp_path) not in text


def test_weights_that_float16_cannot_hold_stay_float32(decoder: Decoder, ncnn_bundle: Path, tmp_path: Path) -> None:
    _, spec, factor = decoder
    finer = module_for(embedded_checkpoint([])[0], "vae_decoder")
    with torch.no_grad():
        for p in finer.parameters():
            p.mul_(1.0001)
    ncnn.convert(finer, spec, tmp_path / "finer.param", factor=factor)
    sizes = [path.stat().st_size for path in (ncnn_bundle / folder_name() / "vae_decoder.bin", tmp_path / "finer.bin")]
    assert 1.9 * sizes[0] < sizes[1] < 2.1 * sizes[0], sizes
    given = example_inputs(spec, {"h": 9, "w": 14})
    made = NcnnEngine(spec, tmp_path / "finer.param", 1).run(given)["image"]
    with torch.inference_mode():
        expected = finer(torch.from_numpy(given["latents"])).numpy()
    assert relative_error(made, expected) < 3e-5


def test_the_released_layouts_decoder(oracle: Path, tmp_path: Path) -> None:
    """Self-attention over all pixels, which the embedded decoder lacks, and a first layer that works in place."""
    root = oracle / "checkpoint"
    checkpoint = find(root / "stable-diffusion", root / "clip", root / "pre-trained", ["derain"])
    spec, module = graph_specs(checkpoint.dims)["vae_decoder"], module_for(checkpoint, "vae_decoder")
    ncnn.convert(module, spec, tmp_path / "graph.param", factor=checkpoint.dims.factor)
    engine = NcnnEngine(spec, tmp_path / "graph.param", 1)
    for h, w in ((8, 8), (9, 14)):
        given = example_inputs(spec, {"h": h, "w": w})
        before = given["latents"].copy()
        with torch.inference_mode():
            expected = module(torch.from_numpy(given["latents"])).numpy()
        assert relative_error(engine.run(given)["image"], expected) < 3e-5
        np.testing.assert_array_equal(given["latents"], before)


def test_an_attention_that_adds_nothing_computes_nothing(ncnn_bundle: Path) -> None:
    """The embedded UNet's middle block has one self-attention whose output weights are zero."""
    text = (ncnn_bundle / folder_name() / "unet.param").read_text()
    blocks = module_for(embedded_checkpoint([])[0], "unet")
    attentions = [m for m in blocks.modules() if isinstance(m, Attention)]
    silent = [m for m in attentions if not any(p.any() for p in m.to_out.parameters())]
    assert len(silent) == 1 and text.count("SDPA") == len(attentions) - 1


def test_without_pnnx_it_says_so_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    checkpoint, cards, name = embedded_checkpoint(["derain"])
    with pytest.raises(MissingDependency, match=r"package pnnx; pip install 'diffplugin\[ncnn-export\]'"):
        export_bundle(checkpoint, tmp_path / "out", name=name, cards=cards, engine="ncnn")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_pnnx_cannot_convert_is_one_line(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    module, spec, factor = decoder
    monkeypatch.setattr(pnnx, "EXEC_PATH", "/bin/false")
    with pytest.raises(EngineError, match=r"^vae_decoder: pnnx cannot convert it \(exit code 1; no output\)$"):
        ncnn.convert(module, spec, tmp_path / "graph.param", factor=factor)
    assert list(tmp_path.iterdir()) == []


def _export(out: Path, lines: list[str]) -> Path:
    checkpoint, cards, name = embedded_checkpoint(["derain"])
    sizes = [parse_size("128")]
    return export_bundle(checkpoint, out, name=name, cards=cards, engine="ncnn", sizes=sizes, log=lines.append)


@pytest.mark.slow
def test_an_export_proves_its_graphs_at_three_sizes(tmp_path: Path) -> None:
    lines: list[str] = []
    made = _export(tmp_path / "bundle", lines)
    manifest = open_bundle(made).manifest
    assert set(manifest.variants["ncnn"]) == {"vae_encoder", "unet", "unet_shallow", "vae_decoder", "scb/derain"}
    assert verify(made) == [] and f"{folder_name()}/unet.bin" in manifest.files
    assert manifest.parity["engine"] == "ncnn" and manifest.parity["engines"]["compared"]
    assert manifest.parity["engines"]["largest_relative_error"] <= manifest.parity["relative_error_budget"] == 5e-4
    assert sum(line.startswith("engine of unet ") for line in lines) == 2, lines


@pytest.mark.slow
def test_a_side_that_was_taken_for_fixed_stops_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both examples are 4 wide on the UNet's lowest level, so pnnx takes that width for a constant."""
    monkeypatch.setattr(ncnn, "_EXAMPLES", ((12, 16), (22, 14)))
    with pytest.raises((ParityError, EngineError), match="unet"):
        _export(tmp_path / "bundle", [])
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_bf16_has_a_budget_of_its_own(tmp_path: Path) -> None:
    checkpoint, cards, name = embedded_checkpoint(["derain"])
    made = export_bundle(
        checkpoint, tmp_path / "b", name=name, cards=cards, engine="ncnn", precision="bf16", sizes=[parse_size("64")]
    )
    parity = open_bundle(made).manifest.parity
    assert parity["precision"] == "bf16" and np.isfinite(parity["picture_psnr_db"])
    assert set(open_bundle(made).manifest.variants) == {"ncnn"}
