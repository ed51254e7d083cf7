"""Words -> request and photos, and an account of every other file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from diffplugin.errors import RequestError
from diffplugin.runtime.cli.inputs import find_photos, split_request


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """a.png, b.JPG, note.txt, a-restored.png, sub/a.png; the working folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.JPG", "note.txt", "a-restored.png", "sub/a.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(b"x")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "named", "inputs", "request_"),
    [
        (["a.png", "remove the blur"], False, ["a.png"], "remove the blur"),
        (["a.png", "b.JPG", "blur"], False, ["a.png", "b.JPG"], "blur"),
        (["a.png"], True, ["a.png"], None),
        (["a.png"], False, ["a.png"], None),
        (["a.png", "b.JPG"], False, ["a.png", "b.JPG"], None),
        (["a.png", "gone.png"], False, ["a.png", "gone.png"], None),
        (["a.png", "./sub"], False, ["a.png", "./sub"], None),
        (["sub"], False, ["sub"], None),
        (["-"], False, ["-"], None),
        (["a.png", "auto"], False, ["a.png"], "auto"),
        (["a.png", "can you remove the blur?"], False, ["a.png"], "can you remove the blur?"),
        (["a.png", "su?"], False, ["a.png", "su?"], None),
        (["a.png", "*.JPG"], False, ["a.png", "*.JPG"], None),
        (["a.png", "b.JPG"], True, ["a.png", "b.JPG"], None),
        (["a.png", "*.JPG"], True, ["a.png", "*.JPG"], None),
        (["a.png", "gone.png"], True, ["a.png", "gone.png"], None),
        (["a.png", "remove the blur"], True, ["a.png"], "remove the blur"),
        (["a.png", "can you fix this?"], True, ["a.png"], "can you fix this?"),
        (["a.png", ""], False, ["a.png"], ""),
        (["a.png", "r\udce9flets"], False, ["a.png"], "réflets"),
        (["-", "blur"], False, ["-"], "blur"),
        (["-"], True, ["-"], None),
        (["x.heic", "y.heic"], True, ["x.heic", "y.heic"], None),
    ],
)
def test_the_last_word_is_the_request_if_it_names_no_photo(
    photos: Path, words: list[str], named: bool, inputs: list[str], request_: str | None
) -> None:
    assert split_request(words, named=named) == (inputs, request_)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["blur"], "no photo given"),
        (["a.png", "sub"], r"'sub', is a file or folder here and could be the request: write ./sub for the file"),
    ],
)
def test_words_that_could_mean_two_things_are_refused(photos: Path, words: list[str], part: str) -> None:
    with pytest.raises(RequestError, match=part):
        split_request(words, named=False)


def test_files_folders_and_patterns(photos: Path) -> None:
    found = find_photos([".", "sub", "a.png", "*.JPG", "**/a.png", "gone.png"])
    assert [str(one.path) for one in found.photos] == ["a-restored.png", "a.png", "b.JPG", "sub/a.png", "gone.png"]
    assert [one.root is None for one in found.photos] == [False, True, True, True, True], "named itself, it is meant"
    assert found.faults == []
    (photos / "empty").mkdir()
    found = find_photos(["empty", "*.tif"])
    assert found.photos == [] and found.faults == ["empty: no photos in this folder", "*.tif: no photo matches"]


def test_every_file_of_a_folder_is_accounted_for(photos: Path) -> None:
    for name in ("._a.png", ".hidden.jpg", "a.XMP", "Thumbs.db", "c.psd", "d.exr", "e.PSD", "f.mov", "g", ".git/h.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(b"x")
    os.mkfifo("pipe.png")
    Path("broken.png").symlink_to("nowhere")
    found = find_photos(["."])
    met = {str(one.path) for one in found.photos} | {str(one.path) for one in found.left_out}
    assert met == {path.name for path in Path().iterdir()}
    left = {str(one.path): (one.reason, one.kind) for one in found.left_out}
    assert left["c.psd"] == left["e.PSD"] == ("unsupported", "Photoshop") and left["d.exr"][0] == "unsupported"
    assert left["note.txt"] == ("no photo", ".txt") and left["g"] == ("no photo", "without suffix")
    assert left["sub"][0] == "folder" and left["pipe.png"][0] == left["broken.png"][0] == "ignored"
    for name in ("._a.png", ".hidden.jpg", "a.XMP", "Thumbs.db", ".git"):
        assert left[name][0] == "ignored", name
    assert [str(one.path) for one in find_photos(["._a.png"]).photos] == ["._a.png"], "named itself, it is meant"


def test_folders_below_folders(photos: Path) -> None:
    Path("sub/deep/er").mkdir(parents=True)
    Path("sub/deep/er/x.png").write_bytes(b"x")
    Path("sub/loop").symlink_to("..")
    found = find_photos(["."], recursive=True)
    assert [str(one.path) for one in found.photos] == [
        "a-restored.png",
        "a.png",
        "b.JPG",
        "sub/a.png",
        "sub/deep/er/x.png",
    ]
    assert all(one.root == Path() for one in found.photos)
    assert [(str(one.path), one.reason) for one in found.left_out if one.reason == "folder"] == [("sub/loop", "folder")]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_an_unreadable_folder_is_one_line(photos: Path) -> None:
    Path("sub").chmod(0)
    try:
        found = find_photos(["."], recursive=True)
    finally:
        Path("sub").chmod(0o755)
    assert found.faults == ["sub: this folder cannot be read (Permission denied)"] and len(found.photos) == 3


def test_a_folder_that_vanishes_is_one_line(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an unreadable folder does, for root as well."""

    def scandir(path: Path) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", scandir)
    found = find_photos(["sub"])
    assert found.faults[0] == "sub: this folder cannot be read (Permission denied)"


def test_home_is_expanded_unless_a_file_is_called_so(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(photos))
    assert [one.path for one in find_photos(["~/a.png", "~/*.JPG"]).photos] == [photos / "a.png", photos / "b.JPG"]
    Path("~odd.png").write_bytes(b"x")
    assert [str(one.path) for one in find_photos(["~odd.png", "~nosuch/a.png"]).photos] == ["~odd.png", "~nosuch/a.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege on Windows")
def test_patterns_follow_no_links_to_folders(tmp_path: Path) -> None:
    """They may be circular."""
    for name in ("a.png", "sub/b.png", ".hidden/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    for number in range(3):
        (tmp_path / "sub" / f"loop{number}").symlink_to(tmp_path, target_is_directory=True)
    found = find_photos([f"{tmp_path}/**/*.png"])
    assert [photo.path.relative_to(tmp_path).as_posix() for photo in found.photos] == ["a.png", "sub/b.png"]
    assert not found.faults


def test_patterns(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(pattern: str) -> list[str]:
        return [photo.path.as_posix() for photo in find_photos([pattern]).photos]

    assert found("**/a.png") == ["a.png", "sub/a.png"] and found("s**b/?.png") == ["sub/a.png"]
    (photos / ".aside").mkdir()
    (photos / ".aside" / "c.png").write_bytes(b"x")
    assert found("*/*.png") == ["sub/a.png"] and found(".aside/*.png") == [".aside/c.png"]
    monkeypatch.chdir(photos / "sub")
    assert found("../*.png") == ["../a-restored.png", "../a.png"]
    assert found(f"{photos}/sub/*") == [f"{photos.as_posix()}/sub/a.png"]
