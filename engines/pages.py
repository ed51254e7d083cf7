"""Memory between this process and the system: pages of mapped files that an engine has copied, and memory that it has
freed."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_DONTNEED = 4  # MADV_DONTNEED
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_MOST_KEPT = 32 * 2**20  # bytes: the highest threshold that glibc takes
_kept = threading.Event()  # by a command
# of memory that libraries keep for themselves: each returns to the system what nobody uses now
keepers: list[Callable[[], None]] = []


def release_pages(path: Path) -> int:
    """Drop the resident pages of this process's read-only mappings of a file; they are read again if touched.

    Safe at any time: a page that cannot have been written is the file's. Does nothing but on Linux.

    Returns:
        Bytes of address space released.
    """
    if sys.platform != "linux":
        return 0
    name = str(path.resolve())
    libc = ctypes.CDLL(None)
    freed = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        # address, permissions, offset, device, inode, name
        parts = line.split(maxsplit=5)
        if len(parts) == 6 and parts[5] == name and "w" not in parts[1]:
            begin, end = (int(part, 16) for part in parts[0].split("-"))
            if libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _DONTNEED) == 0:
                freed += end - begin
    return freed


def keep_freed_memory() -> None:
    """Let the C library keep what this process frees, up to 32 MiB a piece, for its next request: it otherwise returns
    every map of a picture to the system and has it cleared again, page by page, a fifth of a restoration's time. For
    commands, which own their process. Works only with glibc.
    """
    _kept.set()
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _MOST_KEPT)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_memory(*, at_end: bool = False) -> None:
    """Return to the system freed memory that libraries (:data:`keepers`) and the C library keep for later; of the
    latter only glibc can.

    Args:
        at_end: of this use; a command ends then, so that it has nothing to do.
    """
    if at_end and _kept.is_set():
        return
    for give_back in keepers:
        give_back()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def releasing(paths: Iterable[Path], every: float = 0.1) -> Iterator[None]:
    """Release the pages of mapped files repeatedly while the block copies from them, and once at its end: gigabytes of
    weights then pass through memory without being in it all at once.

    Args:
        every: seconds between two releases.
    """
    files, done = tuple(paths), threading.Event()

    def release() -> None:
        while True:
            last = done.wait(every)
            for path in files:
                release_pages(path)
            if last:
                return

    thread = threading.Thread(target=release, name="releasing")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
