"""Sizes that an engine is built for, one range per free axis: ``h=64,w=96``, or ``h=32:64:96,w=32:64:96``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from diffplugin.errors import RequestError
from diffplugin.spec import GraphSpec, ModelDims


@dataclass(frozen=True)
class Range:
    """Sizes of one axis: smallest, the one to optimise for, largest. Written ``8:16:32``, or ``8`` if all three are
    equal.

    Raises:
        RequestError: not 1 <= least <= best <= most.
    """

    least: int
    best: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.best <= self.most:
            raise RequestError(
                f"sizes {self.least}:{self.best}:{self.most}: expected MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX"
            )

    @classmethod
    def of(cls, size: int) -> Range:
        """A range of a single size."""
        return cls(size, size, size)

    @property
    def fixed(self) -> bool:
        return self.least == self.most

    def __str__(self) -> str:
        return str(self.best) if self.fixed else f"{self.least}:{self.best}:{self.most}"

    def __contains__(self, size: int) -> bool:
        return self.least <= size <= self.most

    def over(self, factor: int) -> Range:
        """Whole multiples of ``factor``."""
        return Range(self.least // factor, self.best // factor, self.most // factor)

    def times(self, factor: int) -> Range:
        return Range(self.least * factor, self.best * factor, self.most * factor)


Profile = Mapping[str, Range]


def free_inputs(spec: GraphSpec) -> tuple[str, ...]:
    """Free axes of the inputs, in order of first use: those that a profile must give."""
    return tuple(axis for axis in spec.free_axes() if any(axis in tensor.axes for tensor in spec.inputs))


def full_profile(height: Range, width: Range, dims: ModelDims, *, batch: int, plugins: int) -> dict[str, Range]:
    """The range of every free axis for pictures whose latent sides are within ``height`` and ``width``.

    Args:
        batch: the largest number of timesteps of the SCB at once.
        plugins: the number of plugins in the bundle; the selector scores all of them.
    """
    return {
        "h": height,
        "w": width,
        "H": height.times(dims.factor),
        "W": width.times(dims.factor),
        "n": Range(1, max(1, batch // 2), batch),
        "p": Range.of(max(1, plugins)),
    }


def shapes_text(spec: GraphSpec, sizes: Mapping[str, int] | Profile) -> str:
    """Sizes of the free input axes of a graph, as text that identifies an engine: ``h=64,w=96``; empty if none is
    free.
    """
    return ",".join(f"{axis}={sizes[axis]}" for axis in free_inputs(spec))


def parse_shapes(text: str) -> dict[str, Range]:
    """The inverse of :func:`shapes_text`.

    Raises:
        RequestError: ``text`` is not of that form.
    """
    profile = {}
    for part in text.split(",") if text else ():
        found = re.fullmatch(r"(\w+)=(\d+)(?::(\d+):(\d+))?", part)
        if found is None:
            raise RequestError(f"shapes {text!r}: expected axis=SIZE or axis=MIN:OPT:MAX, with commas between")
        least = int(found[2])
        profile[found[1]] = Range(least, int(found[3] or least), int(found[4] or least))
    return profile


def holds(text: str, spec: GraphSpec, sizes: Mapping[str, int]) -> bool:
    """Whether an engine built for ``text`` runs ``spec`` at these sizes of its free input axes."""
    profile = parse_shapes(text)
    axes = free_inputs(spec)
    return set(profile) == set(axes) and all(sizes[axis] in profile[axis] for axis in axes)
