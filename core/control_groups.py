"""Processors, memory and threads that this process's control group allows: the limits of containers and services.

Version 1 and 2, https://docs.kernel.org/admin-guide/cgroup-v2.html.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def folders(controller: str) -> Iterator[tuple[Path, bool]]:
    """(folder, is version 2) of the group and of all its parents, for one controller.

    A container that sees its own group at the root of the file system finds it there.
    """
    for line in _read(MEMBERSHIP).splitlines():
        _, controllers, place = line.split(":", 2)
        version_2 = not controllers
        if not version_2 and controller not in controllers.split(","):
            continue
        # cpu and cpuacct are one folder, and each a link to it
        root = ROOT if version_2 else next((r for r in (ROOT / controllers, ROOT / controller) if r.is_dir()), ROOT)
        inner = PurePosixPath(place).relative_to("/") if place.startswith("/") else PurePosixPath()
        yield from ((root / part, version_2) for part in (inner, *inner.parents))


def cpu_quota() -> float | None:
    """Processors whose time the group may use, the smallest of all limits (1.5: one and a half); None: no limit."""
    quotas = []
    for folder, version_2 in folders("cpu"):
        if version_2:
            numbers = _read(folder / "cpu.max").split()
        else:
            numbers = [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
        if len(numbers) == 2 and all(number.isdecimal() and int(number) for number in numbers):
            quotas.append(int(numbers[0]) / int(numbers[1]))
    return min(quotas, default=None)


def spare_memory() -> int | None:
    """Bytes that the group may still use, the smallest of all limits, page cache not counted as used; None: no
    limit.
    """
    spare = []
    for folder, version_2 in folders("memory"):
        names = ("memory.max", "memory.current") if version_2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        limit, used = (_read(folder / name).strip() for name in names)
        if limit.isdecimal() and used.isdecimal():
            cache = re.search(r"^(?:total_)?inactive_file (\d+)", _read(folder / "memory.stat"), re.MULTILINE)
            spare.append(max(0, int(limit) - int(used) + (int(cache[1]) if cache else 0)))
    return min(spare, default=None)


def spare_threads() -> int | None:
    """Threads that the group may still start, the smallest of all limits; None: no limit."""
    spare = []
    for folder, _ in folders("pids"):
        limit, used = (_read(folder / name).strip() for name in ("pids.max", "pids.current"))
        if limit.isdecimal() and used.isdecimal():
            spare.append(max(0, int(limit) - int(used)))
    return min(spare, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
