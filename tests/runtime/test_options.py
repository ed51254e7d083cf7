"""Options of one photo: checked once, all faults at once."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import Any, get_args

import pytest

from diffplugin.errors import RequestError
from diffplugin.runtime.options import OptionFields, RestoreOptions, Sampler, complete_options
from diffplugin.runtime.sampling.samplers import SAMPLERS


def test_keywords_and_choices_are_the_fields() -> None:
    assert set(OptionFields.__annotations__) == {field.name for field in fields(RestoreOptions)}
    assert set(get_args(Sampler)) == set(SAMPLERS)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"prompt": " .. "}, r"the request '\.\.' has no words"),
        ({"plugins": []}, "plugins is empty"),
        ({"steps": 0}, "steps is 0, expected 1 to 1000"),
        ({"steps": 1001}, "steps is 1001, expected 1 to 1000"),
        ({"steps": True}, "steps is True"),
        ({"seed": 2**64}, "seed: 18446744073709551616 is not usable"),
        ({"sampler": "nope"}, "sampler 'nope' does not exist; choose one of unipc"),
        ({"size": (0, 8)}, r"size \(0, 8\) is not understood"),
        ({"size": "huge"}, "size 'huge' is not understood"),
        ({"tile": 0}, "tile 0 is not understood"),
        ({"output_size": "both"}, "output size 'both' does not exist; choose one of input, working"),
    ],
)
def test_every_fault_is_named(given: dict[str, Any], fault: str) -> None:
    wish: dict[str, Any] = {} if "prompt" in given or "plugins" in given else {"prompt": "remove the rain"}
    with pytest.raises(RequestError, match=fault):
        RestoreOptions(**wish, **given)


def test_all_faults_come_at_once_and_the_object_is_frozen() -> None:
    with pytest.raises(RequestError) as caught:
        RestoreOptions(prompt="!", seed="x", steps=-1, tile="no")  # type: ignore[arg-type]
    assert all(word in str(caught.value) for word in ("has no words", "seed", "steps", "tile")), caught.value
    options = RestoreOptions(prompt="  remove the rain ")
    assert options.prompt == "remove the rain"
    with pytest.raises(FrozenInstanceError):
        options.seed = 1  # type: ignore[misc]


def test_words_options_and_keywords_make_one_object() -> None:
    expected = RestoreOptions(prompt="remove the rain", seed=7)
    assert complete_options("remove the rain", {"seed": 7}) == expected
    assert complete_options(RestoreOptions(prompt="remove the rain"), {"seed": 7}) == expected
    assert complete_options(None, {"prompt": "remove the rain", "seed": 7}) == expected
    assert RestoreOptions(plugins="deblur").plugins == ("deblur",)


@pytest.mark.parametrize(
    ("given", "automatic"),
    [
        ({}, True),
        ({"prompt": ""}, True),
        ({"prompt": " Auto "}, True),
        ({"prompt": "please fix this photo"}, True),
        ({"prompt": "fix the blur"}, False),
        ({"plugins": ["derain"]}, False),
        ({"plugins": ["derain"], "prompt": "auto"}, False),
    ],
)
def test_without_words_the_photo_decides(given: dict[str, Any], automatic: bool) -> None:
    assert RestoreOptions(**given).automatic is automatic
