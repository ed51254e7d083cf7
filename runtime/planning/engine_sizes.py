"""Pictures for engines that were built for certain sizes: padded to one of them, or cut into pieces of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from diffplugin.errors import RequestError
from diffplugin.shapes import Range


@dataclass(frozen=True)
class EngineSizes:
    """Latent sides that an engine accepts."""

    h: Range
    w: Range

    def takes(self, h: int, w: int) -> bool:
        return h in self.h and w in self.w

    def pixels(self, factor: int) -> str:
        """``768x512`` or ``512x256:512:1024``, width first, as ``--size`` takes it."""
        return f"{self.w.times(factor)}x{self.h.times(factor)}"


@dataclass(frozen=True)
class Fit:
    """A way to run a picture.

    Attributes:
        latent: (width, height) that it is padded to.
        side: longest side of a piece; at least the longest of ``latent`` if it stays whole.
        bytes, work: its memory, and latent pixels of all pieces together.
        alone: the engine is for this single size.
    """

    latent: tuple[int, int]
    side: int
    bytes: int
    work: int
    alone: bool

    @property
    def whole(self) -> bool:
        return self.side >= max(self.latent)


Measure = Callable[[tuple[int, int], int], tuple[int, int]]  # (latent, side) -> (bytes, latent pixels of all pieces)


def fits(
    latent: tuple[int, int], engine_sizes: Sequence[EngineSizes], sides: Sequence[int], measure: Measure
) -> Iterator[Fit]:
    """Every way to run a picture of ``latent`` (width, height).

    Args:
        sides: of pieces that may be cut.
    """
    for one in engine_sizes:
        width, height = max(latent[0], one.w.least), max(latent[1], one.h.least)
        for side in (max(width, height), *sides):
            cut = side < max(width, height)
            if one.takes(min(height, side), min(width, side)) and (cut or side == max(width, height)):
                yield Fit((width, height), side, *measure((width, height), side), one.h.fixed and one.w.fixed)


def best_fit(found: Sequence[Fit], available: int | None, *, native: int, most: float) -> Fit | None:
    """The best way to run a picture; None: there is none. If none fits into memory: the one with the least memory.

    Whole with the least work, up to ``most`` latent pixels or where an engine is for that size alone. Else pieces:
    from the ``native`` side up to that area those of the least work, then the next larger, then the next smaller ones.
    """
    fitting = [fit for fit in found if available is None or fit.bytes <= available]
    if not fitting:
        return min(found, key=lambda fit: fit.bytes, default=None)

    def order(fit: Fit) -> tuple[float, ...]:
        if fit.whole:
            return (0 if fit.alone or fit.work <= most else 4, fit.work)
        if fit.side < native:
            return (3, -fit.side, fit.work)
        return (1, fit.work, fit.side) if fit.side**2 <= most else (2, fit.side, fit.work)

    return min(fitting, key=order)


def no_fit(what: str, engine_sizes: Sequence[EngineSizes], factor: int) -> RequestError:
    """The error for a picture that no engine accepts."""
    sizes = ", ".join(dict.fromkeys(one.pixels(factor) for one in engine_sizes))
    return RequestError(
        f"no engine takes {what}; those of this bundle are for {sizes} px: choose --size or --tile, "
        "or export it again with this --size"
    )
