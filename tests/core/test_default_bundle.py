"""The bundle that commands take when none is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from diffplugin.bundle import default_bundle
from diffplugin.default_bundle import bundles_folder, choose_bundle, latest_bundle, set_latest


@pytest.fixture
def bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of exported bundles: one and two, which have a manifest alone."""
    monkeypatch.setenv("DIFFPLUGIN_CACHE", str(tmp_path))
    for name in ("one", "two"):
        (tmp_path / "bundles" / name).mkdir(parents=True)
        shutil.copy(default_bundle() / "manifest.json", tmp_path / "bundles" / name)
    assert bundles_folder() == tmp_path / "bundles"
    return tmp_path / "bundles"


def test_the_last_export_or_the_package(bundles: Path) -> None:
    assert choose_bundle().path == default_bundle() and not choose_bundle().fallback
    assert set_latest(bundles / "one") and choose_bundle().path == bundles / "one"
    assert set_latest(bundles / "two") and choose_bundle().path == bundles / "two" and choose_bundle().fallback
    assert str(bundles / "two") in choose_bundle().note and "--bundle embedded" in choose_bundle().note


def test_what_is_asked_for_comes_first(bundles: Path) -> None:
    set_latest(bundles / "one")
    assert choose_bundle("embedded").path == default_bundle()
    assert choose_bundle(bundles / "two").path == bundles / "two" and not choose_bundle(bundles / "two").fallback
    assert choose_bundle("./embedded").path == choose_bundle(Path("embedded")).path == Path("embedded"), "a folder"


def test_a_bundle_that_cannot_be_read_is_said(bundles: Path) -> None:
    set_latest(bundles / "one")
    (bundles / "one" / "manifest.json").write_text("{")
    choice = choose_bundle()
    assert choice.path == default_bundle() and "the model in the package, since" in choice.note
    shutil.rmtree(bundles / "one")
    choice = choose_bundle()
    assert choice.path == default_bundle() and "is gone" in choice.note and latest_bundle() is None


def test_bundles_elsewhere_change_nothing(bundles: Path, tmp_path: Path) -> None:
    assert not set_latest(tmp_path / "elsewhere") and latest_bundle() is None


@pytest.mark.parametrize("text", ["", "../..", "..", ".", "/etc", "one\ntwo", "\0"])
def test_a_damaged_note_names_nothing(bundles: Path, text: str) -> None:
    (bundles / "latest").write_text(text)
    assert choose_bundle().path == default_bundle()
