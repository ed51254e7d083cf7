"""The peer "ONNX Runtime, plain export": torch.onnx with default settings, default session options."""

from __future__ import annotations

import importlib.metadata
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffplugin.bench.peers import PeerBuilder, TimeTable, plain_inputs, plain_spec
from diffplugin.engines.base import Engine
from diffplugin.engines.threads import thread_count
from diffplugin.errors import EngineError
from diffplugin.spec import Array, GraphSpec

if TYPE_CHECKING:
    from torch import nn

    from diffplugin.bundle import Bundle


class PlainEngine(Engine):
    """One session with ONNX Runtime's defaults."""

    name = "onnxruntime plain"

    def __init__(self, spec: GraphSpec, file: Path, times: TimeTable, threads: int) -> None:
        import onnxruntime as ort

        super().__init__(plain_spec(spec), "fp32")
        self._times = times
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self._session: Any = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self._names = [i.name for i in self._session.get_inputs()]

    def _run(self, inputs: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        arrays = plain_inputs(self.spec, inputs, self._times)
        made = self._session.run(None, dict(zip(self._names, arrays, strict=True)))
        return dict(zip([t.name for t in self.spec.outputs], made, strict=True))

    def _release(self) -> None:
        self._session = None


class PlainBuilder(PeerBuilder):
    name = "onnxruntime plain"

    def version(self) -> str:
        import onnxruntime

        return str(onnxruntime.__version__)

    def precisions(self) -> tuple[str, ...]:
        return ("fp32",)

    def _file(self, key: str) -> Path:
        exporter = importlib.metadata.version("torch").partition("+")[0]  # without importing it
        return self.model.artefacts / f"onnx-torch-{exporter}" / f"{key}.onnx"

    def export(self, bundle: Bundle, key: str) -> None:
        file, spec = self._file(key), bundle.spec(key)
        if file.is_file():
            return
        import torch

        from diffplugin.bench.peers_torch import plain_module, traced_inputs

        module = plain_module(self.model.checkpoint(), key, TimeTable(bundle.manifest))
        free = tuple(
            None
            if t.name == "time"
            else {i: torch.export.Dim.DYNAMIC for i, axis in enumerate(t.axes) if isinstance(axis, str) and axis != "n"}
            for t in spec.inputs
        )
        # exported before torch.onnx sees it, so that no network notices that it is exported to ONNX
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(module, traced_inputs(spec, bundle.manifest.dims.factor), dynamic_shapes=free)
            onnx = torch.onnx.export(program, dynamo=True, opset_version=20, verbose=False)
        if onnx is None:
            raise EngineError(f"{self.name}: the ONNX exporter returned nothing for {key}")
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:  # its weights' file is named in the graph
            onnx.save(Path(folder) / file.name, external_data=not _small(module))
            for made in sorted(Path(folder).iterdir(), key=lambda path: path.name == file.name):
                made.replace(file.parent / made.name)  # the graph last: it stands for the whole

    def load(self, bundle: Bundle, key: str, *, precision: str, threads: int | None, cache: Path | None) -> PlainEngine:
        file = self.exported(self._file(key), key)
        return PlainEngine(bundle.spec(key), file, TimeTable(bundle.manifest), thread_count(threads))


def _small(module: nn.Module) -> bool:
    """Fits into one protobuf file, with room."""
    return sum(p.numel() * 4 for p in module.parameters()) < 2**30
