"""How true the results of a trained model stay: to its own float32 picture, and to the photograph behind it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffplugin.bench.contenders import REFERENCES
from diffplugin.bench.environment import environment
from diffplugin.bench.measure import FORMAT, Log, slug, worker
from diffplugin.bench.models import Model
from diffplugin.bench.work import Pixels, clean_photos, degraded, fitted
from diffplugin.bundle import open_bundle
from diffplugin.errors import RequestError
from diffplugin.export.measures import gmsd, ssim
from diffplugin.files import write_text

FIDELITY = "fidelity.json"


def measure(
    model: Model,
    contenders: Sequence[str],
    out: Path,
    *,
    steps: int,
    side: int,
    photos: int | None = None,
    threads: int | None = None,
    timeout: float = 3600,
    log: Log = print,
) -> dict[str, Any]:
    """Restore degraded photographs with every plugin of the bundle and every contender; ``out/fidelity.json``.

    The reference, at exact quality and float32, runs first, asked for or not.

    Args:
        side: of the square pictures, px.
        photos: how many of the photographs at most.
    """
    reference = next((name for name in REFERENCES if name in contenders), REFERENCES[0])
    names = [reference, *(name for name in contenders if name != reference)]
    scratch = out / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / ".gitignore").write_text("*\n", encoding="utf-8")
    truth = {name: fitted(photo, side, side) for name, photo in list(clean_photos())[:photos]}
    plugins = open_bundle(model.bundle).manifest.plugins
    cases = [(plugin, name) for plugin in plugins for name in truth]
    bad = {}
    for i, (plugin, name) in enumerate(cases):
        bad[plugin, name] = degraded(truth[name], plugin, 7000 + i % len(truth))
        Image.fromarray(bad[plugin, name]).save(scratch / f"{plugin}-{name}.png")
    rows: list[dict[str, Any]] = []
    expected: dict[tuple[str, str], Pixels] = {}
    for contender in names:
        targets = {case: scratch / f"{slug(contender)}-{case[0]}-{case[1]}.png" for case in cases}
        pictures = [
            {"source": str(scratch / f"{plugin}-{name}.png"), "plugin": plugin, "target": str(targets[plugin, name])}
            for plugin, name in cases
        ]
        trial = {
            "kind": "restore",
            "contender": contender,
            "model": model.spec,
            "steps": steps,
            "threads": threads,
            "pictures": pictures,
        }
        made = worker(trial, timeout)
        if "error" in made:
            if contender == reference:
                raise RequestError(f"the reference {reference!r} cannot run: {made['error']}")
            rows.append({"contender": contender, "error": made["error"]})
            log(f"{contender}: not run: {made['error']}")
            continue
        found = {case: _read(path) for case, path in targets.items()}
        expected = expected or found
        rows += [
            _row(contender, plugin, cases, found=found, expected=expected, truth=truth, bad=bad) for plugin in plugins
        ]
        log(
            f"{contender}: "
            + "; ".join(f"{r['plugin']} {r['psnr_reference_db']:.1f} dB" for r in rows[-len(plugins) :])
        )
    result = {
        "format": FORMAT,
        "conditions": {
            "model": model.title,
            "steps": steps,
            "side": side,
            "photos": list(truth),
            "reference": reference,
        },
        "environment": environment(),
        "fidelity": rows,
    }
    write_text(out / FIDELITY, json.dumps(result, indent=1) + "\n")
    return result


def _read(path: Path) -> Pixels:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _row(
    contender: str,
    plugin: str,
    cases: Sequence[tuple[str, str]],
    *,
    found: dict[tuple[str, str], Pixels],
    expected: dict[tuple[str, str], Pixels],
    truth: dict[str, Pixels],
    bad: dict[tuple[str, str], Pixels],
) -> dict[str, Any]:
    """Means over the photographs; ``psnr_reference_min_db`` is the worst of them."""
    from diffplugin.export.measures import psnr

    own = [case for case in cases if case[0] == plugin]
    kept = [psnr(found[case], expected[case]) for case in own]
    means = {
        "psnr_truth_db": [psnr(found[case], truth[case[1]]) for case in own],
        "ssim_truth": [ssim(found[case], truth[case[1]]) for case in own],
        "gmsd_truth": [gmsd(found[case], truth[case[1]]) for case in own],
        "psnr_input_db": [psnr(bad[case], truth[case[1]]) for case in own],
        "gmsd_input": [gmsd(bad[case], truth[case[1]]) for case in own],
        "psnr_reference_db": kept,
    }
    values = {name: round(float(np.mean(numbers)), 4) for name, numbers in means.items()}
    return {"contender": contender, "plugin": plugin, "psnr_reference_min_db": round(min(kept), 4)} | values


def summary(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """By contender, over all plugins: what a row of a speed report shows.

    ``psnr_reference_db`` mean and ``psnr_reference_min_db``; ``psnr_truth_change_db`` and ``gmsd_change`` (relative)
    against the reference's own.
    """
    rows = [row for row in result["fidelity"] if "error" not in row]

    def mean(contender: str, key: str) -> float:
        return float(np.mean([row[key] for row in rows if row["contender"] == contender]))

    reference = result["conditions"]["reference"]
    return {
        name: {
            "psnr_reference_db": mean(name, "psnr_reference_db"),
            "psnr_reference_min_db": min(r["psnr_reference_min_db"] for r in rows if r["contender"] == name),
            "psnr_truth_change_db": mean(name, "psnr_truth_db") - mean(reference, "psnr_truth_db"),
            "gmsd_change": mean(name, "gmsd_truth") / mean(reference, "gmsd_truth") - 1,
        }
        for name in dict.fromkeys(row["contender"] for row in rows)
    }


def read_fidelity(path: Path) -> dict[str, Any]:
    """Raises:
    RequestError: no result of ``dp-bench fidelity`` there.
    """
    file = path / FIDELITY if path.is_dir() else path
    try:
        result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{file}: cannot be read ({error})") from None
    if not isinstance(result, dict) or "fidelity" not in result or "conditions" not in result:
        raise RequestError(f"{file}: no result of dp-bench fidelity")
    return result
