"""The API over Ray Serve: the same answers from replicas in processes of their own."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import diffplugin
from tests.runtime.conftest import smooth_photo

pytest.importorskip("ray.serve", reason="needs the extra [scale]")

SCRIPT = """
import io, json, sys, time
from pathlib import Path
import httpx, ray
from ray import serve
from diffplugin.runtime.scale.ray_serve import build
from diffplugin.runtime.scale.recipe import Recipe
from diffplugin.runtime.serve.settings import Settings

folder = Path(sys.argv[1])
ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
settings = Settings(tokens={}, state=folder / "state")
serve.run(build(Recipe(engine="onnxruntime", threads=1), settings, max_replicas=2), name="restore")
with httpx.Client(base_url=f"http://127.0.0.1:{sys.argv[2]}", timeout=120, trust_env=False) as client:
    photo = {"image": ("p.png", (folder / "in.png").read_bytes())}
    answer = client.post("/v1/restore", files=photo, data={"plugins": "deblur"})
    assert answer.status_code == 200, answer.text
    (folder / "restored.png").write_bytes(answer.content)
    wishes = [{"plugins": "deblur", "seed": str(i)} for i in range(6)]
    jobs = [client.post("/v1/jobs", files=photo, data=wish).json()["id"] for wish in wishes]
    began = time.monotonic()
    while any(client.get(f"/v1/jobs/{job}").json()["state"] != "done" for job in jobs):
        assert time.monotonic() - began < 120
        time.sleep(0.2)
    assert client.get(f"/v1/jobs/{jobs[5]}/result").status_code == 200
    refused = client.post("/v1/restore", files={"image": ("x.png", b"text")}, data={"plugins": "deblur"})
    assert refused.status_code == 415, refused.text
    assert client.get("/readyz").status_code == 200 and client.get("/").status_code == 200
    assert client.get("/v1/plugins").json()["plugins"][0]["id"] == "derain"
serve.shutdown()
ray.shutdown()
print("served")
"""


@pytest.mark.slow
def test_the_same_api_from_replicas(tmp_path: Path) -> None:
    import socket

    photo = smooth_photo(64, 64)
    Image.fromarray(photo).save(tmp_path / "in.png")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path), str(port)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert run.returncode == 0 and "served" in run.stdout, run.stdout[-2000:] + run.stderr[-3000:]
    made = np.asarray(Image.open(io.BytesIO((tmp_path / "restored.png").read_bytes())))
    with diffplugin.load(engine="onnxruntime", threads=1) as restorer:
        np.testing.assert_array_equal(made, restorer.restore(photo, plugins=["deblur"]).array)
