"""Where pairs come from: the released CSV, folders, the hub; and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffplugin.errors import ImageError, RequestError
from diffplugin.plugins.train import sources

RNG = np.random.default_rng(0)


def picture(path: Path, size: tuple[int, int] = (40, 30), **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path, **more)
    return path


def table(folder: Path, rows: list[tuple[str, str]], head: str = "image,conditioning_image") -> Path:
    path = folder / "pairs.csv"
    path.write_text("\n".join([head, *(",".join(row) for row in rows)]) + "\n")
    return path


def test_reads_the_released_columns(tmp_path: Path) -> None:
    for name in ("gt.png", "in.png"):
        picture(tmp_path / name)
    found = sources.open_source(table(tmp_path, [("gt.png", "in.png"), ("gt.png", "gt.png")]))
    assert isinstance(found, sources.Files) and found.paths(0) == (tmp_path / "gt.png", tmp_path / "in.png")
    assert [found.same(i) for i in range(2)] == [False, True]
    truth, given = found.pair(0)
    assert np.array_equal(np.asarray(truth), np.asarray(Image.open(tmp_path / "gt.png")))
    assert not np.array_equal(np.asarray(truth), np.asarray(given))


@pytest.mark.parametrize(
    ("rows", "head", "message"),
    [
        ([("a.png", "b.png")], "gt,input", "no column image, conditioning_image"),
        ([], "image,conditioning_image", "no pairs"),
        ([("a.png", "b.png")], "image,conditioning_image", "2 of 2 files are missing"),
        ([("a.png", "")], "image,conditioning_image", "line 2 names no pair"),
    ],
)
def test_faulty_csv(tmp_path: Path, rows: list[tuple[str, str]], head: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        sources.open_source(table(tmp_path, rows, head))


@pytest.mark.parametrize("names", sources.FOLDERS)
def test_folders_pair_up_by_name(tmp_path: Path, names: tuple[str, str]) -> None:
    for stem in ("b/2", "a"):
        picture(tmp_path / names[0] / f"{stem}.png")
        picture(tmp_path / names[1] / f"{stem}.jpg")
    found = sources.open_source(tmp_path)
    assert len(found) == 2 and isinstance(found, sources.Files)
    assert [[p.relative_to(tmp_path).as_posix() for p in found.paths(i)] for i in range(2)] == [
        [f"{names[0]}/{stem}.png", f"{names[1]}/{stem}.jpg"] for stem in ("a", "b/2")
    ]


def test_faulty_folders(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no two folders of a pair"):
        sources.open_source(tmp_path)
    picture(tmp_path / "gt/a.png")
    (tmp_path / "input").mkdir()
    with pytest.raises(RequestError, match="1 pictures have no partner, first a"):
        sources.open_source(tmp_path)
    with pytest.raises(RequestError, match="neither a CSV file, nor a folder, nor a hub id"):
        sources.open_source("nothing here")


def test_two_sizes_are_named_before_any_training(tmp_path: Path) -> None:
    picture(tmp_path / "gt.png", (70, 50))
    picture(tmp_path / "in.png", (50, 70))
    picture(tmp_path / "same.png", (50, 70))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    rows = [("gt.png", "in.png"), ("same.png", "in.png"), ("broken.png", "in.png")]
    found = sources.open_source(table(tmp_path, rows))
    with pytest.raises(ImageError, match=r"gt.png, .*in.png: 70x50 and 50x70 pixels"):
        found.pair(0)
    with pytest.raises(ImageError, match=r"2 of 3 pairs cannot be used: .*70x50 and 50x70") as caught:
        sources.check_sizes(found)
    assert "broken.png" in str(caught.value) and "\n" not in str(caught.value)
    assert isinstance(found, sources.Files)
    sources.check_sizes(found.part([1]))


def test_a_turned_photo_pairs_with_an_upright_one(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "gt.jpg", (70, 50), exif=exif.tobytes())
    picture(tmp_path / "in.png", (50, 70))
    found = sources.open_source(table(tmp_path, [("gt.jpg", "in.png")]))
    sources.check_sizes(found)
    assert {p.size for p in found.pair(0)} == {(50, 70)}


def test_other_pairs_have_another_key(tmp_path: Path) -> None:
    keys = {sources.Files(rows, tmp_path).key() for rows in ([("a", "b")], [("a", "c")], [("a", "b")] * 2)}
    assert len(keys) == 3 and sources.Files([("a", "b")], tmp_path).key() in keys
    assert sources.Files([("a", "b")], tmp_path / "x").key() not in keys


def test_every_twentieth_pair_is_held_out() -> None:
    kept, held = sources.split(100)
    assert held == [0, 20, 40, 60, 80] and len(kept) == 95 and not set(kept) & set(held)
    assert sources.split(1) == ([0], [0]) and sources.split(3) == ([1, 2], [0])


@pytest.mark.filterwarnings("ignore")  # of dill, with which datasets hashes
def test_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra [datasets]")
    files = [[str(picture(tmp_path / f"{kind}{i}.png")) for i in range(3)] for kind in ("gt", "in")]
    arrow = pytest.importorskip("pyarrow", reason="needs the extra [datasets]")
    table = arrow.table(dict(zip(sources.COLUMNS, files, strict=True)))
    made = datasets.Dataset(datasets.table.InMemoryTable(table), fingerprint="made-here")
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: asked.append((name, split)) or made)  # type: ignore[func-returns-value]
    found = sources.open_source("someone/rain:test")
    assert asked == [("someone/rain", "test")] and len(found) == 3
    truth, given = found.pair(2)
    assert np.array_equal(np.asarray(truth), np.asarray(Image.open(files[0][2])))
    assert np.array_equal(np.asarray(given), np.asarray(Image.open(files[1][2])))
    assert found.key() != sources.Hub(made, sources.COLUMNS, "someone/snow").key()
