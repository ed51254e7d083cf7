"""Signals at any moment: one line, a code of its own, nothing left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="POSIX signals"),
    pytest.mark.usefixtures("signals_are_heard"),
]

CODES = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated"), signal.SIGHUP: (129, "terminated")}

READY = "print('ready', flush=True)"
WORK = """
import sys, time
from pathlib import Path
from diffplugin.command import Parser, add_common_options, execute
from diffplugin.files import written_whole
from diffplugin.signals import exit_with, stop_requested
def work(args):
    with written_whole("result") as temporary:
        temporary.write_text("half")
        {body}
    return 0
sys.argv = ["x"]
parser = Parser(prog="dp-test")
code = execute("dp-test", parser.parse_args, work, grace={grace})
exit_with(code)
sys.exit(code)
"""


def start(folder: Path, body: str, grace: float | None = 8.0) -> subprocess.Popen[str]:
    """A command that is in the middle of writing a file."""
    code = WORK.format(body=body, grace=grace)
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "ready\n"
    return child


def end(child: subprocess.Popen[str], folder: Path, number: signal.Signals) -> None:
    _, err = child.communicate(timeout=30)
    code, word = CODES[number]
    assert child.returncode == code, (child.returncode, err)
    assert err.startswith(f"dp-test: {word}") and err.count("\n") == 1, err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("number", list(CODES))
def test_python_code_unwinds(tmp_path: Path, number: signal.Signals) -> None:
    child = start(tmp_path, f"{READY}; time.sleep(60)")
    child.send_signal(number)
    end(child, tmp_path, number)


def test_native_code_that_does_not_come_back_is_left(tmp_path: Path) -> None:
    """A foreign call holds the main thread, as a long run of an engine does; the handler cannot run."""
    child = start(tmp_path, f"{READY}; import hashlib; hashlib.pbkdf2_hmac('sha256', b'a', b'b', 2**28)", grace=0.5)
    began = time.monotonic()
    child.send_signal(signal.SIGTERM)
    end(child, tmp_path, signal.SIGTERM)
    assert time.monotonic() - began < 8, "it waited for the foreign call"


def test_a_second_signal_leaves_at_once(tmp_path: Path) -> None:
    body = f"\n        try: {READY}; time.sleep(60)\n        finally: time.sleep(60)"
    child = start(tmp_path, body, grace=None)
    child.send_signal(signal.SIGINT)
    time.sleep(1.3)
    assert child.poll() is None, "it may take its time to unwind"
    child.send_signal(signal.SIGINT)
    end(child, tmp_path, signal.SIGINT)


def test_an_interrupt_that_a_callback_swallows_still_ends_the_work(tmp_path: Path) -> None:
    body = (
        "\n        class A:"
        "\n            def __del__(self): print('ready', flush=True); time.sleep(60)"
        "\n        A()\n        assert stop_requested()"
    )
    child = start(tmp_path, body + "\n        return 7")
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (130, "dp-test: interrupted\n")


def test_what_was_ignored_stays_ignored(tmp_path: Path) -> None:
    """nohup, and the background jobs of a script."""
    line = f"{sys.executable} -m diffplugin.runtime.cli --version & sleep 0"
    shell = f"{line}; kill -INT $!; wait $!"
    ignored = "import os, signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    code = f"{ignored}; os.execvp('bash', ['bash', '-c', {shell!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("diffplugin "), done.stderr


def test_a_forked_child_dies_alone(tmp_path: Path) -> None:
    """As a loader of training data that is told to end: its signal is not the parent's."""
    body = (
        f"{READY}\n        import os, signal\n        child = os.fork()\n        if not child: time.sleep(60)"
        "\n        os.kill(child, signal.SIGTERM)\n        status = os.waitpid(child, 0)[1]"
        "\n        assert os.WTERMSIG(status) == signal.SIGTERM\n        time.sleep(1)"
    )
    child = start(tmp_path, body, grace=0.3)
    _, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (0, "") and [p.name for p in tmp_path.iterdir()] == ["result"]


def interrupted(folder: Path, delays: list[float], rng: random.Random, *command: str) -> None:
    """Run a command again and again, each time with a signal after another delay, from its first lines on."""
    for delay in delays:
        number = rng.choice((signal.SIGINT, signal.SIGTERM))
        child = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while not _handles(child.pid, signal.SIGTERM) and child.poll() is None:
            time.sleep(0.001)
        time.sleep(delay)
        child.send_signal(number)
        _, err = child.communicate(timeout=60)
        if child.returncode == 0:
            continue
        assert child.returncode == CODES[number][0], (delay, number, child.returncode, err)
        assert err.count("\n") == 1 and CODES[number][1] in err, (delay, number, err)
        assert not [path for path in folder.rglob("*") if ".diffplugin-" in path.name or ".writing-" in path.name]


def _handles(pid: int, number: signal.Signals) -> bool:
    """The process has a handler for this signal. Before, the interpreter starts, some 30 ms, which is not ours."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("ascii")
    except OSError:
        return False
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) & 1 << number - 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks /proc for the first handler")
def test_dp_infer_at_any_moment(tmp_path: Path) -> None:
    Image.effect_mandelbrot((64, 64), (-2, -1, 1, 1), 20).convert("RGB").save(tmp_path / "a.png")
    rng = random.Random(7)
    delays = [0.1 * n * rng.random() for n in range(12)]
    command = (sys.executable, "-m", "diffplugin.runtime.cli", "a.png", "remove the rain", "--engine", "onnxruntime")
    interrupted(tmp_path, delays, rng, *command, "--precision", "fp32")


@pytest.mark.slow
def test_dp_export_at_any_moment(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra [export]")
    rng = random.Random(3)
    delays = [rng.uniform(0.3, 25) for _ in range(15)]
    command = (sys.executable, "-m", "diffplugin.export.cli", "--plugin", "deblur", "--out", "out", "--no-validate")
    interrupted(tmp_path, delays, rng, *command)
