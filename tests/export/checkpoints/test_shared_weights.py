"""Weights that the embedded bundle contains are read from it, bit for bit, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra [export]")

from safetensors.numpy import load_file, save_file

from diffplugin.bundle import default_bundle, open_bundle
from diffplugin.errors import BundleError, CheckpointError
from diffplugin.export.checkpoints.shared_weights import SUFFIX, read_shared
from diffplugin.export.checkpoints.weights import choose_weights, read_tensors
from diffplugin.export.embedded import embedded_checkpoint_folder
from diffplugin.export.share_weights import copy_plain, share

UNET = "base/unet/diffusion_pytorch_model"


def _shared_stems() -> set[str]:
    """The base's four networks, and the branches of the plugins."""
    bundle = open_bundle(default_bundle())
    branches = {key.partition("/")[::2] for key in bundle.manifest.graphs if key.startswith(("scb/", "head/"))}
    stems = {f"pre-trained/{plugin}/{branch}/diffusion_pytorch_model" for branch, plugin in branches}
    return stems | {UNET, "base/vae/diffusion_pytorch_model", "base/text_encoder/model", "clip/model"}


def test_plain_files_come_back_byte_for_byte(tmp_path: Path) -> None:
    """A copy with plain files, shared again, and a plain copy of that."""
    first, second = tmp_path / "first", tmp_path / "second"
    copy_plain(embedded_checkpoint_folder(), first)
    assert not list(first.rglob(f"*{SUFFIX}"))
    plain = {path.relative_to(first): path.read_bytes() for path in first.rglob("*") if path.is_file()}
    sizes = {path: (before, now) for path, before, now in share(first, default_bundle())}
    assert len(sizes) == len(_shared_stems()) and sum(now for _, now in sizes.values()) < 0.1 * sum(
        before for before, _ in sizes.values()
    )
    assert not list(first.rglob("unet/*model.safetensors")), "the plain file is gone"
    copy_plain(first, second)
    assert {path.relative_to(second): path.read_bytes() for path in second.rglob("*") if path.is_file()} == plain


def test_the_embedded_checkpoint_holds_nothing_twice() -> None:
    """After an export: python -m diffplugin.export.share_weights."""
    checkpoint = embedded_checkpoint_folder()
    shared = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob(f"*{SUFFIX}")}
    assert shared == {f"{stem}{SUFFIX}" for stem in _shared_stems()}
    assert not (checkpoint / f"{UNET}.safetensors").exists()
    own, whole = load_file(checkpoint / f"{UNET}{SUFFIX}"), read_tensors(checkpoint / f"{UNET}{SUFFIX}")
    assert sum(a.nbytes for a in own.values()) < 0.05 * sum(t.nbytes for t in whole.values())


def test_a_plain_file_is_taken_before_a_shared_one() -> None:
    names = [f"diffusion_pytorch_model{SUFFIX}"]
    assert choose_weights(names) == names[0]
    assert choose_weights([*names, "diffusion_pytorch_model.bin"]) == "diffusion_pytorch_model.bin"


def _shared(path: Path, told: object) -> Path:
    text = told if isinstance(told, str) else json.dumps(told)
    save_file({"own": np.zeros(3, np.float16)}, path, metadata={"shared": text})
    return path


def test_a_tensor_that_the_bundle_lacks_is_named(tmp_path: Path) -> None:
    path = _shared(tmp_path / f"model{SUFFIX}", {"graphs": ["onnx/selector.onnx"], "tensors": {"a.weight": "0" * 64}})
    with pytest.raises(
        CheckpointError, match=r"contain 1 of its 1 shared tensors, first a\.weight; take .+ same commit"
    ):
        read_tensors(path)


@pytest.mark.parametrize("graph", ["/dev/zero", "../../../etc/passwd", "onnx/nowhere.onnx"])
def test_only_graphs_of_the_bundle_are_read(tmp_path: Path, graph: str) -> None:
    path = _shared(tmp_path / f"model{SUFFIX}", {"graphs": [graph], "tensors": {}})
    with pytest.raises(BundleError, match=graph):
        read_tensors(path)


@pytest.mark.parametrize("told", ["not JSON", "[]", "{}", '{"graphs": 1, "tensors": {}}'])
def test_damaged_metadata_is_one_line(tmp_path: Path, told: str) -> None:
    with pytest.raises(CheckpointError, match="not a readable weights file") as caught:
        read_tensors(_shared(tmp_path / f"model{SUFFIX}", told))
    assert "\n" not in str(caught.value)


def test_a_plain_file_under_that_name_is_refused(tmp_path: Path) -> None:
    save_file({"own": np.zeros(3, np.float16)}, tmp_path / f"model{SUFFIX}")
    with pytest.raises(CheckpointError, match="lists no shared tensors"):
        read_shared(tmp_path / f"model{SUFFIX}")
