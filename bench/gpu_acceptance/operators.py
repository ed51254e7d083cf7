"""Each operator of the graphs for CUDA by itself, against double precision: if the goldens are off, which one is.

:mod:`.prepare` writes the graphs, of one node each; inputs are drawn anew wherever they run. In float32 the bound is
below what TF32 reaches (about 3e-4), so it is seen here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diffplugin.bench.gpu_acceptance.trial import OPERATORS, Trial

Array = Any  # NumPy's
Arrays = dict[str, Array]
BOUNDS = {"fp16": 2e-3, "fp32": 2e-5}  # relative L2 error; float16 rounds inputs and result to 5e-4
_TYPES = {"fp16": np.float16, "fp32": np.float32}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One node.

    Attributes:
        shapes: of its inputs; values are normal, divided by the root of ``inner``.
        weights: inputs that the graph stores; of them ``exact`` are float32 in both precisions.
        result: its result from inputs in double precision.
    """

    operator: str
    shapes: Mapping[str, tuple[int, ...]]
    result: Callable[..., Array]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    weights: tuple[str, ...] = ()
    exact: tuple[str, ...] = ()
    inner: Mapping[str, int] = field(default_factory=dict)
    precisions: tuple[str, ...] = ("fp16", "fp32")

    def draw(self, precision: str) -> Arrays:
        random, made = np.random.default_rng(0), {}
        for name, shape in self.shapes.items():
            values = random.standard_normal(shape) / math.sqrt(self.inner.get(name, 1))
            made[name] = values.astype(np.float32 if name in self.exact else _TYPES[precision])
        return made


def _convolution(x: Array, w: Array, b: Array, stride: int = 1) -> Array:
    """Padded by half the kernel; channels first."""
    side = w.shape[2] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (side, side), (side, side)))
    height, width = x.shape[2:]
    made = np.zeros((x.shape[0], w.shape[0], -(-height // stride), -(-width // stride)))
    for i, j in itertools.product(range(w.shape[2]), range(w.shape[3])):
        view = padded[:, :, i : i + height : stride, j : j + width : stride]
        made += np.einsum("nchw,oc->nohw", view, w[:, :, i, j], optimize=True)
    return made + b[:, None, None]


def _group_norm(x: Array, scale: Array, bias: Array, groups: int, silu: bool) -> Array:
    """Channels last."""
    n, height, width, channels = x.shape
    grouped = x.reshape(n, height * width, groups, channels // groups)
    centred = grouped - grouped.mean((1, 3), keepdims=True)
    normal = (centred / np.sqrt(centred.var((1, 3), keepdims=True) + 1e-5)).reshape(x.shape) * scale + bias
    return normal / (1 + np.exp(-normal)) if silu else normal


def _attention(query: Array, key: Array, value: Array, heads: int) -> Array:
    def split(x: Array) -> Array:
        return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(0, 2, 1, 3)

    q, k, v = split(query), split(key), split(value)
    scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(q.shape[-1])
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = scores / scores.sum(-1, keepdims=True) @ v
    return mixed.transpose(0, 2, 1, 3).reshape(query.shape)


def _gated(x: Array, bias: Array) -> Array:
    value, gate = np.split(x + bias, 2, axis=-1)
    return value * gate * (1 + np.vectorize(math.erf)(gate / math.sqrt(2))) / 2


def _cases() -> Iterator[tuple[str, Case]]:
    for name, side, stride in (("Conv 3x3", 3, 1), ("Conv 1x1", 1, 1), ("Conv 3x3, stride 2", 3, 2)):
        yield (
            name,
            Case(
                operator="Conv",
                shapes={"x": (1, 64, 32, 48), "w": (128, 64, side, side), "b": (128,)},
                inner={"w": 64 * side**2},
                weights=("w", "b"),
                attributes={"pads": [side // 2] * 4, "strides": [stride] * 2},
                result=partial(_convolution, stride=stride),
            ),
        )
    for silu in (False, True):
        yield (
            f"GroupNorm{' + SiLU' * silu}",
            Case(
                operator="GroupNorm",
                shapes={"x": (1, 32, 48, 320), "scale": (320,), "bias": (320,)},
                weights=("scale", "bias"),
                exact=("scale", "bias"),
                attributes={"groups": 32, "epsilon": 1e-5, "activation": int(silu), "channels_last": 1},
                result=partial(_group_norm, groups=32, silu=silu),
            ),
        )
    for name, rows in (("self", 1024), ("cross", 77)):
        yield (
            f"MultiHeadAttention, {name}",
            Case(
                operator="MultiHeadAttention",
                shapes={"query": (1, 1024, 320), "key": (1, rows, 320), "value": (1, rows, 320)},
                attributes={"num_heads": 8},
                result=partial(_attention, heads=8),
            ),
        )
    yield (
        "BiasSplitGelu",
        Case(
            operator="BiasSplitGelu",
            shapes={"x": (1, 64, 2560), "bias": (2560,)},
            weights=("bias",),
            result=_gated,
            precisions=("fp16",),
        ),
    )
    yield (
        "MatMul",
        Case(
            operator="MatMul",
            shapes={"x": (1, 1024, 320), "w": (320, 640)},
            inner={"w": 320},
            weights=("w",),
            result=np.matmul,
        ),
    )


CASES = dict(_cases())
_ONNX = ("Conv", "MatMul")  # the others are of ONNX Runtime's own domain


def write(folder: Path) -> None:
    """``NUMBER-PRECISION.onnx`` of every case."""
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir()
    for number, case in enumerate(CASES.values()):
        for precision in case.precisions:
            drawn = case.draw(precision)
            kind = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
            domain = "" if case.operator in _ONNX else "com.microsoft"
            node = helper.make_node(case.operator, [*drawn], ["y"], domain=domain, **case.attributes)
            entering = [
                helper.make_tensor_value_info(name, kind, array.shape)
                for name, array in drawn.items()
                if name not in case.weights
            ]
            stored = [numpy_helper.from_array(drawn[name], name) for name in case.weights]
            leaving = [helper.make_tensor_value_info("y", kind, None)]
            graph = helper.make_graph([node], case.operator, entering, leaving, stored)
            opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
            model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
            (folder / f"{number}-{precision}.onnx").write_bytes(model.SerializeToString(deterministic=True))


def error(case: Case, drawn: Arrays, found: Array) -> float:
    """Relative L2 error of a result."""
    expected = case.result(*(array.astype(np.float64) for array in drawn.values()))
    if found.shape != expected.shape:
        return math.inf
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected))


def operators(trial: Trial) -> dict[str, Any]:
    """Every case on the GPU, twice: the second run must not be off where the first was not."""
    import onnxruntime as ort

    from diffplugin.bench.gpu_acceptance.parts import check
    from diffplugin.engines.onnxruntime_cuda.engine import SETTINGS
    from diffplugin.engines.onnxruntime_install import cuda_session

    checks = []
    for number, (name, case) in enumerate(CASES.items()):
        for precision in case.precisions:
            drawn, bound = case.draw(precision), BOUNDS[precision]
            options = ort.SessionOptions()
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            file = str(Path(trial.prepared) / OPERATORS / f"{number}-{precision}.onnx")
            session = cuda_session(ort, file, options, SETTINGS)
            given = {key: array for key, array in drawn.items() if key not in case.weights}
            found = max(error(case, drawn, session.run(["y"], given)[0]) for _ in range(2))
            checks.append(check(f"{name}, {precision}", found <= bound, f"{found:.1e} <= {bound:g}"))
    return {"checks": checks}
