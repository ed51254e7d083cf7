"""What the stand-in's log says: calls between two marks, and inside a capture."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

_TRANSPOSE = re.compile(r"transpose", re.IGNORECASE)


@dataclass
class Part:
    """Calls from one mark to the next.

    Attributes:
        plain, captured: lines by kind, outside of captures and inside the last one: "kernel", "lib", "memcpy H2D", …
        transposes: kernels that move a map from one layout to another.
        devices: numbers of the devices that kernels and allocations were on.
    """

    plain: Counter[str] = field(default_factory=Counter)
    captured: Counter[str] = field(default_factory=Counter)
    transposes: int = 0
    devices: set[int] = field(default_factory=set)

    @property
    def launches(self) -> int:
        """Kernels and library calls, plain."""
        return self.plain["kernel"] + self.plain["lib"]


class Log:
    """The log of this process, from where it stands now on."""

    def __init__(self) -> None:
        self._file = Path(os.environ["STANDIN_LOG"])
        self._file.touch()
        self._at = self._file.stat().st_size

    def part(self) -> Part:
        """What has been logged since the last call."""
        with self._file.open(encoding="utf-8", errors="replace") as file:
            file.seek(self._at)
            lines = file.read().splitlines()
            self._at = file.tell()
        made, inside = Part(), False
        for line in lines:
            words = line.split()
            kind = " ".join(words[:2]) if words[0] in ("memcpy", "MEMCPYSYNC") else words[0]
            if kind in ("ENDCAPTURE", "BROKENCAPTURE"):
                inside = False
            if kind == "BEGINCAPTURE":
                made.captured.clear()
            (made.captured if inside else made.plain)[kind] += 1
            inside = inside or kind == "BEGINCAPTURE"
            made.transposes += kind == "kernel" and bool(_TRANSPOSE.search(line))
            if found := re.search(r"device=(\d+)", line):
                made.devices.add(int(found[1]))
        return made
