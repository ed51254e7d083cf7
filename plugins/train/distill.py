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

import numpy as np
import torch
from torch import Tensor, nn

from diffplugin.errors import RequestError
from diffplugin.export.checkpoints import Checkpoint
from diffplugin.plugins import cards
from diffplugin.plugins.cards import PluginCard
from diffplugin.plugins.networks.vae import Autoencoder
from diffplugin.plugins.train import data, distill_scores, layout, loop, memory, plugin, pool, record, tasks, validation
from diffplugin.plugins.train.common import gaussian
from diffplugin.plugins.train.coring import cored
from diffplugin.plugins.train.settings import Settings
from diffplugin.runtime.sampling.loop import step_weights
from diffplugin.runtime.sampling.noise_schedule import NoiseSchedule
from diffplugin.runtime.sampling.samplers import StepTable, unipc

_SAMPLES_SEED = 9000  # of kept batches, beside their numbers


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


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """Crops with all that the teacher and its student begin with, and what the teacher made of them.

    Attributes:
        given, truth, target: inputs, ground truths and the teacher's images, float32 [n, 3, H, W] in [-1, 1].
        cond, noise: latents of the inputs, and the start noise, float32 [n, 4, h, w].
        known: what the decoder makes of ``cond``.
        tokens: the TPB's [n, 256, D].
    """

    given: Tensor
    truth: Tensor
    target: Tensor
    cond: Tensor
    noise: Tensor
    known: Tensor
    tokens: Tensor


class Distillation(nn.Module):
    """The loss: minus the PSNR of the student's picture to the teacher's, as the runtime shows either.

    A share ``truth`` of it is minus the PSNR to the ground truth. The student's SCB (``model.scb``) alone learns: the
    selector compares requests with the TPB's tokens, so the student needs no new selector. ``samples``: so many batches
    are drawn, restored by the teacher once and kept in memory; 0: every step has a new one.
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
        samples: int = 0,
    ) -> None:
        super().__init__()
        self.model, self.vae, self.draw, self.truth, self.samples = model, vae, draw, truth, samples
        self._kept: dict[int, Lesson] = {}
        self.taught = copy.deepcopy(model.scb)
        self.requires_grad_(False)
        model.scb.requires_grad_(True)
        self.teacher = Sampled.of(self.taught, teacher, schedule)
        self.student = Sampled.of(model.scb, student, schedule)

    def forward(self, step: int, rng: np.random.Generator) -> Tensor:
        lesson = self._lesson(rng)
        made = self.shown(self.student, lesson)
        loss = (1 - self.truth) * plugin.picture_loss(made, lesson.target)
        return loss + self.truth * plugin.picture_loss(made, lesson.truth) if self.truth else loss

    def _lesson(self, rng: np.random.Generator) -> Lesson:
        if not self.samples:
            return self._taught(rng)
        number = int(rng.integers(self.samples))
        if number not in self._kept:  # what it holds depends on its number alone: a resumed training goes on alike
            self._kept[number] = self._taught(np.random.default_rng((_SAMPLES_SEED, number)))
        return self._kept[number]

    @torch.no_grad()
    def _taught(self, rng: np.random.Generator) -> Lesson:
        crops, device = self.draw(rng), self.model.metric.device
        given, truth = crops.given.to(device), crops.truth.to(device)
        cond, tokens = self.vae.encode(given).float(), self.model.tokens(crops.pixels.to(device))
        known, noise = self.vae.decode(cond).float(), gaussian(cond.shape, rng).to(device)
        lesson = Lesson(given=given, truth=truth, cond=cond, tokens=tokens, known=known, noise=noise, target=given)
        return dataclasses.replace(lesson, target=self.shown(self.teacher, lesson))

    def shown(self, by: Sampled, lesson: Lesson) -> Tensor:
        """The image [n, 3, H, W] that the runtime shows, neither clipped nor rounded."""
        made = final_latents(self.model, by, lesson.tokens, lesson.cond, lesson.noise)
        image = self.vae.decode(made).float()
        if by.card.output == "decoded":
            return image
        return lesson.given + cored(image - lesson.known, by.card.coring, by.card.coring_peak)


def cards_of(card: PluginCard, *, teacher_steps: int | None, steps: int) -> tuple[PluginCard, PluginCard]:
    """(teacher's, student's) card; ``teacher_steps`` None: the card's own.

    The student has as many steps behind another plugin as alone: it learned no others.

    Raises:
        RequestError: the teacher has no more steps than the student.
    """
    teacher = dataclasses.replace(card, steps_first=teacher_steps or card.steps_first)
    if teacher.steps_first <= steps:
        raise RequestError(
            f"{card.id}: the teacher's steps are {teacher.steps_first}, expected more than the student's {steps}; "
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
    samples: int = 0,
    log: tasks.Log = print,
) -> distill_scores.Outcome | None:
    """Distil plugin ``task`` of ``read``, or go on; writes ``out`` in the released layout, with the student's card.

    Args:
        out: the student's folder, ``.../<task>``.
        teacher, student: how they are sampled; either's ``steps_first`` are its steps.
        truth: share of the loss that looks at the ground truth; 0 to 1.
        samples: as :class:`Distillation` takes them.

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
        "samples": samples,
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
    objective = Distillation(
        model, vae, draw, schedule=schedule, teacher=teacher, student=student, truth=truth, samples=samples
    )
    objective.to(run.device)
    held = distill_scores.held_out(chosen, opened, recipe.resolution) if run.is_main_process else ([], [])
    compared = distill_scores.Comparison(partial(validation.restore, model, vae, schedule), held, teacher, student)
    arguments = tasks.training_arguments(settings, steps, run.num_processes)
    loop.fit(objective, arguments, state, name=name, seed=recipe.seed, report=compared.report if held[0] else None)
    if not run.is_main_process:
        return None
    layout.write_branches(out, read.scb_config(task), tpb=model.tpb.state_dict(), scb=model.scb.state_dict())
    layout.write_lines(out / "card.toml", cards.card_to_toml(student))
    return compared.outcome(out)
