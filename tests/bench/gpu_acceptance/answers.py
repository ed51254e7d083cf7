"""What the parts of an acceptance answer, for tests of the coordinator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from diffplugin.bench.gpu_acceptance.trial import Trial

MEASURED = {
    "picture_s": {"graph": [0.5, 0.7, 0.6], "host": [1.0, 1.0, 1.0]},
    "stages_s": {"step": 0.4, "scb": 0.1},
    "steps": 20,
    "load_s": 1.0,
    "first_picture_s": 3.0,
    "first_restore_s": 2.0,
    "second_restore_s": 0.6,
    "device_bytes": 3 * 2**30,
}
EAGER = MEASURED | {
    "picture_s": {"loop": [2.0, 2.0, 2.0]},
    "stages_s": {"unet": 1.6},
    "device": "cuda",
    "psnr_to_ours_db": 41.0,
}
GOOD: dict[str, dict[str, Any]] = {
    "build": {"engines": []},
    "cold start": {"load_s": 2.0, "first_picture_s": 9.0},
    "goldens": {"checks": [{"name": "tensors", "ok": True, "found": "eps 1e-3 <= 0.01"}]},
    "replay": {"checks": [{"name": "replay", "ok": True, "found": "0 differ"}]},
    "fidelity": {"psnr_db": {"derain": 44.0, "dehaze": 43.0}, "checks": []},
    "measure": MEASURED,
    "pytorch eager": EAGER,
    "torch.compile": {"error": "BackendCompilerFailed: no compiler"},
}
HEAD: dict[str, Any] = {
    "environment": {"cpu": "some", "cores": 2, "system": "Linux", "python": "3", "numpy": "2"},
    "conditions": {"engine": "x", "precision": "fp16", "width": 64, "height": 64, "steps": 2, "rounds": 3},
}


def trials(*parts: tuple[str, str], out: Path) -> list[Trial]:
    one = Trial(part="", model="", engine="x", precision="fp16", out=str(out), width=64, height=64, steps=2, rounds=3)
    return [replace(one, model=model, part=part) for model, part in parts]
