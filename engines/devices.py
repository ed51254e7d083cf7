"""Devices by name: ``cpu``, ``cuda`` or ``cuda:1`` (NVIDIA), ``gpu`` or ``gpu:1`` (Intel), ``npu``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from diffplugin.errors import RequestError

KINDS = ("cpu", "cuda", "gpu", "npu")
_NUMBERED = ("cuda", "gpu")


@dataclass(frozen=True)
class Device:
    """Hardware that an engine runs on.

    Attributes:
        kind: of ``KINDS``.
        number: its index among devices of its kind.
    """

    kind: str
    number: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises:
        RequestError: there is no such device.
        """
        found = re.fullmatch(r"([a-z]+)(?::(\d{1,3}))?", str(text))  # from Python it may be anything
        if not found or found[1] not in KINDS or (found[2] and found[1] not in _NUMBERED):
            raise RequestError(
                f"device {text!r} is not understood; expected auto, cpu, cuda or cuda:N (NVIDIA), gpu or gpu:N "
                "(Intel), npu"
            )
        return cls(found[1], int(found[2] or 0))

    def __str__(self) -> str:
        return f"{self.kind}:{self.number}" if self.kind in _NUMBERED else self.kind
