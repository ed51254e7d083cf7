"""CLIP's BPE as one file, against transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from diffplugin.errors import CheckpointError
from diffplugin.export.tokenizer import build_tokenizer, write_tokenizer
from diffplugin.runtime.request.tokenizer import load_tokenizer, token_ids

NASTY = [
    "", " ", "remove the blur", "Can you REMOVE rain streaks, and sharpen blurry edges?", "word " * 200, "x" * 5000,
    "<|endoftext|>", "a <|EndOfText|> b", "x<|startoftext|>y", "<|startoftext|><|endoftext|>", "</w> a</w>", "</w",
    "It's DON'T we've I'LL 'D 'm''s '", "a1234 5,6!!!... 1/2 ½ ٣ Ⅷ", "!!!" * 40, "#$%&()*+,-./:;<=>?@[\\]^_`{|}~",
    "日本語 e\u0301 한국어 العربية עברית हिन्दी", "🙂👨\u200d👩\u200d👧 🇪🇺", "ﬁ İ ß ẞ Ǆ ſ Σς", "\ufeffbom \u00ad soft",
    "\t\n\r\v\f a \u00a0 b\u3000c\u200bd\u2028e", "\x00 \x07 \x1b[0m \x7f", "\ud7ff\uffff\U0010ffff", "naïve café",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(oracle: Path) -> Path:
    return oracle / "checkpoint/stable-diffusion/tokenizer"


def test_equal_to_transformers(folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPTokenizer.from_pretrained(str(folder))
    write_tokenizer(folder, tmp_path / "tokenizer.json")
    ours = load_tokenizer(tmp_path / "tokenizer.json")
    for text in NASTY:
        expected = theirs(text, padding="max_length", truncation=True, max_length=77).input_ids
        assert token_ids(ours, text, 77).tolist() == [expected], repr(text[:40])


def test_tokens_may_be_given_by_either_file(folder: Path, tmp_path: Path) -> None:
    wanted = build_tokenizer(folder).to_str()
    for kept in ("tokenizer_config.json", "special_tokens_map.json", "vocab.json"):  # vocab.json: CLIP's own tokens
        copy = tmp_path / kept
        copy.mkdir()
        for name in {kept, "vocab.json", "merges.txt"}:
            shutil.copy(folder / name, copy)
        made = build_tokenizer(copy)
        assert (
            made.encode("don't remove <|endoftext|>").ids
            == build_tokenizer(folder).encode("don't remove <|endoftext|>").ids
        )
        if kept != "vocab.json":
            assert made.to_str() == wanted


def test_another_pad_token_is_read_from_the_config(folder: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(folder / name, tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "!"}))
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    assert token_ids(build_tokenizer(tmp_path, 16), "blur", 16)[0, -1] == vocab["!"]


def test_faults_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\na b c\n")
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError) as caught:
        build_tokenizer(tmp_path)
    for part in ("'a b c' is no pair", "bos token '<|startoftext|>'", "merged tokens", "tokenizer_config.json cannot"):
        assert part in str(caught.value)
    with pytest.raises(CheckpointError, match=r"vocab.json cannot be read.*merges.txt cannot be read"):
        (tmp_path / "none").mkdir()
        build_tokenizer(tmp_path / "none")
