"""Results as Markdown: one row per contender, speed and fidelity side by side, with the conditions above."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from diffplugin.bench.stats import contended, round_ratios, spread, usable

Result = Mapping[str, Any]
GIB = 2**30
_STAGES = (
    "load",
    "prepare",
    "clip_vision",
    "tpb",
    "vae_encoder",
    "tiny_encoder",
    "scb",
    "unet",
    "unet_shallow",
    "sampler",
    "vae_decoder",
    "tiny_decoder",
    "head",
    "finish",
)


def contender_names(result: Result) -> list[str]:
    """In the order in which they were first run, failed ones included."""
    records = [*result.get("prepared", ()), *result["samples"]]
    return list(dict.fromkeys(record["contender"] for record in records))


def failures(result: Result) -> dict[str, str]:
    """Contender -> why it has no row, or fewer rounds."""
    return {r["contender"]: r["error"] for r in (*result.get("prepared", ()), *result["samples"]) if "error" in r}


def rows(result: Result) -> list[dict[str, Any]]:
    """Numbers of the main table; missing ones are None."""
    samples, made = result["samples"], []
    count = _count(result)
    for name in contender_names(result):
        good = usable(samples, name)
        first = [p["prepare_s"] for p in result.get("prepared", ()) if p["contender"] == name and "prepare_s" in p]
        if not good:
            continue
        every = [s for s in samples if s["contender"] == name and "wall_s" in s]
        errors = [max(s["unet_error"].values()) for s in every if s.get("unet_error")]
        psnr = [min(s["psnr_db"]) for s in every if s.get("psnr_db")]
        made.append(
            {
                "contender": name,
                "steps": good[0]["steps"],
                "rounds": len(every),
                "contended": sum(contended(s) for s in every),
                "picture_s": spread(s["wall_s"] / count for s in good),
                "ratio": spread(round_ratios(samples, name, result["conditions"]["baseline"])),
                "cpu_s": spread(s["cpu_s"] / count for s in good),
                "first_start_s": first[0] if first else None,
                "load_s": spread(s["load_s"] for s in good),
                "first_step_s": spread(s["first_step_s"] for s in good),
                "first_picture_s": spread(s.get("first_picture_s") for s in good),
                "peak_gib": max(s["peak_bytes"] for s in every) / GIB,
                "anonymous_gib": max(s["anonymous_bytes"] for s in every) / GIB,
                "unet_error": max(errors) if errors else None,
                "psnr_db": min(psnr) if psnr else None,
                "stages": {k: spread(s["stages_s"].get(k, 0.0) / count for s in good) for k in stage_names(good)},
            }
        )
    return made


def _count(result: Result) -> int:
    """Pictures per sample."""
    return int(str(result["conditions"]["work"]).partition("@")[2] or 1)


def stage_names(samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """Stages that took any time, in the order of a restoration."""
    return in_order(stage for s in samples for stage in s["stages_s"])


def in_order(stages: Iterable[str]) -> list[str]:
    """Each stage once, in the order of a restoration."""
    there = dict.fromkeys(stages)
    return [*(s for s in _STAGES if s in there), *(s for s in there if s not in _STAGES)]


def cell(value: Any, digits: int = 2) -> str:
    if value is None:
        return "–"
    if hasattr(value, "text"):
        return str(value.text(digits))
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column left, the others right."""
    rule = ["---", *("--:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))


def markdown(result: Result, fidelity: Mapping[str, Mapping[str, float]] | None = None) -> str:
    """The report; ``fidelity``: by contender, from :func:`diffplugin.bench.fidelity.summary`."""
    conditions, made = result["conditions"], rows(result)
    parts = [
        f"# {conditions['model']}, {conditions['work']}, {conditions['steps']} steps",
        environment_text(result["environment"]),
        f"Plugin {conditions['plugin']}, {conditions['threads'] or 'all'} threads, {conditions['rounds']} rounds, "
        f"contenders in turn, a process per sample. Medians (lowest–highest) of samples that nobody else disturbed; "
        f"ratios against {conditions['baseline']}, taken within each round.",
        _speed(made),
        "## Start and memory",
        _start(made),
        "## Fidelity",
        _fidelity(made, conditions, fidelity or {}),
        "## Stages, seconds per picture",
        _stages(made),
    ]
    if failed := failures(result):
        parts += ["## Not run", "\n".join(f"- {name}: not run: {reason}" for name, reason in failed.items())]
    return "\n\n".join(parts) + "\n"


def environment_text(found: Mapping[str, Any]) -> str:
    flags = ", ".join(found.get("cpu_flags", ())) or "none of interest"
    packages = ", ".join(
        f"{p} {found[p]}"
        for p in ("diffplugin", "numpy", "openvino", "onnxruntime", "ncnn", "torch", "nncf")
        if p in found
    )
    return (
        f"{found['cpu']}, {found['cores']} cores ({flags}), {found.get('memory_gib', '?')} GiB; {found['system']}; "
        f"Python {found['python']}, {packages}."
    )


def _speed(made: Sequence[Mapping[str, Any]]) -> str:
    head = ("contender", "steps", "picture, s", "ratio", "CPU-s", "rounds (contended)")
    lines = [
        (
            row["contender"],
            str(row["steps"]),
            cell(row["picture_s"]),
            cell(row["ratio"], 3),
            cell(row["cpu_s"], 1),
            f"{row['rounds']} ({row['contended']})",
        )
        for row in made
    ]
    return table(head, lines)


def _start(made: Sequence[Mapping[str, Any]]) -> str:
    head = (
        "contender",
        "first start, s",
        "load, s",
        "start to first step, s",
        "first picture, s",
        "peak GiB",
        "of it anonymous",
    )
    lines = [
        (
            row["contender"],
            *(cell(row[key], 1) for key in ("first_start_s", "load_s", "first_step_s", "first_picture_s")),
            cell(row["peak_gib"], 1),
            cell(row["anonymous_gib"], 1),
        )
        for row in made
    ]
    note = (
        "From the start of the process. First start: all engines loaded and run once, with empty caches if they were "
        "empty (compiling counts, plain exports do not). The rest are later starts."
    )
    return f"{note}\n\n{table(head, lines)}"


def _fidelity(
    made: Sequence[Mapping[str, Any]], conditions: Mapping[str, Any], trained: Mapping[str, Mapping[str, float]]
) -> str:
    reference = conditions["reference"] or "no float32 contender in this run"
    head: tuple[str, ...] = ("contender", "picture, s", "UNet rel. error", "PSNR to f32, dB")
    head += ("trained: PSNR to f32 (worst)", "trained: to truth, dB", "trained: GMSD") if trained else ()
    lines = []
    for row in made:
        error = row["unet_error"]
        line = [
            row["contender"],
            cell(row["picture_s"]),
            "–" if error is None else f"{error:.1e}",
            cell(row["psnr_db"], 1),
        ]
        if trained:
            own = trained.get(row["contender"])
            line += (
                [
                    f"{own['psnr_reference_db']:.1f} ({own['psnr_reference_min_db']:.1f})",
                    f"{own['psnr_truth_change_db']:+.2f}",
                    f"{own['gmsd_change']:+.1%}",
                ]
                if own
                else ["–"] * 3
            )
        lines.append(line)
    note = f"Against: {reference}. The UNet on the reference's own inputs, worst of its first, middle and last step."
    if trained:
        note += (
            " Trained: the embedded model, all plugins, degraded photographs; change against its own float32 result. "
            "GMSD is a perceptual distance, lower is better (LPIPS's weights cannot be shipped)."
        )
    return f"{note}\n\n{table(head, lines)}"


def _stages(made: Sequence[Mapping[str, Any]]) -> str:
    names = in_order(stage for row in made for stage in row["stages"])
    lines = [
        (row["contender"], *(f"{row['stages'][s].median:.2f}" if s in row["stages"] else "–" for s in names))
        for row in made
    ]
    return table(("contender", *names), lines)


def fidelity_markdown(result: Result) -> str:
    """``dp-bench fidelity`` as a table: contender by plugin."""
    conditions = result["conditions"]
    lines = []
    for row in result["fidelity"]:
        if "error" in row:
            lines.append((row["contender"], f"not run: {row['error']}", *["–"] * 5))
            continue
        lines.append(
            (
                row["contender"],
                row["plugin"],
                f"{row['psnr_reference_db']:.1f} ({row['psnr_reference_min_db']:.1f})",
                f"{row['psnr_input_db']:.2f} → {row['psnr_truth_db']:.2f}",
                f"{row['ssim_truth']:.3f}",
                f"{row['gmsd_input']:.4f} → {row['gmsd_truth']:.4f}",
            )
        )
    head = ("contender", "plugin", "PSNR to f32 (worst), dB", "PSNR to truth, dB", "SSIM", "GMSD")
    return (
        "\n\n".join(
            (
                f"# Fidelity: {conditions['model']}, {conditions['steps']} steps, {conditions['side']} px",
                environment_text(result["environment"]),
                f"Photographs: {', '.join(conditions['photos'])}, degraded for each plugin; "
                f"f32 is {conditions['reference']}. "
                "GMSD (Xue et al., 2014) is a perceptual distance, lower is better; LPIPS's weights cannot be shipped.",
                table(head, [line[:6] for line in lines]),
            )
        )
        + "\n"
    )
