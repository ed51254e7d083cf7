"""The manner that all commands have: errors, exit codes, types of options, completion."""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from diffplugin import __version__, command
from diffplugin.command import (
    COMMANDS,
    EXIT_CODES,
    Parser,
    add_common_options,
    answer,
    enter,
    execute,
    path,
    positive,
    say,
    sides,
    size,
)
from diffplugin.errors import BundleError, Cancelled, RequestError


def run(error: BaseException | None = None, argv: Sequence[str] = (), code: int = 0) -> int:
    """A command that ends in an error."""

    def work(args: argparse.Namespace) -> int:
        say("working")
        if error is not None:
            raise error
        return code

    parser = Parser(prog="dp-test")
    add_common_options(parser)
    return execute("dp-test", parser.parse_args, work, argv)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RequestError("a\nb"), 2, "a b"),
        (BundleError("x: no bundle"), 1, "x: no bundle"),
        (Cancelled("stopped"), 1, "stopped"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 1, "/x/y: No space left on device"),
        (OSError("what"), 1, "what"),
        (ModuleNotFoundError("No module named 'abc'", name="abc.d"), 1, "needs the package abc"),
        (KeyError("norm"), 1, f"a fault of diffplugin {__version__} itself (KeyError: 'norm'); -v shows where"),
        (AssertionError(), 1, "(AssertionError: AssertionError)"),
        (RecursionError("deep"), 1, "RecursionError: deep"),
    ],
)
def test_whatever_goes_wrong_is_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(error) == code
    out, err = capsys.readouterr()
    assert out == "working\n" and err.startswith("dp-test: ") and err.count("\n") == 1 and line in err, err
    assert "Traceback" not in err


def test_a_broken_pipe_is_no_news(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(BrokenPipeError()) == 1 and capsys.readouterr().err == ""


def test_verbose_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(KeyError("norm"), ["-v"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "KeyError: 'norm'" in err


def test_exit_codes_and_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(code=3) == 3
    assert run(argv=["--nonsense"]) == 2 and run(argv=["--version"]) == 0 and run(argv=["--help"]) == 0
    out, err = capsys.readouterr()
    assert f"diffplugin {__version__}\n" in out and EXIT_CODES.split(",", maxsplit=1)[0] in out
    assert err == "dp-test: unrecognized arguments: --nonsense; see dp-test --help\n"
    assert sys.stdout is not None and type(sys.stdout).__name__ != "Tolerant", "streams are put back"


class _Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_full_streams_cost_words_and_answers_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    err = io.StringIO()
    monkeypatch.setattr(sys, "stdout", _Full())
    monkeypatch.setattr(sys, "stderr", err)
    assert run() == 0

    def tell(args: argparse.Namespace) -> int:
        answer("{}")
        return 0

    assert execute("dp-test", Parser().parse_args, tell, ()) == 1
    assert err.getvalue() == "dp-test: stdout: No space left on device\n"
    for broken in (_Full(), None):
        monkeypatch.setattr(sys, "stderr", broken)
        assert run(BundleError("x")) == 1


def test_types(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (size("512"), size("640x480"), size("640X480"), size("640×480")) == (512, (640, 480), (640, 480), (640, 480))
    assert sides("256:512:1024x512") == ("256:512:1024", "512")
    for text in ("", "x", "0", "512x", "x512", "-1", "1x2x3", "5.0", "٣", "512x0", "1e3", "native"):
        with pytest.raises(ValueError, match=r"^"):
            size(text)
    assert positive("3") == 3
    for text in ("0", "-1", "x", "", "1.5", "²"):
        with pytest.raises(argparse.ArgumentTypeError, match="whole number of at least 1"):
            positive(text)
    monkeypatch.setenv("HOME", "/home/me")
    assert path("~/a") == Path("/home/me/a") and path("a/~") == Path("a/~")
    with pytest.raises(argparse.ArgumentTypeError, match="'~nosuch/a': there is no such user"):
        path("~nosuch/a")


def test_general_options_stand_before_and_behind_a_subcommand() -> None:
    parser = Parser(prog="dp-test")
    commands = parser.add_subparsers(dest="command", parser_class=Parser)
    commands.add_parser("run").add_argument("--out")
    add_common_options(parser)
    for words in (["-q", "run"], ["run", "-q"], ["run", "--quiet", "--out", "x"], ["-q", "run", "-v"]):
        args = parser.parse_args(words)
        assert args.quiet and args.verbose == ("-v" in words), words
    assert not parser.parse_args(["run"]).quiet


def _main(name: str) -> Any:
    pytest.importorskip("torch", reason="most commands need the extra [export]")
    module = next(one.module for one in COMMANDS if one.name == name)
    return importlib.import_module(module).main


@pytest.mark.parametrize("name", [one.name for one in COMMANDS])
def test_every_command_has_the_same_manner(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = _main(name)
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"diffplugin {__version__}\n"
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for option in ("--version", "--quiet", "--verbose", "--print-completion"):
        assert option in out, option
    assert "Exit status: 0 " in " ".join(out.split())
    assert main(["--nonsense"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"{name}: ") and err.count("\n") == 1 and "--help" in err


@pytest.mark.parametrize("name", [one.name for one in COMMANDS])
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_every_command_completes(name: str, shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("shtab", reason="needs the extra [completion]")
    assert _main(name)(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    assert name in script and len(script) > 500
    if shell == "bash":
        (tmp_path / "c").write_text(script)
        subprocess.run(["bash", "-n", str(tmp_path / "c")], check=True)


def test_completion_completes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """As bash does it: options, their choices, files and folders."""
    pytest.importorskip("shtab", reason="needs the extra [completion]")
    enter("dp-infer", ["--print-completion", "bash"])
    (tmp_path / "c").write_text(capsys.readouterr().out)
    (tmp_path / "photo.jpg").touch()
    (tmp_path / "photos").mkdir()

    def complete(*words: str) -> set[str]:
        line = " ".join(f"'{word}'" for word in ("dp-infer", *words))
        ask = f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; _shtab_dp_infer"
        code = f". ./c; {ask}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        done = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    assert complete("--comp") == {"--compare"} and "--recursive" in complete("--re")
    assert complete("--sampler", "dp") == {"dpmpp_2m"}
    assert complete("--bundle", "pho") == {"photos"} and complete("-o", "pho") == {"photo.jpg", "photos"}
    assert complete("pho") == {"photo.jpg", "photos"}


def test_completion_without_its_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert run(argv=["--print-completion", "bash"]) == 1
    assert capsys.readouterr().err.endswith("needs the package shtab: pip install 'diffplugin[completion]'\n")


@pytest.mark.parametrize("name", [one.name for one in COMMANDS if one.extra])
def test_a_missing_package_names_its_extra(name: str) -> None:
    """As after ``pip install diffplugin`` alone: nothing but the runtime's own dependencies can be imported."""
    extra = next(one.extra for one in COMMANDS if one.name == name)
    code = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
from diffplugin.entry import start
sys.exit(start({name!r}, {ARGUMENTS.get(name, [])!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"{name}: ") and f"pip install 'diffplugin[{extra}]'" in done.stderr, done.stderr


HEAVY = (
    "accelerate", "fastapi", "huggingface_hub", "matplotlib", "multipart", "onnx", "onnx_ir", "onnxscript", "openvino",
    "prometheus_client", "safetensors", "scipy", "skimage", "tensorboard", "torch", "torchmetrics", "uvicorn",
)  # fmt: skip
ARGUMENTS = {
    "dp-train": ["selector", "--work", "x"],
    "dp-eval": ["selector", "--work", "x", "--out", os.devnull],
    "dp-bench": ["run", "--out", "x"],
}


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_dp_infer_starts_no_threads_of_openblas() -> None:
    script = """
import os, threading
from diffplugin.entry import start
start("dp-infer", ["--version"])
import numpy
print(len(os.listdir("/proc/self/task")) - threading.active_count())
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OPENBLAS_", "OMP_"))}
    ran = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.split()[-1] == "0", ran.stdout


def test_python_m_diffplugin_says_what_there_is() -> None:
    done = subprocess.run([sys.executable, "-m", "diffplugin"], capture_output=True, text=True, check=True)
    assert all(one.name in done.stdout and one.summary in done.stdout for one in COMMANDS)
    done = subprocess.run([sys.executable, "-m", "diffplugin", "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_codes_are_written_once() -> None:
    assert command.__doc__ is not None
    for code in (0, 1, 2, 3, 130, 143):
        assert f"{code} " in EXIT_CODES and f"    {code} " in command.__doc__
