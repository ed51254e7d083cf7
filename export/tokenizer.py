"""CLIP's tokenizer folder (``vocab.json``, ``merges.txt``) -> one ``tokenizer.json`` that needs no transformers.

Byte-level BPE of arXiv:2103.00020: text is NFC-normalised, lower-cased and split into words, numbers (digit by
digit) and signs; each piece ends in ``</w>``. Equal to transformers' CLIPTokenizer (a test).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffplugin.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

_ROLES = {"bos": "<|startoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>", "pad": "<|endoftext|>"}
_PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def build_tokenizer(folder: str | Path, context: int = 77) -> Tokenizer:
    """The tokenizer of a CLIP ``tokenizer/`` folder; ``encode(text).ids`` always gives ``context`` ids.

    Raises:
        CheckpointError: files are missing, unreadable or contradict each other; all faults at once.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocab, merges, tokens = _read(Path(folder))
    content = {role: token.content for role, token in tokens.items()}
    bpe = models.BPE(vocab, merges, unk_token=content["unk"], continuing_subword_prefix="", end_of_word_suffix="</w>")
    made = Tokenizer(bpe)
    made.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list({token.content: token for token in tokens.values()}.values()))
    made.post_processor = processors.RobertaProcessing(
        (content["eos"], vocab[content["eos"]]),
        (content["bos"], vocab[content["bos"]]),
        trim_offsets=False,
        add_prefix_space=False,
    )
    made.enable_truncation(context)
    made.enable_padding(length=context, pad_id=vocab[content["pad"]], pad_token=content["pad"])
    return made


def write_tokenizer(folder: str | Path, out: str | Path, context: int = 77) -> None:
    """Write :func:`build_tokenizer`'s result to the file ``out``."""
    Path(out).write_text(build_tokenizer(folder, context).to_str(pretty=True) + "\n", encoding="utf-8")


def _read(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]], dict[str, AddedToken]]:
    """(token -> id, merges in order, special tokens by role) of a tokenizer folder."""
    faults: list[str] = []
    vocab = _json(folder / "vocab.json", faults)
    settings = {name: _json(folder / name, faults, optional=True) for name in _SETTINGS}
    tokens = {role: _special(role, settings) for role in _ROLES}
    merges: list[tuple[str, str]] = []
    try:
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        faults += [f"merges.txt: {' '.join(pair)!r} is no pair" for pair in pairs if len(pair) != 2][:3]
        merges = [(pair[0], pair[-1]) for pair in pairs]
    except (OSError, UnicodeDecodeError) as error:
        faults.append(f"merges.txt cannot be read ({getattr(error, 'strerror', None) or error})")
    if vocab:
        faults += [f"{name} token {token.content!r} is not in vocab.json" for name, token in tokens.items()
                   if token.content not in vocab]  # fmt: skip
        unknown = {part for pair in merges for part in (*pair, "".join(pair)) if part not in vocab}
        if unknown:
            faults.append(f"{len(unknown)} merged tokens are not in vocab.json, first {min(unknown)!r}")
    if faults:
        raise CheckpointError(f"{folder}: not a CLIP tokenizer: {'; '.join(faults)}")
    return vocab, merges, tokens


_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")


def _json(path: Path, faults: list[str], *, optional: bool = False) -> dict[str, Any]:
    if optional and not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        faults.append(f"{path.name} cannot be read ({getattr(error, 'strerror', None) or error})")
        return {}
    if not isinstance(value, dict):
        faults.append(f"{path.name} holds no table")
        return {}
    return value


def _special(role: str, settings: Mapping[str, Mapping[str, Any]]) -> AddedToken:
    """The special token of one role: the config's, the token map's, or CLIP's own."""
    from tokenizers import AddedToken

    given: Any = next((file[f"{role}_token"] for file in settings.values() if file.get(f"{role}_token")), _ROLES[role])
    if isinstance(given, str):
        return AddedToken(given, special=True)
    flags = {name: bool(given[name]) for name in ("lstrip", "rstrip", "normalized", "single_word") if name in given}
    return AddedToken(given["content"], special=True, **flags)
