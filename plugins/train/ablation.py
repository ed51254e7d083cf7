"""``dp-eval ablation``: the paper's tables 3, 4 and 6 and its data set study, trained, exported, scored and printed
beside the paper's figures."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

from diffplugin.errors import RequestError

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


def run(args: argparse.Namespace) -> None:
    """Train what a table compares, and write ``ablation-<table>.md`` and ``.json``.

    Raises:
        RequestError: no such row or no test photos.
    """
    from diffplugin.plugins.train import plots

    known = {"design": tuple(DESIGN), "places": PLACES}.get(args.table)
    if known and (unknown := [row for row in args.rows or () if row not in known]):
        raise RequestError(f"--rows {', '.join(unknown)}: expected some of {', '.join(known)}")
    if args.work is None:
        raise RequestError("dp-eval ablation needs --work with the photos of dp-train photos")
    if args.table == "selector":
        from diffplugin.plugins.train import ablation_selector

        table, values = ablation_selector.run(args)
    else:
        from diffplugin.plugins.train import ablation_plugins

        table, values = ablation_plugins.run(args)
    print(table)
    plots.write_table(args.out, f"ablation-{args.table}", table, values)
