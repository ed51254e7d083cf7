"""What goes on around a measurement: memory of this process, and who else had the processor (Linux)."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

# A sample is contended where others had more than this share of the usable cores' time.
CONTENDED = 0.05
_TICKS = 4  # of 10 ms: what the kernel's own accounting may be off in a short sample


def _cores() -> tuple[float, float] | None:
    """(busy, stolen) seconds of the cores that this process may use, since boot; None: unknown here."""
    try:
        lines = Path("/proc/stat").read_text(encoding="ascii").splitlines()
        allowed = {f"cpu{n}" for n in os.sched_getaffinity(0)}
    except (OSError, AttributeError):
        return None
    tick = os.sysconf("SC_CLK_TCK")
    busy = stolen = 0
    for line in lines:
        name, *fields = line.split()
        if name in allowed:
            user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
            busy, stolen = busy + user + nice + system + irq + softirq, stolen + steal
    return busy / tick, stolen / tick


def shares(*, wall: float, own: float, busy: float, stolen: float, cores: int) -> dict[str, float | bool]:
    """What others took during a sample, as shares of the cores' time.

    Args:
        wall, own, busy, stolen: seconds that passed, that this process computed, that the cores were busy, and that
            the hypervisor gave away.

    Returns:
        ``others``, ``steal``, and whether they make the sample ``contended``.
    """
    room = max(wall * cores, 1e-9)
    others = max(busy - own, 0.0)
    lost = others + stolen
    contended = lost > CONTENDED * room and lost > _TICKS * 0.01
    return {"others": round(others / room, 4), "steal": round(stolen / room, 4), "contended": contended}


class Sample:
    """Context: wall and CPU seconds of a block, and who else computed meanwhile.

    Attributes:
        wall, cpu: seconds; ``cpu`` of all threads of this process.
        contention: as :func:`shares` gives it; None where the system does not tell.
    """

    wall: float
    cpu: float
    contention: dict[str, float | bool] | None

    def __enter__(self) -> Self:
        self._before = _cores()
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wall, self.cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        after = _cores()
        self.contention = None
        if self._before is not None and after is not None:
            busy, stolen = after[0] - self._before[0], after[1] - self._before[1]
            cores = len(os.sched_getaffinity(0))
            self.contention = shares(wall=self.wall, own=self.cpu, busy=busy, stolen=stolen, cores=cores)


def memory() -> dict[str, int]:
    """Bytes of this process: ``peak`` resident so far, and ``anonymous`` now.

    Pages of mapped weight files count in the peak, but the system takes them back when it needs them; the anonymous
    ones are what a process really holds.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return {"peak": 0, "anonymous": 0}
    found = dict(re.findall(r"^(VmHWM|RssAnon):\s+(\d+) kB", status, re.MULTILINE))
    return {"peak": int(found.get("VmHWM", 0)) * 1024, "anonymous": int(found.get("RssAnon", 0)) * 1024}


class AnonymousPeak:
    """Largest anonymous memory of this process, looked at 20 times a second by a thread."""

    def __init__(self, seconds: float = 0.05) -> None:
        self._peak, self._seconds = 0, seconds
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self._peak = max(self._peak, memory()["anonymous"])
            time.sleep(self._seconds)

    def bytes(self) -> int:
        self._peak = max(self._peak, memory()["anonymous"])
        return self._peak
