"""Damaged, incomplete and hostile checkpoints: each is read with the same meaning, or refused in one line."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra [export]")

from safetensors.torch import load_file, save_file

from diffplugin.errors import CheckpointError
from diffplugin.export.checkpoints import check_checkpoint, find
from tests.export.checkpoints.tiny import copy_linked, write_tiny

CONFIGS = (
    "base/unet/config.json",
    "base/vae/config.json",
    "base/text_encoder/config.json",
    "base/scheduler/scheduler_config.json",
    "base/tokenizer/tokenizer_config.json",
    "base/tokenizer/special_tokens_map.json",
    "clip/config.json",
    "clip/preprocessor_config.json",
    "pre-trained/deblur/scb/config.json",
)
WEIGHTS = (
    "base/unet/diffusion_pytorch_model.safetensors",
    "base/vae/diffusion_pytorch_model.safetensors",
    "base/text_encoder/model.safetensors",
    "clip/model.safetensors",
    "pre-trained/deblur/scb/diffusion_pytorch_model.bin",
    "pre-trained/deblur/tpb.pt",
    "pre-trained/plugin_selector/PromptTunner.pt",
)
# Of the files below, those that the quick tests change; the slow ones change all.
QUICK = (
    "base/vae/diffusion_pytorch_model.safetensors",
    "pre-trained/deblur/tpb.pt",
    "base/vae/config.json",
    "clip/preprocessor_config.json",
    "base/tokenizer/vocab.json",
)
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 7, 9, 10**6, 10**30, 0.5, 1e308, float("nan"), float("inf"), "", "x",
    "\0\x1b[2J", "y" * 9999, [], [[]], [1] * 4, [320, "x"], [10**9] * 2, [None] * 2, {}, {"content": 3},
    {"shortest_edge": 2}, {"a": {"b": []}}, [True, 2], "DownBlock2D", ["DownBlock2D"] * 2, 49407, 64, [0.0] * 3,
    [float("nan")] * 3,
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def outcome(root: Path) -> str:
    """ "read", or the one line that refuses it. Anything else is a failure of the test."""
    try:
        checkpoint = find(root / "base", root / "clip", root / "pre-trained")
        check_checkpoint(checkpoint)
    except CheckpointError as error:
        text = str(error)
        assert text and "\n" not in text and len(text) < 6000, text
        return text
    for part in checkpoint.parts():  # what was checked can be loaded
        checkpoint.load(part)
    return "read"


def tried(tiny: Path, place: Path, changed: str, change: Callable[[Path], None]) -> str:
    """The outcome with one file changed."""
    root = copy_linked(tiny, place, Path(changed))
    try:
        change(root / changed)
        return outcome(root)
    finally:
        shutil.rmtree(root)


def changes_of_configs(tiny: Path, rng: random.Random, values: int) -> Iterator[tuple[str, str, Any]]:
    """(file, key, value): every key of every config gone (``...``), null, and replaced by some of VALUES."""
    for name in CONFIGS:
        for key in json.loads((tiny / name).read_text()):
            for value in (..., None, *rng.sample(VALUES, values)):
                yield name, key, value


def check_configs(tiny: Path, tmp_path: Path, seed: int, values: int, share: int = 1) -> None:
    rng, failures, read = random.Random(seed), [], 0
    for name, key, value in list(changes_of_configs(tiny, rng, values))[seed % share :: share]:

        def change(path: Path, key: str = key, value: Any = value) -> None:
            config = json.loads(path.read_text())
            config.pop(key)
            path.write_text(json.dumps(config if value is ... else config | {key: value}))

        try:
            read += tried(tiny, tmp_path / "copy", name, change) == "read"
        except Exception as error:
            failures.append(f"{name} {key}={value!r:.60}: {type(error).__name__}: {error!s:.200}")
    assert not failures, "\n".join(failures)
    assert read > 0, "no change was harmless: the test cannot tell a refusal from a failure"


def test_the_checkpoint_is_sound(tiny: Path) -> None:
    assert outcome(tiny) == "read"


def test_configs_without_a_key_or_with_a_wrong_value(tiny: Path, tmp_path: Path) -> None:
    check_configs(tiny, tmp_path, seed=1, values=1, share=16)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_every_key_of_every_config_with_many_values(tiny: Path, tmp_path: Path, seed: int) -> None:
    check_configs(tiny, tmp_path, seed=seed, values=8)


def _tensors(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A change of the tensors in a file, which is written again in its format."""

    def apply(path: Path) -> None:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            save_file(change(tensors) or tensors, path)
        else:
            found = torch.load(path, weights_only=True)
            tensors = found.get("model", found)
            torch.save(change(tensors) or tensors, path)

    return apply


def _replaced(make: Callable[[Any], Any]) -> Callable[[Path], None]:
    """The first tensor of a file replaced."""

    def change(tensors: dict[str, Any]) -> None:
        name = sorted(tensors)[0]
        tensors[name] = make(tensors[name]).contiguous()

    return _tensors(change)


def _rewritten(make: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        path.write_bytes(make(path.read_bytes()))

    return apply


def _put(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Something else in the place of the file."""

    def apply(path: Path) -> None:
        path.unlink()
        make(path)

    return apply


class _Code:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('the code of a pickle ran')",))


def _header(size: int, rest: bytes = b"{}") -> bytes:
    return struct.pack("<Q", size) + rest


WRONG_FILES: dict[str, Callable[[Path], None]] = {
    "empty": _rewritten(lambda data: b""),
    "one byte": _rewritten(lambda data: data[:1]),
    "truncated": _rewritten(lambda data: data[: len(data) // 2]),
    "without its last byte": _rewritten(lambda data: data[:-1]),
    "longer by a byte": _rewritten(lambda data: data + b"x"),
    "text": _rewritten(lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    "a header without end": _rewritten(lambda data: _header(2**62)),
    "a header of 100 MB": _rewritten(lambda data: _header(10**8)),
    "a header that is no JSON": _rewritten(lambda data: _header(4, b"{{{{")),
    "a tensor beyond the file": _rewritten(
        lambda data: _header(62, b'{"a":{"dtype":"F32","shape":[999999],"data_offsets":[0,3999996]}}'[:62])
    ),
    "a pickle with code": _put(lambda path: path.write_bytes(pickle.dumps({"model": _Code()}))),
    "a pickle with code, zipped": _put(lambda path: torch.save({"a": _Code()}, path)),
    "a list": _put(lambda path: torch.save([1, 2], path)),
    "names that are numbers": _put(lambda path: torch.save({1: torch.zeros(1)}, path)),
    "a folder": _put(lambda path: path.mkdir()),
    "gone": _put(lambda path: None),
    "a link to nothing": _put(lambda path: path.symlink_to("nowhere")),
    "a link to itself": _put(lambda path: path.symlink_to(path.name)),
    "a pipe": _put(os.mkfifo),
    "a device": _put(lambda path: path.symlink_to("/dev/zero")),
    "one tensor gone": _tensors(lambda tensors: tensors.pop(sorted(tensors)[0]) is None or None),
    "one tensor more": _tensors(lambda tensors: tensors.update({"more\n\x1b[2J": torch.zeros(2)})),
    "every name changed": _tensors(lambda tensors: {f"x.{name}": value for name, value in tensors.items()}),
    "integers": _replaced(lambda value: value.to(torch.int8)),
    "booleans": _replaced(lambda value: value > 0),
    "complex numbers": _replaced(lambda value: value.to(torch.complex64)),
    "eight bits": _replaced(lambda value: value.to(torch.float8_e4m3fn)),
    "another shape": _replaced(lambda value: value[None]),
    "no values": _replaced(lambda value: value.flatten()[:0]),
    "NaN": _replaced(lambda value: value * float("nan")),
    "infinity": _replaced(lambda value: value + float("inf")),
}
HARMLESS_FILES: dict[str, Callable[[Path], None]] = {
    "float16": _tensors(lambda tensors: {name: value.half() for name, value in tensors.items()}),
    "bfloat16": _tensors(lambda tensors: {name: value.bfloat16() for name, value in tensors.items()}),
    "float64": _tensors(lambda tensors: {name: value.double() for name, value in tensors.items()}),
    "names of a wrapper": _tensors(lambda tensors: {f"module.{name}": value for name, value in tensors.items()}),
}


QUICK_WEIGHTS = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in WEIGHTS]


@pytest.mark.parametrize("name", QUICK_WEIGHTS)
def test_weight_files_that_are_wrong_are_refused(tiny: Path, tmp_path: Path, name: str) -> None:
    for kind, change in WRONG_FILES.items():
        said = tried(tiny, tmp_path / "copy", name, change)
        optional = name.endswith("PromptTunner.pt") and kind == "gone"  # a bundle without a selector
        optional |= (
            not name.endswith(".safetensors") and kind == "longer by a byte"
        )  # what follows an archive is no part
        assert (said == "read") == optional, f"{kind}: {said}"
        if kind in ("a pipe", "a device", "NaN", "integers", "a folder"):
            assert Path(name).name in said, f"{kind}: {said}"


@pytest.mark.parametrize("name", QUICK_WEIGHTS)
def test_weight_files_that_are_unusual_are_read(tiny: Path, tmp_path: Path, name: str) -> None:
    for kind, change in HARMLESS_FILES.items():
        assert tried(tiny, tmp_path / "copy", name, change) == "read", kind


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in (*CONFIGS, "base/tokenizer/vocab.json", "base/tokenizer/merges.txt")
    ],
)
def test_config_files_that_are_wrong_are_refused(tiny: Path, tmp_path: Path, name: str) -> None:
    wrong: dict[str, Callable[[Path], None]] = {
        kind: change
        for kind, change in WRONG_FILES.items()
        if kind in ("empty", "one byte", "truncated", "a folder", "gone", "a link to nothing", "a link to itself",
                    "a pipe", "a device", "a pickle with code")
    }  # fmt: skip
    wrong["deeply nested"] = _rewritten(lambda data: b'{"a":' * 50_000)
    wrong["a list"] = _rewritten(lambda data: b"[1, 2]")
    wrong["a number of 9,999 digits"] = _rewritten(lambda data: b'{"a": ' + b"9" * 9999 + b"}")
    wrong["UTF-16"] = _rewritten(lambda data: data.decode().encode("utf-16"))
    for kind, change in wrong.items():
        said = tried(tiny, tmp_path / "copy", name, change)
        gone = kind == "gone" and Path(name).name in (
            "preprocessor_config.json", "tokenizer_config.json", "special_tokens_map.json"
        )  # fmt: skip
        if not (name.endswith("merges.txt") and kind in ("empty", "truncated", "one byte")):
            assert (said == "read") == gone, f"{kind}: {said}"


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "tokenizer", "scheduler", "clip", "scb"])
def test_folders_that_are_missing_or_files(tiny: Path, tmp_path: Path, name: str) -> None:
    folder = {"clip": "clip", "scb": "pre-trained/deblur/scb"}.get(name, f"base/{name}")
    for make in (lambda path: None, lambda path: path.write_text("x"), lambda path: path.symlink_to(path.name)):
        root = copy_linked(tiny, tmp_path / "copy", Path())
        shutil.rmtree(root / folder)
        make(root / folder)
        said = outcome(root)
        assert said != "read" and name in said
        shutil.rmtree(root)


def test_faults_of_several_files_are_told_at_once(tiny: Path, tmp_path: Path) -> None:
    root = copy_linked(tiny, tmp_path / "copy", Path())
    for name, text in (("base/vae/config.json", "{"), ("clip/preprocessor_config.json", '{"resample": 2}')):
        (root / name).unlink()
        (root / name).write_text(text)
    for name in (WEIGHTS[0], WEIGHTS[5]):
        (root / name).unlink()
        (root / name).write_bytes(b"")
    scheduler = root / CONFIGS[3]
    config = json.loads(scheduler.read_text())
    scheduler.unlink()
    scheduler.write_text(json.dumps(config | {"rescale_betas_zero_snr": True}))
    said = outcome(root)
    for part in ("vae/config.json: not a JSON", "resample is 2, expected 3", "diffusion_pytorch_model.safetensors: not",
                 "tpb.pt: not", "rescale_betas_zero_snr is True"):  # fmt: skip
        assert part in said, f"{part} is not named in: {said}"
