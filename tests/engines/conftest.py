"""A tiny graph with the contract of the UNet, its weights stored in every way, and NumPy's answer to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from diffplugin.bundle import Bundle, graph_files, list_files
from diffplugin.integrity import sha256
from diffplugin.manifest import GraphEntry, Manifest
from diffplugin.spec import Array, ModelDims

DIMS = ModelDims(
    factor=8,
    latent_channels=4,
    residual_channels=8,
    deep_channels=8,
    time_features=6,
    tokens=5,
    token_width=8,
    vision_width=8,
    vision_size=14,
    context=7,
    native_latent=8,
)
HEADS = 2


@dataclass(frozen=True)
class Tiny:
    """The bundle, and what ``unet`` in it computes."""

    bundle: Bundle
    weights: Mapping[str, Array]

    def inputs(self, height: int = 8, width: int = 8, seed: int = 0) -> dict[str, Array]:
        random = np.random.default_rng(seed)
        sizes = {"h": height, "w": width}
        return {
            t.name: random.standard_normal([sizes.get(a, a) if isinstance(a, str) else a for a in t.axes], np.float32)  # type: ignore[arg-type]
            for t in self.bundle.spec("unet").inputs
        }

    def expected(self, inputs: Mapping[str, Array]) -> Array:
        """eps of ``inputs``, in double precision."""
        x = {name: array.astype(np.float64) for name, array in inputs.items()}
        w = {name: array.astype(np.float64) for name, array in self.weights.items()}
        y = _convolve(x["latents"], w["enter"]) + (x["time"] @ w["time_weight"])[:, :, None, None]
        y = y + x["residual_0"] + x["residual_1"] + x["residual_2"]
        channels, (height, width) = y.shape[1], y.shape[2:]
        query = y.reshape(1, channels, -1).transpose(0, 2, 1)
        y = y + _attend(query, x["tokens"]).transpose(0, 2, 1).reshape(1, channels, height, width)
        return _convolve(y, w["leave"])


def _convolve(x: Array, weight: Array) -> Array:
    """3x3, zero padding of one."""
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    pieces = [
        np.einsum("oc,nchw->nohw", weight[:, :, i, j], padded[:, :, i : i + height, j : j + width])
        for i in range(3)
        for j in range(3)
    ]
    total: Array = np.sum(pieces, axis=0)
    return total


def _attend(query: Array, key: Array) -> Array:
    def split(x: Array) -> Array:
        return x.reshape(1, x.shape[1], HEADS, -1).transpose(0, 2, 1, 3)

    q, k = split(query), split(key)
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1])
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed: Array = scores / scores.sum(axis=-1, keepdims=True) @ k
    return mixed.transpose(0, 2, 1, 3).reshape(query.shape)


def _write(path: Path, weights: Mapping[str, Array], *, half: bool, external: bool) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def node(kind: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
        domain = "com.microsoft" if kind == "MultiHeadAttention" else ""
        return helper.make_node(kind, inputs.split(), [output], domain=domain, **attributes)

    nodes, stored = [], []
    for name, array in weights.items():
        if half:
            stored.append(numpy_helper.from_array(array.astype(np.float16), f"{name}.half"))
            nodes.append(node("Cast", f"{name}.half", name, to=TensorProto.FLOAT))
        else:
            stored.append(numpy_helper.from_array(array, name))
    stored += [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in (("tail", [2, 3]), ("flat", [0, 0, -1]))]
    nodes += [
        node("Conv", "latents enter", "entered", pads=[1, 1, 1, 1]),
        node("MatMul", "time time_weight", "timed"),
        node("Unsqueeze", "timed tail", "shift"),
        node("Sum", "entered shift residual_0 residual_1 residual_2", "y"),
        node("Shape", "y", "shape"),
        node("Reshape", "y flat", "rows"),
        node("Transpose", "rows", "query", perm=[0, 2, 1]),
        node("MultiHeadAttention", "query tokens tokens", "attended", num_heads=HEADS),
        node("Transpose", "attended", "columns", perm=[0, 2, 1]),
        node("Reshape", "columns shape", "map"),
        node("Add", "y map", "z"),
        node("Conv", "z leave", "eps", pads=[1, 1, 1, 1]),
        node("Neg", "entered", "deep"),
    ]
    d = DIMS
    side = ["h", "w"]
    shapes = {
        "latents": [1, d.latent_channels, *side],
        "time": [1, d.time_features],
        "tokens": [1, d.tokens, d.token_width],
        **{f"residual_{i}": [1, d.residual_channels, *side] for i in range(3)},
    }
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()],
            [
                helper.make_tensor_value_info("eps", TensorProto.FLOAT, [1, d.latent_channels, *side]),
                helper.make_tensor_value_info("deep", TensorProto.FLOAT, [1, d.deep_channels, *side]),
            ],
            stored,
        ),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    data = f"{path.name}.data"
    onnx.save_model(model, path, save_as_external_data=external, location=data, size_threshold=100)


def make_tiny(folder: Path, *, half: bool = False, external: bool = False, weights_bytes: int | None = None) -> Tiny:
    random, d = np.random.default_rng(7), DIMS
    shapes = {
        "enter": (d.residual_channels, d.latent_channels, 3, 3),
        "time_weight": (d.time_features, d.residual_channels),
        "leave": (d.latent_channels, d.residual_channels, 3, 3),
    }
    # values that half precision holds exactly
    weights = {n: (random.standard_normal(s) / 4).astype(np.float16).astype(np.float32) for n, s in shapes.items()}
    path = folder / "onnx" / "unet.onnx"
    _write(path, weights, half=half, external=external)
    size = sum(array.nbytes for array in weights.values()) if weights_bytes is None else weights_bytes
    manifest = Manifest(
        created_with="0",
        name="tiny",
        source={},
        dims=DIMS,
        scheduler={},
        time_embedding={},
        clip={},
        graphs={"unet": GraphEntry(file="onnx/unet.onnx", sha256=sha256(*graph_files(path)), weights_bytes=size)},
        plugins=(),
        selector=False,
        files=list_files(folder),
    )
    return Tiny(Bundle(folder, manifest), weights)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Tiny]:
    """``make(half=…, external=…)``: a bundle with one tiny UNet."""
    pytest.importorskip("onnx", reason="makes its graphs with the package onnx")
    return lambda name="tiny", **options: make_tiny(tmp_path / name, **options)


@pytest.fixture
def tiny(make: Callable[..., Tiny]) -> Tiny:
    return make()


@pytest.fixture
def worst() -> Callable[[Array, Array], float]:
    """Largest difference; prints where it is."""

    def difference(found: Array, expected: Array) -> float:
        assert found.shape == expected.shape, f"{found.shape}, expected {expected.shape}"
        gap = np.abs(found.astype(np.float64) - expected)
        where = np.unravel_index(int(np.argmax(gap)), gap.shape)
        print(f"largest difference {gap[where]:.2e} at {tuple(map(int, where))}: {found[where]} for {expected[where]}")
        return float(gap[where])

    return difference


@pytest.fixture
def resident() -> Callable[[Path], int]:
    """kB of a file that this process has in memory."""

    def kilobytes(path: Path) -> int:
        total, inside = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if "-" in line.split(maxsplit=1)[0]:
                inside = line.endswith(str(path))
            elif inside and line.startswith("Rss:"):
                total += int(line.split()[1])
        return total

    return kilobytes
