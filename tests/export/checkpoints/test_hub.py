"""Which files of a repository are downloaded, and the way from a hub id to a folder, against a hub of our own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra [export]")
pytest.importorskip("huggingface_hub")

from diffplugin.errors import CheckpointError
from diffplugin.export.checkpoints import check_checkpoint, find
from diffplugin.export.checkpoints.hub import base_files, base_path, clip_files, clip_path
from tests.export.checkpoints.tiny import write_tiny

# Files of Stable Diffusion 1.5's repository, sizes in MB.
SD15 = {
    ".gitattributes": 0, "README.md": 0, "model_index.json": 0, "v1-inference.yaml": 0,
    "feature_extractor/preprocessor_config.json": 0, "safety_checker/config.json": 0,
    "safety_checker/model.fp16.safetensors": 608, "safety_checker/model.safetensors": 1216,
    "safety_checker/pytorch_model.bin": 1216, "safety_checker/pytorch_model.fp16.bin": 608,
    "scheduler/scheduler_config.json": 0, "text_encoder/config.json": 0, "text_encoder/model.fp16.safetensors": 246,
    "text_encoder/model.safetensors": 492, "text_encoder/pytorch_model.bin": 492,
    "text_encoder/pytorch_model.fp16.bin": 246, "tokenizer/merges.txt": 1, "tokenizer/special_tokens_map.json": 0,
    "tokenizer/tokenizer_config.json": 0, "tokenizer/vocab.json": 1, "unet/config.json": 0,
    "unet/diffusion_pytorch_model.bin": 3438, "unet/diffusion_pytorch_model.fp16.bin": 1719,
    "unet/diffusion_pytorch_model.fp16.safetensors": 1719, "unet/diffusion_pytorch_model.non_ema.bin": 3438,
    "unet/diffusion_pytorch_model.non_ema.safetensors": 3438, "unet/diffusion_pytorch_model.safetensors": 3438,
    "v1-5-pruned-emaonly.ckpt": 4265, "v1-5-pruned-emaonly.safetensors": 4265, "v1-5-pruned.ckpt": 7703,
    "v1-5-pruned.safetensors": 7703, "vae/config.json": 0, "vae/diffusion_pytorch_model.bin": 335,
    "vae/diffusion_pytorch_model.fp16.bin": 167, "vae/diffusion_pytorch_model.fp16.safetensors": 167,
    "vae/diffusion_pytorch_model.safetensors": 335,
}  # fmt: skip
CLIP = {
    ".gitattributes", "README.md", "config.json", "flax_model.msgpack", "merges.txt", "model.safetensors",
    "preprocessor_config.json", "pytorch_model.bin", "special_tokens_map.json", "tf_model.h5", "tokenizer.json",
    "tokenizer_config.json", "vocab.json",
}  # fmt: skip


def test_the_smallest_complete_set_of_stable_diffusion_1_5() -> None:
    chosen = base_files(SD15)
    assert sorted(chosen) == [
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert sum(SD15[name] for name in chosen) < 4300 < sum(SD15.values()) / 10


def test_the_smallest_complete_set_of_clip() -> None:
    assert clip_files(CLIP) == ["config.json", "preprocessor_config.json", "model.safetensors"]
    more = set(clip_files(CLIP, tokenizer=True)) - set(clip_files(CLIP))
    assert more == {"vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"}


def test_half_precision_where_there_is_no_other_and_all_shards() -> None:
    names = {name for name in SD15 if ".fp16." in name or name.endswith((".json", ".txt"))}
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in base_files(names)
    parts = {f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    sharded = {n for n in SD15 if not n.startswith("unet/diff")} | parts | {index}
    assert {n for n in base_files(sharded) if n.startswith("unet/diff")} == parts | {index}
    single = (names - {"tokenizer/vocab.json"}) | {"tokenizer/tokenizer.json"}
    assert "tokenizer/tokenizer.json" in base_files(single) and "tokenizer/merges.txt" not in base_files(single)


def test_what_a_repository_lacks_is_named_at_once() -> None:
    lost = {n for n in SD15 if not n.startswith(("vae/", "tokenizer/v", "scheduler/"))}
    with pytest.raises(CheckpointError) as caught:
        base_files(lost)
    for part in ("scheduler_config.json is missing", "vae/config.json is missing", "vae/ has no weights", "tokenizer/"):
        assert part in str(caught.value)
    with pytest.raises(
        CheckpointError, match=r"config\.json is missing; there are no weights .*; there is no tokenizer"
    ):
        clip_files({"README.md", "flax_model.msgpack"}, tokenizer=True)


def test_a_repository_of_single_files() -> None:
    assert base_files({"README.md", "model.safetensors", "model.ckpt"}) == ["model.safetensors"]
    with pytest.raises(CheckpointError, match=r"a\.safetensors, b\.safetensors: name one as OWNER/NAME/FILE"):
        base_files({"a.safetensors", "b.safetensors"})
    with pytest.raises(CheckpointError, match="no unet/ folder, and no single file"):
        base_files({"README.md"})


@pytest.mark.parametrize("name", ["", "a", "./a/b", "a/b/c", "a/b/c.png", "a b/c", "../x/y", "/nowhere/at/all"])
def test_what_is_no_hub_id_is_refused_without_a_look_up(name: str) -> None:
    if name:  # "" is the working folder
        with pytest.raises(CheckpointError, match="nor a hub id such as"):
            base_path(name, offline=False)
    with pytest.raises(CheckpointError, match="nor a hub id such as"):
        clip_path(name or "a/b/c.safetensors", offline=False)


@contextmanager
def fake_hub(repositories: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """(address, names of the files that were asked for): a hub that serves folders."""
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            for name, folder in repositories.items():
                if self.path.startswith(f"/api/models/{name}/tree/"):
                    return self._answer(json.dumps(_tree(folder)).encode(), {})
                if self.path.startswith(f"/api/models/{name}"):
                    return self._answer(json.dumps(_info(name, folder)).encode(), {})
                if self.path.startswith(f"/{name}/resolve/"):
                    file = self.path.split("?")[0].split("/resolve/")[1].partition("/")[2]
                    if (folder / file).is_file():
                        data = (folder / file).read_bytes()
                        if self.command == "GET":
                            asked.append(file)
                        etag = f'"{hashlib.sha1(data).hexdigest()}"'
                        return self._answer(data, {"ETag": etag, "X-Repo-Commit": "1" * 40})
            return self._answer(b"{}", {"X-Error-Code": "RepoNotFound"}, 404)

        def _answer(self, data: bytes, headers: dict[str, str], status: int = 200) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def _files(folder: Path) -> list[tuple[str, int]]:
    return [(p.relative_to(folder).as_posix(), p.stat().st_size) for p in folder.rglob("*") if p.is_file()]


def _tree(folder: Path) -> list[dict[str, Any]]:
    return [{"type": "file", "path": name, "size": size, "oid": "1" * 40} for name, size in _files(folder)]


def _info(name: str, folder: Path) -> dict[str, Any]:
    siblings = [{"rfilename": file, "size": size} for file, size in _files(folder)]
    plain = {"tags": [], "private": False, "downloads": 0, "likes": 0}
    return {"_id": "1", "id": name, "modelId": name, "sha": "1" * 40, "siblings": siblings, **plain}


_SCRIPT = """
import json, sys
from diffplugin.errors import CheckpointError
from diffplugin.export.checkpoints import check_checkpoint, find
from diffplugin.export.checkpoints.hub import base_path, clip_path
for kind, name, offline in json.loads(sys.argv[1]):
    try:
        print((base_path if kind == "base" else clip_path)(name, offline=offline, log=print))
    except CheckpointError as error:
        print("refused:", error)
"""


def _run(home: Path, endpoint: str, *asked: tuple[str, str, bool]) -> list[str]:
    """Lines that a process of its own prints: the hub client reads its environment once."""
    environment = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1",
                   "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # fmt: skip
    command = [sys.executable, "-c", _SCRIPT, json.dumps(asked)]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_hub_id_brings_what_is_read_and_nothing_else(tmp_path: Path) -> None:
    root, home = write_tiny(tmp_path / "tiny"), tmp_path / "home"
    base, clip = root / "base", root / "clip"
    for copy in ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.non_ema.safetensors",
                 "diffusion_flax_model.msgpack", "diffusion_pytorch_model.bin"):  # fmt: skip
        shutil.copy(base / "unet" / "diffusion_pytorch_model.safetensors", base / "unet" / copy)
    single = tmp_path / "single"
    for file in (base / "v1-5-pruned.safetensors", clip / "tf_model.h5", single / "one.safetensors"):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x")
    hubs = {"some/base": base, "open/clip": clip, "some/single": single}
    with fake_hub(hubs) as (address, asked):
        said = _run(
            home, address, ("base", "some/base", False), ("clip", "open/clip", False), ("base", "some/single", False),
            ("base", "some/single/one.safetensors", False), ("base", "some/single/two.safetensors", False),
            ("base", "other/one", False), ("clip", "some/single", False),
        )  # fmt: skip
    assert said[0].startswith("some/base: 11 of 18 files, 0.0 GB") and said[2].startswith("open/clip: 3 of 4 files")
    found, eyes = Path(said[1]), Path(said[3])
    checkpoint = find(found, eyes, root / "pre-trained")
    check_checkpoint(checkpoint)
    assert said[5] == said[7] and Path(said[5]).read_bytes() == b"x"
    assert said[8] == "refused: some/single: two.safetensors is not in it"
    assert said[9].startswith("refused: other/one: not found in the local hub cache; asking the hub failed (")
    assert said[10].startswith("refused: some/single: config.json is missing; there are no weights")
    assert {file for file in asked if file.endswith((".safetensors", ".bin", ".msgpack", ".h5"))} == {
        "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors", "model.safetensors", "one.safetensors",
    }  # fmt: skip
    # the hub is gone: what was downloaded is used, what was not is one line
    again = _run(
        home, address, ("base", "some/base", True), ("base", "some/base", False), ("clip", "open/clip", True),
        ("base", "some/single/one.safetensors", True), ("base", "some/other", True), ("base", "some/other", False),
    )  # fmt: skip
    assert again[:4] == [said[1], said[1], said[3], said[5]]
    assert again[4].startswith("refused: some/other: not found in the local hub cache (offline); go online")
    assert again[5].startswith("refused: some/other: not found in the local hub cache; asking the hub failed")
    assert len(again) == 6
