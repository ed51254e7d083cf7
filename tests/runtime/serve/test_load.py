"""Load on loopback, bounded: nothing lost or mixed up, little on top of the bare restorer, no memory that grows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import diffplugin
from diffplugin.runtime.photos.read import read_photo
from diffplugin.runtime.photos.write import write_photo
from tests.runtime.serve.conftest import photo_bytes, pixels_of
from tests.runtime.serve.test_process import Process, launch

__all__ = ["launch"]
CLIENTS, REQUESTS, ROUNDS = 16, 200, 4
FIELDS = {"plugins": "deblur"}


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def post(client: httpx.Client, photo: bytes) -> httpx.Response:
    return client.post("/v1/restore", files={"image": ("p.png", photo)}, data=FIELDS)


@pytest.mark.slow
def test_two_hundred_requests_of_sixteen_clients(launch: Callable[..., Process], tmp_path: Path) -> None:
    """Server and bare restorer, file to file, in turn, so that both see the same machine."""
    server = launch("--engine", "auto", "--threads", "2", "--warm", "256x256").ready()
    photos = [photo_bytes(256, 256, seed) for seed in range(REQUESTS)]
    with diffplugin.load(threads=2) as restorer:
        restorer.prepare((256, 256))

        def bare(i: int) -> np.ndarray:
            (tmp_path / "in.png").write_bytes(photos[i])
            made = restorer.restore(read_photo(tmp_path / "in.png"), plugins=["deblur"])
            write_photo(tmp_path / "out.png", made.photo)
            return made.array

        def ask(part: range) -> list[tuple[int, httpx.Response]]:
            with httpx.Client(base_url=server.client.base_url, timeout=120, trust_env=False) as client:
                return [(i, post(client, photos[i])) for i in part]

        for client in (bare, lambda i: post(server.client, photos[i])):
            client(0)
        alone, served = 0.0, 0.0
        answers: dict[int, Any] = {}
        each = REQUESTS // ROUNDS
        for number in range(ROUNDS):
            began = time.perf_counter()
            expected = {i: bare(i) for i in range(number * each, (number + 1) * each)}
            alone += time.perf_counter() - began
            began = time.perf_counter()
            with ThreadPoolExecutor(CLIENTS) as pool:
                parts = [range(number * each + c, (number + 1) * each, CLIENTS) for c in range(CLIENTS)]
                found = dict(pair for part in pool.map(ask, parts) for pair in part)
            served += time.perf_counter() - began
            for i, answer in found.items():
                assert answer.status_code == 200, answer.text
                np.testing.assert_array_equal(pixels_of(answer.content), expected[i], err_msg=f"request {i}")
            answers |= found
        assert len(answers) == REQUESTS and len({a.headers["diffplugin-job"] for a in answers.values()}) == REQUESTS
        extra = []
        for i in range(40):
            began = time.perf_counter()
            bare(i)
            middle = time.perf_counter()
            post(server.client, photos[i])
            extra.append(time.perf_counter() - middle - (middle - began))
    share, overhead = alone / served, statistics.median(extra) * 1000
    rates = f"bare {REQUESTS / alone:.2f}, served {REQUESTS / served:.2f}"
    print(f"\nphotos/s: {rates}, {share:.3f}; overhead {overhead:.1f} ms")
    assert share >= 0.95
    assert overhead <= 15


@pytest.mark.slow
def test_memory_does_not_grow(launch: Callable[..., Process]) -> None:
    server = launch().ready()
    photo = photo_bytes(64, 64)
    sizes = []
    with ThreadPoolExecutor(4) as pool:
        for number in range(15):
            answers = list(pool.map(lambda _: post(server.client, photo).status_code, range(100)))
            assert set(answers) == {200}
            if number >= 4:  # allocators and caches have settled
                sizes.append(resident_bytes(server.process.pid))
    slope = np.polyfit(np.arange(len(sizes)), sizes, 1)[0] * 10 / 2**20
    print(f"\n{slope:+.2f} MiB per 1,000 requests; resident {[round(size / 2**20, 1) for size in sizes]} MiB")
    assert slope < 1
