"""The request corpus: every task, and a held-out part with other words."""

from __future__ import annotations

import numpy as np

from diffplugin.plugins.cards import PluginCard, shipped_cards
from diffplugin.plugins.train import corpus


def test_tasks_are_the_shipped_ones_in_order() -> None:
    assert list(corpus.TASKS) == list(shipped_cards()) == list(corpus.WORDS)


def test_corpus_is_seeded_distinct_and_covers_every_task() -> None:
    first = corpus.corpus(3000, 0, held=False)
    assert first == corpus.corpus(3000, 0, held=False)
    assert len({r.text for r in first}) == 3000
    alone = {task: sum(r.tasks == (task,) for r in first) for task in corpus.TASKS}
    assert min(alone.values()) >= 100, alone
    assert sum(r.tasks == () for r in first) > 300 and sum(len(r.tasks) == 2 for r in first) > 300


def test_held_out_requests_are_not_in_the_training_corpus() -> None:
    seen = {r.text.lower() for r in corpus.corpus(8000, 0, held=False)}
    held = corpus.corpus(500, 1, held=True)
    shared = [r.text for r in held if r.text.lower() in seen]
    assert not shared, shared[:5]


def test_held_out_words_and_templates_are_disjoint() -> None:
    for task, words in corpus.WORDS.items():
        assert not set(words.nouns) & set(words.held_nouns), task
        assert not set(words.phrases) & set(words.held_phrases), task
    assert not set(corpus.REMOVE) & set(corpus.HELD_REMOVE)
    assert not set(corpus.PAIR) & set(corpus.HELD_PAIR) and not set(corpus.JOIN) & set(corpus.HELD_JOIN)


def test_multi_names_two_tasks_and_none_names_none() -> None:
    rng = np.random.default_rng(0)
    assert all(len(set(corpus.sample("multi", rng, held=h).tasks)) == 2 for h in (True, False) for _ in range(20))
    assert all(corpus.sample("none", rng, held=h).tasks == () for h in (True, False) for _ in range(20))


def test_a_task_of_the_users_own_speaks_through_its_card() -> None:
    examples = ("colourise this", "add colour", "make it colourful", "bring the colours back")
    card = PluginCard(id="colourise", title="Colour", aliases=(), examples=examples, start="noise")
    words = {**corpus.WORDS, "colourise": corpus.wording_of(card)}
    learned = {r.text.lower() for r in corpus.corpus(2000, 0, held=False, words=words) if "colourise" in r.tasks}
    held = [r.text.lower() for r in corpus.held_out("single", 400, 0, words) if r.tasks == ("colourise",)]
    assert len(learned) > 60 and set(held) == {"bring the colours back"}, held
    assert not any("bring the colours back" in text for text in learned)
