"""One part in a process of its own: ``python -m diffplugin.bench.gpu_acceptance.worker JOB`` with a job as JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from diffplugin.bench.gpu_acceptance import parts
from diffplugin.bench.gpu_acceptance.job import Job
from diffplugin.bench.worker import answer

Result = dict[str, Any]


def _peer(job: Job, *, compiled: bool) -> Result:
    from diffplugin.bench.gpu_acceptance import peer

    return peer.measure(job, compiled=compiled)


def _card(name: str, job: Job) -> Result:
    from diffplugin.bench.gpu_acceptance import card

    made: Result = getattr(card, name)(job)
    return made


PARTS: dict[str, Callable[[Job], Result]] = {
    "build": parts.build,
    "goldens": parts.goldens,
    "cold start": parts.start,
    "replay": parts.replay,
    "fidelity": parts.fidelity,
    "measure": parts.measure,
    "pytorch eager": lambda job: _peer(job, compiled=False),
    "torch.compile": lambda job: _peer(job, compiled=True),
    "draw": parts.draw,
    **{name: partial(_card, name) for name in ("ceilings", "native", "networks")},
}

if __name__ == "__main__":
    sys.exit(answer(sys.argv, lambda job: PARTS[job["part"]](Job(**job))))
