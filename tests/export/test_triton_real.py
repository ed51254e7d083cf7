"""The loop in NVIDIA's own inference server, on the processor: the binary that the wheel of nvidia-pytriton carries.

That server has the Python backend and no ONNX Runtime backend, so the loop runs the bundle's graphs in its own process
(parameter ``engine``); the graphs as models of the server are tested in the stand-in.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import diffplugin
from diffplugin.bundle import default_bundle, open_bundle
from diffplugin.export.triton import write_repository
from tests.runtime.conftest import smooth_photo

pytestmark = pytest.mark.slow
MODEL = "diffplugin_embedded"


def distribution() -> Path:
    """The wheel's ``pytriton/tritonserver``, or a skip."""
    if sys.platform != "linux" or (found := importlib.util.find_spec("pytriton")) is None or not found.origin:
        pytest.skip("needs the package nvidia-pytriton, which carries the server")
    folder = Path(found.origin).parent / "tritonserver"
    if not (folder / "python_backend_stubs" / f"3.{sys.version_info[1]}").is_dir():
        pytest.skip(f"nvidia-pytriton has no stub for Python 3.{sys.version_info[1]}")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server that has loaded the embedded model's repository."""
    triton, work = distribution(), tmp_path_factory.mktemp("triton")
    write_repository(open_bundle(default_bundle()), work / "models")
    config = work / "models" / MODEL / "config.pbtxt"
    config.write_text(config.read_text().replace('"server"', '"onnxruntime"'))
    # the backend's Python ignores PYTHONPATH; an installation has the package in its own folders
    loop = work / "models" / MODEL / "1" / "model.py"
    older = work / "numpy"  # this release of the backend crashes on arrays of NumPy 2
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(older), "numpy<2"]
    if subprocess.run(install, capture_output=True, check=False).returncode:
        pytest.skip("needs NumPy 1 for the server's Python, which cannot be installed here")
    known = filter(None, (*sys.path, *os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    paths = [str(older), *(str(Path(path).resolve()) for path in known)]
    loop.write_text(f"import sys\n\nsys.path[:0] = {paths!r}\n" + loop.read_text())
    shutil.copytree(triton / "backends", work / "backends")
    stub = work / "backends" / "python" / "triton_python_backend_stub"
    shutil.copy(triton / "python_backend_stubs" / f"3.{sys.version_info[1]}" / stub.name, stub)
    binary = work / "tritonserver"
    shutil.copy(triton / "bin" / "tritonserver", binary)
    for file in (stub, binary):
        file.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    libraries = triton.parents[1] / "nvidia_pytriton.libs"
    command = [
        str(binary), "--model-repository", "models", "--backend-directory", "backends", "--model-control-mode=explicit",
        f"--load-model={MODEL}", "--http-address=127.0.0.1", f"--http-port={port}",
        "--allow-grpc=false", "--allow-metrics=false",
    ]  # fmt: skip
    environment = os.environ | {"LD_LIBRARY_PATH": str(libraries)}
    log = work / "log"
    with (
        log.open("w") as output,
        subprocess.Popen(command, cwd=work, env=environment, stdout=output, stderr=output) as process,
    ):
        began = time.monotonic()
        while ask(f"http://127.0.0.1:{port}/v2/health/ready")[0] != 200:
            if process.poll() is not None or time.monotonic() - began > 90:
                process.kill()
                text = log.read_text()
                if "error while loading shared libraries" in text:
                    pytest.skip(text.strip().splitlines()[-1])
                pytest.fail(text[-3000:])
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
        process.terminate()
        process.wait(60)


def ask(url: str, data: bytes | None = None, **headers: str) -> tuple[int, Any]:
    """(status, document) of a request; 0 where nobody answers."""
    request = urllib.request.Request(url, data, {name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            text = answer.read()
            return answer.status, json.loads(text) if text else None
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read() or b"null")
    except OSError:
        return 0, None


def infer(server: str, photo: Any, **texts: str) -> tuple[int, Any]:
    """A request with binary tensors (KServe's extension), as NVIDIA's clients send it; the answer is JSON."""
    tensors = [("image", list(photo.shape), "UINT8", photo.tobytes())]
    tensors += [(name, [1], "BYTES", struct.pack("<I", len(text)) + text.encode()) for name, text in texts.items()]
    inputs = [
        {"name": name, "shape": shape, "datatype": kind, "parameters": {"binary_data_size": len(data)}}
        for name, shape, kind, data in tensors
    ]
    head = json.dumps({"inputs": inputs}).encode()
    body = head + b"".join(data for *_, data in tensors)
    url = f"{server}/v2/models/{MODEL}/infer"
    return ask(url, body, Inference_Header_Content_Length=str(len(head)), Content_Type="application/octet-stream")


def test_the_servers_pixels_are_the_restorers(server: str) -> None:
    photo = smooth_photo(64, 96)
    status, answer = infer(server, photo, prompt="brighten this dark photo")
    assert status == 200, answer
    tensors = {tensor["name"]: tensor for tensor in answer["outputs"]}
    made = np.array(tensors["restored"]["data"], np.uint8).reshape(tensors["restored"]["shape"])
    with diffplugin.load(engine="onnxruntime", precision="fp32") as restorer:
        expected = restorer.restore(photo, "brighten this dark photo")
    np.testing.assert_array_equal(made, expected.array)
    report = json.loads(tensors["report"]["data"][0])
    assert tuple(report["selection"]["chosen"]) == tuple(expected.selection.chosen) == ("lowlight",)


def test_a_clients_fault_is_the_clients(server: str) -> None:
    status, answer = infer(server, smooth_photo(64, 96), plugins="nosuch")
    assert status == 400 and "nosuch" in answer["error"]
    assert infer(server, smooth_photo(64, 96), plugins="deblur")[0] == 200
