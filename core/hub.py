"""Bundles by name: ``hf:user/name[@revision]``, fetched once from the Hugging Face hub.

``HF_TOKEN``, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` are honoured. A bundle is stored as plain files below the cache
folder (``hub/user/name/revision``), since engines refuse weights that are links.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from diffplugin.errors import BundleError, MissingDependency, RequestError

PREFIX = "hf:"
CARD = "README.md"
_NAME = re.compile(r"hf:([A-Za-z0-9][\w.-]{0,95})/([A-Za-z0-9][\w.-]{0,95})(?:@([\w./-]{1,200}))?")


@dataclass(frozen=True)
class HubName:
    """A bundle in the hub; ``revision`` is a branch, a tag or a commit."""

    owner: str
    name: str
    revision: str = "main"

    @property
    def repository(self) -> str:
        return f"{self.owner}/{self.name}"


def parse_name(text: str) -> HubName:
    """Raises:
    RequestError: not ``hf:user/name`` or ``hf:user/name@revision``.
    """
    match = _NAME.fullmatch(text)
    if match is None or ".." in text:
        raise RequestError(f"{text!r} is no bundle in the hub; expected hf:user/name or hf:user/name@revision")
    return HubName(match[1], match[2], match[3] or "main")


def fetch_bundle(text: str, cache: Path) -> Path:
    """The local folder of a bundle in the hub; files that are missing locally are downloaded.

    Args:
        text: ``hf:user/name[@revision]``.
        cache: the folder below which it is stored.

    Raises:
        RequestError: the name is not valid.
        MissingDependency: huggingface_hub is not installed.
        BundleError: it is neither in the hub nor in the cache, or it is incomplete.
    """
    name = parse_name(text)
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingDependency(f"{text}: needs huggingface_hub: pip install 'diffplugin[hub]'") from None
    folder = cache / "hub" / name.owner / name.name / name.revision.replace("/", "--")
    try:
        snapshot_download(
            name.repository,
            revision=name.revision,
            local_dir=folder,
            library_name="diffplugin",
            ignore_patterns=[CARD, ".gitattributes"],
        )
    except Exception as error:  # the hub client has a dozen kinds for "not there" and "no network"
        if not (folder / "manifest.json").is_file():
            raise BundleError(f"{text}: not found in the hub: {_reason(error)}") from None
    _check_whole(text, folder)
    return folder


def _check_whole(text: str, folder: Path) -> None:
    """Raises:
    BundleError: a file of the manifest is missing or has another size: a download was interrupted.
    """
    from diffplugin.manifest import MANIFEST, Manifest

    if not (folder / MANIFEST).is_file():
        raise BundleError(f"{text}: no {MANIFEST} there, so no bundle; push one with dp-export --push-to")
    for file, entry in Manifest.read(folder).files.items():
        path = folder / file
        if not path.is_file() or path.stat().st_size != entry.bytes:
            raise BundleError(f"{text}: {file} is missing or not whole in {folder}; go online and load it again")


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
