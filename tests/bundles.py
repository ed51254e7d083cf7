"""Sound bundles of made-up graphs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffplugin.bundle import ENGINES, graph_files, list_files, write_manifest
from diffplugin.engines.onnxruntime import OnnxRuntimeBuilder
from diffplugin.integrity import sha256
from diffplugin.manifest import MANIFEST, EngineEntry, GraphEntry, Manifest, fingerprint
from diffplugin.plugins.cards import card_to_toml, shipped_cards
from diffplugin.spec import ModelDims

DIMS = ModelDims(
    factor=8,
    latent_channels=4,
    residual_channels=8,
    deep_channels=16,
    time_features=6,
    tokens=5,
    token_width=8,
    vision_width=8,
    vision_size=14,
    context=7,
    native_latent=8,
)
HERE = {"version": OnnxRuntimeBuilder().version(), "device": OnnxRuntimeBuilder().device()}
SHARED = ("clip_text", "clip_vision", "selector", "vae_encoder", "unet", "unet_shallow", "vae_decoder")
KEYS = (*SHARED, "tpb/derain", "scb/derain")


def _write(folder: Path, name: str = "small", **engine: str) -> Manifest:
    """A sound bundle of made-up graphs with one plugin, and one engine if its machine is given."""
    graphs = {}
    for key in KEYS:
        kind, _, plugin = key.partition("/")
        file = folder / (f"plugins/{plugin}/{kind}.onnx" if plugin else f"onnx/{kind}.onnx")
        file.parent.mkdir(parents=True, exist_ok=True)
        made_by = f"graph {key}".encode() * 10
        file.write_bytes(bytes((0x12, 0x80 | len(made_by) & 127, len(made_by) >> 7)) + made_by)  # a producer_name
        if key == "unet":
            file.with_name("unet.onnx.data").write_bytes(bytes(range(200)))
        digest = sha256(*graph_files(file))
        graphs[key] = GraphEntry(file=file.relative_to(folder).as_posix(), sha256=digest, weights_bytes=80)
    (folder / "plugins/derain/card.toml").write_text(card_to_toml(shipped_cards()["derain"]), encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}")
    entries = []
    if engine:
        usual = {"graph": "unet", "precision": "fp32", "engine": "onnxruntime", "shapes": "h=8,w=8"}
        about: dict[str, Any] = HERE | usual | engine
        sha = about.pop("graph_sha256", graphs["unet"].sha256)
        devices = (about.pop("device"),)
        print_ = fingerprint(sha, about["shapes"], about["precision"], about["engine"], about["version"], devices)
        name_ = about.pop("fingerprint", print_)
        blob = folder / ENGINES / name_ / "model.blob"
        blob.parent.mkdir(parents=True)
        blob.write_bytes(b"engine" * 100)
        files = (f"{ENGINES}/{name_}/model.blob",)
        entries.append(EngineEntry(fingerprint=name_, graph_sha256=sha, files=files, devices=devices, **about))
    manifest = Manifest(
        created_with="0.1.0",
        name=name,
        source={"unet": {"name": "unet.safetensors", "sha256": "0" * 64}},
        dims=DIMS,
        scheduler={"beta_start": 0.00085, "num_train_timesteps": 1000},
        time_embedding={"flip_sin_to_cos": True, "freq_shift": 0},
        clip={"mean": (0.5, 0.25, 0.125), "std": (1, 2, 3)},
        graphs=graphs,
        plugins=("derain",),
        selector=True,
        parity={"relative_error": {"unet": {"eps": 1e-06}}},
        files=list_files(folder),
        engines=tuple(entries),
    )
    write_manifest(folder, manifest)
    return manifest


def _edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest's JSON, and its digest with it."""
    value = json.loads((folder / MANIFEST).read_text())
    del value["digest"]
    change(value)
    text = json.dumps(value, indent=1, sort_keys=True) + "\n"
    value["digest"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(value))


@pytest.fixture
def here() -> dict[str, str]:
    """Version and device of an engine that this machine takes."""
    return dict(HERE)


@pytest.fixture
def write() -> Callable[..., Manifest]:
    """``write(folder, name=…, version=…)``: a bundle, with an engine if anything of it is given."""
    return _write


@pytest.fixture
def edit() -> Callable[[Path, Callable[[dict[str, Any]], object]], None]:
    """``edit(folder, change)``: a manifest that was changed on purpose, with the digest that fits."""
    return _edit


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle with one plugin and no engine."""
    _write(tmp_path / "bundle")
    return tmp_path / "bundle"
