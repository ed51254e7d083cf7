"""Finds the parts of a model: in a user's folders, and the embedded model's checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from diffplugin.errors import CheckpointError
from diffplugin.export.checkpoints.checkpoint import SELECTOR_FILE, SELECTOR_FOLDER, Checkpoint
from diffplugin.export.checkpoints.single_file import SUFFIXES
from diffplugin.export.embedded import embedded_checkpoint_folder
from diffplugin.export.reading import exists, is_file, is_folder, names_in

DIAGNOSIS_FOLDER = "diagnosis"
_FOLDERS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def find(base: Path, clip: Path, plugins: Path, wanted: Iterable[str] = ()) -> Checkpoint:
    """The parts of a model, checked for presence; ``wanted``: plugin ids, none for all in the tree.

    Args:
        base: a diffusers folder, or a single file in the original layout.
        clip: a CLIP folder.
        plugins: the released tree ``pre-trained/<task>/{tpb.pt,scb/}`` (some with ``head/``) with
            ``plugin_selector/PromptTunner.pt``.

    Raises:
        CheckpointError: naming every folder or file that is missing, at once.
    """
    faults = _base_faults(base)
    if not exists(clip / "config.json"):
        faults.append(f"{clip / 'config.json'}: missing")
    try:
        there = {name: plugins / name for name in names_in(plugins) if exists(plugins / name / "tpb.pt")}
    except CheckpointError as error:
        there = {}
        faults.append(str(error))
    asked = list(dict.fromkeys(wanted))
    chosen = {plugin: there[plugin] for plugin in asked if plugin in there} or (there if not asked else {})
    faults += [f"plugin {p!r}: not in {plugins} (there: {', '.join(there) or 'none'})" for p in asked if p not in there]
    if not there:
        faults.append(f"{plugins}: no Task-Plugins; expected <task>/tpb.pt and <task>/scb/ as released")
    faults += [f"{folder / 'scb'}: missing" for folder in chosen.values() if not is_folder(folder / "scb")]
    if faults:
        raise CheckpointError("; ".join(faults))
    selector, diagnosis = plugins / SELECTOR_FOLDER / SELECTOR_FILE, plugins / DIAGNOSIS_FOLDER
    return Checkpoint(
        base,
        clip,
        chosen,
        selector if exists(selector) else None,
        diagnosis if exists(diagnosis / "config.json") else packaged_diagnosis(),
    )


def packaged_diagnosis() -> Path | None:
    """Folder of the diagnosis that this project trained: it depends on no base, so every bundle can take it."""
    folder = Path(__file__).resolve().parents[2] / "plugins" / DIAGNOSIS_FOLDER
    return folder if exists(folder / "config.json") else None


def _base_faults(base: Path) -> list[str]:
    if not is_file(base):
        return [f"{base / part}: missing" for part in _FOLDERS if not is_folder(base / part)]
    if base.suffix not in SUFFIXES:
        return [f"{base}: neither a diffusers folder nor a {' or '.join(SUFFIXES)} file"]
    return []


def embedded_checkpoint(plugins: list[str]) -> tuple[Checkpoint, Path, str]:
    """(checkpoint, folder of its cards, name) of the model that this project trained.

    Raises:
        CheckpointError: the package was installed from a wheel, which does not contain it.
    """
    root = embedded_checkpoint_folder()
    return find(root / "base", root / "clip", root / "pre-trained", plugins), root, "embedded"
