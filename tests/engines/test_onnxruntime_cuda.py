"""ONNX Runtime's real CUDA provider on a recording stand-in for CUDA: placement, launches, memory, capture, faults."""

from __future__ import annotations

import json
import lzma
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffplugin.bundle import default_bundle
from tests.engines.standin import build

ROOT = Path(__file__).resolve().parents[2]
# The GPU build of ONNX Runtime, unpacked: it must not be installed beside the processors' build.
UNPACKED = Path(os.environ.get("DIFFPLUGIN_ONNXRUNTIME_GPU", ROOT / ".onnxruntime-gpu"))
Scene = Callable[..., Any]
FULL_WIDTH = ROOT / "tests" / "data" / "step-full-width.onnx.xz"
# (kernels and library calls, those among the kernels that move a map from one layout to another) of a run at 64x64
# latents, as the provider itself places them: frozen.
LAUNCHES = {
    "fp16": {
        "clip_text": (64, 0),
        "clip_vision": (80, 2),
        "diagnosis": (136, 2),
        "tpb/derain": (12, 0),
        "selector": (14, 0),
        "vae_encoder": (49, 2),
        "scb/derain": (93, 1),
        "head/derain": (56, 6),
        "unet": (380, 8),
        "unet_shallow": (75, 6),
        "step": (402, 8),
        "vae_decoder": (76, 5),
    },
    "fp32": {
        "clip_text": (81, 12),
        "clip_vision": (76, 0),
        "diagnosis": (133, 2),
        "tpb/derain": (10, 0),
        "selector": (14, 0),
        "scb/derain": (87, 0),
        "head/derain": (50, 4),
        "unet": (364, 0),
        "unet_shallow": (62, 0),
        "step": (387, 0),
    },
}
LAUNCHES_FULL = (719, 10)
MOST_LAUNCHES = {"embedded": 430, "full": 720}
CAPTURES = 5  # each of the four graphs tries its own, then the stage's
IN_A_PHOTO = 1816  # of 64x64 pixels in four steps


@pytest.fixture(scope="session")
def standin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which ``onnxruntime`` is the GPU build and CUDA the stand-in."""
    provider = UNPACKED / build.PROVIDER
    if not provider.is_file():
        pytest.skip(f"no onnxruntime-gpu in {UNPACKED}; python scripts/onnxruntime_gpu.py unpacks it there")
    if reason := build.unavailable_reason():
        pytest.skip(f"the stand-in cannot be built: {reason}")
    libraries = build.build(provider, tmp_path_factory.mktemp("standin"))
    ours = [str(UNPACKED), str(build.HERE / "python"), str(ROOT)]
    path = os.pathsep.join([*ours, *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def scene(standin: dict[str, str], tmp_path: Path) -> Scene:
    """Runs one of ``standin.scenes`` in a process of its own; its JSON."""

    def run(name: str, *arguments: object, **environment: object) -> Any:
        settings = {key.upper(): str(value) for key, value in environment.items()}
        done = subprocess.run(
            [sys.executable, "-m", "tests.engines.standin.scenes", name, *map(str, arguments)],
            env={**standin, "STANDIN_LOG": str(tmp_path / f"{name}.log"), **settings},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


def _faults(part: dict[str, Any]) -> list[str]:
    """What a run and its capture may not hold."""
    found = {**part["plain"], **{f"captured {kind}": n for kind, n in part["captured"].items()}}
    bad = ("REFUSED", "OUTSIDE", "FOREIGN", "BEYOND", "BROKENCAPTURE")
    inside = ("captured memcpy H2D", "captured memcpy D2H", "captured MALLOC", "captured HOSTFUNC")
    return [f"{kind} x {n}" for kind, n in found.items() if kind.removeprefix("captured ") in bad or kind in inside]


def unpack_full_width(folder: Path) -> Path:
    """The frozen graph ``step`` with zeros for its weights: a file of the right size without contents."""
    folder.mkdir()
    with lzma.open(FULL_WIDTH) as packed:
        (folder / "step.onnx").write_bytes(packed.read())
    with (folder / "unet.onnx.data").open("wb") as weights:
        weights.truncate(2 * 2**30)
    return folder / "step.onnx"


def test_every_graph_runs_on_the_provider_alone(scene: Scene, cuda_bundle: Path) -> None:
    """None of their nodes is on the processor: loading would be refused. No allocation, no copy from or to the host,
    no product in TF32."""
    counts = {}
    for precision in ("fp16", "fp32"):
        found = scene("graphs", cuda_bundle, precision, 64)
        counts[precision] = {key: (run["launches"], run["transposes"]) for key, run in found.items()}
        print(precision, counts[precision])
        for key, run in found.items():
            assert run["same"] and run["capturable"] is None, f"{precision} {key}: {run}"
            copies = (
                4 if key == "diagnosis" else 0
            )  # of addresses, for a join; once a photo, outside of what is captured
            assert run["plain"].pop("memcpy H2D", 0) == copies, f"{precision} {key}"
            allowed = {"kernel", "lib", "memset", "memcpy D2D"}
            assert set(run["plain"]) <= allowed, f"{precision} {key}: {run['plain']}"
    assert counts == LAUNCHES
    assert max(counts[precision]["step"][0] for precision in counts) <= MOST_LAUNCHES["embedded"]


def test_float32_is_no_tf32(scene: Scene, tmp_path: Path) -> None:
    """Every operator by itself; the stand-in sees TF32 where it is asked for, and computes nothing."""
    from diffplugin.bench.gpu_acceptance import operators

    operators.write(tmp_path / "operators")
    number = sum(len(case.precisions) for case in operators.CASES.values())
    ours, other = (scene("products", tmp_path, tf32) for tf32 in (0, 1))
    assert ours == {"ran": number, "passed": 0, "tf32": 0} and other["tf32"] > 0, (ours, other)


def test_a_step_at_stable_diffusions_widths(scene: Scene, cuda_bundle: Path, tmp_path: Path) -> None:
    """The frozen graph without weights: zeros of the same size stand for them."""
    out = unpack_full_width(tmp_path / "full")
    run = scene("full_width", cuda_bundle, out, standin_empty=1)
    print(run)
    assert (run["launches"], run["transposes"]) == LAUNCHES_FULL and run["launches"] <= MOST_LAUNCHES["full"]
    assert run["same"] and set(run["plain"]) <= {"kernel", "lib", "memset", "memcpy D2D"}, run


@pytest.mark.slow
def test_the_frozen_graph_is_what_is_traced_today(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra [export]")
    command = [sys.executable, "-m", "diffplugin.bench.gpu_acceptance.full_width", "--step", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    made = (tmp_path / "step.onnx").read_bytes()
    with lzma.open(FULL_WIDTH) as frozen:
        assert made == frozen.read(), "trace it again: python -m diffplugin.bench.gpu_acceptance.full_width --step OUT"


def test_a_photo_is_one_cuda_graph(scene: Scene, cuda_bundle: Path) -> None:
    """The product as it is: a plain run and a capture, then one launch a request, six uploads and one download."""
    found = scene("photo", cuda_bundle)
    assert found["loop"] == "device" and found["stages"] == [[True, None]], found
    first, *later = (found["parts"][f"request {i}"] for i in range(4))
    assert not _faults(first) and first["plain"]["ENDCAPTURE"] == CAPTURES, _faults(first)
    one = first["captured"]
    print({kind: one[kind] for kind in ("kernel", "lib", "memset", "memcpy D2D")})
    assert set(one) == {"kernel", "lib", "memset", "memcpy D2D"}
    assert one["kernel"] + one["lib"] == IN_A_PHOTO
    around = scene("around", cuda_bundle)  # the prompt branch and what it copies, which are outside of the graph
    for part in later:
        assert part["plain"]["GRAPHLAUNCH"] == 1 and not {"MALLOC", "FREE", "MEMCPYSYNC H2D"} & set(part["plain"]), part
        extra = {kind: part["plain"][kind] - around[kind] for kind in ("memcpy H2D", "memcpy D2H")}
        assert extra == {"memcpy H2D": 6, "memcpy D2H": 1}
        assert part["launches"] == around["kernel"] + around["lib"]
    assert found["left"] == [0, 0] and found["parts"]["closed"]["plain"]["STREAMDESTROY"] == 1


def test_a_graph_runs_until_it_allocates_nothing(scene: Scene, cuda_bundle: Path) -> None:
    """An allocation ends a capture: it is tried before, and a graph that allocates in it runs once more."""
    found = scene("settling", cuda_bundle)
    first, *later = found["parts"]
    assert found["stages"] == [[True, None]]
    assert first["plain"]["BROKENCAPTURE"] >= 1, "the arena no longer needs more in a second run at this size"
    assert all(part["plain"]["GRAPHLAUNCH"] == 1 and "MALLOC" not in part["plain"] for part in later)


def test_a_bundle_without_graphs_for_it_runs_from_the_host(scene: Scene) -> None:
    found = scene("photo", default_bundle(), "fp32")
    assert found["loop"] == "host" and found["stages"] == []
    assert "no graph 'step' at fp32" in found["reason"]
    assert not any(part["plain"].get("BEGINCAPTURE") for part in found["parts"].values()) and found["left"] == [0, 0]


def test_a_second_size_evicts_the_first_and_gives_its_memory_back(scene: Scene, cuda_bundle: Path) -> None:
    found = scene("eviction", cuda_bundle)
    assert found["kept"] == 1 and found["left"] == 0 and not _faults(found["part"])
    assert found["used"][0] == found["used"][2] == found["used"][4] and found["used"][1] == found["used"][3], found
    assert found["part"]["plain"]["ENDCAPTURE"] == 5 * CAPTURES and found["part"]["plain"]["GRAPHLAUNCH"] == 5


def test_two_threads_never_meet_in_a_capture(scene: Scene, cuda_bundle: Path) -> None:
    found = scene("threads", cuda_bundle)
    assert found["faults"] == [] and found["stages"] == [[True, None]] * 2
    assert not _faults(found["part"]) and found["part"]["plain"]["ENDCAPTURE"] == 2 * CAPTURES
    assert found["part"]["plain"]["GRAPHLAUNCH"] == 6


def test_a_full_device_in_the_middle(scene: Scene, cuda_bundle: Path) -> None:
    """The idle pictures go first; what still does not fit is an error of one line; then it works again."""
    found = scene("memory", cuda_bundle)
    assert found["evicted"] == [20] and found["left"] == 0
    kind, _, text = found["full"].partition(": ")
    assert kind == "DeviceMemoryFull" and "smaller photo or tile" in text and "\n" not in text and len(text) < 300
    assert found["after"] == [[True, None]]


def test_a_provider_that_cannot_start_is_named_and_auto_takes_another(scene: Scene, cuda_bundle: Path) -> None:
    found = scene("refused", cuda_bundle, standin_no_cublas=1)
    assert "CUDAExecutionProvider cannot run here (CUBLAS failure 1: stand-in); check driver" in found["error"]
    assert "\n" not in found["error"] and found["auto"][0] in ("openvino", "onnxruntime")


def test_a_provider_that_falls_back_is_refused(
    scene: Scene, standin: dict[str, str], cuda_bundle: Path, tmp_path: Path
) -> None:
    """A library of CUDA that loads and lacks its functions: ONNX Runtime would go on, on the processor."""
    broken = shutil.copytree(standin["LD_LIBRARY_PATH"], tmp_path / "broken")
    shutil.copy(broken / "libcurand.so.10", broken / "libcublasLt.so.13")
    found = scene("refused", cuda_bundle, ld_library_path=broken)
    assert "CUDAExecutionProvider cannot run here (ONNX Runtime fell back to CPUExecutionProvider)" in found["error"]
    assert "\n" not in found["error"] and found["auto"][0] in ("openvino", "onnxruntime")


def test_without_a_gpu_it_is_named(scene: Scene, cuda_bundle: Path) -> None:
    found = scene("refused", cuda_bundle, standin_devices=0)
    assert "cudaErrorNoDevice" in found["error"] and found["auto"][0] in ("openvino", "onnxruntime")


def test_auto_takes_the_gpu(scene: Scene, cuda_bundle: Path) -> None:
    assert scene("refused", cuda_bundle)["auto"] == ["onnxruntime-cuda", "fp16", "there is a GPU"]
    assert scene("refused", default_bundle())["auto"] == ["onnxruntime-cuda", "fp32", "there is a GPU"]


def test_a_card_that_is_too_small_is_refused_before_anything_is_loaded(scene: Scene, cuda_bundle: Path) -> None:
    found = scene("refused", cuda_bundle, standin_memory=600 * 2**20)
    assert "needs 0.6" in found["error"] and "cuda:0 has 0.59 GiB" in found["error"], found["error"]
    assert found["part"]["plain"]["MALLOC"] == found["part"]["launches"] == 1, "one kernel is tried, and no more"
    assert found["auto"][0] in ("openvino", "onnxruntime")


def test_a_device_by_number(scene: Scene, cuda_bundle: Path) -> None:
    found = scene("photo", cuda_bundle, "fp16", "cuda:1", standin_devices=2)
    used = {number for part in found["parts"].values() for number in part["devices"]}
    assert used == {1} and found["stages"] == [[True, None]] and found["left"] == [0, 0]
    refused = scene("refused", cuda_bundle, "cuda:2", standin_devices=2)
    assert refused["error"].endswith("only cuda:0 to cuda:1; name another, or leave out --device")


@pytest.mark.slow
def test_an_acceptance_run_from_a_prepared_folder(standin: dict[str, str], tmp_path: Path) -> None:
    """Prepared in one go, then every part runs on the stand-in, which computes nothing: pictures are wrong, and what
    needs PyTorch's CUDA is left out. The prepared folder stays as it is."""
    pytest.importorskip("torch", reason="needs the extra [export]")
    prepared, out = tmp_path / "prepared", tmp_path / "out"
    module = "diffplugin.bench.gpu_acceptance"
    words = ["--work", "64x64", "--steps", "2"]
    subprocess.run([sys.executable, "-m", f"{module}.prepare", str(prepared), *words], check=True, capture_output=True)
    before = {file: file.read_bytes() for file in prepared.rglob("*") if file.is_file()}
    size = sum(map(len, before.values()))
    assert size < 64 * 2**20, f"{size / 2**20:.1f} MiB do not travel in one go"
    command = [sys.executable, "-m", module, "--engine", "onnxruntime-cuda", "--prepared", str(prepared)]
    environment = {**standin, "STANDIN_LOG": str(tmp_path / "log")}
    done = subprocess.run(
        [*command, "--out", str(out), "--rounds", "1"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "Not accepted" in done.stdout, done.stderr[-3000:]
    parts = json.loads((out / "acceptance.json").read_text())["parts"]
    assert len(parts) == 14 and not [part for part in parts if part["model"] != "card" and "error" in part], parts
    replays = [part for part in parts if part["part"] == "replay"]
    assert len(replays) == 2 and all(check["ok"] for part in replays for check in part["checks"]), replays
    assert "stand-in" in (out / "row.md").read_text()
    assert before == {file: file.read_bytes() for file in prepared.rglob("*") if file.is_file()}
