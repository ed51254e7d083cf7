"""``dp-serve`` as a process with the embedded model: start, kill -9, SIGTERM, and what is left behind."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from diffplugin.errors import DiffPluginError
from diffplugin.runtime.serve import main as command
from diffplugin.runtime.serve.main import listen
from tests.runtime.serve.conftest import photo_bytes, pixels_of

pytestmark = pytest.mark.usefixtures("signals_are_heard")
WAIT = 60.0


class Process:
    """A ``dp-serve`` of its own. ``started``: seconds until it answered."""

    def __init__(self, state: Path, *words: str) -> None:
        self.state, began = state, time.monotonic()
        options = ["--port", "0", "--state", str(state), "--engine", "onnxruntime", "--threads", "1", "--warm", "64x64"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "diffplugin.runtime.serve.main", *options, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": str(state.parent)},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert found, (line, self.process.communicate(timeout=WAIT)[1])
        self.client = httpx.Client(base_url=found[0], timeout=WAIT, trust_env=False)
        assert self.client.get("/healthz").status_code == 200
        self.started = time.monotonic() - began

    def ready(self) -> Process:
        began = time.monotonic()
        while self.client.get("/readyz").status_code != 200:
            assert time.monotonic() - began < WAIT
            time.sleep(0.02)
        return self

    def queue(self, seed: int, **fields: str) -> str:
        answer = self.client.post(
            "/v1/jobs", files={"image": (f"{seed}.png", photo_bytes(64, 64, seed))}, data={"plugins": "deblur"} | fields
        )
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def states(self) -> list[str]:
        return [job["state"] for job in self.client.get("/v1/jobs?limit=200").json()["jobs"]]

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """(exit code, what it said on stderr)."""
        self.client.close()
        self.process.send_signal(number)
        errors = self.process.communicate(timeout=WAIT)[1]
        return self.process.returncode, errors


Launch = Callable[..., Process]


def until(reached: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not reached():
        assert time.monotonic() - began < WAIT
        time.sleep(0.01)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    started: list[Process] = []

    def start(*words: str) -> Process:
        started.append(Process(tmp_path / "state", *words))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.end(signal.SIGKILL)


def test_killed_twice_every_job_is_done_once(launch: Launch, tmp_path: Path) -> None:
    server = launch()
    assert server.started < 5, "two seconds on an idle machine"
    jobs = [server.queue(seed, steps="3") for seed in range(12)]
    for _ in range(2):
        before = server.states().count("done")
        until(lambda: server.states().count("done") >= before + 2)  # noqa: B023
        assert server.end(signal.SIGKILL)[0] == -signal.SIGKILL
        (tmp_path / "state" / "incoming" / "left").write_bytes(b"x")
        server = launch()
    until(lambda: set(server.states()) == {"done"})
    assert len(server.states()) == len(jobs)
    results = [pixels_of(server.client.get(f"/v1/jobs/{job}/result").content) for job in jobs]
    fresh = launch_expected(results)
    for seed, (result, expected) in enumerate(zip(results, fresh, strict=True)):
        np.testing.assert_array_equal(result, expected, err_msg=f"job {seed} has another's result")
    code, errors = server.end()
    assert (code, errors) == (0, "")
    left = sorted(
        path.name for path in (tmp_path / "state").rglob("*") if path.is_file() and path.parent.name != "results"
    )
    assert left == ["jobs.sqlite", "lock"]
    assert [path.name for path in tmp_path.iterdir()] == ["state"], "no temporary file"


def launch_expected(results: list[Any]) -> list[Any]:
    """What a restorer makes of the same photos."""
    import diffplugin

    with diffplugin.load(engine="onnxruntime", threads=1) as restorer:
        return [
            restorer.restore(Image.open(io.BytesIO(photo_bytes(64, 64, seed))), plugins=["deblur"], steps=3).array
            for seed in range(len(results))
        ]


def test_sigterm_hands_back_what_is_not_finished_in_time(launch: Launch) -> None:
    server = launch("--grace", "0.2s").ready()
    long, waiting = server.queue(0, plugins="lowlight", steps="900"), server.queue(1)
    until(lambda: server.client.get(f"/v1/jobs/{long}").json().get("step", 0) >= 1)
    began = time.monotonic()
    code, errors = server.end()
    assert (code, errors) == (0, "") and time.monotonic() - began < 5
    again = launch()
    assert {again.client.get(f"/v1/jobs/{job}").json()["state"] for job in (long, waiting)} <= {"queued", "running"}
    again.client.delete(f"/v1/jobs/{long}")
    until(lambda: again.client.get(f"/v1/jobs/{waiting}").json()["state"] == "done")
    assert again.end(signal.SIGINT)[0] == 0


def test_sigterm_lets_a_running_photo_finish(launch: Launch) -> None:
    server = launch("--grace", "30s").ready()
    answers: list[httpx.Response] = []

    def restore() -> None:
        photo = {"image": ("p.png", photo_bytes(64, 64))}
        data = {"plugins": "deblur", "steps": "60"}
        answers.append(
            httpx.post(f"{server.client.base_url}/v1/restore", files=photo, data=data, timeout=WAIT, trust_env=False)
        )

    thread = threading.Thread(target=restore)
    thread.start()
    until(lambda: bool(server.states()))
    assert server.end() == (0, "")
    thread.join(WAIT)
    assert answers[0].status_code == 200 and pixels_of(answers[0].content).shape == (64, 64, 3)


def test_what_cannot_begin_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words, code, expected in (
        (["--host", "0.0.0.0"], 2, "can be reached from other machines"),
        (["--port", "99999"], 2, "no port"),
        (["--keep", "soon"], 2, "'soon' is no time"),
        (["--warm", "big"], 2, "'big' is no size"),
        (["--token-file", str(tmp_path / "none")], 2, "token file cannot be read"),
        (["--bundle", str(tmp_path), "--port", "0", "--state", str(tmp_path / "s")], 1, "manifest"),
    ):
        assert command.main(words) == code
        said = capsys.readouterr().err
        assert expected in said and said.startswith("dp-serve: ") and said.count("\n") == 1, said
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(DiffPluginError, match="choose another --port"):
        listen("127.0.0.1", taken.getsockname()[1])
