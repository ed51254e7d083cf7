"""The Plugin-Selector: a small CLIP tokenizer and text encoder, and the two projection heads (paper Eqs. 4 to 7).

The paper trains the heads contrastively over a frozen CLIP. Here the text encoder is new, so encoder and heads learn
together, with a logistic loss on the very score that the runtime compares with zero: plugins are independent
decisions, and the decision point is exact. ``null`` is positive where no shipped plugin is asked for.
"""

from __future__ import annotations

import json
import time as clock
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffplugin.plugins.networks.clip import TextEncoder
from diffplugin.plugins.networks.taskplugin import SelectorHeads
from diffplugin.plugins.train import corpus
from diffplugin.plugins.train.common import load_state, rate, save_state

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY = 2000


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
        "intermediate_size": 2 * width,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 77,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
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

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.text = TextEncoder(config)
        self.heads = SelectorHeads(config["hidden_size"], config["hidden_size"])
        with torch.no_grad():
            self.heads.logit_scale.fill_(2.0)
            for embedding in (
                self.text.text_model.embeddings.token_embedding,
                self.text.text_model.embeddings.position_embedding,
            ):
                embedding.weight.mul_(0.3)

    def forward(self, ids: Tensor, rows: Tensor, null_ids: Tensor) -> Tensor:
        """Scores [n, p + 1] of requests [n, L] for max-pooled plugin rows [n, p, D]: the heads, for many pictures."""
        query = F.normalize(self.heads.proj_t(self.text(ids)), dim=-1)
        null = self.text(null_ids).expand(len(ids), 1, -1)
        values = F.normalize(self.heads.proj_v(torch.cat((rows, null), dim=1)), dim=-1)
        return torch.einsum("nd,npd->np", query, values) * self.heads.logit_scale.exp()


def targets(requests: Sequence[corpus.Request], shipped: Sequence[str]) -> Tensor:
    """[n, p + 1] of 0 and 1; ``null`` last. Tasks that are not shipped select nothing."""
    out = torch.zeros(len(requests), len(shipped) + 1)
    for i, request in enumerate(requests):
        for k, task in enumerate(shipped):
            out[i, k] = float(task in request.tasks)
        out[i, -1] = float(not out[i, :-1].any())
    return out


def fit(
    rows: Tensor,
    encode: Any,
    config: dict[str, Any],
    shipped: Sequence[str],
    path: Path,
    *,
    steps: int = 1500,
    batch: int = 64,
    peak: float = 2e-3,
    seed: int = 0,
) -> Selector:
    """Train or resume. ``rows`` [pictures, p, D]: max-pooled TPB tokens; ``encode(texts)`` -> ids int64 [n, 77]."""
    torch.manual_seed(seed)
    model = Selector(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.02, betas=(0.9, 0.98))
    first = 0
    if (state := load_state(path)) is not None:
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first = int(state["step"])
    requests = corpus.corpus(8000, seed, held=False)
    ids, wanted, null = encode([r.text for r in requests]), targets(requests, shipped), encode([" "])
    ends = (ids == config["eos_token_id"]).int().argmax(1)
    rng, began = np.random.default_rng((seed, first)), clock.time()
    for step in range(first, steps):
        for group in optimiser.param_groups:
            group["lr"] = rate(step, steps, peak)
        chosen = torch.from_numpy(rng.integers(0, len(ids), batch))
        pictures = torch.from_numpy(rng.integers(0, len(rows), batch))
        # nothing after the first end mark is seen (causal), so the padding need not be computed
        shown = ids[chosen][:, : int(ends[chosen].max()) + 1]
        noise = 1 + 0.02 * torch.randn(batch, rows.shape[1], rows.shape[2])
        scores = model(shown, rows[pictures] * noise, null[:, :3])
        # a margin on the logits: undecided scores would flip with the picture or in half precision
        sign = 2 * wanted[chosen] - 1
        loss = F.softplus(1.0 - scores * sign).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            model.heads.logit_scale.clamp_(max=3.0)
        if (step + 1) % 250 == 0 or step + 1 == steps:
            save_state(path, {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1})
            print(f"selector step {step + 1}/{steps} loss {loss.item():.4f} {clock.time() - began:.0f} s", flush=True)
    return model


@torch.no_grad()
def accuracy(
    model: Selector, rows: Tensor, encode: Any, shipped: Sequence[str], *, count: int = 300, seed: int = 1
) -> dict[str, float]:
    """Zero-tolerance accuracy (paper Eq. 7) by kind of request, on held-out wording and the pictures of ``rows``."""
    rng = np.random.default_rng(seed)
    found = {}
    null = encode([" "])
    for kind in ("single", "multi", "mixed", "none"):
        unique = {(r := corpus.sample(kind, rng, held=True)).text: r for _ in range(6 * count)}
        requests = list(unique.values())[:count]
        pictures = torch.from_numpy(rng.integers(0, len(rows), len(requests)))
        scores = model(encode([r.text for r in requests]), rows[pictures], null)
        right = ((scores[:, :-1] > 0) == (targets(requests, shipped)[:, :-1] > 0.5)).all(dim=1)
        found[kind] = float(right.float().mean())
    return found
