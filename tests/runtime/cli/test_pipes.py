"""Pipes and standard streams, from a shell: words never mix with a picture, printing never kills work."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from diffplugin.errors import ImageError, RequestError
from diffplugin.runtime.cli import pipes

PHOTO = Image.effect_mandelbrot((48, 40), (-2, -1, 1, 1), 20).convert("RGB")
COMMAND = f"{sys.executable} -m diffplugin.runtime.cli"
FEW = "--plugin derain --steps 1 --engine onnxruntime --precision fp32"


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of shell, ``dp-infer`` in it, in a folder with photo.jpg."""
    PHOTO.save(folder / "photo.jpg")
    variables = {**os.environ, "DIFFPLUGIN_CACHE": str(folder.parent / "cache"), **environment}
    line = f'dp-infer() {{ {COMMAND} "$@"; }}; {line}'
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=variables, capture_output=True, check=False, timeout=120
    )
    assert b"Traceback" not in done.stderr + done.stdout, done.stderr.decode()
    assert not list(folder.rglob(".diffplugin-*")), "something half-written was left"
    return done


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def test_a_picture_in_and_a_picture_out(folder: Path) -> None:
    """The words for people are on stderr, the bytes alone on stdout: also what libraries print."""
    done = shell(
        f"cat photo.jpg | dp-infer - {FEW} -o - > b.png; echo $? >&2; dp-infer photo.jpg {FEW} -o c.png", folder
    )
    lines = done.stderr.decode().splitlines()
    assert lines[-1] == "0" and any(line.startswith("stdout: 48x40 px in") for line in lines), lines
    assert (folder / "b.png").read_bytes() == (folder / "c.png").read_bytes()
    with Image.open(folder / "b.png") as made:
        made.load()
        assert (made.format, made.size) == ("PNG", (48, 40))


def test_printing_never_kills_work(folder: Path) -> None:
    """Full, closed and broken streams, an ASCII terminal and a Windows one, one after the other: all are restored."""
    named = folder / "雪の日.jpg"
    PHOTO.save(named)
    for number, (line, environment) in enumerate(
        (
            ("dp-infer 雪の日.jpg %s -o %s.png > /dev/full", {}),
            ("dp-infer 雪の日.jpg %s -o %s.png > /dev/full 2>&1", {}),
            ("dp-infer 雪の日.jpg %s -o %s.png >&- 2>&- <&-", {}),
            ("set -o pipefail; dp-infer 雪の日.jpg %s -o %s.png | true", {}),
            ("dp-infer 雪の日.jpg %s -o %s.png", {"PYTHONIOENCODING": "ascii"}),
            ("dp-infer 雪の日.jpg %s -o %s.png", {"PYTHONIOENCODING": "cp1252"}),
            ("dp-infer 雪の日.jpg %s -o %s.png", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
        )
    ):
        done = shell(line % (FEW, number), folder, **environment)
        assert done.returncode == 0, (line, done.stderr.decode())
        with Image.open(folder / f"{number}.png") as made:
            made.load()


def test_an_answer_that_gets_lost_is_a_failure(folder: Path) -> None:
    done = shell(f"dp-infer photo.jpg {FEW} -o a.png --json > /dev/full", folder)
    assert done.returncode == 1 and done.stderr == b"dp-infer: stdout: No space left on device\n"
    assert (folder / "a.png").is_file()
    done = shell(f"dp-infer photo.jpg {FEW} -o - > /dev/full", folder)
    assert done.returncode == 1 and done.stderr.endswith(b"dp-infer: stdout: No space left on device\n")
    done = shell(f"dp-infer photo.jpg {FEW} -q -o - | true; exit ${{PIPESTATUS[0]}}", folder)
    assert done.returncode in (0, 1) and done.stderr == b"", "the reader went away, which is no news"


def test_a_deleted_working_folder(folder: Path) -> None:
    line = f"mkdir gone && cd gone && rmdir ../gone && dp-infer {folder}/photo.jpg {FEW} -o {folder}/a.png"
    assert shell(line, folder).returncode == 0 and (folder / "a.png").is_file()
    done = shell(line.replace(f"{folder}/photo.jpg", "photo.jpg"), folder)
    assert done.returncode == 1 and done.stderr == b"dp-infer: photo.jpg: no such file\n"


def test_what_is_no_photo_is_one_line(folder: Path) -> None:
    for feed, part in (
        ("true", "empty (0 bytes)"),
        ("echo hello", "not a picture"),
        ("head -c 300 photo.jpg", "damaged"),
    ):
        done = shell(f"{feed} | dp-infer - {FEW} -o a.png", folder)
        assert done.returncode == 1 and done.stderr.count(b"\n") == 1 and part in done.stderr.decode(), done.stderr
    assert not (folder / "a.png").exists()


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_terminals_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", _Terminal())
    with pytest.raises(RequestError, match="stdin is a terminal"):
        pipes.check_pipes(reads=True, writes=False)
    monkeypatch.setattr(sys, "stdout", _Terminal())
    with pytest.raises(RequestError, match="stdout is a terminal"):
        pipes.check_pipes(reads=False, writes=True)


def test_too_much_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "MAX_BYTES", 100)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(bytes(101))))
    with pytest.raises(ImageError, match="stdin: more than 100 bytes came"):
        pipes.read_stdin()
