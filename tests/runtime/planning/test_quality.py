"""The table of qualities, and which steps each runs in full."""

from __future__ import annotations

import pytest

import diffplugin
from diffplugin.errors import RequestError
from diffplugin.runtime.planning.quality import EXACT, QUALITIES, Quality, get_quality


def test_exact_is_everything_at_every_step() -> None:
    for steps in (1, 2, 3, 20, 1000):
        assert EXACT.full_steps(steps) == EXACT.scb_steps(steps) == tuple(range(steps))
    assert EXACT.steps is None and EXACT.precisions == ()


def test_the_first_step_is_always_whole_and_the_scb_runs_at_both_ends() -> None:
    less = Quality(name="less", description="", deep_every=3, scb_every=4)
    assert less.full_steps(8) == (0, 3, 6) and less.scb_steps(8) == (0, 4, 7) and less.scb_steps(9) == (0, 4, 8)
    for quality in (*QUALITIES.values(), less):
        for steps in range(1, 30):
            full, scb = quality.full_steps(steps), quality.scb_steps(steps)
            assert full[0] == scb[0] == 0 and scb[-1] == steps - 1 >= full[-1]
            assert sorted(set(full)) == list(full) and sorted(set(scb)) == list(scb)


def test_each_is_less_work_than_the_one_before() -> None:
    assert tuple(QUALITIES) == ("exact", "high", "balanced", "fast")
    work = [(q.steps or 20, len(q.full_steps(40)), len(q.scb_steps(40))) for q in QUALITIES.values()]
    assert all(less <= more for a, b in zip(work[1:], work, strict=False) for less, more in zip(a, b, strict=True))
    assert len(set(work)) == 4, work
    for name, quality in QUALITIES.items():
        assert quality.name == name and quality.description and "\n" not in quality.description


def test_high_shares_the_scb_between_timesteps_and_nothing_else() -> None:
    high = QUALITIES["high"]
    assert [len(high.scb_steps(n)) for n in (1, 2, 3, 10, 20)] == [1, 2, 2, 6, 11]
    assert high.full_steps(20) == EXACT.full_steps(20)


@pytest.mark.parametrize("name", ["best", "", "Exact"])
def test_unknown_names(name: str) -> None:
    for refuse in (get_quality, lambda name: diffplugin.load(quality=name)):
        with pytest.raises(RequestError, match="choose one of exact, high, balanced, fast"):
            refuse(name)
