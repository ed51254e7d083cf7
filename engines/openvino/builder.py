"""OpenVINO on the CPU: fp32, bf16 if the processor computes it natively, and int8 if the bundle has it. On Intel's
graphics and NPUs: fp16, and fp32 if they compute it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffplugin.engines.base import (
    BuildOptions,
    BuildResult,
    check_precision,
    missing_variant,
    one_line,
    refuse_gpu_options,
)
from diffplugin.engines.compiled_cache import write_blob
from diffplugin.engines.devices import Device
from diffplugin.engines.fastest import fastest_first
from diffplugin.engines.openvino import library
from diffplugin.engines.openvino.engine import OpenVinoEngine
from diffplugin.engines.openvino.library import CPU
from diffplugin.engines.openvino.model import compile_graph, compile_properties
from diffplugin.engines.threads import engine_threads, thread_count
from diffplugin.errors import EngineError, EngineUnavailable, RequestError
from diffplugin.shapes import Profile, shapes_text

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle

OLDEST = (2026, 3)  # knows com.microsoft.MultiHeadAttention and the other operators of our graphs
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_ON_PROCESSORS = ("fp32", "bf16")
_ELSEWHERE = {"FP16": "fp16", "FP32": "fp32"}  # a device's capability -> precision, fastest first
_BLOB = "model.blob"


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
            if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) < OLDEST:
                found, needed = version.partition("-")[0], ".".join(map(str, OLDEST))
                return f"openvino {found} lacks operators, {needed} has them; pip install -U 'diffplugin[openvino]'"
            library.facts(CPU)
        except ImportError as error:
            if isinstance(error, ModuleNotFoundError) and error.name == "openvino":
                return "not installed; pip install 'diffplugin[openvino]'"
            return f"the package openvino cannot be imported ({error}); pip install 'diffplugin[openvino]'"
        except Exception as error:  # a broken installation, or a processor that it does not know
            return f"openvino cannot start here ({one_line(error, last=True)}); install it again"
        here = library.core().available_devices if self.target != CPU else [CPU]
        # one GPU alone is listed without its number
        if self.target in here or (self.target == "GPU.0" and "GPU" in here):
            return None
        return (
            f"OpenVINO finds no device {self.target} here, only {', '.join(here)}; "
            "install Intel's driver for it, or leave out --device"
        )

    def version(self) -> str:
        return library.version()

    def device(self) -> str:
        return library.device_key(self.target)

    def _abilities(self) -> tuple[str, ...]:
        return library.facts(self.target)[1]

    def precisions(self) -> tuple[str, ...]:
        """Floating point first, in the order of speed on this machine; int8, which costs accuracy, is never the first
        choice.

        bf16 is offered only if it is native; see :func:`.model.check_hint`.
        """
        int8 = self.target == CPU or "INT8" in self._abilities()
        return (*self._floats(), *(["int8"] if int8 else []))

    def variant(self, precision: str) -> str:
        """The bundle's graphs for a precision: except for int8 the float32 ones, which OpenVINO computes at the given
        precision.
        """
        return precision if precision == "int8" else "fp32"

    def missing_variant(self, bundle: Bundle | None, precision: str) -> str | None:
        return missing_variant(bundle, precision) if self.variant(precision) == precision else None

    def _floats(self) -> tuple[str, ...]:
        if self.target != CPU:
            return tuple(precision for ability, precision in _ELSEWHERE.items() if ability in self._abilities())
        if "BF16" not in self._abilities():
            return ("fp32",)
        threads = engine_threads(None)
        core = library.core()
        try:
            return fastest_first(
                f"{self.name} {self.version()} {self.device()}",
                _ON_PROCESSORS,
                lambda precision: convolution(core, _HINTS[precision], threads=threads),
            )
        except RuntimeError as error:
            raise EngineUnavailable(
                f"engine openvino: cannot compute a convolution here ({library.message(error)})"
            ) from None

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
        return OpenVinoEngine(
            bundle,
            key,
            precision=precision,
            variant=self.variant(precision),
            hint=self.hint(precision),
            target=self.target,
            threads=count,
            cache=cache,
        )

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
        properties = compile_properties(path, self.hint(precision), thread_count(None), self.target)
        try:
            compiled = compile_graph(path, bundle.spec(key), sizes, properties, self.target)
        except RuntimeError as error:
            raise EngineError(f"{path}: OpenVINO cannot compile it ({library.message(error)})") from None
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
