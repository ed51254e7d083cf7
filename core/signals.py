"""Ctrl-C, SIGTERM and a closed terminal end a command cleanly: one line, a specific exit code, no files left behind.

A signal raises KeyboardInterrupt or :class:`Terminated` in the main thread, so that the work unwinds. Two cases need
more than an exception. A library may swallow an exception raised inside its callback; :func:`stop_requested` still
reports the signal. And native code may not return to the interpreter for minutes: after ``GRACE_S`` seconds, or at a
second signal, a watching thread removes unfinished files and ends the process.

This module is imported before all others, so it imports little itself.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

INTERRUPTED, TERMINATED, HUNG_UP = 130, 143, 129
GRACE_S = 8.0  # container runtimes kill 10 seconds after SIGTERM
ECHO_S = 1.0  # shells and supervisors send a signal along to whom the terminal has sent it already

_CODES = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
if hasattr(signal, "SIGHUP"):
    _CODES[signal.SIGHUP] = HUNG_UP
_SAID = {INTERRUPTED: "interrupted", TERMINATED: "terminated", HUNG_UP: "terminated: the terminal was closed"}


class Terminated(BaseException):
    """SIGTERM or SIGHUP was received. Unwinds like KeyboardInterrupt, so that temporary files are removed."""


class _State:
    """The signal state of this process; one command runs in it at a time."""

    prog = ""
    code: int | None = None  # of the first signal
    since = 0.0
    said = False


_state = _State()


def stop_requested() -> bool:
    """Whether a signal asked the running command to stop."""
    return _state.code is not None


def stop_code() -> int | None:
    """The exit code of the signal received, or None."""
    return _state.code


def say_stopped() -> None:
    """Print the one line of a command that a signal ended; a second call prints nothing."""
    if _state.code is not None and not _state.said:
        _state.said = True
        with suppress(OSError):  # not through sys.stderr, which the interrupted code may be in the middle of
            os.write(2, f"{_state.prog}: {_SAID[_state.code]}\n".encode("ascii", "backslashreplace"))


def exit_at_once(prog: str) -> None:
    """Before a command runs there is nothing to clean up: a signal prints one line and ends the process.

    A signal that was ignored when the process started stays ignored (``nohup``; a shell's background jobs).
    """
    _state.prog = prog

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        _state.code = _CODES[signal.Signals(number)]
        say_stopped()
        os._exit(_state.code)

    _set_handlers(leave)


def exit_with(code: int) -> None:
    """Exit after the command is done. A signal while the interpreter ends exits at once, with the code already decided.

    If a signal ended the command, exit at once: the interrupted work may hold something that others wait for (the
    import lock that a library's thread needs).
    """

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        os._exit(code)

    _set_handlers(leave)
    signal.set_wakeup_fd(-1)
    if stop_requested():
        os._exit(code)


@contextmanager
def handled(prog: str, clean_up: Callable[[], None], grace: float | None = GRACE_S) -> Iterator[None]:
    """Context manager: signals unwind the work inside.

    Args:
        clean_up: removes unfinished files when the work can no longer unwind. It is called from another thread.
        grace: seconds that the work has to unwind; None: no limit (a server that finishes its jobs).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.prog, _state.code, _state.said = prog, None, False

    def unwind(number: int, frame: FrameType | None) -> None:
        if _state.code is not None:
            if time.monotonic() - _state.since > ECHO_S:
                _leave(clean_up, number)
            return
        _state.code, _state.since = _CODES[signal.Signals(number)], time.monotonic()
        if _state.code == INTERRUPTED:
            raise KeyboardInterrupt
        raise Terminated

    hook = sys.unraisablehook
    sys.unraisablehook = _quiet_hook
    try:
        with _watched(clean_up, grace, lambda number: signal.getsignal(number) is unwind):
            before = _set_handlers(unwind)
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)
    finally:
        sys.unraisablehook = hook


def _set_handlers(handler: Callable[[int, FrameType | None], None]) -> dict[signal.Signals, Any]:
    """Install handlers for the signals that are not ignored; returns the former ones."""
    before = {number: signal.getsignal(number) for number in _CODES}
    before = {number: former for number, former in before.items() if former not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    return before


def _quiet_hook(unraisable: Any) -> None:
    """Do not report an interrupt inside a finalizer: the work learns of it from ``stop_requested``."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt | Terminated):
        sys.__unraisablehook__(unraisable)


def _leave(clean_up: Callable[[], None], number: int) -> NoReturn:
    """End the process now."""
    if _state.code is None:  # native code has kept the handler waiting
        _state.code = _CODES[signal.Signals(number)]
    try:
        clean_up()
    finally:
        say_stopped()
        os._exit(_state.code)


@contextmanager
def _watched(clean_up: Callable[[], None], grace: float | None, ours: Callable[[int], bool]) -> Iterator[None]:
    """Run a thread that is notified of signals even while native code holds the main thread.

    Args:
        ours: whether this signal is still handled by this module; a server inside may have taken it over.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    over = threading.Event()

    def wait(number: int) -> None:
        if not over.wait(grace):
            _leave(clean_up, number)

    def watch() -> None:
        began = None
        while told := os.read(read, 1):
            if told[0] not in _CODES or not ours(told[0]):
                continue
            if began is None:
                began = time.monotonic()
                threading.Thread(target=wait, args=(told[0],), daemon=True, name="diffplugin-grace").start()
            elif time.monotonic() - began > ECHO_S and not over.wait(ECHO_S / 10):
                _leave(clean_up, told[0])

    former = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    thread = threading.Thread(target=watch, daemon=True, name="diffplugin-signals")
    thread.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(former)
        os.close(write)  # ends the thread
        thread.join()
        os.close(read)


_masks = threading.local()  # of threads that are about to fork


def _before_fork() -> None:
    _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, list(_CODES))


def _after_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _masks.before)


def _in_child() -> None:
    """Restore default signals in a forked child (a loader of training data): it is not a command."""
    if _state.prog:
        signal.set_wakeup_fd(-1)
        for number in _set_handlers(lambda number, frame: None):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _after_fork()


if hasattr(os, "register_at_fork"):  # a signal that came in between would be told to the parent's watching thread
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)
