"""The small base, stage by stage: autoencoder, decoder, pool, denoiser. Each goes on from what the last one left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from diffplugin.export.checkpoints import Checkpoint
from diffplugin.export.checkpoints.weights import choose_weights
from diffplugin.export.reading import names_in
from diffplugin.plugins.train import (
    autoencoder,
    base,
    common,
    corpus,
    layout,
    loop,
    pairs,
    plugin,
    pool,
    selector,
    validation,
)
from diffplugin.plugins.train.settings import SMALL

if TYPE_CHECKING:
    from diffplugin.plugins.networks.vae import Autoencoder

GENERIC = "generic"  # the Task-Plugin over all tasks, trained with the base: where each task's training starts

MIX = pairs.Mix(harder=SMALL.harder_share, clean=SMALL.clean_share)
TOKENS = {selector.BEGIN: 0, selector.END: 1}


@dataclass(frozen=True, kw_only=True)
class Work:
    """The folder of one training: photos, training states, the pool, and the checkpoint in the released layouts."""

    root: Path
    precision: loop.Precision = "bf16"

    def state(self, name: str) -> Path:
        return self.root / "run" / f"{name}.pt"

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoint"

    @property
    def pool(self) -> Path:
        return self.root / "pool"

    def photos(self, split: str) -> list[common.Pixels]:
        """Raises RequestError before the photos are there."""
        return common.load_photos(self.root, split)

    @property
    def read(self) -> Checkpoint:
        return Checkpoint(self.checkpoint / "base", self.checkpoint / "clip", {}, None)

    def autoencoder(self) -> Autoencoder:
        """Raises CheckpointError before the stage ``autoencoder`` has run."""
        return self.read.autoencoder()


def adopt(work: Work, start: Path) -> None:
    """Take over the autoencoder of a checkpoint folder, such as ``plugins/embedded_checkpoint``, where none is yet.

    Raises:
        CheckpointError: there is none in ``start`` either, or it is damaged.
    """
    if not (work.checkpoint / "base/vae/config.json").exists():
        read = Checkpoint(start / "base", start / "clip", {}, None)
        layout.write_vae(work.checkpoint, read.config("vae"), read.autoencoder().state_dict())


def train_autoencoder(work: Work, steps: int) -> None:
    """Stage 1: the whole autoencoder, then exactly white latents."""
    train, val = work.photos("train"), work.photos("val")
    torch.manual_seed(0)
    model = autoencoder.build()
    autoencoder.add_reference(model)
    objective = autoencoder.Reconstruction(model, train, steps=steps)
    arguments = loop.TrainingArguments(steps=steps, peak=2e-3, precision=work.precision)
    loop.fit(objective, arguments, work.state("vae"), name="vae", report=autoencoder.quality(model, val))
    views = [common.random_view(p, 256, np.random.default_rng(i)) for i, p in enumerate(train[::2])]
    autoencoder.whiten(model, [common.to_tensor(view[None]) for view in views])
    layout.write_vae(work.checkpoint, autoencoder.CONFIG, model.state_dict())


def refine_decoder(work: Work, steps: int) -> None:
    """Stage 1b, at any time: the decoder alone goes on learning. Latents, and what was trained on them, stay true."""
    train, val = work.photos("train"), work.photos("val")
    model = work.autoencoder()
    arguments = loop.TrainingArguments(steps=steps, peak=8e-4, clip=0.5, precision=work.precision)
    objective = autoencoder.Decoding(model, train)
    loop.fit(objective, arguments, work.state("decoder"), name="decoder", report=autoencoder.quality(model, val))
    layout.write_vae(work.checkpoint, work.read.config("vae"), model.state_dict())


def make_pool(work: Work, shards: int, tasks: Sequence[str]) -> None:
    """Stage 2: views of a quarter of the photos a shard, degraded for every task, as latents."""
    vae, clean = work.autoencoder().to(memory_format=torch.channels_last), work.photos("train")  # type: ignore[call-overload]
    for number in range(shards):
        if not (work.pool / f"shard{number:03d}").exists():
            views = pairs.synthetic(clean[number % 4 :: 4], tasks, number, 256, MIX)
            with torch.autocast("cpu", torch.bfloat16, enabled=work.precision == "bf16"):
                pool.write_shard(work.pool, number, views, vae)
            print(f"shard {number + 1}/{shards}", flush=True)


def train_denoiser(work: Work, steps: int, tasks: Sequence[str], start: Path | None = None) -> None:
    """Stage 3: the base together with one generic plugin; ``start``: a checkpoint folder to begin with."""
    torch.manual_seed(0)
    vae = work.autoencoder()
    if start is not None and (start / "base/unet").is_dir():
        branches = {GENERIC: start / GENERIC} if (start / GENERIC).is_dir() else {}
        read = Checkpoint(start / "base", start / "clip", branches, None)
        model = plugin.from_checkpoint(read, GENERIC if branches else None)
    else:
        model = plugin.Denoiser(base.CONFIGS)
    model.metric = pixel_metric(work, vae)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    whole = plugin.Stage(until=steps, pictures=4, crops=2, side=32)
    early = plugin.Stage(until=steps // 6, pictures=4, crops=4, side=16)
    stages = (early, whole) if start is None else (whole,)
    objective = plugin.Denoising(model, pool.Pool(work.pool, tasks), stages, train_base=True, drop=0.1)
    peak = 1.2e-3 if start is None else 6e-4  # what has learned already would be shaken by more
    arguments = loop.TrainingArguments(
        steps=steps, peak=peak, ema=0.997, unused=True, betas=(0.9, 0.99), precision=work.precision
    )
    report = validation.report(
        model, vae, base.SCHEDULER, {task: base.card(task) for task in tasks}, work.photos("val")[::7]
    )
    loop.fit(objective, arguments, work.state("denoiser"), name="denoiser", report=report)
    write_base(work.checkpoint, model)
    write_text(work)


def pixel_metric(work: Work, vae: Autoencoder) -> torch.Tensor:
    """What errors of the latent's channels show in the picture, on a few training views."""
    views = [common.random_view(p, 128, np.random.default_rng(i)) for i, p in enumerate(work.photos("train")[::20])]
    return autoencoder.pixel_metric(vae, [common.to_tensor(v[None]) for v in views])


def milestone(work: Work, out: Path) -> list[str]:
    """Write what has been learned so far (averaged weights, float16) as a checkpoint folder to begin with elsewhere.

    Returns:
        What was written, one line each.

    Raises:
        CheckpointError: there is not even an autoencoder.
    """
    vae = work.autoencoder()
    layout.write_vae(out, work.read.config("vae"), vae.state_dict())
    lines = ["base/vae: finished"]
    state = common.load_state(work.state("denoiser"))
    if state is not None:
        model = plugin.Denoiser(base.CONFIGS)
        plugin.silence_self_attention(model.unet)
        weights = {name.removeprefix("model."): value for name, value in state["average"].items()}
        model.load_state_dict(weights, strict=False)
        write_base(out, model)
        lines.append(f"base/unet, clip, {GENERIC}: step {state['step']}")
    return lines


def write_base(out: Path, model: plugin.Denoiser) -> None:
    """A denoiser, its vision encoder and the generic plugin as files in the released layouts."""
    layout.write_denoiser(out, base.CONFIGS, unet=model.unet.state_dict(), vision=model.vision.state_dict())
    layout.write_branches(out / GENERIC, base.SCB, tpb=model.tpb.state_dict(), scb=model.scb.state_dict())
    if not _has_text(out):
        # the widths are checked against the text encoder's config too, before there is one
        layout.write_json(out / "base/text_encoder/config.json", selector.text_config(TOKENS, base.TOKEN_WIDTH))


def _has_text(folder: Path) -> bool:
    place = folder / "base/text_encoder"
    return place.is_dir() and choose_weights(names_in(place)) is not None


def write_text(work: Work) -> None:
    """A tokenizer and a text encoder, where there are none yet: the checkpoint is whole. The selector's training puts
    its own in their place."""
    from diffplugin.export.tokenizer import build_tokenizer

    folder = work.checkpoint / "base/tokenizer"
    if not (folder / "vocab.json").exists():
        texts = [r.text for r in corpus.corpus(2000, 0)]
        layout.write_tokenizer(work.checkpoint, *selector.train_tokenizer(texts))
    elif _has_text(work.checkpoint):
        return
    config = selector.text_config(build_tokenizer(folder).get_vocab(), base.TOKEN_WIDTH)
    layout.write_text(work.checkpoint, config, selector.fresh(config).text.state_dict())
