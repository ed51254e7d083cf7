"""The tables of ``dp-eval ablation``: their rows, and a score of one. Data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TABLES = {
    "design": "table 3, what a plugin is made of",
    "places": "table 4, where residuals enter",
    "selector": "table 6, heads and negatives",
    "dataset-size": "section 1, how many pairs",
}
TRAIN_STEPS = {"design": 400, "places": 400, "dataset-size": 400, "selector": 2000}
DESIGN = {  # row of table 3 -> what is trained for it
    "inversion + editing": "",
    "TPB": "tpb",
    "TPB + inversion": "tpb",
    "SCB": "scb",
    "TPB + SCB (reconstruction)": "tpb-fixed-scb",
    "TPB + SCB": "released",
}
PAPER_HEADS = {
    "design": "paper: FID, desnow / dehaze",
    "places": "paper: FID / KID x 100 / parameters",
    "dataset-size": "paper",
}
PLACES = ("E-1", "E-2", "E-3", "E-4", "D-4", "D-3", "D-2", "D-1")
INVERSION_STEPS = 10  # each way
SIZES = (4, 16, 64)  # photos to learn from, beside all


def spread(values: Sequence[float], digits: int) -> str:
    """The mean of trainings from several seeds, and how far they lie from it at most."""
    mean = sum(values) / len(values)
    more = f" ± {max(abs(value - mean) for value in values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{more}"


@dataclass(frozen=True)
class Score:
    """Of one row and task: mean PSNR in dB and SSIM against the ground truth, FID and KID where features were given."""

    psnr: float
    ssim: float
    sets: Mapping[str, float]


def cells(scores: Sequence[Score]) -> str:
    """One row's figures of one task, over its seeds."""
    sets = " / ".join(spread([score.sets[name] for score in scores], 2) for name in scores[0].sets) or "–"
    return f"{spread([s.psnr for s in scores], 2)} | {spread([s.ssim for s in scores], 3)} | {sets}"
