"""How much of the work a run does: everything, or less with features of a step nearby."""

from __future__ import annotations

from dataclasses import dataclass, replace

from diffplugin.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class Quality:
    """One choice between speed and fidelity.

    Attributes:
        name: as ``--quality`` takes it.
        description: one line for people.
        steps: most steps of a plugin where the caller names none; None: the card's.
        deep_every: the whole UNet runs once in so many steps, at the others its outermost blocks with the deep feature
            of the last whole run (arXiv:2312.00858); 1: always whole.
        scb_every: the SCB runs once in so many steps and at the last, between its runs the residuals are interpolated;
            1: at every step.
        scb_runs: the SCB runs at about so many steps where a plugin has more; None: as ``scb_every`` says.
        precisions: taken first where the precision is "auto", if the bundle and the engine have them.
    """

    name: str
    description: str
    steps: int | None = None
    deep_every: int = 1
    scb_every: int = 1
    scb_runs: int | None = None
    precisions: tuple[str, ...] = ()

    def full_steps(self, steps: int) -> tuple[int, ...]:
        """Of ``steps`` steps those that run the whole UNet, rising; the first is one."""
        return tuple(range(0, steps, self.deep_every))

    def scb_steps(self, steps: int) -> tuple[int, ...]:
        """Of ``steps`` steps those whose residuals are computed, rising; the first and the last are two."""
        every = max(self.scb_every, steps // self.scb_runs if self.scb_runs else 1)
        return tuple(sorted({*range(0, steps, every), steps - 1}))

    def at(self, precision: str) -> Quality:
        """The same at a precision: at bf16 and int8, interpolated residuals err less than the arithmetic itself."""
        return replace(self, scb_runs=SCB_RUNS) if precision in ("bf16", "int8") else self


SCB_RUNS = 10  # of 20 steps: 51 dB to every step's own on the embedded model, as far as bf16 itself is from float32
EXACT = Quality(
    name="exact", description="every step as released; at bf16 and int8 the SCB at 10 of them, interpolated between"
)
QUALITIES = {
    quality.name: quality
    for quality in (
        EXACT,
        Quality(
            name="balanced",
            description="at most 10 steps unless --steps says more; deep features and SCB at every 2nd step",
            steps=10,
            deep_every=2,
            scb_every=2,
            precisions=("int8",),
        ),
        Quality(
            name="fast",
            description="at most 6 steps unless --steps says more; deep features and SCB at every 3rd step",
            steps=6,
            deep_every=3,
            scb_every=3,
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
