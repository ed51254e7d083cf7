"""Tokenizer, text encoder and heads of the selector, at toy size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffplugin.export.tokenizer import build_tokenizer
from diffplugin.plugins.train import corpus, layout, selector

TEXTS = [r.text for r in corpus.corpus(1500, 0, held=False)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("checkpoint")
    layout.write_tokenizer(folder, *selector.train_tokenizer(TEXTS, 900))
    return build_tokenizer(folder / "base/tokenizer")


def test_tokenizer_is_a_clip_one(tokenizer) -> None:  # type: ignore[no-untyped-def]
    encoded = tokenizer.encode("Remove the Rain!")
    assert len(encoded.ids) == 77
    words = [t for t in encoded.tokens if not t.startswith("<|")]
    assert "".join(words).replace("</w>", " ").split() == ["remove", "the", "rain", "!"], words
    assert "rain</w>" in words, "a word of every second request should be one token"
    strange = [t for t in tokenizer.encode("Ωñ 雨").tokens if not t.startswith("<|")]
    assert strange, "every byte must have a token"


def test_transformers_reads_the_tokenizer(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    layout.write_tokenizer(tmp_path, *selector.train_tokenizer(TEXTS, 900))
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / "base/tokenizer")
    ours = build_tokenizer(tmp_path / "base/tokenizer")
    for text in ("remove the rain", "Dehaze, then derain it!", "", "naïve 123"):
        want = theirs(text, padding="max_length", truncation=True, max_length=77)["input_ids"]
        assert ours.encode(text).ids == list(want), text


def test_targets_of_tasks_that_are_not_shipped_select_null() -> None:
    requests = [
        corpus.Request("a", ("derain",)),
        corpus.Request("b", ("face",)),
        corpus.Request("c", ("face", "dehaze")),
    ]
    found = selector.targets(requests, ("derain", "dehaze"))
    assert found.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_learns_the_shipped_tasks(tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    shipped = ("derain", "dehaze")
    rows = torch.randn(1, 2, 32) + 0.1 * torch.randn(6, 2, 32)

    def encode(texts: list[str]) -> torch.Tensor:
        return torch.tensor([e.ids for e in tokenizer.encode_batch(texts)])

    config = selector.text_config(tokenizer.get_vocab(), 32)
    model = selector.fit(rows, encode, config, shipped, tmp_path / "s.pt", steps=160, batch=32, peak=4e-3)
    found = selector.accuracy(model.eval(), rows, encode, shipped, count=60)
    assert found["single"] > 0.75, found
    with torch.no_grad():  # the heads as the runtime calls them give the scores of training
        text, null = model.text(encode(["remove the rain"])), model.text(encode([" "]))
        one = model.heads(text, rows[:1].transpose(0, 1).expand(2, 256, 32), null)
        many = model(encode(["remove the rain"]), rows[:1], encode([" "]))
    assert torch.allclose(one, many, atol=1e-5), (one - many).abs().max()
