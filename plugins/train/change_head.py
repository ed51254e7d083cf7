"""A plugin's change head: trained on pictures, after the plugin, whose latents it turns into a change of the photo."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffplugin.errors import CheckpointError
from diffplugin.export.checkpoints import Checkpoint
from diffplugin.export.measures import psnr
from diffplugin.plugins import cards
from diffplugin.plugins.cards import PluginCard
from diffplugin.plugins.networks.head import ChangeHead
from diffplugin.plugins.networks.vae import Autoencoder
from diffplugin.plugins.train import data, layout, loop, plugin, record, validation
from diffplugin.plugins.train.common import Pixels, to_tensor
from diffplugin.plugins.train.pairs import Draw
from diffplugin.plugins.train.plugin import picture_loss
from diffplugin.plugins.train.settings import Settings
from diffplugin.runtime.sampling.noise_schedule import NoiseSchedule

SHARD = 100  # views of a file
_BATCH = 4  # views that are sampled at once
_MARGIN = 8  # pixels at a view's edges that are not trained on: there the autoencoder pads with zeros
_ARRAYS = ("given", "truth", "latents", "cond")
Sampled = Callable[[Sequence[Pixels], Sequence[Pixels], NDArray[np.float32]], tuple[Tensor, Tensor]]
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


def write_views(
    folder: Path, draw: Draw, sampled: Sampled, *, count: int, side: int, factor: int, channels: int = 4
) -> None:
    """Views of ``side`` pixels with their latents, in shards; those that are there already are kept.

    A shard holds ``given`` and ``truth`` u8 [n, side, side, 3], ``latents`` and ``cond`` f16 [n, 4, h, w].
    """
    for number in range(-(-count // SHARD)):
        path = folder / f"shard{number:03d}.npz"
        if path.exists():
            continue
        rng = np.random.default_rng((number, side))
        made: dict[str, list[NDArray[Any]]] = {name: [] for name in _ARRAYS}
        while len(made["given"]) < min(SHARD, count - number * SHARD):
            wholes, given = [], []
            for _ in range(_BATCH):
                bad, clean = draw(rng)
                top, left = (int(v) // factor * factor for v in rng.integers(0, np.array(bad.shape[:2]) - side + 1))
                window = np.s_[top : top + side, left : left + side]
                wholes.append(bad)
                given.append(np.ascontiguousarray(bad[window]))
                made["truth"].append(clean[window])
            noise = rng.standard_normal((_BATCH, channels, side // factor, side // factor), dtype=np.float32)
            cond, latents = sampled(given, wholes, noise)
            made["given"] += given
            made["cond"] += list(cond.cpu().numpy().astype(np.float16))
            made["latents"] += list(latents.cpu().numpy().astype(np.float16))
        arrays = {name: np.stack(values) for name, values in made.items()}
        layout.place(path, lambda part, arrays=arrays: _save(part, arrays))  # type: ignore[misc]
        print(f"{folder.name}: {(number + 1) * SHARD} of {count} views", flush=True)


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
        RequestError: no pairs, or a state of another training.
        ImageError: a faulty picture.
    """
    recipe, precision = settings.recipe, settings.recipe.mixed_precision
    place = read.plugins[task]
    if not (place / "card.toml").is_file():
        raise CheckpointError(f"{place / 'card.toml'}: missing; a head is trained for the card's own start and steps")
    card = cards.load_card(place / "card.toml", expected_id=task)
    device = loop.accelerator().device
    vae, model = read.autoencoder().to(device), plugin.from_checkpoint(read, task).to(device)
    channels = vae.post_quant_conv.in_channels
    factor, schedule = data.vae_factor(vae), NoiseSchedule.from_config(dict(read.config("scheduler")))
    opened = data.open_pairs(chosen, released=False, harder=recipe.harder_share)
    files = [
        f for part in ("unet", "vae", "clip_vision", f"scb/{task}", f"tpb/{task}") for f in read.source(part).files
    ]
    key = {
        "pairs": opened.source.key(),
        "model": record.weights_key(*files),
        "sampled": [card.start, card.first_t, card.renoise_from_t, card.steps_first],
        **{name: getattr(recipe, name) for name in ("resolution", "harder_share", "clean_share")},
        **data.own_degradation(chosen, task),
    }

    def sampled(given: Sequence[Pixels], seen: Sequence[Pixels], noise: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return validation.final_latents(model, vae, schedule, given, card, noise=noise, seen=seen)

    def looked_at(bad: list[Pixels], clean: list[Pixels]) -> Arrays:
        noise = np.random.default_rng(data.VALIDATION_SEED)
        shape = (len(bad), channels, *(side // factor for side in bad[0].shape[:2]))
        cond, latents = sampled(bad, bad, noise.standard_normal(shape, dtype=np.float32))
        both = {"latents": latents.cpu().numpy().astype(np.float16), "cond": cond.cpu().numpy().astype(np.float16)}
        return {"given": np.stack(bad), "truth": np.stack(clean), **both}

    folder, state = chosen.work / "heads" / task, chosen.work / "run" / f"head_{task}.pt"
    record.claim(folder, key, restart=settings.restart)
    names = ("learning_rate", "lr_scheduler", "lr_warmup_steps", "max_grad_norm", "ema_decay", "seed", "views", "crop")
    learned = {name: getattr(recipe, name) for name in (*names, "train_batch_size")}
    record.claim(state, key | learned, restart=settings.restart)
    draw = data.drawn(chosen, opened, recipe)
    write_views(folder, draw, sampled, count=recipe.views, side=recipe.resolution, factor=factor, channels=channels)
    shards = [dict(np.load(path)) for path in sorted(folder.glob("shard*.npz"))[: -(-recipe.views // SHARD)]]
    bad, clean = opened.squares(recipe.resolution, 4 * chosen.shown)
    torch.manual_seed(recipe.seed)
    shape = config(vae)
    head = ChangeHead(shape)
    side = recipe.crop or recipe.resolution
    loop.fit(
        Changing(head, shards, factor=factor, batch=recipe.train_batch_size, side=side),
        loop.TrainingArguments(
            steps=recipe.steps(0, 1),
            peak=recipe.learning_rate,
            schedule=recipe.lr_scheduler,
            warmup=recipe.lr_warmup_steps,
            ema=recipe.ema_decay,
            clip=recipe.max_grad_norm,
            weight_decay=recipe.adam_weight_decay,
            every=recipe.checkpointing_steps,
            validate=recipe.validation_steps,
            precision=precision,
            trackers=settings.trackers,
        ),
        state,
        name=f"head {task}",
        seed=recipe.seed,
        report=quality(head, looked_at(bad, clean), looked_at(clean, clean)) if bad else None,
    )
    layout.write_json(place / "head/config.json", shape)
    layout.write_tensors(place / "head/diffusion_pytorch_model.safetensors", head.state_dict())
    layout.write_lines(place / "card.toml", cards.card_to_toml(head_card(card)))
