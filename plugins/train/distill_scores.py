"""What a student of few steps is compared with: its teacher's pictures, and the ground truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffplugin.plugins.cards import PluginCard
from diffplugin.plugins.train import data, evaluate
from diffplugin.plugins.train.common import Pixels


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


def held_out(chosen: data.Data, opened: data.Opened, side: int) -> data.Held:
    """Inputs and ground truths that no training sees: of the user's pairs, else of the test photos."""
    if chosen.pairs is not None or not chosen.shown:
        return opened.squares(side, chosen.shown)
    clean = evaluate.test_photos(chosen.work, side, chosen.shown)
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
