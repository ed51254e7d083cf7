"""``dp-export`` on checkpoints of others: faults before any work, and what the bundle keeps of the configs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest

torch = pytest.importorskip("torch", reason="needs the extra [export]")

from diffplugin.bundle import open_bundle
from diffplugin.export import cli, exporter
from diffplugin.export.maintenance import verify
from diffplugin.runtime.sampling.noise_schedule import NoiseSchedule
from tests.export.checkpoints.tiny import write_json, write_tiny


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny")


def _arguments(root: Path, out: Path) -> list[str]:
    where = {"base": root / "base", "clip": root / "clip", "plugins": root / "pre-trained", "out": out}
    return [f"--{name}={path}" for name, path in where.items()] + ["--engine=onnxruntime", "--no-validate"]


def _change(path: Path, **settings: Any) -> None:
    write_json(path, json.loads(path.read_text()) | settings)


def test_every_fault_is_told_before_the_first_graph(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def traced(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a graph was traced")

    monkeypatch.setattr(exporter, "export_graph", traced)
    _change(tiny / "base/vae/config.json", norm_num_groups=5)
    _change(tiny / "base/scheduler/scheduler_config.json", trained_betas=[0.1])
    _change(tiny / "clip/preprocessor_config.json", resample=0)
    (tiny / "base/tokenizer/merges.txt").unlink()
    (tiny / "base/unet/diffusion_pytorch_model.safetensors").write_bytes(b"")
    (tiny / "pre-trained/deblur/tpb.pt").rename(tiny / "pre-trained/deblur/lost.pt")
    (tiny / "pre-trained/deblur/tpb.pt").mkdir()
    (tiny / "pre-trained/deblur/card.toml").write_text("id = 3")
    assert cli.main(_arguments(tiny, tmp_path / "out")) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and not (tmp_path / "out").exists()
    for part in ("norm_num_groups is 5, which does not divide", "trained_betas is [0.1]", "resample is 0, expected 3",
                 "merges.txt cannot be read", "diffusion_pytorch_model.safetensors: not a readable weights file",
                 "tpb.pt: is a folder", "card.toml"):  # fmt: skip
        assert part in said, f"{part} is not told in: {said}"


@pytest.mark.slow
def test_a_model_with_the_published_keys_is_exported(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """README's own command, on small widths, with validation."""
    arguments = [a for a in _arguments(tiny, tmp_path / "out") if a != "--no-validate"]
    assert cli.main(arguments) == 0, capsys.readouterr().err
    assert "vae/config.json: lacks norm_num_groups (default 32), taken from the library" in capsys.readouterr().out
    assert verify(tmp_path / "out") == []


def test_what_the_bundle_keeps_of_the_configs(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Complete values, none of the sampler's, however sparse the files are."""
    monkeypatch.setattr(exporter, "graph_keys", lambda checkpoint: ("tpb/deblur",))
    scheduler = tiny / "base/scheduler/scheduler_config.json"
    write_json(
        scheduler,
        {"_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012,
         "beta_schedule": "scaled_linear", "use_karras_sigmas": True},
    )  # fmt: skip
    unet = json.loads((tiny / "base/unet/config.json").read_text())
    write_json(
        tiny / "base/unet/config.json", {k: v for k, v in unet.items() if k not in ("flip_sin_to_cos", "freq_shift")}
    )
    (tiny / "clip/preprocessor_config.json").unlink()
    assert cli.main(_arguments(tiny, tmp_path / "out")) == 0
    manifest = open_bundle(tmp_path / "out").manifest
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    rest = {"num_train_timesteps": 1000, "prediction_type": "epsilon", "set_alpha_to_one": False}
    assert manifest.scheduler == betas | rest
    assert NoiseSchedule.from_config(manifest.scheduler).beta_end == 0.012
    assert manifest.time_embedding == {"flip_sin_to_cos": True, "freq_shift": 0}
    assert manifest.clip["mean"] == (0.48145466, 0.4578275, 0.40821073)
    assert manifest.source["unet"]["name"] == "diffusion_pytorch_model.safetensors"
