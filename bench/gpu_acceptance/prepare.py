"""Everything that a GPU machine without network needs, made on a machine without a GPU.

python -m diffplugin.bench.gpu_acceptance.prepare DIR
python -m diffplugin.bench.gpu_acceptance --prepared DIR --engine onnxruntime-cuda --out RESULTS      # on the GPU

DIR/oracle, DIR/embedded, DIR/full    bundles for ONNX Runtime's CUDA provider; the last one without weights
DIR/goldens                           what the released scripts computed from the oracle's checkpoint
DIR/photos, DIR/expected              degraded photographs, and what float32 on the processor makes of them
DIR/operators                         graphs of one node each, to be compared with double precision there
DIR/native                            the native kernels and their check, to be compiled there
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from diffplugin.bench.goldens import unpack
from diffplugin.bench.gpu_acceptance import full_width, operators
from diffplugin.bench.gpu_acceptance.prepared import seal
from diffplugin.bench.gpu_acceptance.trial import (
    EMBEDDED,
    EXPECTED,
    FULL,
    GOLDEN,
    GOLDENS,
    NATIVE,
    OPERATORS,
    ORACLE,
    PHOTOS,
    Trial,
)
from diffplugin.bench.work import parse_work
from diffplugin.bundle import list_files, open_bundle, write_manifest
from diffplugin.engines.onnxruntime_cuda.variants import NAME, VARIANTS
from diffplugin.errors import DiffPluginError, RequestError
from diffplugin.files import temporary_beside, unfinished

_SHARED = ("clip_vision", "vae_encoder", "unet", "step", "vae_decoder")
ROOT = Path(__file__).resolve().parents[2]
_NATIVE = ("group_norm_silu.h", "half.h", "launch.h", "launch.cu", "team.h")  # of plugins/native

Log = Callable[[str], None]


def prepare(out: Path, *, width: int, height: int, steps: int, log: Log = print) -> Path:
    """Write ``out`` for pictures of this size.

    Raises:
        RequestError: ``out`` is there already, or this is no clone of the repository.
        CheckpointError, ParityError: an export failed.
    """
    if out.exists():
        raise RequestError(f"{out}: is there already; name a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = temporary_beside(out)
    with unfinished(folder):
        folder.mkdir()
        _fill(folder, width, height, steps, log)
        seal(folder, engine=NAME, width=width, height=height, steps=steps)
        folder.rename(out)
    return out


def _fill(out: Path, width: int, height: int, steps: int, log: Log) -> None:
    trial = Trial(
        part="", model=EMBEDDED, engine=NAME, precision="fp16", out=str(out), width=width, height=height, steps=steps,
        rounds=1,
    )  # fmt: skip
    _goldens(out, log)
    _embedded(out, trial, log)
    operators.write(out / OPERATORS)
    log("full widths without weights")
    full_width.write_bundle(out / FULL, log)
    _photographs(replace(trial, model=FULL), [full_width.PLUGIN], out)
    (out / NATIVE).mkdir()
    for file in (
        *(ROOT / "plugins" / "native" / name for name in _NATIVE),
        ROOT / "bench/gpu_acceptance/native_gpu.cu",
    ):
        shutil.copy(file, out / NATIVE)


def _goldens(out: Path, log: Log) -> None:
    """The oracle's bundle in both precisions, and the files of one golden."""
    from diffplugin.bench.goldens import GOLDENS as KNOWN
    from diffplugin.export.checkpoints import find

    whole = unpack(out / "unpacked")
    root = whole / "checkpoint"
    checkpoint = find(root / "stable-diffusion", root / "clip", root / "pre-trained")
    _export(checkpoint, out / ORACLE, ORACLE, None, ("fp32", "fp16"), log, [KNOWN[GOLDEN].plugin])
    folder = out / GOLDENS / "golden"
    folder.mkdir(parents=True)
    for name in (f"{GOLDEN}.npz", f"{GOLDEN}.png", KNOWN[GOLDEN].photo):
        shutil.copy(whole / "golden" / name, folder)
    shutil.rmtree(whole)


def _embedded(out: Path, trial: Trial, log: Log) -> None:
    """The embedded model's bundle, degraded photographs, and the pictures that float32 makes of them."""
    import diffplugin
    from diffplugin.export.checkpoints import embedded_checkpoint

    checkpoint, cards, _ = embedded_checkpoint([])
    _export(checkpoint, out / EMBEDDED, EMBEDDED, cards, ("fp16",), log)
    photos = _photographs(trial, list(open_bundle(out / EMBEDDED).cards()), out)
    (out / EXPECTED).mkdir()
    with diffplugin.load(engine="onnxruntime", precision="fp32") as restorer:
        for plugin, (photo, _) in photos.items():
            log(f"what float32 makes of {plugin}")
            made = restorer.restore(photo, plugins=[plugin], steps=trial.steps)
            Image.fromarray(made.array).save(out / EXPECTED / f"{plugin}.png")


def _photographs(trial: Trial, plugins: Sequence[str], out: Path) -> dict[str, tuple[Path, Path]]:
    """Two degraded photographs for each plugin, as files."""
    from diffplugin.bench.gpu_acceptance.trial import photograph

    made = {}
    (out / PHOTOS).mkdir(exist_ok=True)
    for i, plugin in enumerate(plugins):
        files = tuple(out / PHOTOS / f"{plugin}-{number}.png" for number in (i, i + 1))
        for number, file in enumerate(files):
            Image.fromarray(photograph(trial, plugin, i + number)).save(file)
        made[plugin] = (files[0], files[1])
    return made


def _export(
    checkpoint: Any,
    out: Path,
    name: str,
    cards: Path | None,
    precisions: Sequence[str],
    log: Log,
    only: Sequence[str] = (),
) -> None:
    """A bundle with the variants for these precisions, of all plugins or of ``only`` these. What named plugins do not
    need stays behind, and so do float32 graphs for processors."""
    from diffplugin.export.cuda import export_cuda
    from diffplugin.export.exporter import export_bundle

    export_bundle(
        checkpoint, out, name=name, cards=cards, engine=NAME, precision=precisions[0], validate=False, log=log
    )  # fmt: skip
    manifest = open_bundle(out).manifest
    variants = dict(manifest.variants)
    for precision in precisions[1:]:
        variants[VARIANTS[precision]] = export_cuda(checkpoint, out, precision, log)
    shutil.rmtree(out / "onnx")
    for file in (out / "plugins").rglob("*.onnx"):
        file.unlink()
    plugins = tuple(p for p in manifest.plugins if p in only) if only else manifest.plugins
    kept = {*_SHARED, *(f"{kind}/{plugin}" for plugin in plugins for kind in ("tpb", "scb", "head"))}
    for variant, entries in variants.items():
        for key in set(entries) - kept:
            (out / entries[key].file).unlink()
        variants[variant] = {key: entry for key, entry in entries.items() if key in kept}
    for plugin in set(manifest.plugins) - set(plugins):
        shutil.rmtree(out / "plugins" / plugin)
    first = variants[VARIANTS[precisions[0]]]
    # its sizes in float32, as the entries of a bundle's own graphs have them
    graphs = {
        key: replace(entry, file=first[key].file, sha256=first[key].sha256)
        for key, entry in manifest.graphs.items()
        if key in kept
    }
    manifest = replace(manifest, graphs=graphs, variants=variants, plugins=plugins, selector=False)
    write_manifest(out, replace(manifest, files=list_files(out)))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m diffplugin.bench.gpu_acceptance.prepare",
        description="Prepare an acceptance run for a GPU machine without network.",
    )
    parser.add_argument("out", type=Path, metavar="DIR")
    parser.add_argument("--work", default="512x512", metavar="WxH", help="picture size (default: 512x512)")
    parser.add_argument("--steps", type=int, default=20, metavar="N")
    args = parser.parse_args(argv)
    try:
        work = parse_work(args.work)
        prepare(args.out, width=work.width, height=work.height, steps=args.steps)
    except DiffPluginError as error:
        print(f"prepare: {error}", file=sys.stderr)
        return 2 if isinstance(error, RequestError) else 1
    except OSError as error:
        print(f"prepare: {error.filename or args.out}: {error.strerror or error}", file=sys.stderr)
        return 1
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    print(f"{args.out}: {size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
