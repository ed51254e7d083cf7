"""A folder over a local Ray cluster of two workers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ray", reason="needs the extra [scale]")

from diffplugin.runtime.scale.__main__ import build_parser
from tests.runtime.conftest import smooth_photo


def scale(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-m", "diffplugin.runtime.scale", "ray", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_forty_photos_on_two_workers_as_on_one(tmp_path: Path) -> None:
    """The same pictures; a bad file stops none; a second run finds all done but that one."""
    (tmp_path / "in").mkdir()
    for seed in range(40):
        Image.fromarray(smooth_photo(64, 64, seed)).save(tmp_path / "in" / f"{seed:02}.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"no photo")
    options = ["--plugin", "deblur", "--engine", "onnxruntime"]
    made = {}
    for workers in (2, 1):
        out = tmp_path / f"out{workers}"
        run = scale(tmp_path / "in", out, *options, "--workers", workers)
        assert run.returncode == 1 and "40 restored, 1 failed" in run.stdout, run.stdout + run.stderr
        assert "bad.png: not a picture" in run.stderr
        made[workers] = {file.name: np.asarray(Image.open(file)) for file in out.glob("*.png")}
        assert len(list((out / ".diffplugin").iterdir())) == 40
    assert made[1].keys() == made[2].keys() and len(made[1]) == 40
    for name, pixels in made[1].items():
        np.testing.assert_array_equal(made[2][name], pixels, err_msg=name)
    assert (made[1]["00.png"] != smooth_photo(64, 64, 0)).any()
    (tmp_path / "in" / "bad.png").unlink()
    Image.fromarray(smooth_photo(64, 64, 99)).save(tmp_path / "in" / "00.png")
    run = scale(tmp_path / "in", tmp_path / "out2", *options, "--workers", 2)
    assert run.returncode == 0 and "40 photos, 39 of them done before" in run.stdout, run.stdout + run.stderr
    assert "1 restored, 0 failed" in run.stdout
    record = json.loads((tmp_path / "out2" / ".diffplugin" / "00.png.json").read_text())
    assert record["plugins"] == ["deblur"]


def test_the_command_is_understood() -> None:
    args = build_parser().parse_args(["ray", "s3://a/b", "out", "remove the rain", "--workers", "4", "--gpus", "0.5"])
    assert (args.source, args.prompt, args.workers, args.gpus) == ("s3://a/b", "remove the rain", 4, 0.5)
