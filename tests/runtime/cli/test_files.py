"""Words -> pictures, request and targets."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffplugin.errors import ImageError, RequestError
from diffplugin.runtime.cli.files import copy_file, find_photos, plan_outputs, split_request


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
        (["a.png", "b.JPG"], True, ["a.png", "b.JPG"], None),
        (["a.png", "*.JPG"], True, ["a.png", "*.JPG"], None),
        (["a.png", "gone.png"], True, ["a.png", "gone.png"], None),
        (["a.png", "remove the blur"], True, ["a.png"], "remove the blur"),
        (["a.png", ""], False, ["a.png"], ""),
    ],
)
def test_the_last_word_is_the_request(
    photos: Path, words: list[str], named: bool, inputs: list[str], request_: str | None
) -> None:
    assert split_request(words, named=named) == (inputs, request_)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["a.png"], "say what to do with a.png"),
        (["blur"], "no picture given"),
        (["a.png", "b.JPG"], "b.JPG, is a file"),
    ],
)
def test_a_missing_request_is_named(photos: Path, words: list[str], part: str) -> None:
    with pytest.raises(RequestError, match=part):
        split_request(words, named=False)


def test_files_folders_and_patterns(photos: Path) -> None:
    files, faults = find_photos([".", "sub", "a.png", "*.JPG", "**/a.png", "gone.png"])
    assert [str(f) for f in files] == ["a.png", "b.JPG", "sub/a.png", "gone.png"] and faults == []
    (photos / "empty").mkdir()
    files, faults = find_photos(["empty", "*.tif"])
    assert files == [] and faults == ["empty: no pictures in this folder", "*.tif: no file matches"]


def _targets(names: list[str], output: str | None) -> list[str]:
    return [str(paths.target) for paths in plan_outputs([Path(n) for n in names], output, compare=False)]


def test_targets(photos: Path) -> None:
    assert _targets(["sub/a.png"], None) == ["sub/a-restored.png"]
    assert _targets(["x.jp2"], None) == ["x-restored.png"], "a format that is only read becomes PNG"
    assert _targets(["a.png"], "out.webp") == ["out.webp"]
    assert _targets(["a.png"], "out/") == _targets(["a.png"], "out") == ["out/a.png"]
    assert _targets(["b.JPG"], "sub") == ["sub/b.JPG"]
    assert _targets(["a.png", "sub/a.png"], "out") == ["out/a.png", "out/a-2.png"]


def test_an_input_is_never_written_over(photos: Path) -> None:
    assert _targets(["a.png"], "a.png") == ["a-restored.png"]
    assert _targets(["a.png", "b.JPG"], ".") == ["a-restored.png", "b-restored.JPG"]
    assert _targets(["a.png", "a-restored.png"], None) == ["a-restored-restored.png", "a-restored-restored-2.png"]
    Path("link.png").symlink_to("a.png")
    assert _targets(["a.png"], "link.png") == ["link-restored.png"]


def test_many_pictures_need_a_folder(photos: Path) -> None:
    with pytest.raises(RequestError, match=r"output out.png is a file, expected a folder for 2 pictures"):
        _targets(["a.png", "b.JPG"], "out.png")


def test_compare_lies_beside_the_result(photos: Path) -> None:
    (paths,) = plan_outputs([Path("a.png")], "out/b.jpg", compare=True)
    assert paths.compare == Path("out/b-compare.jpg")


def test_copy_is_exact_and_leaves_nothing(photos: Path) -> None:
    Path("a.png").write_bytes(bytes(range(256)))
    copy_file(Path("a.png"), Path("copy.png"))
    assert Path("copy.png").read_bytes() == bytes(range(256))
    with pytest.raises(ImageError, match="cannot be written"):
        copy_file(Path("a.png"), Path("nowhere/copy.png"))
    assert not list(photos.rglob("*.tmp"))
