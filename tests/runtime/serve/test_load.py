"""Load on loopback, bounded: nothing lost or mixed up, little on top of the bare restorer, no memory that grows."""

from __future__ import annotations

import http.client
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

import diffplugin
from diffplugin.runtime.photos.read import read_photo
from diffplugin.runtime.photos.write import write_photo
from tests.runtime.serve.conftest import photo_bytes, pixels_of
from tests.runtime.serve.test_process import Process, launch

__all__ = ["launch"]
CLIENTS, REQUESTS, ROUNDS = 16, 200, 5
FIELDS = {"plugins": "deblur"}


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def post(client: httpx.Client, photo: bytes) -> httpx.Response:
    return client.post("/v1/restore", files={"image": ("p.png", photo)}, data=FIELDS)


@dataclass
class Answer:
    status: int
    job: str
    content: bytes


class LightClient:
    """One kept connection. The clients run on the server's cores: httpx takes ten times as much of them."""

    def __init__(self, url: httpx.URL) -> None:
        self._connection = http.client.HTTPConnection(url.host, url.port, timeout=120)

    def close(self) -> None:
        self._connection.close()

    def post(self, body: bytes, content_type: str) -> Answer:
        self._connection.request("POST", "/v1/restore", body, {"Content-Type": content_type})
        answer = self._connection.getresponse()
        return Answer(answer.status, answer.getheader("diffplugin-job", ""), answer.read())


def form(photo: bytes) -> tuple[bytes, str]:
    """(body, content type) of a request, as httpx writes it."""
    made = httpx.Request("POST", "http://x/", files={"image": ("p.png", photo)}, data=FIELDS)
    return made.read(), made.headers["content-type"]


@pytest.mark.slow
def test_two_hundred_requests_of_sixteen_clients(launch: Callable[..., Process], tmp_path: Path) -> None:
    """Server and bare restorer, file to file, in turn, so that both see the same machine; the median of the rounds."""
    server = launch("--engine", "auto", "--threads", "2", "--warm", "256x256").ready()
    photos = [photo_bytes(256, 256, seed) for seed in range(REQUESTS)]
    forms = [form(photo) for photo in photos]
    with diffplugin.load(threads=2) as restorer:
        restorer.prepare((256, 256))

        def bare(i: int) -> np.ndarray:
            (tmp_path / "in.png").write_bytes(photos[i])
            made = restorer.restore(read_photo(tmp_path / "in.png"), plugins=["deblur"])
            write_photo(tmp_path / "out.png", made.photo)
            return made.array

        def ask(client: LightClient, part: range) -> dict[int, Answer]:
            return {i: client.post(*forms[i]) for i in part}

        def both(part: range) -> tuple[float, float, dict[int, Answer]]:
            began = time.perf_counter()
            expected = {i: bare(i) for i in part}
            alone = time.perf_counter() - began
            began = time.perf_counter()
            with ExitStack() as stack, ThreadPoolExecutor(CLIENTS) as pool:
                # anew in each round: idle ones would be hung up on
                clients = [stack.enter_context(closing(LightClient(server.client.base_url))) for _ in range(CLIENTS)]
                parts = [part[c::CLIENTS] for c in range(CLIENTS)]
                found = {i: answer for made in pool.map(ask, clients, parts) for i, answer in made.items()}
            served = time.perf_counter() - began
            for i, answer in found.items():
                assert answer.status == 200, answer.content
                np.testing.assert_array_equal(pixels_of(answer.content), expected[i], err_msg=f"request {i}")
            return alone, served, found

        both(range(2))  # the first of each takes longer
        answers: dict[int, Answer] = {}
        seconds = []
        for start in range(0, REQUESTS, REQUESTS // ROUNDS):
            alone, served, found = both(range(start, start + REQUESTS // ROUNDS))
            seconds.append((alone, served))
            answers |= found
        assert len(answers) == REQUESTS and len({answer.job for answer in answers.values()}) == REQUESTS
        extra = []
        for i in range(40):
            with closing(LightClient(server.client.base_url)) as client:
                began = time.perf_counter()
                bare(i)
                middle = time.perf_counter()
                client.post(*forms[i])
                extra.append(time.perf_counter() - middle - (middle - began))
    share = statistics.median(alone / served for alone, served in seconds)
    overhead = statistics.median(extra) * 1000
    rates = ", ".join(f"{alone / served:.2f}" for alone, served in seconds)
    per_second = REQUESTS / sum(served for _, served in seconds)
    print(f"\n{share:.3f} of the bare restorer's rate ({rates}); {per_second:.2f} photos/s; overhead {overhead:.1f} ms")
    assert share >= 0.95
    assert overhead <= 15


@pytest.mark.slow
def test_memory_does_not_grow(launch: Callable[..., Process]) -> None:
    server = launch().ready()
    photo = photo_bytes(64, 64)
    floors = []  # what the photos at work take comes and goes
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            sizes = []
            for _ in range(4):
                answers = list(pool.map(lambda _: post(server.client, photo).status_code, range(100)))
                assert set(answers) == {200}
                sizes.append(resident_bytes(server.process.pid))
            floors.append(min(sizes))
    slope = (floors[-1] - floors[1]) / 2**20 / 0.8  # in the first 400, allocators and caches settle
    print(f"\n{slope:+.2f} MiB per 1,000 requests; resident {[round(size / 2**20, 1) for size in floors]} MiB")
    assert slope < 1
