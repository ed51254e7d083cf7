"""The loop as a model of NVIDIA's Triton inference server: its Python backend, over graphs that the server runs.

``dp-export --triton-repo`` writes a repository with one model per graph and one for the loop, whose ``model.py`` names
:class:`TritonPythonModel`. Each graph is then a request to the server itself ("business logic scripting"), so that the
server owns the engines, shares them among requests and measures them; the loop is the runtime's own, with another kind
of engine. With the parameter ``engine`` set to an engine's name the loop runs the bundle's graphs in its own process
instead, as ``dp-infer`` does.

The server's module ``triton_python_backend_utils`` exists only inside its backend process; it is imported there.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffplugin.engines.base import Engine, OnnxBuilder, check_precision
from diffplugin.errors import Cancelled, DiffPluginError, EngineError, ImageError, RequestError
from diffplugin.runtime.options import OptionFields, RestoreOptions
from diffplugin.runtime.photos.strength import read_strength
from diffplugin.spec import Array, GraphSpec

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle
    from diffplugin.runtime.restorer import Restorer

UTILS = "triton_python_backend_utils"
SERVER = "server"  # value of the parameter ``engine``: graphs are requests to the server
# Tensors of the loop's model: name -> (type of the server, axes); those that may be left out.
INPUTS: dict[str, tuple[str, tuple[int, ...]]] = {
    "image": ("TYPE_UINT8", (-1, -1, 3)),
    "prompt": ("TYPE_STRING", (1,)),
    "plugins": ("TYPE_STRING", (-1,)),
    "seed": ("TYPE_INT64", (1,)),
    "steps": ("TYPE_INT32", (1,)),
    "strength": ("TYPE_STRING", (1,)),
}
OPTIONAL = ("prompt", "plugins", "seed", "steps", "strength")
OUTPUTS: dict[str, tuple[str, tuple[int, ...]]] = {
    "restored": ("TYPE_UINT8", (-1, -1, 3)),
    "report": ("TYPE_STRING", (1,)),
}


def model_name(bundle: str, key: str = "") -> str:
    """Name of a graph's model in a repository, or of the loop's: ``diffplugin_sd14_scb_deblur``."""
    return re.sub(r"[^A-Za-z0-9-]+", "_", "/".join(filter(None, ("diffplugin", bundle, key))))


class ServerEngine(Engine):
    """One graph that the server runs as a separate model."""

    name = SERVER

    def __init__(self, spec: GraphSpec, model: str, precision: str, utils: Any) -> None:
        super().__init__(spec, precision)
        self._model, self._utils = model, utils

    def _run(self, inputs: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        utils, names = self._utils, [tensor.name for tensor in self.spec.outputs]
        response = utils.InferenceRequest(
            model_name=self._model,
            requested_output_names=names,
            inputs=[utils.Tensor(name, np.ascontiguousarray(array)) for name, array in inputs.items()],
            preferred_memory=utils.PreferredMemory(utils.TRITONSERVER_MEMORY_CPU, 0),  # the loop computes on the host
        ).exec()
        if response.has_error():
            raise EngineError(f"{self._model}: the server answers: {response.error().message()}")
        return {name: utils.get_output_tensor_by_name(response, name).as_numpy() for name in names}


class ServerBuilder(OnnxBuilder):
    """Engines that are models of the server, at the single precision of its repository."""

    name = SERVER

    def __init__(self, utils: Any, precision: str) -> None:
        self._utils, self._precision = utils, precision

    def version(self) -> str:
        return ""

    def device(self) -> str:
        return "the server's"

    def precisions(self) -> tuple[str, ...]:
        return (self._precision,)

    def load(
        self, bundle: Bundle, key: str, *, precision: str, threads: int | None, cache: Path | None
    ) -> ServerEngine:
        check_precision(self, precision, bundle)
        return ServerEngine(bundle.spec(key), model_name(bundle.manifest.name, key), precision, self._utils)


class TritonPythonModel:
    """The class that the server's Python backend looks for in ``model.py``."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called once per instance, with the model's folder, version and configuration."""
        self._utils = importlib.import_module(UTILS)
        bundle = Path(args["model_repository"]) / args["model_version"] / "bundle"
        given = json.loads(args["model_config"]).get("parameters", {})
        self._restorer = _restorer(bundle, {name: value["string_value"] for name, value in given.items()}, self._utils)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request; a failed request does not affect the others."""
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        self._restorer.close()

    def _answer(self, request: Any) -> Any:
        utils = self._utils
        try:
            photo, options = _read(request, utils)
            made = self._restorer.restore(photo, options, cancelled=request.is_cancelled)
        except DiffPluginError as error:
            return utils.InferenceResponse(error=utils.TritonError(str(error), _code(error, utils)))
        report = np.array([json.dumps(made.to_json()).encode()], np.object_)
        tensors = [utils.Tensor("restored", np.array(made.array)), utils.Tensor("report", report)]
        return utils.InferenceResponse(output_tensors=tensors)


def _restorer(path: Path, parameters: Mapping[str, str], utils: Any) -> Restorer:
    import diffplugin
    from diffplugin.bundle import open_bundle
    from diffplugin.runtime.planning.quality import get_quality
    from diffplugin.runtime.restorer import Restorer

    engine, precision = parameters.get("engine", SERVER), parameters.get("precision", "fp32")
    quality = parameters.get("quality", "exact")
    if engine != SERVER:
        chosen: Any = {"engine": engine, "precision": precision, "quality": quality}  # load checks them
        return diffplugin.load(path, **chosen)
    builder = ServerBuilder(utils, precision)
    return Restorer(open_bundle(path), builder, precision, reason="the server's models", quality=get_quality(quality))


def _read(request: Any, utils: Any) -> tuple[Any, RestoreOptions]:
    """(pixels, options) from a request's tensors.

    Raises:
        RequestError: a text is not UTF-8, or the request cannot be understood.
    """
    found = {name: utils.get_input_tensor_by_name(request, name) for name in INPUTS}
    values = {name: tensor.as_numpy() for name, tensor in found.items() if tensor is not None}
    fields: OptionFields = {}
    if "seed" in values:
        fields["seed"] = int(values["seed"].item())
    if "steps" in values:
        fields["steps"] = int(values["steps"].item())
    try:
        if "strength" in values:
            fields["strength"] = read_strength(values["strength"].item().decode())
        if "prompt" in values:
            fields["prompt"] = values["prompt"].item().decode()
        if "plugins" in values:
            fields["plugins"] = [plugin.decode() for plugin in values["plugins"]]
    except UnicodeDecodeError as error:
        raise RequestError(f"prompt, plugins or strength: not UTF-8 ({error.reason} at byte {error.start})") from None
    return values["image"], RestoreOptions(**fields)


def _code(error: DiffPluginError, utils: Any) -> Any:
    """The server's code for an error: a fault of the client, a cancellation, or an internal error."""
    if isinstance(error, Cancelled):
        return utils.TritonError.CANCELLED
    return utils.TritonError.INVALID_ARG if isinstance(error, RequestError | ImageError) else utils.TritonError.INTERNAL
