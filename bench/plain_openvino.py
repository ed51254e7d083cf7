"""The peer "OpenVINO, plain export": the released networks converted as optimum-intel does, none of our changes.

TorchScript tracing through ``openvino.convert_model``, weights in float32, shapes made static before compiling, the
latency hint, OpenVINO's own model cache: https://huggingface.co/docs/optimum-intel (``reshape`` + ``compile``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffplugin.bench.peers import PeerBuilder, TimeTable, plain_axes, plain_inputs, plain_spec, require
from diffplugin.engines.base import Engine
from diffplugin.engines.threads import thread_count
from diffplugin.files import unfinished
from diffplugin.spec import Array, GraphSpec

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle

_HINTS = {"fp32": "f32", "bf16": "bf16"}


class PlainEngine(Engine):
    """One converted graph, compiled for the shapes that come; those of one picture at a time."""

    name = "openvino plain"

    def __init__(self, spec: GraphSpec, file: Path, times: TimeTable, precision: str, properties: dict[str, Any]):
        super().__init__(plain_spec(spec), precision)
        self._file, self._times, self._properties = file, times, properties
        self._shapes: list[tuple[int, ...]] = []
        self._request: Any = None

    def _run(self, inputs: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        import openvino

        arrays = plain_inputs(self.spec, inputs, self._times)
        shapes = [array.shape for array in arrays]
        if shapes != self._shapes:
            core = openvino.Core()
            model = core.read_model(self._file)
            model.reshape({port: list(shape) for port, shape in zip(model.inputs, shapes, strict=True)})
            self._request, self._shapes = None, shapes
            self._request = core.compile_model(model, "CPU", self._properties).create_infer_request()
        self._request.infer(dict(enumerate(arrays)), share_inputs=True)
        names = [t.name for t in self.spec.outputs]
        return {name: self._request.get_output_tensor(i).data.copy() for i, name in enumerate(names)}

    def _release(self) -> None:
        self._request, self._shapes = None, []


class PlainBuilder(PeerBuilder):
    name = "openvino plain"

    def unavailable_reason(self) -> str | None:
        return require("openvino")

    def version(self) -> str:
        import openvino

        return str(openvino.__version__)

    def precisions(self) -> tuple[str, ...]:
        import openvino

        native = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return ("bf16", "fp32") if native else ("fp32",)

    def _file(self, key: str) -> Path:
        return self.model.artefacts / f"openvino-{self.version().split('-')[0]}" / f"{key}.xml"

    def export(self, bundle: Bundle, key: str) -> None:
        file, spec = self._file(key), bundle.spec(key)
        if file.is_file():
            return
        import openvino
        import torch

        from diffplugin.bench.peers_torch import plain_module, traced_inputs

        module = plain_module(self.model.checkpoint(), key, TimeTable(bundle.manifest))
        with torch.no_grad():
            model = openvino.convert_model(module, example_input=traced_inputs(spec, bundle.manifest.dims.factor))
        free = [[-1 if isinstance(axis, str) else axis for axis in plain_axes(t.name, t.axes)] for t in spec.inputs]
        model.reshape(dict(zip(model.inputs, free, strict=True)))
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.stem}.part.xml")  # OpenVINO derives the name of the weights' file from it
        with unfinished(part), unfinished(part.with_suffix(".bin")):
            openvino.save_model(model, part, compress_to_fp16=False)
            part.with_suffix(".bin").replace(file.with_suffix(".bin"))
            part.replace(file)  # last: it stands for the whole

    def load(self, bundle: Bundle, key: str, *, precision: str, threads: int | None, cache: Path | None) -> PlainEngine:
        file = self.exported(self._file(key), key)
        properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": thread_count(threads),
        }
        if cache is not None:
            # one folder per precision: OpenVINO would import a float32 blob as bf16, and compute noise
            properties["CACHE_DIR"] = str(cache / f"openvino-{precision}")
        return PlainEngine(bundle.spec(key), file, TimeTable(bundle.manifest), precision, properties)
