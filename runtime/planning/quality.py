"""How much of the work a run does: all of it, or less by reusing features of a nearby step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from diffplugin.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class Quality:
    """One choice between speed and fidelity.

    Attributes:
        name: as ``--quality`` takes it.
        description: one line for people.
        steps: the most steps of a plugin if the caller gives none; None: the card's.
        deep_every: the whole UNet runs once in this many steps; the other steps run its outermost blocks with the deep
            feature of the last whole run (arXiv:2312.00858); 1: always whole.
        scb_every: the SCB runs once in this many steps and at the last one; between its runs the residuals are
            interpolated; 1: at every step.
        scaled: large photos are restored at the scale of the fault, as their plugins' cards give it (``work_size``).
        fine: pieces of such photos with faults too fine for that are restored at full size besides (``fine`` of cards).
        tiny_autoencoder: use the bundle's tiny autoencoder, if it has one.
        precisions: preferred if the precision is "auto" and the bundle and the engine have them.
    """

    name: str
    description: str
    steps: int | None = None
    deep_every: int = 1
    scb_every: int = 1
    scaled: bool = False
    fine: bool = False
    tiny_autoencoder: bool = False
    precisions: tuple[str, ...] = ()

    def full_steps(self, steps: int) -> tuple[int, ...]:
        """The steps, of ``steps``, that run the whole UNet, in rising order; the first is always one of them."""
        return tuple(range(0, steps, self.deep_every))

    def scb_steps(self, steps: int) -> tuple[int, ...]:
        """The steps, of ``steps``, whose residuals are computed, in rising order; the first and the last are always
        among them.
        """
        return tuple(sorted({*range(0, steps, self.scb_every), steps - 1}))


QualityName = Literal["exact", "high", "balanced", "fast"]
EXACT = Quality(name="exact", description="every step as released, at every precision")
QUALITIES = {
    quality.name: quality
    for quality in (
        EXACT,
        Quality(
            name="high",
            description="every step, with the SCB at every 2nd one and interpolated between",
            scb_every=2,  # 51 dB to exact at 20 steps on the embedded model's predecessor, as bf16 itself to float32
        ),
        Quality(
            name="balanced",
            description="at most 10 steps unless --steps says more; deep features and SCB at every 2nd step; large "
            "photos at the scale of the fault, and at full size where faults are fine",
            steps=10,
            scaled=True,
            fine=True,
            deep_every=2,
            scb_every=2,
            precisions=("int8",),
        ),
        Quality(
            name="fast",
            description="at most 6 steps unless --steps says more; deep features and SCB at every 3rd step; large "
            "photos at the scale of the fault; the tiny autoencoder if the bundle has one",
            steps=6,
            scaled=True,
            deep_every=3,
            scb_every=3,
            tiny_autoencoder=True,
            precisions=("int8",),
        ),
    )
}


def get_quality(name: str) -> Quality:
    """Raises:
    RequestError: no quality of this name.
    """
    if name not in QUALITIES:
        raise RequestError(f"quality {name!r} does not exist; choose one of {', '.join(QUALITIES)}")
    return QUALITIES[name]
