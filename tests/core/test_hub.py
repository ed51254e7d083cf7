"""Bundles by name, against a stand-in for the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from diffplugin.bundle import default_bundle, open_bundle
from diffplugin.errors import BundleError, RequestError
from diffplugin.export import cli as export
from diffplugin.export.push import push_bundle
from diffplugin.hub import HubName, parse_name
from diffplugin.runtime import cli as infer
from tests.core.hub_standin import Hub, serving

pytest.importorskip("huggingface_hub", reason="needs the extra [hub]")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    from huggingface_hub import constants

    with serving() as made:
        monkeypatch.setattr(constants, "ENDPOINT", made.url)
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{repo_id}")
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", made.url + "".join(template[1:]))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("DIFFPLUGIN_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", made.token)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1")
        yield made


def test_names() -> None:
    assert parse_name("hf:anna/small") == HubName("anna", "small")
    assert parse_name("hf:anna/small@v1.0").revision == "v1.0"
    for text in ("hf:", "hf:anna", "hf:anna/", "hf:../x", "hf:a/../b", "hf:a/b@../../x", "hf:a/b/c", "hf:a/b@"):
        with pytest.raises(RequestError, match="expected hf:user/name"):
            parse_name(text)


def test_pushed_and_fetched_again(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    source = default_bundle()
    address = push_bundle(source, "hf:anna/small")
    assert address.startswith(f"{hub.url}/anna/small/commit/")
    files = hub.repositories["anna/small"]["main"]
    manifest = open_bundle(source).manifest
    assert files.keys() == {"manifest.json", "README.md", *manifest.files}
    card = files["README.md"].decode()
    for expected in (
        "license: other",
        "## Tasks",
        "| `derain` |",
        "## Parity",
        "## Speed",
        "256x256 px",
        "hf:anna/small",
    ):
        assert expected in card, card
    folder = open_bundle("hf:anna/small").path
    assert folder == tmp_path / "cache" / "hub" / "anna" / "small" / "main"
    for name in manifest.files:
        assert (folder / name).read_bytes() == (source / name).read_bytes() and not (folder / name).is_symlink()
    hub.asked.clear()
    open_bundle("hf:anna/small")
    assert not [line for line in hub.asked if line.startswith("GET /anna")], "nothing is loaded twice"
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    open_bundle("hf:anna/small")
    assert hub.asked == [], "offline is offline"
    (folder / "onnx" / "unet.onnx").write_bytes(b"half")
    with pytest.raises(BundleError, match=r"onnx/unet\.onnx is missing or not whole"):
        open_bundle("hf:anna/small")


def test_revisions_and_what_is_not_there(hub: Hub) -> None:
    bundle = default_bundle()
    files = {name: (bundle / name).read_bytes() for name in ("manifest.json", *open_bundle(bundle).manifest.files)}
    hub.repositories["anna/small"] = {"main": {}, "v1": files}
    assert open_bundle("hf:anna/small@v1").path.name == "v1"
    for name, reason in (
        ("hf:anna/none", "not found in the hub"),
        ("hf:anna/small@v9", "not found in the hub"),
        ("hf:anna/small", "no bundle"),
    ):
        with pytest.raises(BundleError, match=f"{name}: .*{reason}") as refused:
            open_bundle(name)
        assert "\n" not in str(refused.value)


def test_from_the_command_line(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert infer.main([str(tmp_path / "p.png"), "rain", "--bundle", "hf:anna/none"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("dp-infer: hf:anna/none: not found in the hub") and said.count("\n") == 1
    words = ["--bundle", str(default_bundle()), "--push-to"]
    assert export.main([*words, "anna/small"]) == 2
    assert "expected hf:user/name" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert export.main([*words, "hf:anna/small"]) == 1
    said = capsys.readouterr().err
    assert "hf:anna/small: the hub refuses: " in said and said.count("\n") == 1
