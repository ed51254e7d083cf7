"""Tokenizer, text encoder and heads of the selector, at toy size."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from diffplugin.errors import RequestError
from diffplugin.export.checkpoints import find
from diffplugin.export.embedded import embedded_checkpoint_folder
from diffplugin.export.tokenizer import build_tokenizer
from diffplugin.plugins.train import corpus, layout, selector, selector_training
from diffplugin.plugins.train.metrics import selection
from diffplugin.plugins.train.selector_options import Options
from diffplugin.plugins.train.selector_training import encoder, fewer_merges, pick_threshold
from diffplugin.plugins.train.wording import WORDS, Request, Wording

EMBEDDED = embedded_checkpoint_folder()
TEXTS = [r.text for r in corpus.corpus(1500, 0)]


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
        Request("a", ("derain",)),
        Request("b", ("face",)),
        Request("c", ("face", "dehaze")),
    ]
    found = selector.targets(requests, ("derain", "dehaze"))
    assert found.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_learns_the_shipped_tasks(tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    shipped = ("derain", "dehaze")
    rows = torch.randn(1, 2, 32) + 0.1 * torch.randn(6, 2, 32)

    def encode(texts: list[str]) -> torch.Tensor:
        return torch.tensor([e.ids for e in tokenizer.encode_batch(texts)])

    # few words, so that few steps will do; half of what is scored uses a learned noun in a new sentence
    words = {
        task: Wording(WORDS[task].nouns[:4], WORDS[task].phrases[:8], (*WORDS[task].phrases[:4], *held))
        for task, held in {
            "derain": ("please remove all of the rain", "i want the rain streaks gone", "take the rain away"),
            "dehaze": ("please remove all of the haze", "i want the fog gone", "take the mist away"),
        }.items()
    }
    model = selector.fresh(selector.text_config(tokenizer.get_vocab(), 32))
    options = Options(steps=240, train_batch_size=32, learning_rate=4e-3)
    selector.fit(rows, encode, model, shipped, tmp_path / "s.pt", options, words=words)
    found = selector.accuracy(model.eval(), rows, encode, shipped, count=60, words=words)
    assert found["single"]["ZTA"] > 0.75, found
    with torch.no_grad():  # the heads as the runtime calls them give the scores of training
        text, null = model.text(encode(["remove the rain"])), model.text(encode([" "]))
        one = model.heads(text, rows[:1].transpose(0, 1).expand(2, 256, 32), null)
        many = model(encode(["remove the rain"]), rows[:1], encode([" "]))
    assert torch.allclose(one, many, atol=1e-5), (one - many).abs().max()


def test_contrastive_loss_is_equation_6() -> None:
    similarity = torch.tensor([[0.9, 0.1, -0.2], [0.7, -0.3, 0.4]])
    found = selector.contrastive_loss(similarity, 0.5)
    terms = [-(row[0] / 0.5) + torch.logsumexp(row[1:] / 0.5, 0) for row in similarity]
    assert found.item() == pytest.approx(torch.stack(terms).mean().item(), abs=1e-6)


@pytest.mark.parametrize(("batch", "negatives", "anchors"), [(8, 7, 1), (8, 1, 4), (16, 15, 1), (4, 7, 1)])
def test_every_anchor_meets_one_positive_and_n_negatives(  # type: ignore[no-untyped-def]
    tokenizer, batch: int, negatives: int, anchors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(texts: list[str]) -> torch.Tensor:
        return torch.tensor([e.ids for e in tokenizer.encode_batch(texts)])

    seen: list[torch.Tensor] = []
    monkeypatch.setattr(selector, "contrastive_loss", lambda s, t: seen.append(s) or s.sum())  # type: ignore[func-returns-value]
    model = selector.fresh(selector.text_config(tokenizer.get_vocab(), 32))
    options = Options(steps=1, heads_only=True, train_batch_size=batch, negatives=negatives)
    shipped = ("derain", "dehaze", "face")
    objective = selector.Selecting(model, torch.randn(5, 3, 32), encode, shipped, options, count=200)
    objective(0, np.random.default_rng(0))
    assert seen[0].shape == (anchors, 1 + negatives)
    for k in objective.anchors:
        assert objective.wanted[objective.askers[k], k].all() and not objective.wanted[objective.others[k], k].any()


def test_a_removed_head_is_the_identity_and_stays_it(tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    def encode(texts: list[str]) -> torch.Tensor:
        return torch.tensor([e.ids for e in tokenizer.encode_batch(texts)])

    torch.manual_seed(0)
    model = selector.fresh(selector.text_config(tokenizer.get_vocab(), 32))
    selector.remove_head(model.heads, "textual")
    options = Options(steps=3, heads_only=True, learning_rate=1e-2, removed="textual")
    selector.fit(torch.randn(4, 2, 32), encode, model, ("derain", "dehaze"), tmp_path / "s.pt", options)
    assert torch.equal(model.heads.proj_t.weight, torch.eye(32)) and not model.heads.proj_t.bias.any()
    assert not torch.equal(model.heads.proj_v.weight, torch.eye(32))


def test_threshold_is_the_middle_of_the_best_ones_and_0_where_it_does() -> None:
    wanted = np.array([[1, 0], [0, 1], [0, 0], [1, 1]] * 10, bool)
    scores = (np.where(wanted, 2.0, 1.0) + np.linspace(0, 0.1, 80).reshape(40, 2)).astype(np.float32)
    assert selection(scores, wanted, 0.0)["ZTA"] == 0.25, "everything is selected at 0"
    theta = pick_threshold(scores, wanted)
    assert 1.1 < theta < 2.0 and selection(scores, wanted, theta)["ZTA"] == 1
    assert abs(theta - 1.55) < 0.1, f"{theta:.2f} is not in the middle of 1.1 to 2.0"
    assert pick_threshold(scores - 1.5, wanted) == 0.0


def test_heads_alone_leave_the_text_encoder(tokenizer, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    rows = torch.randn(4, 2, 32)

    def encode(texts: list[str]) -> torch.Tensor:
        return torch.tensor([e.ids for e in tokenizer.encode_batch(texts)])

    model = selector.fresh(selector.text_config(tokenizer.get_vocab(), 32))
    before = {name: value.clone() for name, value in model.text.state_dict().items()}
    head = model.heads.proj_t.weight.clone()
    options = Options(steps=5, train_batch_size=16, learning_rate=2e-3, heads_only=True)
    selector.fit(rows, encode, model, ("derain", "dehaze"), tmp_path / "s.pt", options)
    assert all(torch.equal(value, before[name]) for name, value in model.text.state_dict().items())
    assert not torch.equal(head, model.heads.proj_t.weight)


def test_dropout_is_seeded_by_the_step_and_gone_afterwards(tokenizer) -> None:  # type: ignore[no-untyped-def]
    def encode(texts: list[str]) -> torch.Tensor:
        return torch.tensor([e.ids for e in tokenizer.encode_batch(texts)])

    torch.manual_seed(0)
    model = selector.fresh(selector.text_config(tokenizer.get_vocab(), 32))
    ids = encode(["remove the rain"])
    before = model.text(ids)
    objective = selector.Selecting(
        model, torch.randn(4, 2, 32), encode, ("derain", "dehaze"), Options(steps=1, train_batch_size=4), count=50
    )
    losses = [objective(step, np.random.default_rng(step)).item() for step in (3, 3, 4)]
    assert losses[0] == losses[1] != losses[2], losses
    assert not torch.equal(model.text(ids), before), "nothing is dropped"
    assert torch.equal(model.eval().text(ids), before), "dropped outside of training too"


def test_plugins_begin_told_apart() -> None:
    torch.manual_seed(0)
    rows = torch.randn(32) + 0.3 * torch.randn(4, 32) + 0.02 * torch.randn(20, 4, 32)  # much in common
    model = selector.fresh(selector.text_config({"a": 0, selector.BEGIN: 1, selector.END: 2}, 32))
    selector.separate(model.heads, rows)
    values = torch.nn.functional.normalize(model.heads.proj_v(rows), dim=-1)
    cosines = torch.einsum("npd,nqd->npq", values, values)
    apart = cosines[:, ~torch.eye(4, dtype=torch.bool)]
    assert apart.abs().max() < 0.3, apart.abs().max()


def test_texts_are_read_with_all_merges_and_with_fewer_in_turn() -> None:
    made = selector.train_tokenizer(TEXTS, 900)
    whole, coarse = fewer_merges(*made), fewer_merges(*made, 0.1)
    texts = ["remove the rain", "remove the rain", "remvoe teh rain"]
    ids = encoder(whole, coarse)(texts)
    assert ids.shape == (3, selector.CONTEXT) and not torch.equal(ids[0], ids[1])
    assert ids[2].tolist() == whole.encode(texts[2]).ids and ids[1].tolist() == coarse.encode(texts[1]).ids
    assert torch.equal(encoder(whole)(texts)[:1], ids[:1])
    long = "remove the rain " * 20  # 60 words, of which the coarse one would lose half
    read = encoder(whole, coarse)(["remove the rain", long])[1]
    assert read.tolist() == whole.encode(long).ids != coarse.encode(long).ids


def test_training_goes_on_from_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selector_training, "VALIDATION_REQUESTS", 50)
    first = find(EMBEDDED / "base", EMBEDDED / "clip", EMBEDDED / "pre-trained")
    shutil.copytree(EMBEDDED, tmp_path / "checkpoint")
    (tmp_path / "pool/shard000").mkdir(parents=True)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 2, 224, 224, 3), dtype=np.uint8)
    np.save(tmp_path / "pool/shard000/small.npy", pictures)
    options = Options(steps=1, train_batch_size=8, learning_rate=1e-9)

    def train(start: Path | None) -> None:
        selector_training.train(tmp_path, options, base=None, clip=None, wanted=None, start=start)

    train(EMBEDDED)
    tree = tmp_path / "checkpoint"
    made = find(tree / "base", tree / "clip", tree / "pre-trained")
    for part in ("text_encoder", "selector"):
        before, now = first.load(part).state_dict(), made.load(part).state_dict()
        assert all(torch.allclose(now[name], value, atol=1e-3) for name, value in before.items()), part
    for name in ("vocab.json", "merges.txt"):
        assert (made.tokenizer / name).read_text() == (first.tokenizer / name).read_text()
    with pytest.raises(RequestError, match=r"start was .*, now null"):
        train(None)


def test_what_is_cut_off_is_not_learned(tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def encode(texts: list[str]) -> torch.Tensor:
        return torch.tensor([e.ids for e in tokenizer.encode_batch(texts)])

    asked = [Request("remove the rain", ("derain",)), Request("remove the haze " * 60, ("derain", "dehaze"))]
    monkeypatch.setattr(corpus, "corpus", lambda count, seed, words: asked * 4)
    model = selector.fresh(selector.text_config(tokenizer.get_vocab(), 32))
    options = Options(steps=1, train_batch_size=4)
    objective = selector.Selecting(model, torch.randn(4, 2, 32), encode, ("derain", "dehaze"), options, count=8)
    assert objective.whole.tolist() == [0, 2, 4, 6]
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(selector, "margin_loss", lambda s, wanted: seen.append(wanted) or s.sum())  # type: ignore[func-returns-value]
    objective(0, np.random.default_rng(0))
    assert seen[0].tolist() == [[1, 0, 0]] * 4
