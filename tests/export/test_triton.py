"""The model repository: configurations by the server's own schema, and the loop in a stand-in for the server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tritonclient", reason="needs the extra [test]: the server's protobuf schema")

import diffplugin
from diffplugin.bundle import Bundle, default_bundle, list_files, open_bundle
from diffplugin.errors import BundleDamaged, BundleError, RequestError
from diffplugin.export import cli
from diffplugin.export.triton import write_repository
from diffplugin.manifest import EngineEntry, GraphEntry
from diffplugin.runtime.triton import INPUTS, model_name
from diffplugin.spec import Array
from tests.export.triton_server import InferenceRequest, Server, Tensor, schema

LOOP = "diffplugin_embedded"
PHOTO = Path(__file__).resolve().parents[2] / "docs" / "examples" / "moose-dark.jpg"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("triton") / "models"
    assert cli.main(["--bundle", str(default_bundle()), "--triton-repo", str(out)]) == 0
    return out


@pytest.fixture
def server(repository: Path) -> Iterator[Server]:
    yield Server(repository)


@pytest.fixture(scope="module")
def photo() -> Array:
    with Image.open(PHOTO) as image:
        return np.asarray(image.convert("RGB"))[:128, :160]


def texts(*values: str | bytes) -> Array:
    """As a client sends them."""
    return np.array([v if isinstance(v, bytes) else v.encode() for v in values], np.object_)


def asked(image: Array, *, cancelled: tuple[bool, ...] = (), **inputs: Array) -> InferenceRequest:
    tensors = [Tensor(name, array) for name, array in ({"image": image} | inputs).items()]
    return InferenceRequest(
        inputs=tensors, requested_output_names=["restored", "report"], model_name=LOOP, cancelled=cancelled
    )


def test_configurations_are_the_graph_table(server: Server) -> None:
    bundle = open_bundle(default_bundle())
    graphs = {model_name("embedded", key): key for key in bundle.manifest.graphs}
    assert set(server.configs) == {LOOP, *graphs}
    kinds = {"f32": "TYPE_FP32", "i64": "TYPE_INT64"}
    for name, config in server.configs.items():
        assert config.name == name and config.max_batch_size == 0
        if name == LOOP:
            continue
        spec = bundle.spec(graphs[name])
        for entries, tensors in ((config.input, spec.inputs), (config.output, spec.outputs)):
            found = [(e.name, schema().DataType.Name(e.data_type), tuple(e.dims)) for e in entries]
            assert found == [
                (t.name, kinds[t.dtype], tuple(-1 if isinstance(axis, str) else axis for axis in t.axes))
                for t in tensors
            ], name


def test_graphs_load_and_have_the_shapes_that_their_configurations_promise(server: Server) -> None:
    """The check that the server's ONNX Runtime backend makes when it loads a model."""
    for name in set(server.configs) - {LOOP}:
        session, config = server.session(name), server.configs[name]
        for entries, values in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
            assert {e.name: list(e.dims) for e in entries} == {
                v.name: [axis if isinstance(axis, int) else -1 for axis in v.shape] for v in values
            }, name


@pytest.mark.parametrize(
    ("words", "inputs"),
    [
        ({"prompt": "brighten this dark photo"}, {"prompt": texts("brighten this dark photo")}),
        (
            {"plugins": ["lowlight", "dehaze"], "steps": 3, "seed": 7, "strength": "auto"},
            {
                "plugins": texts("lowlight", "dehaze"),
                "steps": np.array([3], np.int32),
                "seed": np.array([7], np.int64),
                "strength": texts("auto"),
            },
        ),
    ],
    ids=["request", "plugins"],
)
def test_the_loop_makes_the_picture_of_dp_infer(
    server: Server, photo: Array, words: dict[str, Any], inputs: dict[str, Any]
) -> None:
    with diffplugin.load(engine="onnxruntime", precision="fp32") as restorer:
        expected = restorer.restore(photo, **words)
        used = {model_name("embedded", key) for key in restorer._pool._engines}
    request = asked(photo, **inputs)
    assert server.fault(request) is None
    with server.python_model(LOOP) as model:
        (response,) = model.execute([request])
    assert not response.has_error(), response.error().message()
    made = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
    off = np.abs(made["restored"].astype(int) - expected.array)
    assert off.max() == 0, f"{(off > 0).sum()} values off, by {off.max()} at most"
    report = json.loads(made["report"].item())
    assert report["selection"]["chosen"] == list(expected.selection.chosen) and report["plan"]["engine"] == "server"
    assert set(server.runs) == used and LOOP not in used


def test_the_loop_in_its_own_process_asks_the_server_for_nothing(server: Server, photo: Array) -> None:
    with server.python_model(LOOP, engine="onnxruntime") as model:
        (response,) = model.execute([asked(photo, plugins=texts("derain"))])
    with diffplugin.load(engine="onnxruntime", precision="fp32") as restorer:
        expected = restorer.restore(photo, plugins=["derain"])
    assert np.array_equal(response.output_tensors()[0].as_numpy(), expected.array) and not server.runs


def test_without_words_the_photo_says_what_it_needs(server: Server, photo: Array) -> None:
    with server.python_model(LOOP) as model:
        (response,) = model.execute([asked(photo)])
    with diffplugin.load(engine="onnxruntime", precision="fp32") as restorer:
        expected = restorer.restore(photo)
    made = {tensor.name(): tensor.as_numpy() for tensor in response.output_tensors()}
    chosen = json.loads(made["report"].item())["selection"]["chosen"]
    assert chosen == list(expected.selection.chosen) == ["lowlight"]


def test_a_bad_request_is_answered_alone(server: Server, photo: Array) -> None:
    requests = {
        "no such plugin": (asked(photo, plugins=texts("nothing")), "INVALID_ARG", "nothing"),
        "not UTF-8": (asked(photo, prompt=texts(b"\xff")), "INVALID_ARG", "UTF-8"),
        "too small": (asked(photo[:4, :4], plugins=texts("derain")), "INVALID_ARG", "4x4"),
        "cancelled": (asked(photo, plugins=texts("derain"), cancelled=(False, True)), "CANCELLED", "cancelled"),
    }
    good = asked(photo, plugins=texts("derain"))
    with server.python_model(LOOP) as model:
        *bad, last = model.execute([*(request for request, _, _ in requests.values()), good])
    assert not last.has_error()
    for (what, (_, code, said)), response in zip(requests.items(), bad, strict=True):
        assert response.has_error(), what
        assert response.error().code() == code and said in response.error().message(), what
        assert "\n" not in response.error().message()


def test_a_graph_that_fails_in_the_server_is_named(server: Server, photo: Array) -> None:
    server.failing = {"diffplugin_embedded_unet"}
    with server.python_model(LOOP) as model:
        (response,) = model.execute([asked(photo, plugins=texts("derain"))])
        assert response.has_error() and response.error().code() == "INTERNAL"
        assert "diffplugin_embedded_unet" in response.error().message()
        server.failing = set()
        (again,) = model.execute([asked(photo, plugins=texts("derain"))])
    assert not again.has_error()


def test_the_stand_in_refuses_what_does_not_fit(server: Server, photo: Array) -> None:
    assert "image" in (server.fault(asked(photo.astype(np.float32))) or "")
    assert "expected inputs ['image']" in (server.fault(InferenceRequest(
        inputs=[], requested_output_names=[], model_name=LOOP)) or "")  # fmt: skip
    assert set(INPUTS) == {entry.name for entry in server.configs[LOOP].input}


def _with_engines(tmp_path: Path, *engines: tuple[str, str]) -> Bundle:
    """The embedded bundle with a float16 variant of the UNet and engines of standard TensorRT for it: (shapes, GPU).

    The files hold no engines: a repository only names them."""
    shutil.copytree(default_bundle(), tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle")
    graph = bundle.graph("unet")
    half = GraphEntry(file="fp16/unet.onnx", sha256=graph.sha256, weights_bytes=graph.weights_bytes // 2)
    (bundle.path / "fp16").mkdir()
    shutil.copy(bundle.path / graph.file, bundle.path / half.file)
    entries = []
    for shapes, device in engines:
        file = f"engines/{device}/unet-{device}.engine"
        (bundle.path / file).parent.mkdir(parents=True, exist_ok=True)
        (bundle.path / file).write_bytes(device.encode())
        entries.append(
            EngineEntry(
                fingerprint=device,
                engine="tensorrt",
                version="11.1",
                precision="fp16",
                devices=(device,),
                shapes=shapes,
                graph="unet",
                graph_sha256=half.sha256,
                files=(file,),
            )
        )
    manifest = replace(bundle.manifest, variants={"fp16": {"unet": half}}, engines=tuple(entries))
    return Bundle(bundle.path, replace(manifest, files=list_files(bundle.path)))


def test_engines_of_standard_tensorrt_are_served_by_its_backend(tmp_path: Path) -> None:
    out = tmp_path / "models"
    write_repository(_with_engines(tmp_path, ("h=64,w=64", "sm_89"), ("h=64,w=64", "sm_120")), out)
    config = Server(out).configs["diffplugin_embedded_unet"]
    assert config.backend == "tensorrt"
    assert dict(config.cc_model_filenames) == {"8.9": "unet-sm_89.engine", "12.0": "unet-sm_120.engine"}
    assert next(list(e.dims) for e in config.input if e.name == "latents") == [1, 4, 64, 64]
    files = {file.name for file in (out / config.name / "1").iterdir()}
    assert {config.default_model_filename, *config.cc_model_filenames.values()} == files
    assert Server(out).configs["diffplugin_embedded_vae_decoder"].backend == "onnxruntime"
    assert Server(out).configs[LOOP].parameters["precision"].string_value == "fp16"


def test_a_range_of_sizes_stays_free(tmp_path: Path) -> None:
    write_repository(_with_engines(tmp_path, ("h=32:64:96,w=64", "sm_89")), tmp_path / "models")
    config = Server(tmp_path / "models").configs["diffplugin_embedded_unet"]
    assert next(list(e.dims) for e in config.input if e.name == "latents") == [1, 4, -1, 64]


def test_what_cannot_be_served_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RequestError, match=r"unet: .*h=32,w=32 and h=64,w=64"):
        write_repository(_with_engines(tmp_path, ("h=64,w=64", "sm_89"), ("h=32,w=32", "sm_86")), tmp_path / "a")
    assert not (tmp_path / "a").exists(), "a half-written repository"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(BundleError, match="--triton-repo"):
        write_repository(open_bundle(default_bundle()), tmp_path / "full")
    assert cli.main(["--bundle", str(default_bundle())]) == 2
    assert "--triton-repo" in capsys.readouterr().err


def test_names_are_what_the_server_takes() -> None:
    assert model_name("my bundle/é", "scb/de-blur") == "diffplugin_my_bundle_scb_de-blur"
    assert model_name("sd14") == "diffplugin_sd14"


def test_weights_beside_a_graph_come_along(tmp_path: Path) -> None:
    shutil.copytree(default_bundle(), tmp_path / "bundle")
    data = tmp_path / "bundle/onnx/unet.onnx.data"
    data.write_bytes(b"weights")
    bundle = open_bundle(tmp_path / "bundle")
    bundle = replace(bundle, manifest=replace(bundle.manifest, files={}))  # as while it is written
    write_repository(bundle, tmp_path / "models")
    linked = tmp_path / "models/diffplugin_embedded_unet/1/unet.onnx.data"
    assert linked.samefile(data), "a copy, where a link would do"
    (tmp_path / "bundle/onnx/unet.onnx").unlink()
    with pytest.raises(BundleDamaged, match=r"unet\.onnx: missing"):
        write_repository(bundle, tmp_path / "again")
    assert not (tmp_path / "again").exists()
