"""What a card has to reach to be accepted, where each number comes from, and what came of it.

The bars are the project's own requirements, set before anything ran on a GPU, except where another origin is given.
Speed is required of an H100, and of an H200, whose arithmetic is the same; on another card it is told and not judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from diffplugin.bench.gpu_acceptance.card_row import COMPILED, find_part, pytorch
from diffplugin.bench.gpu_acceptance.trial import CARD, EMBEDDED, FULL
from diffplugin.export.parity import PHOTO_BUDGET

Record = Mapping[str, Any]
# The embedded model's picture in float16. On a processor with every result rounded (export.cuda.EmulatedCuda) the eight
# tasks reach 62.0 to 69.9 dB at 512x512, with one step and with twenty (docs/gpus.md).
EMBEDDED_FP16_DB = 60.0
STEP_MS, PICTURE_MS = 4.0, 120.0  # Stable Diffusion 1.4's widths, float16, under CONDITIONS
CONDITIONS = {"width": 512, "height": 512, "steps": 20}
CARDS = ("H100", "H200")
# Parts without which nothing is known of the engine. The others measure what stands beside it, and what they need
# (PyTorch with CUDA, a compiler, nvcc) may not be there: they are told as not run.
REQUIRED = frozenset({"build", "operators", "goldens", "cold start", "replay", "fidelity", "draw", "measure"})


@dataclass(frozen=True)
class Bar:
    """``ok``: None where it is not judged; ``found`` then has the reason."""

    name: str
    found: str
    ok: bool | None


def photo_budget(model: str, precision: str) -> float:
    """Least PSNR in dB of a picture against float32 on the processor."""
    if (model, precision) == (EMBEDDED, "fp16"):
        return EMBEDDED_FP16_DB
    return PHOTO_BUDGET[precision]


def bars(result: Record) -> Iterator[Bar]:
    """The requirements of speed; empty if Stable Diffusion's widths were not to be measured."""
    ours = find_part(result, FULL, "measure")
    if not ours or "error" in ours:
        return
    picture = ours.get("picture_s", {}).get("graph")
    picture_ms = median(picture) * 1e3 if picture else None
    loop_ms = median(ours["loop_s"]) * 1e3 if ours.get("loop_s") else None
    step_ms = ours["step_in_loop_s"] * 1e3 if "step_in_loop_s" in ours else None
    reason = _not_judged(result)
    yield _within("a step", step_ms, STEP_MS, reason)
    yield _within("a picture", picture_ms, PICTURE_MS, reason)
    yield from _below_compile(result, loop_ms, step_ms, picture_ms)


def _not_judged(result: Record) -> str | None:
    name = result["environment"].get("gpu", {}).get("name", "no GPU")
    if not any(card in name for card in CARDS):
        return f"required of {' and '.join(CARDS)}, and this is {name}"
    other = [
        f"{key} {result['conditions'][key]}" for key, value in CONDITIONS.items() if result["conditions"][key] != value
    ]
    return f"required at 512x512 and 20 steps, not at {', '.join(other)}" if other else None


def _within(name: str, found: float | None, most: float, reason: str | None) -> Bar:
    told = "not measured: no CUDA graph" if found is None else f"{found:.2f} ms, at most {most:g}"
    ok = None if reason else found is not None and found <= most
    return Bar(f"{name} at Stable Diffusion's widths", f"{told}: {reason}" if reason else told, ok)


def _below_compile(
    result: Record, loop_ms: float | None, step_ms: float | None, picture_ms: float | None
) -> Iterator[Bar]:
    """Ours against torch.compile, in the same run. With a prepared folder its loop is the sum of its networks, without
    a sampler; else it is its whole picture."""
    peers = pytorch(result)
    found = {
        "step": (step_ms, peers["step_ms"].get(COMPILED)),
        "loop": (loop_ms, peers["loop_ms"].get(COMPILED)),
    }
    whole = find_part(result, FULL, "torch.compile").get("picture_s", {}).get("loop")
    if whole:
        found["picture"] = (picture_ms, median(whole) * 1e3)
    compared = {name: pair for name, pair in found.items() if None not in pair}
    for name, (ours, theirs) in compared.items():
        assert ours is not None and theirs is not None
        yield Bar(f"below torch.compile, {name}", f"{ours:.2f} ms, torch.compile {theirs:.2f}", ours < theirs)
    if not compared:
        yield Bar("below torch.compile", f"torch.compile was not run: {_why(result, peers['faults'])}", None)


def _why(result: Record, faults: Record) -> str:
    parts = (find_part(result, CARD, "compiled networks"), find_part(result, FULL, "torch.compile"))
    told = next((part[key] for part in parts for key in ("error", "skipped") if key in part), None)
    return told or next((why for what, why in faults.items() if what.startswith(COMPILED)), "left out")


def failures(result: Record) -> list[str]:
    """Every check and bar that failed, and every required part that did not run, one line each."""
    lines = [line for part, line in _unrun(result) if part in REQUIRED]
    for part in result["parts"]:
        where = f"{part['model']}, {part['part']}"
        lines += [f"{where}, {c['name']}: {c['found']}" for c in part.get("checks", ()) if not c["ok"]]
    return lines + [f"{bar.name}: {bar.found}" for bar in bars(result) if bar.ok is False]


def not_run(result: Record) -> list[str]:
    """Parts that did not run and are not required, one line each."""
    return [line for part, line in _unrun(result) if part not in REQUIRED]


def _unrun(result: Record) -> Iterator[tuple[str, str]]:
    for part in result["parts"]:
        if "error" in part:
            yield part["part"], f"{part['model']}, {part['part']}: not run: {part['error']}"
