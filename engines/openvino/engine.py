"""One graph, run by OpenVINO."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffplugin.bundle import graph_files
from diffplugin.engines.base import Engine
from diffplugin.engines.openvino import library
from diffplugin.engines.openvino.model import (
    check_hint,
    compile_graph,
    compile_properties,
    import_model,
    store_model,
)
from diffplugin.engines.pages import give_back_memory, releasing
from diffplugin.errors import EngineError, EngineNotLoaded, ForeignEngine
from diffplugin.manifest import fingerprint
from diffplugin.shapes import shapes_text
from diffplugin.spec import Array, GraphSpec

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle

_log = logging.getLogger("diffplugin")
# A model compiled for one shape runs a full-width step a tenth faster than one with free axes, for 2.4 s more at
# first. It also has weights of its own, so large graphs keep one shape; the pieces of a picture share theirs.
_KEPT_SHAPES = 4
_KEPT_WEIGHTS = 2**30


class OpenVinoEngine(Engine):
    """One graph; compiled at the first use of a shape, or taken from the bundle's engines or from the cache.

    Args:
        variant: the form of the bundle's graph that it reads.
        hint: the type that it computes in, in OpenVINO's words ("f32", "bf16", "f16").
        target: the device, in OpenVINO's words ("CPU", "GPU.0").
        threads: of one run, on a processor.
        cache: a folder for compiled models; None: they are not kept.

    Raises:
        EngineError: the file cannot be loaded (when a shape is first used).
        BundleDamaged: its tensors do not match the contract.
    """

    name = "openvino"

    def __init__(
        self,
        bundle: Bundle,
        key: str,
        *,
        precision: str,
        variant: str,
        hint: str,
        target: str,
        threads: int,
        cache: Path | None,
    ) -> None:
        super().__init__(bundle.spec(key), precision)
        self._bundle, self._key, self._variant, self._target = bundle, key, variant, target
        self._path = bundle.graph_file(key, variant)
        self._properties = compile_properties(self._path, hint, threads, target)
        self._cache = cache / self.name if cache is not None else None
        self._kept = max(1, min(_KEPT_SHAPES, _KEPT_WEIGHTS // max(1, bundle.graph(key, variant).weights_bytes)))
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
            raise EngineError(f"{self.spec.graph}: OpenVINO failed ({library.message(error)})") from None
        return outputs

    def _request(self, sizes: Mapping[str, int]) -> Any:
        shapes = shapes_text(self.spec, sizes)
        if shapes not in self._requests:
            if len(self._requests) >= self._kept:
                while len(self._requests) >= self._kept:
                    self._requests.popitem(last=False)
                give_back_memory()
            try:
                self._core = self._core or library.core()
                self._requests[shapes] = self._load(shapes, sizes)
            except RuntimeError as error:
                raise EngineNotLoaded(f"{self._path}: OpenVINO cannot load it ({library.message(error)})") from None
        self._requests.move_to_end(shapes)
        return self._requests[shapes][0]

    def _load(self, shapes: str, sizes: Mapping[str, int]) -> tuple[Any, Any]:
        """(infer request, objects that must live as long): from the bundle, else from the cache, else compiled."""
        stored = [file for file in (self._built(sizes), self._cache_file(shapes)) if file is not None]
        # the compiled model has its own copy of the weights, in its own order
        with self._bundle.reading(self._key, self._variant), releasing((*graph_files(self._path), *stored)):
            for file in stored:
                if found := import_model(file, self._properties, self._target):
                    compiled, blob = found
                    break
                if file.is_file():
                    _log.warning("%s: damaged or unreadable compiled model; compiling %s again", file, self._key)
            else:
                compiled, blob = self._compile(sizes), None
                if (cached_file := self._cache_file(shapes)) is not None:
                    store_model(compiled, cached_file)
            check_hint(compiled, self._properties)
            return compiled.create_infer_request(), blob

    def _compile(self, sizes: Mapping[str, int]) -> Any:
        return compile_graph(self._path, self.spec, sizes, self._properties, self._target)

    def _built(self, sizes: Mapping[str, int]) -> Path | None:
        """File of the bundle's engine for this shape and machine. A foreign one is reported once and not used."""
        try:
            entry = self._bundle.engine(
                self._key,
                engine=self.name,
                precision=self.precision,
                sizes=sizes,
                version=library.version(),
                device=library.device_key(self._target),
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
        sha256 = self._bundle.graph(self._key, self._variant).sha256
        device = library.device_key(self._target)
        name = fingerprint(sha256, shapes, self.precision, self.name, library.version(), (device,))
        return self._cache / f"{name}.blob"

    def _release(self) -> None:
        self._requests.clear()
        self._core = None


def _new_outputs(request: Any, spec: GraphSpec) -> dict[str, Array]:
    """New arrays that the request will write its outputs to: they belong to the caller, and nothing is copied."""
    import openvino

    outputs: dict[str, Array] = {}
    for tensor in spec.outputs:
        port = request.get_tensor(tensor.name)
        outputs[tensor.name] = np.empty(tuple(port.shape), port.data.dtype)
        request.set_tensor(tensor.name, openvino.Tensor(outputs[tensor.name], shared_memory=True))
    return outputs
