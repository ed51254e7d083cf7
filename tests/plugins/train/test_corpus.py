"""The request corpus: every task, and a held-out part with other words."""

from __future__ import annotations

import numpy as np
import pytest

from diffplugin.plugins.cards import PluginCard, shipped_cards
from diffplugin.plugins.train import corpus
from diffplugin.plugins.train.wording import WORDS, written


def test_tasks_are_the_shipped_ones_in_order() -> None:
    assert list(corpus.TASKS) == list(shipped_cards()) == list(WORDS)


def test_corpus_is_seeded_and_covers_every_task() -> None:
    first = corpus.corpus(3000, 0)
    assert first == corpus.corpus(3000, 0)
    assert len(first) == 3000 and len({r.text for r in first}) > 2800
    alone = {task: sum(r.tasks == (task,) for r in first) for task in corpus.TASKS}
    assert min(alone.values()) >= 100, alone
    assert sum(r.tasks == () for r in first) > 300 and sum(len(r.tasks) == 2 for r in first) > 300
    assert all(sum(len(r.tasks) == n for r in first) > 100 for n in (3, 4))


def test_held_out_requests_are_not_in_the_training_corpus() -> None:
    seen = {r.text.lower() for r in corpus.corpus(8000, 0)}
    seen |= {r.text.lower() for _, r in written("learned")}
    shared = [r.text for name in HELD for _, r in written(name) if r.text.lower() in seen]
    assert not shared, shared[:5]


HELD = ("held_out", *(f"held_out_{name}" for name in corpus.HELD_SETS))


@pytest.mark.parametrize("name", ["learned", *HELD])
def test_written_requests_are_of_their_kind(name: str) -> None:
    allowed = {"single": (1,), "multi": (2, 3), "mixed": (1,), "none": (0,), "negated": (0,)}
    for kind, request in written(name):
        assert len(request.tasks) in allowed[kind] and set(request.tasks) <= set(corpus.TASKS), (kind, request)
    texts = [r.text.lower() for _, r in written(name)]
    assert len(texts) == len(set(texts)) and all(texts)


def test_held_out_requests_cover_every_task_and_kind() -> None:
    for task in corpus.TASKS:
        assert len(WORDS[task].held) >= 30 and len(WORDS[task].phrases) >= 100, task
    for kind in corpus.KINDS:
        found = corpus.held_out(kind, 400, 0)
        assert len(found) >= 60 and found == corpus.held_out(kind, 400, 0), kind
        assert len(corpus.held_out(kind, 7, 0)) == 7


def test_multi_names_two_to_four_tasks_and_none_names_none() -> None:
    rng = np.random.default_rng(0)
    assert {len(set(corpus.sample("multi", rng).tasks)) for _ in range(60)} == {2, 3, 4}
    assert {len(corpus.sample("mixed", rng).tasks) for _ in range(60)} == {1, 2}
    assert all(corpus.sample("none", rng).tasks == () for _ in range(40))


def test_a_task_of_the_users_own_speaks_through_its_card() -> None:
    examples = ("colourise this", "add colour", "make it colourful", "bring the colours back")
    card = PluginCard(id="colourise", title="Colour", aliases=(), examples=examples, start="noise")
    words = {**WORDS, "colourise": corpus.wording_of(card)}
    made = corpus.corpus(2000, 0, words=words)
    learned = {r.text.lower() for r in made if "colourise" in r.tasks}
    assert not [r for r in made if "colour" in r.text.lower().split() and "colourise" not in r.tasks], "irrelevant"
    assert any("colour" in r.text.lower().split() for r in corpus.corpus(14_000, 0) if not r.tasks)
    held = [r.text.lower() for r in corpus.held_out("single", 1000, 0, words) if r.tasks == ("colourise",)]
    assert len(learned) > 40 and set(held) == {"bring the colours back"}, held
    assert not any("bring the colours back" in text for text in learned)


def test_known_words_are_right_words_and_english_ones_beside_them() -> None:
    ranked, right = corpus.known_words(2000)
    assert {"rain", "snow", "remove", "the"} <= set(ranked) and ranked.index("the") < ranked.index("snow")
    assert "brain" in right and not set(ranked) & set(right)
    assert not {"teh", "remvoe", "snwo"} & {*ranked, *right}
