"""Hub ids -> folders on this machine, with only the files that an export reads.

A repository holds many copies of the same weights: float32 and float16, safetensors and pickles, with and without
moving averages, for Flax, ONNX and OpenVINO, and single files beside folders. The list of its files is read first, and
the smallest complete set is chosen from it.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from diffplugin.errors import CheckpointError, MissingDependency
from diffplugin.export.checkpoints.single_file import SUFFIXES
from diffplugin.export.checkpoints.weights import choose_weights, shards_of
from diffplugin.export.reading import is_file, is_folder
from diffplugin.export.tokenizer import FILES as TOKENIZER_FILES

Choose = Callable[[Collection[str]], list[str]]
_ID = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:/(.+))?")
_BASE_PARTS = ("unet", "vae", "text_encoder")
_EXAMPLE = "CompVis/stable-diffusion-v1-4"


def base_files(names: Collection[str]) -> list[str]:
    """The files of a base that are read, of all in its repository.

    Raises:
        CheckpointError: the repository has no complete set; what is missing is named.
    """
    if not any(name.startswith("unet/") for name in names):
        return [_only_single_file(names)]
    wanted = ["scheduler/scheduler_config.json", *(f"{part}/config.json" for part in _BASE_PARTS)]
    faults = [f"{name} is missing" for name in wanted if name not in names]
    for part in _BASE_PARTS:
        chosen = _weights(names, f"{part}/")
        wanted += chosen
        faults += [] if chosen else [f"{part}/ has no weights in safetensors or PyTorch's format"]
    tokenizer = tokenizer_files(names, "tokenizer/")
    faults += [] if tokenizer else ["tokenizer/ has neither tokenizer.json nor vocab.json and merges.txt"]
    if faults:
        raise CheckpointError("; ".join(faults))
    return [*wanted, *tokenizer]


def clip_files(names: Collection[str], *, tokenizer: bool = False) -> list[str]:
    """The files of a CLIP repository that are read; ``tokenizer``: its tokenizer too, for a base that has none.

    Raises:
        CheckpointError: the repository has no complete set; what is missing is named.
    """
    weights, words = _weights(names, ""), tokenizer_files(names, "") if tokenizer else []
    faults = [] if "config.json" in names else ["config.json is missing"]
    faults += [] if weights else ["there are no weights in safetensors or PyTorch's format"]
    faults += ["there is no tokenizer"] if tokenizer and not words else []
    if faults:
        raise CheckpointError("; ".join(faults))
    view = [name for name in ("preprocessor_config.json", "processor_config.json") if name in names][:1]
    return ["config.json", *view, *weights, *words]


def tokenizer_files(names: Collection[str], folder: str) -> list[str]:
    """Files of a tokenizer: vocabulary and merges where both are there, else ``tokenizer.json``."""
    there = [name for name in TOKENIZER_FILES if folder + name in names]
    pair = {"vocab.json", "merges.txt"} <= set(there)
    if not pair and "tokenizer.json" not in there:
        return []
    unused = {"tokenizer.json"} if pair else {"vocab.json", "merges.txt"}
    return [folder + name for name in there if name not in unused]


def _weights(names: Collection[str], folder: str) -> list[str]:
    here = [name.removeprefix(folder) for name in names if name.startswith(folder)]
    chosen = choose_weights(here)
    if chosen is None:
        return []
    return [folder + name for name in ([chosen, *shards_of(chosen, here)] if chosen.endswith(".json") else [chosen])]


def _only_single_file(names: Collection[str]) -> str:
    found = sorted(name for name in names if "/" not in name and name.endswith(".safetensors"))
    if len(found) != 1:
        listed = f"it has {', '.join(found[:6])}: name one as OWNER/NAME/FILE" if found else "and no single file"
        raise CheckpointError(f"no unet/ folder, {listed}")
    return found[0]


def base_path(name: str, *, offline: bool, log: Callable[[str], None] = lambda line: None) -> Path:
    """A base from this machine or from the hub: a folder, a single file, ``OWNER/NAME`` or ``OWNER/NAME/FILE``.

    Hub ids come from the local hub cache, or are downloaded (``HF_HOME``, ``HF_HUB_OFFLINE``).

    Raises:
        CheckpointError: there is no such folder or id, or it is incomplete.
    """
    path = Path(name).expanduser()
    if is_folder(path) or is_file(path):
        return path
    owner, file = _hub_id(name, f"neither a folder, a {' or '.join(SUFFIXES)} file")
    if file is not None:
        folder = _snapshot(owner, lambda names: _named(file, names), file, offline=offline, log=log)
        return folder / file
    folder = _snapshot(owner, base_files, "unet/config.json", offline=offline, log=log)
    if not is_folder(folder / "unet"):
        return folder / _only_single_file([entry.name for entry in folder.iterdir()])
    return folder


def clip_path(
    name: str, *, offline: bool, tokenizer: bool = False, log: Callable[[str], None] = lambda line: None
) -> Path:
    """A CLIP folder on this machine, or ``OWNER/NAME`` from the hub; ``tokenizer``: as :func:`clip_files`.

    Raises:
        CheckpointError: there is no such folder or id, or it is incomplete.
    """
    path = Path(name).expanduser()
    if is_folder(path):
        return path
    owner, file = _hub_id(name, "neither a folder")
    if file is not None:
        raise CheckpointError(f"{name}: neither a folder nor a hub id such as {_EXAMPLE}")
    choose = partial(clip_files, tokenizer=tokenizer)
    return _snapshot(owner, choose, "config.json", offline=offline, log=log)


def _hub_id(name: str, what: str) -> tuple[str, str | None]:
    match = _ID.fullmatch(name)
    if not match or (match[2] is not None and not match[2].endswith(SUFFIXES)):
        raise CheckpointError(f"{name}: {what} nor a hub id such as {_EXAMPLE}")
    return match[1], match[2]


def _named(file: str, names: Collection[str]) -> list[str]:
    if file not in names:
        raise CheckpointError(f"{file} is not in it")
    return [file]


def _snapshot(name: str, choose: Choose, anchor: str, *, offline: bool, log: Callable[[str], None]) -> Path:
    """The folder of a repository's chosen files; ``anchor``: one that is always among them."""
    try:
        from huggingface_hub import HfApi, snapshot_download
    except ImportError:
        raise MissingDependency(
            f"the hub id {name} needs the package huggingface-hub: pip install 'diffplugin[export]'"
        ) from None
    if offline:
        return _cached(name, anchor, "")
    try:
        info = HfApi().model_info(name, files_metadata=True)
    except Exception as error:  # the hub client has a dozen kinds for "not there" and "no network"
        return _cached(name, anchor, f"; asking the hub failed ({_reason(error)})")
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    try:
        wanted = choose(sizes.keys())
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from None
    log(f"{name}: {len(wanted)} of {len(sizes)} files, {sum(sizes[file] for file in wanted) / 1e9:.1f} GB")
    try:
        patterns = [glob.escape(file) for file in wanted]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        raise CheckpointError(f"{name}: could not be downloaded: {_reason(error)}") from None


def _cached(name: str, anchor: str, why: str) -> Path:
    """The folder of an earlier download. The client's own search refuses a folder without every file of the repository;
    missing files that matter are reported later."""
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        found = Path(hf_hub_download(name, anchor, local_files_only=True))
        return found.parents[anchor.count("/")]
    except Exception:  # a repository of one file, whose name is not known here
        try:
            return Path(snapshot_download(name, local_files_only=True))
        except Exception:  # the client's own words name its parameters, not ours
            told = why or " (offline)"
            raise CheckpointError(
                f"{name}: not found in the local hub cache{told}; go online without --offline once, or name a folder"
            ) from None


def _reason(error: Exception) -> str:
    """The first line of the client's error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
