"""Typing errors: seeded, small, and never another word that is known."""

from __future__ import annotations

from difflib import SequenceMatcher

import numpy as np

from diffplugin.plugins.train.typing_errors import misspell, plain


def test_one_or_two_errors() -> None:
    rng = np.random.default_rng(0)
    text = "remove the falling snow from my picture"
    made = [misspell(text, rng) for _ in range(400)]
    kept = [
        sum(block.size for block in SequenceMatcher(None, text, m, autojunk=False).get_matching_blocks()) for m in made
    ]
    assert min(kept) >= len(text) - 4 and max(abs(len(m) - len(text)) for m in made) == 2
    assert np.mean([m == text for m in made]) < 0.1 and len(set(made)) > 200


def test_the_same_seed_makes_the_same_errors() -> None:
    made = [misspell("brighten this photo", np.random.default_rng(7)) for _ in range(2)]
    assert made[0] == made[1]


def test_known_words_do_not_arise() -> None:
    rng = np.random.default_rng(1)
    near = {"dog", "log", "fig", "fob", "for", "og", "fg", "fo"}
    assert not near & {misspell("fog", rng, known=near) for _ in range(300)}
    assert near & {misspell("fog", rng) for _ in range(300)}


def test_writing_without_an_alphabet_is_left() -> None:
    rng = np.random.default_rng(2)
    assert {misspell("去除雨滴", rng) for _ in range(50)} == {"去除雨滴"}


def test_plain_letters() -> None:
    assert plain("größer, é à ñ ç") == "grosser, e a n c"


def test_letters_that_sound_alike_are_mistaken() -> None:
    rng = np.random.default_rng(3)
    made = {misspell("blurry", rng) for _ in range(300)}
    assert {"blury", "blurrry"} & made == {"blury", "blurrry"}, "one letter of two, and three"
    assert {"fok", "fug"} & {misspell("fog", rng) for _ in range(300)}, "a letter that sounds alike"
