"""Plugins of few steps: a student whose one, two or four steps end where its teacher's twenty do.

The teacher's sampler is deterministic, so input and start noise fix its result. The student is regressed on it through
the steps that it will run itself, from the same noise (Luhman and Luhman, arXiv:2101.02388). The error is that of the
picture, through the decoder, as in the data term of OSEDiff (arXiv:2406.08177); nothing is adversarial or variational.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffplugin.errors import RequestError
from diffplugin.export.checkpoints import Checkpoint
from diffplugin.plugins import cards
from diffplugin.plugins.cards import PluginCard
from diffplugin.plugins.networks.vae import Autoencoder
from diffplugin.plugins.train import data, evaluate, layout, loop, memory, plugin, pool, record, tasks, validation
from diffplugin.plugins.train.common import Pixels, gaussian
from diffplugin.plugins.train.coring import cored
from diffplugin.plugins.train.settings import Settings
from diffplugin.runtime.sampling.loop import step_weights
from diffplugin.runtime.sampling.noise_schedule import NoiseSchedule
from diffplugin.runtime.sampling.samplers import StepTable, unipc


@dataclass(frozen=True)
class Sampled:
    """A plugin as it is sampled: its SCB, its card, and the sampler's table of the card's steps."""

    scb: nn.Module
    card: PluginCard
    table: StepTable

    @classmethod
    def of(cls, scb: nn.Module, card: PluginCard, schedule: NoiseSchedule) -> Sampled:
        """With the table of the released sampler."""
        return cls(scb, card, unipc(schedule, card.steps_first, card.first_t))


def final_latents(model: plugin.Denoiser, by: Sampled, tokens: Tensor, cond: Tensor, noise: Tensor) -> Tensor:
    """What :func:`diffplugin.runtime.sampling.loop.sample` returns, in PyTorch: gradients reach the SCB.

    ``tokens`` [n, 256, D]; ``cond`` and ``noise`` [n, 4, h, w], and so the result.
    """
    latents = last = x0_1 = x0_2 = noise
    for i, t in enumerate(by.table.t):
        weights = step_weights(by.table, i, by.card.start, by.card.renoise_from_t).tolist()
        latents = _weighted(weights[:3], latents, cond, noise)
        time = torch.full((len(cond),), float(t), device=cond.device)
        residuals = by.scb(model.time(time, model.features), tokens, cond)
        x0 = _weighted(weights[3:5], latents, model.denoise(latents, time, tokens, residuals).float())
        last = _weighted(weights[5:10], last, latents, x0, x0_1, x0_2)
        latents = _weighted(weights[10:], last, x0, x0_1)
        x0_1, x0_2 = x0, x0_1
    return latents


def _weighted(weights: list[float], *tensors: Tensor) -> Tensor:
    first, *more = [weight * tensor for weight, tensor in zip(weights, tensors, strict=True) if weight]
    return sum(more, first)


class Distillation(nn.Module):
    """The loss: minus the PSNR of the student's picture to the teacher's, as the runtime shows either.

    A share ``truth`` of it is minus the PSNR to the ground truth. The student's SCB (``model.scb``) alone learns: the
    selector compares requests with the TPB's tokens, so the student needs no new selector.
    """

    def __init__(
        self,
        model: plugin.Denoiser,
        vae: Autoencoder,
        draw: Callable[[np.random.Generator], pool.Crops],
        *,
        schedule: NoiseSchedule,
        teacher: PluginCard,
        student: PluginCard,
        truth: float = 0.0,
    ) -> None:
        super().__init__()
        self.model, self.vae, self.draw, self.truth = model, vae, draw, truth
        self.taught = copy.deepcopy(model.scb)
        self.requires_grad_(False)
        model.scb.requires_grad_(True)
        self.teacher = Sampled.of(self.taught, teacher, schedule)
        self.student = Sampled.of(model.scb, student, schedule)

    def forward(self, step: int, rng: np.random.Generator) -> Tensor:
        crops, device = self.draw(rng), self.model.metric.device
        given, truth = crops.given.to(device), crops.truth.to(device)
        with torch.no_grad():
            cond, tokens = self.vae.encode(given).float(), self.model.tokens(crops.pixels.to(device))
            known = self.vae.decode(cond).float()
            noise = gaussian(cond.shape, rng).to(device)
            target = self.shown(self.teacher, given, known, tokens, cond, noise)
        made = self.shown(self.student, given, known, tokens, cond, noise)
        loss = (1 - self.truth) * plugin.picture_loss(made, target)
        return loss + self.truth * plugin.picture_loss(made, truth) if self.truth else loss

    def shown(self, by: Sampled, given: Tensor, known: Tensor, tokens: Tensor, cond: Tensor, noise: Tensor) -> Tensor:
        """The image [n, 3, H, W] that the runtime shows of ``given``, neither clipped nor rounded; ``known`` is what
        the decoder makes of the input's latent ``cond``."""
        made = self.vae.decode(final_latents(self.model, by, tokens, cond, noise)).float()
        if by.card.output == "decoded":
            return made
        return given + cored(made - known, by.card.coring, by.card.coring_peak)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where a student was written, and mean PSNR, dB, of ``count`` held-out pictures.

    Attributes:
        to_teacher: of the student's pictures to the teacher's; ``untrained``: of the teacher's own weights, run for as
            few steps as the student.
        given, teacher, untrained_truth, student: of inputs and results to the ground truth.
    """

    place: Path
    count: int = 0
    to_teacher: float = 0.0
    untrained: float = 0.0
    given: float = 0.0
    teacher: float = 0.0
    untrained_truth: float = 0.0
    student: float = 0.0

    def __str__(self) -> str:
        if not self.count:
            return f"{self.place}; no held-out pictures asked for"
        return (
            f"{self.place}; {self.count} held-out pictures, in PyTorch: to the teacher's {self.untrained:.2f} (its "
            f"weights at so few steps) -> {self.to_teacher:.2f} dB (student); to the truth: input {self.given:.2f}, "
            f"teacher {self.teacher:.2f}, its weights at so few steps {self.untrained_truth:.2f}, student "
            f"{self.student:.2f} dB"
        )


def cards_of(card: PluginCard, *, teacher_steps: int | None, steps: int) -> tuple[PluginCard, PluginCard]:
    """(teacher's, student's) card; ``teacher_steps`` None: the card's own.

    The student has as many steps behind another plugin as alone: it learned no others.

    Raises:
        RequestError: the teacher has no more steps than the student.
    """
    teacher = dataclasses.replace(card, steps_first=teacher_steps or card.steps_first)
    if teacher.steps_first <= steps:
        raise RequestError(
            f"{card.id}: the teacher runs {teacher.steps_first} steps, expected more than the student's {steps}; "
            "give it more with --teacher-steps"
        )
    return teacher, dataclasses.replace(card, steps_first=steps, steps_chained=steps)


def train(
    task: str,
    chosen: data.Data,
    settings: Settings,
    read: Checkpoint,
    out: Path,
    *,
    teacher: PluginCard,
    student: PluginCard,
    truth: float = 0.0,
    log: tasks.Log = print,
) -> Outcome | None:
    """Distil plugin ``task`` of ``read``, or go on; writes ``out`` in the released layout, with the student's card.

    Args:
        out: the student's folder, ``.../<task>``.
        teacher, student: how they are sampled; either's ``steps_first`` are its steps.
        truth: share of the loss that looks at the ground truth; 0 to 1.

    Returns:
        None in all processes but the first.

    Raises:
        CheckpointError: base, CLIP or teacher are not there or do not fit each other.
        RequestError: no pairs, a share out of its range, or a state of another training.
        ImageError: a faulty picture.
    """
    if not 0 <= truth <= 1:
        raise RequestError(f"--truth-share is {truth:g}, expected 0 to 1")
    recipe, folder = settings.recipe, read.plugins[task]
    if out.resolve() == folder.resolve():
        raise RequestError(f"{out}: is the teacher's own folder; write the student to another one with --out")
    run = loop.accelerator(loop.TrainingArguments(steps=1, peak=1.0, precision=recipe.mixed_precision, trackers=()))
    opened = data.open_pairs(chosen, released=False, harder=recipe.harder_share)
    torch.manual_seed(recipe.seed)
    model, vae = plugin.from_checkpoint(read, task), read.autoencoder()
    schedule = NoiseSchedule.from_config(read.config("scheduler"))
    name = f"distill_{task}_{student.steps_first}"
    state = chosen.work / "run" / f"{name}.pt"
    key = tasks.inputs_of(read, opened, settings, student, folder) | {
        "teacher": record.text_key(cards.card_to_toml(teacher)),
        "truth_share": truth,
    }
    with run.main_process_first():
        taken = record.claim(state, key, restart=settings.restart and run.is_main_process)
        if not taken and run.is_main_process:
            data.check(opened)
    steps = recipe.steps(len(opened.kept), run.num_processes)
    side = min(recipe.crop or recipe.resolution, recipe.resolution)
    if run.is_main_process:
        log(
            f"{task}: a student of {student.steps_first} for its teacher's {teacher.steps_first} steps; "
            f"{len(opened.kept)} pairs, {recipe.train_batch_size} crops of {side} px a step, {steps} steps of training"
        )
    draw = partial(pool.draw_crops, data.drawn(chosen, opened, recipe), count=recipe.train_batch_size, side=side)
    vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if recipe.gradient_checkpointing:
        memory.checkpoint_blocks(model)
    objective = Distillation(model, vae, draw, schedule=schedule, teacher=teacher, student=student, truth=truth)
    objective.to(run.device)
    held = _held(chosen, settings, opened) if run.is_main_process else ([], [])
    compared = Comparison(partial(validation.restore, model, vae, schedule), held, teacher, student)
    arguments = tasks.training_arguments(settings, steps, run.num_processes)
    loop.fit(objective, arguments, state, name=name, seed=recipe.seed, report=compared.report if held[0] else None)
    if not run.is_main_process:
        return None
    layout.write_branches(out, read.scb_config(task), tpb=model.tpb.state_dict(), scb=model.scb.state_dict())
    layout.write_lines(out / "card.toml", cards.card_to_toml(student))
    return compared.outcome(out)


def _held(chosen: data.Data, settings: Settings, opened: data.Opened) -> data.Held:
    """Inputs and ground truths that no training sees: of the user's pairs, else of the test photos."""
    if chosen.pairs is not None or not chosen.shown:
        return opened.squares(settings.recipe.resolution, chosen.shown)
    clean = evaluate.test_photos(chosen.work, settings.recipe.resolution, chosen.shown)
    return data.degraded(clean, chosen.degradation, evaluate.SEED)


class Comparison:
    """Held-out pictures, restored by the teacher once and by the student when asked."""

    def __init__(
        self, restore: Callable[..., list[Pixels]], held: data.Held, teacher: PluginCard, student: PluginCard
    ) -> None:
        """``restore(pictures, card)``: by the weights of the moment, which still are the teacher's."""
        self.restore, self.student = restore, student
        self.bad, self.clean = held
        self.taught = restore(self.bad, teacher) if self.bad else []
        self.untrained = restore(self.bad, student) if self.bad else []

    def report(self, step: int) -> dict[str, Any]:
        """What the curves show; the picture: input, teacher's, student's, ground truth."""
        made = self.restore(self.bad, self.student)
        shown = np.concatenate([column[0] for column in (self.bad, self.taught, made, self.clean)])
        return {
            "psnr/teacher": _psnr(made, self.taught),
            "psnr/truth": _psnr(made, self.clean),
            "pictures": shown,
        }

    def outcome(self, place: Path) -> Outcome:
        """The final scores."""
        if not self.bad:
            return Outcome(place=place)
        made = self.restore(self.bad, self.student)
        return Outcome(
            place=place,
            count=len(self.bad),
            to_teacher=_psnr(made, self.taught),
            untrained=_psnr(self.untrained, self.taught),
            given=_psnr(self.bad, self.clean),
            teacher=_psnr(self.taught, self.clean),
            untrained_truth=_psnr(self.untrained, self.clean),
            student=_psnr(made, self.clean),
        )


def _psnr(made: list[Pixels], wanted: list[Pixels]) -> float:
    return evaluate.scores(made, wanted).psnr
