"""The manifest: what it says, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diffplugin.bundle import open_bundle, write_manifest
from diffplugin.errors import BundleDamaged, BundleError, BundleTooNew
from diffplugin.export.maintenance import verify
from diffplugin.manifest import FORMAT, MANIFEST, Manifest

Write = Callable[..., Manifest]
Edit = Callable[[Path, Callable[[dict[str, Any]], object]], None]


def test_the_manifest_survives_its_file(tmp_path: Path, write: Write) -> None:
    manifest = write(tmp_path, version="1")
    assert open_bundle(tmp_path).manifest == manifest
    assert open_bundle(str(tmp_path)).manifest.to_json() == manifest.to_json()


def test_the_same_bundle_is_the_same_bytes(tmp_path: Path, write: Write) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    write(first)
    manifest = write(second)
    shuffled = replace(
        manifest, graphs=dict(reversed(list(manifest.graphs.items()))), files=dict(sorted(manifest.files.items()))
    )
    write_manifest(second, shuffled)
    assert (first / MANIFEST).read_bytes() == (second / MANIFEST).read_bytes()
    assert str(tmp_path) not in (first / MANIFEST).read_text()


def test_every_flipped_bit_of_the_manifest_is_found(folder: Path) -> None:
    path = folder / MANIFEST
    whole = path.read_bytes()
    for i in range(0, len(whole), 29):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        with pytest.raises(BundleError) as caught:
            open_bundle(folder)
        assert "\n" not in str(caught.value), f"byte {i}"


@pytest.mark.parametrize("kept", [0, 1, 100, 1000, -2])
def test_a_truncated_manifest_is_found(folder: Path, kept: int) -> None:
    path = folder / MANIFEST
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BundleDamaged, match=r"manifest\.json: not JSON .* export again"):
        open_bundle(folder)
    assert len(verify(folder)) == 1


@pytest.mark.parametrize(
    "text", ["[]", "3", "null", "{}", '{"format": "1"}', '{"format": true}', '{"format": 0}', "[" * 9999]
)
def test_json_that_is_no_manifest(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_text(text)
    with pytest.raises(BundleDamaged, match=r"no format number|not JSON"):
        open_bundle(folder)


def test_bytes_that_are_no_text(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"\xff\xfe{}")
    with pytest.raises(BundleDamaged, match="cannot be read"):
        open_bundle(folder)


def test_an_older_format_names_both_sides_and_the_remedy(folder: Path) -> None:
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT - 1}))
    with pytest.raises(BundleDamaged, match=rf"format {FORMAT - 1}, this version reads {FORMAT}; export again"):
        Manifest.read(folder)


def test_a_newer_format_names_both_sides_and_the_remedy(folder: Path) -> None:
    # whatever else a newer format holds, only its number is looked at
    (folder / MANIFEST).write_text(json.dumps({"format": FORMAT + 1, "graphs": "elsewhere"}))
    with pytest.raises(
        BundleTooNew, match=rf"format {FORMAT + 1}, this version reads up to {FORMAT}\. Upgrade diffplugin"
    ):
        open_bundle(folder)
    assert "Upgrade" in verify(folder)[0]


def test_no_bundle_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(BundleError, match=r"no manifest\.json, so no bundle; make one with dp-export"):
            open_bundle(path)


def test_all_faults_of_a_manifest_at_once(folder: Path, edit: Edit) -> None:
    def spoil(value: dict[str, Any]) -> None:
        del value["name"]
        del value["dims"]["factor"]
        value["colour"] = "red"
        value["plugins"] = "derain"
        value["selector"] = 1
        value["graphs"]["unet"]["weights_bytes"] = "many"
        value["graphs"]["selector"] = None
        value["clip"]["mean"][1] = "half"
        value["engines"] = [{"files": [3]}]

    edit(folder, spoil)
    with pytest.raises(BundleDamaged) as caught:
        open_bundle(folder)
    for part in (
        "name is missing",
        "dims.factor is missing",
        "colour is unknown",
        'plugins is "derain", expected tuple',
        "selector is 1, expected bool",
        'graphs.unet.weights_bytes is "many", expected int',
        "graphs.selector is null, expected an object",
        'clip.mean[1] is "half", expected float',
        "engines[0].fingerprint is missing",
        "engines[0].files[0] is 3, expected str",
    ):
        assert part in str(caught.value), f"{part!r} not in {caught.value}"


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "C:\\x", "C:x", "..\\x", ""])
def test_names_that_lead_out_of_the_bundle_are_refused(folder: Path, name: str, edit: Edit) -> None:
    edit(folder, lambda value: value["graphs"]["unet"].update(file=name))
    with pytest.raises(BundleDamaged, match=r"graphs\.unet\.file: .* leads out of the bundle"):
        open_bundle(folder)
