"""Released files are read safely, and what is wrong with them is said at once."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs the extra [export]")

from diffplugin.errors import CheckpointError
from diffplugin.export.checkpoints import Checkpoint, find
from diffplugin.export.checkpoints.hub import base_path
from diffplugin.export.checkpoints.weights import fill, read_tensors


def _find(root: Path, *wanted: str) -> Checkpoint:
    return find(root / "stable-diffusion", root / "clip", root / "pre-trained", wanted)


@pytest.fixture
def copy(oracle: Path, tmp_path: Path) -> Path:
    root = tmp_path / "checkpoint"
    shutil.copytree(oracle / "checkpoint", root, copy_function=shutil.copyfile)
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return root


def test_finds_all_plugins_or_those_named(oracle: Path) -> None:
    root = oracle / "checkpoint"
    assert list(_find(root).plugins) == ["deblur", "derain", "lowlight"]
    assert list(_find(root, "lowlight").plugins) == ["lowlight"]


def test_module_prefixes_go(oracle: Path) -> None:
    tensors = read_tensors(oracle / "checkpoint" / "pre-trained" / "derain" / "tpb.pt")
    assert "visual_projection.0.weight" in tensors


def test_everything_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        find(tmp_path / "base", tmp_path / "clip", tmp_path / "plugins", ["deblur"])
    message = str(caught.value)
    for part in (
        "unet",
        "vae",
        "text_encoder",
        "tokenizer",
        "scheduler",
        "clip/config.json",
        "'deblur'",
        "no Task-Plugins",
    ):
        assert part in message, f"{part} is not named in: {message}"
    assert "\n" not in message


def test_a_pickle_with_code_in_it_is_refused_and_not_run(copy: Path, tmp_path: Path) -> None:
    witness = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, (f"open({str(witness)!r}, 'w')",))

    target = copy / "pre-trained" / "deblur" / "tpb.pt"
    target.write_bytes(pickle.dumps({"model": Evil()}))
    with pytest.raises(CheckpointError, match=r"tpb\.pt: not a readable weights file"):
        _find(copy).tpb("deblur")
    assert not witness.exists(), "the pickle's code ran"


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04broken"])
def test_unreadable_weights_are_one_clear_line(copy: Path, content: bytes) -> None:
    (copy / "pre-trained" / "deblur" / "tpb.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tpb\.pt") as caught:
        _find(copy).tpb("deblur")
    assert "\n" not in str(caught.value)


def test_missing_unknown_and_misshapen_tensors_are_named_together() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    tensors = {
        "0.weight": torch.zeros(3, 9),
        "0.bias": torch.zeros(3),
        "1.weight": torch.zeros(1, 3),
        "extra": torch.zeros(1),
    }
    with pytest.raises(CheckpointError) as caught:
        fill(network, tensors, Path("file"))
    for part in ("missing: 1.bias", "unknown: extra", "0.weight is (3, 9), expected (3, 2)"):
        assert part in str(caught.value)


def test_old_names_of_the_autoencoder_are_understood(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = copy / "stable-diffusion" / "vae" / "diffusion_pytorch_model.safetensors"
    expected = _find(copy).autoencoder().state_dict()
    old = {}
    for name, value in load_file(path).items():
        renamed = name
        if ".attentions." in name:
            for new, was in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
                renamed = renamed.replace(f".{new}.", f".{was}.")
        old[renamed] = value
    assert any(".query." in name for name in old)
    save_file(old, path)
    found = _find(copy).autoencoder().state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_bin_files_are_read_where_there_are_no_safetensors(copy: Path) -> None:
    from safetensors.torch import load_file

    path = copy / "stable-diffusion" / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    expected = _find(copy).unet().state_dict()
    path.unlink()
    found = _find(copy).unet().state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_parts_that_contradict_each_other_are_named(copy: Path) -> None:
    path = copy / "pre-trained" / "deblur" / "scb" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"block_out_channels": [48], "cross_attention_dim": 99}))
    with pytest.raises(CheckpointError, match=r"deblur scb width is 48.*deblur scb cross_attention_dim is 99"):
        _ = _find(copy).dims


def test_a_head_for_another_autoencoder_is_named(copy: Path) -> None:
    place = copy / "pre-trained/deblur/head"
    place.mkdir()
    (place / "config.json").write_text(json.dumps({"factor": 4, "latent_channels": 16}))
    with pytest.raises(
        CheckpointError, match=r"deblur head latent_channels is 16, vae's is 4; deblur head factor is 4"
    ):
        _ = _find(copy).dims


def test_a_folder_without_configs_is_refused(copy: Path) -> None:
    (copy / "stable-diffusion" / "unet" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is this a Stable Diffusion"):
        _ = _find(copy).dims


def test_widths_of_the_released_layout(oracle: Path) -> None:
    dims = _find(oracle / "checkpoint").dims
    config = _find(oracle / "checkpoint").config("unet")
    assert [dims.residual_channels, dims.deep_channels] == config["block_out_channels"][:2]


def test_a_unet_of_one_level_is_refused(copy: Path) -> None:
    path = copy / "stable-diffusion" / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"block_out_channels": [32]}))
    with pytest.raises(CheckpointError, match=r"the unet has 1 level\(s\), expected at least 2"):
        _ = _find(copy).dims


def test_hub_ids_are_looked_up_offline_in_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"neither a folder, a \.safetensors or \.ckpt file nor a hub id"):
        base_path("no such folder", offline=True)
    with pytest.raises(CheckpointError, match="not found in the local hub cache"):
        base_path("somebody/never-downloaded", offline=True)
    assert base_path(str(tmp_path), offline=True) == tmp_path
