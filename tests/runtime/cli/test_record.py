"""The record of what was made from what."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from diffplugin.runtime.cli import record as module
from diffplugin.runtime.cli.record import RECORD, Record, fingerprint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """photos/ with a.png, b.png and a-restored.png, which was made from a.png; the record in cache/."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.png", "a-restored.png"):
        (photos / name).write_bytes(f"{name} {'x' * 100}".encode())
    Record(tmp_path / "cache").add(photos / "a.png", photos / "a-restored.png", "derain")
    return photos


def read(folder: Path) -> Record:
    return Record(folder.parent / "cache")


def results(folder: Path) -> list[str]:
    paths = sorted(folder.iterdir())
    return sorted(path.name for path in read(folder).results_among(paths, folder))


def test_results_of_the_folders_own_photos(folder: Path) -> None:
    assert results(folder) == ["a-restored.png"]
    (folder / "a.png").unlink()
    assert results(folder) == ["a-restored.png"], "its original is gone; it is a result all the same"


def test_a_result_is_known_under_another_name_and_in_a_moved_folder(folder: Path) -> None:
    (folder / "a-restored.png").rename(folder / "sharp.png")
    assert results(folder) == ["sharp.png"]
    folder.rename(folder.with_name("moved"))
    assert results(folder.with_name("moved")) == ["sharp.png"]


def test_files_of_the_user_are_no_results(folder: Path) -> None:
    (folder / "a-restored.png").write_bytes(b"edited afterwards")
    assert results(folder) == [], "whatever it is called"
    (folder / "b-restored.png").write_bytes(b"old-house-restored")
    assert results(folder) == []


def test_results_elsewhere_are_photos_like_any_other(folder: Path) -> None:
    """A second run may take what a first one made: derain in/ -> out/, then deblur out/ -> final/."""
    out = folder.parent / "out"
    out.mkdir()
    shutil.copy(folder / "a-restored.png", out / "a.png")
    assert results(out) == []


def test_named_together_with_its_original(folder: Path) -> None:
    """What a shell makes of ``photos/*.png``: both are named, and one was made from the other."""
    a, made, b = (folder / name for name in ("a.png", "a-restored.png", "b.png"))
    assert read(folder).results_among([a, made, b], None) == {made}
    assert read(folder).results_among([made, b], None) == set(), "named without it, it is meant"


def test_a_copy_of_its_original_hides_nothing(folder: Path) -> None:
    """--keep-untouched copies: the copy is a result by its place; its original has the same bytes and is none."""
    shutil.copy(folder / "b.png", folder / "b-restored.png")
    read(folder).add(folder / "b.png", folder / "b-restored.png", "paint")
    assert results(folder) == ["a-restored.png", "b-restored.png"]


def test_up_to_date(folder: Path) -> None:
    a, made = folder / "a.png", folder / "a-restored.png"
    assert read(folder).up_to_date(a, made, "derain")
    assert not read(folder).up_to_date(a, made, "deblur"), "another request"
    assert not read(folder).up_to_date(folder / "b.png", made, "derain"), "another photo"
    os.utime(a)
    os.utime(made)
    assert read(folder).up_to_date(a, made, "derain"), "contents decide, not times"
    a.write_bytes(a.read_bytes() + b"!")
    assert not read(folder).up_to_date(a, made, "derain"), "the photo changed"
    assert not read(folder).up_to_date(a, folder / "gone.png", "derain")


def test_a_damaged_record_costs_the_damaged_lines(folder: Path) -> None:
    file = folder.parent / "cache" / RECORD
    file.write_bytes(b'{"target": 1}\nnot json\n\xff\xfe\n' + file.read_bytes() + b'{"target": "cut')
    assert results(folder) == ["a-restored.png"]
    assert file.stat().st_mode & 0o077 == 0, "for the user alone"


def test_a_record_that_cannot_be_kept_stops_nothing(folder: Path) -> None:
    blocked = folder.parent / "blocked"
    blocked.write_text("a file")
    for record in (Record(None), Record(blocked)):
        record.add(folder / "a.png", folder / "b.png", "x")
        record.add(folder / "gone.png", folder / "b.png", "x")
        assert record.made(folder / "b.png") is None and record.targets_of(folder / "a.png") == []


def test_it_does_not_grow_for_ever(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINES", 10)
    for count in range(12):
        read(folder).add(folder / "b.png", folder / "a-restored.png", str(count))
    assert read(folder).made(folder / "a-restored.png") is not None
    lines = (folder.parent / "cache" / RECORD).read_text().splitlines()
    assert len(lines) <= 10 and json.loads(lines[-1])["request"] == "11", "the newest stay"


def test_fingerprint() -> None:
    assert fingerprint({"a": 1, "b": (2, 3)}) == fingerprint({"b": (2, 3), "a": 1}) != fingerprint({"a": 1})


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes in folders")
def test_a_pipe_in_place_of_the_record_is_not_waited_for(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "pipe-cache"
    cache.mkdir()
    os.mkfifo(cache / "results.jsonl")
    record = Record(cache)
    record.add(folder / "a.png", folder / "a.png", "request")
    assert not record.writable and record.made(folder / "a.png") is None
    assert not Record(None).writable and Record(tmp_path / "new").writable
