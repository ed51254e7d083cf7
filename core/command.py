"""The behaviour that all commands share: one parser, one error line, one set of exit codes.

    0    done
    1    failed: a photo, a bundle, a file, a missing package
    2    the request cannot be understood: wrong options, no such plugin
    3    nothing selected: the request names no task that the bundle has, and nothing was written
    130  interrupted (Ctrl-C)
    143  terminated (SIGTERM); 129: the terminal was closed

A command is a module with ``main(argv)``, which hands its parser and its work to :func:`execute`. Messages for people
go through :func:`say`, a requested answer (a list, JSON) through :func:`answer`.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from diffplugin import __version__
from diffplugin.errors import DiffPluginError, RequestError
from diffplugin.files import discard_unfinished
from diffplugin.signals import (
    GRACE_S,
    INTERRUPTED,
    TERMINATED,
    Terminated,
    handled,
    say_stopped,
    stop_code,
)
from diffplugin.streams import Tolerant, tolerant_streams

DONE, FAILED, USAGE, NOTHING_SELECTED = 0, 1, 2, 3
EXIT_CODES = (
    "Exit status: 0 done, 1 failed, 2 the request cannot be understood, 3 nothing selected, 130 interrupted, "
    "143 terminated."
)

_TIMES = "[xX\u00d7]"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Command:
    """A command: its name, the module whose ``main`` runs it, its description, and the extra that it needs."""

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


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, whole option names, and the exit codes under ``--help``."""

    def __init__(self, *, epilog: str = EXIT_CODES, **options: Any) -> None:
        super().__init__(epilog=epilog, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}; see {self.prog} --help")


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """``--version``, ``-q``, ``-v`` and ``--print-completion``; call it once all subcommands are added; they take the
    first three as well."""
    _add_general(parser, default=False)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                _add_general(child, default=argparse.SUPPRESS)  # what was said before the subcommand stays


def _add_general(parser: argparse.ArgumentParser, default: Any) -> None:
    group = parser.add_argument_group("general")
    group.add_argument("--version", action="version", version=f"diffplugin {__version__}")
    words = {"quiet": "say nothing but errors", "verbose": "say more: what is loaded, built and cached"}
    for name, told in words.items():
        group.add_argument(f"-{name[0]}", f"--{name}", action="store_true", default=default, help=told)
    if default is argparse.SUPPRESS:
        return
    group.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=("bash", "zsh", "tcsh"),
        help="print a completion script for this shell",
    )


class _PrintCompletion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None) -> NoReturn:
        from diffplugin.completion import completion_script

        answer(completion_script(parser, values, path))
        parser.exit()


def path(text: str) -> Path:
    """A path; ``~`` is expanded."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # ~nosuch
        raise argparse.ArgumentTypeError(f"{text!r}: there is no such user") from None


def positive(text: str) -> int:
    """A number that counts something: 1 or more."""
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")


def sides(text: str) -> tuple[str, ...]:
    """The texts on both sides of the x of ``WxH``, width first; one text if there is no x."""
    return tuple(part.strip() for part in re.split(_TIMES, text))


def size(text: str) -> int | tuple[int, int]:
    """``N``, or ``WxH`` as (width, height), in pixels.

    Raises:
        ValueError: neither.
    """
    parts = sides(text)
    if len(parts) in (1, 2) and all(re.fullmatch(r"[1-9][0-9]{0,6}", part) for part in parts):
        return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))
    raise ValueError(text)


def say(*lines: str) -> None:
    """Print messages for people, a line each, on standard output. A full disk or a closed pipe loses only the
    messages.
    """
    print(*lines, sep="\n", flush=True)


def answer(text: str) -> None:
    """Print the command's answer on standard output.

    Raises:
        OSError: it could not be written.
    """
    print(text, flush=True)
    if isinstance(sys.stdout, Tolerant) and sys.stdout.failure is not None:
        failure = sys.stdout.failure
        if isinstance(failure, OSError):
            failure.filename = "stdout"
            raise failure
        raise OSError(f"stdout: {failure}")


def print_error(prog: str, message: str) -> None:
    """One line on stderr. A closed or full stderr does not stop the work."""
    print(f"{prog}: {' '.join(message.split())}", file=sys.stderr, flush=True)


def execute(
    prog: str,
    parse: Callable[[Sequence[str] | None], argparse.Namespace],
    run: Callable[[argparse.Namespace], int],
    argv: Sequence[str] | None = None,
    *,
    grace: float | None = GRACE_S,
) -> int:
    """Parse and run; returns the exit code. Any error is one line on stderr, never a traceback.

    Args:
        grace: seconds that running work has after a signal; None: no limit (a server that finishes its jobs).
    """
    with tolerant_streams():
        verbose = False
        try:
            with handled(prog, discard_unfinished, grace):
                args = parse(argv)
                verbose = getattr(args, "verbose", False)
                _configure_logging(prog, args)
                code = run(args)
            return code if stop_code() is None else _stopped()
        except SystemExit as end:  # --help, --version
            return end.code if isinstance(end.code, int) else int(bool(end.code))
        except BaseException as error:
            if stop_code() is not None:
                return _stopped()
            code, message = _outcome(prog, error)
            if message:
                print_error(prog, message)
            if verbose:
                _log.debug("", exc_info=error)
            return code


def _stopped() -> int:
    say_stopped()
    return stop_code() or INTERRUPTED


def _outcome(prog: str, error: BaseException) -> tuple[int, str]:
    """(exit code, message) of an exception; no message if the reader of our output went away."""
    message = str(error) or type(error).__name__
    for kind, code, said in (
        (KeyboardInterrupt, INTERRUPTED, "interrupted"),
        (Terminated, TERMINATED, "terminated"),
        (RequestError, USAGE, message),
        (DiffPluginError, FAILED, message),
        (BrokenPipeError, FAILED, ""),
        (MemoryError, FAILED, "out of memory"),
        (ImportError, FAILED, _missing(prog, error)),
        (UnicodeError, FAILED, f"text that is no Unicode: {message}"),
    ):
        if isinstance(error, kind):
            return code, said
    if isinstance(error, OSError):
        if error.strerror:
            message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        return FAILED, message
    return FAILED, (
        f"a fault of diffplugin {__version__} itself ({type(error).__name__}: {message}); "
        "-v shows where: please report it with that"
    )


def _missing(prog: str, error: BaseException) -> str:
    """The error line for a missing package: it names the extra that installs it."""
    needed = getattr(error, "name", None) or str(error)
    extra = next((command.extra for command in COMMANDS if command.name == prog), "")
    remedy = f"pip install 'diffplugin[{extra}]'" if extra else "pip install diffplugin"
    return f"needs the package {needed.partition('.')[0]} ({error}): {remedy}"


class _Lines(logging.Handler):
    """Log records as lines of the command, on the current standard error."""

    def __init__(self, prog: str) -> None:
        super().__init__()
        self.prog = prog

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text:
            print_error(self.prog, text)
        if record.exc_info:
            print(logging.Formatter().formatException(record.exc_info), file=sys.stderr)


def _configure_logging(prog: str, args: argparse.Namespace) -> None:
    """Log the package's warnings on stderr; with -v also its actions, with -q only errors."""
    level = logging.WARNING
    if getattr(args, "verbose", False):
        level = logging.DEBUG
    elif getattr(args, "quiet", False):
        level = logging.ERROR
    logger = logging.getLogger("diffplugin")
    logger.setLevel(level)
    logger.handlers = [handler for handler in logger.handlers if not isinstance(handler, _Lines)]
    logger.addHandler(_Lines(prog))
    logger.propagate = False


def enter(name: str, argv: Sequence[str] | None = None) -> int:
    """Import a command's module and run it."""
    if name == "diffplugin":
        return describe(argv)
    with tolerant_streams():
        command = next(command for command in COMMANDS if command.name == name)
        try:
            return int(importlib.import_module(command.module).main(argv))
        except Exception as error:
            if isinstance(error, ImportError) and (error.name or "").startswith("diffplugin"):
                raise
            code, message = _outcome(name, error)
            print_error(name, message)
            return code


def describe(argv: Sequence[str] | None = None) -> int:
    """``python -m diffplugin``: list the commands."""

    def run(args: argparse.Namespace) -> int:
        answer(f"diffplugin {__version__}: restore photographs on request. Commands:")
        for command in COMMANDS:
            extra = f" (pip install 'diffplugin[{command.extra}]')" if command.extra else ""
            answer(f"  {command.name:<10} {command.summary}{extra}")
        answer('Try: dp-infer photo.jpg "brighten this dark photo"; each command has --help.')
        return DONE

    parser = Parser(prog="python -m diffplugin", description="What there is in diffplugin.")
    add_common_options(parser)
    return execute("diffplugin", parser.parse_args, run, argv)
