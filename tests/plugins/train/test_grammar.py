"""The grammars of the languages: whole, and what they say is what they ask for."""

from __future__ import annotations

import numpy as np
import pytest

from diffplugin.plugins.train import corpus, grammar
from diffplugin.plugins.train.wording import WORDS


@pytest.mark.parametrize("code", grammar.LANGUAGES)
def test_every_task_has_words_and_every_template_a_place(code: str) -> None:
    words = grammar.read(code)
    for task in corpus.TASKS:
        assert len(words.phrases[task]) >= 8, task
        assert code == "en" or len(words.nouns[task]) >= 5, task
    for templates in (words.remove, words.restore, words.keep, words.more, words.edits):
        assert all("{}" in template for template in templates), [t for t in templates if "{}" not in t]
    assert all(template.count("{}") == 2 for template in (*words.join, words.both))
    whole = [text for texts in words.phrases.values() for text in texts]
    both = set(whole) & set(words.none)
    assert not both, f"asks for a task and for nothing: {sorted(both)}"


@pytest.mark.parametrize("code", grammar.LANGUAGES)
def test_requests_are_of_their_kind(code: str) -> None:
    words, rng = grammar.read(code), np.random.default_rng(0)
    nouns = {task: WORDS[task].nouns for task in corpus.TASKS} if code == "en" else words.nouns
    for kind, count in (("single", 1), ("multi", 2), ("mixed", 1), ("none", 0)):
        for _ in range(60):
            text, tasks = grammar.sample(words, kind, nouns, corpus.TASKS, rng)
            assert len(tasks) == count and text and "{" not in text, (kind, text, tasks)


def test_a_phrase_of_one_task_is_of_no_other() -> None:
    for code in grammar.LANGUAGES:
        seen: dict[str, str] = {}
        for task, texts in grammar.read(code).phrases.items():
            for text in texts:
                assert seen.setdefault(text, task) == task, f"{code}: {text!r} is of {seen[text]} and {task}"
