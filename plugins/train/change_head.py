"""A plugin's change head: trained on pictures, after the plugin, whose latents it turns into a change of the photo."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffplugin.errors import CheckpointError, RequestError
from diffplugin.export.checkpoints import Checkpoint
from diffplugin.export.measures import psnr
from diffplugin.plugins import cards
from diffplugin.plugins.cards import PluginCard
from diffplugin.plugins.networks.head import ChangeHead
from diffplugin.plugins.networks.vae import Autoencoder
from diffplugin.plugins.train import data, layout, loop, plugin, record, tasks, validation
from diffplugin.plugins.train.common import Pixels, to_tensor
from diffplugin.plugins.train.pairs import Draw
from diffplugin.plugins.train.plugin import picture_loss
from diffplugin.plugins.train.settings import Settings
from diffplugin.runtime.sampling.noise_schedule import NoiseSchedule

SHARD = 100  # views of a file
_BATCH = 4  # views that are sampled at once
_MARGIN = 8  # pixels at a view's edges that are not trained on: there the autoencoder pads with zeros
_ARRAYS = ("given", "truth", "latents", "cond")
Latents = tuple[NDArray[np.float16], NDArray[np.float16]]  # of inputs, and what the plugin makes of them
# (inputs, the pictures that they are parts of, noise) -> latents
Sampled = Callable[[Sequence[Pixels], Sequence[Pixels], NDArray[np.float32]], Latents]
Arrays = dict[str, NDArray[Any]]


def config(vae: Autoencoder) -> dict[str, Any]:
    """``head/config.json`` for a base's autoencoder: the embedded plugins' widths."""
    return {
        "factor": data.vae_factor(vae),
        "latent_channels": vae.post_quant_conv.in_channels,
        "widths": [32, 64, 64],
        "blocks": [2, 1, 2],
    }


def head_card(card: PluginCard) -> PluginCard:
    """``card`` with the head's output, of which all changes count: it learns itself which are faint and unsure."""
    return dataclasses.replace(card, output="head", coring=0, coring_peak=0)


def write_views(folder: Path, draw: Draw, sampled: Sampled, shape: Mapping[str, Any], *, count: int, side: int) -> None:
    """Views of ``side`` pixels with their latents, in shards; those that are there already are kept.

    A shard holds ``given`` and ``truth`` u8 [n, side, side, 3], ``latents`` and ``cond`` f16 [n, 4, h, w].
    """
    factor = shape["factor"]
    for first in range(0, count, SHARD):
        path = folder / f"shard{first // SHARD:03d}.npz"
        if path.exists():
            continue
        rng, last = np.random.default_rng((first // SHARD, side)), min(first + SHARD, count)
        made: dict[str, list[NDArray[Any]]] = {name: [] for name in _ARRAYS}
        for start in range(first, last, _BATCH):
            wholes, given = [], []
            for _ in range(min(_BATCH, last - start)):
                bad, clean = draw(rng)
                top, left = (int(v) // factor * factor for v in rng.integers(0, np.array(bad.shape[:2]) - side + 1))
                window = np.s_[top : top + side, left : left + side]
                wholes.append(bad)
                given.append(np.ascontiguousarray(bad[window]))
                made["truth"].append(clean[window])
            cond, latents = sampled(given, wholes, _noise(rng, given, shape))
            for name, values in (("given", given), ("cond", cond), ("latents", latents)):
                made[name] += list(values)
        arrays = {name: np.stack(values) for name, values in made.items()}
        layout.place(path, lambda part, arrays=arrays: _save(part, arrays))  # type: ignore[misc]
        print(f"{folder.name}: {last} of {count} views", flush=True)


def _noise(rng: np.random.Generator, given: Sequence[Pixels], shape: Mapping[str, Any]) -> NDArray[np.float32]:
    sides = (side // shape["factor"] for side in given[0].shape[:2])
    return rng.standard_normal((len(given), shape["latent_channels"], *sides), dtype=np.float32)


def _held(sampled: Sampled, given: list[Pixels], truth: list[Pixels], shape: Mapping[str, Any]) -> Arrays:
    """Pictures to look at, as a shard."""
    cond, latents = sampled(given, given, _noise(np.random.default_rng(data.VALIDATION_SEED), given, shape))
    return {"given": np.stack(given), "truth": np.stack(truth), "latents": latents, "cond": cond}


def _save(part: Path, arrays: Arrays) -> None:
    with part.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


class Changing(nn.Module):
    """The objective: :func:`.plugin.picture_loss` of the changed input over windows of ``side`` pixels."""

    def __init__(self, head: ChangeHead, shards: Sequence[Arrays], *, factor: int, batch: int, side: int) -> None:
        super().__init__()
        self.head = head.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.shards, self.factor, self.batch, self.side = shards, factor, batch, side

    def forward(self, step: int, rng: np.random.Generator) -> Tensor:
        given, truth, latents, cond = (x.to(validation.device_of(self.head)) for x in self.draw(rng))
        given = given.contiguous(memory_format=torch.channels_last)
        return picture_loss(given + self.head(given, latents, cond).float(), truth)

    def draw(self, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """Windows of random views: input and truth [n, 3, side, side] in [-1, 1], the two latents [n, 4, h, w]."""
        found: dict[str, list[NDArray[Any]]] = {name: [] for name in _ARRAYS}
        cells, margin = self.side // self.factor, -(-_MARGIN // self.factor)
        for _ in range(self.batch):
            shard = self.shards[int(rng.integers(len(self.shards)))]
            i, whole = int(rng.integers(len(shard["given"]))), shard["cond"].shape[-1]
            free = min(margin, (whole - cells) // 2)
            top, left = (int(v) for v in rng.integers(free, whole - cells - free + 1, 2))
            for name in _ARRAYS:
                scale = self.factor if name in ("given", "truth") else 1
                rows, columns = (slice(at * scale, (at + cells) * scale) for at in (top, left))
                view = shard[name][i]
                found[name].append(view[rows, columns] if scale > 1 else view[:, rows, columns].astype(np.float32))
        images = [to_tensor(np.stack(found[name])) for name in ("given", "truth")]
        return (*images, *(torch.from_numpy(np.stack(found[name])) for name in ("latents", "cond")))


def quality(head: ChangeHead, held: Arrays, clean: Arrays) -> loop.Report:
    """What the curves show: PSNR of held-out inputs and of what the head makes of them, dB, and by how many levels of
    255 it changes clean pictures."""

    @torch.no_grad()
    def changed(arrays: Arrays) -> list[Pixels]:
        device, made = validation.device_of(head), []
        for given, latents, cond in zip(arrays["given"], arrays["latents"], arrays["cond"], strict=True):
            image, *both = (x.to(device) for x in (to_tensor(given[None]), *map(_latent, (latents, cond))))
            made += validation.to_pixels(image + head(image, *both).float())
        return made

    def report(step: int) -> dict[str, Any]:
        made, unchanged = changed(held), changed(clean)
        before = float(np.mean([psnr(a, b) for a, b in zip(held["given"], held["truth"], strict=True)]))
        after = float(np.mean([psnr(a, b) for a, b in zip(made, held["truth"], strict=True)]))
        moved = [np.abs(a.astype(float) - b).mean() for a, b in zip(unchanged, clean["given"], strict=True)]
        found = {"psnr": after, "gain": after - before, "clean change": float(np.mean(moved))}
        return found | {"pictures": np.concatenate((held["given"][0], made[0], held["truth"][0]), axis=1)}

    return report


def _latent(values: NDArray[np.float16]) -> Tensor:
    return torch.from_numpy(values[None].astype(np.float32))


def train(task: str, chosen: data.Data, settings: Settings, read: Checkpoint) -> None:
    """Train or resume the head of plugin ``task`` of ``read``; writes ``head/`` and the card beside the plugin.

    Raises:
        CheckpointError: the plugin has no card, or a part does not fit.
        RequestError: no pairs, a resolution that the autoencoder cannot take, or a state of another training.
        ImageError: a faulty picture.
    """
    recipe, place = settings.recipe, read.plugins[task]
    if not (place / "card.toml").is_file():
        raise CheckpointError(f"{place / 'card.toml'}: missing; a head is trained for the card's own start and steps")
    card = cards.load_card(place / "card.toml", expected_id=task)
    run = loop.accelerator(loop.TrainingArguments(steps=1, peak=1.0, precision=recipe.mixed_precision, trackers=()))
    vae, model = read.autoencoder().to(run.device), plugin.from_checkpoint(read, task).to(run.device)
    shape, schedule = config(vae), NoiseSchedule.from_config(dict(read.config("scheduler")))
    if recipe.resolution % shape["factor"]:
        raise RequestError(f"--resolution is {recipe.resolution}, expected a multiple of {shape['factor']}")
    opened = data.open_pairs(chosen, released=False, harder=recipe.harder_share)

    def sampled(given: Sequence[Pixels], seen: Sequence[Pixels], noise: NDArray[np.float32]) -> Latents:
        with torch.autocast(run.device.type, torch.bfloat16, enabled=recipe.mixed_precision == "bf16"):
            both = validation.final_latents(model, vae, schedule, given, card, noise=noise, seen=seen)
        cond, latents = (x.cpu().numpy().astype(np.float16) for x in both)
        return cond, latents

    folder, state = chosen.work / "heads" / task, chosen.work / "run" / f"head_{task}.pt"
    key = tasks.inputs_of(read, opened, settings, head_card(card), place)
    views = {name: getattr(recipe, name) for name in ("resolution", "harder_share", "clean_share", "views")}
    restart = settings.restart and run.is_main_process
    with run.main_process_first():
        taken = record.claim(folder, key | {"recipe": views}, restart=restart)
        record.claim(state, key, restart=restart)
        if run.is_main_process:
            if not taken:
                data.check(opened)
            draw = data.drawn(chosen, opened, recipe)
            write_views(folder, draw, sampled, shape, count=recipe.views, side=recipe.resolution)
    shards = [dict(np.load(path)) for path in sorted(folder.glob("shard*.npz"))]
    bad, clean = opened.squares(recipe.resolution, 4 * chosen.shown)
    torch.manual_seed(recipe.seed)
    head = ChangeHead(shape)
    side = min(recipe.crop or recipe.resolution, recipe.resolution)
    loop.fit(
        Changing(head, shards, factor=shape["factor"], batch=recipe.train_batch_size, side=side),
        tasks.training_arguments(settings, recipe.steps(len(opened.kept), run.num_processes), run.num_processes),
        state,
        name=f"head {task}",
        seed=recipe.seed,
        report=quality(head, *(_held(sampled, given, clean, shape) for given in (bad, clean))) if bad else None,
    )
    if not run.is_main_process:
        return
    layout.write_json(place / "head/config.json", shape)
    layout.write_tensors(place / "head/diffusion_pytorch_model.safetensors", head.state_dict())
    layout.write_lines(place / "card.toml", cards.card_to_toml(head_card(card)))
