"""Training of one Task-Plugin and of the Plugin-Selector over a base in the released layouts: ours or SD 1.4."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from diffplugin.errors import RequestError
from diffplugin.export.checkpoints import Checkpoint, find
from diffplugin.plugins import cards
from diffplugin.plugins.train import (
    autoencoder,
    common,
    evaluate,
    layout,
    loop,
    pairs,
    plugin,
    pool,
    validation,
)
from diffplugin.plugins.train import base as small
from diffplugin.plugins.train.degradations import DEGRADATIONS, degrade
from diffplugin.plugins.train.wording import WORDS
from diffplugin.runtime.sampling.noise_schedule import NoiseSchedule

if TYPE_CHECKING:
    from torch import Tensor

    from diffplugin.plugins.cards import PluginCard
    from diffplugin.plugins.networks.vae import Autoencoder

HELD_PAIRS = 20  # every 20th pair of a CSV is for validation
SHOWN = 16  # test photos that a finished plugin is scored on; dp-eval takes all


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a plugin learns from: the pairs of a CSV, or the photos of ``work`` degraded."""

    work: Path
    pairs: Path | None
    root: Path | None
    degradation: str
    side: int
    views: int


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a plugin learns.

    ``variant``: "released", or an ablation: "scb" or "tpb" alone (paper table 3), "encoder": residuals that enter on
    the way down (table 4: E-1, where "released" is D-1). ``loss``: "latent" (Eq. 3; ``plain``: unweighted), or
    "picture", to finish a plugin (:func:`plugin.picture_loss`). ``crop``: side of the window in pixels.
    """

    steps: int
    batch: int
    peak: float
    variant: str
    loss: str
    plain: bool
    precision: loop.Precision
    every: int
    crop: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where a plugin was written (None: nowhere), and mean PSNR, dB, of held-out inputs and of what it made of them."""

    place: Path | None
    pictures: int
    given: float
    restored: float

    def __str__(self) -> str:
        where = self.place or "not written"
        return f"{where}; {self.pictures} held-out pictures, in PyTorch: {self.given:.2f} -> {self.restored:.2f} dB"


def train(
    task: str,
    data: Data,
    settings: Settings,
    *,
    base: Path | None,
    clip: Path | None,
    card: Path | None,
    start: Path | None,
) -> Outcome:
    """Train or resume; writes ``work/checkpoint/pre-trained/<task>`` and the card, but of ablations nothing.

    Raises:
        CheckpointError: base, CLIP or start are not there or do not fit each other.
        RequestError: no card or degradation of that name, or a faulty CSV.
        ImageError: a faulty picture.
    """
    chosen = _card(task, card, ours=base is None and data.pairs is None)
    tree = data.work / "checkpoint"
    read = Checkpoint(base or tree / "base", clip or tree / "clip", {task: start} if start else {}, None)
    torch.manual_seed(0)
    kind = plugin.EncoderSide if settings.variant == "encoder" else plugin.Denoiser
    model, vae = plugin.from_checkpoint(read, task if start else None, kind), read.autoencoder()
    if settings.variant == "scb" and start is None:  # tokens of zeros: no prompt
        torch.nn.init.zeros_(model.tpb.visual_projection[-1].weight)  # type: ignore[arg-type]
        torch.nn.init.zeros_(model.tpb.visual_projection[-1].bias)  # type: ignore[arg-type]
    run = loop.accelerator()
    with run.main_process_first():  # one process makes the latents
        folder, held = _pool(task, data, vae.to(run.device))
    objective = _objective(model, vae, folder, held[1], data, settings, chosen, read.dims.factor)
    plan = loop.Plan(
        steps=settings.steps, peak=settings.peak, decay=0.99, every=settings.every, precision=settings.precision
    )
    scheduler = read.config("scheduler")
    report = validation.report_pairs(model, vae, scheduler, {task: held}, {task: chosen})
    kinds = [k for k in (settings.variant, settings.loss) if k not in ("released", "latent")]
    name = "_".join((task, *kinds))
    loop.fit(objective, plan, data.work / "run" / f"plugin_{name}.pt", name=name, report=report)
    if run.is_main_process and settings.variant == "released":
        tensors = {"tpb": model.tpb.state_dict(), "scb": model.scb.state_dict()}
        config = plugin.scb_config(read.config("unet"))
        layout.write_plugin(tree, task, config, card=cards.card_to_toml(chosen), **tensors)
    bad, clean = (
        held if data.pairs else _degraded(evaluate.test_photos(data.work, data.side, SHOWN), data, evaluate.SEED)
    )
    made = validation.restore(model, vae, NoiseSchedule.from_config(scheduler), bad, chosen)
    return Outcome(
        place=tree / "pre-trained" / task if settings.variant == "released" else None,
        pictures=len(bad),
        given=evaluate.scores(bad, clean).psnr,
        restored=evaluate.scores(made, clean).psnr,
    )


def _objective(
    model: plugin.Denoiser,
    vae: Autoencoder,
    folder: Path,
    held: list[common.Pixels],
    data: Data,
    settings: Settings,
    card: PluginCard,
    factor: int,
) -> torch.nn.Module:
    """``folder``: of latents; ``held``: pictures on which errors of the latent's channels are weighed."""
    cold = card.start == "input"
    times = plugin.Times(top=card.first_t + 1, first=0.75 if cold else 0.6, noised=0.3, cold=cold)
    side = min(settings.crop, data.side)
    objective: plugin.Restoring | plugin.Denoising
    if settings.loss == "picture":
        vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        draw = partial(pool.draw_crops, _draw(data), count=settings.batch, side=side)
        objective = plugin.Restoring(model, vae, draw, times=times, residual=card.output == "residual")
    else:
        if not settings.plain:
            model.metric = autoencoder.pixel_metric(vae, [common.to_tensor(v[None]) for v in held])
        stage = plugin.Stage(until=settings.steps, pictures=settings.batch, crops=1, side=side // factor)
        source = pool.Pool(folder, [data.degradation])
        objective = plugin.Denoising(model, source, (stage,), train_base=False, times=times)
    model.tpb.requires_grad_(settings.variant != "scb")
    model.scb.requires_grad_(settings.variant != "tpb")
    return objective


def _card(task: str, file: Path | None, *, ours: bool) -> PluginCard:
    """``ours``: over the small base and on its photos, whose cards take fewer steps."""
    if file is not None:
        return cards.load_card(file, expected_id=task)
    shipped = cards.shipped_cards()
    if task not in shipped:
        raise RequestError(f"{task}: no shipped card of that name ({', '.join(shipped)}); give one with --card")
    if ours:
        return small.card(task)
    return dataclasses.replace(shipped[task], licence="trained by the user with dp-train")


def _pool(task: str, data: Data, vae: Autoencoder) -> tuple[Path, tuple[list[common.Pixels], list[common.Pixels]]]:
    """The folder of shards (made where missing), and held-out (inputs, ground truths)."""
    if data.pairs is None and data.degradation not in DEGRADATIONS:
        known = ", ".join(DEGRADATIONS)
        raise RequestError(f"{data.degradation}: no degradation of that name ({known}); give pairs with --pairs")
    if data.pairs is not None:
        kept, held = _split(pairs.read_csv(data.pairs, data.root))
        folder = data.work / "pairs" / task
        for number in range(data.views):
            if not (folder / f"shard{number:03d}").exists():
                views = pairs.from_files(kept, data.degradation, number, data.side)
                pool.write_shard(folder, number, views, vae, side=data.side)
        shown = pairs.from_files(held[:4], data.degradation, 10**6, data.side)
        return folder, (shown.bad[data.degradation], shown.clean)
    folder = data.work / "pool"
    if not any(folder.glob("shard*")):
        originals = common.load_photos(data.work, "train")
        for number in range(data.views):
            views = pairs.synthetic(originals, [data.degradation], number, data.side)
            pool.write_shard(folder, number, views, vae, side=data.side)
    clean = [common.centre(p, data.side) for p in common.load_photos(data.work, "val")[::2]]
    return folder, _degraded(clean, data, 5000)


def _draw(data: Data) -> pairs.Draw:
    """Pairs to finish a plugin on: those that its latents came from, in ever new views."""
    if data.pairs is None:
        return pairs.degraded(common.load_photos(data.work, "train"), data.degradation, data.side)
    return pairs.filed(_split(pairs.read_csv(data.pairs, data.root))[0], data.side)


def _split(rows: list[tuple[Path, Path]]) -> tuple[list[tuple[Path, Path]], list[tuple[Path, Path]]]:
    """Rows of a CSV to learn from, and held out."""
    held = rows[::HELD_PAIRS] if len(rows) >= HELD_PAIRS else rows[:1]
    return [row for row in rows if row not in held] or rows, held


def _degraded(clean: list[common.Pixels], data: Data, seed: int) -> tuple[list[common.Pixels], list[common.Pixels]]:
    return [degrade(c, data.degradation, seed + i) for i, c in enumerate(clean)], clean


@torch.no_grad()
def plugin_rows(read: Checkpoint, pictures: int, folders: Sequence[Path]) -> Tensor:
    """Max-pooled TPB tokens [pictures, plugins, D] of degraded pictures of pools, one degradation each, in turn.

    Raises:
        RequestError: no folder holds a shard.
    """
    vision = read.vision_encoder()
    branches = [read.tpb(task) for task in read.plugins]
    files = sorted(file for folder in folders for file in folder.glob("shard*/small.npy"))
    if not files:
        raise RequestError(f"{', '.join(map(str, folders))}: no pictures for the selector; train a plugin there first")
    seen = [np.load(file, mmap_mode="r") for file in files]
    seen = seen[: max(pictures // seen[0].shape[1], 1)]
    small = np.concatenate([np.stack([s[i % len(s), i] for i in range(s.shape[1])]) for s in seen])
    rows = []
    for i in range(0, len(small), 16):
        patches = vision(pool.clip_pixels(small[i : i + 16]))
        rows.append(torch.stack([branch(patches).amax(dim=1) for branch in branches], dim=1))
    return torch.cat(rows)


def train_selector(
    work: Path, *, steps: int, base: Path | None, clip: Path | None, wanted: Sequence[str] | None, train_text: bool
) -> None:
    """Train the selector for the plugins of ``work/checkpoint`` and write it there; print held-out metrics."""
    from diffplugin.export.tokenizer import build_tokenizer
    from diffplugin.plugins.train import corpus, selector

    tree = work / "checkpoint"
    read = find(base or tree / "base", clip or tree / "clip", tree / "pre-trained", wanted or ())
    tokenizer = build_tokenizer(read.tokenizer)

    def encode(texts: list[str]) -> Tensor:
        return torch.tensor([e.ids for e in tokenizer.encode_batch(texts)])

    torch.manual_seed(0)
    config, shipped = read.config("text_encoder"), tuple(read.plugins)
    model = selector.fresh(config) if train_text else selector.Selector(read.text_encoder(), config["hidden_size"])
    rows = plugin_rows(read, 400, [work / "pool", *sorted((work / "pairs").glob("*"))])
    found = cards.registry(tree)
    own = {task: corpus.wording_of(found[task]) for task in shipped if task not in WORDS}
    words = {**WORDS, **own}
    held = max(len(rows) // 5, 1)
    path = work / "run/selector.pt"
    selector.fit(rows[held:], encode, model, shipped, path, steps=steps, train_text=train_text, words=words)
    if train_text:
        layout.write_text(tree, config, model.text.state_dict())
    layout.write_selector(tree, model.heads.state_dict())
    for kind, values in selector.accuracy(model.eval(), rows[:held], encode, shipped, words=words).items():
        print(kind, " ".join(f"{name} {value:.3f}" for name, value in values.items()))
