"""The location of the embedded model's checkpoint: in the repository, if the package was installed from one."""

from __future__ import annotations

import importlib.metadata
import json
import urllib.parse
import urllib.request
from pathlib import Path

from diffplugin.errors import CheckpointError


def embedded_checkpoint_folder() -> Path:
    """Folder of the embedded model's checkpoint: in the clone or source distribution that this was installed from.

    Wheels leave it out: only export and training read it.

    Raises:
        CheckpointError: the package was installed from a wheel; the message names where to get it.
    """
    inside = Path("plugins", "embedded_checkpoint")
    places = [Path(__file__).resolve().parents[1] / inside]
    if source := _source_folder():
        places.append(source / inside)
    for place in places:
        if place.is_dir():
            return place
    repository = _repository()
    raise CheckpointError(
        f"{places[0]}: wheels do not carry the embedded model's checkpoint. It is in the repository and in the source "
        f"distribution: git clone {repository}, then pip install -e '.[export]' in the clone; "
        "or name another model with --base, --clip and --plugins"
    )


def _source_folder() -> Path | None:
    """The folder given to ``pip install .`` or ``pip install -e .``, from the installer's record (PEP 610)."""
    try:
        note = json.loads(importlib.metadata.distribution("diffplugin").read_text("direct_url.json") or "{}")
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
    url = urllib.parse.urlsplit(note.get("url", ""))
    return Path(urllib.request.url2pathname(url.path)) if url.scheme == "file" and "dir_info" in note else None


def _repository() -> str:
    """The repository's address, from the metadata of the installed distribution."""
    try:
        urls = importlib.metadata.metadata("diffplugin").get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:
        urls = []
    return next((url.split(", ")[1] for url in urls if url.startswith("Repository, ")), "the repository")
