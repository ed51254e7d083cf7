"""Requests for the Plugin-Selector: tasks, chains of tasks, and requests that no plugin serves.

To learn from: a small grammar (``request = opener phrase closer``, where a phrase was written whole or is a template
around a noun; two phrases are joined by a template) in ever new combinations. To be scored on: requests written
whole by authors who had seen neither the grammar nor the phrases, so that scores tell whether wording generalises.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from diffplugin.plugins.cards import PluginCard
from diffplugin.plugins.train.wording import (
    CLOSERS,
    COLOURS,
    DETERMINERS,
    EDITS,
    IRRELEVANT,
    JOIN,
    MORE,
    OPENERS,
    PAIR,
    PLACES,
    REMOVE,
    STYLES,
    SUBJECTS,
    VERBS,
    WORDS,
    Request,
    Wording,
    written,
)

T = TypeVar("T")
Words = Mapping[str, Wording]
TASKS = tuple(WORDS)
KINDS = ("single", "multi", "mixed", "none")
# "more light" is a wish that a plugin serves, so darkness is not among what people may ask for more of
_UNWANTED = tuple(noun for task, wording in WORDS.items() if task != "lowlight" for noun in wording.nouns)
_HELD = {request.text.lower() for _, request in written("held_out")}
_WRITTEN = {kind: [r for its_kind, r in written("learned") if its_kind == kind] for kind in ("multi", "mixed")}


def wording_of(card: PluginCard) -> Wording:
    """Words for a task of the user's own, from its card: three quarters of the examples to learn, the rest held out."""
    cut = max(len(card.examples) * 3 // 4, 1)
    return Wording(nouns=(), phrases=card.examples[:cut], held=card.examples[cut:] or card.examples)


def _pick(choices: Sequence[T], rng: np.random.Generator) -> T:
    return choices[int(rng.integers(len(choices)))]


def _single(words: Wording, rng: np.random.Generator) -> str:
    if not words.nouns or rng.random() < 0.65:
        return _pick(words.phrases, rng)
    noun = _pick(words.nouns, rng)
    if rng.random() < 0.5:
        return _pick(REMOVE, rng).format(noun)
    place = _pick(PLACES, rng).format(subject=_pick(SUBJECTS, rng))
    return " ".join(part for part in (_pick(VERBS, rng), _pick(DETERMINERS, rng), noun, place) if part)


def _multi(a: Wording, b: Wording, rng: np.random.Generator) -> str:
    if a.nouns and b.nouns and rng.random() < 0.35:
        return _pick(PAIR, rng).format(*(_pick(words.nouns, rng) for words in (a, b)))
    return _pick(JOIN, rng).format(_single(a, rng), _single(b, rng))


def _edit(rng: np.random.Generator) -> str:
    if rng.random() < 0.6:
        return _pick(IRRELEVANT, rng)
    subject, other = rng.choice(SUBJECTS, 2, replace=False)
    if rng.random() < 0.2:
        noun = _pick(_UNWANTED, rng)
        return _pick(MORE, rng).format(noun, subject=subject)
    return _pick(EDITS, rng).format(subject=subject, other=other, style=_pick(STYLES, rng), colour=_pick(COLOURS, rng))


def sample(kind: str, rng: np.random.Generator, words: Words = WORDS) -> Request:
    """One request of ``kind``: "single", "multi" (two tasks), "mixed" (one task and an irrelevant wish) or "none"."""
    if kind == "none":
        return Request(_edit(rng), ())
    if (whole := _WRITTEN.get(kind)) and rng.random() < 0.3:
        return _pick(whole, rng)
    a, b = (str(t) for t in rng.choice(list(words), 2, replace=False))
    tasks: tuple[str, ...] = (a,)
    if kind == "multi":
        text, tasks = _multi(words[a], words[b], rng), (a, b)
    elif kind == "mixed":
        parts = [_single(words[a], rng), _edit(rng) or "hello"]
        if rng.random() < 0.5:
            parts.reverse()
        text = _pick(JOIN, rng).format(*parts)
    else:
        text = _single(words[a], rng)
        if rng.random() < 0.5:  # people are brief
            text = _pick(OPENERS, rng) + text + _pick(CLOSERS, rng)
    return Request(text[:1].upper() + text[1:] if rng.random() < 0.3 else text, tasks)


def corpus(count: int, seed: int, *, words: Words = WORDS) -> list[Request]:
    """Up to ``count`` distinct requests: 35 % single-task, 30 % of several tasks, 20 % mixed, 15 % of none.

    What is irrelevant to the shipped tasks may be just what a task of the user's own does: requests with its words are
    left out where they do not ask for it.
    """
    rng = np.random.default_rng(seed)
    own = [task for task in words if task not in WORDS]
    theirs = {word for task in own for phrase in words[task].phrases for word in _long_words(phrase)}
    found: dict[str, Request] = {}
    for _ in range(4 * count):
        request = sample(str(rng.choice(KINDS, p=(0.35, 0.3, 0.2, 0.15))), rng, words)
        foreign = not set(own) & set(request.tasks) and not theirs.isdisjoint(_long_words(request.text))
        if request.text.lower() not in _HELD and not foreign:
            found.setdefault(request.text, request)
        if len(found) == count:
            break
    return list(found.values())


def _long_words(text: str) -> set[str]:
    return {word for word in re.findall(r"\w+", text.lower()) if len(word) > 4} - {
        "photo",
        "picture",
        "image",
        "please",
    }


def held_out(kind: str, count: int | None, seed: int, words: Words = WORDS) -> list[Request]:
    """Up to ``count`` (None: all) requests of one kind that no training has seen."""
    if kind == "single":
        found = [Request(text, (task,)) for task, wording in words.items() for text in wording.held]
    else:
        found = [request for its_kind, request in written("held_out") if its_kind == kind]
    rng = np.random.default_rng((seed, KINDS.index(kind)))
    return [found[i] for i in rng.permutation(len(found))[:count]]


def combinations(count: int, seed: int, words: Words = WORDS, most: int = 4) -> list[Request]:
    """Held-out requests for two to ``most`` different tasks each, joined: the paper's "Multi-task*" (table 5), whose
    120,000 samples combine the texts of single tasks."""
    rng = np.random.default_rng((seed, len(KINDS)))
    tasks = [task for task, wording in words.items() if wording.held]
    found = []
    for _ in range(count):
        size = int(rng.integers(2, min(most, len(tasks)) + 1))
        chosen = [str(t) for t in rng.choice(tasks, size, replace=False)]
        text = _pick(words[chosen[0]].held, rng)
        for task in chosen[1:]:
            text = _pick(JOIN, rng).format(text, _pick(words[task].held, rng))
        found.append(Request(text, tuple(chosen)))
    return found
