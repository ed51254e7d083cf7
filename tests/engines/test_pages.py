"""Pages of mapped files are given back, and come again."""

from __future__ import annotations

import mmap
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from diffplugin.engines.pages import release_pages, releasing


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_read_only_pages_go_and_written_ones_stay(tmp_path: Path, resident: Callable[[Path], int]) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"\x07" * 2**20)
    with path.open("rb") as file:
        shared = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        private = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    private[:4096] = b"\x09" * 4096
    assert sum(shared[::4096]) == 7 * 256
    assert resident(path) >= 1024
    assert release_pages(path) == 2**20
    assert resident(path) < 1024, "the pages of the read-only mapping are still there"
    assert private[0] == 9, "a written page was thrown away"
    assert sum(shared[::4096]) == 7 * 256
    shared.close()
    private.close()
    assert release_pages(path) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_pages_go_while_a_block_reads_them(tmp_path: Path, resident: Callable[[Path], int]) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"\x07" * 2**20)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as shared:
        with releasing([path], every=0.01):
            assert sum(shared[::4096]) == 7 * 256
            until = time.monotonic() + 10
            while (inside := resident(path)) >= 1024 and time.monotonic() < until:
                time.sleep(0.01)
            assert inside < 1024, f"{inside} KiB stayed while the block ran"
            assert sum(shared[::4096]) == 7 * 256
        assert resident(path) < 1024


_REUSE = """
import resource, sys
import numpy as np
if sys.argv[1] == "keep":
    from diffplugin.engines.pages import keep_freed_memory
    keep_freed_memory()

def touch():
    return [np.ones(24 * 2**20, np.uint8) for _ in range(3)] and None

touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc only")
def test_freed_maps_are_used_again() -> None:
    """Blocks of 24 MiB, as maps of a picture are, freed together: the system clears no page of them twice."""
    faults = {
        how: int(subprocess.run([sys.executable, "-P", "-c", _REUSE, how], capture_output=True, check=True).stdout)
        for how in ("keep", "default")
    }
    assert faults["keep"] < 1000 < faults["default"], faults
