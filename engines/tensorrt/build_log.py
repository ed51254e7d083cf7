"""Reads TensorRT's build log line by line: fused operators, memory, inputs and outputs.

An engine cannot be inspected without a GPU, but with ``ProfilingVerbosity.DETAILED`` the verbose log of the build
holds the whole layer report.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

_NODE = re.compile(r"Parsing node: (.+) \[(\w+)\]$")
_DATA = re.compile(r"(.+) \[(\w+)\] (inputs|outputs): (.*)$")
_TENSOR = re.compile(r"\[(.+?) -> \(")
_LAYER = re.compile(r"Name: (.+?), LayerType: (\w+), .*Metadata: (.*)$")
_ONNX = re.compile(r"\[ONNX Layer: (.+?)\]")
_MEMORY = re.compile(r"Total (Activation|Weights) Memory: (\d+) bytes$")
_IO = re.compile(r"Name: (.+?), IOMode: (\w+), DataType: (\w+), Dimensions: \[(.*?)\].*?(?:ProfileInfo: (.*))?$")
_PROFILE = re.compile(r"MinShape: \[(.*?)\], OptShape: \[(.*?)\], MaxShape: \[(.*?)\]")

# In the names of fused kernels: attention; a norm's statistics, its scaling and the SiLU behind it.
ATTENTION = "_gemm_mha"
NORM_SILU = "SiluGnor"
NORM = ("GroupNormalization", "InstanceNormalization")
# What may stand between a group norm's statistics and its SiLU.
_BETWEEN = ("Reshape", "Mul", "Add", "Cast")


class LogReader:
    """Collects the log's messages; gives the report when the build is done."""

    def __init__(self) -> None:
        self._operators: dict[str, str] = {}  # node -> operator
        self._inputs: dict[str, list[str]] = {}  # node -> tensors
        self._producers: dict[str, str] = {}  # tensor -> node
        self._layers: dict[str, list[str]] = {}  # layer -> the nodes that it computes
        self._memory: dict[str, int] = {}
        self._tensors: dict[str, dict[str, Any]] = {}
        self._complaints: list[str] = []

    def feed(self, message: str, *, serious: bool = False) -> None:
        """One message, which may have several lines."""
        if serious:
            self._complaints.append(" ".join(message.split()))
        for line in message.splitlines():
            self._line(line.strip())

    def _line(self, line: str) -> None:
        if found := _NODE.match(line):
            self._operators[found[1]] = found[2]
        elif found := _LAYER.match(line):
            self._layers[found[1]] = _ONNX.findall(found[3])
        elif found := _MEMORY.match(line):
            name = f"{found[1].lower()}_bytes"
            self._memory[name] = max(int(found[2]), self._memory.get(name, 0))
        elif found := _IO.match(line):
            profiles = [":".join(shapes) for shapes in _PROFILE.findall(found[5] or "")]
            self._tensors[found[1]] = {"mode": found[2].lower(), "dtype": found[3], "profiles": profiles}
        elif (found := _DATA.match(line)) and found[1] in self._operators:
            tensors = _TENSOR.findall(found[4])
            if found[3] == "inputs":
                self._inputs[found[1]] = tensors
            else:
                self._producers |= dict.fromkeys(tensors, found[1])

    def complaint(self) -> str:
        """The first error; later ones are its consequences."""
        return self._complaints[0] if self._complaints else "it did not say why"

    def report(self) -> dict[str, Any]:
        """The report as JSON, the same for the same build: see ``docs/tensorrt.md``."""
        softmaxes = [node for node, operator in self._operators.items() if operator == "Softmax"]
        pairs = [n for n, operator in self._operators.items() if operator == "Sigmoid" and self._after_norm(n)]
        attention = {node for layer, nodes in self._layers.items() if ATTENTION in layer for node in nodes}
        norms = {node for layer, nodes in self._layers.items() if NORM_SILU in layer for node in nodes}
        return {
            "attention": _count(softmaxes, attention),
            "group_norm_silu": _count(pairs, norms),
            "group_norms": sum(operator in NORM for operator in self._operators.values()),
            "layers": sum(bool(nodes) for nodes in self._layers.values()),
            "operators": dict(sorted(Counter(self._operators.values()).items())),
            **self._memory,
            "tensors": self._tensors,
        }

    def _after_norm(self, node: str) -> bool:
        """Whether it is a SiLU's sigmoid whose input comes from a norm."""
        while tensors := self._inputs.get(node):
            before = self._producers.get(tensors[0])
            if before is None:
                return False
            if self._operators[before] in NORM:
                return True
            if self._operators[before] not in _BETWEEN:
                return False
            node = before
        return False


def _count(nodes: list[str], fused: set[str]) -> dict[str, Any]:
    """The number of nodes, the number of fused ones, and the names of the others."""
    return {"of": len(nodes), "fused": sum(n in fused for n in nodes), "unfused": [n for n in nodes if n not in fused]}
