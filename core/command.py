"""The manner of every command: one parser, one error line, one set of exit codes.

    0    done
    1    failed: a photo, a bundle, a file, a missing package
    2    the request cannot be understood: wrong options, no such plugin
    3    nothing selected: the request names no task that the bundle has
    130  interrupted (Ctrl-C)
    143  terminated (SIGTERM)

A command is a module with ``main(argv)``, which hands its parser and its work to :func:`execute`. The entry points
below import that module late, so that Ctrl-C and a missing package are one line from the first moment on.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from diffplugin import __version__
from diffplugin.errors import DiffPluginError, RequestError

DONE, FAILED, USAGE, NOTHING_SELECTED, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143
EXIT_CODES = (
    "Exit status: 0 done, 1 failed, 2 the request cannot be understood, 3 nothing selected, 130 interrupted, "
    "143 terminated."
)


@dataclass(frozen=True)
class Command:
    """A command: its name, the module whose ``main`` runs it, what it does, and the extra that it needs."""

    name: str
    module: str
    summary: str
    extra: str = ""


COMMANDS = (
    Command("dp-infer", "diffplugin.runtime.cli", "restore photos"),
    Command("dp-serve", "diffplugin.runtime.serve.main", "serve restoration over HTTP", "serve"),
    Command("dp-export", "diffplugin.export.cli", "turn checkpoints into a bundle of engines", "export"),
    Command("dp-train", "diffplugin.plugins.train.cli", "train plugins and the selector", "train"),
    Command("dp-eval", "diffplugin.plugins.train.eval_cli", "measure plugins and the selector", "train"),
    Command("dp-bench", "diffplugin.bench.cli", "measure speed beside peers", "bench"),
)


class Terminated(BaseException):
    """SIGTERM came: unwinds like Ctrl-C, so that temporary files go."""


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, whole option names, and the options that every command has."""

    def __init__(self, *, epilog: str = EXIT_CODES, **options: Any) -> None:
        super().__init__(epilog=epilog, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}; see {self.prog} --help")


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """``--version``, ``-q``, ``-v`` and ``--print-completion``."""
    group = parser.add_argument_group("general")
    group.add_argument("--version", action="version", version=f"diffplugin {__version__}")
    group.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    group.add_argument("-v", "--verbose", action="store_true", help="say more: what is loaded, built and cached")
    group.add_argument("--print-completion", action=_PrintCompletion, choices=("bash", "zsh", "tcsh"), help="and exit")


class _PrintCompletion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None) -> NoReturn:
        try:
            import shtab
        except ImportError:
            parser.error("--print-completion needs the package shtab: pip install 'diffplugin[completion]'")
        print(shtab.complete(parser, values))
        parser.exit()


def path(text: str) -> Path:
    """Type of a path option: ``~`` is expanded."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~nosuch
        raise argparse.ArgumentTypeError(f"{text!r}: there is no such user") from None


def positive(text: str) -> int:
    """Type of an option that counts something: 1 or more."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")


def print_error(prog: str, message: str) -> None:
    """One line on stderr. A closed or full stderr is no reason to stop."""
    with suppress(OSError, ValueError, AttributeError):
        print(f"{prog}: {' '.join(message.split())}", file=sys.stderr, flush=True)


def execute(
    prog: str,
    parse: Callable[[Sequence[str] | None], argparse.Namespace],
    run: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse and run; returns the exit code. Whatever goes wrong is one line on stderr, never a traceback."""
    _tolerant_streams()
    try:
        args = parse(argv)
        _configure_logging(prog, args)
        code = run(args)
        sys.stdout.flush()
        return code
    except (DiffPluginError, KeyboardInterrupt, Terminated, MemoryError, OSError, UnicodeError) as error:
        code, message = _outcome(error)
        if message:
            print_error(prog, message)
        if isinstance(error, OSError):
            _discard_stdout()
        return code


def _outcome(error: BaseException) -> tuple[int, str]:
    """(exit code, what to say) of an exception; nothing is said where whoever read our output went away."""
    message = str(error) or type(error).__name__
    for kind, code, said in (
        (KeyboardInterrupt, INTERRUPTED, "interrupted"),
        (Terminated, TERMINATED, "terminated"),
        (RequestError, USAGE, message),
        (BrokenPipeError, FAILED, ""),
        (MemoryError, FAILED, "out of memory"),
    ):
        if isinstance(error, kind):
            return code, said
    if isinstance(error, OSError) and error.strerror:
        message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return FAILED, message


def _discard_stdout() -> None:
    """Python flushes stdout once more when it ends, and would complain of a closed pipe or a full disk."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _tolerant_streams() -> None:
    """Characters that a terminal does not know are escaped; printing never kills work."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def _configure_logging(prog: str, args: argparse.Namespace) -> None:
    """Warnings of the package on stderr; with -v what it does, with -q errors alone."""
    level = logging.WARNING
    if getattr(args, "verbose", False):
        level = logging.DEBUG
    elif getattr(args, "quiet", False):
        level = logging.ERROR
    logger = logging.getLogger("diffplugin")
    logger.setLevel(level)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(f"{prog}: %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False


def enter(name: str, argv: Sequence[str] | None = None) -> int:
    """Run a command by name, its module imported late."""
    command = next(command for command in COMMANDS if command.name == name)

    def terminate(number: int, frame: Any) -> NoReturn:
        raise Terminated

    try:
        with suppress(ValueError):  # not the main thread
            signal.signal(signal.SIGTERM, terminate)
        main = importlib.import_module(command.module).main
        return int(main(argv))
    except ImportError as error:
        needed = error.name or str(error)
        if needed.startswith("diffplugin"):
            raise
        remedy = f"pip install 'diffplugin[{command.extra}]'" if command.extra else "pip install diffplugin"
        print_error(name, f"needs the package {needed}: {remedy}")
        return FAILED
    except (KeyboardInterrupt, Terminated) as error:  # while it was imported
        code, message = _outcome(error)
        print_error(name, message)
        return code


def infer() -> int:
    """Entry point of ``dp-infer``."""
    return enter("dp-infer")


def serve() -> int:
    """Entry point of ``dp-serve``."""
    return enter("dp-serve")


def export() -> int:
    """Entry point of ``dp-export``."""
    return enter("dp-export")


def train() -> int:
    """Entry point of ``dp-train``."""
    return enter("dp-train")


def evaluate() -> int:
    """Entry point of ``dp-eval``."""
    return enter("dp-eval")


def bench() -> int:
    """Entry point of ``dp-bench``."""
    return enter("dp-bench")
