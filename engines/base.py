"""The base class of every engine. No code above it depends on the kind of engine."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from diffplugin.errors import BundleDamaged, EngineError, EngineUnavailable, RequestError
from diffplugin.shapes import Profile
from diffplugin.spec import Array, GraphSpec, check_inputs, check_outputs

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle


class Engine(ABC):
    """One graph, loaded and ready. A kind of engine implements ``_run`` and ``_release``; this class does the rest.

    ``run`` and ``close`` may be called from several threads. Runs happen one after another unless the class sets
    ``parallel``; ``close`` waits for runs in progress.

    Attributes:
        spec: the graph's contract.
        name: the kind of engine.
        precision: the precision that it computes in.
    """

    name: str
    parallel = False

    def __init__(self, spec: GraphSpec, precision: str = "fp32") -> None:
        self.spec, self.precision = spec, precision
        self._idle = threading.Condition()
        self._running = 0
        self._closed = False

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. They belong to the caller.

        Raises:
            ShapeMismatch: naming every input, or every output, that does not fit ``spec``.
            EngineError: the engine failed, or it is closed.
        """
        sizes = check_inputs(self.spec, inputs)
        with self._entered():
            outputs = self._run(inputs, sizes)
        check_outputs(self.spec, outputs, sizes)
        return outputs

    def close(self) -> None:
        """Free memory and threads once no run is in progress; the engine cannot run again."""
        with self._idle:
            self._idle.wait_for(lambda: not self._running)
            already, self._closed = self._closed, True
        if not already:
            self._release()

    @contextmanager
    def _entered(self) -> Iterator[None]:
        """One run's turn.

        Raises:
            EngineError: the engine is closed.
        """
        with self._idle:
            if not self.parallel:
                self._idle.wait_for(lambda: not self._running)
            if self._closed:
                raise EngineError(f"{self.spec.graph}: this engine is closed")
            self._running += 1
        try:
            yield
        finally:
            with self._idle:
                self._running -= 1
                self._idle.notify_all()

    @abstractmethod
    def _run(self, inputs: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        """Outputs of inputs that fit ``spec``; ``sizes``: of its free input axes."""

    def _release(self) -> None:  # noqa: B027 - most have nothing to free
        """Free what the engine holds; called once."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How engines are built ahead of time. A kind of engine refuses options that it does not support.

    Attributes:
        gpus: compute capabilities ("sm_89") to build for; empty: this machine's device.
        workspace: the most bytes of scratch memory that a layer may use; None: the library decides.
        weight_streaming: weights may stay in the host's memory.
        memory: bytes that a build may use; None: unknown, so not checked.
        log: called with one line of progress from time to time.
    """

    gpus: tuple[str, ...] = ()
    workspace: int | None = None
    weight_streaming: bool = False
    memory: int | None = None
    log: Callable[[str], None] = lambda line: None


@dataclass(frozen=True, kw_only=True)
class BuildResult:
    """A built engine: its files, and the builder's report (JSON)."""

    files: tuple[Path, ...]
    report: Mapping[str, Any] = field(default_factory=dict)


class EngineBuilder(Protocol):
    """A kind of engine on this machine.

    Attributes:
        name: as ``--engine`` takes it.
        concurrent: a loaded engine computes several runs at once, each on its own threads; False: one after another.
        ahead: its engines may be built for devices of other machines.
        prebuilt_only: it runs only engines built ahead, and no ONNX.
        batch: the most timesteps of the SCB that an engine built ahead takes at once.
    """

    name: str
    concurrent: bool
    ahead: bool
    prebuilt_only: bool
    batch: int

    def unavailable_reason(self) -> str | None:
        """None if it is usable on this machine, else the reason and the remedy."""

    def version(self) -> str:
        """Version of the library; an engine built ahead of time works only with this version."""

    def device(self) -> str:
        """The hardware that an engine built ahead of time is tied to: compute capability, or CPU features."""

    def precisions(self) -> tuple[str, ...]:
        """Precisions that run natively on this machine: floating point, fastest first, then those that cost
        accuracy.
        """

    def load(self, bundle: Bundle, key: str, *, precision: str, threads: int | None, cache: Path | None) -> Engine:
        """The engine of one graph. ``cache``: a folder for compiled models; ``threads``: of one run, None: all cores.

        Raises:
            EngineUnavailable: the precision does not run natively on this machine.
            EngineError, BundleError: the graph cannot be loaded.
        """

    def build_unavailable_reason(self) -> str | None:
        """None if engines can be built ahead of time on this machine, else the reason and the remedy."""

    def check_options(self, options: BuildOptions) -> None:
        """Raises:
        RequestError: they are not possible with this engine on this machine.
        """

    def build(
        self, bundle: Bundle, key: str, *, precision: str, profile: Profile, out: Path, options: BuildOptions
    ) -> BuildResult | None:
        """Build an engine ahead of time for these sizes of the free axes, with its files in ``out``; None: it loads
        ONNX.

        Raises:
            RequestError: ``profile`` or ``options`` are not possible with this engine on this machine.
            EngineError: it cannot be built; ``out`` is left empty.
        """


class OnnxBuilder:
    """Common code of builders that build nothing ahead of time."""

    concurrent = ahead = prebuilt_only = False
    batch = 1  # on a CPU a batch saves no operations
    name: str

    def unavailable_reason(self) -> str | None:
        return None

    def build_unavailable_reason(self) -> str | None:
        return self.unavailable_reason()

    def build(
        self, bundle: Bundle, key: str, *, precision: str, profile: Profile, out: Path, options: BuildOptions
    ) -> BuildResult | None:
        self.check_options(options)
        return None

    def check_options(self, options: BuildOptions) -> None:
        refuse_gpu_options(self.name, options)


VARIANTS = ("int8", "fp16")  # precisions that have graphs of their own

# What a precision asks of the machine.
NEEDS = {
    "int8": "int8 needs the engine openvino and a bundle exported with dp-export --precision int8",
    "bf16": "bf16 needs the engine openvino and a processor with AVX512-BF16, AMX-BF16 or AVX2-VNNI-2, or a bundle "
    "exported with dp-export --engine ncnn",
    "fp16": "fp16 needs a GPU and a bundle exported with dp-export --engine onnxruntime-cuda, tensorrt-rtx or tensorrt",
}


def missing_variant(bundle: Bundle | None, precision: str) -> str | None:
    """None if the bundle, if there is one yet, has graphs for this precision; else what it lacks, and the remedy."""
    if bundle is not None and precision in VARIANTS and not bundle.manifest.variants.get(precision):
        return f"{bundle.path}: has no {precision} graphs; export it with dp-export --precision {precision}"
    return None


def check_precision(builder: EngineBuilder, precision: str, bundle: Bundle | None = None) -> None:
    """Refuse a precision that would be emulated, or silently replaced.

    Raises:
        EngineUnavailable: naming the requirement of the precision and the usable ones, or that the bundle has no such
            graphs.
    """
    here = builder.precisions()
    if precision not in here:
        raise EngineUnavailable(
            f"engine {builder.name}: {precision} does not run natively on {builder.device()}, only {', '.join(here)} "
            f"({NEEDS.get(precision, 'unknown precision')}); use --precision {here[0]}"
        )
    if reason := missing_variant(bundle, precision):
        raise EngineUnavailable(reason)


def check_names(spec: GraphSpec, path: Path, inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Refuse a file whose tensors do not match the contract.

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


def refuse_gpu_options(engine: str, options: BuildOptions) -> None:
    """Refuse the options of engines for GPUs.

    Raises:
        RequestError: naming them.
    """
    given = {"--gpus": options.gpus, "--workspace": options.workspace, "--weight-streaming": options.weight_streaming}
    if names := [name for name, value in given.items() if value]:
        raise RequestError(
            f"engine {engine}: {', '.join(names)} is for TensorRT engines; leave it out, or use --engine tensorrt-rtx"
        )


def one_line(error: BaseException, *, last: bool = False) -> str:
    """The message of a library's exception on one line: its first line, or its last if source files come first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1 if last else 0] if lines else type(error).__name__
