"""The numbers of a selector's training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffplugin.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class Options:
    """The numbers of a selector's training.

    Attributes:
        heads_only: frozen text encoder and paper Eq. 6; else text encoder and heads together.
        images_per_task: pictures of each task at most (the paper: 5,000).
        removed: "visual" or "textual": that head is the identity and does not learn (paper table 6).
    """

    steps: int
    heads_only: bool = False
    train_batch_size: int = 64
    learning_rate: float = 3e-3
    lr_scheduler: str = "cosine"
    negatives: int = 7
    temperature: float = 0.07
    images_per_task: int = 400
    removed: str = ""
    seed: int = 0

    def check(self) -> None:
        """Raises:
        RequestError: a number out of its range; all of them at once.
        """
        least = {"steps": 1, "train_batch_size": 1, "negatives": 1, "images_per_task": 1}
        faults = [
            f"--{k.replace('_', '-')} is {getattr(self, k)}, expected {v} or more"
            for k, v in least.items()
            if getattr(self, k) < v
        ]
        faults += [
            f"--{k.replace('_', '-')} is {getattr(self, k):g}, expected more than 0"
            for k in ("learning_rate", "temperature")
            if not getattr(self, k) > 0
        ]
        if faults:
            raise RequestError("; ".join(faults))


PAPER: dict[str, Any] = {
    "train_batch_size": 8,
    "learning_rate": 1e-5,
    "lr_scheduler": "constant",
    "images_per_task": 5000,
}
