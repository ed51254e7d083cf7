"""dp-export's bundle in the cache folder is dp-infer's, with the package's model as the fallback."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffplugin.bundle import default_bundle, open_bundle, write_manifest
from diffplugin.default_bundle import bundles_folder, set_latest
from diffplugin.runtime import cli

FEW = ("--steps", "1", "--engine", "onnxruntime", "--precision", "fp32", "--threads", "1")


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What ``dp-export --plugin deblur`` leaves: a bundle of that plugin alone. The working folder has a photo."""
    monkeypatch.chdir(tmp_path)
    out = bundles_folder() / "embedded"
    shutil.copytree(default_bundle(), out)
    manifest = open_bundle(out).manifest
    graphs = {key: entry for key, entry in manifest.graphs.items() if key.partition("/")[2] in ("", "deblur")}
    write_manifest(out, replace(manifest, name="mine", graphs=graphs, plugins=("deblur",)))
    assert set_latest(out)
    Image.fromarray(np.full((64, 80, 3), 90, np.uint8)).save("photo.png")
    return out


def infer(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any], str]:
    """(exit code, facts, what people read)."""
    code = cli.main(["photo.png", *words, *FEW, "--dry-run", "--json"])
    facts = json.loads(capsys.readouterr().out)
    cli.main(["photo.png", *words, *FEW, "--dry-run"])
    return code, facts, capsys.readouterr().out


def test_the_last_export_is_taken_and_said(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, facts, said = infer(capsys, "remove the blur")
    assert code == 0 and facts["bundle"] == "mine" and facts["files"][0]["plan"]["chain"][0]["plugin"] == "deblur"
    assert said.startswith("mine: onnxruntime fp32") and f"the last export, {exported}" in said.splitlines()[0]
    assert "--bundle embedded" in said.splitlines()[0]


def test_the_packages_model_stands_in(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("remove the rain",), ("--plugin", "derain")):
        code, facts, said = infer(capsys, *words)
        assert code == 0 and facts["files"][0]["plan"]["chain"][0]["plugin"] == "derain"
        assert facts["files"][0]["bundle"] == "embedded"
        assert f"the model in the package: {exported}" in said
    code, _, said = infer(capsys, "paint a horse")
    assert code == 3 and '"remove the rain"' in said, "what the package's model understands"


def test_the_packages_model_can_be_forced(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, facts, said = infer(capsys, "remove the blur", "--bundle", "embedded")
    assert code == 0 and facts["bundle"] == "embedded" and "last export" not in said
    code, facts, _ = infer(capsys, "remove the blur", "--bundle", str(exported))
    assert code == 0 and facts["bundle"] == "mine"
