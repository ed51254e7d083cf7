"""Wishes that name nothing to restore ("fix this", "enhance"): the photo itself then says what it needs."""

from __future__ import annotations

import functools
import re
import tomllib
from importlib import resources

AUTO = "auto"  # the request of one who writes no words
_SIGNS = "zh"  # written without spaces between words


def is_general(prompt: str) -> bool:
    """Whether a request asks for a better photo and names nothing to restore: nothing is left of it without the phrases
    of ``general_wishes.toml``, and one of them is a wish."""
    known, wishes = _phrases()
    text = " ".join(prompt.casefold().replace("\u2019", "'").split())
    found = [match[0] for match in known.finditer(text)]
    return any(phrase in wishes for phrase in found) and not re.search(r"\w", known.sub(" ", text))


@functools.cache
def _phrases() -> tuple[re.Pattern[str], frozenset[str]]:
    """(any phrase, longest first and whole words only, and the wishes among them)."""
    table = tomllib.loads(resources.files(__package__).joinpath("general_wishes.toml").read_text("utf-8"))
    words, signs = set[str](), set[str]()
    for languages in table.values():
        for language, text in languages.items():
            (signs if language == _SIGNS else words).update(" ".join(phrase.split()) for phrase in text.split(","))
    spaced, joined = ("|".join(map(re.escape, sorted(some, key=len, reverse=True))) for some in (words, signs))
    wishes = {" ".join(phrase.split()) for text in table["wishes"].values() for phrase in text.split(",")}
    return re.compile(rf"(?<!\w)(?:{spaced})(?!\w)|(?:{joined})"), frozenset(wishes)
