"""Requests of one language from a small grammar: asking, forbidding, wishing the opposite, and other edits.

``requests/grammar_<code>.toml`` holds the words. In every template ``{}`` stands for a noun or an object.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import TypeVar

import numpy as np

T = TypeVar("T")
Nouns = Mapping[str, Sequence[str]]
LANGUAGES = {
    "en": "English", "de": "German", "fr": "French", "es": "Spanish", "pt": "Portuguese", "it": "Italian",
    "zh": "Chinese",
}  # fmt: skip
RESTORED = ("face",)  # tasks whose nouns are restored, not removed


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """The words of one language.

    Attributes:
        nouns: by task, what is wrong with a photo ("rain"); for ``face`` what is to be restored.
        phrases: by task, whole requests.
        remove: templates that ask for a noun's task; ``restore``: those for the nouns of ``face``.
        keep: templates that forbid it, or say that nothing is wrong; ``more``: that ask for the opposite.
        edits: templates around ``objects``, which no task serves; ``none``: whole requests of that kind.
        join: templates of two requests; ``both``: of two nouns.
        openers: what may stand before a request; ``closers``: after it.
    """

    nouns: Nouns
    phrases: Nouns
    remove: Sequence[str]
    restore: Sequence[str]
    keep: Sequence[str]
    more: Sequence[str]
    edits: Sequence[str]
    objects: Sequence[str]
    none: Sequence[str]
    join: Sequence[str]
    openers: Sequence[str]
    closers: Sequence[str]
    both: str = "{} and {}"


@cache
def read(code: str) -> Grammar:
    """The grammar of one language; English has no nouns of its own (``wording`` has them)."""
    file = resources.files("diffplugin.plugins.train") / f"requests/grammar_{code}.toml"
    values = tomllib.loads(file.read_text("utf-8"))
    assert set(values) <= {field.name for field in fields(Grammar)}, sorted(values)
    return Grammar(**{"nouns": {}, **values})


def pick(choices: Sequence[T], rng: np.random.Generator) -> T:
    """One of ``choices``."""
    return choices[int(rng.integers(len(choices)))]


def asking(words: Grammar, nouns: Nouns, task: str, rng: np.random.Generator) -> str:
    """A request for one task: written whole, a template around a noun, or the bare noun."""
    chance = rng.random()
    if chance < 0.45:
        return pick(words.phrases[task], rng)
    noun = pick(nouns[task], rng)
    if task in RESTORED:
        return pick(words.restore, rng).format(noun)
    return noun if chance < 0.5 else pick(words.remove, rng).format(noun)


def asking_both(words: Grammar, nouns: Nouns, tasks: Sequence[str], rng: np.random.Generator) -> str:
    """A request for two tasks."""
    if rng.random() < 0.35 and not set(tasks) & set(RESTORED):
        return pick(words.remove, rng).format(words.both.format(*(pick(nouns[task], rng) for task in tasks)))
    return pick(words.join, rng).format(*(asking(words, nouns, task, rng) for task in tasks))


def refusing(words: Grammar, nouns: Nouns, task: str, rng: np.random.Generator) -> str:
    """A request that forbids a task, or wishes its opposite: for nothing."""
    # "more darkness" is the opposite of brightening, but nobody speaks of its other nouns so
    templates = words.keep if rng.random() < 0.6 or task in ("lowlight", *RESTORED) else words.more
    return pick(templates, rng).format(pick(nouns[task], rng), object=pick(words.objects, rng))


def other(words: Grammar, rng: np.random.Generator) -> str:
    """A request that no task serves."""
    if rng.random() < 0.5:
        return pick(words.none, rng)
    thing, second = pick(words.objects, rng), pick(words.objects, rng)
    return pick(words.edits, rng).format(thing, other=second)


def sample(
    words: Grammar, kind: str, nouns: Nouns, tasks: Sequence[str], rng: np.random.Generator
) -> tuple[str, tuple[str, ...]]:
    """A request of ``kind`` (:data:`corpus.KINDS`) and the tasks that it asks for.

    Args:
        nouns: by task, of this language.
        tasks: to choose from.
    """
    a, b = (str(task) for task in rng.choice(list(tasks), 2, replace=False))
    if kind == "none":
        return (refusing(words, nouns, a, rng) if rng.random() < 0.45 else other(words, rng)), ()
    if kind == "multi":
        return asking_both(words, nouns, (a, b), rng), (a, b)
    if kind == "mixed":
        parts = [
            asking(words, nouns, a, rng),
            refusing(words, nouns, b, rng) if rng.random() < 0.6 else other(words, rng),
        ]
        if rng.random() < 0.5:
            parts.reverse()
        return pick(words.join, rng).format(*parts), (a,)
    text = asking(words, nouns, a, rng)
    if rng.random() < 0.35:
        text = pick(words.openers, rng) + text
    return text + (pick(words.closers, rng) if rng.random() < 0.35 else ""), (a,)
