"""One Markdown row a card: what was measured of it at Stable Diffusion's widths, beside PyTorch and the floor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from diffplugin.bench.gpu_acceptance.trial import CARD, FULL, ORACLE
from diffplugin.bench.report import table

Record = Mapping[str, Any]
HEAD = (
    "card",
    "engine",
    "loop, ms",
    "step, ms",
    "PyTorch eager",
    "in a graph",
    "torch.compile",
    "floor, ms",
    "share of peak",
    "goldens, dB",
    "memory, GiB",
)
COMPILED = "torch.compile, one CUDA graph"
_WAYS = ("eager", "eager, one CUDA graph", COMPILED)


def find_part(result: Record, model: str, name: str, precision: str | None = None) -> Record:
    """The part's record; empty where it did not run."""
    for part in result["parts"]:
        if (part["model"], part["part"]) == (model, name) and precision in (None, part["precision"]):
            return part  # type: ignore[no-any-return]
    return {}


def pytorch(result: Record) -> dict[str, dict[str, Any]]:
    """What was measured of Stable Diffusion's networks in PyTorch, in all ways."""
    parts = [find_part(result, CARD, name) for name in ("networks", "compiled networks")]
    names = ("ways_ms", "step_ms", "loop_ms", "faults")
    return {name: {way: found for part in parts for way, found in part.get(name, {}).items()} for name in names}


def card_row(result: Record) -> str:
    """A table of one row: loop and step in ms of float16, PyTorch's and the floor as "loop / step"."""
    ours, ceiling = find_part(result, FULL, "measure"), find_part(result, CARD, "ceilings")
    peers = pytorch(result)
    loop = median(ours["loop_s"]) * 1e3 if ours.get("loop_s") else None
    step = ours["step_in_loop_s"] * 1e3 if "step_in_loop_s" in ours else None
    floor = ceiling.get("floor_loop_ms")
    bytes_ = ours.get("device_bytes")
    cells = (
        result["environment"].get("gpu", {}).get("name", "no GPU"),
        f"{result['conditions']['engine']} fp16",
        _number(loop, 1),
        _number(step, 2),
        *(_pair(peers.get("loop_ms", {}).get(way), peers.get("step_ms", {}).get(way)) for way in _WAYS),
        _pair(floor, ceiling.get("floor_step_ms")),
        f"{floor / loop:.0%}" if floor and loop else "–",
        " / ".join(_goldens(result)) or "–",
        _number(bytes_ / 2**30 if bytes_ is not None else None, 1),
    )
    return table(HEAD, [cells]) + "\n"


def _goldens(result: Record) -> Iterator[str]:
    for precision in ("fp32", "fp16"):
        found = find_part(result, ORACLE, "goldens", precision).get("picture_db")
        if found is not None:
            yield f"{precision} {found:.1f}"


def _pair(loop: float | None, step: float | None) -> str:
    return "–" if loop is None and step is None else f"{_number(loop, 1)} / {_number(step, 2)}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
