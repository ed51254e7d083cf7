"""How much a graph multiplies, and where: its convolutions, products and attention at given sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle


@dataclass(frozen=True)
class Product:
    """One operator that multiplies.

    Attributes:
        kind: "Convolution", "MatMul" or "ScaledDotProductAttention".
        macs: multiplications with an addition.
        width: channels of a 3x3 convolution of stride 1 that has as many inputs as outputs; else 0.
    """

    kind: str
    macs: int
    width: int = 0


def products(bundle: Bundle, key: str, sizes: Mapping[str, int]) -> list[Product]:
    """The multiplying operators of a graph as it was exported, for ``sizes`` of its free axes (``GraphSpec``).

    Norms, activations and copies are left out: they multiply little, and cost time all the same. OpenVINO reads the
    file and works out the shapes; nothing is compiled.
    """
    from diffplugin.engines.openvino import library

    spec = bundle.spec(key)
    model: Any = library.core().read_model(str(bundle.graph_file(key)))
    model.reshape({t.name: [sizes[a] if isinstance(a, str) else a for a in t.axes] for t in spec.inputs})
    found = [_product(op) for op in model.get_ordered_ops() if op.get_type_name() in _KINDS]
    return [product for product in found if product.macs]


_KINDS = ("Convolution", "GroupConvolution", "MatMul", "ScaledDotProductAttention")


def _product(op: Any) -> Product:
    kind, made = op.get_type_name(), tuple(op.output(0).get_shape())
    first, second = (tuple(op.input(i).get_shape()) for i in (0, 1))
    if kind == "MatMul":
        shared = first[-2] if op.get_attributes()["transpose_a"] and len(first) > 1 else first[-1]
        return Product(kind, math.prod(made) * shared)
    if kind == "ScaledDotProductAttention":  # queries [..., n, d] by keys [..., m, d], and the weights by the values
        return Product(kind, math.prod(first) * second[-2] + math.prod(made) * second[-2])
    taps = second[-3:]  # inputs of a group, and the kernel
    plain = kind == "Convolution" and second[0] == second[1] and second[2:] == (3, 3) and made[2:] == first[2:]
    return Product("Convolution", math.prod(made) * math.prod(taps), second[0] if plain else 0)
