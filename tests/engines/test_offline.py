"""Nothing is looked up, no socket is opened, and no file is written but those that the docs name."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from diffplugin.engines.offline import ALLOW

ROOT = Path(__file__).resolve().parents[2]
PHOTO = ROOT / "docs/examples/moose-dark.jpg"
STRACE = shutil.which("strace")
_CALLS = "network,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,link,linkat,symlink"
_WRITES = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|^(?:creat|mkdir|rename|unlink|link|symlink)")
_DEVICES = ("/dev/null", "/dev/tty", "/proc/self/", "/dev/shm/sem.", "/dev/shm/__KMP_REGISTERED_LIB_")


@dataclass(frozen=True)
class Seen:
    """What a process and its children did."""

    sockets: list[str]
    written: set[Path]


def watch(tmp_path: Path, name: str, *words: str, **environment: str) -> Seen:
    """Run a command under strace, with an empty home folder and a cache folder of its own."""
    if STRACE is None:
        pytest.skip("needs strace to watch system calls")
    log = tmp_path / "strace.log"
    home, cache, temporary = (tmp_path / folder for folder in ("home", "cache", "tmp"))
    for folder in (home, cache, temporary):
        folder.mkdir(exist_ok=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ORT_", "XDG_", "DIFFPLUGIN_", "CI", "GITHUB_"))}
    env |= {"HOME": str(home), "DIFFPLUGIN_CACHE": str(cache), "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"}
    code = f"import sys; from diffplugin.entry import {name}; sys.exit({name}())"
    command = [STRACE, "-f", "-qq", "-y", "-s", "200", "-e", f"trace={_CALLS}", "-o", str(log)]
    traced = [*command, sys.executable, "-c", code, *words]
    done = subprocess.run(traced, capture_output=True, text=True, cwd=tmp_path, env=env | environment, check=False)
    if "ptrace" in done.stderr and "not permitted" in done.stderr:
        pytest.skip("strace may not watch processes here")
    assert done.returncode == 0, done.stderr[-2000:]
    calls = [line.split(maxsplit=1)[1].strip() for line in log.read_text(errors="replace").splitlines()]
    assert len(calls) > 100, "strace saw nothing"
    calls = [call for call in calls if not re.search(r"= -1 (?:ENOENT|EEXIST|ENOTDIR)", call)]
    talking = [call for call in calls if re.match(r"socket|connect|send|bind", call)]
    # PyTorch asks for the user's name, and the C library first its own daemon, through a socket in the file system
    return Seen([call for call in talking if "AF_UNIX" not in call], _written(calls, tmp_path))


def _written(calls: list[str], folder: Path) -> set[Path]:
    writing = [call for call in calls if _WRITES.search(call) and not call.startswith(("---", "+++"))]
    # a name may be relative to an open folder, which strace writes before it: unlinkat(3</tmp/x>, "graph.pt", 0)
    found = [pair for call in writing for pair in re.findall(r'(?:<([^<>]+)>, )?"([^"]+)"', call)]
    return {folder / base / name for base, name in found if not name.startswith(_DEVICES)}


def _outside(seen: Seen, *allowed: Path) -> list[Path]:
    return sorted(path for path in seen.written if not any(path.is_relative_to(folder) for folder in allowed))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_dp_infer_looks_nothing_up_and_writes_where_it_says(tmp_path: Path, engine: str) -> None:
    if importlib.util.find_spec(engine) is None:
        pytest.skip(f"needs the package {engine}")
    out = tmp_path / "out"
    out.mkdir()
    words = (str(PHOTO), "brighten this dark photo", "--size", "64", "--engine", engine, "-o", str(out / "made.png"))
    seen = watch(tmp_path, "infer", *words)
    assert seen.sockets == []
    assert _outside(seen, out, tmp_path / "cache") == []
    assert list((tmp_path / "home").iterdir()) == []


def test_ncnn_looks_nothing_up_and_installs_nothing(tmp_path: Path, ncnn_bundle: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    words = (str(PHOTO), "brighten this dark photo", "--size", "64", "--engine", "ncnn", "--bundle", str(ncnn_bundle))
    seen = watch(tmp_path, "infer", *words, "-o", str(out / "made.png"))
    assert seen.sockets == []
    assert _outside(seen, out, tmp_path / "cache") == []
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "more"),
    [
        ("onnxruntime", ()),
        ("openvino", ("--size", "64")),
        ("ncnn", ("--size", "64")),
        ("openvino", ("--precision", "int8", "--size", "64")),
        ("tensorrt-rtx", ("--gpus", "sm_89", "--size", "64")),
    ],
)
def test_dp_export_looks_nothing_up_and_writes_where_it_says(
    tmp_path: Path, engine: str, more: tuple[str, ...]
) -> None:
    for package in (
        "torch",
        engine.replace("-", "_"),
        *(["nncf"] if "int8" in more else []),
        *(["pnnx"] if engine == "ncnn" else []),
    ):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}")
    words = ("--plugin", "derain", "--engine", engine, "--out", str(tmp_path / "bundles" / "one"), *more)
    seen = watch(tmp_path, "export", *words)
    assert seen.sockets == []
    assert _outside(seen, tmp_path / "bundles", tmp_path / "cache", tmp_path / "tmp") == []
    assert list((tmp_path / "home").iterdir()) == []


def test_the_user_may_ask_otherwise() -> None:
    code = (
        "import os, sys, diffplugin.engines\n"
        "print(os.environ.get('ORT_DISABLE_TELEMETRY'), 'openvino_telemetry' in sys.modules)"
    )

    def said(**environment: str) -> str:
        env = {k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", ALLOW)} | environment
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
        return done.stdout.strip()

    assert said() == said(**{ALLOW: "0"}) == "1 True"
    assert said(**{ALLOW: "1"}) == "None False"
    assert said(ORT_DISABLE_TELEMETRY="0") == "0 True"
