"""A request in words -> the ids that the text encoder takes. The bundle's ``tokenizer.json`` holds all rules."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffplugin.errors import BundleError, MissingDependency
from diffplugin.spec import Array

if TYPE_CHECKING:
    import tokenizers


def load_tokenizer(path: str | Path) -> tokenizers.Tokenizer:
    """The tokenizer in a bundle's ``tokenizer.json``.

    Raises:
        BundleError: the file is missing or is no tokenizer.
        MissingDependency: the ``tokenizers`` package is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingDependency("the tokenizers package is missing: pip install diffplugin brings it") from error
    if not Path(path).is_file():
        raise BundleError(f"{path}: the tokenizer is missing; export the bundle again")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises plain Exception
        raise BundleError(f"{path}: not a tokenizer ({error}); export the bundle again") from None


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
