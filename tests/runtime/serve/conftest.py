"""A server on a free port of this machine, with the fake model of ``tests/runtime/conftest.py`` behind it."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="needs the extra [serve]")
pytest.importorskip("httpx", reason="needs httpx")

import httpx
import uvicorn

from diffplugin.runtime.restorer import Restorer
from diffplugin.runtime.serve.app import make_app
from diffplugin.runtime.serve.budget import MemoryBudget
from diffplugin.runtime.serve.connections import PatientServer, patient_protocol
from diffplugin.runtime.serve.main import listen
from diffplugin.runtime.serve.metrics import Metrics
from diffplugin.runtime.serve.models import Models
from diffplugin.runtime.serve.service import Service
from diffplugin.runtime.serve.settings import Settings
from diffplugin.runtime.serve.store import JobStore
from tests.runtime.conftest import FakeModel, smooth_photo

WAIT = 20.0  # seconds that a test waits for what takes none


def photo_bytes(
    height: int = 48, width: int = 64, seed: int = 0, form: str = "PNG", *, darker: int = 1, **options: Any
) -> bytes:
    """A small photo as a file; ``darker`` times less light."""
    written = io.BytesIO()
    Image.fromarray(smooth_photo(height, width, seed) // darker).save(written, form, **options)
    return written.getvalue()


def pixels_of(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@dataclass
class Running:
    """A server that runs in a thread."""

    service: Service
    server: PatientServer
    thread: threading.Thread
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, token: str | None = None, **options: Any) -> httpx.Client:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=WAIT, trust_env=False, **options)

    def post(
        self, path: str = "/v1/restore", *, data: Any = None, photo: bytes | None = None, **options: Any
    ) -> httpx.Response:
        """A photo and a request; further arguments as ``httpx.post`` has them."""
        files = {"image": ("photo.png", photo_bytes() if photo is None else photo)} | options.pop("files", {})
        with self.client(options.pop("token", None)) as client:
            return client.post(path, files=files, data=data or {"prompt": "rain"}, **options)

    def get(self, path: str, token: str | None = None) -> httpx.Response:
        with self.client(token) as client:
            return client.get(path)

    def wait(self, job_id: str, *states: str, token: str | None = None) -> dict[str, Any]:
        """The job's document once it is in one of ``states``."""
        began = time.monotonic()
        while True:
            document: dict[str, Any] = self.get(f"/v1/jobs/{job_id}", token).json()
            if document["state"] in (states or ("done",)):
                return document
            assert time.monotonic() - began < WAIT, document
            time.sleep(0.02)

    def stop(self, grace: float = 5.0) -> bool:
        """As ``dp-serve`` does it; whether every worker stopped."""
        self.server.should_exit = True
        self.thread.join(WAIT)
        assert not self.thread.is_alive()
        clean = self.service.stop(grace)
        self.service.store.close()
        return clean


@pytest.fixture
def serve(restorer: Restorer, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts servers; ``settings`` as keywords. Those that a test leaves running are stopped."""
    started: list[Running] = []

    def start(*, budget: MemoryBudget | None = None, ready: bool = True, **settings: Any) -> Running:
        chosen = Settings(**{"tokens": {}, "state": tmp_path / "state", "warm": (64, 64), **settings})
        models = Models([restorer])
        service = Service(chosen, models, JobStore(chosen.state), Metrics(), budget)
        listener = listen("127.0.0.1", 0)
        config = uvicorn.Config(
            make_app(service), http=patient_protocol(chosen.read_seconds), log_config=None, timeout_graceful_shutdown=3
        )
        server = PatientServer(config, service.stop_accepting)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        running = Running(service, server, thread, listener.getsockname()[1])
        started.append(running)
        began = time.monotonic()
        while ready and running.get("/readyz").status_code != 200:
            assert time.monotonic() - began < WAIT, running.get("/readyz").text
            time.sleep(0.02)
        return running

    yield start
    for running in started:
        if running.thread.is_alive():
            running.stop()


@dataclass
class Gate:
    """Holds the UNet until it is opened."""

    opened: threading.Event
    entered: threading.Event

    def wait_inside(self) -> None:
        assert self.entered.wait(WAIT)


@pytest.fixture
def gate(model: FakeModel) -> Iterator[Gate]:
    """The model waits at every UNet run, once a server is prepared and ``close`` was called."""
    made = Gate(threading.Event(), threading.Event())
    made.opened.set()
    plain = model._function("unet")

    def held(inputs: Any) -> Any:
        if not made.opened.is_set():
            made.entered.set()
            assert made.opened.wait(15 * WAIT)
        return plain(inputs)

    model.swap("unet", held)
    yield made
    made.opened.set()
