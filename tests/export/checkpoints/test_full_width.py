"""README's own export command on a checkpoint of Stable Diffusion 1.4's widths with exactly the published configs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra [export]")

from diffplugin.bench.full_width import PREPROCESSOR, SCHEDULER, TEXT, UNET, VAE, make
from tests.export.checkpoints.tiny import published

MAX_RESIDENT_GIB = 10.0  # of the export; 8.6 was measured, with validation


def test_the_configs_are_the_published_ones() -> None:
    configs = published()["Stable Diffusion 1.4"]
    for name, ours in (
        ("unet/config.json", UNET),
        ("vae/config.json", VAE),
        ("text_encoder/config.json", TEXT),
        ("scheduler/scheduler_config.json", SCHEDULER),
        ("feature_extractor/preprocessor_config.json", PREPROCESSOR),
    ):
        assert ours == configs[name], name


@pytest.mark.slow
def test_the_published_model_is_exported(tmp_path: Path) -> None:
    """About three minutes of processor time, 10 GB of disk."""
    make(tmp_path)
    where = {"base": "base", "clip": "clip", "plugins": "pre-trained", "out": "bundle"}
    arguments = [f"--{option}={tmp_path / name}" for option, name in where.items()]
    command = [sys.executable, "-m", "diffplugin.export.cli", *arguments, "--engine=onnxruntime", "--no-validate"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, said
    assert "vae/config.json: lacks norm_num_groups (default 32), taken from the library" in said
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["dims"]["native_latent"] == 64 and manifest["plugins"] == ["deblur"]
    peak = usage.ru_maxrss / 2**20
    print(f"peak resident memory of the export: {peak:.1f} GiB")
    assert peak < MAX_RESIDENT_GIB, f"{peak:.1f} GiB resident, expected less than {MAX_RESIDENT_GIB:g}"
