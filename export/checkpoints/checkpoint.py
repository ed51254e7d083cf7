"""One model's checkpoint: its parts, their configs, and the networks filled with their weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffplugin.errors import CheckpointError
from diffplugin.export.checkpoints import configs, single_file, weights
from diffplugin.export.checkpoints.agreement import pairs
from diffplugin.export.checkpoints.settings import MAX_WIDTH
from diffplugin.export.checkpoints.weights import Tensors, WeightFiles, find_weights, read_tensors, read_weights
from diffplugin.export.reading import exists, is_file, read_json
from diffplugin.export.tokenizer import end_and_largest, has_tokenizer
from diffplugin.manifest import Diagnosed
from diffplugin.plugins.networks.clip import TextEncoder, VisionEncoder
from diffplugin.plugins.networks.diagnosis import Diagnosis
from diffplugin.plugins.networks.head import ChangeHead
from diffplugin.plugins.networks.taskplugin import SelectorHeads, SpatialComplementBranch, TaskPromptBranch
from diffplugin.plugins.networks.tiny_vae import TinyAutoencoder
from diffplugin.plugins.networks.unet import UNet
from diffplugin.plugins.networks.vae import Autoencoder
from diffplugin.runtime.sampling.noise_schedule import NoiseSchedule
from diffplugin.spec import ModelDims

SELECTOR_FOLDER, SELECTOR_FILE = "plugin_selector", "PromptTunner.pt"  # the release's own spelling
THRESHOLD_FILE, WORDS_FILE = "selector.json", "words.txt"  # ours, beside the heads
BASE_PARTS = ("unet", "vae", "text_encoder")
_FOLDERS = ("diagnosis", "tiny_vae")  # parts that may be absent, each in a folder of its own
# diffusers renamed the attention of the autoencoder; SD 1.4's own files have the old names
_OLD_VAE = tuple(
    (rf"(\.attentions\.\d+)\.{old}\.", rf"\1.{new}.")
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
)
# What may be there without a use: buffers of old versions, and the other half of a whole CLIP.
_UNUSED = {
    "text_encoder": (r"position_ids$", r"^vision_model\.", r"^(visual|text)_projection\.", r"^logit_scale$"),
    "clip_vision": (r"position_ids$", r"^text_model\.", r"^(visual|text)_projection\.", r"^logit_scale$"),
}


@dataclass(frozen=True)
class Checkpoint:
    """The locations of the parts of one model. Networks are read on request, so that only one need be in memory.

    A part is ``unet``, ``vae``, ``text_encoder``, ``clip_vision``, ``tpb/<id>``, ``scb/<id>``, ``head/<id>``,
    ``selector``, ``diagnosis`` or ``tiny_vae``.

    Attributes:
        base: diffusers folder of Stable Diffusion 1.x, or a single file in the original layout.
        clip: CLIP folder (vision).
        plugins: Task-Plugin folders by id, each with ``tpb.pt``, ``scb/`` and, of some, ``head/``.
        selector: ``PromptTunner.pt``, or None.
        diagnosis: folder of the network that sees what a photo needs (``config.json``, ``model.safetensors``), or None.
        tiny_vae: folder of a tiny autoencoder for the base's latents (diffusers ``AutoencoderTiny``), or None.
    """

    base: Path
    clip: Path
    plugins: Mapping[str, Path]
    selector: Path | None
    diagnosis: Path | None = None
    tiny_vae: Path | None = None

    @property
    def single(self) -> bool:
        """Whether the base is one file."""
        return self.base.suffix in single_file.SUFFIXES and is_file(self.base)

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's folder. A single file has none; then it is the one beside the file, or that of the CLIP
        folder.
        """
        if not self.single:
            return self.base / "tokenizer"
        beside = (self.base.parent / "tokenizer", self.base.parent)
        return next((folder for folder in beside if has_tokenizer(folder)), self.clip)

    def parts(self) -> tuple[str, ...]:
        """All parts, in the order of export."""
        optional = (part for part in ("selector", *_FOLDERS) if getattr(self, part) is not None)
        return (*BASE_PARTS, "clip_vision", *self.plugin_parts(), *optional)

    def plugin_parts(self) -> tuple[str, ...]:
        """The parts of the plugins; a change head is optional."""
        return tuple(
            f"{branch}/{plugin}"
            for plugin, place in self.plugins.items()
            for branch in ("tpb", "scb", "head")
            if branch != "head" or exists(place / "head" / "config.json")
        )

    def source(self, part: str) -> WeightFiles:
        """The weight files of a part.

        Raises:
            CheckpointError: there are none, or one is not a regular file.
        """
        kind, _, plugin = part.partition("/")
        if kind in BASE_PARTS:
            return WeightFiles((self.base,)) if self.single else find_weights(self.base / kind)
        if kind == "selector":
            if self.selector is None:
                raise CheckpointError(f"no {SELECTOR_FOLDER}/{SELECTOR_FILE} beside the plugins")
            return WeightFiles((self.selector,))
        if kind in _FOLDERS:
            return find_weights(self._folder(kind))
        if kind == "tpb":
            return WeightFiles((self.plugins[plugin] / "tpb.pt",))
        return find_weights(self.clip if kind == "clip_vision" else self.plugins[plugin] / kind)

    def tensors(self, part: str) -> Tensors:
        """The tensors of a part under present names.

        Raises:
            CheckpointError: a file is missing or unreadable.
        """
        if self.single and part in BASE_PARTS:
            found = single_file.part_of(self._single, part, self.base)
        else:
            found = read_weights(self.source(part))
        if part == "vae":
            return {name: _as_linear(name, value) for name, value in weights.rename(found, _OLD_VAE)}
        if part in _UNUSED:  # some files leave out the name of the only module
            module = "vision_model." if part == "clip_vision" else "text_model."
            if not any(name.startswith(module) for name in found):
                bare = re.compile(r"(embeddings|encoder|final_layer_norm|pre_layrnorm|post_layernorm)\.")
                return {module + name if bare.match(name) else name: value for name, value in found.items()}
        return found

    @property
    def averaged(self) -> bool:
        """Whether the base is a file with two sets of the UNet's weights, of which the averages are used."""
        return self.single and single_file.has_average(self._single)

    @cached_property
    def _single(self) -> Tensors:
        return read_tensors(self.base)

    def config_file(self, part: str) -> Path:
        """The file of :meth:`raw_config`."""
        kind, _, plugin = part.partition("/")
        if kind == "preprocessor":
            combined = self.clip / "processor_config.json"  # transformers 5 may write this alone
            apart = self.clip / "preprocessor_config.json"
            return combined if exists(combined) and not exists(apart) else apart
        if kind in _FOLDERS:
            return self._folder(kind) / "config.json"
        if kind in ("clip_vision", "scb", "head"):
            return (self.clip if kind == "clip_vision" else self.plugins[plugin] / kind) / "config.json"
        if self.single:
            return self.base
        return self.base / part / ("scheduler_config.json" if part == "scheduler" else "config.json")

    def raw_config(self, part: str) -> dict[str, Any]:
        """A part's unchanged config from its file: one of the parts, or ``scheduler`` or ``preprocessor``.

        Raises:
            CheckpointError: the file is missing or no JSON object.
        """
        kind, path = part.partition("/")[0], self.config_file(part)
        if kind == "preprocessor":
            if not exists(path):  # transformers' defaults are CLIP's own settings
                return {}
            found = read_json(path)
            inner = found.get("image_processor", found)
            return inner if isinstance(inner, dict) else found
        if kind in (*BASE_PARTS, "scheduler") and self.single:
            tensors = {} if kind == "scheduler" else self.tensors(kind)
            return single_file.config_of(kind, tensors, self._single)
        half = {"text_encoder": "text", "clip_vision": "vision"}.get(kind)
        return read_json(path) if half is None else configs.inner_config(read_json(path), half)

    def config(self, part: str) -> dict[str, Any]:
        """A part's config, complete: absent keys have the library's defaults (:mod:`.configs`).

        Raises:
            CheckpointError: the file is missing or no JSON object; every unusable value at once.
        """
        raw = self.raw_config(part)
        if part == "scheduler":
            try:
                return raw | NoiseSchedule.from_config(raw).to_config()
            except CheckpointError as error:
                raise CheckpointError(str(error).replace("scheduler_config", str(self.config_file(part)), 1)) from None
        made, faults = configs.read_config(part.partition("/")[0], raw, str(self.config_file(part)))
        if faults:
            raise CheckpointError("; ".join(faults))
        if part == "text_encoder" and made["eos_token_id"] is None:
            made["eos_token_id"], _ = end_and_largest(self.tokenizer)
        return made

    @property
    def vision_config(self) -> dict[str, Any]:
        return self.config("clip_vision")

    def preprocessor(self) -> dict[str, Any]:
        return self.config("preprocessor")

    def scb_config(self, plugin: str) -> dict[str, Any]:
        return self.config(f"scb/{plugin}")

    @cached_property
    def dims(self) -> ModelDims:
        """Widths from the configs; CheckpointError if they contradict each other."""
        unet, vae, text, vision = (self.config(part) for part in (*BASE_PARTS, "clip_vision"))
        dims = ModelDims(
            factor=2 ** (len(vae["block_out_channels"]) - 1),
            latent_channels=vae["latent_channels"],
            residual_channels=unet["block_out_channels"][0],
            deep_channels=unet["block_out_channels"][1],
            time_features=unet["block_out_channels"][0],
            tokens=(vision["image_size"] // vision["patch_size"]) ** 2,
            token_width=unet["cross_attention_dim"],
            vision_width=vision["hidden_size"],
            vision_size=vision["image_size"],
            context=text["max_position_embeddings"],
            native_latent=configs.native_latent(unet),
        )
        faults = [
            f"{left} is {a}, {right} is {b}" for left, a, right, b in pairs(self.config, self.parts(), dims) if a != b
        ]
        if faults:
            raise CheckpointError(f"checkpoint parts do not fit each other: {'; '.join(faults)}")
        return dims

    def blank(self, part: str) -> nn.Module:
        """A part's network without storage: its weights come from the file and are not in memory twice.

        Raises:
            CheckpointError: its config is unusable.
        """
        kind = part.partition("/")[0]
        with torch.device("meta"):
            if kind == "tpb":
                return TaskPromptBranch(self.vision_config["hidden_size"], self.config("unet")["cross_attention_dim"])
            if kind == "selector":
                return SelectorHeads(self.config("unet")["cross_attention_dim"], self._projected())
            make: dict[str, type[nn.Module]] = {
                "unet": UNet,
                "vae": Autoencoder,
                "tiny_vae": TinyAutoencoder,
                "text_encoder": TextEncoder,
                "clip_vision": VisionEncoder,
                "scb": SpatialComplementBranch,
                "head": ChangeHead,
                "diagnosis": Diagnosis,
            }
            return make[kind](self.config(part))

    def _projected(self) -> int:
        """Width of the selector's common space, from its file."""
        found = self.tensors("selector").get("proj_t.weight")
        usable = found is not None and found.ndim == 2 and 1 <= found.shape[0] <= MAX_WIDTH
        return found.shape[0] if found is not None and usable else self.config("unet")["cross_attention_dim"]

    def misfits(self, part: str) -> tuple[nn.Module, Tensors, list[str]]:
        """(the network without storage, its tensors, the reasons why they do not fit)."""
        network, tensors = self.blank(part), self.tensors(part)
        return network, tensors, weights.misfits(network, tensors, ignore=_UNUSED.get(part, ()))

    def load(self, part: str) -> Any:
        """A part's network with its weights, float32, ready for inference.

        Raises:
            CheckpointError: a file is missing or does not fit; all its faults are reported at once.
        """
        path = self.source(part).main
        return weights.fill(self.blank(part), self.tensors(part), path, ignore=_UNUSED.get(part, ()))

    def unet(self) -> UNet:
        return self.load("unet")  # type: ignore[no-any-return]

    def autoencoder(self) -> Autoencoder:
        return self.load("vae")  # type: ignore[no-any-return]

    def tiny_autoencoder(self) -> TinyAutoencoder:
        return self.load("tiny_vae")  # type: ignore[no-any-return]

    def text_encoder(self) -> TextEncoder:
        return self.load("text_encoder")  # type: ignore[no-any-return]

    def vision_encoder(self) -> VisionEncoder:
        return self.load("clip_vision")  # type: ignore[no-any-return]

    def tpb(self, plugin: str) -> TaskPromptBranch:
        return self.load(f"tpb/{plugin}")  # type: ignore[no-any-return]

    def scb(self, plugin: str) -> SpatialComplementBranch:
        return self.load(f"scb/{plugin}")  # type: ignore[no-any-return]

    def head(self, plugin: str) -> ChangeHead:
        return self.load(f"head/{plugin}")  # type: ignore[no-any-return]

    def selector_threshold(self) -> float:
        """Score above which a plugin is selected, chosen when the heads were trained; the release has none: 0.

        Raises:
            CheckpointError: the file is unreadable, or holds no such number.
        """
        note = self.selector and self.selector.with_name(THRESHOLD_FILE)
        if note is None or not exists(note):
            return 0.0
        value = read_json(note).get("threshold", 0.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise CheckpointError(f"{note}: threshold is {value!r}, expected a number")
        return float(value)

    def words(self) -> Path | None:
        """File of the words that the selector learned (``runtime.request.spelling``); the release has none."""
        file = self.selector and self.selector.with_name(WORDS_FILE)
        return file if file is not None and exists(file) else None

    def diagnosed(self) -> tuple[Diagnosed, ...]:
        """The tasks of the diagnosis with their thresholds, in the order of its outputs; none without a diagnosis."""
        if self.diagnosis is None:
            return ()
        config = self.config("diagnosis")
        return tuple(
            Diagnosed(task=task, threshold=float(threshold))
            for task, threshold in zip(config["tasks"], config["thresholds"], strict=True)
        )

    def _folder(self, part: str) -> Path:
        place: Path | None = getattr(self, part)
        if place is None:
            raise CheckpointError(f"this checkpoint has no {part}")
        return place

    def selector_heads(self) -> SelectorHeads:
        return self.load("selector")  # type: ignore[no-any-return]


def _as_linear(name: str, value: Tensor) -> Tensor:
    """Convert projections that some old autoencoders store as 1x1 convolutions."""
    return value[:, :, 0, 0] if ".attentions." in name and value.ndim == 4 and value.shape[2:] == (1, 1) else value
