"""Which ONNX Runtime is installed: CPU build, GPU build, both, each uninstalled; real packages in slow tests."""

from __future__ import annotations

import sys
import venv
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from diffplugin.engines import onnxruntime_install
from diffplugin.engines.onnxruntime_install import broken_reason, cuda_unavailable_reason
from tests.sources import copy_without_links
from tests.test_installs import BIN, run
from tests.test_packaging import build, photo

GPU = "onnxruntime-gpu==1.31.1"
MEND = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'diffplugin[{}]'"


def test_the_processors_build_is_whole_and_no_cuda() -> None:
    assert broken_reason() is None
    reason = cuda_unavailable_reason(0, lambda: pytest.fail("the GPU is not asked where the package is the wrong one"))
    assert reason == f"this ONNX Runtime has no CUDAExecutionProvider; {MEND.format('gpu')}"


@pytest.mark.parametrize(
    ("packages", "says"),
    [
        (("onnxruntime",), "ONNX Runtime is broken (onnxruntime: the module is empty); " + MEND.format("cpu")),
        (("onnxruntime-gpu",), "ONNX Runtime is broken (onnxruntime-gpu: the module is empty); " + MEND.format("gpu")),
        ((), "(what is left of an uninstalled onnxruntime: the module is empty); " + MEND.format("cpu")),
    ],
)
def test_an_empty_module_is_named(monkeypatch: pytest.MonkeyPatch, packages: tuple[str, ...], says: str) -> None:
    """What uninstalling one of two packages leaves: a folder that can be imported and holds nothing."""
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    monkeypatch.setattr(onnxruntime_install, "_packages", lambda: packages)
    monkeypatch.setattr(onnxruntime_install, "_leftovers", lambda: True)
    assert str(broken_reason()).endswith(says)


def test_a_gpu_build_that_was_replaced_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_install, "_packages", lambda: ("onnxruntime", "onnxruntime-gpu"))
    reason = cuda_unavailable_reason(0, lambda: None)
    assert reason == (
        f"onnxruntime and onnxruntime-gpu are both installed, and onnxruntime has replaced onnxruntime-gpu; "
        f"{MEND.format('gpu')}"
    )


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Listed:
        get_available_providers = staticmethod(lambda: ["CUDAExecutionProvider"])
        InferenceSession = object

    monkeypatch.setitem(sys.modules, "onnxruntime", Listed)
    monkeypatch.setattr(onnxruntime_install, "_LIBRARIES", ("libnowhere.so.13",))
    if sys.platform == "linux":
        reason = str(cuda_unavailable_reason(0, lambda: None))
        assert "needs libnowhere.so.13" in reason and reason.endswith("or install CUDA 13 and cuDNN 9")
    assert cuda_unavailable_reason(0, lambda: "no GPU") == "no GPU"


@pytest.mark.skipif(sys.platform != "linux", reason="there the loader is asked by name")
def test_libraries_of_nvidias_packages_are_found_wherever_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's environment has them; ONNX Runtime may lie in a folder of PYTHONPATH."""
    asked: list[str] = []

    def load(name: str) -> None:
        asked.append(name)
        if "/" not in name:
            raise OSError(f"{name}: no such file")

    monkeypatch.setattr("ctypes.CDLL", load)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "nvidia/cu13/lib").mkdir(parents=True)
    (tmp_path / "nvidia/cu13/lib/libhere.so.13").write_bytes(b"")
    assert onnxruntime_install._load("libhere.so.13") is None
    assert asked == ["libhere.so.13", str(tmp_path / "nvidia/cu13/lib/libhere.so.13")]
    assert onnxruntime_install._load("libnowhere.so.13") == "libnowhere.so.13: no such file"


@pytest.fixture
def environment(tmp_path: Path) -> Any:
    """``pip(...)`` and ``infer(...)`` of a fresh environment with diffplugin and no ONNX Runtime."""
    wheel = build(copy_without_links(tmp_path / "source"), "wheel", tmp_path / "dist")
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=True)
    python = folder / BIN / "python"

    class Environment:
        def pip(self, *arguments: object) -> None:
            run(python, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check", cwd=tmp_path)

        def infer(self, *options: object, code: int = 0) -> str:
            words = (photo(tmp_path), "brighten this dark photo", "-o", tmp_path / "out.png", "--steps", 1)
            return run(folder / BIN / "dp-infer", *words, *options, cwd=tmp_path, code=code)

    made = Environment()
    made.pip("install", wheel)
    return made


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="where onnxruntime-gpu has such a wheel")
def test_every_state_of_an_environment(environment: Any) -> None:
    """Each state is what pip makes of real packages; each message has the commands that mend it, and they do."""

    def one_line(said: str) -> str:
        (line,) = said.strip().splitlines()
        return line

    none = one_line(environment.infer("--engine", "onnxruntime", code=1))
    assert "ONNX Runtime is not installed" in none and "pip install 'diffplugin[cpu]'" in none

    environment.pip("install", "diffplugin[cpu]")
    environment.infer("--engine", "onnxruntime")
    wrong = one_line(environment.infer("--engine", "onnxruntime-cuda", code=1))
    assert f"this ONNX Runtime has no CUDAExecutionProvider; {MEND.format('gpu')}" in wrong

    environment.pip("install", "--no-deps", GPU)  # over the other: the GPU build runs, and has the processor too
    environment.infer("--engine", "onnxruntime")
    environment.pip("uninstall", "-y", "onnxruntime")  # takes the files that both had
    broken = one_line(environment.infer("--engine", "onnxruntime", code=1))
    assert "ONNX Runtime is broken (onnxruntime-gpu: " in broken and MEND.format("gpu") in broken
    assert "ONNX Runtime is broken (onnxruntime-gpu: " in one_line(environment.infer(code=1))

    environment.pip("uninstall", "-y", "onnxruntime", "onnxruntime-gpu")
    environment.pip("install", "--no-deps", GPU, "flatbuffers", "protobuf", "packaging")  # the GPU build alone
    environment.infer("--engine", "onnxruntime")
    no_gpu = one_line(environment.infer("--engine", "onnxruntime-cuda", code=1))
    assert "cuda-python cannot be imported" in no_gpu and "pip install 'diffplugin[" in no_gpu

    environment.pip("install", "diffplugin[cpu]")  # the processors' build over it
    replaced = one_line(environment.infer("--engine", "onnxruntime-cuda", code=1))
    assert "both installed, and onnxruntime has replaced onnxruntime-gpu" in replaced and MEND.format("gpu") in replaced
    environment.pip("uninstall", "-y", "onnxruntime-gpu")
    left = one_line(environment.infer("--engine", "onnxruntime", code=1))
    assert "ONNX Runtime is broken (onnxruntime: " in left and MEND.format("cpu") in left

    environment.pip("uninstall", "-y", "onnxruntime", "onnxruntime-gpu")
    environment.pip("install", "diffplugin[cpu]")
    environment.infer("--engine", "onnxruntime")
