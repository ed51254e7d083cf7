"""Table 6 of the paper: the selector without one of its heads, and with fewer or more negatives."""

from __future__ import annotations

import argparse
import math
import shutil
from pathlib import Path
from typing import Any

import torch

from diffplugin.errors import RequestError
from diffplugin.export.checkpoints import embedded_checkpoint
from diffplugin.plugins.train import layout, paper, selector_options, selector_training
from diffplugin.plugins.train.ablation_tables import TRAIN_STEPS, spread

ROWS: dict[str, dict[str, Any]] = {
    "without the visual head": {"removed": "visual"},
    "without the textual head": {"removed": "textual"},
    **{f"N = {n}": {"negatives": n, "train_batch_size": n + 1} for n in (1, 3, 5, 7, 15)},
}
# of the embedded model's heads: 1e-5 is for CLIP's widths
RATE: dict[str, Any] = {"learning_rate": 1e-3, "lr_scheduler": "cosine"}


def run(args: argparse.Namespace) -> tuple[str, Any]:
    """(Markdown, numbers) of the rows; each selector is left in a checkpoint tree of its own, ready for dp-export."""
    torch.set_num_threads(args.threads or 1)
    wanted = args.rows or list(ROWS)
    if unknown := [row for row in wanted if row not in ROWS]:
        raise RequestError(f"--rows {', '.join(unknown)}: expected some of {', '.join(ROWS)}")
    whole = embedded_checkpoint([])[0]
    base, clip = args.base or whole.base, args.clip or whole.clip
    plugins = args.plugins or next(iter(whole.plugins.values())).parent
    steps = args.train_steps or TRAIN_STEPS["selector"]
    values: dict[str, dict[str, list[float]]] = {}
    for row in wanted:
        runs = [_trained(args, row, seed, steps, base=base, clip=clip, plugins=plugins) for seed in range(args.seeds)]
        values[row] = {name: [run[name] for run in runs] for name in runs[0]}
    layout.write_json(args.out / "ablation-selector-steps.json", {"steps": steps})
    return _table(values), values


def _trained(
    args: argparse.Namespace, row: str, seed: int, steps: int, *, base: Path, clip: Path, plugins: Path
) -> dict[str, float]:
    """The held-out figures of one training."""
    work = args.out / "work" / (row.replace(" ", "").replace("=", "") + (f"-seed{seed}" if seed else ""))
    _tree(work, args.work, plugins)
    more = RATE if args.base is None else selector_options.PAPER
    numbers = {**more, "images_per_task": 50, **ROWS[row]}
    options = selector_options.Options(steps=steps, heads_only=True, seed=seed, **numbers)
    found = selector_training.train(work, options, base=base, clip=clip, wanted=None)
    return {f"ZTA, {kind}": metrics["ZTA"] for kind, metrics in found.items()} | {"mAP, mixed": found["mixed"]["mAP"]}


def _tree(work: Path, source: Path, plugins: Path) -> None:
    """A work folder with the plugins and, as pictures, the other folder's pools or its test of them."""
    target = work / "checkpoint/pre-trained"
    if not target.exists():
        shutil.copytree(plugins, target, ignore=shutil.ignore_patterns("plugin_selector"))
    for folder in (*source.glob("pool*"), *source.glob("pairs")):
        if folder.is_dir() and not (work / folder.name).exists():
            (work / folder.name).symlink_to(folder.resolve(), target_is_directory=True)


def _table(values: dict[str, dict[str, list[float]]]) -> str:
    names = list(next(iter(values.values())))
    lines = ["| | " + " | ".join(names) + " | paper: ZTA, single + non |", "|---" * (len(names) + 2) + "|"]
    for row, found in values.items():
        theirs = paper.TABLE_6[row]
        told = "NaN" if math.isnan(theirs) else f"{theirs:.3f}"
        lines.append(f"| {row} | " + " | ".join(spread(found[name], 3) for name in names) + f" | {told} |")
    return "\n".join(lines)
