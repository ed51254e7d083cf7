"""What came of all parts: JSON, one row per configuration, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffplugin.bench.gpu_acceptance.bars import bars, failures, not_run
from diffplugin.bench.gpu_acceptance.card_row import card_row, find_part, pytorch
from diffplugin.bench.gpu_acceptance.trial import CARD
from diffplugin.bench.report import in_order, table
from diffplugin.bench.stats import spread

Record = Mapping[str, Any]
GIB = 2**30
_WAYS = {
    "graph": "one CUDA graph per picture",
    "enqueues": "the same as plain enqueues",
    "host": "graph by graph from the host",
    "loop": "",
}


def rows(result: Record) -> list[dict[str, Any]]:
    """One per model, program and way to run."""
    made = []
    for part in result["parts"]:
        for way, seconds in part.get("picture_s", {}).items():
            ours = part["part"] == "measure"
            program = f"diffplugin {part['engine']} {part['precision']}" if ours else f"{part['part']} {_dtype(part)}"
            stages = part.get("stages_s", {})
            unet = stages.get("step", stages.get("unet"))
            made.append(
                {
                    "model": part["model"],
                    "program": ", ".join(filter(None, (program, _WAYS[way]))),
                    "part": part["part"],
                    "picture_s": spread(seconds),
                    "step_s": unet / part["steps"] if unet else None,
                    "cold_s": _cold(result, part) if ours else part["first_picture_s"],
                    "load_s": part["load_s"],
                    "first_picture_s": part["first_picture_s"],
                    "second_s": part["second_restore_s"],
                    "device_gib": part["device_bytes"] / GIB if part.get("device_bytes") is not None else None,
                    "psnr_db": _psnr(result, part, ours),
                }
            )
    return made


def _dtype(part: Record) -> str:
    return "float16" if part["device"] == "cuda" else "float32"


def _cold(result: Record, part: Record) -> float | None:
    """First picture of the first process after the build."""
    found = [p for p in result["parts"] if (p["model"], p["part"]) == (part["model"], "cold start")]
    return found[0].get("first_picture_s") if found else None


def _psnr(result: Record, part: Record, ours: bool) -> float | None:
    """Of the picture: ours against float32 on the processor, worst plugin; a peer's against ours."""
    if not ours:
        return part.get("psnr_to_ours_db")
    found = [p["psnr_db"] for p in result["parts"] if p["model"] == part["model"] and p.get("psnr_db")]
    return min(found[0].values()) if found else None


def markdown(result: Record) -> str:
    """The report."""
    conditions = result["conditions"]
    failed = failures(result)
    text = [
        f"# GPU acceptance: {conditions['engine']} {conditions['precision']}",
        _told(result["environment"]),
        *([result["note"]] if "note" in result else []),
        f"{conditions['width']}x{conditions['height']} px, {conditions['steps']} steps, medians (lowest–highest) of "
        f"{conditions['rounds']} rounds in turn. Step: the UNet with the sampler's arithmetic where it is one engine, "
        "waited for. Starts: from the start of a process to its first picture; cold is the first one after the build, "
        "and a peer has one alone. Second: the picture after it. Memory: everything that the device gave away while "
        "the part ran. PSNR: ours against float32 on the processor (worst plugin); a peer's against ours.",
        _speed(rows(result)),
        *_card(result),
        "## Seconds per picture and graph, each waited for",
        _stages(result["parts"]),
        *_kernels(result["parts"]),
        "## Engines",
        _engines(result["parts"]),
        "## Checks",
        "\n".join(_checks(result["parts"])),
        *_bars(result),
        "## Verdict",
        verdict(result) + ":\n\n" * bool(failed) + "\n".join(f"- {line}" for line in failed) + "." * (not failed),
    ]
    return "\n\n".join(text) + "\n"


def verdict(result: Record) -> str:
    """Whether it is accepted, of which parts, and how many were not run beside them."""
    failed, missing = failures(result), not_run(result)
    told = f"Not accepted, {len(failed)} faults" if failed else "Accepted"
    if only := result["conditions"].get("only"):
        told += f", of {only} alone"
    return told + (f" (not run, and not required: {len(missing)} parts)" if missing else "")


def _bars(result: Record) -> list[str]:
    """Requirements of speed, and what did not run and is not required."""
    words = {True: "passed", False: "**failed**", None: "not judged"}
    lines = [f"- {words[bar.ok]}: {bar.name}: {bar.found}" for bar in bars(result)]
    text = ["## Required speed", "\n".join(lines)] if lines else []
    missing = not_run(result)
    return text + (["## Not run, and not required", "\n".join(f"- {line}" for line in missing)] if missing else [])


def _card(result: Record) -> list[str]:
    """The card's row and the networks in PyTorch, of a prepared run."""
    if not any(part["model"] == CARD for part in result["parts"]):
        return []
    ceiling = find_part(result, CARD, "ceilings")
    peers = pytorch(result)
    text = [
        "## At Stable Diffusion's widths, float16",
        "Loop: encoder, SCB, all steps and decoder, from upload to download; a step is what more steps add to it. "
        "PyTorch's networks have no sampler between them; floor: their operations at this card's own speed of a large "
        "product. Pairs are loop / step.",
        card_row(result),
    ]
    if "tflops" in ceiling:
        text.append(f"{ceiling['tflops']:.0f} TFLOP/s of a large product, {ceiling['gbs']:.0f} GB/s of a large copy.")
    ways = peers["ways_ms"]
    names = in_order(name for found in ways.values() for name in found)
    lines = [
        (way, *(_number(found[name]["median"], 3) if name in found else "–" for name in names))
        for way, found in ways.items()
    ]
    if lines:
        text.append(table(("PyTorch, ms", *names), lines))
    text += [f"Not run: {what}: {why}" for what, why in peers["faults"].items()]
    return text


def _told(found: Record) -> str:
    gpu = found.get("gpu") or {}
    device = (
        f"{gpu['name']} ({gpu['capability']}, {gpu['memory'] / GIB:.0f} GiB), CUDA driver {gpu['driver']}, runtime "
        f"{gpu['runtime']}; "
        if gpu
        else "No GPU: a rehearsal. "
    )
    packages = ", ".join(f"{name} {found[name]}" for name in found if name in _PACKAGES)
    return f"{device}{found['cpu']}, {found['cores']} cores; {found['system']}; Python {found['python']}, {packages}."


_PACKAGES = ("diffplugin", "numpy", "onnxruntime", "torch", "tensorrt", "tensorrt-rtx", "cuda-python")


def _speed(made: Sequence[Record]) -> str:
    head: tuple[str, ...] = (
        "model",
        "program",
        "picture, s",
        "against eager",
        "step, ms",
        "cold start, s",
        "load, s",
        "warm start, s",
    )
    head += ("second, s", "device GiB", "PSNR, dB")
    lines = []
    for row in made:
        eager = [r["picture_s"].median for r in made if (r["model"], r["part"]) == (row["model"], "pytorch eager")]
        lines.append(
            (
                row["model"],
                row["program"],
                row["picture_s"].text(3),
                _number(row["picture_s"].median / eager[0] if eager else None, 2),
                _number(row["step_s"] * 1000 if row["step_s"] else None, 2),
                *(_number(row[name], 2) for name in ("cold_s", "load_s", "first_picture_s", "second_s", "device_gib")),
                _number(row["psnr_db"], 1),
            )
        )
    return table(head, lines) if lines else "Nothing was measured."


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _stages(parts: Sequence[Record]) -> str:
    timed = [part for part in parts if part.get("stages_s")]
    names = in_order(name for part in timed for name in part["stages_s"])
    lines = [(f"{p['model']}, {p['part']}", *(_number(p["stages_s"].get(name), 4) for name in names)) for p in timed]
    return table(("part", *names), lines) if lines else "Nothing was measured."


def _kernels(parts: Sequence[Record]) -> Iterator[str]:
    """The kernels of a picture, of a profile."""
    for part in parts:
        if found := part.get("kernels"):
            yield f"## Kernels of a picture, {part['model']}"
            lines = [(f"`{k['name']}`", str(k["calls"]), _number(k["ms"], 3)) for k in found]
            yield table(("kernel", "calls", "ms"), lines)


def _engines(parts: Sequence[Record]) -> str:
    """What the builder reported: size, and what it fused."""
    lines = []
    for part in parts:
        for engine in part.get("engines", ()):
            report = engine["report"]
            lines.append(
                (
                    f"{part['model']}, {engine['graph']}",
                    engine["shapes"] or "–",
                    ", ".join(engine["devices"]),
                    f"{engine['mib']:.1f}",
                    _fused(report.get("attention")),
                    _fused(report.get("group_norm_silu")),
                )
            )
    head = ("engine", "for", "GPU", "MiB", "attentions fused", "GroupNorm + SiLU fused")
    return table(head, lines) if lines else "None was built: the engine loads ONNX."


def _fused(counts: Record | None) -> str:
    return f"{counts['fused']} of {counts['of']}" if counts else "–"


def _checks(parts: Sequence[Record]) -> Iterator[str]:
    for part in parts:
        for c in part.get("checks", ()):
            yield f"- {'passed' if c['ok'] else '**failed**'}: {part['model']}, {c['name']}: {c['found']}"
        if "skipped" in part:
            yield f"- not applicable: {part['model']}, {part['part']}: {part['skipped']}"
