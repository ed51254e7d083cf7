"""Ranges of sizes, and their text in a manifest."""

from __future__ import annotations

import pytest

from diffplugin.errors import RequestError
from diffplugin.shapes import Range, full_profile, holds, parse_shapes, shapes_text
from diffplugin.spec import GraphSpec, TensorSpec
from tests.engines.conftest import DIMS

SPEC = GraphSpec(
    "scb",
    (TensorSpec("time", "f32", ("n", 6)), TensorSpec("cond", "f32", (1, 4, "h", "w"))),
    (TensorSpec("residual_0", "f32", (1, 8, "h", "w")), TensorSpec("scores", "f32", (1, "p+1"))),
)


def test_shapes_are_those_of_the_free_input_axes() -> None:
    assert shapes_text(SPEC, {"h": 8, "w": 12, "n": 2, "p": 3, "H": 64}) == "n=2,h=8,w=12"
    ranges = {"n": Range(1, 4, 8), "h": Range.of(8), "w": Range(4, 8, 8)}
    assert shapes_text(SPEC, ranges) == "n=1:4:8,h=8,w=4:8:8"
    assert parse_shapes(shapes_text(SPEC, ranges)) == ranges and parse_shapes("") == {}


def test_an_engine_holds_sizes_within_its_ranges_alone() -> None:
    text = "n=1:4:8,h=8,w=4:8:8"
    assert holds(text, SPEC, {"n": 8, "h": 8, "w": 4, "H": 999})
    for outside in ({"n": 9, "h": 8, "w": 8}, {"n": 1, "h": 7, "w": 8}, {"n": 1, "h": 8, "w": 3}):
        assert not holds(text, SPEC, outside)
    assert not holds("h=8,w=8", SPEC, {"n": 1, "h": 8, "w": 8}), "of another graph"


@pytest.mark.parametrize("text", ["h", "h=", "h=1:2", "h=3:2:1", "h=0", "h=1;w=2", "h=-1"])
def test_what_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="expected"):
        parse_shapes(text)


def test_a_profile_has_every_axis_of_every_graph() -> None:
    profile = full_profile(Range.of(9), Range(4, 8, 16), DIMS, batch=20, plugins=3)
    assert {axis: str(size) for axis, size in profile.items()} == {
        "h": "9",
        "w": "4:8:16",
        "H": "72",
        "W": "32:64:128",
        "n": "1:10:20",
        "p": "3",
    }
    assert str(full_profile(Range.of(1), Range.of(1), DIMS, batch=1, plugins=0)["n"]) == "1"
