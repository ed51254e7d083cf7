"""Reading a bundle's tokenizer.json, and what counts as a request."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    assert validate_prompt("") == validate_prompt(" \n") == "auto"
    with pytest.raises(RequestError, match="has no words"):
        validate_prompt("?!")
    with pytest.raises(RequestError, match="10000 characters"):
        validate_prompt("x" * 10_000)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t["padding"]["strategy"].update(Fixed=10**10), "pads to 10000000000 ids"),
        (lambda t: t["padding"].update(strategy="BatchLongest"), "pads to None ids"),
        (lambda t: t["padding"].update(pad_to_multiple_of=10**10), "pads to a multiple"),
        (lambda t: t["padding"].update(pad_token="x" * 10**6), "pad_token has 1000000 characters"),
        (lambda t: t["truncation"].update(max_length=10**10), "does not cut"),
        (lambda t: t["truncation"].update(stride=7), "does not cut"),
        (lambda t: t.update(truncation=None), "does not cut"),
        (lambda t: t["normalizer"]["normalizers"][1].update(content="ab" * 100), "it replaces by 'abab"),
        (lambda t: t["normalizer"]["normalizers"].append({"type": "Prepend", "prepend": "x"}), "'Prepend' is no part"),
        (lambda t: t["normalizer"]["normalizers"].extend([{"type": "NFC"}] * 100), "normalizers has 103 entries"),
        (lambda t: t["normalizer"]["normalizers"][1]["pattern"].update(Regex="(a+)+$"), "it looks for '(a+)+$'"),
        (lambda t: t["pre_tokenizer"]["pretokenizers"][0].update(pattern={"String": "a"}), "it looks for 'a'"),
        (lambda t: t.update(post_processor={"type": "TemplateProcessing"}), "'TemplateProcessing' is no part"),
        (lambda t: t["model"].update(type="Unigram"), "'Unigram' is no part"),
        (lambda t: t["model"].update(dropout=0.5), "drops merges"),
    ],
)
def test_a_tokenizer_that_does_more_than_clips_is_refused_before_it_is_made(
    tmp_path: Path, change: Callable[[Any], object], said: str
) -> None:
    """The package does whatever the file says: ids without end, texts that grow, patterns that never end."""
    path = _tiny(tmp_path)
    value = json.loads(path.read_text())
    load_tokenizer(path)
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(BundleError, match=f"not a tokenizer of CLIP's kind .*{re.escape(said)}") as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"[]", b"[" * 100_000, b"\xff", b"null", b'{"padding": 3}', b" " * (2**24 + 1)])
def test_files_that_are_no_tokenizer_are_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(BundleError, match="not a tokenizer") as caught:
        load_tokenizer(path)
    assert "\n" not in str(caught.value)
