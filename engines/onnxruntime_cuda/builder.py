"""What ONNX Runtime offers on an NVIDIA GPU, and its engines."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffplugin.engines.base import OnnxBuilder, check_precision
from diffplugin.engines.onnxruntime_cuda.driver import OneStream
from diffplugin.engines.onnxruntime_cuda.engine import OnnxRuntimeCudaEngine
from diffplugin.engines.onnxruntime_cuda.variants import NAME, missing_cuda_variant, weights_bytes
from diffplugin.engines.onnxruntime_install import cuda_unavailable_reason
from diffplugin.errors import EngineUnavailable

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle

_BATCH = 20  # timesteps that the SCB may take at once
# What a process takes of a GPU before any of our tensors: CUDA's context, cuBLAS, cuDNN. Not measured here.
_LIBRARIES_BYTES = 600 * 2**20


class OnnxRuntimeCudaBuilder(OnnxBuilder):
    """Args:
    device: number of the GPU.
    runtime: as :class:`CudaDriver` takes it.
    """

    name = NAME
    batch = _BATCH

    def __init__(self, device: int = 0, runtime: Any = None) -> None:
        self._device, self._runtime = device, runtime

    @cached_property
    def _driver(self) -> OneStream:
        return OneStream(self._runtime, self._device)

    def driver(self) -> OneStream:
        return self._driver

    @cached_property
    def _unavailable(self) -> str | None:
        return cuda_unavailable_reason(self._device, self._driver.unavailable_reason)

    def unavailable_reason(self) -> str | None:
        return self._unavailable

    def too_small_reason(self, bundle: Bundle) -> str | None:
        """None if the GPU can hold the parts of this bundle that a photo needs at the smallest precision, else how much
        it lacks.

        Nothing is loaded for this check.
        """
        having = [p for p in self.precisions() if not self.missing_variant(bundle, p)]
        needed = min(weights_bytes(bundle, precision) for precision in having) + _LIBRARIES_BYTES
        total = self._driver.memory()[1]
        if needed <= total:
            return None
        return (
            f"{bundle.path} needs {needed / 2**30:.2f} GiB and cuda:{self._device} has {total / 2**30:.2f} GiB; "
            "use a larger GPU, or --engine onnxruntime"
        )

    def missing_variant(self, bundle: Bundle | None, precision: str) -> str | None:
        """Float32 runs from any bundle's graphs; float16 graphs exported for TensorRT would compute shapes on the
        GPU.
        """
        if bundle is None or precision == "fp32":
            return None
        return missing_cuda_variant(bundle, precision)

    def version(self) -> str:
        import onnxruntime  # not from the package's metadata: several packages bring this module

        return str(onnxruntime.__version__)

    def device(self) -> str:
        return self._driver.capability()

    def precisions(self) -> tuple[str, ...]:
        return ("fp16", "fp32")

    def load(
        self, bundle: Bundle, key: str, *, precision: str, threads: int | None, cache: Path | None
    ) -> OnnxRuntimeCudaEngine:
        check_precision(self, precision)
        if reason := self.missing_variant(bundle, precision):
            raise EngineUnavailable(reason)
        return OnnxRuntimeCudaEngine(bundle, key, self._driver, precision)
