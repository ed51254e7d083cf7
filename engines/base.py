"""What every engine is: one small protocol. Nothing above asks which engine it is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from diffplugin.errors import BundleDamaged, EngineUnavailable, RequestError
from diffplugin.spec import Array, GraphSpec

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle


class Engine(Protocol):
    """One graph, loaded and ready. ``run`` may be called from several threads."""

    spec: GraphSpec
    name: str
    precision: str

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. ShapeMismatch names every input that does not fit ``spec``."""

    def close(self) -> None:
        """Free the memory; the engine cannot run again."""


class EngineBuilder(Protocol):
    """A kind of engine on this machine.

    Attributes:
        concurrent: a loaded engine computes several runs at once, each on its own threads; False: one after another.
    """

    name: str
    concurrent: bool

    def why_unavailable(self) -> str | None:
        """None: usable here. Else the reason and the remedy."""

    def version(self) -> str:
        """Version of the library: an engine built ahead of time belongs to it."""

    def device(self) -> str:
        """What an engine built ahead of time is tied to: compute capability, or CPU features."""

    def precisions(self) -> tuple[str, ...]:
        """Precisions that run natively here: floating point, fastest first, then what costs accuracy."""

    def load(self, bundle: Bundle, key: str, *, precision: str, threads: int | None, cache: Path | None) -> Engine:
        """The engine of one graph. ``cache``: a folder for compiled models; ``threads``: of one run, None: all cores.

        Raises:
            EngineUnavailable: the precision does not run natively here.
            EngineError, BundleError: the graph cannot be loaded.
        """

    def build(
        self, bundle: Bundle, key: str, *, precision: str, sizes: Mapping[str, int], out: Path
    ) -> tuple[Path, ...]:
        """Files of an engine built ahead of time for these sizes of the free axes, in ``out``; none: loads ONNX."""


def usable_cores() -> int:
    """Physical cores that this process may use: two threads on one core gain nothing in dense arithmetic."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    try:
        cores = {Path(f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list").read_text() for n in allowed}
    except OSError:
        return len(allowed)
    return len(cores)


def thread_count(threads: int | None) -> int:
    """``threads``, or :func:`usable_cores` where it is None.

    Raises:
        RequestError: not positive.
    """
    if threads is not None and threads < 1:
        raise RequestError(f"threads is {threads}, expected 1 or more, or None for all cores")
    return threads or usable_cores()


# What a precision asks of the machine.
NEEDS = {
    "int8": "int8 needs the engine openvino and a bundle exported with dp-export --precision int8",
    "bf16": "bf16 needs the engine openvino and a processor with AVX512-BF16, AMX-BF16 or AVX2-VNNI-2",
    "fp16": "no engine offers fp16 on a CPU",
}


def lacks(bundle: Bundle | None, precision: str) -> str | None:
    """None: the bundle, if there is one yet, has graphs for this precision. Else what it lacks, and the remedy."""
    if bundle is not None and precision == "int8" and not bundle.manifest.quantized:
        return f"{bundle.path}: has no int8 graphs; export it with dp-export --precision int8"
    return None


def check_precision(builder: EngineBuilder, precision: str, bundle: Bundle | None = None) -> None:
    """Refuse a precision that would be emulated, or replaced without a word.

    Raises:
        EngineUnavailable: naming what the precision needs and what runs here, or that the bundle has no such graphs.
    """
    if reason := lacks(bundle, precision):
        raise EngineUnavailable(reason)
    here = builder.precisions()
    if precision not in here:
        raise EngineUnavailable(
            f"engine {builder.name}: {precision} does not run natively on {builder.device()}, only {', '.join(here)} "
            f"({NEEDS.get(precision, 'unknown precision')}); use --precision {here[0]}"
        )


def check_names(spec: GraphSpec, path: Path, inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Refuse a file whose tensors are not the contract's.

    Raises:
        BundleDamaged: naming both sides.
    """
    found = (set(inputs), set(outputs))
    expected = ({t.name for t in spec.inputs}, {t.name for t in spec.outputs})
    faults = [
        f"its {what} are {', '.join(sorted(here))}, expected {', '.join(sorted(wanted))}"
        for what, here, wanted in zip(("inputs", "outputs"), found, expected, strict=True)
        if here != wanted
    ]
    if faults:
        raise BundleDamaged(f"{path}: is no {spec.graph} graph: {'; '.join(faults)}; export the bundle again")


def shapes_text(spec: GraphSpec, sizes: Mapping[str, int]) -> str:
    """Sizes of the free input axes of a graph, as engines are told apart: ``h=64,w=96``; empty where none is free."""
    free = [axis for axis in spec.free_axes() if any(axis in t.axes for t in spec.inputs)]
    return ",".join(f"{axis}={sizes[axis]}" for axis in free)


def one_line(error: BaseException, *, last: bool = False) -> str:
    """What a library's exception says, on one line: its first line, or its last where source files come first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1 if last else 0] if lines else type(error).__name__
