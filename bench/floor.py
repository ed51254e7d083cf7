"""The least processor time of a picture's arithmetic: what a plain 3x3 convolution reaches here, through each engine.

A matrix product (sgemm) is no such bound: convolutions of ONNX Runtime and oneDNN reach more on processors with AVX512.
The convolutions have the graphs' own widths and a size that stays in the cache, on one core.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from diffplugin.bench.arithmetic import products
from diffplugin.spec import GraphSpec, TensorSpec

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle

LAYERS = 8  # convolutions in a row at most, so that a run's own cost does not count
MACS = 4e9  # of a run at most
SIDES = (32, 64)  # of the maps: the better one counts
ENGINES = ("onnxruntime", "openvino", "ncnn")
SECONDS = 0.4  # of measurement for each width and side, at most


def main_widths(bundle: Bundle, keys: Iterable[str], side: int = 64, count: int = 4) -> list[int]:
    """The widths that most multiplications of plain 3x3 convolutions have, at a latent of this side."""
    sizes = {"h": side, "w": side, "H": side * bundle.manifest.dims.factor, "W": side * bundle.manifest.dims.factor}
    found: Counter[int] = Counter()
    for key in keys:
        for product in products(bundle, key, sizes | {"n": 1, "p": 1}):
            found[product.width] += product.macs
    del found[0]
    return [width for width, _ in found.most_common(count)]


def rates(engine: str, precision: str, widths: Iterable[int]) -> dict[int, float]:
    """Multiplications with an addition in a second of one core, by width: the best of a few runs. ncnn's Winograd
    convolutions do fewer, and count as if they did all.

    Args:
        engine: one of :data:`ENGINES`.
        precision: "fp32" or "bf16".
    """
    found = {}
    with TemporaryDirectory() as folder:
        for width in widths:
            found[width] = max(_rate(engine, precision, Path(folder), width, side) for side in SIDES)
    return found


def _rate(engine: str, precision: str, folder: Path, width: int, side: int) -> float:
    run = _MAKERS[engine](folder, precision, width, side)
    run()
    least, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        before = time.process_time()
        run()
        least = min(least, time.process_time() - before)
    return _layers(width, side) * 9 * width * width * side * side / least


def _layers(width: int, side: int) -> int:
    return max(1, min(LAYERS, int(MACS / (9 * width * width * side * side))))


def _weights(width: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).normal(0, 0.05, (width, width, 3, 3)).astype(np.float32)


def _onnx(folder: Path, width: int, side: int) -> tuple[Path, GraphSpec]:
    """A graph of convolutions in a row."""
    from onnx import TensorProto, helper, numpy_helper, save

    layers = _layers(width, side)
    nodes = [
        helper.make_node("Conv", [f"t{i}", "w"], [f"t{i + 1}"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        for i in range(layers)
    ]
    shape = [1, width, side, side]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("t0", f"t{layers}")]
    graph = helper.make_graph(nodes, "floor", ends[:1], ends[1:], [numpy_helper.from_array(_weights(width), "w")])
    path = folder / f"{width}-{side}.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path, _spec(width, side)


def _spec(width: int, side: int) -> GraphSpec:
    given, made = (TensorSpec(name, "f32", (1, width, side, side)) for name in ("t0", f"t{_layers(width, side)}"))
    return GraphSpec("floor", (given,), (made,))


def _picture(width: int, side: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(1).normal(size=(1, width, side, side)).astype(np.float32)


def _onnxruntime(folder: Path, precision: str, width: int, side: int) -> Callable[[], object]:
    from diffplugin.engines.onnxruntime import OnnxRuntimeEngine

    path, spec = _onnx(folder, width, side)
    engine, inputs = OnnxRuntimeEngine(spec, path, 1), {"t0": _picture(width, side)}
    return lambda: engine.run(inputs)


def _openvino(folder: Path, precision: str, width: int, side: int) -> Callable[[], object]:
    from diffplugin.engines.openvino.model import compile_graph, compile_properties

    path, spec = _onnx(folder, width, side)
    hint = {"fp32": "f32", "bf16": "bf16"}[precision]
    request = compile_graph(path, spec, {}, compile_properties(path, hint, 1, "CPU")).create_infer_request()
    inputs = {"t0": _picture(width, side)}
    return lambda: request.infer(inputs, share_inputs=True, share_outputs=True)


def _ncnn(folder: Path, precision: str, width: int, side: int) -> Callable[[], object]:
    from diffplugin.engines.ncnn import NcnnEngine

    count, weights = _layers(width, side), 9 * width * width
    # outputs, kernel, padding, number of weights; no bias
    layers = [f"Convolution c{i} 1 1 t{i} t{i + 1} 0={width} 1=3 4=1 6={weights}" for i in range(count)]
    path = folder / f"{width}-{side}.param"
    path.write_text("\n".join(["7767517", f"{count + 1} {count + 1}", "Input t0 0 1 t0", *layers]) + "\n")
    path.with_suffix(".bin").write_bytes((b"\0\0\0\0" + _weights(width).tobytes()) * count)  # 0: as float32
    engine, inputs = NcnnEngine(_spec(width, side), path, 1, precision), {"t0": _picture(width, side)}
    return lambda: engine.run(inputs)


_MAKERS = {"onnxruntime": _onnxruntime, "openvino": _openvino, "ncnn": _ncnn}
