"""The validated settings of ``dp-serve``."""

from __future__ import annotations

import argparse
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from diffplugin.errors import RequestError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BYTES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}
_SHORTEST_TOKEN = 16


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one server.

    Attributes:
        bundles: folders; empty: the embedded model.
        workers: photos restored at the same time; None: as many as the machine has cores and memory for.
        max_queue: jobs that may wait.
        tokens: SHA-256 of a token -> its owner's name; empty: nobody needs one.
        keep_seconds: how long a finished job is kept.
        max_upload_bytes: of one request, all its files together.
        max_pixels: of one photo.
        state: folder of the queue and of the results.
        warm: (width, height) to prepare for.
        grace_seconds: time that running jobs have to finish after SIGTERM.
        read_seconds: the longest pause of a client while it sends.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    bundles: tuple[str, ...] = ()
    engine: str = "auto"
    precision: str = "auto"
    quality: str = "exact"
    threads: int | None = None
    workers: int | None = None
    max_queue: int = 256
    tokens: Mapping[bytes, str]
    keep_seconds: float = 3600
    max_upload_bytes: int = 64 * 2**20
    max_pixels: int = 50_000_000
    state: Path
    warm: tuple[int, int] = (256, 256)
    grace_seconds: float = 30
    read_seconds: float = 30

    def owner(self, authorization: str | None) -> str | None:
        """Name of the sender of this Authorization header; None: the token is unknown."""
        if not self.tokens:
            return ""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        digest, found = hashed(token.strip()), None
        for known, name in self.tokens.items():  # all of them: the time taken says nothing
            if hmac.compare_digest(known, digest):
                found = name
        return found

    @property
    def is_local(self) -> bool:
        return is_loopback(self.host)


def hashed(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def read_tokens(path: Path) -> dict[bytes, str]:
    """Tokens of a file: one a line, as ``TOKEN`` or ``NAME TOKEN``; lines that begin with # are comments.

    Raises:
        RequestError: the file cannot be read, has no token, or one that is too short or comes twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise RequestError(f"{path}: the token file cannot be read ({reason})") from None
    found: dict[bytes, str] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or line.startswith("#"):
            continue
        if len(words) > 2 or len(words[-1]) < _SHORTEST_TOKEN:
            raise RequestError(
                f"{path}: line {number} is no token; expected TOKEN or NAME TOKEN, "
                f"at least {_SHORTEST_TOKEN} characters long"
            )
        name = words[0] if len(words) == 2 else f"token-{len(found) + 1}"
        if hashed(words[-1]) in found or name in found.values():
            raise RequestError(f"{path}: line {number} repeats a token or a name")
        found[hashed(words[-1])] = name
    if not found:
        raise RequestError(f"{path}: no token in it; write one a line, for example from: openssl rand -hex 24")
    return found


def seconds(text: str) -> float:
    """``90``, ``90s``, ``15m``, ``1h``, ``7d`` as seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip().lower())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; expected a number with s, m, h or d, such as 1h")
    return float(match[1]) * _UNITS[match[2] or "s"]


def size_bytes(text: str) -> int:
    """``500``, ``64M``, ``1G`` as bytes."""
    match = re.fullmatch(r"(\d+)([kmg]?)(?:i?b)?", text.strip().lower())
    if not match or int(match[1]) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; expected a number with K, M or G, such as 64M")
    return int(match[1]) * _BYTES[match[2]]


def count(text: str) -> int:
    """A whole number of at least 1; thousands may be grouped with _."""
    plain = text.replace("_", "")
    if not plain.isdecimal() or int(plain) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number; expected 1 or more")
    return int(plain)


def pixels(text: str) -> tuple[int, int]:
    """``512x384`` as (width, height)."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text.strip().lower())
    if not match or min(int(match[1]), int(match[2])) < 8:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; expected WIDTHxHEIGHT, such as 512x512")
    return int(match[1]), int(match[2])
