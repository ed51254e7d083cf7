"""Who is let in, and what becomes of hostile uploads: one clear status each, and the server lives."""

from __future__ import annotations

import concurrent.futures
import io
import json
import socket
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from diffplugin.errors import RequestError
from diffplugin.runtime.serve.budget import MemoryBudget
from diffplugin.runtime.serve.main import build_parser, read_settings
from diffplugin.runtime.serve.settings import hashed, is_loopback, read_tokens
from tests.runtime.serve.conftest import WAIT, Gate, Running, photo_bytes

Serve = Callable[..., Running]
ANNA, BEN = "a" * 32, "b" * 32
TOKENS = {hashed(ANNA): "anna", hashed(BEN): "ben"}


def test_tokens_part_the_callers(serve: Serve) -> None:
    running = serve(tokens=TOKENS)
    for token in (None, "wrong", "a" * 31, "ä" * 16):
        header: dict[bytes, bytes] = {} if token is None else {b"Authorization": f"Bearer {token}".encode()}
        answer = httpx.get(f"{running.url}/v1/jobs", headers=header, trust_env=False)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert "Authorization: Bearer" in answer.json()["detail"]
    assert running.post().status_code == 401
    job = running.post("/v1/jobs", token=ANNA).json()["id"]
    running.wait(job, token=ANNA)
    assert running.get(f"/v1/jobs/{job}", BEN).status_code == 404
    assert running.get(f"/v1/jobs/{job}/result", BEN).status_code == 404
    assert running.get("/v1/jobs", BEN).json()["jobs"] == []
    assert len(running.get("/v1/jobs", ANNA).json()["jobs"]) == 1
    assert running.get("/metrics").status_code == 401 and running.get("/metrics", ANNA).status_code == 200
    assert [running.get(path).status_code for path in ("/healthz", "/readyz", "/", "/app.js")] == [200] * 4


def test_beyond_this_machine_a_token_is_needed(tmp_path: Path) -> None:
    parse = build_parser().parse_args
    with pytest.raises(RequestError, match="--token-file"):
        read_settings(parse(["--host", "0.0.0.0"]))
    assert read_settings(parse(["--host", "0.0.0.0", "--insecure"])).tokens == {}
    file = tmp_path / "tokens"
    file.write_text(f"# who may\nanna {ANNA}\n\n{BEN}\n")
    settings = read_settings(parse(["--host", "::", "--token-file", str(file)]))
    assert sorted(settings.tokens.values()) == ["anna", "token-2"]
    assert settings.owner(f"bearer {ANNA}") == "anna" and settings.owner("Basic x") is None
    for text, expected in (("", "no token in it"), ("short", "line 1 is no token"), (f"{ANNA}\n{ANNA}", "repeats")):
        file.write_text(text)
        with pytest.raises(RequestError, match=expected):
            read_tokens(file)
    with pytest.raises(RequestError, match="cannot be read"):
        read_tokens(tmp_path / "none")
    assert [is_loopback(host) for host in ("localhost", "127.3.4.5", "::1", "0.0.0.0", "10.0.0.1", "example.org")] == [
        True, True, True, False, False, False,
    ]  # fmt: skip


def test_other_pages_and_host_names_are_refused(serve: Serve) -> None:
    running = serve()
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}, {"Origin": "null"}):
        answer = running.post("/v1/jobs", headers=headers)
        assert (answer.status_code, answer.json()["kind"]) == (403, "forbidden"), headers
    assert running.post("/v1/jobs", headers={"Origin": running.url}).status_code == 202


def png(width: int, height: int, data: bytes = b"", *, colour: int = 2) -> bytes:
    """A PNG whose header says what its pixels may not hold."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def tiff_of_floats() -> bytes:
    written = io.BytesIO()
    Image.fromarray(np.zeros((20, 20), np.float32)).save(written, "TIFF")
    return written.getvalue()


WHOLE, JPEG = photo_bytes(200, 300), photo_bytes(form="JPEG")
HOSTILE: dict[str, tuple[bytes, set[int]]] = {
    "empty": (b"", {422}),
    "one byte": (b"\x00", {415}),
    "text": (b"hello", {415}),
    "html": (b"<html><script>alert(1)</script>", {415}),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', {415}),
    "xml bomb": (b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bb">]><a>&b;</a>', {415}),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n", {415}),
    "pdf": (b"%PDF-1.7\n1 0 obj", {415}),
    "zip": (b"PK\x03\x04" + bytes(200), {415}),
    "gzip": (b"\x1f\x8b\x08" + bytes(200), {415}),
    "elf": (b"\x7fELF" + bytes(200), {415}),
    "pickle": (b"\x80\x04\x95\x10\x00cos\nsystem\n", {415}),
    "zeros": (bytes(100_000), {415}),
    "noise": (np.random.default_rng(0).bytes(100_000), {415}),
    "heic": (b"\x00\x00\x00\x18ftypheic" + bytes(100), {415, 422}),
    "webm": (b"\x1aE\xdf\xa3" + bytes(100), {415}),
    "png header alone": (WHOLE[:33], {422}),
    "half a png": (WHOLE[: len(WHOLE) // 2], {422}),
    "half a jpeg": (JPEG[: len(JPEG) // 3], {422}),
    "jpeg marker alone": (b"\xff\xd8\xff", {422}),
    "gif header alone": (b"GIF89a\x10\x00\x10\x00", {422}),
    "webp header alone": (b"RIFF\x10\x00\x00\x00WEBPVP8 ", {422}),
    "bomb of 40 gigapixels": (png(200_000, 200_000), {413}),
    "bomb of 2^31 pixels a side": (png(2**31 - 1, 2**31 - 1), {413, 422}),
    "no width": (png(0, 50), {422}),
    "4x4 pixels": (png(4, 4, bytes(4 * 13)), {422}),
    "8x100,000 pixels without data": (png(8, 100_000), {200, 422}),
    "wrong colour type": (png(20, 20, colour=7), {422}),
    "tiff of floats": (tiff_of_floats(), {422}),
    "tiff that points at itself": (b"II*\0" + struct.pack("<IHHHIII", 8, 1, 256, 4, 1, 2**32 - 1, 8), {422}),
    "bmp of negative size": (b"BM" + struct.pack("<4I2i2H6I", 99, 0, 54, 40, -9, -9, 1, 24, *[0] * 6), {413, 422}),
    "ppm of giant size": (b"P6 99999 99999 255\n" + bytes(100), {413}),
    "avif of nothing": (b"\x00\x00\x00\x1cftypavif" + bytes(100), {422}),
    "photo with a tail": (photo_bytes() + b"#!/bin/sh\nrm -rf /\n" * 10, {200}),
}  # fmt: skip


def test_thirty_kinds_of_hostile_uploads(serve: Serve, tmp_path: Path) -> None:
    assert len(HOSTILE) >= 30
    running = serve()
    for name, (data, expected) in HOSTILE.items():
        answer = running.post(photo=data)
        assert answer.status_code in expected, (name, answer.status_code, answer.text[:300])
        if answer.status_code != 200:
            problem = answer.json()
            assert problem["detail"].startswith("photo.png: "), (name, problem)
            assert str(tmp_path) not in answer.text and "Traceback" not in answer.text, (name, problem)
    assert running.post().status_code == 200
    assert not list((tmp_path / "state" / "incoming").iterdir()) and not list((tmp_path / "state" / "inputs").iterdir())


NAMES = [
    "../../../etc/passwd", "..\\..\\windows\\system32\\cmd.exe", "/etc/shadow", "a/../b.png", "\x00.png",
    "x" * 5000 + ".png",
    "aux", "con.png", "a\r\nSet-Cookie: x=1.png", '"; rm -rf /; ".png', "${HOME}.png", "%2e%2e%2fetc.png",
    "фото.png", "写真.png",
    "\u202egnp.exe", "-rf", ".htaccess", "", " ", "<script>.png",
]  # fmt: skip


def test_names_are_never_paths(serve: Serve, tmp_path: Path) -> None:
    running = serve()
    for name in NAMES:
        answer = running.post(files={"image": (name, photo_bytes())})
        if answer.status_code == 400:  # headers of a part have a limit
            assert len(name) > 4000
            continue
        if answer.status_code == 422:  # the form's own reader takes an empty name for no file
            assert name in ("", "\x00.png"), (name, answer.text)
            continue
        assert answer.status_code == 200, (name, answer.text)
        disposition = answer.headers["content-disposition"]
        assert "/" not in disposition and "\\" not in disposition and "\n" not in disposition, (name, disposition)
    found = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"state"}


PATHS = ["/v1/jobs/../../etc/passwd", "/..%2f..%2fetc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/vendor/../../main.py",
         "/v1/jobs/%00", "/v1/files/x/y", "/v1/jobs/" + "a" * 3000, "/index.html/../../settings.py"]  # fmt: skip


def test_paths_lead_nowhere_else(serve: Serve) -> None:
    running = serve()
    for path in PATHS:
        with socket.create_connection(("127.0.0.1", running.port), timeout=WAIT) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.split()[1] in (b"404", b"400"), (path, answer[:200])
        assert b"root:" not in answer and b"import" not in answer


def test_too_large_is_refused_before_and_while_it_arrives(serve: Serve) -> None:
    running = serve(max_upload_bytes=100_000, max_pixels=10_000)
    assert running.post(photo=bytes(300_000)).status_code == 413

    def endless() -> object:
        yield b'--b\r\nContent-Disposition: form-data; name="image"; filename="p.png"\r\n\r\n'
        for _ in range(100):
            yield bytes(10_000)

    with running.client() as client:
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        try:
            answer = client.post("/v1/jobs", content=endless(), headers=headers)  # type: ignore[arg-type]
            assert answer.status_code == 413, answer.text
            assert "100,000 bytes" in answer.json()["detail"] or "bytes that are allowed" in answer.json()["detail"]
        except httpx.WriteError:
            pass  # the server had answered and closed before all was sent
    answer = running.post(photo=photo_bytes(120, 120))
    assert answer.status_code == 413 and "14,400 pixels, expected at most 10,000" in answer.json()["detail"]


def test_a_photo_that_fits_nowhere_is_refused(serve: Serve) -> None:
    running = serve(budget=MemoryBudget(lambda: 2_000_000))
    assert running.post().status_code == 200
    answer = running.post(photo=photo_bytes(400, 400))
    assert answer.status_code == 413 and "GiB of memory" in answer.json()["detail"]


UPLOAD = (
    b"POST /v1/restore HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    b"Content-Length: 99999\r\n\r\n"
)
MALFORMED = [
    ({"Content-Type": "application/json"}, json.dumps({"prompt": "rain"}).encode(), {422}),
    ({"Content-Type": "multipart/form-data"}, b"--b\r\n", {400}),
    ({"Content-Type": "multipart/form-data; boundary=b"}, b"--c\r\nnonsense", {400, 422}),
    (
        {"Content-Type": "multipart/form-data; boundary=b"},
        b'--b\r\nContent-Disposition: form-data; name="image"',
        {400, 422},
    ),
    ({"Content-Type": "text/plain"}, b"hello", {422}),
    ({}, b"", {422}),
    ({"Content-Type": "application/x-www-form-urlencoded"}, b"image=x&prompt=rain", {422}),
]


def test_malformed_forms_and_many_parts(serve: Serve) -> None:
    running = serve()
    with running.client() as client:
        for headers, body, expected in MALFORMED:
            answer = client.post("/v1/restore", content=body, headers=headers)
            assert answer.status_code in expected, (headers, body, answer.text)
            assert answer.headers["content-type"] == "application/problem+json"
        many = (
            "".join(f'--b\r\nContent-Disposition: form-data; name="f{i}"\r\n\r\nx\r\n' for i in range(1500))
            + "--b--\r\n"
        )
        answer = client.post(
            "/v1/jobs", content=many.encode(), headers={"Content-Type": "multipart/form-data; boundary=b"}
        )
        assert answer.status_code in (400, 413), answer.text
    assert running.post().status_code == 200


def test_raw_nonsense_and_half_requests(serve: Serve) -> None:
    running = serve()
    for sent in (
        b"",
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x00" * 1000,
        b"GET " + b"a" * 200_000,
        b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nab",
    ):
        with socket.create_connection(("127.0.0.1", running.port), timeout=WAIT) as connection:
            try:
                connection.sendall(sent)
            except ConnectionError:
                continue  # it hung up early, as it may
    assert running.post().status_code == 200


def test_slow_clients_are_hung_up_on(serve: Serve) -> None:
    running = serve(read_seconds=0.3)
    half = UPLOAD + b"--b"
    for sent in (b"", b"GET / HTTP/1.1\r\nHost: loc", half):
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", running.port), timeout=WAIT) as connection:
            connection.sendall(sent)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert time.monotonic() - began < 5
        assert (b" 408 " in answer) == (sent == half), answer
    assert running.post().status_code == 200


def test_dropped_connections_leave_nothing(serve: Serve, tmp_path: Path) -> None:
    running = serve()
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="p.png"\r\n\r\n' + bytes(5000)
    for _ in range(10):
        with socket.create_connection(("127.0.0.1", running.port), timeout=WAIT) as connection:
            connection.sendall(UPLOAD + part)
    assert running.post().status_code == 200
    assert running.get("/v1/jobs").json()["jobs"][0]["state"] == "done"
    assert len(running.get("/v1/jobs").json()["jobs"]) == 1
    assert not list((tmp_path / "state" / "incoming").iterdir())


@pytest.mark.slow
def test_ten_thousand_jobs_wait(serve: Serve, gate: Gate) -> None:
    running = serve(max_queue=10_000)
    gate.opened.clear()
    running.post("/v1/jobs")
    gate.wait_inside()
    data, body = {"prompt": "rain"}, photo_bytes(16, 16)

    def some(count: int) -> set[int]:
        with running.client() as client:
            return {
                client.post("/v1/jobs", files={"image": ("p.png", body)}, data=data).status_code for _ in range(count)
            }

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert set().union(*pool.map(some, [1250] * 8)) == {202}
    began = time.monotonic()
    last = running.get("/v1/jobs?limit=1").json()["jobs"][0]
    assert last["queue_position"] == 10_000 and time.monotonic() - began < 1
    refused = running.post("/v1/jobs")
    assert refused.status_code == 429 and "10000 jobs wait" in refused.json()["detail"]
    with running.client() as client:
        assert client.delete(f"/v1/jobs/{last['id']}").json()["state"] == "cancelled"
    assert running.post("/v1/jobs").status_code == 202
    gate.opened.set()
