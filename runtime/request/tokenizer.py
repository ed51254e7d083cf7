"""A request in words -> token ids for the text encoder. The bundle's ``tokenizer.json`` holds all rules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffplugin.errors import BundleError, MissingDependency
from diffplugin.integrity import read_text
from diffplugin.spec import Array

if TYPE_CHECKING:
    import tokenizers

_MAX_BYTES = 2**24  # of the file; CLIP's has 4 MB with all its white space
_MAX_CONTEXT = 1024
_MAX_TEXT = 256
_MAX_ITEMS = 64
_TYPES = {"Sequence", "NFC", "Replace", "Lowercase", "Split", "ByteLevel", "RobertaProcessing", "BPE"}
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_PATTERNS = {r"\s+", _PIECES, rf"<\|startoftext\|>|<\|endoftext\|>|{_PIECES}"}


def load_tokenizer(path: str | Path) -> tokenizers.Tokenizer:
    """The tokenizer in a bundle's ``tokenizer.json``.

    Raises:
        BundleError: the file is missing, or is not a tokenizer of CLIP's kind.
        MissingDependency: the ``tokenizers`` package is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingDependency("the tokenizers package is missing: pip install diffplugin brings it") from error
    try:
        text = read_text(Path(path), limit=_MAX_BYTES)
        fault = next(_faults(json.loads(text)), None)
    except FileNotFoundError:
        raise BundleError(f"{path}: the tokenizer is missing; export the bundle again") from None
    except (OSError, ValueError, RecursionError) as error:
        fault = f"cannot be read: {error}"
    if fault:
        raise BundleError(f"{path}: not a tokenizer of CLIP's kind ({fault}); export the bundle again")
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the package raises plain Exception
        raise BundleError(f"{path}: not a tokenizer ({error}); export the bundle again") from None


def _faults(value: Any) -> Iterator[str]:
    """Faults of a file that is not a tokenizer of CLIP's kind. The package runs whatever the file contains: paddings of
    any length, texts that grow with every replacement, patterns that never end."""
    if not isinstance(value, dict):
        yield "no object"
        return
    given = (value.get(name) for name in ("model", "padding", "truncation"))
    model, padding, truncation = (part if isinstance(part, dict) else {} for part in given)
    sized = isinstance(padding.get("strategy"), dict)
    context = padding["strategy"].get("Fixed") if sized else None
    if type(context) is not int or not 1 <= context <= _MAX_CONTEXT:
        yield f"it pads to {str(context)[:20]} ids, expected 1 to {_MAX_CONTEXT}"
    if truncation.get("max_length") != context or truncation.get("stride") != 0:
        yield "it does not cut to as many ids as it pads to"
    if padding.get("pad_to_multiple_of") is not None:
        yield "it pads to a multiple of a number"
    if model.get("dropout"):
        yield "its model drops merges at random"
    small = {key: item for key, item in value.items() if key != "model"}
    yield from _unusual(
        {**small, "model": {key: item for key, item in model.items() if key not in ("vocab", "merges")}}
    )


def _unusual(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, dict | list) and len(value) > _MAX_ITEMS:
        yield f"{key} has {len(value)} entries, expected at most {_MAX_ITEMS}"
    elif isinstance(value, dict):
        if value.get("type") == "Replace" and value.get("content") != " ":
            yield f"it replaces by {str(value.get('content'))[:20]!a}"
        for name, item in value.items():
            yield from _unusual(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _unusual(item, key)
    elif isinstance(value, str):
        if len(value) > _MAX_TEXT:
            yield f"{key} has {len(value)} characters, expected at most {_MAX_TEXT}"
        elif key == "type" and value not in _TYPES:
            yield f"{value!a} is no part of it"
        elif (key == "Regex" and value not in _PATTERNS) or key == "String":
            yield f"it looks for {value!a}"


def token_ids(tokenizer: tokenizers.Tokenizer, text: str, context: int) -> Array:
    """Ids [1, ``context``] int64 of ``text``: begin, words (cut to fit), end, padding; as transformers' CLIPTokenizer
    with ``padding="max_length", truncation=True``.

    Raises:
        BundleError: the tokenizer was made for another length.
    """
    ids = tokenizer.encode(text).ids
    if len(ids) != context:
        raise BundleError(f"the tokenizer makes {len(ids)} ids, the text encoder takes {context}; export again")
    return np.array([ids], dtype=np.int64)


def fits_context(tokenizer: tokenizers.Tokenizer, text: str) -> bool:
    """Whether all of ``text`` fits; the end of a longer request is not read."""
    return not tokenizer.encode(text).overflowing
