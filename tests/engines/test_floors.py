"""The lowest versions that pyproject.toml declares are enough: installed into a fresh environment, they restore."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffplugin.engines.openvino.builder import OLDEST

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_RESTORE = """
import sys, numpy as np, diffplugin
engine, photo = sys.argv[1:]
with diffplugin.load(engine=engine, precision="auto" if engine == "auto" else "fp32", threads=2) as restorer:
    made = restorer.restore(photo, "brighten this dark photo", size=64)
    print(made.plan.engine, restorer.reason, made.array.shape, int(made.array.mean()))
"""


def floors(*extras: str) -> Iterator[str]:
    """``name==version`` of every dependency, at its lowest; of extras of this project as well."""
    extra = PROJECT["optional-dependencies"]
    for requirement in (*PROJECT["dependencies"], *(r for name in extras for r in extra[name])):
        found = re.fullmatch(r"([A-Za-z0-9_.-]+)>=([0-9.]+)(?:\s*;.*)?", requirement)
        assert found, f"{requirement}: says no lowest version"
        yield f"{found[1]}=={found[2]}"


def test_the_oldest_openvino_is_declared_once() -> None:
    (floor,) = floors_of("openvino")
    assert floor == ".".join(map(str, OLDEST))


def floors_of(extra: str) -> list[str]:
    return [r.partition(">=")[2] for r in PROJECT["optional-dependencies"][extra]]


@pytest.mark.slow
def test_the_lowest_versions_restore_a_photo(tmp_path: Path) -> None:
    """numpy 1.26 has wheels for Python 3.11 and 3.12 alone."""
    if sys.version_info >= (3, 13):
        pytest.skip("the lowest numpy has no wheel for this Python")
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *floors("cpu", "openvino")], check=True)
    subprocess.run([*pip, "--no-deps", str(ROOT)], check=True)

    def restored(engine: str) -> str:
        words = [str(python), "-c", _RESTORE, engine, str(ROOT / "docs/examples/moose-dark.jpg")]
        return subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path).stdout

    dark = "(512, 768, 3)"
    for engine in ("onnxruntime", "openvino"):
        said = restored(engine)
        assert said.startswith(engine) and dark in said and int(said.split()[-1]) > 60, said
    major, minor = OLDEST
    subprocess.run([*pip, f"openvino=={major}.{minor - 1}"], check=True)
    said = restored("auto")
    assert said.startswith("onnxruntime ") and "lacks operators" in said and dark in said, said
    refused = subprocess.run(
        [str(python), "-c", _RESTORE, "openvino", "x.jpg"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert f"{major}.{minor} has them; pip install -U" in refused.stderr.splitlines()[-1]
