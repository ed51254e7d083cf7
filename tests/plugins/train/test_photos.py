"""Reading packages of photographs: Qt resource files, licence tables, the split."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffplugin.errors import CheckpointError, ImageError, RequestError
from diffplugin.plugins.train import common, photos
from diffplugin.plugins.train.qt_resources import read_rcc


def _rcc(files: dict[str, bytes]) -> bytes:
    """A version-1 resource file with one folder ``a``."""
    names, data, offsets, places = b"", b"", {}, {}
    for name in ("a", *files):
        offsets[name] = len(names)
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    for name, content in files.items():
        places[name] = len(data)
        data += struct.pack(">I", len(content)) + content
    nodes = struct.pack(">IHII", 0, 2, 1, 1) + struct.pack(">IHII", offsets["a"], 2, len(files), 2)
    for name in files:
        nodes += struct.pack(">IHHHI", offsets[name], 0, 0, 0, places[name])
    head = 20
    return (
        b"qres" + struct.pack(">4I", 1, head, head + len(nodes), head + len(nodes) + len(data)) + nodes + data + names
    )


def test_read_rcc_gives_paths_and_contents() -> None:
    assert dict(read_rcc(_rcc({"x.webp": b"one", "y.jpg": b"two!"}))) == {
        "/a/x.webp": b"one",
        "/a/y.jpg": b"two!",
    }


def test_read_rcc_names_what_it_got() -> None:
    with pytest.raises(CheckpointError, match="PNG"):
        list(read_rcc(b"\x89PNG0000"))


COPYRIGHT = """Format: x

Files: *
Copyright: The Package
License: GPL-3+

Files: src/activities/zoo/bear.jpg
 src/activities/zoo/cat.jpg
Copyright: A. Author
License: CC-BY-4.0
"""


def test_licence_of_names_the_most_specific_stanza() -> None:
    table = photos.licences(COPYRIGHT)
    assert photos.licence_of("/g/src/activities/zoo/cat.webp", table) == ("CC-BY-4.0", "A. Author")
    assert photos.licence_of("/g/src/activities/farm/cat.webp", table) == ("GPL-3+", "The Package")


def test_split_is_by_photo_and_keeps_the_documents_photos_out() -> None:
    names = [f"photo{i}" for i in range(2000)]
    splits = [photos.split_of(n) for n in names]
    assert splits == [photos.split_of(n) for n in names]
    assert 0.80 < splits.count("train") / 2000 < 0.88
    assert all(photos.split_of(f"x_{name}_y") == "test" for name in photos.HELD_OUT)


def test_a_package_that_cannot_be_had_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # a machine without apt
    with pytest.raises(RequestError, match="mate-backgrounds: not downloaded") as caught:
        photos.unpacked(tmp_path / "work", "mate-backgrounds")
    assert "\n" not in str(caught.value)


HEADER = "file,width,licence,author,source,split\n"


def _added(folder: Path, rows: str, *names: str) -> Path:
    folder.mkdir()
    (folder / "index.csv").write_text(HEADER + rows)
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (300, 640, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name, quality=95)
    return folder


def test_a_folder_with_an_index_joins_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "PACKAGES", {})
    rows = 'a.jpg,640,CC0 1.0,"Ann, A.",example.org/a,train\nsub/b.jpg,640,CC BY 4.0,Ben,example.org/b,test\n'
    place = _added(tmp_path / "mine", rows, "a.jpg", "sub/b.jpg")
    found = photos.fetch(tmp_path / "work", [place])
    assert [(p.file, p.split) for p in found] == [("mine_a.png", "train"), ("mine_sub_b.png", "test")]
    assert photos.load(tmp_path / "work", "train") == found[:1], "its test photos are not learned from"
    with Image.open(tmp_path / "work/photos/mine_a.png") as opened:
        assert opened.size == (640, 300)
    lines = (tmp_path / "work/LICENCES.txt").read_text().splitlines()
    assert lines[0] == "train mine_a.png | CC0 1.0 | Ann, A. | mine: example.org/a"


def test_a_photo_lying_on_its_side_is_turned_upright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "PACKAGES", {})
    place = _added(tmp_path / "mine", "a.jpg,640,CC0 1.0,Ann,example.org/a,train\n", "a.jpg")
    with Image.open(place / "a.jpg") as lying:
        exif = lying.getexif()
        exif[0x0112] = 6  # a quarter turn
        lying.save(place / "a.jpg", exif=exif)
    assert common.read_pixels(place / "a.jpg").shape == (640, 300, 3)
    photos.fetch(tmp_path / "work", [place])
    with Image.open(tmp_path / "work/photos/mine_a.png") as opened:
        assert opened.size == (300, 640)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a.jpg,640,,Ann,example.org,train\n", "line 2 has no licence"),
        ("a.jpg,640,CC0,Ann,example.org,dev\n", "line 2 has the split 'dev', expected train, val, test"),
        ("../a.jpg,640,CC0,Ann,example.org,train\n", "expected a file below the folder"),
        ("none.jpg,640,CC0,Ann,example.org,train\n", "none.jpg: No such file"),
        ("index.csv,640,CC0,Ann,example.org,train\n", "index.csv: no opaque JPEG or WebP photograph"),
        (
            "a.jpg,640,CC0,Ann,example.org,train\na.webp,640,CC0,Ann,example.org,test\n",
            "mine/a.webp would both become photos/mine_a.png; rename one of them",
        ),
    ],
)
def test_a_faulty_index_is_one_clear_line(
    rows: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photos, "PACKAGES", {})
    with pytest.raises((RequestError, ImageError), match=re.escape(message)) as caught:
        photos.fetch(tmp_path / "work", [_added(tmp_path / "mine", rows)])
    assert "\n" not in str(caught.value)


def test_a_folder_without_an_index_is_told_before_any_download(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"index\.csv: not a readable CSV file"):
        photos.fetch(tmp_path / "work", [tmp_path])
