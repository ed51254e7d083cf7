"""What the card itself does: its two ceilings, the native kernels, and Stable Diffusion's networks in PyTorch.

The networks have random weights: PyTorch eagerly, eagerly in a CUDA graph, and by torch.compile in one (a part of its
own, since compiling takes minutes and cannot be interrupted). A photo's loop is the sum of its networks: the encoder,
the SCB for all steps at once, the UNet for each step, the decoder.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffplugin.bench.full_width import DIMS
from diffplugin.bench.gpu_acceptance.card_row import COMPILED
from diffplugin.bench.gpu_acceptance.trial import NATIVE, Trial

Result = dict[str, Any]
Ways = dict[str, dict[str, dict[str, float]]]  # way -> network -> milliseconds
_SIDE = 8192  # of the matrices whose product shows the ceiling of arithmetic
_COPY = 2**30  # bytes that are copied to show the ceiling of memory
_ROUNDS = 5
_NETWORKS = ("unet", "vae_decoder", "scb", "vae_encoder")  # of a photo, in the order in which they are measured


def _skip() -> Result | None:
    return None if torch.cuda.is_available() else {"skipped": "PyTorch sees no GPU here"}


def _milliseconds(run: Callable[[], object], repeats: int) -> dict[str, float]:
    """Median and range of ``_ROUNDS`` rounds, per run, by the GPU's clock."""
    run()
    torch.cuda.synchronize()
    found = []
    for _ in range(_ROUNDS):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        began.record()
        for _ in range(repeats):
            run()
        ended.record()
        ended.synchronize()
        found.append(began.elapsed_time(ended) / repeats)
    return {"median": statistics.median(found), "least": min(found), "most": max(found)}


def ceilings(trial: Trial) -> Result:
    """TFLOP/s of a large float16 product, GB/s of a large copy, and the least time a step can take."""
    if skipped := _skip():
        return skipped
    a, b = (torch.randn(_SIDE, _SIDE, device="cuda", dtype=torch.float16) for _ in range(2))
    product = _milliseconds(lambda: a @ b, 10)
    source = torch.empty(_COPY, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    copy = _milliseconds(lambda: target.copy_(source), 10)
    flops = 2 * _SIDE**3 / product["median"] * 1e3
    networks = {name: operations(name, trial) for name in ("vae_encoder", "scb", "unet", "vae_decoder")}
    floor = {name: count / flops * 1e3 for name, count in networks.items()}
    return {
        "tflops": flops / 1e12,
        "gbs": 2 * _COPY / copy["median"] * 1e3 / 1e9,
        "operations": networks,
        "floor_ms": floor,
        "floor_step_ms": floor["unet"],
        "floor_loop_ms": _loop(floor, trial.steps),
    }


def _loop(milliseconds: dict[str, float], steps: int) -> float:
    """The sum of the networks of a photo; the SCB's is for all steps."""
    once = milliseconds["vae_encoder"] + milliseconds["scb"] + milliseconds["vae_decoder"]
    return once + steps * milliseconds["unet"]


def _network(name: str) -> nn.Module:
    from diffplugin.bench.full_width import SCB, UNET, VAE
    from diffplugin.export import graphs
    from diffplugin.export.checkpoints.configs import read_config
    from diffplugin.plugins.networks.taskplugin import SpatialComplementBranch
    from diffplugin.plugins.networks.unet import UNet
    from diffplugin.plugins.networks.vae import Autoencoder

    vae = read_config("vae", VAE, "vae")[0]
    makers: dict[str, Callable[[], nn.Module]] = {
        "unet": lambda: graphs._UNet(UNet(UNET)),
        "scb": lambda: graphs.Scb(SpatialComplementBranch(SCB)),
        "vae_encoder": lambda: graphs._Encoder(Autoencoder(vae)),
        "vae_decoder": lambda: graphs._Decoder(Autoencoder(vae)),
    }
    return makers[name]().eval()


def _inputs(name: str, trial: Trial, device: str, dtype: torch.dtype) -> list[Tensor]:
    h, w = trial.height // DIMS.factor, trial.width // DIMS.factor

    def normal(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, device=device, dtype=dtype)
        return drawn.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else drawn

    latent, tokens = (1, DIMS.latent_channels, h, w), (1, DIMS.tokens, DIMS.token_width)
    shapes: dict[str, list[tuple[int, ...]]] = {
        "vae_encoder": [(1, 3, trial.height, trial.width)],
        "vae_decoder": [latent],
        "scb": [(trial.steps, DIMS.time_features), tokens, latent],
        "unet": [latent, (1, DIMS.time_features), tokens, *[(1, DIMS.residual_channels, h, w)] * 3],
    }
    return [normal(*shape) for shape in shapes[name]]


def operations(name: str, trial: Trial) -> int:
    """Floating-point operations of one run of a network, counted without running it."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network = _network(name)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(*_inputs(name, trial, "meta", torch.float32))
    return int(counter.get_total_flops())


def networks(trial: Trial) -> Result:
    """Milliseconds of each network in float16, channels last, eagerly; and of a step and a photo's loop."""
    return _networks(trial, ("eager", "eager, one CUDA graph"))


def compiled_networks(trial: Trial) -> Result:
    """As :func:`networks`, by torch.compile."""
    return _networks(trial, (COMPILED,))


def _networks(trial: Trial, ways: Sequence[str]) -> Result:
    if skipped := _skip():
        return skipped
    torch.backends.cudnn.benchmark = True
    found: Ways = {}
    faults: dict[str, str] = {}
    made: Result = {}
    for name in _NETWORKS:
        torch.manual_seed(0)
        with torch.device("cuda"):
            network = _network(name).to(torch.float16).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = _inputs(name, trial, "cuda", torch.float16)
        with torch.inference_mode():
            makers = _ways(network, inputs)
            for way in ways:
                try:
                    found.setdefault(way, {})[name] = _milliseconds(makers[way](), 20 if name == "unet" else 5)
                except Exception as error:  # a compiler that fails is told; the other ways go on
                    faults[f"{way}, {name}"] = " ".join(str(error).split())[:300]
        del network, inputs
        torch.cuda.empty_cache()
        made = _summary(found, faults, trial.steps)
        print(json.dumps(made), flush=True)  # compiling takes minutes: what there is by now counts if time runs out
    return made


def _summary(found: Ways, faults: dict[str, str], steps: int) -> Result:
    whole = {way: rows for way, rows in found.items() if len(rows) == len(_NETWORKS)}
    medians = {way: {name: row["median"] for name, row in rows.items()} for way, rows in whole.items()}
    return {
        "torch": torch.__version__,
        "ways_ms": found,
        "step_ms": {way: rows["unet"]["median"] for way, rows in found.items() if "unet" in rows},
        "loop_ms": {way: _loop(rows, steps) for way, rows in medians.items()},
        "faults": faults,
    }


def _ways(network: Any, inputs: list[Tensor]) -> dict[str, Callable[[], Callable[[], object]]]:
    return {
        "eager": lambda: lambda: network(*inputs),
        "eager, one CUDA graph": lambda: _captured(network, inputs),
        COMPILED: lambda: _captured(torch.compile(network, dynamic=False), inputs),
    }


def _captured(network: Any, inputs: list[Tensor]) -> Callable[[], object]:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            network(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        network(*inputs)
    return graph.replay


def native(trial: Trial) -> Result:
    """The native kernels against double precision, compiled here."""
    from diffplugin.bench.gpu_acceptance.parts import check

    folder = Path(trial.prepared) / NATIVE
    if not (folder / "native_gpu.cu").is_file():
        return {"skipped": "no sources of the native kernels; prepare them with bench.gpu_acceptance.prepare"}
    compiler = shutil.which("nvcc") or next(map(str, Path("/usr/local").glob("cuda*/bin/nvcc")), None)
    if compiler is None:
        return {"skipped": "no nvcc here"}
    program = trial.scratch / "native_gpu"
    command = [compiler, "-std=c++17", "-O2", "-arch=native", "-I", str(folder), "-o", str(program)]
    began = time.monotonic()
    made = subprocess.run(
        [*command, str(folder / "native_gpu.cu"), str(folder / "launch.cu")],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        return {"error": f"nvcc: {' '.join(made.stderr.split())[-400:]}"}
    compiled = time.monotonic() - began
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    faults = [line for line in lines if "FAULT" in line]
    told = "; ".join(faults) or f"{len(lines)} cases"
    return {
        "lines": lines,
        "compile_s": compiled,
        "checks": [check("native kernels against double", done.returncode == 0 and not faults and bool(lines), told)],
    }
