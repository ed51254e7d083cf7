"""Training of one Task-Plugin over a base in the released layouts: ours or SD 1.4."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffplugin.errors import RequestError
from diffplugin.export.checkpoints import Checkpoint
from diffplugin.export.checkpoints.weights import find_weights
from diffplugin.plugins import cards
from diffplugin.plugins.cards import PluginCard
from diffplugin.plugins.networks.vae import Autoencoder
from diffplugin.plugins.train import base as small
from diffplugin.plugins.train import (
    data,
    evaluate,
    layout,
    loop,
    memory,
    objectives,
    plugin,
    record,
    validation,
    variants,
)
from diffplugin.plugins.train.settings import Recipe, Settings, describe
from diffplugin.runtime.planning.memory import available_memory
from diffplugin.runtime.sampling.noise_schedule import NoiseSchedule

SHOWN = 16  # test photos that a finished plugin is scored on; dp-eval takes all
# numbers of a recipe that may change between a kill and the resumption
_FREE = ("max_train_steps", "num_train_epochs", "dataloader_num_workers", "checkpointing_steps", "validation_steps")
Log = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where a plugin was written (None: nowhere), and mean PSNR, dB, of held-out inputs and of what it made of them."""

    place: Path | None
    pictures: int
    given: float
    restored: float
    model: plugin.Denoiser

    def __str__(self) -> str:
        where = self.place or "not written"
        if not self.pictures:
            return f"{where}; no held-out pictures asked for"
        return f"{where}; {self.pictures} held-out pictures, in PyTorch: {self.given:.2f} -> {self.restored:.2f} dB"


def train(
    task: str,
    chosen: data.Data,
    settings: Settings,
    read: Checkpoint,
    *,
    card: PluginCard,
    start: Path | None,
    log: Log = print,
) -> Outcome | None:
    """Train or resume; writes ``work/checkpoint/pre-trained/<task>`` and the card. None: it was a dry run.

    Args:
        read: the base and CLIP, and the folder to begin with as plugin ``task`` where there is a ``start``.

    Raises:
        CheckpointError: base, CLIP or start are not there or do not fit each other.
        RequestError: no pairs, a state of another training, or too little memory.
        ImageError: a faulty picture.
    """
    recipe = settings.recipe
    # one process makes latents and scores; the others wait for it
    run = loop.accelerator(loop.TrainingArguments(steps=1, peak=1.0, precision=recipe.mixed_precision, trackers=()))
    opened = data.open_pairs(chosen, released=recipe.eq3, harder=recipe.harder_share)
    steps = recipe.steps(len(opened.kept), run.num_processes)
    say = log if run.is_main_process else (lambda line: None)
    precision = run.mixed_precision
    _announce(say, task, opened, recipe, steps, run.num_processes, precision)
    if recipe.eq3:
        _check_memory(say, read, recipe, precision, run.device)
    if settings.dry_run:
        return None
    name = "_".join((task, *(k for k in (settings.variant, settings.loss) if k not in ("released", "latent"))))
    state = chosen.work / "run" / f"plugin_{name}.pt"
    key = inputs_of(read, opened, settings, card, start)
    with run.main_process_first():
        taken = record.claim(state, key, restart=settings.restart and run.is_main_process)
        if not taken and run.is_main_process:
            data.check(opened)
    torch.manual_seed(recipe.seed)
    model = plugin.from_checkpoint(
        read, task if start else None, variants.maker(settings.variant), copy_base=recipe.load_weights_from_unet
    )
    variants.prepare(model, settings.variant, fresh=start is None)
    vae = read.autoencoder()
    with run.main_process_first():
        objective, batches, held = objectives.build(
            task, chosen, opened, settings, model, vae, card, key, precision, run
        )
    scheduler = read.config("scheduler")
    report = (
        validation.report_pairs(model, vae, scheduler, {task: held}, {task: card}) if chosen.shown and held[0] else None
    )
    loop.fit(
        objective,
        training_arguments(settings, steps, run.num_processes),
        state,
        name=name,
        seed=recipe.seed,
        report=report,
        batches=batches,
    )
    place = None
    if run.is_main_process and variants.exports(settings.variant):
        data.remember(chosen, task)
        place = _write(chosen.work / "checkpoint", task, settings.variant, model, read, card)
    return _score(chosen, settings, model, vae, scheduler, held, card, place)


def choose_card(task: str, file: Path | None, *, ours: bool) -> PluginCard:
    """``ours``: over the small base and on its photos, whose cards take fewer steps.

    The card of a plugin with a change head becomes a residual's: what learns here is what comes before a head, which
    ``dp-train head`` trains afterwards.

    Raises:
        RequestError: no shipped card of that name.
        CheckpointError: a faulty file.
    """
    if file is not None:
        card = cards.load_card(file, expected_id=task)
        return dataclasses.replace(card, output="residual") if card.output == "head" else card
    shipped = cards.shipped_cards()
    if task not in shipped:
        raise RequestError(f"{task}: no shipped card of that name ({', '.join(shipped)}); give one with --card")
    if ours:
        return small.card(task)
    return dataclasses.replace(shipped[task], licence="trained by the user with dp-train")


def _announce(
    say: Log, task: str, opened: data.Opened, recipe: Recipe, steps: int, processes: int, precision: str
) -> None:
    """What will run, before it runs."""
    batch = recipe.train_batch_size * recipe.gradient_accumulation_steps * processes
    say(
        f"{task}: recipe {recipe.name}, {len(opened.source)} pairs ({len(opened.held)} held out) at "
        f"{recipe.resolution} px; {recipe.train_batch_size} a process x {recipe.gradient_accumulation_steps} "
        f"accumulated x {processes} process{'es' if processes > 1 else ''} = {batch} a step; {steps} steps, rate "
        f"{recipe.rate(processes):g} {recipe.lr_scheduler}, mixed precision {precision}"
    )


def _check_memory(say: Log, read: Checkpoint, recipe: Recipe, precision: str, device: torch.device) -> None:
    """Say how much memory a process takes.

    Raises:
        RequestError: there is less; with the batch that fits.
    """
    found = memory.estimate(
        configs_of(read),
        recipe.resolution,
        precision,
        checkpointing=recipe.gradient_checkpointing,
        ema=recipe.ema_decay is not None,
    )
    need = found.total(recipe.train_batch_size)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    say(f"memory: about {need / memory.GIB:.1f} GiB a process ({found}); free: {(free or 0) / memory.GIB:.1f} GiB")
    if free is not None and need > free:
        fits = found.largest_batch(free)
        more = "" if recipe.gradient_checkpointing else ", --gradient-checkpointing"
        remedy = f"--train-batch-size {fits} with --gradient-accumulation-steps" if fits else "a smaller --resolution"
        raise RequestError(
            f"a step needs about {need / memory.GIB:.1f} GiB, {free / memory.GIB:.1f} GiB are free: take {remedy}{more}"
        )


def configs_of(read: Checkpoint) -> dict[str, dict[str, Any]]:
    """The configs of what a plugin's training runs through."""
    unet = read.config("unet")
    parts = {part: read.config(part) for part in ("vae", "scheduler")}
    return parts | {"unet": unet, "vision": read.vision_config, "scb": plugin.scb_config(unet)}


def inputs_of(
    read: Checkpoint, opened: data.Opened, settings: Settings, card: PluginCard, start: Path | None
) -> dict[str, object]:
    """Everything that makes a state another training's."""
    files = [file for part in ("unet", "vae", "clip_vision") for file in read.source(part).files]
    return {
        "pairs": opened.source.key(),
        "base and clip": record.weights_key(*files),
        "card": record.text_key(cards.card_to_toml(card)),
        "start": record.weights_key(start / "tpb.pt", *find_weights(start / "scb").files) if start else "",
        "variant": settings.variant,
        "loss": settings.loss,
        "recipe": {name: value for name, value in describe(settings.recipe).items() if name not in _FREE},
    }


def training_arguments(settings: Settings, steps: int, processes: int) -> loop.TrainingArguments:
    """The recipe's, for so many steps and processes."""
    recipe = settings.recipe
    return loop.TrainingArguments(
        steps=steps,
        peak=recipe.rate(processes),
        schedule=recipe.lr_scheduler,
        warmup=recipe.lr_warmup_steps,
        ema=recipe.ema_decay,
        clip=recipe.max_grad_norm,
        clip_parts=("model.tpb.", "model.scb.") if recipe.eq3 else (),
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        epsilon=recipe.adam_epsilon,
        weight_decay=recipe.adam_weight_decay,
        accumulation=recipe.gradient_accumulation_steps,
        every=recipe.checkpointing_steps,
        validate=recipe.validation_steps,
        precision=recipe.mixed_precision,
        trackers=settings.trackers,
    )


def _write(tree: Path, task: str, variant: str, model: plugin.Denoiser, read: Checkpoint, card: PluginCard) -> Path:
    """The released layout; an ablation as a plugin of its own name."""
    name = task if variant == "released" else f"{task}-{variant}"
    own = (
        card
        if variant == "released"
        else dataclasses.replace(card, id=name, title=f"{card.title} ({variant})", aliases=(), order=cards.LAST)
    )
    tensors = {"tpb": model.tpb.state_dict(), "scb": model.scb.state_dict()}
    layout.write_plugin(tree, name, plugin.scb_config(read.config("unet")), card=cards.card_to_toml(own), **tensors)
    return tree / "pre-trained" / name


def _score(
    chosen: data.Data,
    settings: Settings,
    model: plugin.Denoiser,
    vae: Autoencoder,
    scheduler: dict[str, Any],
    held: data.Held,
    card: PluginCard,
    place: Path | None,
) -> Outcome:
    bad, clean = held if chosen.shown else ([], [])
    if chosen.pairs is None and chosen.shown:
        side = settings.recipe.resolution
        bad, clean = data.degraded(evaluate.test_photos(chosen.work, side, SHOWN), chosen.degradation, evaluate.SEED)
    if not bad:
        return Outcome(place=place, pictures=0, given=0.0, restored=0.0, model=model)
    made = validation.restore(model, vae, NoiseSchedule.from_config(scheduler), bad, card)
    return Outcome(
        place=place,
        pictures=len(bad),
        given=evaluate.scores(bad, clean).psnr,
        restored=evaluate.scores(made, clean).psnr,
        model=model,
    )
