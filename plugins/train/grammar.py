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
        opposites: by task, whole requests that forbid it or wish its opposite.
        contrast: templates of two nouns: the first one's task is asked for, the second one's forbidden.
        edits: templates around ``objects``, which no task serves; ``none``: whole requests of that kind.
        join: templates of two requests; ``both``: of two nouns, or of the last two of several.
        lists: what stands before the first of several requests, between them, and before the last one.
        comma: between nouns.
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
    opposites: Nouns
    contrast: Sequence[str]
    edits: Sequence[str]
    objects: Sequence[str]
    none: Sequence[str]
    join: Sequence[str]
    lists: Sequence[Sequence[str]]
    openers: Sequence[str]
    closers: Sequence[str]
    both: str = "{} and {}"
    comma: str = ", "


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


def several(rng: np.random.Generator) -> int:
    """How many tasks a request of several tasks asks for."""
    return int(rng.choice((2, 3, 4), p=(0.54, 0.24, 0.22)))


def joined(parts: Sequence[str], join: Sequence[str], lists: Sequence[Sequence[str]], rng: np.random.Generator) -> str:
    """Requests one after another: as a list, or each joined to those before it."""
    if rng.random() < 0.5:
        before, between, last = pick(lists, rng)
        return before + between.join(parts[:-1]) + last + parts[-1]
    text = parts[0]
    for part in parts[1:]:
        text = pick(join, rng).format(text, part)
    return text


def enumerated(words: Grammar, names: Sequence[str]) -> str:
    """Nouns one after another: "the rain, the fog and the blur"."""
    return words.both.format(words.comma.join(names[:-1]), names[-1])


def asking_several(words: Grammar, nouns: Nouns, tasks: Sequence[str], rng: np.random.Generator) -> str:
    """A request for two or more tasks."""
    if rng.random() < 0.35 and not set(tasks) & set(RESTORED):
        return pick(words.remove, rng).format(enumerated(words, [pick(nouns[task], rng) for task in tasks]))
    return joined([asking(words, nouns, task, rng) for task in tasks], words.join, words.lists, rng)


def refusing(words: Grammar, nouns: Nouns, task: str, rng: np.random.Generator) -> str:
    """A request that forbids a task, or wishes its opposite: for nothing."""
    if rng.random() < 0.3:
        return pick(words.opposites[task], rng)
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


def irrelevant(words: Grammar, nouns: Nouns, tasks: Sequence[str], rng: np.random.Generator) -> str:
    """A request for nothing that a task serves."""
    return refusing(words, nouns, pick(tasks, rng), rng) if rng.random() < 0.6 else other(words, rng)


def mixed(words: Grammar, nouns: Nouns, tasks: Sequence[str], rng: np.random.Generator) -> tuple[str, tuple[str, ...]]:
    """A request for one or two tasks beside one that no task serves; ``tasks``: in random order, at least two."""
    chance, plain = rng.random(), [task for task in tasks if task not in RESTORED]
    if chance < 0.15 and len(plain) > 1:
        return pick(words.contrast, rng).format(*(pick(nouns[task], rng) for task in plain[:2])), (plain[0],)
    asked = tuple(tasks[: 2 if chance > 0.75 and len(tasks) > 2 else 1])
    parts = [asking(words, nouns, task, rng) for task in asked]
    parts.insert(int(rng.integers(len(parts) + 1)), irrelevant(words, nouns, tasks[len(asked) :], rng))
    return joined(parts, words.join, words.lists, rng), asked


def sample(
    words: Grammar, kind: str, nouns: Nouns, tasks: Sequence[str], rng: np.random.Generator
) -> tuple[str, tuple[str, ...]]:
    """A request of ``kind`` (:data:`corpus.KINDS`) and the tasks that it asks for.

    Args:
        nouns: by task, of this language.
        tasks: to choose from, at least two.
    """
    drawn = tuple(str(task) for task in rng.permutation(list(tasks)))
    asked = drawn[:1]
    if kind == "none":
        parts = [irrelevant(words, nouns, drawn, rng) for _ in range(1 + (rng.random() < 0.15))]
        text, asked = joined(parts, words.join, words.lists, rng) if len(parts) > 1 else parts[0], ()
    elif kind == "multi":
        asked = drawn[: several(rng)]
        text = asking_several(words, nouns, asked, rng)
    elif kind == "mixed":
        text, asked = mixed(words, nouns, drawn, rng)
    else:
        text = asking(words, nouns, asked[0], rng)
    # politeness says nothing about what is asked for
    text = (pick(words.openers, rng) if rng.random() < 0.25 else "") + text
    return text + (pick(words.closers, rng) if rng.random() < 0.25 else ""), asked
