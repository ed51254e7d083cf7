"""Medians, ratios round by round, what contention leaves out, and when a change is called one."""

from __future__ import annotations

from typing import Any

import pytest

from diffplugin.bench.compare import changes, comparison
from diffplugin.bench.report import markdown, rows
from diffplugin.bench.stats import Spread, round_ratios, spread, usable, verdict
from diffplugin.bench.watch import Sample, memory, shares


def sample(contender: str, round_: int, wall: float, *, contended: bool = False) -> dict[str, Any]:
    return {
        "contender": contender,
        "round": round_,
        "steps": 20,
        "wall_s": wall,
        "cpu_s": 2 * wall,
        "load_s": 0.5,
        "first_step_s": 1.0,
        "peak_bytes": 2**30,
        "anonymous_bytes": 2**29,
        "stages_s": {"unet": 0.8 * wall, "vae_decoder": 0.2 * wall},
        "contention": {"others": 0.0, "steal": 0.0, "contended": contended},
    }


def result(walls: dict[str, list[float]], **conditions: Any) -> dict[str, Any]:
    samples = [sample(name, i, wall) for name, times in walls.items() for i, wall in enumerate(times)]
    about = {"model": "m", "work": "64x64", "steps": 20, "plugin": "derain", "threads": None, "rounds": 3}
    about |= {"baseline": "base", "reference": None, "first_picture": False} | conditions
    environment = {"cpu": "some", "cores": 2, "system": "Linux", "python": "3.11"}
    return {"format": 1, "conditions": about, "environment": environment, "prepared": [], "samples": samples}


def test_spread_is_the_median_and_the_range() -> None:
    assert spread([3.0, None, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)
    assert spread([None]) is None
    assert Spread(2.0, 1.0, 3.0, 3).text(1) == "2.0 (1.0–3.0)"


def test_ratios_are_taken_within_each_round() -> None:
    # the machine slows down fourfold: the ratio of medians would be 2 / 4, of each round it is 1/2
    samples = [sample("base", i, wall) for i, wall in enumerate((2.0, 4.0, 8.0))]
    samples += [sample("ours", i, wall) for i, wall in enumerate((1.0, 2.0, 4.0))]
    assert round_ratios(samples, "ours", "base") == [0.5, 0.5, 0.5]
    assert round_ratios([s for s in samples if s["round"]], "ours", "base") == [0.5, 0.5]


def test_contended_samples_count_only_where_none_is_clean() -> None:
    clean, busy = sample("a", 0, 1.0), sample("a", 1, 9.0, contended=True)
    assert usable([clean, busy], "a") == [clean]
    assert usable([busy], "a") == [busy]


@pytest.mark.parametrize(
    ("own", "busy", "stolen", "contended"),
    [(10.0, 10.2, 0.0, False), (10.0, 12.0, 0.0, True), (10.0, 10.0, 2.0, True), (10.0, 9.9, 0.0, False)],
)
def test_contention_is_what_others_took(own: float, busy: float, stolen: float, contended: bool) -> None:
    found = shares(wall=10.0, own=own, busy=busy, stolen=stolen, cores=2)
    assert found["contended"] is contended, found


def test_a_sample_times_its_block() -> None:
    with Sample() as timed:
        total = sum(range(200_000))
    assert total and timed.wall > 0 and timed.cpu > 0
    assert memory()["peak"] >= memory()["anonymous"] >= 0


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (Spread(10, 9.9, 10.1, 3), Spread(8, 7.9, 8.1, 3), "faster"),
        (Spread(10, 9.9, 10.1, 3), Spread(12, 11, 13, 3), "slower"),
        (Spread(10, 9, 11, 3), Spread(8, 7, 9.5, 3), "same"),
        (Spread(10, 9.99, 10.01, 3), Spread(10.1, 10.09, 10.11, 3), "same"),
        (Spread(10, 9.9, 10.1, 2), Spread(5, 4.9, 5.1, 3), "unclear"),
    ],
)
def test_a_change_is_called_only_beyond_noise(before: Spread, after: Spread, expected: str) -> None:
    assert verdict(before, after) == expected


def test_two_results_compared() -> None:
    before = result({"base": [2.0, 2.0, 2.0], "ours": [1.0, 1.01, 1.02]})
    after = result({"base": [2.0, 2.0, 2.0], "ours": [0.5, 0.51, 0.52]}, rounds=5)
    found = {(c.contender, c.measure): c.verdict for c in changes(before, after)}
    assert found["ours", "picture_s"] == found["ours", "ratio"] == "faster"
    assert found["base", "picture_s"] == "same" and ("base", "ratio") not in found
    assert "Conditions differ: rounds: 3 → 5" in comparison(before, after)


def test_the_report_has_every_contender_and_why_one_is_missing() -> None:
    made = result({"base": [2.0, 2.2, 2.1], "ours": [1.0, 1.1, 1.05]})
    made["prepared"].append({"contender": "absent", "error": "no such engine here"})
    by_name = {row["contender"]: row for row in rows(made)}
    assert by_name["ours"]["ratio"].median == pytest.approx(0.5)
    text = markdown(made)
    assert "| ours | 20 | 1.05 (1.00–1.10) | 0.500" in text, text
    assert "absent: not run: no such engine here" in text
