"""Threads of engines: how many are worth starting on this machine, and whether they can be started."""

from __future__ import annotations

import math
import os
import threading
from pathlib import Path

from diffplugin.control_groups import cpu_quota, spare_threads
from diffplugin.errors import EngineError, RequestError


def usable_cores() -> int:
    """Cores that this process may use: physical ones of its affinity (two threads on one core gain nothing in dense
    arithmetic), at most as many as its control group's quota of processor time and ``OMP_NUM_THREADS`` allow."""
    limits = [_physical_cores()]
    if (quota := cpu_quota()) is not None:
        limits.append(max(1, math.ceil(quota)))
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if asked.isdecimal() and int(asked):
        limits.append(int(asked))
    return min(limits)


def _physical_cores() -> int:
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    try:
        cores = {Path(f"/sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list").read_text() for n in allowed}
    except OSError:
        return len(allowed)
    return len(cores)


def thread_count(threads: int | None) -> int:
    """``threads``, or :func:`usable_cores` if it is None.

    Raises:
        RequestError: not positive.
    """
    if threads is not None and threads < 1:
        raise RequestError(f"threads is {threads}, expected 1 or more, or None for all cores")
    return threads or usable_cores()


def engine_threads(threads: int | None) -> int:
    """Threads of one run of an engine on this machine: :func:`thread_count`, and no more than there are processors.

    Raises:
        RequestError: not positive.
        EngineError: so many threads cannot be started: libraries would wait forever for the missing ones.
    """
    count = min(thread_count(threads), max_threads())
    _check_startable(count)
    return count


def max_threads() -> int:
    """Processors that this process may use at once; additional threads would only wait for each other."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return processors if quota is None else max(1, min(processors, math.ceil(quota)))


def _check_startable(threads: int) -> None:
    spare = spare_threads()
    started = threads if spare is None else min(threads, spare)
    if started == threads:
        started = _startable(threads)
    if started < threads:
        raise EngineError(
            f"threads is {threads}, but only {started} more can be started here (a limit on processes: pids.max of the "
            f"container, or ulimit -u); use --threads {max(1, started // 2)} or raise the limit"
        )


def _startable(threads: int) -> int:
    """How many of this many threads can be started at once; they end before this returns."""
    done = threading.Event()
    waiting: list[threading.Thread] = []
    try:
        for _ in range(threads - 1):  # the caller's own is one
            thread = threading.Thread(target=done.wait, daemon=True)
            thread.start()
            waiting.append(thread)
    except RuntimeError:  # can't start new thread
        return len(waiting)
    finally:
        done.set()
        for thread in waiting:
            thread.join()
    return threads
