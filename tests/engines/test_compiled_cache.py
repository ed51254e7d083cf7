"""Compiled models on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diffplugin.engines.compiled_cache import read_blob, trim, write_blob


def test_round_trip_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.blob"
    blob = bytes(range(256)) * 5
    write_blob(path, blob)
    found = read_blob(path)
    assert found is not None and found.tobytes() == blob
    assert [p.name for p in path.parent.iterdir()] == ["a.blob"]  # no temporary file stays
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], whole[:20], b"", b"\1" + whole[1:], whole[:-1] + b"\0"):
        path.write_bytes(damaged)
        assert read_blob(path) is None, f"{len(damaged)} bytes were accepted"
    assert read_blob(tmp_path / "none") is None


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.blob"
    write_blob(path, b"old")

    def interrupted(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_blob(path, b"new")
    found = read_blob(path)
    assert found is not None and found.tobytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.blob"]


def test_what_was_used_last_stays(tmp_path: Path) -> None:
    for age, name in enumerate("abcd"):
        write_blob(tmp_path / name, bytes(96))  # 100 bytes with the checksum
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    assert read_blob(tmp_path / "d") is not None  # the oldest becomes the youngest
    trim(tmp_path, 250)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "d"]
    trim(tmp_path, 250)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "d"]
