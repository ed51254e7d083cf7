"""Reports of dp-eval on disk: tables, numbers and bar charts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffplugin.plugins.train import layout


def write_table(out: Path, name: str, table: str, values: Any) -> None:
    """``name.md`` and ``name.json``."""
    layout.write_lines(out / f"{name}.md", table + "\n")
    layout.write_lines(out / f"{name}.json", json.dumps(values, indent=1) + "\n")


def selection(path: Path, found: Mapping[str, Mapping[str, float]], paper: Mapping[str, Mapping[str, float]]) -> None:
    """ZTA by kind of request, beside the paper's."""
    kinds = list(found)
    theirs = [paper.get(kind, {}).get("ZTA", 0.0) for kind in kinds]
    bars(path, kinds, {"this model": [found[kind]["ZTA"] for kind in kinds], "paper": theirs}, "ZTA")


def bars(path: Path, names: Sequence[str], series: Mapping[str, Sequence[float]], label: str) -> None:
    """Grouped bars as an SVG file."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(max(6, 0.9 * len(names)), 4), layout="constrained")
    width = 0.8 / len(series)
    for k, (name, values) in enumerate(series.items()):
        axes.bar([i + (k - len(series) / 2 + 0.5) * width for i in range(len(names))], values, width, label=name)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_ylabel(label)
    axes.legend()
    figure.savefig(path)
    plt.close(figure)
