"""TensorRT and TensorRT-RTX: engines are built ahead of time, in a separate process, and run only on a GPU.

TensorRT-RTX builds on a machine without a GPU, for several compute capabilities at once. TensorRT builds on the GPU
that the engine will run on.
"""

from __future__ import annotations

import importlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffplugin.engines.base import BuildOptions, BuildResult, check_precision
from diffplugin.engines.tensorrt.build_process import BuildSpec, capabilities
from diffplugin.errors import EngineError, EngineUnavailable, RequestError
from diffplugin.shapes import Profile
from diffplugin.spec import GraphSpec

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle

_LIBRARIES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
# Host memory that a build takes at most, beside the library itself: measured at Stable Diffusion's widths.
_LIBRARY_BYTES = 600 * 2**20
_BYTES_PER_WEIGHT_BYTE = 3.2


class TensorRtBuilder:
    """The builder of one of the two.

    Args:
        name: "tensorrt" or "tensorrt-rtx".
        device: number of the GPU.
    """

    concurrent = False  # a picture at a time has the whole GPU
    prebuilt_only = True
    batch = 20  # a whole schedule

    def __init__(self, name: str, device: int = 0) -> None:
        self.name, self._device = name, device
        self.ahead = name == "tensorrt-rtx"

    def library(self) -> Any:
        """The module ``tensorrt`` or ``tensorrt_rtx``.

        Raises:
            EngineUnavailable: it is not installed.
        """
        try:
            return importlib.import_module(_LIBRARIES[self.name])
        except ImportError as error:
            raise EngineUnavailable(
                f"the package {self.name} cannot be imported ({error}); pip install 'diffplugin[{self.name}]'"
            ) from None

    def driver(self) -> Any:
        """The GPU of this machine."""
        return importlib.import_module("diffplugin.engines.cuda").CudaDriver(device=self._device)

    def unavailable_reason(self) -> str | None:
        try:
            self.library()
            reason: str | None = self.driver().unavailable_reason()
        except (EngineUnavailable, ImportError) as error:
            return str(error)
        return reason

    def build_unavailable_reason(self) -> str | None:
        if not self.ahead:
            return self.unavailable_reason()
        try:
            self.library()
        except EngineUnavailable as error:
            return str(error)
        return None

    def version(self) -> str:
        return str(self.library().__version__)

    def device(self) -> str:
        return str(self.driver().capability())

    def precisions(self) -> tuple[str, ...]:
        return ("fp16",)

    def load(self, bundle: Bundle, key: str, *, precision: str, threads: int | None, cache: Path | None) -> Any:
        """The engine; ``threads`` apply only to processors."""
        check_precision(self, precision, bundle)
        return importlib.import_module("diffplugin.engines.tensorrt.engine").TensorRtEngine(
            bundle, key, self, precision=precision, cache=cache
        )

    def check_options(self, options: BuildOptions) -> None:
        gpus, known = options.gpus, capabilities(self.library())
        if gpus and not known:
            raise RequestError(f"engine {self.name}: builds for the GPU of this machine; leave out --gpus")
        if not gpus and self.ahead and (reason := self.unavailable_reason()):
            raise RequestError(f"engine {self.name}: name the GPUs to build for, --gpus sm_89,sm_120 ({reason})")
        if unknown := [gpu for gpu in gpus if gpu not in known]:
            raise RequestError(f"engine {self.name}: {', '.join(unknown)} is not among {', '.join(known)}")

    def build(
        self, bundle: Bundle, key: str, *, precision: str, profile: Profile, out: Path, options: BuildOptions
    ) -> BuildResult:
        check_precision(self, precision, bundle)
        self.check_options(options)
        need = _LIBRARY_BYTES + round(_BYTES_PER_WEIGHT_BYTE * bundle.graph(key, precision).weights_bytes)
        if options.memory is not None and need > options.memory:
            raise EngineError(
                f"{key}: building its engine takes about {need / 2**30:.1f} GiB of memory, "
                f"{options.memory / 2**30:.1f} are free; close other programs or build on another machine"
            )
        file = out / f"{key.replace('/', '-')}.engine"
        spec = BuildSpec(
            library=_LIBRARIES[self.name],
            onnx=str(bundle.graph_file(key, precision).resolve()),
            engine=str(file.absolute()),
            gpus=options.gpus if self.ahead else (),
            shapes=input_shapes(bundle.spec(key), profile),
            workspace=options.workspace,
            weight_streaming=options.weight_streaming,
        )
        return BuildResult(files=(file,), report=run_build(key, spec, options.log))


def input_shapes(spec: GraphSpec, profile: Profile) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Smallest, best and largest shape of every input that has a free axis."""

    def shape(axes: tuple[int | str, ...], end: str) -> tuple[int, ...]:
        return tuple(getattr(profile[axis], end) if isinstance(axis, str) else axis for axis in axes)

    free = [tensor for tensor in spec.inputs if any(isinstance(axis, str) for axis in tensor.axes)]
    return {t.name: tuple(shape(t.axes, end) for end in ("least", "best", "most")) for t in free}


def run_build(key: str, spec: BuildSpec, log: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Build an engine in a separate process and return the report. After any error no engine is left.

    Raises:
        EngineError: naming the graph, the node or the reason, and the remedy.
    """
    folder = Path(spec.engine).parent
    existed = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        answer = _ask(key, spec, log)
        if "error" in answer:
            raise EngineError(f"{key}: {answer['error']}")
        size = Path(spec.engine).stat().st_size
    except BaseException as error:
        Path(spec.engine).unlink(missing_ok=True)
        if not existed:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise EngineError(f"{key}: {error.filename or folder}: {error.strerror or error}") from None
        raise
    memory = f", {answer['memory'] / 2**30:.1f} GiB of memory" if answer["memory"] else ""
    log(f"{key}: {size / 2**20:.1f} MiB in {answer['seconds']:.0f} s{memory}")
    report: dict[str, Any] = answer["report"]
    return report


def _ask(key: str, spec: BuildSpec, log: Callable[[str], None]) -> dict[str, Any]:
    """The answer of the child process."""
    last: deque[str] = deque(maxlen=5)
    answer: dict[str, Any] | None = None
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "spec.json"
        spec.write(path)
        command = [sys.executable, "-m", "diffplugin.engines.tensorrt.build_process", str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
            try:
                for line in child.stdout or ():
                    kind, _, text = line.strip().partition(" ")
                    if kind == "progress":
                        log(f"{key}: {text}")
                    elif kind == "answer":
                        answer = json.loads(text)
                    elif line.strip():
                        last.append(line.strip())
            except BaseException:
                child.kill()
                raise
        if answer is None:
            answer = {"error": _end(child.returncode, last)}
        return answer


def _end(status: int, last: deque[str]) -> str:
    """How a child process without an answer ended."""
    said = f" ({last[-1]})" if last else ""
    if status == -signal.SIGKILL:
        return f"the build was killed{said}; most often the machine ran out of memory: close other programs"
    if status < 0:
        return f"the build ended with {signal.Signals(-status).name}{said}; the library cannot take this graph"
    return f"the build ended with status {status} and no answer{said}"
