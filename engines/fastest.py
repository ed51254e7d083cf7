"""The fastest floating-point precision or engine, measured once per machine, not derived from a processor's flags.

Native bf16 halves the time of a UNet step on one processor and takes 1.5 times that of float32 on another (an Intel
one with AVX512-BF16 and without AMX, bench/results/full-512): both report the same capability.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from diffplugin.bundle import cache_folder
from diffplugin.files import write_text

_log = logging.getLogger("diffplugin")
_FILE = "fastest.json"
_REPEATS = 5


def fastest_first(name: str, choices: Sequence[str], runner: Callable[[str], Callable[[], object]]) -> tuple[str, ...]:
    """``choices`` (precisions, or engines) in order of their speed on this machine, remembered in the cache folder.

    Args:
        name: engine, version and device to which the order belongs.
        runner: choice -> a function that runs something representative: an operator, or a graph.
    """
    file = cache_folder() / _FILE
    known = _read(file)
    if sorted(known.get(name, ())) == sorted(choices):
        return tuple(known[name])
    runs = {choice: runner(choice) for choice in choices}
    best = dict.fromkeys(choices, float("inf"))
    for _ in range(_REPEATS):  # in turn, the least of each: other work on the machine only adds
        for choice, run in runs.items():
            began = time.perf_counter()
            run()
            best[choice] = min(best[choice], time.perf_counter() - began)
    order = sorted(choices, key=best.__getitem__)
    _write(file, known | {name: order})
    return tuple(order)


def _read(file: Path) -> dict[str, list[str]]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(file: Path, known: Mapping[str, Sequence[str]]) -> None:
    """Write in one step; if the cache cannot be written, the next start takes the time of the measurement again."""
    try:
        write_text(file, json.dumps(known, indent=1, sort_keys=True))
    except OSError as error:
        _log.debug("%s: not kept (%s)", file, error)
