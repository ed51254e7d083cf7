"""The config files beside the weights: the settings that are read, checked, with the libraries' defaults.

A missing key takes the default of the class that the file is for, as in the library itself: the published Stable
Diffusion 1.4 relies on this (``norm_num_groups`` of its autoencoder). Sources of the defaults, all the same from the
versions that wrote the published files to today's (a test compares them with the installed ones):

- ``unet``: diffusers, ``UNet2DConditionModel.__init__``
- ``vae``: diffusers, ``AutoencoderKL.__init__``
- ``tiny_vae``: diffusers, ``AutoencoderTiny.__init__``
- ``text_encoder``, ``clip_vision``: transformers, ``CLIPTextConfig`` and ``CLIPVisionConfig``
- ``preprocessor``: transformers, ``CLIPImageProcessor``
- ``scb``: Diff-Plugin's ``SCBNet.__init__``, which has the defaults of diffusers' ``ControlNetModel``
- ``diagnosis``, ``head``: this project's own (:mod:`.own_configs`)

Settings with a single allowed value are those that Stable Diffusion 1.x fixes: any other value means another network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diffplugin.export.checkpoints import own_configs
from diffplugin.export.checkpoints.settings import (
    MAX_LAYERS,
    MAX_WIDTH,
    Setting,
    blocks,
    counts,
    fixed,
    flag,
    flags,
    heads,
    number,
    off,
    one_of,
    read_settings,
    shown,
    side,
    triple,
    whole,
    widths,
)

Config = dict[str, Any]
NATIVE_LATENT = 64  # SD 1.x was trained on 512 x 512 pixels
_DOWN, _UP = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")

# What UNet and SCB share.
_DENOISER = {
    "in_channels": Setting(4, whole(1, 64)),
    "flip_sin_to_cos": Setting(True, flag),
    "freq_shift": Setting(0, number(-1e3, 1e3)),
    "only_cross_attention": Setting(False, flags),
    "block_out_channels": Setting([320, 640, 1280, 1280], widths),
    "layers_per_block": Setting(2, whole(1, 16)),
    "norm_num_groups": Setting(32, whole(1, MAX_WIDTH)),
    "norm_eps": Setting(1e-5, number(0, 1)),
    "cross_attention_dim": Setting(1280, whole(1, MAX_WIDTH)),
    "attention_head_dim": Setting(8, heads),
    "use_linear_projection": Setting(False, flag),
    "upcast_attention": Setting(False, flag),  # a precision, not another network: the graphs are float32
    "act_fn": fixed("silu"),
    "downsample_padding": fixed(1),
    "mid_block_scale_factor": fixed(1),
    "class_embed_type": fixed(None),
    "num_class_embeds": fixed(None),
    "resnet_time_scale_shift": fixed("default"),
    "transformer_layers_per_block": fixed(1),
    "num_attention_heads": fixed(None),  # diffusers refuses it too: attention_head_dim is the number
}
_UNET = {
    **_DENOISER,
    "out_channels": Setting(4, whole(1, 64)),
    "sample_size": Setting(NATIVE_LATENT, lambda value: NATIVE_LATENT if value is None else whole(1, 4096)(value)),
    "down_block_types": Setting([_DOWN[0]] * 3 + [_DOWN[1]], blocks(*_DOWN)),
    "mid_block_type": fixed("UNetMidBlock2DCrossAttn"),
    "up_block_types": Setting([_UP[0]] + [_UP[1]] * 3, blocks(*_UP)),
    "center_input_sample": Setting(False, off),
    "dual_cross_attention": Setting(False, off),
    "reverse_transformer_layers_per_block": fixed(None),
    "encoder_hid_dim": fixed(None),
    "encoder_hid_dim_type": fixed(None),
    "addition_embed_type": fixed(None),
    "resnet_skip_time_act": Setting(False, off),
    "resnet_out_scale_factor": fixed(1),
    "time_embedding_type": fixed("positional"),
    "time_embedding_dim": fixed(None),
    "time_embedding_act_fn": fixed(None),
    "timestep_post_act": fixed(None),
    "time_cond_proj_dim": fixed(None),
    "conv_in_kernel": fixed(3),
    "conv_out_kernel": fixed(3),
    "attention_type": fixed("default"),
    "cross_attention_norm": fixed(None),
    "class_embeddings_concat": Setting(False, off),
}
_SCB = {**_DENOISER, "down_block_types": Setting([_DOWN[0]] * 3 + [_DOWN[1]], blocks(_DOWN[0]))}
_VAE = {
    "in_channels": fixed(3),
    "out_channels": fixed(3),
    "down_block_types": Setting(["DownEncoderBlock2D"], blocks("DownEncoderBlock2D")),
    "up_block_types": Setting(["UpDecoderBlock2D"], blocks("UpDecoderBlock2D")),
    "block_out_channels": Setting([64], widths),
    "layers_per_block": Setting(1, whole(1, 16)),
    "act_fn": fixed("silu"),
    "latent_channels": Setting(4, whole(1, 64)),
    "norm_num_groups": Setting(32, whole(1, MAX_WIDTH)),
    "scaling_factor": Setting(0.18215, number(0, 1e6)),
    "shift_factor": Setting(None, one_of(None, 0)),
    "latents_mean": fixed(None),
    "latents_std": fixed(None),
    "use_quant_conv": fixed(True),
    "use_post_quant_conv": fixed(True),
    "mid_block_add_attention": Setting(True, flag),
}
_TINY_VAE = {
    "in_channels": fixed(3),
    "out_channels": fixed(3),
    "latent_channels": Setting(4, whole(1, 64)),
    "encoder_block_out_channels": Setting([64] * 4, widths),
    "decoder_block_out_channels": Setting([64] * 4, widths),
    "num_encoder_blocks": Setting([1, 3, 3, 3], counts),
    "num_decoder_blocks": Setting([3, 3, 3, 1], counts),
    "act_fn": fixed("relu"),
    "upsample_fn": fixed("nearest"),
    "upsampling_scaling_factor": fixed(2),
    "latent_magnitude": Setting(3, number(0, 1e6)),
    "scaling_factor": fixed(1.0),
    "shift_factor": fixed(0.0),
}
_CLIP = {
    "num_hidden_layers": Setting(12, whole(1, MAX_LAYERS)),
    "hidden_act": Setting("quick_gelu", one_of("quick_gelu", "gelu")),
    "layer_norm_eps": Setting(1e-5, number(0, 1)),
}
_TEXT = {
    **_CLIP,
    "vocab_size": Setting(49408, whole(3, 2**24)),
    "hidden_size": Setting(512, whole(1, MAX_WIDTH)),
    "intermediate_size": Setting(2048, whole(1, MAX_WIDTH)),
    "num_attention_heads": Setting(8, whole(1, MAX_WIDTH)),
    "max_position_embeddings": Setting(77, whole(4, 4096)),
    # transformers' default is 49407, the end of text of CLIP's own vocabulary. Null and absence mean the tokenizer's:
    # for that vocabulary it is the same, and for any other it is right.
    "eos_token_id": Setting(None, lambda value: None if value is None else whole(0, 2**24)(value)),
}
_VISION = {
    **_CLIP,
    "hidden_size": Setting(768, whole(1, MAX_WIDTH)),
    "intermediate_size": Setting(3072, whole(1, MAX_WIDTH)),
    "num_attention_heads": Setting(12, whole(1, MAX_WIDTH)),
    "num_channels": fixed(3),
    "image_size": Setting(224, whole(1, 4096)),
    "patch_size": Setting(32, whole(1, 4096)),
}
# What the runtime does to CLIP's view of a photo; size and crop_size follow the encoder where they are absent.
_PREPROCESSOR = {
    "do_resize": fixed(True),
    "do_center_crop": fixed(True),
    "do_rescale": fixed(True),
    "do_normalize": fixed(True),
    "resample": fixed(3),  # Pillow's number of the bicubic filter
    "rescale_factor": Setting(1 / 255, number(0.9999 / 255, 1.0001 / 255)),
    "image_mean": Setting([0.48145466, 0.4578275, 0.40821073], triple(-100, 100)),
    "image_std": Setting([0.26862954, 0.26130258, 0.27577711], triple(0, 100)),
    "size": Setting(None, side("shortest_edge")),
    "crop_size": Setting(None, side("height", "width")),
}
TABLES = {
    "unet": _UNET,
    "vae": _VAE,
    "tiny_vae": _TINY_VAE,
    "text_encoder": _TEXT,
    "clip_vision": _VISION,
    "scb": _SCB,
    "preprocessor": _PREPROCESSOR,
    "diagnosis": own_configs.DIAGNOSIS,
    "head": own_configs.HEAD,
}
# Where a file names its class, the ones whose settings these are.
_CLASSES = {
    "unet": ("_class_name", ("UNet2DConditionModel",)),
    "vae": ("_class_name", ("AutoencoderKL",)),
    "tiny_vae": ("_class_name", ("AutoencoderTiny",)),
    "text_encoder": ("model_type", ("clip_text_model", "clip")),
    "clip_vision": ("model_type", ("clip_vision_model", "clip")),
}


def read_config(kind: str, config: Mapping[str, Any], where: str) -> tuple[Config, list[str]]:
    """(the config with defaults filled in, its faults, one line each).

    Args:
        kind: a key of ``TABLES``.
        where: names the file in the lines.
    """
    if kind != "preprocessor" and not config.keys() & TABLES[kind].keys():
        return dict(config), [f"{where}: has no setting of a {kind}; is this a Stable Diffusion 1.x checkpoint?"]
    key, classes = _CLASSES.get(kind, ("", ()))
    if key in config and config[key] not in classes:
        return dict(config), [f"{where}: {key} is {shown(config[key])}, expected {' or '.join(classes)}"]
    made, faults = read_settings(TABLES[kind], config, where)
    if not faults and kind in _WITHIN:
        faults = [f"{where}: {fault}" for fault in _WITHIN[kind](made)]
    return made, faults


def defaulted(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Widths and counts that ``config`` lacks, with the defaults that replace them; they explain weights that do not
    fit."""
    table = TABLES[kind]
    return {
        key: setting.default
        for key, setting in table.items()
        if key not in config and not setting.fixed and type(setting.default) in (int, list)
    }


def _denoiser(config: Config, types: tuple[str, ...]) -> list[str]:
    count, groups = len(config["block_out_channels"]), config["norm_num_groups"]
    faults = [
        f"{key} has {len(config[key])} entries, block_out_channels has {count}"
        for key in (*types, "attention_head_dim", "only_cross_attention")
        if isinstance(config[key], list) and len(config[key]) != count
    ]
    number_of_heads = config["attention_head_dim"]
    for i, width in enumerate(config["block_out_channels"]):
        here = number_of_heads[min(i, len(number_of_heads) - 1)] if isinstance(number_of_heads, list) else None
        faults += _divides("norm_num_groups", groups, width)
        faults += _divides("attention_head_dim (the number of heads)", here or number_of_heads, width)
    if config["block_out_channels"][0] % 2:
        faults.append(f"block_out_channels begins with {config['block_out_channels'][0]}, expected an even number")
    if config["freq_shift"] * 2 == config["block_out_channels"][0]:
        faults.append(f"freq_shift is {config['freq_shift']}, half the first width: that divides by zero")
    return list(dict.fromkeys(faults))


def _unet(config: Config) -> list[str]:
    faults = _denoiser(config, ("down_block_types", "up_block_types"))
    if len(config["block_out_channels"]) < 2:
        faults.append("the unet has 1 level(s), expected at least 2")
    if config["in_channels"] == 9:
        faults.append("in_channels is 9: an inpainting model; the base must be a plain Stable Diffusion 1.x")
    elif config["in_channels"] != config["out_channels"]:
        faults.append(f"in_channels is {config['in_channels']}, out_channels is {config['out_channels']}")
    return faults


def _scb(config: Config) -> list[str]:
    faults = _denoiser(config, ("down_block_types",))
    if (count := len(config["block_out_channels"])) != 1:
        faults.append(f"block_out_channels has {count} entries, expected 1: an SCB is one level")
    return faults


def _vae(config: Config) -> list[str]:
    count = len(config["block_out_channels"])
    faults = [
        f"{key} has {len(config[key])} entries, block_out_channels has {count}"
        for key in ("down_block_types", "up_block_types")
        if len(config[key]) != count
    ]
    for width in config["block_out_channels"]:
        faults += _divides("norm_num_groups", config["norm_num_groups"], width)
    return list(dict.fromkeys(faults))


def _tiny_vae(config: Config) -> list[str]:
    count = len(config["decoder_block_out_channels"])
    faults = [
        f"{key} has {len(config[key])} entries, decoder_block_out_channels has {count}"
        for key in ("encoder_block_out_channels", "num_encoder_blocks", "num_decoder_blocks")
        if len(config[key]) != count
    ]
    for key in ("encoder_block_out_channels", "decoder_block_out_channels"):
        if len(set(config[key])) > 1:
            faults.append(f"{key} is {shown(config[key])}, expected one width at all levels")
    return faults


def _clip(config: Config) -> list[str]:
    return _divides("num_attention_heads", config["num_attention_heads"], config["hidden_size"])


def _vision(config: Config) -> list[str]:
    if config["patch_size"] > config["image_size"]:
        return [*_clip(config), f"patch_size is {config['patch_size']}, image_size is {config['image_size']}"]
    return _clip(config)


def _divides(name: str, count: int, width: int) -> list[str]:
    return [f"{name} is {count}, which does not divide a width of {width}"] if width % count else []


_WITHIN: dict[str, Callable[[Config], list[str]]] = {
    "unet": _unet,
    "scb": _scb,
    "vae": _vae,
    "tiny_vae": _tiny_vae,
    "text_encoder": _clip,
    "clip_vision": _vision,
    "diagnosis": own_configs.check_diagnosis,
}


def inner_config(config: Mapping[str, Any], half: str) -> Config:
    """The ``text`` or ``vision`` half of a CLIP config. A whole CLIP has one in ``<half>_config``; if an old file has
    ``<half>_config_dict`` too, that one wins, as in transformers (``CLIPConfig.__post_init__``)."""
    found = [config[name] for name in (f"{half}_config", f"{half}_config_dict") if isinstance(config.get(name), dict)]
    if not found and config.get("model_type") != "clip":
        return dict(config)
    return {key: value for part in found for key, value in part.items()}


def native_latent(config: Mapping[str, Any]) -> int:
    """The latent side that the base was trained at, of a complete UNet config.

    Configs from early conversions have 32 for models of 64: all SD 1.x models were trained at 512 pixels or more.
    (diffusers corrects the same value, but only in files of versions below 0.9; later ones have it too.)
    """
    size: int = config["sample_size"]
    full = tuple(config["block_out_channels"]) == (320, 640, 1280, 1280)
    return NATIVE_LATENT if full and size < NATIVE_LATENT else size
