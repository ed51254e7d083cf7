"""Misspelt words are read as those that the selector learned; right ones are left alone."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from diffplugin.errors import BundleError
from diffplugin.runtime.request.spelling import Speller, distance, read_speller

_RANKED = ("the", "remove", "rain", "snow", "fog", "dark", "blur", "haze", "underexposed", "brighten", "névoa")


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [("snow", "snow", 0), ("snwo", "snow", 1), ("sno", "snow", 1), ("snoww", "snow", 1), ("snaw", "snow", 1),
     ("rian", "train", 2), ("", "rain", 4), ("nsow", "snwo", 2)],
)  # fmt: skip
def test_distance(one: str, other: str, wanted: int) -> None:
    assert distance(one, other) == distance(other, one) == wanted


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("remvoe teh snwo", "remove the snow"),
        ("Remvoe, the FGO!", "remove, the fog!"),
        ("nsow drak", "snow dark"),
        ("rremove the blurr", "remove the blur"),
        ("udnerexpossed", "underexposed"),
        ("removethe rain", "remove the rain"),
        ("nevoa", "névoa"),
        ("Remove the Rain", "Remove the Rain"),
        ("dig, grain, brain, maze", "dig, grain, brain, maze"),  # first letter, too short for another letter
        ("raid and no dart", "raid and no dart"),  # right words
        ("雨を消して 123 " + "x" * 100, "雨を消して 123 " + "x" * 100),
    ],
)
def test_errors_are_repaired_and_right_words_stay(given: str, wanted: str) -> None:
    assert Speller.of(_RANKED, ("raid", "dart", "and")).repaired(given, 77) == wanted


def test_of_two_near_words_the_more_frequent_one() -> None:
    assert Speller.of(("haze", "hazy"), ()).repaired("hazee hazz", 9) == "haze haze"
    assert Speller.of(("hazy", "haze"), ()).repaired("hazz", 9) == "hazy"


def test_only_the_first_words_are_looked_at_and_long_ones_cost_nothing() -> None:
    speller = Speller.of(_RANKED, ())
    assert speller.repaired("snwo snwo snwo", 2) == "snow snow snwo"
    began = time.process_time()
    assert speller.repaired("s" * 1_000_000, 77) == "s" * 1_000_000
    assert time.process_time() - began < 1


def test_a_file_of_words(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("rain\nsnow\n\nraid\n", encoding="utf-8")
    assert read_speller(file).repaired("rian raid snwo", 9) == "rain raid snow"


@pytest.mark.parametrize("text", ["Rain\n", "rain\nsn ow4\n", "x" * 41, "rain\x1b[0m\n", "\xff"])
def test_what_is_no_list_of_words_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "words.txt"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match=r"words\.txt.*export the bundle again"):
        read_speller(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"words\.txt"):
        read_speller(tmp_path / "words.txt")
