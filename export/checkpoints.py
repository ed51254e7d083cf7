"""Released files -> clean tensors, safely.

A base is a diffusers Stable Diffusion 1.x folder, a vision encoder a transformers CLIP folder, and plugins the
released tree ``pre-trained/<task>/{tpb.pt,scb/}`` with ``plugin_selector/PromptTunner.pt``. Nothing is unpickled
beyond tensors, and every fault of a file is named at once.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from diffplugin.errors import CheckpointError
from diffplugin.export.embedded import embedded_checkpoint_folder
from diffplugin.plugins.networks.clip import TextEncoder, VisionEncoder
from diffplugin.plugins.networks.taskplugin import SelectorHeads, SpatialComplementBranch, TaskPromptBranch
from diffplugin.plugins.networks.unet import UNet
from diffplugin.plugins.networks.vae import Autoencoder
from diffplugin.spec import ModelDims

Net = TypeVar("Net", bound=nn.Module)
Tensors = dict[str, Tensor]
SELECTOR_FOLDER, SELECTOR_FILE = "plugin_selector", "PromptTunner.pt"  # the release's own spelling
THRESHOLD_FILE = "selector.json"  # ours
_WEIGHT_NAMES = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
)
# diffusers renamed the attention of the autoencoder; SD 1.4's own files have the old names
_OLD_NAMES = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))


def weights_file(folder: Path) -> Path:
    """The weights in a diffusers or transformers folder, safetensors first."""
    for name in _WEIGHT_NAMES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder}: no weights; expected one of {', '.join(_WEIGHT_NAMES)}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or one clear line."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; is this the right checkpoint folder?") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds {type(value).__name__}, expected an object")
    return value


def read_tensors(path: Path) -> Tensors:
    """Tensors of a safetensors file or of a pickle, the latter through weights-only loading.

    ``{"model": {...}}`` is unwrapped and ``module.`` prefixes go: some released files carry them.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing") from None
    except Exception as error:  # torch and safetensors raise many kinds for one fact: the file is not usable
        reason = str(error).split("\n")[0]
        raise CheckpointError(
            f"{path}: not a readable weights file, or one with more than tensors in it ({reason})"
        ) from None
    if isinstance(found, Mapping) and isinstance(found.get("model"), Mapping):
        found = found["model"]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path}: expected a table of tensors")
    return {str(name).removeprefix("module."): value for name, value in found.items()}


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def fill(network: Net, tensors: Tensors, path: Path, *, ignore: Iterable[str] = ()) -> Net:
    """Put ``tensors`` into ``network`` as float32, ready for inference.

    Args:
        ignore: regular expressions of names that may be there without a use.

    Raises:
        CheckpointError: naming every missing, unknown and misshapen tensor at once.
    """
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    unknown = [n for n in tensors if n not in expected and not any(re.search(pattern, n) for pattern in ignore)]
    faults = [f"missing: {name}" for name in expected if name not in tensors]
    faults += [f"unknown: {name}" for name in unknown]
    faults += [
        f"{name} is {tuple(tensors[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if faults:
        shown = "; ".join(faults[:12]) + (f"; and {len(faults) - 12} more" if len(faults) > 12 else "")
        raise CheckpointError(f"{path}: does not fit {type(network).__name__}: {shown}")
    state = {name: tensors[name].to(torch.float32).contiguous() for name in expected}
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def _built(make: type[Net], *args: Any) -> Net:
    """A network without storage: its weights come from the file, and are not held twice."""
    with torch.device("meta"):
        return make(*args)


@dataclass(frozen=True)
class Checkpoint:
    """Where the parts of one model lie. Networks are read on request, so that no more than one need be in memory.

    Attributes:
        base: diffusers folder of Stable Diffusion 1.x.
        clip: CLIP folder (vision).
        plugins: Task-Plugin folders by id, each with ``tpb.pt`` and ``scb/``.
        selector: ``PromptTunner.pt``, or None.
    """

    base: Path
    clip: Path
    plugins: Mapping[str, Path]
    selector: Path | None

    def config(self, part: str) -> dict[str, Any]:
        """A part's JSON config: unet, vae, text_encoder or scheduler."""
        return read_json(self.base / part / ("scheduler_config.json" if part == "scheduler" else "config.json"))

    @cached_property
    def vision_config(self) -> dict[str, Any]:
        config = read_json(self.clip / "config.json")
        inner = config.get("vision_config", config)
        return inner if isinstance(inner, dict) else config

    def preprocessor(self) -> dict[str, Any]:
        return read_json(self.clip / "preprocessor_config.json")

    def scb_config(self, plugin: str) -> dict[str, Any]:
        return read_json(self.plugins[plugin] / "scb" / "config.json")

    @cached_property
    def dims(self) -> ModelDims:
        """Widths that the configs give; CheckpointError where they contradict each other or miss a key."""
        unet, vae, text, vision = (
            self.config("unet"),
            self.config("vae"),
            self.config("text_encoder"),
            self.vision_config,
        )
        try:
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
                native_latent=unet["sample_size"],
            )
        except IndexError:
            raise CheckpointError(
                f"{self.base}: the unet has {len(unet['block_out_channels'])} level(s), expected at least 2"
            ) from None
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self.base}: a config has no usable {error}; is this a Stable Diffusion 1.x folder?"
            ) from None
        pairs = [
            ("unet in_channels", unet["in_channels"], "vae latent_channels", dims.latent_channels),
            ("text_encoder hidden_size", text["hidden_size"], "unet cross_attention_dim", dims.token_width),
        ]
        for plugin in self.plugins:
            scb = self.scb_config(plugin)
            pairs += [
                (f"{plugin} scb in_channels", scb["in_channels"], "vae latent_channels", dims.latent_channels),
                (f"{plugin} scb width", scb["block_out_channels"][0], "unet width", dims.residual_channels),
                (f"{plugin} scb cross_attention_dim", scb["cross_attention_dim"], "unet's", dims.token_width),
                (f"{plugin} scb layers_per_block", scb["layers_per_block"], "what three residuals need", 2),
            ]
        faults = [f"{left} is {a}, {right} is {b}" for left, a, right, b in pairs if a != b]
        if faults:
            raise CheckpointError(f"checkpoint parts do not fit each other: {'; '.join(faults)}")
        return dims

    def unet(self) -> UNet:
        path = weights_file(self.base / "unet")
        return fill(_built(UNet, self.config("unet")), read_tensors(path), path)

    def autoencoder(self) -> Autoencoder:
        path = weights_file(self.base / "vae")
        tensors = {_current_name(name): _as_linear(name, value) for name, value in read_tensors(path).items()}
        return fill(_built(Autoencoder, self.config("vae")), tensors, path)

    def text_encoder(self) -> TextEncoder:
        path = weights_file(self.base / "text_encoder")
        tensors = read_tensors(path)
        return fill(_built(TextEncoder, self.config("text_encoder")), tensors, path, ignore=(r"position_ids$",))

    def vision_encoder(self) -> VisionEncoder:
        path = weights_file(self.clip)
        # a full CLIP folder holds the text half and the projections too
        ignore = (r"position_ids$", r"^text_model\.", r"^(visual|text)_projection\.", r"^logit_scale$")
        return fill(_built(VisionEncoder, self.vision_config), read_tensors(path), path, ignore=ignore)

    def tpb(self, plugin: str) -> TaskPromptBranch:
        path = self.plugins[plugin] / "tpb.pt"
        return fill(_built(TaskPromptBranch, self.dims.vision_width, self.dims.token_width), read_tensors(path), path)

    def scb(self, plugin: str) -> SpatialComplementBranch:
        path = weights_file(self.plugins[plugin] / "scb")
        return fill(_built(SpatialComplementBranch, self.scb_config(plugin)), read_tensors(path), path)

    def selector_threshold(self) -> float:
        """Score above which a plugin is selected: of ``selector.json`` beside the heads; the release has none, 0."""
        note = self.selector and self.selector.with_name(THRESHOLD_FILE)
        if note is None or not note.is_file():
            return 0.0
        value = read_json(note).get("threshold", 0.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise CheckpointError(f"{note}: threshold is {value!r}, expected a number")
        return float(value)

    def selector_heads(self) -> SelectorHeads:
        if self.selector is None:
            raise CheckpointError(f"no {SELECTOR_FOLDER}/{SELECTOR_FILE} beside the plugins")
        tensors = read_tensors(self.selector)
        width = self.dims.token_width
        projected = tensors["proj_t.weight"].shape[0] if "proj_t.weight" in tensors else width
        return fill(_built(SelectorHeads, width, projected), tensors, self.selector)


def _current_name(name: str) -> str:
    for old, new in _OLD_NAMES:
        name = re.sub(rf"(\.attentions\.\d+)\.{old}\.", rf"\1.{new}.", name)
    return name


def _as_linear(name: str, value: Tensor) -> Tensor:
    """Some old autoencoders keep these projections as 1x1 convolutions."""
    return value[:, :, 0, 0] if ".attentions." in name and value.ndim == 4 else value


def find(base: Path, clip: Path, plugins: Path, wanted: Iterable[str] = ()) -> Checkpoint:
    """The parts of a model, checked for presence; ``wanted``: plugin ids, none for all that the tree holds.

    Raises:
        CheckpointError: naming every folder or file that is missing, at once.
    """
    faults = [
        f"{base / part}: missing"
        for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
        if not (base / part).is_dir()
    ]
    if not (clip / "config.json").is_file():
        faults.append(f"{clip / 'config.json'}: missing")
    there = (
        {folder.name: folder for folder in sorted(plugins.iterdir()) if (folder / "tpb.pt").is_file()}
        if plugins.is_dir()
        else {}
    )
    chosen = {plugin: there[plugin] for plugin in wanted if plugin in there} or (there if not wanted else {})
    faults += [
        f"plugin {p!r}: not in {plugins} (there: {', '.join(there) or 'none'})" for p in wanted if p not in there
    ]
    if not there:
        faults.append(f"{plugins}: no Task-Plugins; expected <task>/tpb.pt and <task>/scb/ as released")
    faults += [f"{folder / 'scb'}: missing" for folder in chosen.values() if not (folder / "scb").is_dir()]
    if faults:
        raise CheckpointError("; ".join(faults))
    selector = plugins / SELECTOR_FOLDER / SELECTOR_FILE
    return Checkpoint(base, clip, chosen, selector if selector.is_file() else None)


def local_folder(name: str, *, offline: bool, patterns: tuple[str, ...]) -> Path:
    """A folder as it is, or a hub id from the local hub cache, or downloaded (``HF_HOME``, ``HF_HUB_OFFLINE``)."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise CheckpointError(f"{name}: neither a folder nor a hub id such as CompVis/stable-diffusion-v1-4")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), local_files_only=offline))
    except Exception as error:  # the hub client has a dozen kinds for "not there" and "no network"
        reason = str(error).split("\n")[0]
        where = "in the local hub cache (offline)" if offline else "in the hub"
        raise CheckpointError(f"{name}: not found {where}: {reason}") from None


def embedded_checkpoint(plugins: list[str]) -> tuple[Checkpoint, Path, str]:
    """(checkpoint, folder of its cards, name) of the model that this project trained.

    Raises:
        CheckpointError: installed from a wheel, which does not carry it.
    """
    root = embedded_checkpoint_folder()
    return find(root / "base", root / "clip", root / "pre-trained", plugins), root, "embedded"
