"""Stable Diffusion 1.4's widths without weights: graphs of kilobytes that travel, weights are drawn where they run.

    python -m diffplugin.bench.gpu_acceptance.full_width OUT           a bundle of one plugin, for ONNX Runtime's CUDA
    python -m diffplugin.bench.gpu_acceptance.full_width --draw OUT    there: draws its weights (3 GB, seconds)
    python -m diffplugin.bench.gpu_acceptance.full_width --step OUT    the graph ``step`` alone, for the tests

Nothing may be learned from its pictures; time and memory are those of the real model. Networks are traced without
values in their weights, so this needs neither 5 GB nor the checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffplugin.bench.full_width import DIMS, SCHEDULER, UNET, VAE, VISION
from diffplugin.bench.full_width import SCB as SCB_CONFIG
from diffplugin.bundle import default_bundle, open_bundle, write_manifest
from diffplugin.engines.onnxruntime_cuda.variants import VARIANTS
from diffplugin.integrity import sha256
from diffplugin.manifest import GraphEntry
from diffplugin.plugins.cards import card_to_toml, registry
from diffplugin.spec import graph_specs

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

PLUGIN = "deblur"
_PRECISION = "fp16"
_SHAPES = "weights.json"  # file of weights -> [place, values, standard deviation or constant]
_ALIGNED = 4096  # bytes, so that weights can be mapped
_BLOCK = 2**22  # drawn values that are repeated
_FILLED = 2**16  # values up to which a weight is written to while it is traced
_SMALL = 16  # values up to which a weight stays in the graph


def _networks() -> Iterator[tuple[str, nn.Module]]:
    """(graph key, network without values) of what a photo with one named plugin needs."""
    import torch

    from diffplugin.export import graphs
    from diffplugin.export.checkpoints.configs import read_config
    from diffplugin.plugins.networks.clip import VisionEncoder
    from diffplugin.plugins.networks.taskplugin import SpatialComplementBranch, TaskPromptBranch
    from diffplugin.plugins.networks.unet import UNet
    from diffplugin.plugins.networks.vae import Autoencoder

    vae = read_config("vae", VAE, "vae")[0]
    makers: dict[str, Any] = {
        "unet": lambda: graphs._UNet(UNet(UNET)),
        "vae_encoder": lambda: graphs._Encoder(Autoencoder(vae)),
        "vae_decoder": lambda: graphs._Decoder(Autoencoder(vae)),
        f"scb/{PLUGIN}": lambda: graphs.Scb(SpatialComplementBranch(SCB_CONFIG)),
        f"tpb/{PLUGIN}": lambda: TaskPromptBranch(DIMS.vision_width, DIMS.token_width),
        "clip_vision": lambda: VisionEncoder(VISION),
    }
    for key, make in makers.items():
        with torch.device("meta"):
            module = make().eval()
        module = module.to_empty(device="cpu")  # memory that nobody touches
        # one value each: the exporter makes one weight of small ones that are equal, as untouched memory may be
        for number, value in enumerate((*module.parameters(), *module.buffers()), 1):
            if value.numel() <= _FILLED and value.is_floating_point():
                value.data.fill_(number * 1e-4)
        yield key, module


def write_step(folder: Path) -> Path:
    """The graph ``step`` at these widths in float16; its weights are to lie in ``unet.onnx.data``."""
    from diffplugin.export.step import to_step

    key, module = next(_networks())
    model = _traced(key, module)
    to_step(model, graph_specs(DIMS)["step"])
    _without_weights(model, "unet.onnx.data")
    return _written(model, folder / "step.onnx")


def write_bundle(out: Path, log: Any = print) -> Path:
    """A bundle of the float16 graphs for ONNX Runtime's CUDA provider, without weights; :func:`draw` makes them."""
    from diffplugin.export.step import to_step

    source = open_bundle(default_bundle())
    variant, specs = VARIANTS[_PRECISION], graph_specs(DIMS)
    entries: dict[str, GraphEntry] = {}
    shapes: dict[str, list[list[float]]] = {}
    for key, module in _networks():
        log(f"tracing {key}")
        model = _traced(key, module)
        path = out / variant / f"{key}.onnx"
        places = _without_weights(model, f"{path.name}.data")
        shapes[f"{variant}/{key}.onnx.data"] = places
        entries[key] = _entry(_written(model, path), out, places)
        if key == "unet":
            to_step(model, specs["step"])
            entries["step"] = _entry(_written(model, path.with_name("step.onnx")), out, places)
    (out / _SHAPES).write_text(json.dumps(shapes, sort_keys=True), encoding="utf-8")
    plugin = out / "plugins" / PLUGIN
    plugin.mkdir(parents=True)
    (plugin / "card.toml").write_text(card_to_toml(registry()[PLUGIN]), encoding="utf-8")
    shutil.copy(source.path / "tokenizer.json", out)
    manifest = replace(
        source.manifest,
        name="full widths, drawn weights",
        source={},
        dims=DIMS,
        scheduler=SCHEDULER,
        time_embedding={name: UNET[name] for name in ("flip_sin_to_cos", "freq_shift")},
        graphs={key: replace(entry, weights_bytes=2 * entry.weights_bytes) for key, entry in entries.items()},
        plugins=(PLUGIN,),
        selector=False,
        parity={},
        variants={variant: entries},
        files={},
    )
    write_manifest(out, manifest)  # lists no files, as one that is being written: the weights are to come
    return out


def draw(bundle: Path, seed: int = 0) -> int:
    """Weights for :func:`write_bundle`, normal with PyTorch's initial deviations: bytes written."""
    block = np.random.default_rng(seed).standard_normal(_BLOCK, dtype=np.float32)
    written = 0
    for name, places in json.loads((bundle / _SHAPES).read_text(encoding="utf-8")).items():
        with (bundle / name).open("wb") as file:
            for place, count, bits, deviation, mean in places:
                kind = np.float16 if bits == 16 else np.float32
                file.seek(int(place))
                for first in range(0, int(count), _BLOCK):
                    values = block[: min(_BLOCK, int(count) - first)] * np.float32(deviation) + np.float32(mean)
                    written += file.write(values.astype(kind).tobytes())
    return written


def _traced(key: str, module: nn.Module) -> Any:
    from diffplugin.export.cuda import cuda_graph
    from diffplugin.export.graphs import kind_of

    return cuda_graph(module, graph_specs(DIMS)[kind_of(key)], _PRECISION, factor=DIMS.factor)


def _without_weights(model: ir.Model, file: str) -> list[list[float]]:
    """The model's weights as places in a file that is not there: [place, values, bits, deviation, mean] of each."""
    import onnx_ir as ir

    at, places = 0, []
    for value in model.graph.initializers.values():
        tensor = value.const_value
        bits = {ir.DataType.FLOAT16: 16, ir.DataType.FLOAT: 32}.get(tensor.dtype) if tensor is not None else None
        if tensor is None or bits is None or tensor.size <= _SMALL:
            continue
        value.const_value = ir.ExternalTensor(
            file, at, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=value.name, base_dir=""
        )
        places.append([at, tensor.size, bits, *_initial(value)])
        at += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
    return places


def _initial(value: ir.Value) -> tuple[float, float]:
    """(deviation, mean) of a weight: products and convolutions keep the scale of what they take, norms are 1 and 0."""
    shape = [int(side) for side in (value.shape or ())]
    if len(shape) > 1:
        inputs = math.prod(shape[1:]) if len(shape) == 4 else shape[0]
        return round(1 / math.sqrt(3 * inputs), 8), 0.0
    scales = [node.op_type for node, index in value.uses() if "Norm" in node.op_type and index == 1]
    return 0.0, float(bool(scales))


def _written(model: ir.Model, path: Path) -> Path:
    import onnx_ir as ir

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
    return path


def _entry(path: Path, bundle: Path, places: list[list[float]]) -> GraphEntry:
    weights = sum(int(count * bits) // 8 for _, count, bits, _, _ in places)
    return GraphEntry(file=path.relative_to(bundle).as_posix(), sha256=sha256(path), weights_bytes=weights)


def main() -> None:
    parser = argparse.ArgumentParser(description="Stable Diffusion 1.4's widths without weights.")
    parser.add_argument("out", type=Path)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--draw", action="store_true", help="the weights of a bundle that lies there")
    what.add_argument("--step", action="store_true", help="the graph step alone")
    args = parser.parse_args()
    if args.draw:
        print(f"{draw(args.out) / 2**20:.0f} MiB of weights drawn")
    else:
        print((write_step if args.step else write_bundle)(args.out))


if __name__ == "__main__":
    main()
