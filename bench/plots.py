"""Two pictures of a result: where the time goes, and what speed costs in fidelity."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffplugin.bench.report import rows
from diffplugin.errors import MissingDependency


def draw(result: Mapping[str, Any], out: Path, fidelity: Mapping[str, Mapping[str, float]] | None = None) -> list[Path]:
    """Write ``stages.png`` and, where a fidelity is known, ``frontier.png`` into ``out``.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependency("matplotlib is needed for the plots; pip install 'diffplugin[bench]'") from None
    made = rows(result)
    if not made:
        return []
    conditions = result["conditions"]
    title = f"{conditions['model']}, {conditions['work']}, {conditions['steps']} steps"
    files = [out / "stages.png"]
    figure = Figure(figsize=(9, 1.5 + 0.4 * len(made)), layout="constrained")
    axes = figure.subplots()
    names = [row["contender"] for row in made][::-1]
    left = [0.0] * len(made)
    stages = list(dict.fromkeys(stage for row in made for stage in row["stages"]))
    for stage in stages:
        values = [row["stages"][stage].median if stage in row["stages"] else 0.0 for row in made][::-1]
        if max(values) < 0.005 * max(row["picture_s"].median for row in made):
            continue  # a bar that cannot be seen needs no colour
        axes.barh(names, values, left=left, label=stage)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axes.set_xlabel("seconds per picture")
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8)
    figure.savefig(files[0], dpi=120)
    trained = fidelity or {}
    points = []
    for row in made:
        known = trained.get(row["contender"], {}).get("psnr_reference_db") if trained else row["psnr_db"]
        if known is not None:
            points.append((row["contender"], row["picture_s"].median, known))
    if points:
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        for name, seconds, value in points:
            axes.scatter([seconds], [value])
            axes.annotate(name, (seconds, value), xytext=(4, 4), textcoords="offset points", fontsize=8)
        axes.set_xlabel("seconds per picture (left is faster)")
        what = "embedded trained model" if trained else "this run"
        axes.set_ylabel(f"PSNR to float32, dB, {what} (99: identical)")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
        files.append(out / "frontier.png")
        figure.savefig(files[-1], dpi=120)
    return files
