"""docs/adding-an-engine.md, run as it is written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/adding-an-engine.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (str(folder / "site"), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's package, installed beside this environment, and a photo."""
    folder = tmp_path_factory.mktemp("provider")
    engine, _ = blocks("python")
    (project,) = blocks("toml")
    (folder / "provider_engine.py").write_text(engine)
    (folder / "pyproject.toml").write_text(project)
    install, _ = blocks("bash")
    assert install.strip() == "pip install ."
    done = run(folder, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", "site", ".")
    assert done.returncode == 0, done.stderr
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).resize((96, 64), Image.Resampling.BICUBIC).save(folder / "photo.png")
    return folder


def test_the_page_works(folder: Path) -> None:
    _, command = blocks("bash")
    words = re.findall(r'"[^"]*"|\S+', command)
    assert words[0] == "dp-infer"
    done = run(folder, "-m", "diffplugin.runtime.cli", *(word.strip('"') for word in words[1:]))
    assert done.returncode == 0, done.stderr
    assert "provider fp32" in done.stdout
    with Image.open(folder / "restored.png") as restored:
        assert restored.size == (96, 64)
    _, proof = blocks("python")
    done = run(folder, "-c", proof)
    assert done.returncode == 0, done.stderr


def test_what_is_wrong_with_it_is_one_line(folder: Path) -> None:
    for environment, words, message in (
        ({"ORT_PROVIDER": "NoneSuch"}, ["--engine", "provider"], "has no NoneSuch; set ORT_PROVIDER"),
        ({}, ["--engine", "provder"], "engine 'provder': unknown; expected auto or one of tensorrt"),
        ({}, ["--engine", "provider", "--device", "cpu"], "comes from another package and takes no --device"),
    ):
        done = run(folder, "-m", "diffplugin.runtime.cli", "photo.png", "rain", *words, **environment)
        assert done.returncode == 1, done.stderr
        assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr
