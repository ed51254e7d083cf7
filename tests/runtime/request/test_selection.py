"""The released selection rule, compound tasks, named chains."""

from __future__ import annotations

import json

import numpy as np
import pytest

from diffplugin.errors import NotFinite, RequestError
from diffplugin.plugins.cards import shipped_cards
from diffplugin.plugins.compounds import compound_table
from diffplugin.runtime.request.selection import Selection, select, select_named

PLUGINS = ["derain", "lowlight", "deblur"]


def _select(*scores: float, prompt: str = "do it") -> Selection:
    return select(np.array([scores], np.float32), PLUGINS, prompt, compound_table())


def test_scores_above_zero_run_in_registry_order() -> None:
    made = _select(0.1, -0.5, 0.9, -0.2)
    assert made.chosen == ("derain", "deblur") and made.reason == "scores above 0"
    assert list(made.scores) == [*PLUGINS, "null"]
    assert made.scores["null"] == pytest.approx(-0.2)


@pytest.mark.parametrize("null", [-1.0, 0.0, 2.0])
def test_null_wins_only_where_no_plugin_is_above_zero(null: float) -> None:
    assert _select(0.0, -0.1, -0.2, null).chosen == ()
    assert _select(0.001, -0.1, -0.2, null).chosen == ("derain",)


def test_a_compound_task_adds_its_installed_sub_tasks() -> None:
    made = _select(-1, -1, 0.5, 0.3, prompt="a rainy night")
    assert made.chosen == ("derain", "lowlight", "deblur") and made.compounds == ("rainy-night",)
    assert made.reason == "request names rainy-night, scores above 0"
    absent = _select(-1, -1, -1, 0.3, prompt="stop the blizzard")  # none of its sub-tasks is installed
    assert absent.chosen == () and absent.reason == "no plugin scores above 0"


def test_a_refusal_names_what_misses_by_less_than_null_wins() -> None:
    assert _select(-0.3, -0.9, -0.1, 0.5).near == ("deblur", "derain")
    assert _select(-0.6, -0.9, -0.6, 0.5).near == (), "sure of nothing"
    assert _select(-0.3, 0.9, -0.1, 0.5).near == (), "something is chosen"


def test_broken_scores_are_refused() -> None:
    with pytest.raises(NotFinite, match="not finite"):
        _select(0.1, float("nan"), 0, 0)


def test_a_score_per_plugin_and_null() -> None:
    with pytest.raises(ValueError, match="shorter"):
        _select(0.1, 0.2, 0.3)


def test_named_chain_keeps_the_callers_order() -> None:
    made = select_named(["Deblur", "rain removal"], shipped_cards())
    assert made.chosen == ("deblur", "derain") and made.scores == {}
    with pytest.raises(RequestError, match="unknown plugin 'colorize'"):
        select_named(["colorize"], shipped_cards())


def test_json() -> None:
    text = json.dumps(_select(0.1, -1, -1, 0).to_json())
    assert json.loads(text)["chosen"] == ["derain"]
