"""Streamed pairs: the released views, an order that can be resumed, faults in one line."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffplugin.errors import ImageError
from diffplugin.plugins.train import sources, stream
from diffplugin.plugins.train.degradations import released_face
from diffplugin.plugins.train.sources import Files

RNG = np.random.default_rng(0)


def numbered(folder: Path, count: int, size: tuple[int, int] = (12, 10)) -> Files:
    """Pairs of one grey value each: input 2 i, truth 2 i + 1."""
    for i in range(count):
        for name, value in (("in", 2 * i), ("gt", 2 * i + 1)):
            Image.new("RGB", size, (value,) * 3).save(folder / f"{name}{i}.png")
    return Files([(f"gt{i}.png", f"in{i}.png") for i in range(count)], folder)


def test_without_augmentation_a_pair_is_squeezed_into_a_square() -> None:
    wide = Image.fromarray(RNG.integers(0, 255, (30, 60, 3), dtype=np.uint8))
    given, truth = stream.resized(wide, wide, 16)
    want = np.asarray(wide.resize((16, 16), Image.Resampling.BILINEAR))
    assert np.array_equal(given, want) and np.array_equal(truth, want)


@pytest.mark.parametrize(("size", "cut"), [((40, 30), 16), ((40, 12), 12), ((12, 40), 12), ((16, 40), None)])
def test_augmentation_crops_and_mirrors_as_released(size: tuple[int, int], cut: int | None) -> None:
    """``cut``: side of the crop that half of the pairs get; None: a side of exactly 16 is not cropped."""
    width, height = size
    ramp = np.stack(np.broadcast_arrays(np.arange(width)[None], np.arange(height)[:, None], 0), axis=-1) * 6
    photo = Image.fromarray(ramp.astype(np.uint8))
    whole = np.asarray(photo.resize((16, 16), Image.Resampling.BILINEAR))
    kinds: Counter[str] = Counter()
    for seed in range(400):
        given, truth = stream.augmented(photo, photo, 16, np.random.default_rng(seed))
        assert given.shape == (16, 16, 3) and np.array_equal(given, truth), "both see the same part"
        mirrored = int(given[8, -1, 0]) < int(given[8, 0, 0])
        upright = given[:, ::-1] if mirrored else given
        full = np.array_equal(upright, whole)
        if not full and cut == 16:
            step = np.diff(upright[8, :, 0].astype(int))
            assert (step == 6).all(), "a crop of the training side is not resized"
        kinds["mirrored" if mirrored else "upright", "whole" if full else "cropped"] += 1  # type: ignore[index]
    share = {name: sum(n for kind, n in kinds.items() if name in kind) / 400 for name in ("mirrored", "cropped")}
    assert share["mirrored"] == pytest.approx(0.5, abs=0.08), share
    assert share["cropped"] == pytest.approx(0.5 if cut else 0.0, abs=0.08), share


def test_all_processes_together_see_every_pair_once_a_pass() -> None:
    seen: list[tuple[int, int]] = []
    for process in range(3):
        for keys in stream.order(60, 4, first=0, last=10, process=process, processes=3):
            assert len(keys) == 4
            seen += keys
    assert Counter(seen) == Counter((epoch, i) for epoch in range(2) for i in range(60))
    passes = [[i for epoch, i in stream_of(60) if epoch == e] for e in range(2)]
    assert passes[0] != sorted(passes[0]) and passes[0] != passes[1], "shuffled, each pass on its own"


def stream_of(count: int) -> list[tuple[int, int]]:
    return [key for keys in stream.order(count, 4, first=0, last=30) for key in keys]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_stream_goes_on_where_it_was(tmp_path: Path, workers: int) -> None:
    pairs = stream.Pairs(numbered(tmp_path, 9), range(9), 8, augment=True)
    batches = stream.Batches(pairs, 2, workers=workers)
    whole = list(batches(0, 7, 0, 1))
    resumed = list(batches(4, 7, 0, 1))
    assert len(whole) == 7 and len(resumed) == 3
    for a, b in zip(whole[4:], resumed, strict=True):
        assert torch.equal(a.given, b.given) and torch.equal(a.truth, b.truth)
    for batch in whole:
        assert batch.given.shape == batch.truth.shape == (2, 3, 8, 8) and batch.given.dtype == torch.float32
        levels = ((batch.truth - batch.given) * 127.5).round()
        assert (levels == 1).all(), "input and ground truth belong together"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_in_a_worker_is_one_line(tmp_path: Path, workers: int) -> None:
    source = numbered(tmp_path, 3)
    (tmp_path / "in1.png").write_bytes(b"no picture")
    batches = stream.Batches(stream.Pairs(source, range(3), 8), 3, workers=workers)
    with pytest.raises(ImageError, match=r"in1.png: not a readable picture") as caught:
        list(batches(0, 1, 0, 1))
    assert "\n" not in str(caught.value)


def test_faces_are_degraded_on_the_fly_and_anew_in_every_pass(tmp_path: Path) -> None:
    smooth = np.clip(RNG.normal(128, 60, (12, 12, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(smooth).resize((96, 96), Image.Resampling.BICUBIC).save(tmp_path / "face.png")
    source = Files([("face.png", "face.png")], tmp_path)
    pairs = stream.Pairs(source, [0], 96, degrade=released_face)
    views = [pairs.pixels((epoch, 0)) for epoch in (0, 0, 1)]
    assert np.array_equal(views[0][1], np.asarray(Image.open(tmp_path / "face.png"))), "the truth stays"
    assert np.array_equal(views[0][0], views[1][0]), "seeded"
    assert not np.array_equal(views[0][0], views[2][0]), "another pass, another degradation"
    assert not np.array_equal(views[0][0], views[0][1])
    untouched = stream.Pairs(numbered(tmp_path, 1), [0], 8, degrade=released_face).pixels((0, 0))
    assert (untouched[0] == 0).all() and (untouched[1] == 1).all(), "pairs of two files are what they are"


def resident_mib() -> float:
    """Of this process and its children, each by its share of common pages."""
    found = 0
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if os.getpid() in (int(place.name), parent):
                lines = (place / "smaps_rollup").read_text().splitlines()
                found += next(int(line.split()[1]) for line in lines if line[:4] == "Pss:")
        except (OSError, StopIteration):  # ended meanwhile
            continue
    return found / 1024


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory as Linux tells it")
def test_fifty_thousand_pairs_stream_with_flat_memory(tmp_path: Path) -> None:
    count, kinds = 50_000, 50
    for kind in range(kinds):
        for name in ("gt", "in"):
            pixels = RNG.integers(0, 256, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{name}{kind}.bmp")
    rows = ["image,conditioning_image"]
    for i in range(count):  # files of their own names
        folder = tmp_path / f"{i // 1000}"
        folder.mkdir(exist_ok=True)
        for name in ("gt", "in"):
            os.link(tmp_path / f"{name}{i % kinds}.bmp", folder / f"{name}{i}.bmp")
        rows.append(f"{i // 1000}/gt{i}.bmp,{i // 1000}/in{i}.bmp")
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + "\n")
    source = sources.open_source(str(tmp_path / "pairs.csv"), None)
    assert len(source) == count
    sources.check_sizes(source)
    batches = stream.Batches(stream.Pairs(source, range(count), 32, augment=True), 50, workers=2)
    along = {}
    for step, batch in enumerate(batches(0, count // 50, 0, 1), 1):
        assert batch.given.shape == (50, 3, 32, 32)
        if step % 100 == 0:
            along[50 * step] = resident_mib()
    grown = max(along.values()) - along[10_000]
    assert len(along) == 10 and grown < 100, f"all decoded pairs are 293 MiB; MiB after so many: {along}"
