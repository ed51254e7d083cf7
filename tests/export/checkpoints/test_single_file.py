"""Checkpoints in one file: names there and back, against diffusers' own conversion, and at full width."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra [export]")

from safetensors.torch import load_file, save_file

from diffplugin.errors import CheckpointError
from diffplugin.export.checkpoints import Checkpoint, check_checkpoint, find
from diffplugin.export.checkpoints.configs import read_config
from diffplugin.export.checkpoints.single_file import config_of, convert_unet, convert_vae, part_of
from diffplugin.plugins.networks.clip import TextEncoder
from diffplugin.plugins.networks.unet import UNet
from diffplugin.plugins.networks.vae import Autoencoder
from tests.export.checkpoints.tiny import published, write_tiny

Tensors = dict[str, Any]
LAYERS = 2  # of a UNet level
_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
           "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
_ENDS = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
         "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip


def original_unet(tensors: Tensors) -> Tensors:
    """diffusers' names -> those of the original code, which numbers all blocks of a path in one row."""

    def name(new: str) -> str:
        part, kind = new.rsplit(".", 1)
        if part in _ENDS:
            return f"{_ENDS[part]}.{kind}"
        if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", new):
            place = 1 if match[1] == "attentions" else 2 * int(match[2])
            return f"middle_block.{place}.{inner(match[1], match[3])}"
        match = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", new)
        assert match, new
        path, level, what, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        if what == "downsamplers":
            return f"input_blocks.{(level + 1) * (LAYERS + 1)}.0.op.{rest.removeprefix('conv.')}"
        if what == "upsamplers":
            last = (level + 1) * (LAYERS + 1) - 1
            crossed = any(n.startswith(f"up_blocks.{level}.attentions.") for n in tensors)
            return f"output_blocks.{last}.{2 if crossed else 1}.{rest}"
        number = level * (LAYERS + 1) + layer + (path == "down")
        row = "input_blocks" if path == "down" else "output_blocks"
        return f"{row}.{number}.{1 if what == 'attentions' else 0}.{inner(what, rest)}"

    def inner(what: str, rest: str) -> str:
        part, kind = rest.rsplit(".", 1)
        return f"{_RESNET[part]}.{kind}" if what == "resnets" else rest

    return {f"model.diffusion_model.{name(new)}": value for new, value in tensors.items()}


def original_vae(tensors: Tensors) -> Tensors:
    levels = len({n.split(".")[2] for n in tensors if n.startswith("decoder.up_blocks.")})
    simple: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
        (r"encoder\.down_blocks\.(\d)\.resnets\.(\d)", r"encoder.down.\1.block.\2"),
        (r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample"),
        (r"decoder\.up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"decoder.up.{levels - 1 - int(m[1])}.block.{m[2]}"),
        (r"decoder\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f"decoder.up.{levels - 1 - int(m[1])}.upsample"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"conv_norm_out", "norm_out"),
        (r"conv_shortcut", "nin_shortcut"),
    ]
    made = {}
    for new, value in tensors.items():
        old = new
        for pattern, replacement in simple:
            old = re.sub(pattern, replacement, old)
        convolution = ".attn_1." in old and old.endswith("weight") and value.ndim == 2
        made[f"first_stage_model.{old}"] = value[:, :, None, None] if convolution else value
    return made


def original(base: Path) -> Tensors:
    """A diffusers folder as one table in the original layout."""
    unet, vae = (load_file(base / part / "diffusion_pytorch_model.safetensors") for part in ("unet", "vae"))
    text = load_file(base / "text_encoder" / "model.safetensors")
    texts = {f"cond_stage_model.transformer.{name}": value for name, value in text.items()}
    return original_unet(unet) | original_vae(vae) | texts


def _same(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_names_there_and_back(oracle: Path) -> None:
    base = oracle / "checkpoint" / "stable-diffusion"
    single = original(base)
    unet, vae = (load_file(base / part / "diffusion_pytorch_model.safetensors") for part in ("unet", "vae"))
    _same(part_of(single, "unet", base), unet)
    found = part_of(single, "vae", base)
    _same({n: v[:, :, 0, 0] if v.ndim == 4 and ".attentions." in n else v for n, v in found.items()}, vae)


def test_names_are_those_of_diffusers_conversion(oracle: Path) -> None:
    """Against an implementation that is not ours."""
    theirs = pytest.importorskip("diffusers.loaders.single_file_utils")
    base = oracle / "checkpoint" / "stable-diffusion"
    single = original(base)
    unet = theirs.convert_ldm_unet_checkpoint(dict(single), json.loads((base / "unet/config.json").read_text()))
    _same(part_of(single, "unet", base), unet)
    vae = theirs.convert_ldm_vae_checkpoint(dict(single), json.loads((base / "vae/config.json").read_text()))
    found = part_of(single, "vae", base)
    _same({n: v[:, :, 0, 0] if v.ndim == 4 and ".attentions." in n else v for n, v in found.items()}, vae)


def test_the_names_of_stable_diffusion_at_full_width() -> None:
    """Without storage: names, shapes and the configs that follow from them are those of the published model."""
    configs = published()["Stable Diffusion 1.4"]
    with torch.device("meta"):
        unet = UNet(read_config("unet", configs["unet/config.json"], "unet")[0]).state_dict()
        vae = Autoencoder(read_config("vae", configs["vae/config.json"], "vae")[0]).state_dict()
        text = TextEncoder(read_config("text_encoder", configs["text_encoder/config.json"], "text")[0]).state_dict()
    single = original_unet(unet) | original_vae(vae)
    single |= {f"cond_stage_model.transformer.{name}": value for name, value in text.items()}
    assert (len(unet), len(vae), len(text)) == (686, 248, 196), "as many tensors as v1-5-pruned-emaonly has"
    for name, shape in {
        "model.diffusion_model.input_blocks.3.0.op.weight": (320, 320, 3, 3),
        "model.diffusion_model.input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight": (1280, 768),
        "model.diffusion_model.middle_block.1.proj_in.weight": (1280, 1280, 1, 1),
        "model.diffusion_model.output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
        "model.diffusion_model.output_blocks.11.0.skip_connection.weight": (320, 640, 1, 1),
        "first_stage_model.decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
        "first_stage_model.decoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
    }.items():
        assert tuple(single[name].shape) == shape
    for part, expected in (("unet", unet), ("vae", vae), ("text_encoder", text)):
        found = part_of(single, part, Path("file"))
        shapes = {n: v.shape[:2] if ".attentions." in n and part == "vae" else v.shape for n, v in found.items()}
        assert shapes == {n: v.shape for n, v in expected.items()}
        made, faults = read_config(part, config_of(part, found, single), part)
        published_one, _ = read_config(part, configs[f"{part}/config.json"], part)
        assert faults == []
        told = set(made) - {"eos_token_id"}
        assert {k: made[k] for k in told} == {k: published_one[k] for k in told}


@pytest.fixture
def single(tmp_path: Path) -> tuple[Path, Checkpoint]:
    """(a tiny model as a file, the folder that it was made of)."""
    root = write_tiny(tmp_path)
    file = root / "tiny.safetensors"
    save_file({name: value.contiguous() for name, value in original(root / "base").items()}, file)
    # what shapes do not tell is fixed: eight heads of the UNet, 64 channels a head in CLIP
    path = root / "base" / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_attention_heads": 1}))
    shutil.copytree(root / "base" / "tokenizer", root / "tokenizer")
    return file, find(root / "base", root / "clip", root / "pre-trained")


def test_a_single_file_gives_the_networks_of_its_folder(single: tuple[Path, Checkpoint]) -> None:
    file, folder = single
    checkpoint = find(file, folder.clip, file.parent / "pre-trained")
    assert checkpoint.single and checkpoint.tokenizer == file.parent / "tokenizer"
    assert any("holds no tokenizer" in note for note in check_checkpoint(checkpoint))
    assert checkpoint.dims == folder.dims
    vocabulary = json.loads((folder.base / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    ids, t, x = torch.tensor([[5, 9, vocabulary["<|endoftext|>"]]]), torch.randn(1, 32), torch.randn(1, 4, 8, 8)
    tokens = torch.randn(1, 16, 16)
    for part, inputs in (("text_encoder", (ids,)), ("unet", (x, t, tokens))):
        ours, theirs = checkpoint.load(part), folder.load(part)
        _same(ours.state_dict(), theirs.state_dict())
        torch.testing.assert_close(ours(*inputs), theirs(*inputs))
    torch.testing.assert_close(checkpoint.autoencoder().decode(x), folder.autoencoder().decode(x))


def test_half_precision_and_old_names_of_the_text_encoder(single: tuple[Path, Checkpoint], tmp_path: Path) -> None:
    file, folder = single
    tensors = {name.replace("transformer.text_model.", "transformer."): v.half() for name, v in load_file(file).items()}
    tensors["cond_stage_model.transformer.embeddings.position_ids"] = torch.arange(77)[None]
    tensors |= {"betas": torch.zeros(1000), "model_ema.decay": torch.zeros(())}
    save_file(tensors, file)
    checkpoint = find(file, folder.clip, tmp_path / "pre-trained")
    check_checkpoint(checkpoint)
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = checkpoint.load(part).state_dict(), folder.load(part).state_dict()
        assert all(torch.equal(ours[name], value.half().float()) for name, value in theirs.items())


def test_averaged_weights_are_taken_where_a_file_has_both(single: tuple[Path, Checkpoint], tmp_path: Path) -> None:
    """The published folders hold the averages: their other copy is named non_ema."""
    file, folder = single
    tensors = load_file(file)
    prefix = "model.diffusion_model."
    for name in [name for name in tensors if name.startswith(prefix)]:
        flat = "model_ema.diffusion_model" + name.removeprefix(prefix).replace(".", "")
        tensors[flat], tensors[name] = tensors[name], tensors[name] + 1
    save_file(tensors, file)
    checkpoint = find(file, folder.clip, tmp_path / "pre-trained")
    assert any("averages" in note for note in check_checkpoint(checkpoint))
    expected = folder.unet().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in checkpoint.unet().state_dict().items())


def test_marks_of_training_scripts_are_read(single: tuple[Path, Checkpoint], tmp_path: Path) -> None:
    file, folder = single
    tensors = load_file(file)
    save_file(tensors | {"v_pred": torch.zeros(0)}, file)
    checkpoint = find(file, folder.clip, tmp_path / "pre-trained")
    assert checkpoint.config("scheduler")["prediction_type"] == "v_prediction"
    save_file(tensors | {"ztsnr": torch.zeros(0)}, file)
    with pytest.raises(CheckpointError, match="rescale_betas_zero_snr is True, which is not supported"):
        check_checkpoint(find(file, folder.clip, tmp_path / "pre-trained"))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["cond_stage_model.model.ln_final.weight"], "looks like Stable Diffusion 2"),
        (["conditioner.embedders.0.transformer.x"], "looks like Stable Diffusion XL"),
        (["lora_unet_down_blocks_0.alpha"], "looks like a LoRA"),
        (["down_blocks.0.resnets.0.conv1.weight"], "one network of a diffusers folder"),
        (["x"], "no Stable Diffusion 1.x checkpoint"),
    ],
)
def test_other_models_are_named(names: list[str], said: str, single: tuple[Path, Checkpoint], tmp_path: Path) -> None:
    file, folder = single
    save_file({name: torch.zeros(1) for name in names}, file)
    with pytest.raises(CheckpointError, match=said):
        check_checkpoint(find(file, folder.clip, tmp_path / "pre-trained"))


def test_an_inpainting_file_is_named(single: tuple[Path, Checkpoint], tmp_path: Path) -> None:
    file, folder = single
    tensors = load_file(file)
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(32, 9, 3, 3)
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match="an inpainting model"):
        check_checkpoint(find(file, folder.clip, tmp_path / "pre-trained"))


def test_a_file_without_a_tokenizer_beside_it_takes_that_of_clip(
    single: tuple[Path, Checkpoint], tmp_path: Path
) -> None:
    file, folder = single
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.move(file.parent / "tokenizer" / name, folder.clip / name)
    shutil.rmtree(file.parent / "tokenizer")
    checkpoint = find(file, folder.clip, tmp_path / "pre-trained")
    assert checkpoint.tokenizer == folder.clip
    check_checkpoint(checkpoint)
    (folder.clip / "vocab.json").unlink()
    with pytest.raises(CheckpointError, match="not a CLIP tokenizer"):
        check_checkpoint(find(file, folder.clip, tmp_path / "pre-trained"))


def test_conversion_leaves_foreign_names(tmp_path: Path) -> None:
    odd = {"label_emb.0.0.weight": 1, "input_blocks.1.7.x": 2}
    assert convert_unet(odd) == odd and convert_vae({"loss.x": 1}) == {"loss.x": 1}  # type: ignore[arg-type,dict-item]
