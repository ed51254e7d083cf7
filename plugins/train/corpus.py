"""Requests for the Plugin-Selector: tasks, chains of tasks, and requests that no plugin serves.

To learn from: a small grammar (``request = opener phrase closer``, where a phrase was written whole or is a template
around a noun; two phrases are joined by a template) in ever new combinations, smaller grammars of seven languages
(``grammar``), and typing errors. To be scored on: whole requests that were written before what is learned, or by
authors who had not seen it, so that scores tell whether wording generalises.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources

import numpy as np

from diffplugin.plugins.cards import PluginCard
from diffplugin.plugins.train import grammar
from diffplugin.plugins.train.grammar import LANGUAGES, pick
from diffplugin.plugins.train.typing_errors import misspell, plain
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
from diffplugin.runtime.request.spelling import LATIN

Words = Mapping[str, Wording]
TASKS = tuple(WORDS)
KINDS = ("single", "multi", "mixed", "none")
# sets of requests to be scored on beside ``held_out.csv``: plain ones anew, misspelt ones, wishes for the opposite, the
# languages, and a few of all these, written last
BLIND = ("blind_plain", "blind_misspelt", "blind_opposite", "blind_languages")
HELD_SETS = ("new", "misspelt", "opposite", *(code for code in LANGUAGES if code != "en"), *BLIND)
# how much of the corpus speaks so
_LANGUAGES = {"": 0.28, "en": 0.35, **{code: 0.06 for code in LANGUAGES if code != "en"}, "fr": 0.07}
MISSPELT = 0.5
# "more light" is a wish that a plugin serves, so darkness is not among what people may ask for more of
_UNWANTED = tuple(noun for task, wording in WORDS.items() if task != "lowlight" for noun in wording.nouns)
_HELD = {
    request.text.lower() for name in ("held_out", *(f"held_out_{s}" for s in HELD_SETS)) for _, request in written(name)
}
_WRITTEN = {kind: [r for its_kind, r in written("learned") if its_kind == kind] for kind in ("multi", "mixed")}


def wording_of(card: PluginCard) -> Wording:
    """Words for a task of the user's own, from its card: three quarters of the examples to learn, the rest held out."""
    cut = max(len(card.examples) * 3 // 4, 1)
    return Wording(nouns=(), phrases=card.examples[:cut], held=card.examples[cut:] or card.examples)


def _single(words: Wording, rng: np.random.Generator) -> str:
    if not words.nouns or rng.random() < 0.65:
        return pick(words.phrases, rng)
    noun = pick(words.nouns, rng)
    if rng.random() < 0.5:
        return pick(REMOVE, rng).format(noun)
    place = pick(PLACES, rng).format(subject=pick(SUBJECTS, rng))
    return " ".join(part for part in (pick(VERBS, rng), pick(DETERMINERS, rng), noun, place) if part)


def _multi(asked: Sequence[Wording], rng: np.random.Generator) -> str:
    if all(words.nouns for words in asked) and rng.random() < 0.35:
        names = [pick(words.nouns, rng) for words in asked]
        if len(names) == 2:
            return pick(PAIR, rng).format(*names)
        return pick(REMOVE, rng).format(grammar.enumerated(grammar.read("en"), names))
    return _joined([_single(words, rng) for words in asked], rng)


def _joined(parts: Sequence[str], rng: np.random.Generator) -> str:
    return grammar.joined(parts, JOIN, grammar.read("en").lists, rng)


def _edit(rng: np.random.Generator) -> str:
    if rng.random() < 0.6:
        return pick(IRRELEVANT, rng)
    subject, other = rng.choice(SUBJECTS, 2, replace=False)
    if rng.random() < 0.2:
        noun = pick(_UNWANTED, rng)
        return pick(MORE, rng).format(noun, subject=subject)
    return pick(EDITS, rng).format(subject=subject, other=other, style=pick(STYLES, rng), colour=pick(COLOURS, rng))


def _polite(text: str, rng: np.random.Generator) -> str:
    """Half of the time with words around it that ask for nothing; people are brief."""
    return pick(OPENERS, rng) + text + pick(CLOSERS, rng) if text and rng.random() < 0.5 else text


def sample(kind: str, rng: np.random.Generator, words: Words = WORDS) -> Request:
    """One request of ``kind``: "single", "multi" (two to four tasks), "mixed" (one or two tasks and an irrelevant wish)
    or "none"."""
    if kind == "none":
        return Request(_polite(_edit(rng), rng), ())
    if (whole := _WRITTEN.get(kind)) and rng.random() < 0.3:
        return pick(whole, rng)
    drawn = tuple(str(task) for task in rng.permutation(list(words)))
    tasks = drawn[:1]
    if kind == "multi":
        tasks = drawn[: grammar.several(rng)]
        text = _multi([words[task] for task in tasks], rng)
    elif kind == "mixed":
        tasks = drawn[: 1 + (rng.random() < 0.25)]
        parts = [_single(words[task], rng) for task in tasks]
        parts.insert(int(rng.integers(len(parts) + 1)), _edit(rng) or "hello")
        text = _joined(parts, rng)
    else:
        text = _polite(_single(words[tasks[0]], rng), rng)
    return Request(text[:1].upper() + text[1:] if rng.random() < 0.3 else text, tasks)


@cache
def _nouns(code: str) -> grammar.Nouns:
    return {task: wording.nouns for task, wording in WORDS.items()} if code == "en" else grammar.read(code).nouns


@cache
def _objects() -> frozenset[str]:
    """Words that a typing error must not make of another word: "fog" is no "dog"."""
    return frozenset(word for thing in (*grammar.read("en").objects, *SUBJECTS) for word in thing.split())


def _spoken(kind: str, code: str, rng: np.random.Generator) -> Request:
    """One request of ``kind`` in the grammar of a language; accents are often forgotten."""
    text, tasks = grammar.sample(grammar.read(code), kind, _nouns(code), TASKS, rng)
    return Request(plain(text) if code not in ("en", "zh") and rng.random() < 0.3 else text, tasks)


def _typed(request: Request, rng: np.random.Generator) -> Request:
    """The request as a person in a hurry types it."""
    text = misspell(request.text, rng, known=_objects())
    return request if text.lower() in _HELD else Request(text, request.tasks)


def corpus(count: int, seed: int, *, words: Words = WORDS, misspelt: float = MISSPELT) -> list[Request]:
    """``count`` requests, fewer where the words do not give as many: 28 % single-task, 26 % of two to four tasks,
    18 % mixed, 28 % of none; ``misspelt`` of them with typing errors.

    What is irrelevant to the shipped tasks may be just what a task of the user's own does: requests with its words are
    left out where they do not ask for it. Words for some of the shipped tasks alone are spoken in English alone.
    """
    rng = np.random.default_rng(seed)
    own = [task for task in words if task not in WORDS]
    theirs = {word for task in own for phrase in words[task].phrases for word in _long_words(phrase)}
    codes, shares = list(_LANGUAGES), np.array(list(_LANGUAGES.values()))
    if not set(TASKS) <= set(words):
        shares = np.array([1.0] + [0.0] * (len(codes) - 1))
    found: list[Request] = []
    for _ in range(4 * count):
        kind, code = str(rng.choice(KINDS, p=(0.28, 0.26, 0.18, 0.28))), str(rng.choice(codes, p=shares))
        request = _spoken(kind, code, rng) if code else sample(kind, rng, words)
        if request.text.lower() in _HELD:
            continue
        if rng.random() < misspelt:
            request = _typed(request, rng)
        if set(own) & set(request.tasks) or theirs.isdisjoint(_long_words(request.text)):
            found.append(request)
        if len(found) == count:
            break
    return found


def known_words(count: int, words: Words = WORDS) -> tuple[list[str], list[str]]:
    """(words that ``count`` requests without typing errors use thrice or more, the most frequent first; rarer ones, and
    English words that a repair would take for one of them: ``requests/right_words.txt``)."""
    requests = corpus(count, 3, words=words, misspelt=0)
    found = Counter(word for request in requests for word in LATIN.findall(request.text.lower()))
    ranked = [word for word, number in found.most_common() if number > 2]
    file = resources.files("diffplugin.plugins.train") / "requests/right_words.txt"
    return ranked, sorted((set(found) | set(file.read_text("utf-8").split())) - set(ranked))


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


def held_set(name: str) -> list[Request]:
    """The requests of one of :data:`HELD_SETS`."""
    return [request for _, request in written(f"held_out_{name}")]


def combinations(count: int, seed: int, words: Words = WORDS, most: int = 4) -> list[Request]:
    """Held-out requests for two to ``most`` different tasks each, joined: the paper's "Multi-task*" (table 5), whose
    120,000 samples combine the texts of single tasks."""
    rng = np.random.default_rng((seed, len(KINDS)))
    tasks = [task for task, wording in words.items() if wording.held]
    found = []
    for _ in range(count):
        size = int(rng.integers(2, min(most, len(tasks)) + 1))
        chosen = [str(t) for t in rng.choice(tasks, size, replace=False)]
        text = pick(words[chosen[0]].held, rng)
        for task in chosen[1:]:
            text = pick(JOIN, rng).format(text, pick(words[task].held, rng))
        found.append(Request(text, tuple(chosen)))
    return found
