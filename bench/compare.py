"""What changed between two results beyond noise."""

from __future__ import annotations

from collections.abc import Iterator

from diffplugin.bench.report import Result, contender_names, table
from diffplugin.bench.stats import LEAST_CHANGE, Change, chance, round_ratios, spread, usable, verdict

_COMPARED = {"picture_s": "wall_s", "cpu_s": "cpu_s", "first_step_s": "first_step_s"}


def changes(before: Result, after: Result) -> list[Change]:
    """Numbers that both results have. Ratios where both were taken against the same baseline."""
    made = []
    same_base = before["conditions"]["baseline"] == after["conditions"]["baseline"]
    for name in [n for n in contender_names(before) if n in contender_names(after)]:
        pairs = {
            label: [spread(s.get(key) for s in usable(r["samples"], name)) for r in (before, after)]
            for label, key in _COMPARED.items()
        }
        if same_base and name != before["conditions"]["baseline"]:
            base = before["conditions"]["baseline"]
            pairs["ratio"] = [spread(round_ratios(r["samples"], name, base)) for r in (before, after)]
        for label, (a, b) in pairs.items():
            if a is not None and b is not None:
                made.append(Change(name, label, a, b, verdict(a, b)))
    return made


def comparison(before: Result, after: Result) -> str:
    """What changed beyond noise, for people; differing conditions come first."""
    differing = list(_differing(before, after))
    found = changes(before, after)
    lines = [(c.contender, c.measure, c.before.text(3), c.after.text(3), f"{c.ratio:.3f}", c.verdict) for c in found]
    least = min((min(c.before.count, c.after.count) for c in found), default=0)
    noise = (
        "A change is called where the ranges of the clean samples do not overlap and the medians differ by more than "
        f"{LEAST_CHANGE:.0%}; under 3 samples nothing is called (unclear)."
    )
    if least:
        noise += f" With {least} and {least} samples chance alone parts them in {chance(least, least):.1%} of cases."
    parts = [*(["Conditions differ: " + "; ".join(differing)] if differing else []), noise]
    parts.append(table(("contender", "measure", "before", "after", "after/before", "verdict"), lines))
    return "\n\n".join(parts) + "\n"


def _differing(before: Result, after: Result) -> Iterator[str]:
    for part in ("conditions", "environment"):
        for key in sorted({*before[part], *after[part]}):
            if before[part].get(key) != after[part].get(key):
                yield f"{key}: {before[part].get(key)} → {after[part].get(key)}"
