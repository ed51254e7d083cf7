"""Write trained networks in the released layouts: a diffusers folder, a CLIP folder, the ``pre-trained`` tree, cards.

Weights are float16. Every file is written beside its place and renamed, so that a reader never meets half of one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.17.1",
    "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
PREPROCESSOR = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 224},
}
Tensors = Mapping[str, Tensor]


def half(tensors: Tensors) -> dict[str, Tensor]:
    """Contiguous float16 copies, as shipped."""
    return {name: value.detach().to(torch.float16).contiguous() for name, value in tensors.items()}


def write_json(path: Path, value: Any) -> None:
    """Pretty JSON, atomically."""
    place(path, lambda part: part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"))


def write_lines(path: Path, text: str) -> None:
    """UTF-8 text, atomically."""
    place(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_tensors(path: Path, tensors: Tensors) -> None:
    """``.safetensors`` as such; ``.bin`` and ``.pt`` as torch pickles of tensors alone."""
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        place(path, lambda part: save_file(half(tensors), part, metadata={"format": "pt"}))
    elif path.suffix == ".pt":
        place(path, lambda part: torch.save({"model": half(tensors)}, part))
    else:
        place(path, lambda part: torch.save(half(tensors), part))


def place(path: Path, write: Callable[[Path], Any]) -> None:
    """Let ``write`` make a file beside ``path``, and move it there: a kill leaves the old file or the new one.

    Raises:
        OSError: it could not be written, whatever the writer calls a full disk; nothing is left of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        write(part)
        part.replace(path)
    except Exception as error:
        part.unlink(missing_ok=True)
        why = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        free = shutil.disk_usage(path.parent).free / 2**20
        raise OSError(f"{path}: not written ({why}); {free:.0f} MiB are free on its disk") from None


def write_vae(folder: Path, config: Mapping[str, Any], tensors: Tensors) -> None:
    """``base/vae/``."""
    write_json(folder / "base/vae/config.json", config)
    write_tensors(folder / "base/vae/diffusion_pytorch_model.safetensors", tensors)


def write_denoiser(folder: Path, configs: Mapping[str, Mapping[str, Any]], *, unet: Tensors, vision: Tensors) -> None:
    """``base/unet/``, ``base/scheduler/``, ``base/model_index.json`` and ``clip/``."""
    base, clip = folder / "base", folder / "clip"
    write_json(base / "model_index.json", MODEL_INDEX)
    write_json(base / "scheduler/scheduler_config.json", configs["scheduler"])
    write_json(base / "unet/config.json", configs["unet"])
    write_tensors(base / "unet/diffusion_pytorch_model.safetensors", unet)
    write_json(clip / "config.json", configs["vision"])
    write_json(clip / "preprocessor_config.json", PREPROCESSOR)
    write_tensors(clip / "model.safetensors", vision)


def write_text(folder: Path, config: Mapping[str, Any], tensors: Tensors) -> None:
    """``base/text_encoder/``."""
    write_json(folder / "base/text_encoder/config.json", config)
    write_tensors(folder / "base/text_encoder/model.safetensors", tensors)


def write_branches(place: Path, config: Mapping[str, Any], *, tpb: Tensors, scb: Tensors) -> None:
    """``tpb.pt`` and ``scb/`` of one Task-Plugin."""
    write_tensors(place / "tpb.pt", tpb)
    write_json(place / "scb/config.json", config)
    write_tensors(place / "scb/diffusion_pytorch_model.bin", scb)


def write_plugin(folder: Path, task: str, config: Mapping[str, Any], *, tpb: Tensors, scb: Tensors, card: str) -> None:
    """``pre-trained/<task>/``, its card beside the weights: who copies the folder takes the card along."""
    write_branches(folder / "pre-trained" / task, config, tpb=tpb, scb=scb)
    write_lines(folder / "pre-trained" / task / "card.toml", card)


def write_selector(folder: Path, heads: Tensors, threshold: float = 0.0) -> None:
    """``pre-trained/plugin_selector/PromptTunner.pt`` (the release's own spelling), and beside it the score above which
    a plugin is selected (Eq. 5), which the release fixes at 0."""
    place = folder / "pre-trained/plugin_selector"
    write_tensors(place / "PromptTunner.pt", heads)
    write_json(place / "selector.json", {"threshold": round(threshold, 4)})


def write_words(folder: Path, ranked: Iterable[str], right: Iterable[str]) -> None:
    """``pre-trained/plugin_selector/words.txt``: see ``runtime.request.spelling.read_speller``."""
    text = "\n".join((*ranked, "", *right)) + "\n"
    place(folder / "pre-trained/plugin_selector/words.txt", lambda part: part.write_text(text, encoding="utf-8"))


def write_tokenizer(folder: Path, vocab: Mapping[str, int], merges: list[str]) -> None:
    """``base/tokenizer/``: CLIP's byte-level BPE."""
    place = folder / "base/tokenizer"

    def token(content: str) -> dict[str, Any]:
        return {
            "__type": "AddedToken",
            "content": content,
            "lstrip": False,
            "normalized": True,
            "rstrip": False,
            "single_word": False,
        }

    begin, end = "<|startoftext|>", "<|endoftext|>"
    roles = {"bos_token": begin, "eos_token": end, "unk_token": end, "pad_token": end}
    write_json(place / "vocab.json", vocab)
    write_lines(place / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
    write_json(
        place / "tokenizer_config.json",
        {
            **{role: token(content) for role, content in roles.items()},
            "pad_token": end,
            "errors": "replace",
            "do_lower_case": True,
            "model_max_length": 77,
            "tokenizer_class": "CLIPTokenizer",
        },
    )
    special = {role: {k: v for k, v in token(c).items() if k != "__type"} for role, c in roles.items()}
    write_json(place / "special_tokens_map.json", {**special, "pad_token": end})
