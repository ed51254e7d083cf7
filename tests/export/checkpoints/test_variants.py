"""The same weights in every form that people have them in give the same network; and which form is taken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra [export]")

from safetensors.torch import load_file, save_file

from diffplugin.errors import CheckpointError
from diffplugin.export.checkpoints import Checkpoint, check_checkpoint, find
from diffplugin.export.checkpoints.weights import choose_weights, shards_of
from tests.export.checkpoints.tiny import write_json, write_tiny

Tensors = dict[str, Any]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path)


def _read(root: Path) -> Checkpoint:
    checkpoint = find(root / "base", root / "clip", root / "pre-trained")
    check_checkpoint(checkpoint)
    return checkpoint


def _state(root: Path, part: str) -> Tensors:
    state: Tensors = _read(root).load(part).state_dict()
    return state


def _same(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    wrong = [name for name, value in expected.items() if not torch.equal(found[name], value)]
    assert not wrong, f"{len(wrong)} of {len(expected)} tensors differ, first {wrong[0]}"


def _shards(folder: Path, stem: str, tensors: Tensors, *, suffix: str = "safetensors", variant: str = "") -> Path:
    """``tensors`` in two files and their index, as diffusers and transformers write them."""
    names = sorted(tensors)
    table: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"{stem}{variant}-0000{number}-of-00002.{suffix}"
        kept = {name: tensors[name].contiguous() for name in part}
        if suffix == "safetensors":
            save_file(kept, folder / file)
        else:
            torch.save(kept, folder / file)
        table |= dict.fromkeys(part, file)
    index = folder / f"{stem}.{suffix}.index{variant}.json"
    write_json(index, {"metadata": {"total_size": 1}, "weight_map": table})
    return index


PARTS = {
    "unet": ("base/unet", "diffusion_pytorch_model"),
    "text_encoder": ("base/text_encoder", "model"),
    "clip_vision": ("clip", "model"),
}


@pytest.mark.parametrize("part", PARTS)
def test_every_form_of_a_file_gives_the_same_network(tiny: Path, part: str) -> None:
    where, stem = PARTS[part]
    folder = tiny / where
    expected, tensors = _state(tiny, part), load_file(folder / f"{stem}.safetensors")
    halves = {name: value.half().float() for name, value in expected.items()}
    (folder / f"{stem}.safetensors").unlink()

    def alone(*names: Path) -> Tensors:
        found = _state(tiny, part)
        for name in names:
            name.unlink()
        for shard in folder.glob("*-of-*"):
            shard.unlink()
        return found

    pickled = folder / ("diffusion_pytorch_model.bin" if part == "unet" else "pytorch_model.bin")
    torch.save(tensors, pickled)
    _same(alone(pickled), expected)
    torch.save({"state_dict": tensors}, pickled, _use_new_zipfile_serialization=False)
    _same(alone(pickled), expected)
    _same(alone(_shards(folder, stem, tensors)), expected)
    _same(alone(_shards(folder, pickled.stem, tensors, suffix="bin")), expected)
    fp16 = {name: value.half() for name, value in tensors.items()}
    save_file(fp16, folder / f"{stem}.fp16.safetensors")
    _same(alone(folder / f"{stem}.fp16.safetensors"), halves)
    _same(alone(_shards(folder, stem, fp16, variant=".fp16")), halves)


def test_full_precision_is_taken_before_half(tiny: Path) -> None:
    folder = tiny / "base" / "unet"
    expected = _state(tiny, "unet")
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    save_file({n: v.half() for n, v in tensors.items()}, folder / "diffusion_pytorch_model.fp16.safetensors")
    save_file({n: v + 1 for n, v in tensors.items()}, folder / "diffusion_pytorch_model.non_ema.safetensors")
    _same(_state(tiny, "unet"), expected)
    torch.save(tensors, folder / "diffusion_pytorch_model.bin")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    assert _read(tiny).source("unet").main.name == "diffusion_pytorch_model.bin"
    _same(_state(tiny, "unet"), expected)


def test_which_file_is_chosen() -> None:
    assert choose_weights(["flax_model.msgpack", "model.onnx", "openvino_model.bin", "tf_model.h5"]) is None
    assert choose_weights(["diffusion_pytorch_model.non_ema.bin", "model.fp16.safetensors"]) == "model.fp16.safetensors"
    index = "model.safetensors.index.fp16.json"
    names = [index, "model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors", "model.txt"]
    assert choose_weights(names) == index and shards_of(index, names) == names[1:3]
    old = "diffusion_pytorch_model-00001-of-00002.fp16.safetensors"
    assert shards_of("diffusion_pytorch_model.safetensors.index.fp16.json", [old]) == [old]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight_map": {}}, "has no weight_map"),
        ({"weight_map": 3}, "has no weight_map"),
        ({"weight_map": {"a": 3}}, "no parts of"),
        ({"weight_map": {"a": "../../../etc/passwd"}}, "no parts of"),
        ({"weight_map": {"a": "/etc/passwd"}}, "no parts of"),
        ({"weight_map": {"a": "diffusion_pytorch_model-00009-of-00009.safetensors"}}, "missing"),
        ({"weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}}, "tensors that are in no part"),
    ],
)
def test_an_index_that_is_wrong_is_refused(tiny: Path, change: dict[str, Any], said: str) -> None:
    folder = tiny / "base" / "unet"
    whole = folder / "diffusion_pytorch_model.safetensors"
    index = _shards(folder, "diffusion_pytorch_model", load_file(whole))
    whole.unlink()
    write_json(index, change)
    with pytest.raises(CheckpointError, match=said):
        _read(tiny)


def test_a_whole_clip_gives_its_vision_half(tiny: Path) -> None:
    expected, folder = _state(tiny, "clip_vision"), tiny / "clip"
    tensors = load_file(folder / "model.safetensors")
    text = load_file(tiny / "base" / "text_encoder" / "model.safetensors")
    more = {name: torch.zeros(2) for name in ("logit_scale", "text_projection.weight", "visual_projection.weight")}
    more |= {"vision_model.embeddings.position_ids": torch.arange(3)[None]}
    save_file(tensors | text | more, folder / "model.safetensors")
    vision = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {"model_type": "clip", "vision_config": vision, "text_config": {}})
    _same(_state(tiny, "clip_vision"), expected)


@pytest.mark.parametrize(("part", "module"), [("text_encoder", "text_model."), ("clip_vision", "vision_model.")])
def test_the_name_of_the_only_module_may_be_left_out(tiny: Path, part: str, module: str) -> None:
    expected, path = _state(tiny, part), tiny / PARTS[part][0] / "model.safetensors"
    save_file({name.removeprefix(module): value for name, value in load_file(path).items()}, path)
    _same(_state(tiny, part), expected)


def test_the_end_of_text_is_the_tokenizers_where_the_config_has_none(tiny: Path) -> None:
    path = tiny / "base" / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    vocabulary = json.loads((tiny / "base" / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    ids = torch.tensor([[start, 5, 9, end, end]])
    expected = _read(tiny).text_encoder()(ids)
    for changed in (config | {"eos_token_id": None}, {k: v for k, v in config.items() if k != "eos_token_id"}):
        write_json(path, changed)
        assert torch.equal(_read(tiny).text_encoder()(ids), expected)


@pytest.mark.parametrize("name", ["hidden_act", "layer_norm_eps", "num_channels"])
def test_clip_configs_may_lack_what_the_library_knows(tiny: Path, name: str) -> None:
    path = tiny / "clip" / "config.json"
    config = json.loads(path.read_text())
    del config[name]
    write_json(path, config)
    assert _read(tiny).vision_config[name] in ("quick_gelu", 1e-5, 3)


def test_clips_own_view_of_a_photo_where_the_preprocessor_is_silent(tiny: Path) -> None:
    path = tiny / "clip" / "preprocessor_config.json"
    config = json.loads(path.read_text())
    mean, std = config.pop("image_mean"), config["image_std"]
    write_json(path, config)
    assert _read(tiny).preprocessor()["image_mean"] == mean
    shutil.move(path, tiny / "clip" / "processor_config.json")
    write_json(tiny / "clip" / "processor_config.json", {"image_processor": {"image_std": [0.5, 0.5, 0.5]}})
    assert _read(tiny).preprocessor()["image_std"] == [0.5, 0.5, 0.5], "transformers 5 may write this file alone"
    (tiny / "clip" / "processor_config.json").unlink()
    assert (_read(tiny).preprocessor()["image_mean"], _read(tiny).preprocessor()["image_std"]) == (mean, std)


def test_files_that_current_libraries_write_are_read(oracle: Path, tmp_path: Path) -> None:
    """A pipeline and a vision encoder loaded and saved again, in shards."""
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    root = oracle / "checkpoint"
    base = root / "stable-diffusion"
    for part, made in (("unet", diffusers.UNet2DConditionModel), ("vae", diffusers.AutoencoderKL)):
        made.from_pretrained(str(base / part)).save_pretrained(tmp_path / "base" / part, max_shard_size="5MB")
    text = transformers.CLIPTextModel.from_pretrained(str(base / "text_encoder"))
    text.save_pretrained(tmp_path / "base" / "text_encoder", max_shard_size="5MB")
    transformers.CLIPTokenizer.from_pretrained(str(base / "tokenizer")).save_pretrained(tmp_path / "base" / "tokenizer")
    diffusers.PNDMScheduler.from_pretrained(str(base / "scheduler")).save_pretrained(tmp_path / "base" / "scheduler")
    transformers.CLIPVisionModel.from_pretrained(str(root / "clip")).save_pretrained(tmp_path / "clip")
    assert list((tmp_path / "base" / "unet").glob("*.index.json")), "the library wrote no shards"
    ours = find(tmp_path / "base", tmp_path / "clip", root / "pre-trained", ["derain"])
    check_checkpoint(ours)
    theirs = find(base, root / "clip", root / "pre-trained", ["derain"])
    for part in ("unet", "vae", "text_encoder", "clip_vision"):
        _same(ours.load(part).state_dict(), theirs.load(part).state_dict())
    assert ours.dims == theirs.dims
