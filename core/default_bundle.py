"""The bundle that a command uses by default: the last one that dp-export put into the cache folder, else the embedded
model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from diffplugin.bundle import cache_folder, default_bundle
from diffplugin.errors import BundleError
from diffplugin.files import write_text
from diffplugin.manifest import MANIFEST, Manifest

EMBEDDED = "embedded"  # the word on the command line for the model in the package; ./embedded is a folder
_LATEST = "latest"  # file that names the bundle of the last export, in the folder of bundles


@dataclass(frozen=True, kw_only=True)
class BundleChoice:
    """A bundle's folder. ``note``: why it was chosen, if it was not named and is not the embedded model; ``fallback``:
    the embedded model may replace it."""

    path: Path
    note: str = ""
    fallback: bool = False


def bundles_folder() -> Path:
    """The folder where dp-export puts bundles without ``--out``."""
    return cache_folder() / "bundles"


def set_latest(bundle: Path) -> bool:
    """Make ``bundle`` the default of all commands; returns False if it is not in :func:`bundles_folder`.

    Raises:
        BundleError: the cache folder cannot be written.
    """
    folder = bundles_folder()
    if bundle.resolve().parent != folder.resolve():
        return False
    try:
        write_text(folder / _LATEST, f"{bundle.name}\n")
    except OSError as error:
        raise BundleError(f"{folder}: cannot be written ({error.strerror})") from None
    return True


def choose_bundle(asked: str | os.PathLike[str] | None = None) -> BundleChoice:
    """The bundle that a command uses.

    Args:
        asked: a folder, or ``embedded`` for the embedded model; None: the last export, if it can be read.
    """
    if asked is not None:
        return BundleChoice(path=default_bundle() if asked == EMBEDDED else Path(asked).expanduser())
    latest = latest_bundle()
    if latest is None:
        gone = _last_export()
        note = f"the model in the package, since the last export, {gone}, is gone; run dp-export again" if gone else ""
        return BundleChoice(path=default_bundle(), note=note)
    try:
        Manifest.read(latest)
    except BundleError as error:
        return BundleChoice(path=default_bundle(), note=f"the model in the package, since {error}")
    note = f"the last export, {latest}; --bundle {EMBEDDED}: the model in the package"
    return BundleChoice(path=latest, note=note, fallback=True)


def latest_bundle() -> Path | None:
    """The bundle of the last export into the cache folder, if it still exists."""
    found = _last_export()
    return found if found is not None and (found / MANIFEST).is_file() else None


def _last_export() -> Path | None:
    """The folder of the last export into the cache folder, whether it still exists or not."""
    try:
        folder = bundles_folder()
        name = (folder / _LATEST).read_text(encoding="utf-8").strip()
    except (OSError, ValueError, RuntimeError):  # RuntimeError: this user has no home
        return None
    return folder / name if name and Path(name).name == name else None
