"""Writing a bundle: whole or not at all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffplugin.bundle import open_bundle
from diffplugin.errors import BundleError
from diffplugin.export.maintenance import prune, verify
from diffplugin.export.writing import writing
from diffplugin.manifest import Manifest

Write = Callable[..., Manifest]
Edit = Callable[[Path, Callable[[dict[str, Any]], object]], None]


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_new_bundle_appears_whole(tmp_path: Path, write: Write) -> None:
    out = tmp_path / "deep" / "out"
    with writing(out) as folder:
        assert folder.parent == out.parent and not out.exists()
        write(folder)
    assert verify(out) == [] and names(out.parent) == ["out"]
    assert out.stat().st_mode & 0o777 == 0o755


def test_an_older_bundle_is_replaced_and_nothing_of_it_stays(
    tmp_path: Path, write: Write, here: dict[str, str]
) -> None:
    out = tmp_path / "out"
    write(out, name="old", version=here["version"])
    with writing(out) as folder:
        write(folder, name="new")
        assert open_bundle(out).manifest.name == "old"
    assert open_bundle(out).manifest.name == "new"
    assert verify(out) == [] and names(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("existing", [True, False])
def test_a_failed_export_changes_nothing(
    tmp_path: Path, kind: type[BaseException], existing: bool, write: Write
) -> None:
    out = tmp_path / "out"
    if existing:
        write(out, name="old")
    before = names(tmp_path)
    with pytest.raises(kind), writing(out) as folder:
        write(folder, name="new")
        raise kind
    assert names(tmp_path) == before
    assert not existing or (open_bundle(out).manifest.name == "old" and verify(out) == [])


def test_an_interrupt_between_the_two_renames_brings_the_old_bundle_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    out = tmp_path / "out"
    write(out, name="old")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if target == out and not self.name.endswith(".old"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), writing(out) as folder:
        write(folder, name="new")
    assert names(tmp_path) == ["out"] and open_bundle(out).manifest.name == "old" and verify(out) == []


@pytest.mark.parametrize("existing", [True, False])
def test_two_exporters_do_not_collide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool, write: Write
) -> None:
    """The second one finishes between the two renames of the first one: the last to finish wins, whole."""
    out = tmp_path / "out"
    if existing:
        write(out, name="old")
    rename, done = Path.rename, list[str]()

    def overtaken(self: Path, target: Path) -> Path:
        if target == out and not done:
            done.append("second")
            with writing(out) as folder:
                write(folder, name="second")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", overtaken)
    with writing(out) as folder:
        write(folder, name="first")
    assert open_bundle(out).manifest.name == "first"
    assert done and verify(out) == [] and names(tmp_path) == ["out"]


def test_two_exporters_side_by_side(tmp_path: Path, write: Write) -> None:
    out = tmp_path / "out"
    with writing(out) as first, writing(out) as second:
        assert first != second
        write(first, name="first")
        write(second, name="second")
    assert open_bundle(out).manifest.name == "first"  # the inner one finished before
    assert verify(out) == [] and names(tmp_path) == ["out"]


def test_a_folder_that_is_no_bundle_is_left_alone(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.png").write_bytes(b"cat")
    (tmp_path / "file").write_text("text")
    for out in (photos, tmp_path / "file"):
        with pytest.raises(BundleError, match="exists and is no bundle; name another folder with --out"), writing(out):
            pytest.fail("was opened for writing")
    assert names(tmp_path) == ["file", "photos"] and names(photos) == ["cat.png"]
    with pytest.raises(BundleError, match="cannot be written"), writing(tmp_path / "file" / "out"):
        pytest.fail("was opened for writing")


def test_an_empty_folder_and_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    out = tmp_path / "empty"
    out.mkdir()
    monkeypatch.chdir(out)
    with writing(Path()) as folder:
        assert folder.parent == tmp_path
        write(folder)
    assert verify(out) == [] and names(tmp_path) == ["empty"]


def test_a_killed_export_leaves_the_old_bundle_and_something_to_prune(tmp_path: Path, write: Write) -> None:
    out = tmp_path / "out"
    write(out, name="old")
    code = (
        "import os, pathlib\n"
        "from diffplugin.export.writing import writing\n"
        f"with writing(pathlib.Path({str(out)!r})) as folder:\n"
        "    (folder / 'half').write_bytes(bytes(100))\n"
        "    os._exit(9)"
    )
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 9
    assert open_bundle(out).manifest.name == "old" and verify(out) == []
    gone, freed = prune(out)
    assert len(gone) == 1 and freed == 100 and names(tmp_path) == ["out"]
