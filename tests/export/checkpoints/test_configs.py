"""Config files as they were published, and the defaults of the libraries for what they leave out."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra [export]")

from diffplugin.errors import CheckpointError
from diffplugin.export.checkpoints import check_checkpoint, find
from diffplugin.export.checkpoints.configs import TABLES, inner_config, native_latent, read_config
from diffplugin.runtime.sampling.noise_schedule import _DEFAULTS, NoiseSchedule, sampler_settings
from diffplugin.runtime.sampling.time_features import time_settings
from tests.conftest import ROOT
from tests.export.checkpoints.tiny import copy_linked, published, write_tiny

# Ours on purpose: SD's latent side where the library has none, and the tokenizer's own end of text for CLIP's.
OTHER_DEFAULTS: dict[str, dict[str, Any]] = {"unet": {"sample_size": None}, "text_encoder": {"eos_token_id": 49407}}
KINDS = {"unet/config.json": "unet", "vae/config.json": "vae", "text_encoder/config.json": "text_encoder"}


@pytest.mark.parametrize("model", published())
def test_published_configs_are_complete(model: str) -> None:
    for name, config in published()[model].items():
        if name in KINDS:
            made, faults = read_config(KINDS[name], config, name)
            assert faults == []
            assert all(made[key] == value for key, value in config.items() if value is not None), name
        if name.startswith("scheduler"):
            schedule = NoiseSchedule.from_config(config)
            assert (schedule.beta_start, schedule.beta_end, schedule.prediction_type) == (0.00085, 0.012, "epsilon")
    vae, _ = read_config("vae", published()[model].get("vae/config.json", {"in_channels": 3}), "vae")
    assert vae["norm_num_groups"] == 32 and vae["scaling_factor"] == 0.18215


def test_the_copies_are_the_published_files() -> None:
    folder = ROOT.parent / "shared" / "cases" / "published-configs"
    if not folder.is_dir():
        pytest.skip("the published files do not lie beside the repository")
    for name, config in published()["Stable Diffusion 1.4"].items():
        assert json.loads((folder / name).read_text()) == config, name


@pytest.mark.parametrize("model", published())
def test_models_with_the_keys_of_published_files_are_read(model: str, tmp_path: Path) -> None:
    root = write_tiny(tmp_path, model)
    checkpoint = find(root / "base", root / "clip", root / "pre-trained")
    notes = check_checkpoint(checkpoint)
    lacks = "norm_num_groups" not in json.loads((root / "base/vae/config.json").read_text())
    assert [n for n in notes if "norm_num_groups (default 32)" in n] == [n for n in notes if lacks]
    assert checkpoint.config("vae")["norm_num_groups"] == 32
    for part in checkpoint.parts():
        checkpoint.load(part)


def test_a_latent_side_of_32_is_an_error_of_early_conversions() -> None:
    """diffusers' pipeline corrects it too (its own condition is the version, which later files belie)."""
    unet = published()["finetune, saved by diffusers 0.10 (Counterfeit 2.5)"]["unet/config.json"]
    assert unet["sample_size"] == 32 and native_latent(read_config("unet", unet, "unet")[0]) == 64
    small = unet | {"block_out_channels": [32, 64, 64, 64]}
    assert native_latent(read_config("unet", small, "unet")[0]) == 32
    for absent in ({k: v for k, v in unet.items() if k != "sample_size"}, unet | {"sample_size": None}):
        assert native_latent(read_config("unet", absent, "unet")[0]) == 64


def _library_defaults(kind: str) -> dict[str, Any]:
    if kind in ("text_encoder", "clip_vision"):
        transformers = pytest.importorskip("transformers")
        made = {"text_encoder": transformers.CLIPTextConfig, "clip_vision": transformers.CLIPVisionConfig}[kind]()
        return {key: getattr(made, key) for key in TABLES[kind] if hasattr(made, key)}
    if kind == "preprocessor":
        name = "transformers.models.clip.image_processing_pil_clip"
        made = pytest.importorskip(name, reason="needs transformers 5").CLIPImageProcessorPil
        return {key: getattr(made, key) for key in TABLES[kind] if hasattr(made, key)}
    diffusers = pytest.importorskip("diffusers")
    classes = {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "tiny_vae": "AutoencoderTiny",
        "scb": "ControlNetModel",
    }
    parameters = inspect.signature(getattr(diffusers, classes[kind]).__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


# The diagnosis and the change head are this project's own networks: no library has defaults for them.
@pytest.mark.parametrize("kind", [kind for kind in TABLES if kind not in ("diagnosis", "head")])
def test_defaults_are_those_of_the_libraries(kind: str) -> None:
    theirs = _library_defaults(kind)
    ours = {key: setting.default for key, setting in TABLES[kind].items()}
    own = OTHER_DEFAULTS.get(kind, {})
    compared = 0
    for key, value in ours.items():
        if key in theirs and key not in ("size", "crop_size"):
            expected = list(theirs[key]) if isinstance(theirs[key], tuple) else theirs[key]
            assert expected == own.get(key, value), f"{kind}.{key}: the library has {expected!r}, we take {value!r}"
            compared += 1
    assert compared >= 8, f"only {compared} of {len(ours)} keys were compared"


@pytest.mark.parametrize("name", sorted(_DEFAULTS))
def test_defaults_of_schedulers_are_those_of_diffusers(name: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    made = getattr(diffusers, name, None)
    if made is None or "dummy" in str(getattr(made, "__module__", "")):
        pytest.skip(f"{name} needs a package that is not here")
    parameters = inspect.signature(made.__init__).parameters
    schedule = NoiseSchedule.from_config({"_class_name": name})
    ours = schedule.to_config()
    for key in ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps", "prediction_type"):
        assert ours[key] == parameters[key].default, key
    alpha = parameters.get("set_alpha_to_one")
    assert schedule.set_alpha_to_one == (alpha is not None and alpha.default)


def test_settings_of_a_sampler_are_ignored_and_named() -> None:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    euler = betas | {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "steps_offset": 1}
    assert sampler_settings(euler) == ["use_karras_sigmas"]
    pndm = NoiseSchedule.from_config(betas | {"_class_name": "PNDMScheduler"})
    assert NoiseSchedule.from_config(euler) == pndm
    assert NoiseSchedule.from_config(pndm.to_config()) == pndm


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "not a schedule of betas"),
        ({"_class_name": "SomethingNewScheduler"}, "beta_start is None"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "expected 'discrete'"),
        ({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is True"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "sample"}, "expected one of epsilon, v_prediction"),
        ({"_class_name": "DDIMScheduler", "num_train_timesteps": 10**9}, "from 2 to 100000"),
    ],
)
def test_other_schedules_are_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        NoiseSchedule.from_config(config)


def test_time_settings_have_diffusers_defaults() -> None:
    assert time_settings({}) == {"flip_sin_to_cos": True, "freq_shift": 0}
    assert time_settings({"flip_sin_to_cos": False, "freq_shift": 1}) == {"flip_sin_to_cos": False, "freq_shift": 1}


def test_the_halves_of_a_clip_config() -> None:
    """As transformers' CLIPConfig: the older ``_dict`` wins where both are there."""
    whole = {"model_type": "clip", "vision_config": {"hidden_size": 1, "patch_size": 14}, "projection_dim": 768}
    assert inner_config(whole, "vision") == {"hidden_size": 1, "patch_size": 14}
    old = whole | {"vision_config_dict": {"hidden_size": 1024}}
    assert inner_config(old, "vision") == {"hidden_size": 1024, "patch_size": 14}
    assert inner_config({"hidden_size": 2}, "vision") == {"hidden_size": 2}
    assert inner_config({"model_type": "clip", "vision_config": 3}, "vision") == {}


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("base/unet/config.json", {"in_channels": 9}, "an inpainting model"),
        ("base/unet/config.json", {"_class_name": "UNetMotionModel"}, "expected UNet2DConditionModel"),
        ("base/unet/config.json", {"addition_embed_type": "text_time"}, "addition_embed_type is"),
        ("base/unet/config.json", {"cross_attention_dim": 32}, "hidden_size is 16, unet cross_attention_dim is 32"),
        ("base/vae/config.json", {"_class_name": "AutoencoderTiny"}, "expected AutoencoderKL"),
        ("base/vae/config.json", {"latent_channels": 16}, "unet in_channels is 4, vae latent_channels is 16"),
        ("base/text_encoder/config.json", {"eos_token_id": 7}, "the text encoder's eos_token_id is 7"),
        ("base/text_encoder/config.json", {"vocab_size": 100}, "the text encoder's vocab_size is 100"),
        ("clip/config.json", {"model_type": "clip_text_model"}, "expected clip_vision_model or clip"),
        ("clip/preprocessor_config.json", {"crop_size": 336}, "crop_size is 336, the vision encoder takes 224"),
        ("clip/preprocessor_config.json", {"do_center_crop": False}, "do_center_crop is false, expected true"),
        ("pre-trained/deblur/scb/config.json", {"flip_sin_to_cos": False}, "scb flip_sin_to_cos is False"),
    ],
)
def test_what_contradicts_itself_is_refused(name: str, change: dict[str, Any], said: str, tmp_path: Path) -> None:
    tiny = write_tiny(tmp_path / "tiny")
    root = copy_linked(tiny, tmp_path / "copy", Path(name))
    (root / name).write_text(json.dumps(json.loads((root / name).read_text()) | change))
    with pytest.raises(CheckpointError, match=said):
        check_checkpoint(find(root / "base", root / "clip", root / "pre-trained"))
    shutil.rmtree(tmp_path)
