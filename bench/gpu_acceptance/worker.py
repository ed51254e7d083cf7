"""One part in a process of its own: ``python -m diffplugin.bench.gpu_acceptance.worker TRIAL`` with a trial as JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from diffplugin.bench.gpu_acceptance import measured, operators, parts
from diffplugin.bench.gpu_acceptance.trial import Trial
from diffplugin.bench.worker import answer

Result = dict[str, Any]


def _peer(trial: Trial, *, compiled: bool) -> Result:
    from diffplugin.bench.gpu_acceptance import peer

    return peer.measure(trial, compiled=compiled)


def _card(name: str, trial: Trial) -> Result:
    from diffplugin.bench.gpu_acceptance import card

    made: Result = getattr(card, name)(trial)
    return made


PARTS: dict[str, Callable[[Trial], Result]] = {
    "build": parts.build,
    "operators": operators.operators,
    "goldens": parts.goldens,
    "cold start": parts.start,
    "replay": parts.replay,
    "fidelity": parts.fidelity,
    "measure": measured.measure,
    "pytorch eager": lambda trial: _peer(trial, compiled=False),
    "torch.compile": lambda trial: _peer(trial, compiled=True),
    "draw": parts.draw,
    "profile": measured.profile,
    **{
        name: partial(_card, name.replace(" ", "_")) for name in ("ceilings", "native", "networks", "compiled networks")
    },
}

if __name__ == "__main__":
    sys.exit(answer(sys.argv, lambda trial: PARTS[trial["part"]](Trial(**trial))))
