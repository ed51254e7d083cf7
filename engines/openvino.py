"""OpenVINO on the CPU: fp32, and bf16 where the processor computes it natively."""

from __future__ import annotations

import importlib.metadata
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffplugin.engines.base import shapes_text, usable_cores
from diffplugin.errors import EngineError
from diffplugin.spec import Array, GraphSpec, check_inputs

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle

_HINTS = {"fp32": "f32", "bf16": "bf16"}
# Static shapes run attention 1.5 times as fast as dynamic ones. Pieces of a picture share a shape, so few are needed.
_KEPT_SHAPES = 2
_BLOB = "model.blob"


def _properties(precision: str, threads: int, cache: Path | None) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
    }
    return properties | ({"CACHE_DIR": str(cache)} if cache is not None else {})


class OpenVinoEngine:
    """One graph; compiled at first use of a shape, or taken from the bundle's engines or from the cache."""

    name = "openvino"

    def __init__(
        self, bundle: Bundle, key: str, builder: OpenVinoBuilder, precision: str, threads: int, cache: Path | None
    ) -> None:
        self.spec: GraphSpec = bundle.spec(key)
        self.precision = precision
        self._bundle, self._key, self._builder = bundle, key, builder
        self._properties = _properties(precision, threads, cache / "openvino" if cache else None)
        self._path = bundle.graph_file(key)
        self._requests: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        sizes = check_inputs(self.spec, inputs)
        # one request per shape, one run at a time: a second request would double the activations' memory
        with self._lock:
            if self._closed:
                raise EngineError(f"{self.spec.graph}: this engine is closed")
            request = self._request(sizes)
            arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
            try:
                request.infer(arrays, share_inputs=True)
            except RuntimeError as error:
                raise EngineError(f"{self.spec.graph}: OpenVINO failed ({_reason(error)})") from None
            return {t.name: request.get_tensor(t.name).data.copy() for t in self.spec.outputs}

    def _request(self, sizes: Mapping[str, int]) -> Any:
        shapes = shapes_text(self.spec, sizes)
        if shapes in self._requests:
            self._requests.move_to_end(shapes)
            return self._requests[shapes]
        while len(self._requests) >= _KEPT_SHAPES:
            self._requests.popitem(last=False)
        try:
            compiled = self._imported(shapes) or compile_graph(self._path, self.spec, sizes, self._properties)
        except RuntimeError as error:
            raise EngineError(f"{self._path}: OpenVINO cannot load it ({_reason(error)})") from None
        self._requests[shapes] = compiled.create_infer_request()
        return self._requests[shapes]

    def _imported(self, shapes: str) -> Any:
        entry = self._bundle.engine(
            self._key,
            engine=self.name,
            precision=self.precision,
            shapes=shapes,
            version=self._builder.version(),
            device=self._builder.device(),
        )
        if entry is None:
            return None
        import openvino

        path = self._bundle.path / entry.files[0]
        return openvino.Core().import_model(path.read_bytes(), "CPU", self._properties)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._requests.clear()


def compile_graph(path: Path, spec: GraphSpec, sizes: Mapping[str, int], properties: Mapping[str, Any]) -> Any:
    """A compiled model with static shapes."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape({t.name: [sizes[a] if isinstance(a, str) else a for a in t.axes] for t in spec.inputs})
    return core.compile_model(model, "CPU", dict(properties))


def _reason(error: Exception) -> str:
    """The last line that says something: OpenVINO begins with its own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


class OpenVinoBuilder:
    name = "openvino"

    def why_unavailable(self) -> str | None:
        try:
            import openvino  # noqa: F401
        except ImportError as error:
            return f"the package openvino cannot be imported ({error}); pip install 'diffplugin[openvino]'"
        return None

    def version(self) -> str:
        return importlib.metadata.version("openvino")

    def device(self) -> str:
        """Compiled models hold code for the processor's instruction set: the capabilities name it."""
        import openvino

        core = openvino.Core()
        abilities = sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        return f"{core.get_property('CPU', 'FULL_DEVICE_NAME')} [{' '.join(abilities)}]"

    def precisions(self) -> tuple[str, ...]:
        """Without native bf16 the hint is accepted and silently computed in fp32: it is not offered then."""
        import openvino

        native = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return ("bf16", "fp32") if native else ("fp32",)

    def load(
        self, bundle: Bundle, key: str, *, precision: str, threads: int | None, cache: Path | None
    ) -> OpenVinoEngine:
        return OpenVinoEngine(bundle, key, self, precision, threads or usable_cores(), cache)

    def build(
        self, bundle: Bundle, key: str, *, precision: str, sizes: Mapping[str, int], out: Path
    ) -> tuple[Path, ...]:
        compiled = compile_graph(
            bundle.graph_file(key), bundle.spec(key), sizes, _properties(precision, usable_cores(), None)
        )
        out.mkdir(parents=True, exist_ok=True)
        path = out / _BLOB
        path.write_bytes(compiled.export_model())
        return (path,)
