"""CLIP's BPE as one file, against transformers."""

from __future__ import annotations

import json
import re
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


def _single(folder: Path, out: Path) -> Path:
    """``tokenizer.json`` alone, as transformers 5 saves the tokenizer of ``folder``."""
    transformers = pytest.importorskip("transformers")
    transformers.CLIPTokenizer.from_pretrained(str(folder)).save_pretrained(out)
    if not (out / "tokenizer.json").is_file():
        pytest.skip("this transformers writes no tokenizer.json")
    for name in ("vocab.json", "merges.txt"):
        (out / name).unlink(missing_ok=True)
    return out


def test_tokenizer_json_alone_gives_the_same_ids(folder: Path, tmp_path: Path) -> None:
    beside = folder.parents[3] / "cases" / "tok" / "tokenizer"
    expected = build_tokenizer(folder)
    for place in (_single(folder, tmp_path), *([beside] if beside.is_dir() else [])):
        made = build_tokenizer(place)
        for text in NASTY:
            assert made.encode(text).ids == expected.encode(text).ids, f"{place}: {text[:40]!r}"


def test_merges_as_lines_and_without_a_settings_file(folder: Path, tmp_path: Path) -> None:
    """As older versions of tokenizers wrote them."""
    place = _single(folder, tmp_path) / "tokenizer.json"
    (tmp_path / "tokenizer_config.json").unlink()
    whole = json.loads(place.read_text(encoding="utf-8"))
    whole["model"]["merges"] = [" ".join(pair) for pair in whole["model"]["merges"]]
    place.write_text(json.dumps(whole), encoding="utf-8")
    made, expected = build_tokenizer(tmp_path), build_tokenizer(folder)
    assert all(made.encode(text).ids == expected.encode(text).ids for text in NASTY)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": None}, "has no model"),
        ({"model": {"type": "Unigram"}}, "type is 'Unigram', expected 'BPE'"),
        ({"end_of_word_suffix": None}, "end_of_word_suffix is None, expected '</w>'"),
        ({"vocab": []}, "has no tokens"),
        ({"vocab": {"a": -1}}, "the id of 'a' is -1"),
        ({"vocab": {"a": 2**31}}, "the id of 'a' is 2147483648"),
        ({"vocab": {"a": "x"}}, "the id of 'a' is 'x'"),
        ({"merges": None}, "has no merges"),
        ({"merges": [["a"]]}, "'a' is no pair"),
        ({"merges": [["a", "b", "c"]] * 9}, "'a b c' is no pair (9 such)"),
        ({"merges": [["no", "such"]]}, "merged tokens are not in the vocabulary"),
        ({"added_tokens": [{"id": 1, "content": 3}, 7, None, {"content": "x"}]}, ""),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}}, "normalizer": 7}, ""),
    ],
)
def test_a_tokenizer_json_that_is_wrong(folder: Path, tmp_path: Path, change: dict[str, object], said: str) -> None:
    """Its rules are not read: ours are known."""
    place = _single(folder, tmp_path) / "tokenizer.json"
    whole = json.loads(place.read_text(encoding="utf-8"))
    for key, value in change.items():
        (whole["model"] if key in ("vocab", "merges", "end_of_word_suffix") else whole)[key] = value
    place.write_text(json.dumps(whole), encoding="utf-8")
    if said:
        with pytest.raises(CheckpointError, match=re.escape(said)):
            build_tokenizer(tmp_path)
    else:
        assert build_tokenizer(tmp_path).encode("don't").ids == build_tokenizer(folder).encode("don't").ids


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
