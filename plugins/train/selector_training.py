"""Training of the Plugin-Selector for the plugins of a work folder: pictures, heads, and the threshold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice, zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from diffplugin.errors import RequestError
from diffplugin.export.checkpoints import Checkpoint, find
from diffplugin.plugins import cards
from diffplugin.plugins.train import common, corpus, data, layout, pool, record, selector
from diffplugin.plugins.train.metrics import selection
from diffplugin.plugins.train.selector_options import Options
from diffplugin.plugins.train.wording import WORDS
from diffplugin.runtime.request.spelling import Speller

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BATCH = 16  # pictures that the encoders see at once
_ENCODED = 1024  # texts at once: an encoding is large
TOKENIZER_REQUESTS, WORDS_REQUESTS = 30_000, 60_000
COARSER = (1.0, 1.0, 0.4, 0.1)  # parts of the merges that requests are read with while training
VALIDATION_REQUESTS = 2000


def pictures(work: Path, per_task: int) -> Iterator[common.Pixels]:
    """Degraded pictures [224, 224, 3] that the work folder's plugins learned from, task by task in turn.

    Raises:
        RequestError: there are none.
    """
    found = [_of_source(note, per_task) for note in sorted((work / "pairs").glob("*.json")) if _is_source(note)]
    folders = [work / "pool", *sorted(work.glob("pool-*")), *sorted((work / "pairs").glob("*/"))]
    files = [file for folder in folders for file in sorted(folder.glob("shard*/small.npy"))]
    found += [_of_shard(file, per_task) for file in files]
    if not found:
        raise RequestError(f"{work}: no pictures for the selector; train a plugin there first")
    return (picture for row in zip_longest(*found) for picture in row if picture is not None)


def _is_source(note: Path) -> bool:
    return "pairs" in json.loads(note.read_text(encoding="utf-8")) and not note.name.endswith(".inputs.json")


def _of_source(note: Path, count: int) -> Iterator[common.Pixels]:
    kept = json.loads(note.read_text(encoding="utf-8"))
    root = Path(kept["root"]) if kept["root"] else None
    chosen = data.Data(work=note.parent.parent, pairs=kept["pairs"], root=root, degradation=kept["degradation"])
    opened = data.open_pairs(chosen, released=True)
    rng = np.random.default_rng(0)
    for index in rng.permutation(opened.kept)[:count]:
        truth, given = opened.source.pair(int(index))
        pixels = np.asarray(given)
        if opened.degrade is not None and opened.source.same(int(index)):
            pixels = opened.degrade(np.asarray(truth), rng)
        yield pool.shrink(pixels)


def _of_shard(file: Path, per_task: int) -> Iterator[common.Pixels]:
    """Pictures of a shard, each once, its tasks in turn."""
    kept = np.load(file, mmap_mode="r")
    for i in range(min(kept.shape[1], per_task * len(kept))):
        yield np.asarray(kept[i % len(kept), i])


@torch.no_grad()
def plugin_rows(read: Checkpoint, seen: Iterator[common.Pixels], count: int | None = None) -> Tensor:
    """Max-pooled TPB tokens [pictures, plugins, D] of at most ``count`` pictures [224, 224, 3]."""
    vision = read.vision_encoder()
    branches = [read.tpb(task) for task in read.plugins]
    rows = []
    wanted = islice(seen, count)
    while batch := list(islice(wanted, _BATCH)):
        patches = vision(pool.clip_pixels(np.stack(batch)))
        rows.append(torch.stack([branch(patches).amax(dim=1) for branch in branches], dim=1))
    return torch.cat(rows)


def train(
    work: Path,
    options: Options,
    *,
    base: Path | None,
    clip: Path | None,
    wanted: Sequence[str] | None,
    start: Path | None = None,
    restart: bool = False,
) -> dict[str, dict[str, float]]:
    """Train the selector for the plugins of ``work/checkpoint`` and write it there, with its threshold.

    Args:
        start: checkpoint folder whose selector this one begins with: tokenizer, text encoder and heads.
        restart: a state made from other inputs is removed.

    Returns:
        Held-out metrics by kind of request, at that threshold; they are printed too.

    Raises:
        RequestError: a number out of its range, no pictures, or a state of another training.
        CheckpointError: the base, CLIP or the plugins are not whole.
    """
    options.check()
    tree = work / "checkpoint"
    read = find(base or tree / "base", clip or tree / "clip", tree / "pre-trained", wanted or ())
    config, shipped = read.config("text_encoder"), tuple(read.plugins)
    found = cards.registry(tree)
    own = {task: corpus.wording_of(found[task]) for task in shipped if task not in WORDS}
    words = {**WORDS, **own}
    count = options.images_per_task * (len(shipped) if options.heads_only else 1)
    seen = hashlib.sha256()
    rows = plugin_rows(read, _digested(pictures(work, options.images_per_task), seen), count)
    name = "selector" + (f"_{options.removed}" if options.removed else "")
    state = work / f"run/{name}.pt"
    before = None if start is None else find(start / "base", start / "clip", start / "pre-trained")
    taken = record.claim(state, _key(read, options, own, seen.hexdigest()[:16], before), restart=restart)
    made = None if options.heads_only else _tokenizer(state.with_name(f"{name}-tokenizer.json"), words, taken, before)
    torch.manual_seed(options.seed)
    if made is None:
        model = _selector_of(before or read, heads=before is not None)
        encode = learn_encode = encoder(tokenizer_of(read.tokenizer))
    else:
        config = before.config("text_encoder") if before else selector.text_config(made[0], config["hidden_size"])
        model = _selector_of(before) if before else selector.fresh(config)
        whole = fewer_merges(*made)
        known = corpus.known_words(WORDS_REQUESTS, words)
        encode = repairing(encoder(whole), Speller.of(*known))
        learn_encode = encoder(whole, *(fewer_merges(*made, part) for part in COARSER))
    selector.remove_head(model.heads, options.removed)
    held = max(len(rows) // 5, 1)
    learn = rows[held:] if len(rows) > held else rows
    if made is not None and before is None and options.removed != "visual" and len(shipped) <= learn.shape[-1]:
        selector.separate(model.heads, learn)
    selector.fit(learn, learn_encode, model, shipped, state, options, words=words)
    model.eval()
    threshold = best_threshold(model, rows[:held], encode, shipped, words)
    if made is not None:
        layout.write_tokenizer(tree, *made)
        layout.write_text(tree, config, model.text.state_dict())
        layout.write_words(tree, *known)
    layout.write_selector(tree, model.heads.state_dict(), threshold)
    print(f"threshold {threshold:.3f}, chosen on {VALIDATION_REQUESTS} requests of the training's own kinds")
    scores = selector.accuracy(model, rows[:held], encode, shipped, words=words, threshold=threshold)
    for kind, values in scores.items():
        print(kind, " ".join(f"{key} {value:.3f}" for key, value in values.items()))
    return scores


def _digested(found: Iterator[common.Pixels], digest: Any) -> Iterator[common.Pixels]:
    """The same pictures; what was taken of them is in ``digest`` afterwards."""
    for picture in found:
        digest.update(np.ascontiguousarray(picture))
        yield picture


def _selector_of(read: Checkpoint, *, heads: bool = True) -> selector.Selector:
    """A checkpoint's text encoder, with its heads or new ones."""
    text = read.text_encoder()
    model = selector.Selector(text, read.config("text_encoder")["hidden_size"])
    if heads:
        model.heads.load_state_dict(read.selector_heads().state_dict())
    return model


def _key(
    read: Checkpoint, options: Options, own: corpus.Words, seen: str, before: Checkpoint | None
) -> dict[str, object]:
    """Everything that makes a state another training's."""
    text = read.source("text_encoder").files if options.heads_only else ()
    start = {"start": record.weights_key(*before.source("text_encoder").files)} if before else {}
    return {
        **start,
        "plugins": {task: record.weights_key(place / "tpb.pt") for task, place in read.plugins.items()},
        "wording": record.text_key(repr(sorted(own.items()))),
        "pictures": seen,
        "text encoder": record.weights_key(*text) if text else "",
        "options": {name: value for name, value in asdict(options).items() if name != "steps"},
    }


def _tokenizer(
    place: Path, words: corpus.Words, taken: bool, before: Checkpoint | None
) -> tuple[dict[str, int], list[str]]:
    """The tokenizer that this training began with: another run would break ties between merges otherwise."""
    if before is not None:
        vocab = json.loads((before.tokenizer / "vocab.json").read_text(encoding="utf-8"))
        return vocab, (before.tokenizer / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    if taken and place.exists():
        kept = json.loads(place.read_text(encoding="utf-8"))
        return kept["vocab"], kept["merges"]
    vocab, merges = new_tokenizer(words)
    layout.write_json(place, {"vocab": vocab, "merges": merges})
    return vocab, merges


def new_tokenizer(words: corpus.Words) -> tuple[dict[str, int], list[str]]:
    """Vocabulary and merges for the requests of a corpus."""
    return selector.train_tokenizer([request.text for request in corpus.corpus(TOKENIZER_REQUESTS, 0, words=words)])


def tokenizer_of(folder: Path) -> Tokenizer:
    """A checkpoint's tokenizer."""
    from diffplugin.export.tokenizer import build_tokenizer

    return build_tokenizer(folder)


def repairing(encode: selector.Encode, speller: Speller) -> selector.Encode:
    """``encode`` of requests whose typing errors are repaired, as at run time. To learn from, they are not: then the
    encoder also reads errors that no repair finds."""
    return lambda texts: encode([speller.repaired(text, selector.CONTEXT) for text in texts])


def fewer_merges(vocab: Mapping[str, int], merges: Sequence[str], part: float = 1.0) -> Tokenizer:
    """The tokenizer with the first ``part`` of its merges.

    With fewer of them words fall into smaller pieces, as a misspelt word does: trained on several such tokenizations of
    what it learns, the encoder reads words by their letters too (BPE-dropout, arXiv:1910.13267, with whole levels of
    merges in place of single ones, so that it is the same in every run).
    """
    with TemporaryDirectory() as folder:
        layout.write_tokenizer(Path(folder), vocab, list(merges[: round(part * len(merges))]))
        return tokenizer_of(Path(folder) / "base/tokenizer")


def encoder(*tokenizers: Tokenizer) -> selector.Encode:
    """``encode(texts)`` -> ids int64 [n, 77]: text i by tokenizer i, in turn; by the first one where the text is too
    long for its own, so that no wish is cut off for being read in small pieces."""

    def encode(texts: list[str]) -> Tensor:
        ids = np.zeros((len(texts), selector.CONTEXT), np.int64)
        every = _ENCODED * len(tokenizers)
        for begin in range(0, len(texts), every):
            for i, one in enumerate(tokenizers):
                some = slice(begin + i, begin + every, len(tokenizers))
                if found := one.encode_batch_fast(texts[some]):
                    ids[some] = [encoding.ids for encoding in found]
                    cut = [begin + i + k * len(tokenizers) for k, e in enumerate(found) if i and e.overflowing]
                    if cut:
                        again = tokenizers[0].encode_batch_fast([texts[k] for k in cut])
                        ids[cut] = [encoding.ids for encoding in again]
        return torch.from_numpy(ids)

    return encode


@torch.no_grad()
def best_threshold(
    model: selector.Selector, rows: Tensor, encode: selector.Encode, shipped: Sequence[str], words: corpus.Words
) -> float:
    """The score above which a plugin is selected (theta of paper Eq. 5) with the best zero-tolerance accuracy.

    It is chosen on requests of the training's grammar in new combinations: the held-out wording stays unseen. Of the
    thresholds that are equally good the middle one; 0, the paper's, where none is better by more than 0.2 points.
    """
    requests = corpus.corpus(VALIDATION_REQUESTS, 77, words=words)
    rng = np.random.default_rng(77)
    seen = rows[torch.from_numpy(rng.integers(0, len(rows), len(requests)))]
    null, texts = encode([" "]), [r.text for r in requests]
    parts = [model(encode(texts[i : i + 256]), seen[i : i + 256], null)[:, :-1] for i in range(0, len(texts), 256)]
    scores = torch.cat(parts).numpy()
    wanted = selector.targets(requests, shipped)[:, :-1].numpy() > 0.5
    return pick_threshold(scores, wanted)


def pick_threshold(scores: np.ndarray, wanted: np.ndarray, margin: float = 0.002) -> float:
    """The threshold of :func:`best_threshold`, of scores and wishes [requests, plugins]."""
    candidates = np.unique(np.quantile(scores, np.linspace(0, 1, 401)))
    middles = (candidates[1:] + candidates[:-1]) / 2
    if not len(middles):
        return 0.0
    accuracy = np.array([selection(scores, wanted, float(theta))["ZTA"] for theta in middles])
    best = accuracy.max()
    if best - selection(scores, wanted, 0.0)["ZTA"] <= margin:
        return 0.0
    good = np.flatnonzero(accuracy >= best - 1e-12)
    run = max(np.split(good, np.flatnonzero(np.diff(good) > 1) + 1), key=len)
    return float((middles[run[0]] + middles[run[-1]]) / 2)
