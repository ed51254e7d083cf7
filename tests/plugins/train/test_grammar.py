"""The grammars of the languages: whole, and what they say is what they ask for."""

from __future__ import annotations

import re

import numpy as np
import pytest

from diffplugin.plugins.train import corpus, grammar
from diffplugin.plugins.train.wording import WORDS


@pytest.mark.parametrize("code", grammar.LANGUAGES)
def test_every_task_has_words_and_every_template_a_place(code: str) -> None:
    words = grammar.read(code)
    for task in corpus.TASKS:
        assert len(words.phrases[task]) >= 8 and len(words.opposites[task]) >= 8, task
        assert code == "en" or len(words.nouns[task]) >= 5, task
    for templates in (words.remove, words.restore, words.keep, words.more, words.edits):
        assert all("{}" in template for template in templates), [t for t in templates if "{}" not in t]
    assert all(template.count("{}") == 2 for template in (*words.join, words.both))
    assert all(len(marks) == 3 for marks in words.lists), "before the first one, between, before the last one"
    for template in words.contrast:
        assert re.findall(r"{.?}", template) in (["{}", "{}"], ["{0}", "{1}"], ["{1}", "{0}"], ["{0}"]), template
    whole = [text for table in (words.phrases, words.actions) for texts in table.values() for text in texts]
    both = set(whole) & {*words.none, *(text for texts in words.opposites.values() for text in texts)}
    assert not both, f"asks for a task and for nothing: {sorted(both)}"


@pytest.mark.parametrize("code", grammar.LANGUAGES)
def test_requests_are_of_their_kind(code: str) -> None:
    words, rng = grammar.read(code), np.random.default_rng(0)
    nouns = {task: WORDS[task].nouns for task in corpus.TASKS} if code == "en" else words.nouns
    for kind, counts in (("single", {1}), ("multi", {2, 3, 4}), ("mixed", {1, 2}), ("none", {0})):
        seen = set()
        for _ in range(60):
            text, tasks = grammar.sample(words, kind, nouns, corpus.TASKS, rng)
            assert text and "{" not in text and len(set(tasks)) == len(tasks), (kind, text, tasks)
            seen.add(len(tasks))
        assert seen == counts, kind


def test_wishes_are_joined_by_templates_and_as_lists() -> None:
    words, rng = grammar.read("en"), np.random.default_rng(0)
    made = {grammar.joined(["A", "B", "C", "D"], words.join, words.lists, rng) for _ in range(600)}
    for text in made:
        places = [text.index(part) for part in "ABCD"]
        assert places == sorted(places), text
    assert {"A, B, C and D", "A; B; C; D", "first A, then B, then C, and finally D", "A. B. C. D"} <= made
    assert grammar.enumerated(words, ["rain", "fog", "blur"]) == "rain, fog and blur"
    assert grammar.enumerated(grammar.read("zh"), ["雨", "雾", "雪"]) == "雨、雾和雪"


def test_a_phrase_of_one_task_is_of_no_other() -> None:
    for code in grammar.LANGUAGES:
        seen: dict[str, str] = {}
        for task, texts in grammar.read(code).phrases.items():
            for text in texts:
                assert seen.setdefault(text, task) == task, f"{code}: {text!r} is of {seen[text]} and {task}"
