"""Standard streams whose failures never stop the work: a closed, full or limited stream loses messages, never a photo.

Characters that a terminal cannot show are escaped. A failed write is remembered and the work goes on. If the answer
itself (``--json``, a list) was not written, the command fails (``diffplugin.command.execute``).
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

closed_at_start: set[int] = set()  # of the descriptors 0, 1 and 2


def open_standard_files() -> None:
    """Open the descriptors 0, 1 and 2 on the null device if the process started without them. Otherwise the next opened
    file, such as a photo, would get such a number, and a library's output would be written into it."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            closed_at_start.add(number)
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:  # its own descriptor: closing the object must not close the number
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123


class Tolerant:
    """A text stream that remembers failures instead of raising them.

    Attributes:
        failure: the first failure, or None.
    """

    def __init__(self, stream: Any) -> None:
        self.stream, self.failure = stream, None

    failure: Exception | None

    def write(self, text: str) -> int:
        try:
            self.stream.write(text)
        except (OSError, ValueError, AttributeError) as error:  # ValueError: closed; AttributeError: None
            self.failure = self.failure or error
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError, AttributeError) as error:
            self.failure = self.failure or error

    def isatty(self) -> bool:
        with suppress(OSError, ValueError, AttributeError):
            return bool(self.stream.isatty())
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def tolerant_streams() -> Iterator[tuple[Tolerant, Tolerant]]:
    """Context manager: make ``sys.stdout`` and ``sys.stderr`` tolerant; gives both."""
    if isinstance(sys.stdout, Tolerant) and isinstance(sys.stderr, Tolerant):
        yield sys.stdout, sys.stderr
        return
    before = sys.stdout, sys.stderr
    for stream in before:
        with suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    out, err = Tolerant(sys.stdout), Tolerant(sys.stderr)
    if 1 in closed_at_start:
        out.failure = OSError(9, "it is closed")
    sys.stdout, sys.stderr = out, err
    try:
        yield out, err
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before
        if out.failure:
            _discard(1, before[0])
        if err.failure:
            _discard(2, before[1])


def _discard(number: int, stream: Any) -> None:
    """Discard the stream, because Python flushes it once more at exit and would report a closed pipe or a full disk."""
    with suppress(OSError, ValueError, AttributeError):
        if stream.fileno() == number:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)


@contextmanager
def stdout_for_data() -> Iterator[BinaryIO]:
    """Context manager: reserve standard output for bytes; all other output, also from libraries, goes to stderr."""
    stream = sys.stdout
    stream.flush()
    try:
        number = stream.fileno()
    except (OSError, ValueError, AttributeError):  # replaced by an object without a file
        yield io.BytesIO() if getattr(stream, "buffer", None) is None else stream.buffer
        return
    own = os.dup(number)
    os.dup2(2, number)
    try:
        with os.fdopen(own, "wb", buffering=0, closefd=False) as raw:
            yield raw
    finally:
        stream.flush()
        os.dup2(own, number)
        os.close(own)
