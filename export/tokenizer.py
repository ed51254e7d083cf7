"""CLIP's tokenizer folder -> one ``tokenizer.json`` that needs no transformers.

A folder has ``vocab.json`` and ``merges.txt``, or ``tokenizer.json`` alone, as transformers 5 saves it. From the
latter, only vocabulary and merges are read; the rules are built in, so an untrusted file cannot add its own patterns.

Byte-level BPE of arXiv:2103.00020: text is NFC-normalised, lower-cased and split into words, numbers (digit by
digit) and signs; each piece ends in ``</w>``. Equal to transformers' CLIPTokenizer (a test).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffplugin.errors import CheckpointError
from diffplugin.export.reading import MAX_TOKENIZER_BYTES, check_file, exists, is_file, is_folder, read_json

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

_ROLES = {"bos": "<|startoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>", "pad": "<|endoftext|>"}
_PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
_FLAGS = ("lstrip", "rstrip", "normalized", "single_word")
_MAX_ID = 2**24
FILES = ("tokenizer.json", "vocab.json", "merges.txt", *_SETTINGS)


@dataclass
class _Parts:
    """The contents of a folder: token -> id, merges in order, special tokens by role, and the faults."""

    vocab: dict[str, int] = field(default_factory=dict)
    merges: list[tuple[str, str]] = field(default_factory=list)
    tokens: dict[str, AddedToken] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds a tokenizer's files."""
    return is_file(folder / "tokenizer.json") or (is_file(folder / "vocab.json") and is_file(folder / "merges.txt"))


def build_tokenizer(folder: str | Path, context: int = 77) -> Tokenizer:
    """The tokenizer of a CLIP ``tokenizer/`` folder; ``encode(text).ids`` always gives ``context`` ids.

    Raises:
        CheckpointError: files are missing, unreadable or contradict each other; all faults are reported at once.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    parts = _read(Path(folder))
    vocab, tokens = parts.vocab, parts.tokens
    content = {role: token.content for role, token in tokens.items()}
    bpe = models.BPE(
        vocab, parts.merges, unk_token=content["unk"], continuing_subword_prefix="", end_of_word_suffix="</w>"
    )
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


def end_and_largest(folder: Path) -> tuple[int, int]:
    """(the id that ends a text, the largest id) of a tokenizer's folder.

    Raises:
        CheckpointError: the folder has no usable tokenizer.
    """
    parts = _read(folder)
    return parts.vocab[parts.tokens["eos"].content], max(parts.vocab.values())


def _read(folder: Path) -> _Parts:
    if not is_folder(folder):
        raise CheckpointError(f"{folder}: missing; expected a CLIP tokenizer's folder")
    parts = _Parts()
    settings = [_json(folder / name, parts.faults) for name in _SETTINGS if exists(folder / name)]
    if is_file(folder / "tokenizer.json") and not (is_file(folder / "vocab.json") and is_file(folder / "merges.txt")):
        settings.append(_read_single(folder / "tokenizer.json", parts))
    else:
        parts.vocab = _vocabulary(_json(folder / "vocab.json", parts.faults), "vocab.json", parts.faults)
        _read_merges(folder / "merges.txt", parts)
    parts.tokens = {role: _special(role, settings, parts.faults) for role in _ROLES}
    if parts.vocab:
        parts.faults += [
            f"{name} token {token.content!r:.60} is not in the vocabulary"
            for name, token in parts.tokens.items()
            if token.content not in parts.vocab
        ]
        unknown = {part for pair in parts.merges for part in (*pair, "".join(pair)) if part not in parts.vocab}
        if unknown:
            parts.faults.append(f"{len(unknown)} merged tokens are not in the vocabulary, first {min(unknown)!r:.60}")
    if parts.faults:
        raise CheckpointError(f"{folder}: not a CLIP tokenizer: {'; '.join(dict.fromkeys(parts.faults))}")
    return parts


def _read_single(path: Path, parts: _Parts) -> dict[str, Any]:
    """Vocabulary and merges of a ``tokenizer.json``; returns its special tokens, as a settings file gives them."""
    whole = _json(path, parts.faults)
    model = whole.get("model")
    if not isinstance(model, dict):
        if whole:
            parts.faults.append("tokenizer.json: has no model, expected an object")
        return {}
    wrong = [
        f"tokenizer.json: {key} is {model.get(key)!r:.60}, expected {wanted!r}"
        for key, wanted in (("type", "BPE"), ("end_of_word_suffix", "</w>"))
        if model.get(key) != wanted
    ]
    if wrong:
        parts.faults += wrong
        return {}
    listed = whole.get("added_tokens")
    added = {
        token["content"]: token
        for token in (listed if isinstance(listed, list) else ())
        if isinstance(token, dict) and isinstance(token.get("content"), str)
    }
    vocab = model.get("vocab")
    ends = {name: token["id"] for name, token in added.items() if name in _ROLES.values() and "id" in token}
    parts.vocab = _vocabulary(ends | vocab if isinstance(vocab, dict) else {}, "tokenizer.json", parts.faults)
    merges = model.get("merges")
    # pairs, or lines as older versions wrote them
    pairs = [m.split(" ") if isinstance(m, str) else m for m in (merges if isinstance(merges, list) else ())]
    if not isinstance(merges, list):
        parts.faults.append("tokenizer.json: has no merges, expected a list")
    _keep_pairs(pairs, "tokenizer.json", parts)
    return {f"{role}_token": added[content] for role, content in _ROLES.items() if content in added}


def _read_merges(path: Path, parts: _Parts) -> None:
    try:
        check_file(path, max_bytes=MAX_TOKENIZER_BYTES)
        lines = path.read_text(encoding="utf-8").splitlines()
    except CheckpointError as error:
        parts.faults.append(f"merges.txt cannot be read ({_without_path(error, path)})")
        return
    except (OSError, UnicodeDecodeError) as error:
        parts.faults.append(f"merges.txt cannot be read ({getattr(error, 'strerror', None) or error})")
        return
    _keep_pairs([line.split(" ") for line in lines if line and not line.startswith("#version")], "merges.txt", parts)


def _keep_pairs(pairs: list[Any], name: str, parts: _Parts) -> None:
    wrong = [pair for pair in pairs if not _is_pair(pair)]
    if wrong:
        text = " ".join(map(str, wrong[0])) if isinstance(wrong[0], list) else str(wrong[0])
        parts.faults.append(f"{name}: {text[:60]!r} is no pair ({len(wrong)} such)")
    parts.merges = [(pair[0], pair[1]) for pair in pairs if _is_pair(pair)]


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) and part for part in value)


def _vocabulary(table: dict[str, Any], name: str, faults: list[str]) -> dict[str, int]:
    """A table of tokens and ids, checked."""
    wrong = [token for token, number in table.items() if type(number) is not int or not 0 <= number < _MAX_ID]
    if wrong:
        faults.append(f"{name}: the id of {wrong[0][:60]!r} is {table[wrong[0]]!r:.60}, expected a whole number")
        return {}
    if len(set(table.values())) != len(table):
        faults.append(f"{name}: {len(table) - len(set(table.values()))} ids are given twice")
    if not table and not faults:
        faults.append(f"{name}: has no tokens")
    return table


def _json(path: Path, faults: list[str]) -> dict[str, Any]:
    try:
        return read_json(path, max_bytes=MAX_TOKENIZER_BYTES)
    except CheckpointError as error:
        faults.append(f"{path.name} cannot be read ({_without_path(error, path)})")
        return {}


def _without_path(error: CheckpointError, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")


def _special(role: str, settings: list[dict[str, Any]], faults: list[str]) -> AddedToken:
    """The special token of one role: that of the settings, or CLIP's own."""
    from tokenizers import AddedToken

    given: Any = next((table[f"{role}_token"] for table in settings if table.get(f"{role}_token")), _ROLES[role])
    if isinstance(given, str):  # a name alone; what else is known of it stands in tokenizer.json
        given = _described(given, settings) or given
    if isinstance(given, str):
        return AddedToken(given, special=True)
    content = given.get("content") if isinstance(given, Mapping) else None
    if not isinstance(content, str) or not content:
        faults.append(f"{role}_token is {given!r:.60}, expected a token")
        return AddedToken(_ROLES[role], special=True)
    return AddedToken(content, special=True, **{name: bool(given[name]) for name in _FLAGS if name in given})


def _described(content: str, settings: list[dict[str, Any]]) -> Any:
    """The entry of ``tokenizer.json`` for a token, if there is one."""
    for table in settings:
        for value in table.values():
            if isinstance(value, Mapping) and "id" in value and value.get("content") == content:
                return value
    return None
