"""A stand-in for NVIDIA's inference server, as far as a model repository shows itself to it without a GPU.

It reads ``config.pbtxt`` by the server's own protobuf schema, refuses requests that do not fit a configuration, runs
graphs by ONNX Runtime and gives the Python backend's module ``triton_python_backend_utils`` with the names, argument
names and defaults that the backend's sources bind (``src/pb_stub.cc``). What it cannot show: the server's scheduling,
shared memory, GPU instances, and the ``tensorrt`` backend.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
from google.protobuf import json_format, text_format

NUMPY = {"TYPE_FP32": np.float32, "TYPE_INT64": np.int64, "TYPE_INT32": np.int32, "TYPE_UINT8": np.uint8}


def schema() -> Any:
    """The server's ``model_config.proto``, compiled, from NVIDIA's client package; without the package's gRPC."""
    package = importlib.util.find_spec("tritonclient")
    assert package is not None and package.submodule_search_locations
    file = Path(next(iter(package.submodule_search_locations))) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    assert spec is not None and spec.loader is not None
    if spec.name not in sys.modules:  # a schema can be registered once in a process
        sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[spec.name])
    return sys.modules[spec.name]


def read_config(folder: Path) -> Any:
    """A model's configuration; a field that the server does not know is an error."""
    return text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), schema().ModelConfig())


class Tensor:
    def __init__(self, name: str, numpy_array: Any) -> None:
        assert isinstance(numpy_array, np.ndarray), f"{name}: the server takes NumPy arrays"
        self._name, self._array = name, numpy_array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Any:
        return self._array


class InferenceRequest:
    """Made by a client (``server`` None), or by a model for another one."""

    def __init__(
        self,
        *,
        inputs: list[Tensor],
        requested_output_names: list[str],
        model_name: str,
        preferred_memory: Any = None,
        cancelled: Sequence[bool] = (),
        server: Server | None = None,
    ) -> None:
        self._inputs, self.requested, self.model, self._server = inputs, requested_output_names, model_name, server
        self.memory, self._cancelled = preferred_memory, iter(cancelled)

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def is_cancelled(self) -> bool:
        return next(self._cancelled, False)

    def exec(self) -> InferenceResponse:
        assert self._server is not None
        return self._server.infer(self)


class TritonError:
    INTERNAL, INVALID_ARG, CANCELLED = "INTERNAL", "INVALID_ARG", "CANCELLED"

    def __init__(self, message: str, code: str = "INTERNAL") -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> str:
        return self._code


class InferenceResponse:
    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


def _named(tensors: list[Tensor], name: str) -> Tensor | None:
    return next((tensor for tensor in tensors if tensor.name() == name), None)


class Server:
    """A repository that is being served.

    Attributes:
        configs: by model.
        runs: names of the models that were run, in order.
        failing: models that answer with an error.
    """

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.configs = {folder.name: read_config(folder) for folder in sorted(repository.iterdir())}
        self.runs: list[str] = []
        self.failing: set[str] = set()
        self._sessions: dict[str, Any] = {}

    def session(self, name: str) -> Any:
        config = self.configs[name]
        assert config.backend == "onnxruntime", f"{name}: {config.backend} cannot run here"
        if name not in self._sessions:
            path = self.repository / name / "1" / config.default_model_filename
            self._sessions[name] = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        return self._sessions[name]

    def infer(self, request: InferenceRequest) -> InferenceResponse:
        """What the core checks of a request, then the backend's run."""
        name = request.model
        if name not in self.configs:
            return InferenceResponse(error=TritonError(f"Request for unknown model: '{name}' is not found"))
        if fault := self.fault(request):
            return InferenceResponse(error=TritonError(f"[request id: <id_unknown>] {fault}"))
        self.runs.append(name)
        if name in self.failing:
            return InferenceResponse(error=TritonError("onnx runtime error 2: Non-zero status code returned"))
        arrays = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        made = self.session(name).run(request.requested, arrays)
        return InferenceResponse([Tensor(n, array) for n, array in zip(request.requested, made, strict=True)])

    def fault(self, request: InferenceRequest) -> str | None:
        """Why the core would refuse a request before any backend sees it."""
        config = self.configs[request.model]
        given = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        wanted = {entry.name: entry for entry in config.input}
        if lacking := [n for n, entry in wanted.items() if n not in given and not entry.optional]:
            return f"expected inputs {lacking}"
        if unknown := [*(set(given) - set(wanted)), *(set(request.requested) - {e.name for e in config.output})]:
            return f"unexpected tensors {unknown} for model '{config.name}'"
        for n, array in given.items():
            dims, kind = list(wanted[n].dims), schema().DataType.Name(wanted[n].data_type)
            fits = len(dims) == array.ndim and all(d in (-1, size) for d, size in zip(dims, array.shape, strict=True))
            if not fits or array.dtype != NUMPY.get(kind, np.object_):
                return f"unexpected shape or type of input '{n}': {array.dtype} {array.shape}, expected {kind} {dims}"
        return None

    def utils(self) -> ModuleType:
        """The backend's module, for models that run in this server."""

        def request(**arguments: Any) -> InferenceRequest:
            return InferenceRequest(server=self, **arguments)

        module = ModuleType("triton_python_backend_utils")
        module.__dict__.update(
            Tensor=Tensor,
            InferenceRequest=request,
            InferenceResponse=InferenceResponse,
            TritonError=TritonError,
            TRITONSERVER_MEMORY_CPU="cpu",
            PreferredMemory=lambda preferred_memory_type, preferred_device_id=0: SimpleNamespace(
                kind=preferred_memory_type, device=preferred_device_id
            ),
            get_input_tensor_by_name=lambda inference_request, name: _named(inference_request.inputs(), name),
            get_output_tensor_by_name=lambda inference_response, name: _named(
                inference_response.output_tensors(), name
            ),
        )
        return module

    @contextmanager
    def python_model(self, name: str, **parameters: str) -> Iterator[Any]:
        """A model of the Python backend, as its stub process loads it; ``parameters`` replace its configuration's."""
        folder = self.repository / name
        spec = importlib.util.spec_from_file_location("model", folder / "1" / "model.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["triton_python_backend_utils"] = self.utils()
        try:
            spec.loader.exec_module(module)
            config = json_format.MessageToDict(self.configs[name], preserving_proto_field_name=True)
            config["parameters"] |= {key: {"string_value": value} for key, value in parameters.items()}
            model = module.TritonPythonModel()
            model.initialize(
                {
                    "model_config": json.dumps(config),
                    "model_repository": str(folder),
                    "model_version": "1",
                    "model_name": name,
                    "model_instance_kind": "CPU",
                    "model_instance_device_id": "0",
                }
            )
            yield model
            model.finalize()
        finally:
            del sys.modules["triton_python_backend_utils"]
