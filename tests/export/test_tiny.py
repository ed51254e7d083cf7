"""A tiny autoencoder in a bundle: exported and compared, used by ``fast``, refused where it does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra [export]")

from safetensors.torch import load_file, save_file

import diffplugin
from diffplugin.bundle import open_bundle
from diffplugin.export import cli
from diffplugin.plugins.networks.tiny_vae import TinyAutoencoder
from diffplugin.runtime.execution.residual import residual_output
from tests.export.checkpoints.tiny import write_tiny


def write_tiny_vae(folder: Path, levels: int = 2, **changes: Any) -> Path:
    torch.manual_seed(0)
    config = {
        "_class_name": "AutoencoderTiny",
        "latent_channels": 4,
        "encoder_block_out_channels": [8] * levels,
        "decoder_block_out_channels": [8] * levels,
        "num_encoder_blocks": [1] * levels,
        "num_decoder_blocks": [1] * levels,
        "in_channels": 3,
        "out_channels": 3,
        "latent_magnitude": 3,
    }
    folder.mkdir(parents=True)
    save_file(TinyAutoencoder(config).state_dict(), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_tiny(tmp_path_factory.mktemp("checkpoint") / "root")
    write_tiny_vae(root / "tiny_vae")
    return root


def _export(root: Path, out: Path, tiny: Path) -> int:
    where = {
        "base": root / "base",
        "clip": root / "clip",
        "plugins": root / "pre-trained",
        "out": out,
        "tiny-vae": tiny,
    }
    return cli.main([f"--{name}={path}" for name, path in where.items()] + ["--engine=onnxruntime"])


@pytest.mark.slow  # a whole export
def test_fast_takes_it_and_its_error_is_told(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DIFFPLUGIN_CACHE", str(tmp_path / "cache"))
    assert _export(checkpoint, tmp_path / "bundle", checkpoint / "tiny_vae") == 0
    manifest = open_bundle(tmp_path / "bundle").manifest
    told = manifest.parity["tiny_autoencoder"]
    assert set(told) == {"vae_db", "vae_change_db", "tiny_db", "tiny_change_db"}
    assert "tiny autoencoder" in capsys.readouterr().out
    assert {"tiny_encoder", "tiny_decoder"} <= set(manifest.parity["relative_error"]), "compared with PyTorch"
    assert "tiny_vae" in manifest.source
    photo = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    seen: dict[str, Any] = {}
    ways: tuple[tuple[Literal["exact", "fast"], str, str], ...] = (("exact", "vae", "tiny"), ("fast", "tiny", "vae"))
    for quality, own, other in ways:
        with diffplugin.load(tmp_path / "bundle", engine="onnxruntime", precision="fp32", quality=quality) as restorer:
            plan, _ = restorer.plan(photo, plugins=["deblur"], steps=2)
            (stage,) = plan.chain
            assert stage.tiny == (own == "tiny") and stage.output == ("residual" if stage.tiny else "decoded")
            made = restorer.restore(
                photo, plugins=["deblur"], steps=2, size=48, observe=lambda p, name, i, a: seen.update({name: a})
            )
            assert f"{own}_decoder" in made.timings and f"{other}_decoder" not in made.timings
    network = TinyAutoencoder(json.loads((checkpoint / "tiny_vae/config.json").read_text()))
    network.load_state_dict(load_file(checkpoint / "tiny_vae/diffusion_pytorch_model.safetensors"))
    image = torch.from_numpy(photo.astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1)
    with torch.no_grad():
        cond = network.encode(image)
        restored, reconstructed = (network.decode(z).numpy() for z in (torch.from_numpy(seen["z0"]), cond))
    assert np.allclose(seen["cond"], cond.numpy(), atol=1e-5)
    expected = ((residual_output(image.numpy(), restored, reconstructed, 0) + 1) * 127.5).round()[0].transpose(1, 2, 0)
    assert np.abs(made.array.astype(float) - expected).max() <= 1


@pytest.mark.parametrize(
    ("levels", "changes", "says"),
    [
        (3, {}, "tiny_vae factor is 4, vae factor is 2"),
        (2, {"act_fn": "silu"}, 'act_fn is "silu", expected "relu"'),
        (2, {"_class_name": "AutoencoderKL"}, '_class_name is "AutoencoderKL", expected AutoencoderTiny'),
        (2, {"num_decoder_blocks": [1]}, "num_decoder_blocks has 1 entries, decoder_block_out_channels has 2"),
        (2, {"encoder_block_out_channels": [8, 16]}, "expected one width at all levels"),
        (2, {"num_decoder_blocks": [1, 2]}, "diffusion_pytorch_model.safetensors"),
    ],
)
def test_one_that_does_not_fit_is_refused(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    levels: int,
    changes: dict[str, Any],
    says: str,
) -> None:
    assert _export(checkpoint, tmp_path / "bundle", write_tiny_vae(tmp_path / "tiny", levels, **changes)) == 1
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1 and not (tmp_path / "bundle").exists(), said


def test_a_folder_that_is_not_there_is_named(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _export(checkpoint, tmp_path / "bundle", tmp_path / "nowhere") == 1
    said = capsys.readouterr().err
    assert "nowhere" in said and said.count("\n") == 1, said
