"""Photos from standard input and to standard output."""

from __future__ import annotations

import sys
from typing import BinaryIO

from diffplugin.errors import ImageError, RequestError

MAX_BYTES = 2**31  # of a file that is piped in; pixels are counted when its header is read


def check_pipes(*, reads: bool, writes: bool) -> None:
    """Raises:
    RequestError: the other end is a terminal, not a file.
    """
    if reads and _is_terminal(sys.stdin):
        raise RequestError("stdin is a terminal, expected a photo: cat photo.jpg | dp-infer - ...")
    if writes and _is_terminal(sys.stdout):
        raise RequestError("stdout is a terminal, expected a file or a pipe: dp-infer ... -o - > restored.png")


def _is_terminal(stream: object) -> bool:
    isatty = getattr(stream, "isatty", None)
    return bool(isatty and isatty())


def read_stdin() -> bytes:
    """Read all of standard input.

    Raises:
        ImageError: the input is empty, too large, or closed.
    """
    try:
        content = sys.stdin.buffer.read(MAX_BYTES + 1)
    except (OSError, ValueError, AttributeError) as error:
        raise ImageError(f"stdin: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not content:
        raise ImageError("stdin: empty (0 bytes), expected a photo")
    if len(content) > MAX_BYTES:
        raise ImageError(f"stdin: more than {MAX_BYTES:,} bytes came, expected one photo")
    return content


def write_all(stream: BinaryIO, content: bytes) -> None:
    """Write everything, even if a pipe takes only part of it at a time.

    Raises:
        OSError: the reader closed the pipe, or the disk is full.
    """
    rest = memoryview(content)
    try:
        while rest:
            rest = rest[stream.write(rest) :]
    except OSError as error:
        error.filename = "stdout"
        raise
