"""The Plugin-Selector: a small CLIP tokenizer and text encoder, and the two projection heads (paper Eqs. 4 to 7).

The paper trains the heads contrastively over a frozen CLIP. Here the text encoder is new, so encoder and heads learn
together, with a logistic loss on the very score that the runtime compares with zero: plugins are independent
decisions, and the decision point is exact. ``null`` is positive where no shipped plugin is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffplugin.plugins.networks.clip import TextEncoder
from diffplugin.plugins.networks.taskplugin import SelectorHeads
from diffplugin.plugins.train import corpus
from diffplugin.plugins.train.common import gaussian
from diffplugin.plugins.train.loop import TrainingArguments
from diffplugin.plugins.train.loop import fit as run
from diffplugin.plugins.train.metrics import selection
from diffplugin.plugins.train.selector_options import Options
from diffplugin.plugins.train.wording import WORDS, Request

Encode = Callable[[list[str]], Tensor]
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY = 5000
REQUESTS = 500_000
CONTEXT = 77


def text_config(vocab: dict[str, int], width: int) -> dict[str, Any]:
    """``text_encoder/config.json``."""
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "attention_dropout": 0.0,
        "bos_token_id": vocab[BEGIN],
        "eos_token_id": vocab[END],
        "pad_token_id": vocab[END],
        "hidden_act": "quick_gelu",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": CONTEXT,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "projection_dim": width,
        "vocab_size": len(vocab),
    }


def train_tokenizer(texts: Sequence[str], size: int = VOCABULARY) -> tuple[dict[str, int], list[str]]:
    """Vocabulary and merges of a lower-case byte-level BPE with CLIP's word splitting and ``</w>`` endings."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    pieces = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    made = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pieces), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        initial_alphabet=alphabet,
        show_progress=False,
        end_of_word_suffix="</w>",
        continuing_subword_prefix="",
    )
    made.train_from_iterator(texts, trainer)
    merges = [" ".join(pair) for pair in json.loads(made.to_str())["model"]["merges"]]
    # CLIP's order: bytes, bytes that end a word, merges, then the two marks. So every byte has both forms.
    tokens = alphabet + [letter + "</w>" for letter in alphabet]
    tokens += [token for merge in merges if (token := merge.replace(" ", "")) not in set(tokens)]
    vocab = {token: i for i, token in enumerate(dict.fromkeys([*tokens, BEGIN, END]))}
    return vocab, merges


class Selector(nn.Module):
    """Text encoder and heads together."""

    def __init__(self, text: TextEncoder, width: int) -> None:
        super().__init__()
        self.text, self.heads = text, SelectorHeads(width, width)
        with torch.no_grad():
            self.heads.logit_scale.fill_(2.0)

    def forward(self, ids: Tensor, rows: Tensor, null_ids: Tensor) -> Tensor:
        """Scores [n, p + 1] of requests [n, L] for max-pooled plugin rows [n, p, D]: the heads, for many pictures."""
        query = F.normalize(self.heads.proj_t(self.text(ids)), dim=-1)
        null = self.text(null_ids).expand(len(ids), 1, -1)
        values = F.normalize(self.heads.proj_v(torch.cat((rows, null), dim=1)), dim=-1)
        return torch.einsum("nd,npd->np", query, values) * self.heads.logit_scale.clamp(max=3.0).exp()


def fresh(config: dict[str, Any]) -> Selector:
    """A new small text encoder with its heads.

    Embeddings begin small and the first layer's attention as the mean of what it sees: what words mean is learned from
    the first step on. With the usual start the end mark hears little of them, and hundreds of steps pass before.
    """
    text = TextEncoder(config)
    first: Any = text.text_model.encoder.layers[0].self_attn
    with torch.no_grad():
        for embedding in (text.text_model.embeddings.token_embedding, text.text_model.embeddings.position_embedding):
            embedding.weight.mul_(0.04)
        for projection in (first.v_proj, first.out_proj):
            projection.weight.copy_(torch.eye(*projection.weight.shape))
        for projection in (first.q_proj, first.k_proj):
            projection.weight.mul_(0.3)
    return Selector(text, config["hidden_size"])


@torch.no_grad()
def separate(heads: SelectorHeads, rows: Tensor, ridge: float = 1e-3) -> None:
    """Start the visual head as the map that tells the plugins apart: ridge regression of their rows [pictures, p, D] to
    orthogonal directions. Rows of different plugins have much in common; a random map leaves them nearly parallel, and
    the heads then learn one plugin after another."""
    count, width = rows.shape[1:]
    wanted = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))[0][:count]
    x, mean = rows.reshape(-1, width).double(), rows.mean(dim=(0, 1)).double()
    x = x - mean
    square = x.T @ x
    size = square.diagonal().mean().clamp(min=1e-12)  # it is 0 where all rows are equal
    square += ridge * size * torch.eye(width, dtype=torch.float64)
    weight = torch.linalg.solve(square, x.T @ (wanted - wanted.mean(0)).repeat(len(rows), 1))
    heads.proj_v.weight.copy_(weight.T)
    heads.proj_v.bias.copy_(wanted.mean(0) - mean @ weight)


def targets(requests: Sequence[Request], shipped: Sequence[str]) -> Tensor:
    """[n, p + 1] of 0 and 1; ``null`` last. Tasks that are not shipped select nothing."""
    out = torch.zeros(len(requests), len(shipped) + 1)
    for i, request in enumerate(requests):
        for k, task in enumerate(shipped):
            out[i, k] = float(task in request.tasks)
        out[i, -1] = float(not out[i, :-1].any())
    return out


def drop(text: TextEncoder, rate: float = 0.1) -> None:
    """Dropout while training, on what the tokens say and on what attention and MLP add (arXiv:1706.03762)."""
    places: list[Any] = [text.text_model.embeddings.token_embedding]
    for layer in text.text_model.encoder.layers:
        places += [layer.self_attn, layer.mlp]
    for place in places:
        place.register_forward_hook(lambda m, _, out: F.dropout(out, rate, m.training))


def margin_loss(scores: Tensor, wanted: Tensor) -> Tensor:
    """Logistic loss of scores [n, p + 1] against 0 and 1, with a margin: undecided scores would flip with the picture
    or in half precision."""
    return F.softplus(1.0 - scores * (2 * wanted - 1)).mean()


def contrastive_loss(similarity: Tensor, temperature: float = 0.07) -> Tensor:
    """Paper Eq. 6: minus the log of the positive's share against the negatives.

    The indicator of Eq. 6 leaves texts of the anchor's own class out of the denominator, so the positive is not in it.

    Args:
        similarity: cosines of every anchor (a picture's row of one plugin) with its texts [anchors, 1 + N]: first one
            that asks for the plugin, then N that do not (the paper: 7, and more were better).
        temperature: tau; the paper does not give it.
    """
    logits = similarity / temperature
    return (logits[:, 1:].logsumexp(dim=1) - logits[:, 0]).mean()


def remove_head(heads: SelectorHeads, which: str) -> None:
    """Make a head the identity that does not learn (paper table 6); it stays a head of the released layout."""
    for name in {"": (), "visual": ("proj_v",), "textual": ("proj_t",)}[which]:
        head: nn.Linear = getattr(heads, name)
        with torch.no_grad():
            head.weight.copy_(torch.eye(*head.weight.shape))
            head.bias.zero_()
        head.requires_grad_(False)


class Selecting(nn.Module):
    """The objective of the selector over a corpus and rows of pictures.

    With ``heads_only`` the two heads learn alone, contrastively, over a frozen CLIP (the paper's setting); else the
    text encoder learns with them (:func:`margin_loss`, for a new small one).
    """

    def __init__(
        self,
        model: Selector,
        rows: Tensor,
        encode: Encode,
        shipped: Sequence[str],
        options: Options,
        *,
        count: int = REQUESTS,
        words: corpus.Words = WORDS,
    ) -> None:
        super().__init__()
        self.rows: Tensor
        self.ids: Tensor
        self.wanted: Tensor
        self.null: Tensor
        self.model, self.options = model, options
        frozen = [p for p in model.heads.parameters() if not p.requires_grad]
        model.requires_grad_(True)
        for parameter in frozen:
            parameter.requires_grad_(False)
        model.text.requires_grad_(not options.heads_only)
        if options.heads_only:
            model.heads.logit_scale.requires_grad_(False)  # Eq. 6 has tau in its place
        else:
            drop(model.text)
        requests = corpus.corpus(count, options.seed, words=words)
        ids = encode([r.text for r in requests])
        for name, value in (("rows", rows), ("ids", ids), ("wanted", targets(requests, shipped))):
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("null", encode([" "]), persistent=False)
        self.lengths = ids.argmax(dim=1).numpy()  # the first end mark has the highest id
        whole = np.flatnonzero(self.lengths < CONTEXT - 1)  # what is cut off would be asked for unseen
        self.whole = whole if len(whole) else np.arange(len(ids))
        asked = self.wanted[:, :-1] > 0.5
        self.askers = [asked[:, k].nonzero()[:, 0].numpy() for k in range(asked.shape[1])]
        self.others = [(~asked[:, k]).nonzero()[:, 0].numpy() for k in range(asked.shape[1])]
        self.anchors = [k for k in range(asked.shape[1]) if len(self.askers[k]) and len(self.others[k])]

    def forward(self, step: int, rng: np.random.Generator) -> Tensor:
        if self.options.heads_only:
            return self._contrastive(rng)
        device, batch = self.rows.device, self.options.train_batch_size
        torch.manual_seed(int(rng.integers(2**31)))  # for what is dropped
        drawn = self.whole[rng.integers(0, len(self.whole), 4 * batch)]
        # requests of like length together, so that little padding is computed
        drawn = drawn[np.argsort(self.lengths[drawn], kind="stable")].reshape(4, batch)[rng.integers(4)]
        chosen = torch.from_numpy(drawn).to(device)
        pictures = torch.from_numpy(rng.integers(0, len(self.rows), batch)).to(device)
        rows = self.rows[pictures]
        rows = rows * (1 + 0.02 * gaussian(rows.shape, rng).to(device))
        return margin_loss(self.model(self._seen(chosen), rows, self.null), self.wanted[chosen])

    def _contrastive(self, rng: np.random.Generator) -> Tensor:
        """Anchors with one positive and N negative texts each; a batch of texts is shared out among them."""
        device, texts = self.rows.device, 1 + self.options.negatives
        count = max(self.options.train_batch_size // texts, 1)
        tasks = [self.anchors[int(k)] for k in rng.integers(0, len(self.anchors), count)]
        chosen = np.stack(
            [np.append(rng.choice(self.askers[k]), rng.choice(self.others[k], self.options.negatives)) for k in tasks]
        )
        pictures = torch.from_numpy(rng.integers(0, len(self.rows), count)).to(device)
        heads, anchors = self.model.heads, self.rows[pictures, torch.tensor(tasks, device=device)]
        with torch.no_grad():
            text = self.model.text(self._seen(torch.from_numpy(chosen.reshape(-1)).to(device)))
        query = F.normalize(heads.proj_t(text), dim=-1).reshape(count, texts, -1)
        value = F.normalize(heads.proj_v(anchors), dim=-1)
        return contrastive_loss(torch.einsum("ad,atd->at", value, query), self.options.temperature)

    def _seen(self, chosen: Tensor) -> Tensor:
        """Ids of requests; nothing after the first end mark (the highest id) is seen, so the padding is cut."""
        ids = self.ids[chosen]
        return ids[:, : int(ids.argmax(dim=1).max()) + 1]


def fit(
    rows: Tensor,
    encode: Encode,
    model: Selector,
    shipped: Sequence[str],
    path: Path,
    options: Options,
    *,
    words: corpus.Words = WORDS,
) -> Selector:
    """Train or resume. ``rows`` [pictures, p, D]: max-pooled TPB tokens; ``encode(texts)`` -> ids int64 [n, 77]."""
    count = min(options.train_batch_size * options.steps, REQUESTS)
    objective = Selecting(model, rows, encode, shipped, options, count=count, words=words)
    arguments = TrainingArguments(
        steps=options.steps,
        peak=options.learning_rate,
        schedule=options.lr_scheduler,
        weight_decay=0.01 if options.heads_only else 0.02,
        betas=(0.9, 0.999) if options.heads_only else (0.9, 0.98),
        ema=None if options.heads_only else 0.99,
        every=250,
    )
    run(objective, arguments, path, name=path.stem, seed=options.seed)
    return model


@torch.no_grad()
def accuracy(
    model: Selector,
    rows: Tensor,
    encode: Encode,
    shipped: Sequence[str],
    *,
    count: int | None = None,
    words: corpus.Words = WORDS,
    threshold: float = 0.0,
    seed: int = 1,
) -> dict[str, dict[str, float]]:
    """The metrics of selection by kind of request, on held-out wording and the pictures of ``rows``, in PyTorch."""
    rng, null, found = np.random.default_rng(seed), encode([" "]), {}
    for kind in corpus.KINDS:
        requests = corpus.held_out(kind, count, seed, words)
        pictures = torch.from_numpy(rng.integers(0, len(rows), len(requests)))
        scores = model(encode([r.text for r in requests]), rows[pictures], null)
        wanted = targets(requests, shipped)[:, :-1].numpy() > 0.5
        found[kind] = selection(scores[:, :-1].numpy(), wanted, threshold)
    return found
