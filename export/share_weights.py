"""Stores the embedded model's weights once: what its bundle contains, its checkpoint does not contain again.

python -m diffplugin.export.share_weights          after an export: plain files of the embedded checkpoint become shared
python -m diffplugin.export.share_weights OUT      a copy of it with plain files, for other programs
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from diffplugin.bundle import default_bundle, open_bundle
from diffplugin.errors import DiffPluginError, RequestError
from diffplugin.export.checkpoints.shared_weights import SUFFIX as SHARED
from diffplugin.export.checkpoints.shared_weights import read_shared, write_shared
from diffplugin.export.checkpoints.weights import read_tensors
from diffplugin.export.embedded import embedded_checkpoint_folder

# Files of the embedded checkpoint without suffix, and the graphs that contain their weights.
_FILES = {
    "base/unet/diffusion_pytorch_model": ("onnx/unet.onnx",),
    "base/vae/diffusion_pytorch_model": ("onnx/vae_encoder.onnx", "onnx/vae_decoder.onnx"),
    "base/text_encoder/model": ("onnx/clip_text.onnx",),
    "clip/model": ("onnx/clip_vision.onnx",),
}
_BRANCHES = ("scb", "head")  # of a plugin: pre-trained/<id>/<branch>/, plugins/<id>/<branch>.onnx
_PLAIN = (".safetensors", ".bin")


def _files(bundle: Path) -> dict[str, tuple[str, ...]]:
    plugins = open_bundle(bundle).manifest.plugins
    return _FILES | {
        f"pre-trained/{plugin}/{branch}/diffusion_pytorch_model": (f"plugins/{plugin}/{branch}.onnx",)
        for plugin in plugins
        for branch in _BRANCHES
    }


def share(checkpoint: Path, bundle: Path) -> Iterator[tuple[Path, int, int]]:
    """Replace the plain files of a checkpoint: (file, bytes before, bytes now) of each. Files that are shared already
    stay."""
    for stem, graphs in _files(bundle).items():
        path = checkpoint / f"{stem}{SHARED}"
        for plain in (checkpoint / f"{stem}{suffix}" for suffix in _PLAIN):
            if plain.is_file():
                before = plain.stat().st_size
                write_shared(path, {name: value.numpy() for name, value in read_tensors(plain).items()}, bundle, graphs)
                plain.unlink()
                yield path, before, path.stat().st_size


def copy_plain(checkpoint: Path, out: Path) -> None:
    """A copy of a checkpoint in which every file is a plain one.

    Raises:
        RequestError: ``out`` is there already.
        CheckpointError: as :func:`read_shared`.
    """
    from safetensors.numpy import save_file

    if out.exists():
        raise RequestError(f"{out}: is there already; name a new folder")
    plain = {
        path.relative_to(checkpoint).as_posix().removesuffix(SHARED): read_shared(path)
        for path in checkpoint.rglob(f"*{SHARED}")
    }
    shutil.copytree(checkpoint, out, ignore=shutil.ignore_patterns(f"*{SHARED}"))
    for stem, tensors in plain.items():
        save_file(tensors, out / f"{stem}.safetensors", metadata={"format": "pt"})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m diffplugin.export.share_weights",
        description="Weights that the embedded bundle contains are not stored in the embedded checkpoint again.",
    )
    parser.add_argument("out", type=Path, nargs="?", help="write a copy with plain files here, and change nothing else")
    args = parser.parse_args(argv)
    try:
        checkpoint = embedded_checkpoint_folder()
        if args.out is not None:
            copy_plain(checkpoint, args.out)
            print(args.out)
            return 0
        for path, before, now in share(checkpoint, default_bundle()):
            print(f"{path}: {before / 1e6:.2f} MB before, {now / 1e6:.2f} MB now")
    except DiffPluginError as error:
        print(f"share_weights: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
