"""What a photo needs, seen in the photo itself: for requests without words, and for "fix this"."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from diffplugin.errors import NotFinite, RequestError
from diffplugin.runtime.execution.clock import Clock
from diffplugin.runtime.execution.engine_pool import EnginePool
from diffplugin.runtime.photos.photo import Photo
from diffplugin.runtime.request.views import views

# One lack of detail is not restored twice: blur on its own, or a small, noisy or compressed picture.
ALTERNATIVES = ("deblur", "face")
_WORDS = ((0.25, "slight"), (0.5, "moderate"), (1.0, "strong"))


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was seen of one task.

    Attributes:
        task: the id of the plugin that restores it.
        probability: that the photo needs it.
        threshold: probability above which it is restored.
        strength: how much of the degradation the photo has, 0 to 1; 0.5: as much as an average photo of the training.
        needed: the photo needs it, whether or not the bundle has the plugin.
    """

    task: str
    probability: float
    threshold: float
    strength: float
    needed: bool

    @property
    def degree(self) -> str:
        """The strength in a word."""
        return next(word for limit, word in _WORDS if self.strength <= limit)


def diagnose(pool: EnginePool, photo: Photo, clock: Clock) -> tuple[Finding, ...]:
    """A finding of every task that the bundle's diagnosis knows, in the order of the graph.

    Raises:
        RequestError: the bundle has no diagnosis.
        NotFinite: the engine gave no numbers.
    """
    known = pool.bundle.manifest.diagnosis
    if not known:
        raise RequestError(
            f"{pool.bundle.manifest.name}: this bundle has no diagnosis and cannot see what a photo needs; say it in "
            'words, for example "remove the blur", name a plugin, or export the bundle again'
        )
    with clock("diagnosis"):
        seen = views(photo.rgb)
    made = pool.run("diagnosis", {"views": seen}, clock)
    logits, strengths = (made[name].reshape(-1).astype(np.float64) for name in ("logits", "strengths"))
    if not (np.isfinite(logits).all() and np.isfinite(strengths).all()):
        raise NotFinite("the diagnosis gave numbers that are not finite; try another precision")
    probabilities = 1 / (1 + np.exp(-np.clip(logits, -60, 60)))
    if not np.ptp(seen, axis=(0, 2, 3)).any():  # one colour throughout: a grey card is no fog
        probabilities[:] = 0
    chances = {one.task: (float(p), one.threshold) for one, p in zip(known, probabilities, strict=True)}
    needed = needed_tasks(chances)
    return tuple(
        Finding(
            task=task,
            probability=round(probability, 4),
            threshold=threshold,
            strength=round(float(strength), 4),
            needed=task in needed,
        )
        for (task, (probability, threshold)), strength in zip(chances.items(), strengths, strict=True)
    )


def needed_tasks(chances: dict[str, tuple[float, float]]) -> set[str]:
    """The tasks whose probability is above their threshold, of :data:`ALTERNATIVES` only the more probable one.

    Args:
        chances: task -> (probability, threshold).
    """
    above = {task for task, (probability, threshold) in chances.items() if probability > threshold}
    rivals = above.intersection(ALTERNATIVES)
    return above - rivals | set(sorted(rivals, key=lambda task: chances[task][0])[-1:])


def described(findings: Sequence[Finding], installed: Collection[str]) -> str:
    """What was found, for people: ``desnow 97% (strong), lowlight 88% (moderate)``."""
    found = sorted((one for one in findings if one.needed), key=lambda one: -one.probability)
    return ", ".join(
        f"{one.task} {one.probability:.0%} ({one.degree}{'' if one.task in installed else ', not in this bundle'})"
        for one in found
    )
