"""The parts on the recording fake, and the peer on the processor."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="needs the extra [bench]")
pytest.importorskip("skimage", reason="needs the extra [bench]")

import torch

from diffplugin.bench.gpu_acceptance import card, full_width, measured, parts
from diffplugin.bench.gpu_acceptance.trial import DevicePeak, Trial, interleaved, photograph
from diffplugin.bundle import Bundle, default_bundle, write_manifest
from diffplugin.engines import choice
from diffplugin.errors import RequestError
from tests.bench.gpu_acceptance import fake_gpu
from tests.engines.fake_driver import FakeDriver


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return Trial(
        part="", model="embedded", engine="onnxruntime", precision="fp32", out=str(tmp_path),
        width=96, height=64, steps=3, rounds=2,
    )  # fmt: skip


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    """A fake GPU; at the end nothing may be left on it."""
    monkeypatch.setitem(choice._BUILDERS, fake_gpu.NAME, (fake_gpu.__name__, "builder", (), ("cuda",)))
    fake_gpu.drivers.append(FakeDriver())
    yield fake_gpu.drivers[-1]
    assert fake_gpu.drivers.pop().live() == {}


@pytest.fixture
def on_gpu(trial: Trial, gpu: FakeDriver, device_bundle: Bundle) -> Trial:
    made = replace(trial, engine=fake_gpu.NAME)
    shutil.copytree(device_bundle.path, made.bundle)
    write_manifest(made.bundle, device_bundle.manifest)
    return made


def test_replay_is_compared_bit_for_bit(on_gpu: Trial) -> None:
    result = parts.replay(on_gpu)
    assert result["replays"] >= 6 and result["different"] == 0
    assert [c["ok"] for c in result["checks"]] == [True, True]


def test_a_graph_that_does_nothing_is_found(on_gpu: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stale graph looks like: the picture of the request before."""
    monkeypatch.setattr(FakeDriver, "launch", lambda self, executable, stream: None)
    result = parts.replay(on_gpu)
    assert result["different"] > 0 and [c["ok"] for c in result["checks"]] == [True, False]


def test_unordered_sums_have_a_bound(on_gpu: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a library's sums have no order a replay may be near, but not elsewhere."""
    launch = FakeDriver.launch
    monkeypatch.setitem(parts.UNORDERED, fake_gpu.NAME, {"fp32": 1e-3})
    assert [c["ok"] for c in parts.replay(on_gpu)["checks"]] == [True, True]
    monkeypatch.setattr(FakeDriver, "launch", lambda self, executable, stream: None)
    found = parts.replay(on_gpu)
    assert [c["ok"] for c in found["checks"]] == [True, False] and "bound 0.001" in found["checks"][1]["found"]
    assert launch is not FakeDriver.launch


def test_every_way_is_measured_on_a_device(on_gpu: Trial) -> None:
    result = measured.measure(on_gpu)
    assert {way: len(seconds) for way, seconds in result["picture_s"].items()} == {"graph": 2, "enqueues": 2, "host": 2}
    assert {graph: len(runs) for graph, runs in result["runs_s"].items()} == {
        "vae_encoder": 1, "scb": 1, "step": 3, "head/derain": 1,
    }  # fmt: skip
    assert all(seconds > 0 for runs in result["runs_s"].values() for seconds in runs)
    assert len(result["loop_s"]) == 2 and "step_in_loop_s" in result
    assert result["device_bytes"] > 2**20 and result["first_picture_s"] > result["load_s"]
    assert result["checks"] == [{"name": "one launch a picture", "ok": True, "found": "1 launches"}]
    with Image.open(on_gpu.picture) as image:
        assert image.size == (96, 64)
    assert parts.fidelity(on_gpu)["checks"][0]["ok"]


def test_an_engine_of_the_processor_has_one_way_and_nothing_to_replay(trial: Trial) -> None:
    shutil.copytree(default_bundle(), trial.bundle)
    result = measured.measure(trial)
    assert set(result["picture_s"]) == {"host"} and result["device_bytes"] is None
    assert result["stages_s"]["unet"] > 0
    assert "nothing to capture" in parts.replay(trial)["skipped"]


def test_pictures_that_are_too_far_fail_the_check(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(default_bundle(), trial.bundle)
    from diffplugin.export import parity

    monkeypatch.setitem(parity.PHOTO_BUDGET, "fp32", 99.5)  # more than any picture has
    (check,) = parts.fidelity(trial)["checks"]
    assert not check["ok"] and "99.5" in check["found"]


@pytest.mark.parametrize("plugin", ["derain", "lowlight"])
def test_the_peer_computes_the_same_picture(trial: Trial, plugin: str) -> None:
    """In float32 on the processor: both starts, UniPC, the whole loop."""
    import diffplugin
    from diffplugin.bench.gpu_acceptance.peer import TorchPipeline
    from diffplugin.bundle import open_bundle
    from diffplugin.export.measures import psnr

    photo = photograph(trial, plugin)
    from diffplugin.export.checkpoints import embedded_checkpoint

    checkpoint, _, _ = embedded_checkpoint([])
    pipeline = TorchPipeline(checkpoint, open_bundle(default_bundle()), plugin, "cpu", half=False, compiled=False)
    stages: dict[str, float] = {}
    found = pipeline.restore(photo, 4, seed=3, stages=stages)
    with diffplugin.load(engine="onnxruntime", precision="fp32") as restorer:
        expected = restorer.restore(photo, plugins=[plugin], steps=4, seed=3).array
    assert psnr(found, expected) >= 70, f"{psnr(found, expected):.1f} dB"
    assert set(stages) == {
        "vision",
        "tpb",
        "vae_encoder",
        "scb",
        "unet",
        "head" if plugin == "derain" else "vae_decoder",
    }


def test_the_full_model_needs_no_bundle_of_its_own(trial: Trial, tmp_path: Path) -> None:
    model = replace(trial, model=f"full:{tmp_path}").measured()
    assert model.root == tmp_path and model.bundle.is_relative_to(trial.out)
    assert replace(trial, model="embedded").measured().root is None


def test_ways_run_in_turn() -> None:
    order: list[str] = []

    def way(name: str) -> float:
        order.append(name)
        return float(len(order))

    taken = interleaved({"a": lambda: way("a"), "b": lambda: way("b")}, 3)
    assert order == ["a", "b", "b", "a", "a", "b"] and taken == {"a": [1, 4, 5], "b": [2, 3, 6]}
    with pytest.raises(RequestError, match="rounds is 0"):
        interleaved({}, 0)


def test_the_peak_is_the_most_that_was_taken() -> None:
    free, seen = [100, 90, 20, 80], threading.Event()

    def left() -> int:
        if len(free) == 1:
            seen.set()
        return free[0] if len(free) == 1 else free.pop(0)

    with DevicePeak(left) as peak:
        assert seen.wait(10)
    assert peak.bytes == 80
    with DevicePeak(None) as none:
        pass
    assert none.bytes is None


def test_photographs_are_the_same_every_time(trial: Trial) -> None:
    assert np.array_equal(photograph(trial, "derain", 1), photograph(trial, "derain", 1))
    assert photograph(trial, "derain").shape == (64, 96, 3)


# The card


def test_the_longest_kernels_of_a_profile() -> None:
    """PyTorch's own profile of something on the processor, with times as of a GPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        torch.zeros(4) + 1
    names = {row.key for row in seen.key_averages()}
    assert "aten::add" in names and measured.kernels(seen.key_averages()) == [], "nothing ran on a GPU"
    rows = [SimpleNamespace(key=name, count=2, self_device_time_total=time) for name, time in (("a", 1.0), ("b", 9.0))]
    assert measured.kernels(rows) == [{"name": "b", "calls": 2, "ms": 0.009}, {"name": "a", "calls": 2, "ms": 0.001}]


def test_operations_of_the_networks() -> None:
    """Counted, not run: Stable Diffusion 1.4's UNet at 64x64 latents, unguided, is 0.82 TFLOP."""
    trial = Trial(
        part="", model="card", engine="x", precision="fp16", out="", width=512, height=512, steps=20, rounds=1
    )
    found = {name: card.operations(name, trial) / 1e12 for name in ("unet", "vae_encoder")}
    assert abs(found["unet"] - 0.818) < 0.005 and abs(found["vae_encoder"] - 1.117) < 0.005, found
    whole = card._loop({"unet": 1.0, "scb": 2.0, "vae_encoder": 3.0, "vae_decoder": 4.0}, 20)
    assert whole == 29


def test_without_a_gpu_the_card_is_skipped(trial: Trial) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert "no GPU" in card.ceilings(trial)["skipped"] and "no GPU" in card.networks(trial)["skipped"]
    assert "no sources" in card.native(trial)["skipped"] and "no GPU" in measured.profile(trial)["skipped"]


# Full widths without weights


def test_weights_are_drawn_where_the_graph_says(tmp_path: Path) -> None:
    (tmp_path / "cuda-fp16").mkdir()
    places = {"cuda-fp16/a.onnx.data": [[0, 3000, 16, 0.5, 0.0], [8192, 20, 32, 0.0, 1.0]]}
    (tmp_path / "weights.json").write_text(json.dumps(places))
    assert full_width.draw(tmp_path) == 3000 * 2 + 20 * 4
    data = (tmp_path / "cuda-fp16/a.onnx.data").read_bytes()
    first, second = np.frombuffer(data[:6000], np.float16), np.frombuffer(data[8192:], np.float32)
    assert abs(first.astype(float).std() - 0.5) < 0.05 and np.array_equal(second, np.ones(20, np.float32))


@pytest.mark.slow
def test_a_run_with_a_tensorrt_engine(on_gpu: Trial) -> None:
    """The coordinator over the parts that run the engine, on the recording fake for TensorRT and CUDA."""
    from diffplugin.bench.gpu_acceptance import __main__ as acceptance
    from diffplugin.bench.gpu_acceptance.bars import failures
    from diffplugin.bench.gpu_acceptance.worker import PARTS

    trials = [replace(on_gpu, part=part) for part in ("build", "cold start", "replay", "fidelity", "measure")]
    head = {
        "environment": {"cpu": "some", "cores": 2, "system": "Linux", "python": "3"},
        "conditions": {
            "engine": on_gpu.engine,
            "precision": "fp32",
            "width": 96,
            "height": 64,
            "steps": 3,
            "rounds": 2,
        },
    }

    def execute(trial: dict[str, Any], timeout: float) -> dict[str, Any]:
        return {"engines": []} if trial["part"] == "build" else PARTS[trial["part"]](Trial(**trial))

    result = acceptance.run(trials, head, Path(on_gpu.out), execute, 600)
    assert failures(result) == []
    names = [check["name"] for part in result["parts"] for check in part.get("checks", ())]
    assert names == ["something was replayed", "replay is plain, bit for bit", "picture", "one launch a picture"]
    report = (Path(on_gpu.out) / acceptance.REPORT).read_text()
    assert "one CUDA graph per picture" in report and report.rstrip().endswith("Accepted.")
