"""The config files of this project's own networks: the diagnosis and the change head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffplugin.export.checkpoints.settings import MAX_LEVELS, MAX_WIDTH, Setting, name, number, of_each, whole, widths
from diffplugin.spec import DIAGNOSES

# Of each task an id and the probability above which it is restored; the levels of the encoder.
DIAGNOSIS = {
    "tasks": Setting([], of_each(DIAGNOSES, name)),
    "thresholds": Setting([0.5] * DIAGNOSES, of_each(DIAGNOSES, number(0, 1))),
    "widths": Setting([16, 32, 64, 128], widths),
    "blocks": Setting([1, 1, 2], of_each(MAX_LEVELS, whole(0, 16), least=0)),
    "statistics": Setting(0, whole(0, MAX_WIDTH)),
    "hidden": Setting(128, whole(1, MAX_WIDTH)),
}
HEAD = {
    "latent_channels": Setting(4, whole(1, 64)),
    "factor": Setting(8, whole(2, 64)),
    "widths": Setting([32, 64, 64], of_each(3, whole(1, MAX_WIDTH))),
    "blocks": Setting([2, 1, 2], of_each(3, whole(0, 64))),
}


def check_diagnosis(config: Mapping[str, Any]) -> list[str]:
    """What no single setting tells: faults, one line each."""
    tasks, levels = config["tasks"], len(config["widths"]) - 1
    faults = (
        []
        if len(set(tasks)) == DIAGNOSES
        else [f"tasks are {', '.join(tasks) or 'none'}, expected {DIAGNOSES} different ones"]
    )
    if len(config["blocks"]) != levels:
        faults.append(f"blocks has {len(config['blocks'])} entries, widths has {levels} after the first")
    if config["statistics"] and levels < 2:
        faults.append(f"statistics is {config['statistics']}, which needs 2 levels, widths has {levels}")
    return faults
