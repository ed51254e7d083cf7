"""Requests for the Plugin-Selector, from a small grammar: tasks, chains of tasks, and requests that no plugin serves.

``request = opener verb-phrase object closer``. Every task has its own verb phrases and nouns. The held-out part
uses *other templates and other words*, not other combinations of the same ones, so that it tells
whether wording generalises.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diffplugin.plugins.cards import PluginCard
from diffplugin.plugins.train.wording import (
    CLOSERS,
    COLOURS,
    EDITS,
    HELD_EDITS,
    HELD_IRRELEVANT,
    HELD_JOIN,
    HELD_PAIR,
    HELD_REMOVE,
    IRRELEVANT,
    JOIN,
    OPENERS,
    PAIR,
    REMOVE,
    STYLES,
    SUBJECTS,
    WORDS,
    Wording,
)

Words = Mapping[str, Wording]
TASKS = ("derain", "desnow", "lowlight", "dehaze", "deblur", "highlight", "face", "demoire")

KINDS = ("single", "multi", "mixed", "none")


@dataclass(frozen=True)
class Request:
    """A request and the tasks that it asks for (none: irrelevant)."""

    text: str
    tasks: tuple[str, ...]


def wording_of(card: PluginCard) -> Wording:
    """Words for a task of the user's own, from its card: three quarters of the examples to learn, the rest held out."""
    cut = max(len(card.examples) * 3 // 4, 1)
    return Wording(
        nouns=(), phrases=card.examples[:cut], held_nouns=(), held_phrases=card.examples[cut:] or card.examples
    )


def _single(words: Wording, rng: np.random.Generator, held: bool) -> str:
    pick = rng.choice
    if held:
        if not words.nouns or rng.random() < 0.5:
            return str(pick(words.held_phrases))
        # new templates, half of the time with new nouns too
        nouns = words.held_nouns if rng.random() < 0.5 else words.nouns
        return str(pick(HELD_REMOVE)).format(pick(nouns))
    if not words.nouns or rng.random() < 0.45:
        return str(pick(words.phrases))
    return str(pick(REMOVE)).format(pick(words.nouns))


def _multi(a: Wording, b: Wording, rng: np.random.Generator, held: bool) -> str:
    if a.nouns and b.nouns and rng.random() < 0.5:
        nouns = [str(rng.choice(words.nouns)) for words in (a, b)]
        return str(rng.choice(HELD_PAIR if held else PAIR)).format(*nouns)
    return str(rng.choice(HELD_JOIN if held else JOIN)).format(_single(a, rng, held), _single(b, rng, held))


def _edit(rng: np.random.Generator, held: bool) -> str:
    if rng.random() < 0.3:
        return str(rng.choice(HELD_IRRELEVANT if held else IRRELEVANT))
    subject, other = rng.choice(SUBJECTS, 2, replace=False)
    template = str(rng.choice(HELD_EDITS if held else EDITS))
    return template.format(subject=subject, other=other, style=rng.choice(STYLES), colour=rng.choice(COLOURS))


def sample(kind: str, rng: np.random.Generator, *, held: bool, words: Words = WORDS) -> Request:
    """One request of ``kind``: "single", "multi" (two tasks), "mixed" (one task and an irrelevant wish) or "none"."""
    if kind == "none":
        return Request(_edit(rng, held), ())
    a, b = (str(t) for t in rng.choice(list(words), 2, replace=False))
    tasks: tuple[str, ...] = (a,)
    if kind == "multi":
        text, tasks = _multi(words[a], words[b], rng, held), (a, b)
    elif kind == "mixed":
        parts = [_single(words[a], rng, held), _edit(rng, held) or "hello"]
        if rng.random() < 0.5:
            parts.reverse()
        text = str(rng.choice(HELD_JOIN if held else JOIN)).format(*parts)
    else:
        text = _single(words[a], rng, held)
        if not held:
            text = str(rng.choice(OPENERS)) + text + str(rng.choice(CLOSERS))
    if rng.random() < 0.3:
        text = text[:1].upper() + text[1:]
    return Request(text, tasks)


def corpus(count: int, seed: int, *, held: bool, words: Words = WORDS, fillers: Sequence[str] = ()) -> list[Request]:
    """``count`` distinct requests: half single-task, a fifth each of two tasks and of none, a tenth mixed.

    ``fillers``: words that no task is asked for with. One to three of them stand anywhere in six of ten requests, and a
    tenth as many requests again, for nothing, are made of them alone: so a new word says nothing.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, Request] = {}
    for _ in range(40 * count):
        kind = str(rng.choice(("single", "multi", "none", "mixed"), p=(0.5, 0.2, 0.2, 0.1)))
        request = sample(kind, rng, held=held, words=words)
        found.setdefault(request.text, request)
        if len(found) == count:
            break
    made = list(found.values())
    if fillers:
        made = [_padded(request, fillers, rng) if rng.random() < 0.6 else request for request in made]
        alone = (rng.choice(fillers, rng.integers(1, 8)) for _ in range(count // 10))
        made += [Request(" ".join(chosen), ()) for chosen in alone]
    return made


def _padded(request: Request, fillers: Sequence[str], rng: np.random.Generator) -> Request:
    parts = request.text.split(" ")
    for filler in rng.choice(fillers, rng.integers(1, 4)):
        parts.insert(int(rng.integers(0, len(parts) + 1)), str(filler))
    return Request(" ".join(parts), request.tasks)


def fillers(known: Iterable[str], words: Words = WORDS) -> list[str]:
    """Those of ``known`` that none of the tasks' words, held out or not, contains."""
    texts = (text for w in words.values() for text in (*w.nouns, *w.phrases, *w.held_nouns, *w.held_phrases))
    taken = {part for text in texts for part in text.lower().replace("-", " ").split()}
    return [word for word in known if len(word) > 2 and word.lower() not in taken]


def held_out(kind: str, count: int, seed: int, words: Words = WORDS) -> list[Request]:
    """Up to ``count`` distinct requests of one kind, from templates and words that no training request has."""
    rng = np.random.default_rng((seed, KINDS.index(kind)))
    unique = {(r := sample(kind, rng, held=True, words=words)).text: r for _ in range(6 * count)}
    return list(unique.values())[:count]
