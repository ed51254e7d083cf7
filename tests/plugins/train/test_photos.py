"""Reading packages of photographs: Qt resource files, licence tables, the split."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from diffplugin.errors import CheckpointError, RequestError
from diffplugin.plugins.train import photos


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
    assert dict(photos.read_rcc(_rcc({"x.webp": b"one", "y.jpg": b"two!"}))) == {
        "/a/x.webp": b"one",
        "/a/y.jpg": b"two!",
    }


def test_read_rcc_names_what_it_got() -> None:
    with pytest.raises(CheckpointError, match="PNG"):
        list(photos.read_rcc(b"\x89PNG0000"))


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
