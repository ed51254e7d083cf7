"""Reading a bundle's tokenizer.json, and what counts as a request."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from diffplugin.errors import BundleError, RequestError
from diffplugin.export.tokenizer import build_tokenizer, write_tokenizer
from diffplugin.runtime.options import validate_prompt
from diffplugin.runtime.request.tokenizer import fits_context, load_tokenizer, token_ids


def _tiny(folder: Path) -> Path:
    """A tokenizer.json with the letters of "blur" and one merge."""
    words = ["b", "l", "u", "r", "r</w>", "bl", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nb l\n")
    write_tokenizer(folder, folder / "tokenizer.json", 8)
    return folder / "tokenizer.json"


def test_ids_are_begin_words_end_padding(tmp_path: Path) -> None:
    ids = token_ids(load_tokenizer(_tiny(tmp_path)), " BLUR\n", 8)
    assert ids.dtype == np.int64 and ids.tolist() == [[6, 5, 2, 4, 7, 7, 7, 7]]


def test_long_requests_are_cut_and_keep_their_end(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(_tiny(tmp_path))
    assert token_ids(tokenizer, "blur " * 50, 8).tolist() == [[6, 5, 2, 4, 5, 2, 4, 7]]
    assert not fits_context(tokenizer, "blur " * 50) and fits_context(tokenizer, "blur blur")


def test_a_tokenizer_for_another_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="makes 8 ids, the text encoder takes 77"):
        token_ids(load_tokenizer(_tiny(tmp_path)), "blur", 77)


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="missing"):
        load_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="not a tokenizer"):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_a_request_has_words(tmp_path: Path) -> None:
    assert validate_prompt("  remove blur \n") == "remove blur"
    assert build_tokenizer(_tiny(tmp_path).parent).encode(validate_prompt("blur \udcff")).ids  # undecodable bytes
    for empty in ("", "  \n", "?!"):
        with pytest.raises(RequestError, match="request is empty"):
            validate_prompt(empty)
    with pytest.raises(RequestError, match="10000 characters"):
        validate_prompt("x" * 10_000)
