"""ONNX Runtime on the CPU: the small default."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffplugin.engines.base import usable_cores
from diffplugin.errors import EngineError, EngineUnavailable
from diffplugin.spec import Array, GraphSpec, check_inputs

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle

_PROVIDER = "CPUExecutionProvider"


class OnnxRuntimeEngine:
    """One session. Sessions are safe to run from several threads."""

    name = "onnxruntime"
    precision = "fp32"

    def __init__(self, spec: GraphSpec, path: Path, threads: int, provider: str = _PROVIDER) -> None:
        import onnxruntime as ort

        self.spec = spec
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # spinning threads win nothing between the large operators here, and cost other processes their cores
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # an arena keeps the largest picture's memory for ever; a step allocates little beside its arithmetic
        options.enable_cpu_mem_arena = False
        try:
            self._session: Any = ort.InferenceSession(str(path), options, providers=[provider])
        except Exception as error:  # the library raises a dozen kinds for one fact
            raise EngineError(f"{path}: ONNX Runtime cannot load it ({str(error).splitlines()[0]})") from None
        if self._session.get_providers()[0] != provider:
            raise EngineUnavailable(
                f"{path}: ONNX Runtime fell back to {self._session.get_providers()[0]}, expected {provider}"
            )
        self._outputs = [t.name for t in spec.outputs]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        check_inputs(self.spec, inputs)
        session = self._session
        if session is None:
            raise EngineError(f"{self.spec.graph}: this engine is closed")
        try:
            return dict(zip(self._outputs, session.run(self._outputs, dict(inputs)), strict=True))
        except Exception as error:
            raise EngineError(f"{self.spec.graph}: ONNX Runtime failed ({str(error).splitlines()[0]})") from None

    def close(self) -> None:
        self._session = None


class OnnxRuntimeBuilder:
    name = "onnxruntime"

    def why_unavailable(self) -> str | None:
        try:
            import onnxruntime  # noqa: F401
        except ImportError as error:
            return f"the package onnxruntime cannot be imported ({error}); pip install onnxruntime"
        return None

    def version(self) -> str:
        return importlib.metadata.version("onnxruntime")

    def device(self) -> str:
        return "cpu"

    def precisions(self) -> tuple[str, ...]:
        return ("fp32",)

    def load(
        self, bundle: Bundle, key: str, *, precision: str, threads: int | None, cache: Path | None
    ) -> OnnxRuntimeEngine:
        return OnnxRuntimeEngine(bundle.spec(key), bundle.graph_file(key), threads or usable_cores())

    def build(
        self, bundle: Bundle, key: str, *, precision: str, sizes: Mapping[str, int], out: Path
    ) -> tuple[Path, ...]:
        return ()
