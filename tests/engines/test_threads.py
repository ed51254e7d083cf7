"""Threads of engines: as many as processors, shared where there are many, named where there may be no more."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from diffplugin.engines import onnxruntime as module
from diffplugin.engines import threads
from diffplugin.engines.threads import engine_threads, max_threads, thread_count, usable_cores
from diffplugin.errors import EngineError, RequestError

ROOT = Path(__file__).resolve().parents[2]


def test_usable_cores_are_those_that_the_process_may_use() -> None:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert 1 <= usable_cores() <= allowed


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processor affinity is Linux's")
def test_usable_cores_follow_the_affinity() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("text", "cores"), [("1", 1), ("1,4", 1), (" 2 ", 2), ("3", 3), ("99", 3), ("", 3), ("0", 3), ("-1", 3), ("x", 3)]
)
def test_omp_num_threads_is_respected(monkeypatch: pytest.MonkeyPatch, text: str, cores: int) -> None:
    monkeypatch.setattr(threads, "_physical_cores", lambda: 3)
    monkeypatch.setattr(threads, "cpu_quota", lambda: None)
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert usable_cores() == cores


def test_hyperthreads_of_one_core_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    siblings = {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(siblings), raising=False)
    monkeypatch.setattr(Path, "read_text", lambda path: siblings[int(path.parts[-3].removeprefix("cpu"))])
    assert threads._physical_cores() == 2


def test_without_a_topology_every_processor_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    monkeypatch.setattr(Path, "read_text", absent)
    assert threads._physical_cores() == 3


def test_thread_count() -> None:
    assert thread_count(3) == 3
    assert thread_count(None) == usable_cores()
    for wrong in (0, -1):
        with pytest.raises(RequestError, match=f"threads is {wrong}, expected 1 or more"):
            thread_count(wrong)


def test_no_more_threads_than_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    for quota, most in ((None, 4), (2.5, 3), (0.1, 1), (64.0, 4)):
        monkeypatch.setattr(threads, "cpu_quota", lambda quota=quota: quota)
        assert max_threads() == most
        assert engine_threads(64) == most and engine_threads(1) == 1
    with pytest.raises(RequestError, match="threads is 0"):
        engine_threads(0)


def test_threads_that_cannot_be_started_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "max_threads", lambda: 8)
    monkeypatch.setattr(threads, "spare_threads", lambda: 8)
    assert engine_threads(8) == 8
    monkeypatch.setattr(threads, "spare_threads", lambda: 3)
    with pytest.raises(EngineError, match=r"threads is 8, but only 3 more can be started .* use --threads 1"):
        engine_threads(8)
    monkeypatch.setattr(threads, "spare_threads", lambda: None)
    started = iter(range(4))
    start = threading.Thread.start

    def limited(thread: Any) -> None:
        if next(started, None) is None:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    with pytest.raises(EngineError, match="threads is 8, but only 4 more can be started"):
        engine_threads(8)


_COUNT = """
import re
from pathlib import Path
import onnxruntime as ort
from diffplugin.bundle import default_bundle, open_bundle
from diffplugin.engines import onnxruntime as module
from diffplugin.engines.onnxruntime import OnnxRuntimeEngine

def threads():
    return int(re.search(r"Threads:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

bundle, before = open_bundle(default_bundle()), threads()
keys = ("tpb/derain", "tpb/face", "selector")
engines = [OnnxRuntimeEngine(bundle.spec(k), bundle.graph_file(k), {threads}) for k in keys]
print(threads() - before, module._pool.holds(ort, {threads}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("threads", "said"), [(12, "11 True"), (3, "6 False")])
def test_sessions_of_many_threads_share_them(threads: int, said: str) -> None:
    """In a process of its own: the pool is made once and stays."""
    code = _COUNT.replace("{threads}", str(threads))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == said, done.stdout


@pytest.fixture
def pids_limit() -> Iterator[Callable[[int], str]]:
    """``pids_limit(n)``: a shell command that puts the shell into a control group of at most n threads."""
    roots = (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup"))
    group = next((root for root in roots if root.is_dir()), roots[0]) / f"diffplugin-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"needs a control group of its own ({error.strerror})")
    if not (group / "pids.max").exists():
        group.rmdir()
        pytest.skip("needs the pids controller")

    def limit(count: int) -> str:
        (group / "pids.max").write_text(str(count))
        return f"echo $$ > {group}/cgroup.procs"

    yield limit
    group.rmdir()


_RESTORE = """
import sys, numpy as np, diffplugin
from diffplugin.errors import EngineError
picture = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
try:
    with diffplugin.load(engine=sys.argv[1], precision="fp32", threads=64) as restorer:
        restorer.restore(picture, plugins=["derain"])
    print("restored")
except EngineError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_under_a_limit_it_says_so_and_does_not_hang(
    pids_limit: Callable[[int], str], engine: str, tmp_path: Path
) -> None:
    pytest.importorskip(engine)
    if max_threads() < 2:
        pytest.skip("needs two processors")
    env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "DIFFPLUGIN_CACHE": str(tmp_path)}
    command = f'{pids_limit(4)}; exec "$0" -c "$1" {engine}'
    shell = ["bash", "-c", command, sys.executable, _RESTORE]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=60, check=True, env=env)
    assert done.stdout.startswith("refused:"), done.stdout + done.stderr
    assert re.search("a limit on processes", done.stdout) and done.stdout.count("\n") == 1, done.stdout


def test_the_pool_goes_without_versions_that_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = module._Pool()
    monkeypatch.delattr(ort, "set_global_thread_pool_sizes", raising=False)
    assert not pool.holds(ort, 64) and not pool.holds(ort, 2)
