"""The tables of ``dp-eval ablation``: their rows, and a score of one. Data."""

from __future__ import annotations

from collections.abc import Mapping
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
PLACES = ("E-1", "E-2", "E-3", "E-4", "D-4", "D-3", "D-2", "D-1")
INVERSION_STEPS = 20
SIZES = (4, 16, 64)  # photos to learn from, beside all


@dataclass(frozen=True)
class Score:
    """Of one row and task: mean PSNR in dB and SSIM against the ground truth, FID and KID where features were given."""

    psnr: float
    ssim: float
    sets: Mapping[str, float]

    def __str__(self) -> str:
        sets = f"{self.sets['fid']:.2f} / {self.sets['kid']:.2f}" if self.sets else "–"
        return f"{self.psnr:.2f} | {self.ssim:.3f} | {sets}"
