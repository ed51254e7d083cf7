"""TensorRT's API over the fake driver: an engine file names an ONNX graph, and a run of it is ONNX Runtime's.

What TensorRT would only answer with a crash or wrong numbers is an assertion here: tensors without address or shape,
addresses that are not aligned, working memory that is missing or too small. Each run fills its working memory with NaN.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np

from diffplugin.bundle import ENGINES, Bundle
from diffplugin.engines.base import OnnxBuilder
from diffplugin.engines.device import ALIGNMENT
from diffplugin.engines.tensorrt.engine import TensorRtEngine
from diffplugin.errors import EngineError
from diffplugin.manifest import EngineEntry, fingerprint
from diffplugin.shapes import Range, free_inputs, parse_shapes, shapes_text
from diffplugin.spec import DTYPES, Array
from tests.engines.fake_driver import FakeDriver

if TYPE_CHECKING:
    from collections.abc import Sequence

SCRATCH = 4096  # bytes of working memory of every context, and as many for every timestep of a batch
VERSION = "1.0-fake"


@cache
def _session(path: str) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_onnx(bundle: Bundle, key: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs of a bundle's graph, as the fake engines compute them."""
    names = [t.name for t in bundle.spec(key).outputs]
    return dict(zip(names, _session(str(bundle.graph_file(key))).run(names, dict(inputs)), strict=True))


class FakeTensorRt:
    """Stands for the module ``tensorrt_rtx``.

    Args:
        rtx: with the calls that TensorRT-RTX alone has.

    Attributes:
        capturable: what contexts answer.
        refuses: engine files are refused, as foreign or broken ones are.
        streamable: bytes of weights that engines built for weight streaming have.
        poisoned: graphs whose outputs become NaN.
        complaint: what is logged where the driver makes ``deserialize`` or ``context`` fail.
        created: graphs of every engine that was deserialised.
        engines: those that live.
    """

    __name__ = "tensorrt_fake"
    float32, int64 = "FLOAT", "INT64"
    TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
    ExecutionContextAllocationStrategy = SimpleNamespace(STATIC="static", USER_MANAGED="user")

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4)

        def log(self, severity: int, message: str) -> None:
            raise NotImplementedError

    def __init__(self, driver: FakeDriver, *, rtx: bool = True) -> None:
        self.driver, self.rtx = driver, rtx
        self.capturable, self.refuses, self.streamable = True, False, 0
        self.poisoned: set[str] = set()
        self.created: list[str] = []
        self.engines: WeakSet[_Engine] = WeakSet()
        self.kernels = b"kernels of this card"
        self.complaint = "out of luck"
        self.logger: Any = None
        if rtx:
            self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(LAZY="lazy", EAGER="eager")

    def Runtime(self, logger: Any) -> Any:  # noqa: N802 - TensorRT's name
        self.logger = logger
        return SimpleNamespace(deserialize_cuda_engine=self._deserialize)

    def error(self, message: str) -> None:
        self.logger.log(self.ILogger.Severity.ERROR, message)

    def _deserialize(self, data: Any) -> _Engine | None:
        if self.refuses:
            self.error("Serialization assertion failed:\nnot built for this device")
            return None
        made = _Engine(self, json.loads(bytes(data)))
        try:
            self.driver.note("deserialize", made.name)
        except EngineError:
            self.error(self.complaint)
            return None
        self.created.append(made.name)
        self.engines.add(made)
        return made


class _Engine:
    def __init__(self, library: FakeTensorRt, facts: Mapping[str, Any]) -> None:
        self.library, self.name, self.factor = library, facts["name"], facts["factor"]
        self.session = _session(facts["onnx"])
        self.profile = parse_shapes(facts["shapes"])
        self.inputs = {i.name: (i.shape, i.type) for i in self.session.get_inputs()}
        self.outputs = {o.name: (o.shape, o.type) for o in self.session.get_outputs()}
        self.num_io_tensors = len(self.inputs) + len(self.outputs)
        self.streamable_weights_size = library.streamable
        self.weight_streaming_budget_v2 = -1

    def get_tensor_name(self, i: int) -> str:
        return str([*self.inputs, *self.outputs][i])

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name in self.inputs else "out"

    def get_tensor_dtype(self, name: str) -> str:
        kind = (self.inputs | self.outputs)[name][1]
        return {"tensor(float)": "FLOAT", "tensor(int64)": "INT64"}[kind]

    def get_weight_streaming_automatic_budget(self) -> int:
        return self.streamable_weights_size // 4

    def create_runtime_config(self) -> Any:
        assert self.weight_streaming_budget_v2 >= 0 or not self.streamable_weights_size, "no budget of weights"
        return _Config(self.library.rtx, self.library.kernels) if self.library.rtx else _Config(False)

    def create_execution_context(self, config: Any) -> _Context | None:
        assert config.strategy == "user", "working memory must come from outside"
        assert config.dynamic_shapes_kernel_specialization_strategy == ("eager" if self.library.rtx else None)
        try:
            self.library.driver.note("context", self.name)
        except EngineError:
            self.library.error(self.library.complaint)
            return None
        if config.cache is not None:
            config.cache.compile(self.library.driver)
        return (_RtxContext if self.library.rtx else _Context)(self)


class _Config:
    def __init__(self, rtx: bool, kernels: bytes = b"") -> None:
        self.strategy: str | None = None
        self.cache: _Kernels | None = None
        if rtx:
            self.create_runtime_cache = lambda: _Kernels(kernels)
        self.dynamic_shapes_kernel_specialization_strategy = "lazy" if rtx else None

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def set_runtime_cache(self, cache: _Kernels) -> bool:
        self.cache = cache
        return True


class _Kernels:
    """Compiled kernels: ``compiles`` are what the first context of an engine adds."""

    def __init__(self, compiles: bytes) -> None:
        self._compiles, self.content = compiles, b""

    def deserialize(self, blob: Any) -> bool:
        if not bytes(blob).startswith(b"kernels"):
            return False
        self.content = bytes(blob)
        return True

    def compile(self, driver: FakeDriver) -> None:
        if self._compiles not in self.content:
            driver.note("compile")
            self.content += self._compiles

    def serialize(self) -> bytes:
        return self.content


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self._engine, self._driver, self._library = engine, engine.library.driver, engine.library
        self._sizes: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch: tuple[int, int] | None = None
        self._ran = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        axes, _ = self._engine.inputs[name]
        for axis, size in zip(axes, shape, strict=True):
            allowed = self._engine.profile[axis] if isinstance(axis, str) else (axis,)
            if size not in allowed or self._sizes.setdefault(str(axis), size) != size:
                return self._refuse(f"{name}: {axis}={size} is not in the profile")
        self._shapes[name] = shape
        return True

    def _refuse(self, message: str) -> bool:
        self._library.error(message)
        return False

    def update_device_memory_size_for_shapes(self) -> int:
        assert set(self._shapes) == set(self._engine.inputs), "shapes are missing"
        return SCRATCH * self._sizes.get("n", 1)

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.update_device_memory_size_for_shapes(), "working memory is too small"
        assert address % ALIGNMENT == 0
        self._driver.note("bind_scratch", self._engine.name, address, size)
        self._scratch = (address, size)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        axes, _ = (self._engine.inputs | self._engine.outputs)[name]
        sizes, factor = dict(self._sizes), self._engine.factor
        for small, large in (("h", "H"), ("w", "W")):
            if small in sizes:
                sizes[large] = sizes[small] * factor
            elif large in sizes:
                sizes[small] = sizes[large] // factor
        if "p" in sizes:
            sizes["p+1"] = sizes["p"] + 1
        return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in axes)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._driver.note("bind", self._engine.name, name, address)
        if address % ALIGNMENT:
            return self._refuse(f"{name} is not aligned")
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        engine, driver = self._engine, self._driver
        assert set(self._addresses) == {*engine.inputs, *engine.outputs}, f"{engine.name}: addresses are missing"
        assert self._scratch is not None, f"{engine.name}: no working memory"
        try:
            driver.note("enqueue", engine.name, dict(self._addresses))
        except EngineError:
            return self._refuse("kernel launch failed")
        at, scratch = dict(self._addresses), self._scratch
        captured = driver.submit(stream, lambda: self._work(at, scratch), [*at.values(), scratch[0]])
        assert self._ran or not captured, f"{engine.name}: captured before it ran at these shapes"
        self._ran = self._ran or not captured
        return True

    def _work(self, at: Mapping[str, int], scratch: tuple[int, int]) -> None:
        engine, driver = self._engine, self._driver
        driver.view(scratch[0], (scratch[1],), np.uint8)[:] = 0xFF
        kinds = {"FLOAT": DTYPES["f32"], "INT64": DTYPES["i64"]}

        def view(name: str) -> Any:
            return driver.view(at[name], self.get_tensor_shape(name), kinds[engine.get_tensor_dtype(name)])

        inputs = {name: view(name).copy() for name in engine.inputs}
        stale = [name for name, array in inputs.items() if array.dtype == np.float32 and np.isnan(array).any()]
        assert not stale, f"{engine.name}: {', '.join(stale)} was never written"
        outputs = engine.session.run(list(engine.outputs), inputs)
        for name, array in zip(engine.outputs, outputs, strict=True):
            view(name)[...] = np.nan if engine.name in engine.library.poisoned else array


class _RtxContext(_Context):
    def is_stream_capturable(self, stream: int) -> bool:
        return self._library.capturable


class FakeTensorRtBuilder(OnnxBuilder):
    """Engines of the fake library: what ``engines.tensorrt.builder.TensorRtBuilder`` is to the real one."""

    name = "tensorrt-fake"
    concurrent = False

    def __init__(self, driver: FakeDriver, library: FakeTensorRt | None = None, device: str = "sm_89") -> None:
        self._driver, self._library, self._device = driver, library or FakeTensorRt(driver), device

    def version(self) -> str:
        return VERSION

    def device(self) -> str:
        return self._device

    def precisions(self) -> tuple[str, ...]:
        return ("fp32", "fp16")

    def library(self) -> FakeTensorRt:
        return self._library

    def driver(self) -> FakeDriver:
        return self._driver

    def load(
        self, bundle: Bundle, key: str, *, precision: str, threads: int | None, cache: Path | None
    ) -> TensorRtEngine:
        return TensorRtEngine(bundle, key, self, precision=precision, cache=cache)


def fake_engines(
    bundle: Bundle,
    profiles: Sequence[Mapping[str, Range]],
    *,
    precision: str = "fp32",
    devices: tuple[str, ...] = ("sm_89",),
) -> tuple[EngineEntry, ...]:
    """Engine files of every graph, written into the bundle's folder, and their entries."""
    entries: dict[str, EngineEntry] = {}
    for key in bundle.keys(precision):
        graph, spec = bundle.graph(key, precision), bundle.spec(key)
        for profile in profiles:
            shapes = shapes_text(spec, {axis: profile[axis] for axis in free_inputs(spec)})
            print_ = fingerprint(graph.sha256, shapes, precision, FakeTensorRtBuilder.name, VERSION, devices)
            file = bundle.path / ENGINES / print_ / f"{spec.graph}.engine"
            file.parent.mkdir(parents=True, exist_ok=True)
            facts = {
                "name": key,
                "onnx": str(bundle.path / graph.file),
                "factor": bundle.manifest.dims.factor,
                "shapes": shapes,
            }
            file.write_text(json.dumps(facts))
            entries[print_] = EngineEntry(
                fingerprint=print_,
                engine=FakeTensorRtBuilder.name,
                version=VERSION,
                precision=precision,
                devices=devices,
                shapes=shapes,
                graph=key,
                graph_sha256=graph.sha256,
                files=(file.relative_to(bundle.path).as_posix(),),
            )
    return tuple(entries.values())
