"""Megapixel rows as Markdown: time, memory, quality and the gap to the floor in one row, and what makes the gap."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from diffplugin.bench.contenders import CONTENDERS
from diffplugin.bench.megapixels import graph_name
from diffplugin.bench.report import GIB, cell, environment_text, table
from diffplugin.bench.stats import spread, usable

Result = Mapping[str, Any]


def best_rate(result: Result, sample: Mapping[str, Any]) -> float | None:
    """Multiplications with an addition a second and core, of the sample's engine; None: not measured."""
    contender = CONTENDERS.get(sample["contender"])
    found = result["floor"]["rates"].get(f"{sample.get('engine')} {contender.precision}") if contender else None
    return max(found.values()) if found else None


def macs(result: Result, sample: Mapping[str, Any]) -> int:
    """Of all graphs that the sample ran."""
    known: Mapping[str, int] = result["floor"]["macs"]
    return sum(known[graph_name(entry)] * int(entry["runs"]) for entry in sample["runs"])


def rows(result: Result) -> list[dict[str, Any]]:
    """Numbers of the main table, by photo and contender; missing ones are None."""
    made = []
    for work in result["conditions"]["works"]:
        here = [s for s in result["samples"] if s["work"] == work]
        for name in dict.fromkeys(s["contender"] for s in here):
            good = usable(here, name)
            if not good:
                continue
            rate, done = best_rate(result, good[0]), macs(result, good[0])
            cpu = spread(s["cpu_s"] for s in good)
            floor = done / rate if rate else None
            made.append(
                {
                    "work": work,
                    "contender": name,
                    "cpu_s": cpu,
                    "wall_s": spread(s["wall_s"] for s in good),
                    "peak_gib": max(s["peak_bytes"] for s in good) / GIB,
                    "psnr_exact_db": good[0].get("psnr_exact_db"),
                    "psnr_db": good[0].get("psnr_db"),
                    "psnr_input_db": good[0].get("psnr_input_db"),
                    "gmac": done / 1e9 if done else None,
                    "floor_s": floor,
                    "gap": cpu.median / floor if cpu and floor else None,
                }
            )
    return made


def parts(result: Result, work: str, contender: str) -> list[dict[str, Any]]:
    """What a contender's processor seconds are made of: each kind of graph with its own floor, and the rest."""
    good = usable([s for s in result["samples"] if s["work"] == work], contender)
    good = [s for s in good if s["runs"]]
    if not good:
        return []
    rate = best_rate(result, good[0])
    made = []
    for kind in dict.fromkeys(entry["key"] for s in good for entry in s["runs"]):
        own = [[entry for entry in s["runs"] if entry["key"] == kind] for s in good]
        done = sum(result["floor"]["macs"][graph_name(entry)] * entry["runs"] for entry in own[0])
        cpu = statistics.median(sum(entry["cpu_s"] for entry in entries) for entries in own)
        made.append(
            {
                "part": kind,
                "runs": sum(entry["runs"] for entry in own[0]),
                "gmac": done / 1e9,
                "cpu_s": cpu,
                "floor_s": done / rate if rate else None,
            }
        )
    rest = statistics.median(s["cpu_s"] for s in good) - sum(part["cpu_s"] for part in made)
    return [*made, {"part": "the rest", "runs": None, "gmac": None, "cpu_s": rest, "floor_s": None}]


def markdown(result: Result) -> str:
    conditions = result["conditions"]
    photo = conditions["photo"]
    source = f"The photo is {photo}." if photo else "A freely licensed photo, mirrored beyond a megapixel and degraded."
    intro = (
        f"Plugin {conditions['plugin']}, its card's steps, {conditions['threads'] or 'all'} threads, "
        f"{conditions['rounds']} rounds in turn, medians. {source} From file to file in a process of its own, start, "
        "reading and writing included. PSNR in dB to the exact path in float32, and to the truth."
    )
    sections = [
        f"# Megapixels: {conditions['model']}, {conditions['plugin']}",
        environment_text(result["environment"]),
        intro,
        _main(rows(result)),
        "## Floor",
        _rates(result),
        _parts(result),
    ]
    if failed := [s for s in result["samples"] if "error" in s]:
        lines = dict.fromkeys(f"- {s['work']}, {s['contender']}: {s['error']}" for s in failed)
        sections += ["## Not run", "\n".join(lines)]
    return "\n\n".join(sections) + "\n"


def _main(made: Sequence[Mapping[str, Any]]) -> str:
    head = ("photo", "contender", "CPU s", "wall s", "peak GiB", "to exact", "to truth", "GMAC", "floor, CPU s", "gap")
    lines = []
    for row in made:
        truth = f"{row['psnr_input_db']:.2f} → {row['psnr_db']:.2f}" if row["psnr_db"] is not None else "–"
        lines.append(
            (
                row["work"],
                row["contender"],
                cell(row["cpu_s"]),
                cell(row["wall_s"]),
                cell(row["peak_gib"]),
                cell(row["psnr_exact_db"], 1),
                truth,
                cell(row["gmac"], 1),
                cell(row["floor_s"]),
                cell(row["gap"], 1),
            )
        )
    return table(head, lines)


def _rates(result: Result) -> str:
    """Rates by engine and width."""
    found: Mapping[str, Mapping[str, float]] = result["floor"]["rates"]
    if not found:
        return "Not measured: no engine here whose convolutions are measured."
    widths = list(dict.fromkeys(str(width) for by_width in found.values() for width in by_width))
    lines = [
        (name, *(f"{1e-9 * {str(w): r for w, r in by_width.items()}[width]:.0f}" for width in widths))
        for name, by_width in found.items()
    ]
    note = (
        "A plain 3x3 convolution of the graphs' own widths through the same engine, in a size that stays in the cache, "
        "one core, GMAC/s. The floor is the picture's multiplications (convolutions, products, attention) at the best "
        "of them; the gap is CPU seconds over the floor."
    )
    return f"{note}\n\n{table(('engine', *(f'{width} channels' for width in widths)), lines)}"


def _parts(result: Result) -> str:
    lines = []
    for row in rows(result):
        if row["floor_s"] is None:
            continue
        for part in parts(result, row["work"], row["contender"]):
            floor = part["floor_s"]
            lines.append(
                (
                    row["work"],
                    row["contender"],
                    part["part"],
                    cell(part["runs"]),
                    cell(part["gmac"]),
                    cell(part["cpu_s"]),
                    cell(floor),
                    cell(part["cpu_s"] / floor if floor else None, 1),
                )
            )
    head = ("photo", "contender", "part", "runs", "GMAC", "CPU s", "floor, CPU s", "gap")
    return "By graph; the rest is start, loading, reading, writing and everything between graphs.\n\n" + table(
        head, lines
    )
