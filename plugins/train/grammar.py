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
        actions: by task, what to do ("sharpen it"); ``refuse``: templates that forbid that.
        qualities: by task, what a photo lacks ("brightness"); ``raise_``: templates that ask for more of it;
            ``lower``: for less.
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
    actions: Nouns
    refuse: Sequence[str]
    qualities: Nouns
    raise_: Sequence[str]
    lower: Sequence[str]
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
    values["raise_"] = values.pop("raise")
    assert set(values) <= {field.name for field in fields(Grammar)}, sorted(values)
    return Grammar(**{"nouns": {}, **values})


def pick(choices: Sequence[T], rng: np.random.Generator) -> T:
    """One of ``choices``."""
    return choices[int(rng.integers(len(choices)))]


def asking(words: Grammar, nouns: Nouns, task: str, rng: np.random.Generator) -> str:
    """A request for one task: written whole, what to do, more of a quality, a template around a noun, or the bare
    noun."""
    chance = rng.random()
    if chance < 0.4:
        return pick(words.phrases[task], rng)
    if chance < 0.5:
        return pick(words.actions[task], rng)
    if chance < 0.62 and task in words.qualities:
        return pick(words.raise_, rng).format(pick(words.qualities[task], rng))
    noun = pick(nouns[task], rng)
    if task in RESTORED:
        return pick(words.restore, rng).format(noun)
    return noun if chance > 0.95 else pick(words.remove, rng).format(noun)


def asking_both(words: Grammar, nouns: Nouns, tasks: Sequence[str], rng: np.random.Generator) -> str:
    """A request for two tasks."""
    if rng.random() < 0.35 and not set(tasks) & set(RESTORED):
        return pick(words.remove, rng).format(words.both.format(*(pick(nouns[task], rng) for task in tasks)))
    return pick(words.join, rng).format(*(asking(words, nouns, task, rng) for task in tasks))


def refusing(words: Grammar, nouns: Nouns, task: str, rng: np.random.Generator) -> str:
    """A request that forbids a task, or wishes its opposite: for nothing."""
    chance = rng.random()
    if chance < 0.3:
        return pick(words.refuse, rng).format(pick(words.actions[task], rng))
    if chance < 0.55 and task in words.qualities:
        return pick(words.lower, rng).format(pick(words.qualities[task], rng))
    # nobody asks for more darkness or for more of a face in these words
    templates = words.keep if chance < 0.7 or task in ("lowlight", *RESTORED) else words.more
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
    asked: tuple[str, ...] = (a,)
    if kind == "none":
        text, asked = refusing(words, nouns, a, rng) if rng.random() < 0.5 else other(words, rng), ()
    elif kind == "multi":
        text, asked = asking_both(words, nouns, (a, b), rng), (a, b)
    elif kind == "mixed":
        rest = refusing(words, nouns, b, rng) if rng.random() < 0.6 else other(words, rng)
        parts = [asking(words, nouns, a, rng), rest]
        if rng.random() < 0.5:
            parts.reverse()
        text = pick(words.join, rng).format(*parts)
    else:
        text = asking(words, nouns, a, rng)
    # politeness says nothing about what is asked for
    text = (pick(words.openers, rng) if rng.random() < 0.25 else "") + text
    return text + (pick(words.closers, rng) if rng.random() < 0.25 else ""), asked
