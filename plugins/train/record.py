"""What a work folder's states were made from: another data set, side or card there is refused, never trained on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffplugin.errors import RequestError
from diffplugin.plugins.train import layout

_EDGE = 1 << 20  # bytes of a weights file's head and tail that stand for it


def claim(path: Path, inputs: Mapping[str, Any], *, restart: bool = False) -> bool:
    """Take ``path`` (a state or a folder) for a training with these ``inputs``, kept beside it as JSON.

    Returns:
        Whether it was taken before, with equal inputs.

    Raises:
        RequestError: it was made from other inputs; each difference is named. With ``restart`` it is removed instead.
    """
    note = path.with_name(f"{path.name}.inputs.json")
    wanted = json.loads(json.dumps(inputs))
    known = _read(note)
    if path.exists() and known != wanted and not restart:
        before, now = _flat(known or {}), _flat(wanted)
        differs = [
            f"{key} was {_short(before.get(key))}, now {_short(now.get(key))}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        why = "; ".join(differs) if known is not None else "nothing says what it was made from"
        raise RequestError(f"{path}: {why}. Take another --work folder, or --restart to begin anew")
    if path.exists() and (known != wanted or restart):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    taken = path.exists()
    if not taken or known != wanted:
        layout.write_json(note, wanted)
    return taken


def _read(note: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _flat(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of a recipe and plugins by their own names, so that the one that differs is named."""
    flat: dict[str, Any] = {}
    for key, value in inputs.items():
        flat |= {f"{key} {name}": v for name, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def weights_key(*files: Path) -> str:
    """Sixteen hexadecimal digits that stand for weights files, without reading gigabytes: size, head and tail."""
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        digest.update(f"{size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(_EDGE))
            file.seek(max(size - _EDGE, 0))
            digest.update(file.read(_EDGE))
    return digest.hexdigest()[:16]


def text_key(text: str) -> str:
    """Sixteen hexadecimal digits of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
