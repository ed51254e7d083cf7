"""What tells that a prepared folder is whole: its files' hashes, and the code that wrote it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import diffplugin
from diffplugin.bench.gpu_acceptance.trial import PREPARED
from diffplugin.errors import RequestError
from diffplugin.integrity import sha256

FORMAT = 3
_AGAIN = "prepare it again: python -m diffplugin.bench.gpu_acceptance.prepare DIR"


def code() -> str:
    """SHA-256 of the package's modules: the same wherever the same code is installed."""
    root, found = Path(diffplugin.__file__).parent, hashlib.sha256()
    for file in sorted(root.rglob("*.py"), key=lambda file: file.relative_to(root).as_posix()):
        found.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return found.hexdigest()


def by_this_code(folder: Path) -> bool:
    """Whether the code that runs is the code that wrote the folder."""
    told = json.loads((folder / PREPARED).read_text(encoding="utf-8"))
    return bool(told["code"] == code())


def seal(folder: Path, **conditions: Any) -> None:
    """Write ``prepared.json``: the conditions, the code, and every file's hash."""
    files = {file.relative_to(folder).as_posix(): sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()}
    told = {"format": FORMAT, **conditions, "code": code(), "files": files}
    (folder / PREPARED).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def read(folder: Path, engine: str) -> dict[str, Any]:
    """The conditions of a folder that is whole and for this engine.

    Raises:
        RequestError: it is no such folder, of another version, for another engine, or a file is missing or damaged.
    """
    what = f"--prepared {folder}"
    try:
        told = json.loads((folder / PREPARED).read_text(encoding="utf-8"))
        form = told["format"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f"{PREPARED}: {getattr(error, 'strerror', None) or error}"
        raise RequestError(f"{what}: not a folder of bench.gpu_acceptance.prepare ({reason})") from None
    if form != FORMAT:
        raise RequestError(f"{what}: is in format {form}, this program reads {FORMAT}; {_AGAIN}")
    if engine != told["engine"]:
        raise RequestError(f"{what}: is for --engine {told['engine']}, not {engine}")
    for name, expected in told["files"].items():
        if not (folder / name).is_file():
            raise RequestError(f"{what}: {name} is missing; copy the folder again")
        if sha256(folder / name) != expected:
            raise RequestError(f"{what}: {name} is damaged; copy the folder again")
    found: dict[str, Any] = told
    return found
