"""OpenVINO on the CPU: fp32, bf16 if the processor computes it natively, and int8 if the bundle has it. On Intel's
graphics and NPUs: fp16, and fp32 if they compute it."""

from __future__ import annotations

import ctypes
import importlib
import logging
import re
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cache as cached
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffplugin.bundle import graph_files
from diffplugin.engines.base import (
    BuildOptions,
    BuildResult,
    Engine,
    check_names,
    check_precision,
    missing_variant,
    one_line,
    refuse_gpu_options,
)
from diffplugin.engines.compiled_cache import read_blob, trim, write_blob
from diffplugin.engines.devices import Device
from diffplugin.engines.fastest import fastest_first
from diffplugin.engines.pages import give_back_memory, releasing
from diffplugin.engines.threads import engine_threads, thread_count, usable_cores
from diffplugin.errors import EngineError, EngineNotLoaded, EngineUnavailable, ForeignEngine, RequestError
from diffplugin.manifest import fingerprint
from diffplugin.shapes import Profile, shapes_text
from diffplugin.spec import Array, GraphSpec

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle

_log = logging.getLogger("diffplugin")
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_ON_PROCESSORS = ("fp32", "bf16")
_ELSEWHERE = {"FP16": "fp16", "FP32": "fp32"}  # a device's capability -> precision, fastest first
_CPU = "CPU"
# A model compiled for one shape runs a full-width step a tenth faster than one with free axes, for 2.4 s more at
# first. It also has weights of its own, so large graphs keep one shape; the pieces of a picture share theirs.
_KEPT_SHAPES = 4
_KEPT_WEIGHTS = 2**30
_BLOB = "model.blob"
_OLDEST = (2026, 3)  # knows com.microsoft.MultiHeadAttention and the other operators of our graphs


class OpenVinoEngine(Engine):
    """One graph; compiled at the first use of a shape, or taken from the bundle's engines or from the cache.

    Raises:
        EngineError: the file cannot be loaded (when a shape is first used).
        BundleDamaged: its tensors do not match the contract.
    """

    name = "openvino"

    def __init__(
        self,
        bundle: Bundle,
        key: str,
        builder: OpenVinoBuilder,
        *,
        precision: str,
        threads: int,
        cache: Path | None,
    ) -> None:
        super().__init__(bundle.spec(key), precision)
        self._variant = builder.variant(precision)
        self._bundle, self._key, self._builder = bundle, key, builder
        self._path = bundle.graph_file(key, self._variant)
        self._properties = _properties(self._path, builder.hint(precision), threads, builder.target)
        self._cache = cache / self.name if cache is not None else None
        self._kept = max(1, min(_KEPT_SHAPES, _KEPT_WEIGHTS // max(1, bundle.graph(key, self._variant).weights_bytes)))
        self._requests: OrderedDict[str, tuple[Any, Any]] = OrderedDict()
        self._core: Any = None
        self._warned = False

    def _run(self, inputs: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        # one request per shape, one run at a time: a second request would double the activations' memory
        request = self._request(sizes)
        try:
            outputs = _new_outputs(request, self.spec)
            # views of the arrays; only one that is not contiguous is copied
            request.infer({name: np.ascontiguousarray(array) for name, array in inputs.items()}, share_inputs=True)
        except RuntimeError as error:
            raise EngineError(f"{self.spec.graph}: OpenVINO failed ({one_line(error, last=True)})") from None
        return outputs

    def _request(self, sizes: Mapping[str, int]) -> Any:
        shapes = shapes_text(self.spec, sizes)
        if shapes not in self._requests:
            if len(self._requests) >= self._kept:
                while len(self._requests) >= self._kept:
                    self._requests.popitem(last=False)
                give_back_memory()
            try:
                self._core = self._core or _core()
                self._requests[shapes] = self._load(shapes, sizes)
            except RuntimeError as error:
                raise EngineNotLoaded(f"{self._path}: OpenVINO cannot load it ({_said(error)})") from None
        self._requests.move_to_end(shapes)
        return self._requests[shapes][0]

    def _load(self, shapes: str, sizes: Mapping[str, int]) -> tuple[Any, Any]:
        """(infer request, objects that must live as long): from the bundle, else from the cache, else compiled."""
        stored = [file for file in (self._built(sizes), self._cache_file(shapes)) if file is not None]
        # the compiled model has its own copy of the weights, in its own order
        with self._bundle.reading(self._key, self._variant), releasing((*graph_files(self._path), *stored)):
            for file in stored:
                if found := _import(file, self._path, self._properties, self._builder.target):
                    compiled, blob = found
                    break
                if file.is_file():
                    _log.warning("%s: damaged or unreadable compiled model; compiling %s again", file, self._key)
            else:
                compiled, blob = self._compile(sizes), None
                if (cached_file := self._cache_file(shapes)) is not None:
                    _store(compiled, cached_file)
            _check_hint(compiled, self._properties)
            return compiled.create_infer_request(), blob

    def _compile(self, sizes: Mapping[str, int]) -> Any:
        return compile_graph(self._path, self.spec, sizes, self._properties, self._builder.target)

    def _built(self, sizes: Mapping[str, int]) -> Path | None:
        """File of the bundle's engine for this shape and machine. A foreign one is reported once and not used."""
        try:
            entry = self._bundle.engine(
                self._key,
                engine=self.name,
                precision=self.precision,
                sizes=sizes,
                version=self._builder.version(),
                device=self._builder.device(),
            )
        except ForeignEngine as error:
            if not self._warned:
                _log.warning("%s Compiling again for this machine.", error)
            self._warned = True
            return None
        return self._bundle.file(entry.files[0]) if entry is not None and entry.files else None

    def _cache_file(self, shapes: str) -> Path | None:
        if self._cache is None:
            return None
        graph, builder = self._bundle.graph(self._key, self._variant), self._builder
        name = fingerprint(graph.sha256, shapes, self.precision, self.name, builder.version(), (builder.device(),))
        return self._cache / f"{name}.blob"

    def _release(self) -> None:
        self._requests.clear()
        self._core = None


def _said(error: RuntimeError) -> str:
    """OpenVINO's error message on one line."""
    said = one_line(error, last=True)
    if "temporarily unavailable" in said:  # what the system answers where no thread can be started
        said += ": a limit on processes; raise pids.max of the container, or ulimit -u"
    return said


def _new_outputs(request: Any, spec: GraphSpec) -> dict[str, Array]:
    """New arrays that the request will write its outputs to: they belong to the caller, and nothing is copied."""
    import openvino

    outputs: dict[str, Array] = {}
    for tensor in spec.outputs:
        port = request.get_tensor(tensor.name)
        outputs[tensor.name] = np.empty(tuple(port.shape), port.data.dtype)
        request.set_tensor(tensor.name, openvino.Tensor(outputs[tensor.name], shared_memory=True))
    return outputs


def _properties(path: Path, hint: str, threads: int, target: str = _CPU) -> dict[str, Any]:
    """Properties for compiling or importing the graph in ``path``."""
    if target != _CPU:
        return {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    properties: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        # Pinned threads of several processes that share the cores would sit on the same ones.
        "ENABLE_CPU_PINNING": threads >= usable_cores(),
    }
    files = graph_files(path)
    # Weights beside an ONNX graph: a compiled model names them instead of repeating gigabytes per shape. Not for IR:
    # what OpenVINO 2026.4 imports then has other constants (CLIP's slice began a patch later), and int8 is small.
    if len(files) > 1 and path.suffix == ".onnx":
        properties |= {"CACHE_MODE": "OPTIMIZE_SIZE", "WEIGHTS_PATH": str(files[1])}
    return properties


def compile_graph(
    path: Path, spec: GraphSpec, sizes: Mapping[str, int], properties: Mapping[str, Any], target: str = _CPU
) -> Any:
    """A compiled model with static shapes.

    Raises:
        RuntimeError: OpenVINO cannot read or compile the file.
        BundleDamaged: the file's tensors do not match the contract.
    """
    core = _core()
    model = core.read_model(path)
    check_names(spec, path, (i.any_name for i in model.inputs), (o.any_name for o in model.outputs))
    model.reshape({t.name: [sizes[a] if isinstance(a, str) else a for a in t.axes] for t in spec.inputs})
    return core.compile_model(model, target, {k: v for k, v in properties.items() if k != "WEIGHTS_PATH"})


def _import(file: Path, graph: Path, properties: Mapping[str, Any], target: str = _CPU) -> tuple[Any, Any] | None:
    """(compiled model, objects that must live as long) of a blob; None: there is none, or it cannot be used."""
    blob = read_blob(file)
    if blob is None:
        return None
    import openvino

    # OpenVINO shares writable arrays only; it reads this one, and were it to write, the system would stop it
    same = np.ctypeslib.as_array((ctypes.c_uint8 * blob.size).from_address(blob.ctypes.data))
    try:
        tensor = openvino.Tensor(same, shared_memory=True)
        return _core().import_model(tensor, target, dict(properties)), (blob, tensor)
    except RuntimeError as error:
        _log.debug("%s does not fit %s: %s", file, graph, error)
        return None


def _store(compiled: Any, file: Path) -> None:
    """Store it in the cache; if the cache cannot be written, only time is lost."""
    try:
        write_blob(file, compiled.export_model().getbuffer())
        trim(file.parent)
    except OSError as error:
        _log.warning("%s: compiled model not kept (%s)", file.parent, error.strerror or error)


def _check_hint(compiled: Any, properties: Mapping[str, Any]) -> None:
    """Check the hint: OpenVINO accepts one that the processor cannot follow, and silently computes in float32."""
    used, wanted = compiled.get_property("INFERENCE_PRECISION_HINT").to_string(), properties["INFERENCE_PRECISION_HINT"]
    if used != wanted:
        raise EngineUnavailable(f"engine openvino: asked for {wanted}, it computes in {used}; use --precision fp32")


_core_lock = threading.Lock()
_living_core: weakref.ref[Any] | None = None


def _core() -> Any:
    """OpenVINO's core, shared by all living engines. It keeps threads and memory of every model that it compiled, so it
    is released with the last engine."""
    import openvino

    global _living_core  # noqa: PLW0603
    with _core_lock:
        core = _living_core() if _living_core is not None else None
        if core is None:
            core = openvino.Core()
            _living_core = weakref.ref(core)
        return core


@cached
def _version() -> str:
    import importlib.metadata

    return importlib.metadata.version("openvino")


@cached
def _facts(target: str) -> tuple[str, tuple[str, ...]]:
    """(name, capabilities) of a device as OpenVINO reports them."""
    core = _core()
    name = str(core.get_property(target, "FULL_DEVICE_NAME"))
    return name, tuple(sorted(core.get_property(target, "OPTIMIZATION_CAPABILITIES")))


class OpenVinoBuilder:
    """Args:
    device: the device that it runs on; None: the processor.

    Attributes:
        target: the device as OpenVINO names it.
    """

    name = "openvino"
    concurrent = False  # streams of one thread each gained a tenth on two cores, for twice the activations
    ahead = prebuilt_only = False
    batch = 1  # on a CPU a batch saves no operations

    def __init__(self, device: Device | None = None) -> None:
        kind, number = (device.kind, device.number) if device is not None else ("cpu", 0)
        self.target = f"{kind.upper()}.{number}" if kind == "gpu" else kind.upper()

    def unavailable_reason(self) -> str | None:
        try:
            version = importlib.import_module("openvino").__version__
            if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < _OLDEST:
                found, needed = version.partition("-")[0], ".".join(map(str, _OLDEST))
                return f"openvino {found} lacks operators, {needed} has them; pip install -U 'diffplugin[openvino]'"
            _facts(_CPU)
        except ImportError as error:
            if isinstance(error, ModuleNotFoundError) and error.name == "openvino":
                return "not installed; pip install 'diffplugin[openvino]'"
            return f"the package openvino cannot be imported ({error}); pip install 'diffplugin[openvino]'"
        except Exception as error:  # a broken installation, or a processor that it does not know
            return f"openvino cannot start here ({one_line(error, last=True)}); install it again"
        here = _core().available_devices if self.target != _CPU else [_CPU]
        # one GPU alone is listed without its number
        if self.target in here or (self.target == "GPU.0" and "GPU" in here):
            return None
        return (
            f"OpenVINO finds no device {self.target} here, only {', '.join(here)}; "
            "install Intel's driver for it, or leave out --device"
        )

    def version(self) -> str:
        return _version()

    def device(self) -> str:
        """Compiled models hold code for the processor's instruction set: the capabilities name it."""
        name, abilities = _facts(self.target)
        return f"{name} [{' '.join(abilities)}]"

    def _abilities(self) -> tuple[str, ...]:
        return _facts(self.target)[1]

    def precisions(self) -> tuple[str, ...]:
        """Floating point first, in the order of speed on this machine; int8, which costs accuracy, is never the first
        choice.

        bf16 is offered only if it is native; see :func:`_check_hint`.
        """
        int8 = self.target == _CPU or "INT8" in self._abilities()
        return (*self._floats(), *(["int8"] if int8 else []))

    def variant(self, precision: str) -> str:
        """The bundle's graphs for a precision: except for int8 the float32 ones, which OpenVINO computes at the given
        precision.
        """
        return precision if precision == "int8" else "fp32"

    def missing_variant(self, bundle: Bundle | None, precision: str) -> str | None:
        return missing_variant(bundle, precision) if self.variant(precision) == precision else None

    def _floats(self) -> tuple[str, ...]:
        if self.target != _CPU:
            return tuple(precision for ability, precision in _ELSEWHERE.items() if ability in self._abilities())
        if "BF16" not in self._abilities():
            return ("fp32",)
        threads = engine_threads(None)
        core = _core()
        try:
            return fastest_first(
                f"{self.name} {self.version()} {self.device()}",
                _ON_PROCESSORS,
                lambda precision: convolution(core, _HINTS[precision], threads=threads),
            )
        except RuntimeError as error:
            raise EngineUnavailable(f"engine openvino: cannot compute a convolution here ({_said(error)})") from None

    def hint(self, precision: str) -> str:
        """OpenVINO's name of the floating-point type that a graph computes in; the parts that are not int8 use the
        fastest.
        """
        return _HINTS[self._floats()[0] if precision == "int8" else precision]

    def load(
        self, bundle: Bundle, key: str, *, precision: str, threads: int | None, cache: Path | None
    ) -> OpenVinoEngine:
        count = engine_threads(threads)
        self._check(bundle, precision)
        return OpenVinoEngine(bundle, key, self, precision=precision, threads=count, cache=cache)

    def _check(self, bundle: Bundle, precision: str) -> None:
        check_precision(self, precision)
        if reason := self.missing_variant(bundle, precision):
            raise EngineUnavailable(reason)

    def build_unavailable_reason(self) -> str | None:
        return self.unavailable_reason()

    def check_options(self, options: BuildOptions) -> None:
        refuse_gpu_options(self.name, options)

    def build(
        self, bundle: Bundle, key: str, *, precision: str, profile: Profile, out: Path, options: BuildOptions
    ) -> BuildResult | None:
        self._check(bundle, precision)
        self.check_options(options)
        shapes = shapes_text(bundle.spec(key), profile)
        if ":" in shapes:
            raise RequestError(f"engine {self.name}: builds {key} for one size, not for {shapes}; use --size N or WxH")
        sizes = {axis: size.best for axis, size in profile.items()}
        path = bundle.graph_file(key, self.variant(precision))
        properties = _properties(path, self.hint(precision), thread_count(None), self.target)
        try:
            compiled = compile_graph(path, bundle.spec(key), sizes, properties, self.target)
        except RuntimeError as error:
            raise EngineError(f"{path}: OpenVINO cannot compile it ({one_line(error, last=True)})") from None
        write_blob(out / _BLOB, compiled.export_model().getbuffer())
        return BuildResult(files=(out / _BLOB,))


def convolution(core: Any, hint: str, *, threads: int, channels: int = 320, side: int = 32) -> Callable[[], object]:
    """A 3x3 convolution of the UNet's first level through OpenVINO: half of the work of a picture is of this kind."""
    import openvino
    from openvino import opset13 as ops

    entering = ops.parameter([1, channels, side, side], np.float32)
    weights = ops.constant(np.full((channels, channels, 3, 3), 0.01, np.float32))
    model = openvino.Model([ops.convolution(entering, weights, [1, 1], [1, 1], [1, 1], [1, 1])], [entering])
    properties = {"INFERENCE_PRECISION_HINT": hint, "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
    request = core.compile_model(model, "CPU", properties).create_infer_request()
    picture = np.ones((1, channels, side, side), np.float32)
    request.infer([picture])
    return lambda: request.infer([picture])
