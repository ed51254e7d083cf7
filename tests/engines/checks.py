"""What every engine on a processor keeps."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from diffplugin.engines.base import Engine
from diffplugin.spec import Array


def check_threads_share(engine: Engine, cases: Sequence[dict[str, Array]], output: str = "eps") -> None:
    """Runs in several threads give what they give one by one."""
    alone = [engine.run(case)[output] for case in cases]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda case: engine.run(case)[output], cases))
    for i, (a, b) in enumerate(zip(alone, together, strict=True)):
        np.testing.assert_array_equal(a, b, err_msg=f"case {i}")


def check_any_memory_layout(engine: Engine, inputs: dict[str, Array], output: str) -> None:
    """Arrays that are not contiguous or read-only give the same result."""
    expected = engine.run(inputs)[output]
    for layout in (np.asfortranarray, np.array):
        given = {name: layout(array) for name, array in inputs.items()}
        for array in given.values():
            array.flags.writeable = False
        np.testing.assert_array_equal(engine.run(given)[output], expected, err_msg=layout.__name__)
