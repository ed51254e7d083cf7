"""Where results go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diffplugin.errors import ImageError, RequestError
from diffplugin.runtime.cli.inputs import STDIN, Input
from diffplugin.runtime.cli.record import Record
from diffplugin.runtime.cli.targets import STDOUT, Naming, plan_targets


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    """An empty record; the working folder has a.png, b.JPG, sub/a.png, all different."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for name in ("a.png", "b.JPG", "sub/a.png"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(name.encode())
    return Record(tmp_path / "cache")


def targets(record: Record, names: list[str], output: str | None = None, root: str | None = None, **more: Any) -> Any:
    photos = [Input(path=Path(name), root=None if root is None else Path(root)) for name in names]
    return [str(one.target) for one in plan_targets(photos, Naming(output=output, **more), record)]


def made(record: Record, source: str, target: str, contents: bytes | None = None) -> Record:
    """A result on disk and in the record; the record read anew."""
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_bytes(contents or f"made from {source}".encode())
    record.add(Path(source), Path(target), "request")
    assert record._file is not None
    return Record(record._file.parent)


def test_names(record: Record) -> None:
    assert targets(record, ["sub/a.png"]) == ["sub/a-restored.png"]
    assert targets(record, ["x.ppm"]) == ["x-restored.png"], "a format that is only read becomes PNG"
    assert targets(record, ["a.png"], "out.webp") == ["out.webp"]
    assert targets(record, ["a.png"], "out/") == targets(record, ["a.png"], "out") == ["out/a.png"]
    assert targets(record, ["b.JPG"], "sub") == ["sub/b.JPG"]
    assert targets(record, ["a.png", "sub/a.png"], "out") == ["out/a.png", "out/a-2.png"]
    assert targets(record, ["a.png", "b.JPG"], suffix=".webp") == ["a-restored.webp", "b-restored.webp"]
    assert targets(record, ["sub/a.png", "sub/b/a.png"], "out", root="sub") == ["out/a.png", "out/b/a.png"]


def test_a_photo_that_keeps_its_suffix_keeps_its_name(record: Record) -> None:
    """Whatever is in the run and in whatever order: a name is always the same photo's."""
    for name in ("a.jp2", "a.ppm"):
        Path(name).write_bytes(name.encode())
    assert targets(record, ["a.jp2", "a.png", "a.ppm"]) == [
        "a-jp2-restored.png",
        "a-restored.png",
        "a-ppm-restored.png",
    ]
    for name, target in (("a.jp2", "out/a-jp2.png"), ("a.png", "out/a.png"), ("a.ppm", "out/a-ppm.png")):
        assert targets(record, [name], "out") == [target]


def test_an_input_is_never_written_over(record: Record) -> None:
    assert targets(record, ["a.png"], "a.png") == ["a-restored.png"]
    assert targets(record, ["a.png"], "a.png", overwrite="always") == ["a-restored.png"]
    assert targets(record, ["a.png", "b.JPG"], ".") == ["a-restored.png", "b-restored.JPG"]
    Path("a-restored.png").write_bytes(b"of the user")
    assert targets(record, ["a.png", "a-restored.png"]) == ["a-restored-2.png", "a-restored-restored.png"]
    Path("link.png").symlink_to("a.png")
    assert targets(record, ["a.png"], "link.png") == ["link-restored.png"]


def test_files_of_others_stay_and_own_results_are_replaced(record: Record) -> None:
    Path("a-restored.png").write_bytes(b"of the user")
    assert targets(record, ["a.png"]) == ["a-restored-2.png"]
    assert targets(record, ["a.png"], overwrite="always") == ["a-restored.png"]
    assert targets(record, ["a.png"], "a-restored.png") == ["a-restored.png"], "named by the user"
    record = made(record, "a.png", "a-restored-2.png")
    assert targets(record, ["a.png"]) == ["a-restored-2.png"], "the same name again"
    assert targets(record, ["a.png"], overwrite="never") == ["a-restored-3.png"]
    Path("a-restored-2.png").write_bytes(b"edited by the user")
    assert targets(record, ["a.png"]) == ["a-restored-3.png"], "what was edited is the user's"
    with pytest.raises(ImageError, match=r"a-restored\.png: exists, and --overwrite never keeps it"):
        targets(record, ["a.png"], "a-restored.png", overwrite="never")


def test_numbers_stay_with_their_photos(record: Record) -> None:
    """out/a.png is a.png's, out/a-2.png is sub/a.png's, also when sub/a.png comes alone or first."""
    record = made(record, "a.png", "out/a.png")
    record = made(record, "sub/a.png", "out/a-2.png")
    assert targets(record, ["sub/a.png"], "out") == ["out/a-2.png"]
    assert targets(record, ["sub/a.png", "a.png"], "out") == ["out/a-2.png", "out/a.png"]
    Path("out/a.png").unlink()
    assert targets(record, ["sub/a.png", "a.png"], "out") == ["out/a-2.png", "out/a.png"]
    record = made(record, "a.png", "out/special.png")
    assert targets(record, ["a.png"], "out") == ["out/a.png"], "a name of another run is no number"


def test_many_photos_need_a_folder(record: Record) -> None:
    with pytest.raises(RequestError, match=r"output out.png is a file, expected a folder for 2 photos"):
        targets(record, ["a.png", "b.JPG"], "out.png")


def test_compare_lies_beside_the_result_and_over_nobody_else(record: Record) -> None:
    (paths,) = plan_targets([Input(path=Path("a.png"))], Naming(output="out/b.jpg", compare=True), record)
    assert paths.compare == Path("out/b-compare.jpg")
    Path("a-restored-compare.png").write_bytes(b"of the user")
    (paths,) = plan_targets([Input(path=Path("a.png"))], Naming(compare=True), record)
    assert (paths.target, paths.compare) == (Path("a-restored.png"), Path("a-restored-compare-2.png"))


def test_pipes(record: Record) -> None:
    assert targets(record, ["-"], "-") == targets(record, ["a.png"], "-") == [str(STDOUT)]
    assert targets(record, ["-"], "x.jpg") == ["x.jpg"] and targets(record, ["-"], "out/") == ["out/stdin.png"]
    assert STDIN == STDOUT == Path("-")
    for names, output, part in ((["-"], None, "say where"), (["a.png", "b.JPG"], "-", "takes one photo")):
        with pytest.raises(RequestError, match=part):
            targets(record, names, output)


def test_the_mask_is_no_place_for_a_result(record: Record) -> None:
    mask = Path("mask.png")
    mask.write_bytes(b"mask")
    for overwrite in ("made", "always"):
        with pytest.raises(ImageError, match=r"mask\.png: is the mask"):
            targets(record, ["a.png"], "mask.png", mask=mask, overwrite=overwrite)
    assert targets(record, ["sub/a.png"], "./", mask=Path("a.png"), overwrite="always") == ["a-2.png"]
