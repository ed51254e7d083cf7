"""Graph models of TensorFlow.js on PyTorch: the operators that MAXIM's exports consist of, and no others.

A graph model is ``model.json``, with nodes and a list of weights, beside files with the weights' bytes. Pictures are
[n, H, W, channels] throughout, as in TensorFlow.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diffplugin.errors import CheckpointError

_TYPES: dict[str, Any] = {"DT_FLOAT": torch.float32, "DT_INT32": torch.int32, "DT_BOOL": torch.bool}
Attributes = Mapping[str, Any]


def _text(attributes: Attributes, name: str) -> str:
    return base64.b64decode(attributes[name]["s"]).decode()


def _strides(attributes: Attributes) -> tuple[int, int]:
    """Rows, columns."""
    _, rows, columns, _ = (int(i) for i in attributes["strides"]["list"]["i"])
    return rows, columns


def _first(picture: Tensor) -> Tensor:
    """[n, H, W, c] -> [n, c, H, W], the same memory."""
    return picture.permute(0, 3, 1, 2)


def _last(picture: Tensor) -> Tensor:
    """[n, c, H, W] -> [n, H, W, c], the same memory."""
    return picture.permute(0, 2, 3, 1)


def _conv(x: Tensor, kernel: Tensor, a: Attributes) -> Tensor:
    """``kernel`` [rows, columns, in, out]. SAME puts the odd pixel of padding below and to the right."""
    strides = _strides(a)
    if _text(a, "padding") == "SAME":
        sides = zip(x.shape[1:3], kernel.shape[:2], strides, strict=True)
        rows, columns = (max((-(-side // s) - 1) * s + k - side, 0) for side, k, s in sides)
        x = F.pad(x, (0, 0, columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    return _last(F.conv2d(_first(x), kernel.permute(3, 2, 0, 1), stride=strides))


def _conv_back(size: Tensor, kernel: Tensor, x: Tensor, a: Attributes) -> Tensor:
    """``kernel`` [rows, columns, out, in]; ``size`` is what VALID padding gives."""
    return _last(F.conv_transpose2d(_first(x), kernel.permute(3, 2, 0, 1), stride=_strides(a)))


def _slice(x: Tensor, begin: Tensor, end: Tensor, step: Tensor, a: Attributes) -> Tensor:
    if any(int(a[f"{kind}_mask"]["i"]) for kind in ("begin", "end", "ellipsis", "new_axis")):
        raise CheckpointError("StridedSlice with a mask: not among the operators that are known here")
    drop = int(a["shrink_axis_mask"]["i"])
    places = enumerate(zip(begin.tolist(), end.tolist(), step.tolist(), strict=True))
    return x[tuple(b if drop >> i & 1 else slice(b, e, s) for i, (b, e, s) in places)]


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Abs": lambda x, a: x.abs(),
    "AddV2": lambda x, y, a: x + y,
    "BroadcastTo": lambda x, shape, a: x.broadcast_to(shape.tolist()),
    "Cast": lambda x, a: x.to(_TYPES[a["DstT"]["type"]]),
    "ConcatV2": lambda *x: torch.cat(x[:-2], dim=int(x[-2])),
    "Conv2D": _conv,
    "Conv2DBackpropInput": _conv_back,
    "Einsum": lambda x, y, a: torch.einsum(_text(a, "equation"), x, y),
    "Exp": lambda x, a: x.exp(),
    "ExpandDims": lambda x, axis, a: x.unsqueeze(int(axis)),
    "Floor": lambda x, a: x.floor(),
    "FloorDiv": lambda x, y, a: x // y,
    "FloorMod": lambda x, y, a: x % y,
    "GatherV2": lambda x, at, axis, a: x.index_select(int(axis), at),
    "Greater": lambda x, y, a: x > y,
    "GreaterEqual": lambda x, y, a: x >= y,
    "Identity": lambda x, a: x,
    "Less": lambda x, y, a: x < y,
    "LessEqual": lambda x, y, a: x <= y,
    "LogicalAnd": lambda x, y, a: x & y,
    "Maximum": lambda x, y, a: torch.maximum(x, y),
    "Minimum": lambda x, y, a: torch.minimum(x, y),
    "Mul": lambda x, y, a: x * y,
    "Neg": lambda x, a: -x,
    "NotEqual": lambda x, y, a: x != y,
    "Pack": lambda *x: torch.stack(x[:-1], dim=int(x[-1]["axis"]["i"])),
    "Range": lambda start, end, step, a: torch.arange(int(start), int(end), int(step), dtype=start.dtype),
    "RealDiv": lambda x, y, a: x / y,
    "Reciprocal": lambda x, a: x.reciprocal(),
    "Reshape": lambda x, shape, a: x.reshape(shape.tolist()),
    "Rsqrt": lambda x, a: x.rsqrt(),
    "SelectV2": lambda where, x, y, a: torch.where(where, x, y),
    "Shape": lambda x, a: torch.tensor(x.shape, dtype=torch.int32),
    "Sign": lambda x, a: x.sign(),
    "Square": lambda x, a: x.square(),
    "Squeeze": lambda x, a: x.squeeze([int(i) for i in a["squeeze_dims"]["list"]["i"]]),
    "StridedSlice": _slice,
    "Sub": lambda x, y, a: x - y,
    "Sum": lambda x, axes, a: x.sum(axes.tolist(), keepdim=bool(a["keep_dims"]["b"])),
    "Tanh": lambda x, a: x.tanh(),
    "Transpose": lambda x, order, a: x.permute(order.tolist()),
}
"""Operator -> its computation from the inputs, then the attributes."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One node: what it computes, from which nodes, and whose values nobody needs afterwards."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    attributes: Attributes
    done: tuple[str, ...]


class GraphModel:
    """A graph model with one picture in and one out, float32."""

    def __init__(self, file: Path) -> None:
        """Raises:
        CheckpointError: no such model, or one with operators that are not known here.
        """
        try:
            model = json.loads(file.read_text(encoding="utf-8"))
            self._weights = _weights(file.parent, model["weightsManifest"])
            self._steps, self._given, self._made = _steps(model["modelTopology"]["node"])
        except (OSError, KeyError, ValueError) as error:
            raise CheckpointError(f"{file}: not a readable graph model of TensorFlow.js ({error!r})") from None
        if unknown := sorted({s.operator for s in self._steps} - OPERATORS.keys()):
            raise CheckpointError(f"{file}: operators that are not known here: {', '.join(unknown)}")

    def __call__(self, pictures: Tensor) -> Tensor:
        """[n, H, W, 3] -> [n, H, W, 3], both about 0..1."""
        values = {**self._weights, self._given: pictures}
        with torch.inference_mode():
            for step in self._steps:
                values[step.name] = OPERATORS[step.operator](*(values[i] for i in step.inputs), step.attributes)
                for name in step.done:  # large pictures would otherwise fill the memory
                    del values[name]
        return values[self._made]


def _weights(folder: Path, groups: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    found = {}
    for group in groups:
        content, at = bytearray().join((folder / path).read_bytes() for path in group["paths"]), 0
        for weight in group["weights"]:
            kind = {"float32": np.float32, "int32": np.int32}[weight["dtype"]]
            values = np.frombuffer(content, kind, int(np.prod(weight["shape"])), at)
            found[weight["name"]] = torch.from_numpy(values).reshape(weight["shape"])
            at += values.nbytes
        if at != len(content):  # as with quantised weights
            raise ValueError(f"{len(content)} bytes of weights, {at} expected")
    return found


def _steps(nodes: Sequence[Mapping[str, Any]]) -> tuple[list[Step], str, str]:
    """What is to be computed, in order; the name of the input; the name of the output."""
    named = {node["name"]: node for node in nodes}
    # "^name" orders side effects, of which there are none
    inputs = {name: tuple(i for i in node.get("input", ()) if i[0] != "^") for name, node in named.items()}
    constant = {name for name, node in named.items() if node["op"] == "Const"}
    order = [name for name in TopologicalSorter(inputs).static_order() if name not in constant]
    (given,) = (name for name in order if named[name]["op"] == "Placeholder")
    last = {i: name for name in order for i in inputs[name] if i not in constant}
    (made,) = set(order) - last.keys()
    done: dict[str, list[str]] = {}
    for i, name in last.items():
        done.setdefault(name, []).append(i)
    steps = [
        Step(
            name=name,
            operator=named[name]["op"],
            inputs=inputs[name],
            attributes=named[name].get("attr") or {},
            done=tuple(done.get(name, ())),
        )
        for name in order
        if name != given
    ]
    return steps, given, made
