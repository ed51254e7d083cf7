"""Bundles by name, against a stand-in for the hub."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffplugin.bundle import default_bundle, open_bundle
from diffplugin.errors import RequestError
from diffplugin.hub import HubName, parse_name
from tests.core.hub_standin import Hub, serving

pytest.importorskip("huggingface_hub", reason="needs the extra [hub]")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as made:
        yield made


def run(hub: Hub, cache: Path, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(cache / "hf"), "DIFFPLUGIN_CACHE": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    command = [sys.executable, "-W", "ignore", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | given | environment, timeout=120, check=False
    )


INFER = ("-m", "diffplugin.runtime.cli")
OPEN = "import sys; from diffplugin.bundle import open_bundle; print(open_bundle(sys.argv[1]).path)"


def test_names() -> None:
    assert parse_name("hf:anna/small") == HubName("anna", "small")
    assert parse_name("hf:anna/small@v1.0").revision == "v1.0"
    for text in ("hf:", "hf:anna", "hf:anna/", "hf:../x", "hf:a/../b", "hf:a/b@../../x", "hf:a/b/c", "hf:a/b@"):
        with pytest.raises(RequestError, match="expected hf:user/name"):
            parse_name(text)


def test_pushed_and_fetched_again(hub: Hub, tmp_path: Path) -> None:
    source = default_bundle()
    pushed = run(
        hub,
        tmp_path,
        "-m",
        "diffplugin.export.cli",
        "--bundle",
        source,
        "--push-to",
        "hf:anna/small",
        HF_TOKEN=hub.token,
    )
    assert pushed.returncode == 0, pushed.stderr
    assert f"hf:anna/small: {hub.url}/anna/small/commit/" in pushed.stdout
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
    found = run(hub, tmp_path, "-c", OPEN, "hf:anna/small")
    assert found.returncode == 0, found.stderr
    folder = Path(found.stdout.strip())
    assert folder == tmp_path / "hub" / "anna" / "small" / "main"
    for name in manifest.files:
        assert (folder / name).read_bytes() == (source / name).read_bytes() and not (folder / name).is_symlink()
    hub.asked.clear()
    assert run(hub, tmp_path, "-c", OPEN, "hf:anna/small", HF_HUB_OFFLINE="1").returncode == 0
    assert hub.asked == [], "offline is offline"
    assert run(hub, tmp_path, "-c", OPEN, "hf:anna/small").returncode == 0
    assert not [line for line in hub.asked if line.startswith("GET /anna")], "nothing is loaded twice"
    (folder / "onnx" / "unet.onnx").write_bytes(b"half")
    cut = run(hub, tmp_path, "-c", OPEN, "hf:anna/small", HF_HUB_OFFLINE="1")
    assert cut.returncode == 1 and "onnx/unet.onnx is missing or not whole" in cut.stderr


def test_revisions_and_what_is_not_there(hub: Hub, tmp_path: Path) -> None:
    bundle = default_bundle()
    files = {name: (bundle / name).read_bytes() for name in ("manifest.json", *open_bundle(bundle).manifest.files)}
    hub.repositories["anna/small"] = {"main": {}, "v1": files}
    assert run(hub, tmp_path, "-c", OPEN, "hf:anna/small@v1").stdout.strip().endswith("/anna/small/v1")
    for name, offline in (("hf:anna/none", ""), ("hf:anna/small@v9", ""), ("hf:ben/none", "1")):
        run_one = run(hub, tmp_path, *INFER, "p.png", "rain", "--bundle", name, HF_HUB_OFFLINE=offline)
        assert run_one.returncode == 1 and run_one.stderr.startswith(f"dp-infer: {name}: not found in the hub"), (
            run_one.stderr
        )
        assert run_one.stderr.count("\n") == 1


def test_a_push_without_a_token_is_one_line(hub: Hub, tmp_path: Path) -> None:
    refused = run(
        hub,
        tmp_path,
        "-m",
        "diffplugin.export.cli",
        "--bundle",
        default_bundle(),
        "--push-to",
        "hf:anna/small",
        HF_TOKEN="hf_wrong",
    )
    assert refused.returncode == 1 and "hf:anna/small: the hub refuses: " in refused.stderr, refused.stderr
    assert refused.stderr.count("\n") == 1
    wrong = run(hub, tmp_path, "-m", "diffplugin.export.cli", "--bundle", default_bundle(), "--push-to", "anna/small")
    assert wrong.returncode == 2 and "expected hf:user/name" in wrong.stderr
