"""The process that builds one TensorRT engine: ``python -m diffplugin.engines.tensorrt.build_process spec.json``.

It is a separate process, so that a parser or compiler that aborts does not end its caller. It writes the engine file
and prints lines to standard output: ``progress TEXT`` from time to time, and ``answer JSON`` at the end.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffplugin.engines.tensorrt.build_log import LogReader

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class BuildSpec:
    """The specification of a build.

    Attributes:
        library: module of the builder, ``tensorrt`` or ``tensorrt_rtx``.
        onnx: strongly typed graph.
        engine: file to write.
        gpus: compute capabilities ("sm_89"); empty: the GPU of this machine.
        shapes: smallest, best and largest shape of every input that has a free axis.
        workspace: bytes of scratch memory; None: the library decides.
        weight_streaming: weights may stay in the host's memory.
    """

    library: str
    onnx: str
    engine: str
    gpus: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[Shape, ...]]
    workspace: int | None = None
    weight_streaming: bool = False

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> BuildSpec:
        return cls(**json.loads(path.read_text(encoding="utf-8")))


class Refused(Exception):
    """The reason why there is no engine, on one line."""


def build(spec: BuildSpec, log: Callable[[str], None]) -> dict[str, Any]:
    """Build and write the engine; returns the report of :class:`LogReader`.

    Raises:
        Refused: with the node, the reason and the remedy.
        OSError: the file cannot be written.
    """
    library = importlib.import_module(spec.library)
    reader = LogReader()
    logger = _logger(library, reader)
    builder = library.Builder(logger)
    network = _parse(library, builder, logger, spec)
    check_shapes(network, spec.shapes)
    config = _config(library, builder, network, spec)
    config.progress_monitor = _monitor(library, log)
    log(f"building for {', '.join(spec.gpus) or 'the GPU of this machine'}")
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise Refused(f"{library.__name__} cannot build it: {reader.complaint()}{_remedy(spec, reader.complaint())}")
    with Path(spec.engine).open("wb") as file:
        file.write(memoryview(engine))
    return reader.report()


def _remedy(spec: BuildSpec, complaint: str) -> str:
    if spec.workspace is not None and ("OutOfMemory" in complaint or "workspace" in complaint):
        return f"; raise --workspace, which is {spec.workspace // 2**20} MiB"
    return ""


def make_network(library: Any, builder: Any) -> Any:
    """A strongly typed network. TensorRT 10 creates one on request; TensorRT 11 has no other kind."""
    strong = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return builder.create_network(0 if strong is None else 1 << int(strong))


def _parse(library: Any, builder: Any, logger: Any, spec: BuildSpec) -> Any:
    network = make_network(library, builder)
    parser = library.OnnxParser(network, logger)
    parser.set_flag(library.OnnxParserFlag.NATIVE_INSTANCENORM)  # its own kernel fuses with what follows
    if not parser.parse_from_file(spec.onnx):
        raise Refused("; ".join(_faults(parser)) or f"{library.__name__} cannot read it")
    return network


def _faults(parser: Any) -> list[str]:
    """The parser's errors, one text per node."""
    faults = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        node = f"node {error.node_name()} ({error.node_operator()}): " if error.node_name() else ""
        remedy = ""
        if "Unsupported" in str(error.code()) or "Plugin not found" in error.desc():
            remedy = "; export it from operators that TensorRT has"
        faults.append(node + _line(error.desc()) + remedy)
    return list(dict.fromkeys(faults))


def check_shapes(network: Any, shapes: Mapping[str, Any]) -> None:
    """Check inputs against their shapes. TensorRT allows two axes of one name to have different sizes, and fails at run
    time.

    Raises:
        Refused: naming every input without a shape, and every axis with a wrong or contradictory one.
    """
    faults, named = [], dict[str, tuple[str, tuple[int, ...]]]()
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    faults += [f"{name} is no input of it" for name in shapes if name not in {t.name for t in inputs}]
    for tensor in inputs:
        axes = tuple(tensor.shape)
        if tensor.name not in shapes:
            if -1 in axes:
                faults.append(f"input {tensor.name} has free axes and no shapes; give its MIN:OPT:MAX")
            continue
        given = [tuple(shape) for shape in shapes[tensor.name]]
        if any(len(shape) != len(axes) for shape in given):
            faults.append(f"input {tensor.name} has {len(axes)} axes, its shapes are {given}")
            continue
        for i, axis in enumerate(axes):
            sizes = tuple(shape[i] for shape in given)
            if not 1 <= sizes[0] <= sizes[1] <= sizes[2] or (axis != -1 and sizes != (axis,) * 3):
                wanted = "rising sizes from 1 on" if axis == -1 else str(axis)
                faults.append(f"input {tensor.name}, axis {i}: {_range(sizes)}, expected {wanted}")
            name = tensor.get_dimension_name(i)
            other, before = named.setdefault(name, (tensor.name, sizes)) if name else ("", sizes)
            if before != sizes:
                faults.append(f"axis {name} is {_range(before)} in {other} and {_range(sizes)} in {tensor.name}")
    if faults:
        raise Refused("; ".join(faults))


def _range(sizes: tuple[int, ...]) -> str:
    return ":".join(map(str, sizes))


def _config(library: Any, builder: Any, network: Any, spec: BuildSpec) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED  # the report is read from the log
    if spec.gpus:
        config.num_compute_capabilities = len(spec.gpus)
        for i, gpu in enumerate(spec.gpus):
            config.set_compute_capability(capability(library, gpu), i)
    if spec.workspace is not None:
        config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, spec.workspace)
    if spec.weight_streaming:
        config.set_flag(library.BuilderFlag.WEIGHT_STREAMING)
    elif hasattr(library.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # TensorRT-RTX: what a CUDA graph needs
        config.set_flag(library.BuilderFlag.REQUIRE_USER_ALLOCATION)
    profile = builder.create_optimization_profile()
    for name, shapes in spec.shapes.items():
        profile.set_shape(name, *shapes)
    if spec.shapes and config.add_optimization_profile(profile) < 0:
        raise Refused(f"{library.__name__} refuses the profile {dict(spec.shapes)}")
    return config


def capabilities(library: Any) -> dict[str, Any]:
    """Compute capabilities that a library builds for without such a GPU: {"sm_89": ...}; none with TensorRT."""
    kind = getattr(library, "ComputeCapability", None)
    names = sorted((n for n in dir(kind) if n[:2] == "SM" and n[2:].isdigit()), key=lambda name: int(name[2:]))
    return {f"sm_{name[2:]}": getattr(kind, name) for name in names}


def capability(library: Any, gpu: str) -> Any:
    """Raises:
    Refused: the library does not have this capability.
    """
    known = capabilities(library)
    if gpu not in known:
        raise Refused(f"{library.__name__} builds for {', '.join(known) or 'the GPU of this machine'}, not for {gpu}")
    return known[gpu]


def _logger(library: Any, reader: LogReader) -> Any:
    class Logger(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            serious = severity in (self.Severity.ERROR, self.Severity.INTERNAL_ERROR)
            reader.feed(message, serious=serious)

    return Logger()


def _monitor(library: Any, log: Callable[[str], None]) -> Any:
    """Reports a phase of the build when it begins, and the steps of a long one every few seconds."""

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._steps: dict[str, int] = {}
            self._said = time.monotonic()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if time.monotonic() - self._said >= 5:
                self._said = time.monotonic()
                log(f"{phase_name}, {step} of {self._steps.get(phase_name, 0)}")
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()


def _line(text: str) -> str:
    return " ".join(text.split())


def main(path: str) -> int:
    def say(kind: str, text: str) -> None:
        print(kind, text, flush=True)

    began = time.monotonic()
    try:
        report = build(BuildSpec.read(Path(path)), lambda text: say("progress", text))
    except Refused as fault:
        say("answer", json.dumps({"error": str(fault)}))
        return 1
    except OSError as error:
        say("answer", json.dumps({"error": f"{error.filename or 'the engine'}: {error.strerror or error}"}))
        return 1
    say("answer", json.dumps({"report": report, "seconds": time.monotonic() - began, "memory": peak_memory()}))
    return 0


def peak_memory() -> int:
    """Peak bytes of memory of this process; 0: unknown. (getrusage would include its parent's memory.)"""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
