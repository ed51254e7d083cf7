"""Errors of people who type: letters swapped, doubled, dropped, missed or spelt as they sound, spaces and accents
forgotten. Seeded."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Container

import numpy as np

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_WORD = re.compile(r"[^\W\d_]{3,}")


def _neighbours() -> dict[str, str]:
    found: dict[str, str] = {}
    for y, row in enumerate(_ROWS):
        for x, letter in enumerate(row):
            near = [(y, x - 1), (y, x + 1), (y - 1, x), (y - 1, x + 1), (y + 1, x - 1), (y + 1, x)]
            found[letter] = "".join(_ROWS[v][u] for v, u in near if 0 <= v < 3 and 0 <= u < len(_ROWS[v]))
    return found


NEIGHBOURS = _neighbours()
# letters that are heard alike: "blerry", "refleksion"
_ALIKE = {"a": "e", "e": "ia", "i": "ey", "o": "ua", "u": "oa", "y": "i", "c": "ks", "k": "c", "s": "zc", "z": "s"}


def _swapped(word: str, at: int, near: str) -> str:
    at = min(at, len(word) - 2)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def _heard(word: str, at: int, near: str) -> str:
    """One letter of two, or another one that sounds like it."""
    twice = [i for i in range(len(word) - 1) if word[i] == word[i + 1]]
    if twice:
        return word[: twice[0]] + word[twice[0] + 1 :]
    found = [i for i, letter in enumerate(word) if letter in _ALIKE]
    if not found:
        return _swapped(word, at, near)
    place = found[at % len(found)]
    alike = _ALIKE[word[place]]
    return word[:place] + alike[at % len(alike)] + word[place + 1 :]


_EDITS: tuple[Callable[[str, int, str], str], ...] = (
    _swapped,
    _swapped,
    lambda word, at, near: word[:at] + word[at + 1 :],
    lambda word, at, near: word[:at] + word[at] + word[at:],
    lambda word, at, near: word[:at] + near + word[at + 1 :],
    lambda word, at, near: word[:at] + near + word[at:],
    _heard,
)


def misspell(text: str, rng: np.random.Generator, *, known: Container[str] = ()) -> str:
    """``text`` with one or two typing errors.

    Args:
        known: words that mean something else: no error makes one of them of another word.
    """
    for _ in range(1 + (rng.random() < 0.45)):
        text = _one(text, rng, known)
    return text


def plain(text: str) -> str:
    """``text`` without accents, as on a keyboard that has none."""
    letters = unicodedata.normalize("NFD", text)
    return "".join(letter for letter in letters if not unicodedata.combining(letter)).replace("ß", "ss")


def _one(text: str, rng: np.random.Generator, known: Container[str]) -> str:
    if rng.random() < 0.08 and " " in text:  # a space that was not hit
        spaces = [i for i, letter in enumerate(text) if letter == " "]
        at = spaces[int(rng.integers(len(spaces)))]
        return text[:at] + text[at + 1 :]
    words = [m for m in _WORD.finditer(text) if m.group().isascii() or len(plain(m.group())) == len(m.group())]
    words = [m for m in words if plain(m.group()[0]).isascii()]  # no alphabet, no such errors
    if not words:
        return text
    lengths = np.array([len(found.group()) for found in words], float)  # long words have more letters to miss
    found = words[int(rng.choice(len(words), p=lengths / lengths.sum()))]
    word = found.group()
    at = int(rng.integers(len(word)))
    close = NEIGHBOURS.get(plain(word[at]).lower(), "")
    near = close[int(rng.integers(len(close)))] if close else word[at]
    made = _EDITS[int(rng.integers(len(_EDITS)))](word, at, near)
    return text if made.lower() in known else text[: found.start()] + made + text[found.end() :]
