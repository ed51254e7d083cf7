"""``dp-export``: converts checkpoints to a bundle of engines, and maintains bundles."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from diffplugin.command import Parser, add_common_options, answer, execute, path, positive, print_error, say
from diffplugin.engines.choice import ENGINES
from diffplugin.errors import RequestError
from diffplugin.hub import parse_name

CALIBRATION_PHOTOS = 8


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="dp-export",
        description="Turn a Stable Diffusion 1.x base, CLIP and Task-Plugins into a bundle that dp-infer runs. "
        "Without arguments: the embedded model, into the user's cache folder.",
    )
    model = parser.add_argument_group("checkpoints")
    model.add_argument("--plugin", action="append", default=[], metavar="ID", help="Task-Plugin to export; repeatable")
    model.add_argument(
        "--base",
        metavar="DIR|FILE|HUB-ID",
        help="Stable Diffusion 1.x: a diffusers folder, or one .safetensors file in the original layout",
    )
    model.add_argument("--clip", metavar="DIR|HUB-ID", help="CLIP with its vision encoder")
    model.add_argument("--plugins", type=path, metavar="DIR", help="the released pre-trained/ tree")
    model.add_argument(
        "--cards",
        type=path,
        metavar="DIR",
        help="folder with <id>/card.toml or cards/<id>.toml beyond the shipped cards (default: --plugins)",
    )
    model.add_argument("--offline", action="store_true", help="take hub ids from the local cache only")
    made = parser.add_argument_group("bundle")
    made.add_argument("--out", type=path, metavar="BUNDLE", help="folder to write")
    made.add_argument("--engine", default="auto", metavar="NAME", help=f"auto or one of {', '.join(ENGINES)}")
    made.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16", "int8"))
    made.add_argument(
        "--size",
        action="append",
        default=[],
        metavar="N|WxH|MIN:OPT:MAX",
        help="photo size, width first, that engines are prepared for (default: 512); repeatable, one engine each",
    )
    made.add_argument(
        "--gpus",
        type=lambda text: tuple(text.replace(" ", "").split(",")),
        default=(),
        metavar="sm_89,...",
        help="compute capabilities that tensorrt-rtx builds for; no GPU is needed here",
    )
    made.add_argument(
        "--workspace", type=positive, metavar="MIB", help="most scratch memory of a TensorRT engine's layer"
    )
    made.add_argument("--weight-streaming", action="store_true", help="TensorRT weights may stay in the host's memory")
    made.add_argument(
        "--calibration",
        type=path,
        metavar="DIR",
        help="pictures to calibrate int8 on, best ones that need the plugins (default: synthetic ones)",
    )
    made.add_argument(
        "--tiny-vae", type=path, metavar="DIR", help="also a tiny autoencoder for --quality fast (dp-train tiny-vae)"
    )
    made.add_argument("--no-validate", action="store_true", help="skip the comparison with the PyTorch reference")
    made.add_argument(
        "--triton-repo", type=path, metavar="DIR", help="also write a model repository for NVIDIA's Triton server"
    )
    made.add_argument(
        "--push-to", metavar="hf:USER/NAME", help="also upload the bundle to the Hugging Face hub, with a model card"
    )
    made.add_argument(
        "--bundle",
        type=path,
        metavar="BUNDLE",
        help="with --triton-repo or --push-to: take this bundle as it is, export nothing",
    )
    care = parser.add_argument_group("bundles on disk").add_mutually_exclusive_group()
    care.add_argument("--list", action="store_true", help="list the bundles in the cache folder, or in --out")
    care.add_argument("--verify", type=path, metavar="BUNDLE", help="check every file against the manifest")
    care.add_argument("--prune", type=path, metavar="BUNDLE", help="remove stale and foreign engines and left-overs")
    add_common_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``dp-export``; returns its exit code (``diffplugin.command``)."""
    return execute("dp-export", _parser().parse_args, _command, argv)


def _command(args: argparse.Namespace) -> int:
    if args.list:
        return _list(args.out)
    if args.verify:
        return _verify(args.verify)
    if args.push_to:
        parse_name(args.push_to)  # before hours of work
    if args.bundle and not args.triton_repo and not args.push_to:
        raise RequestError("--bundle is for --triton-repo DIR or --push-to: name one of them too, or leave it out")
    if args.bundle:
        return _deliver(args, args.bundle)
    return _prune(args.prune) if args.prune else _export(args)


def _list(folder: Path | None) -> int:
    from diffplugin.bundle import cache_folder
    from diffplugin.default_bundle import latest_bundle
    from diffplugin.export.maintenance import list_bundles

    where = folder or cache_folder()
    bundles, latest = list_bundles(where), latest_bundle()
    for bundle in bundles:
        manifest = bundle.manifest
        engines = ", ".join(sorted({f"{e.engine} {e.precision}" for e in manifest.engines})) or "onnx"
        taken = ["taken by default"] if bundle.path == latest else []
        answer("\t".join([str(bundle.path), ", ".join(manifest.plugins), engines, *taken]))
    if not bundles:
        answer(f"no bundles in {where}")
    return 0


def _verify(path: Path) -> int:
    from diffplugin.export.maintenance import verify

    faults = verify(path)
    for fault in faults:
        print_error("dp-export", fault)
    if not faults:
        answer(f"{path}: sound")
    return 1 if faults else 0


def _prune(path: Path) -> int:
    from diffplugin.export.maintenance import prune

    removed, freed = prune(path)
    for name in removed:
        say(f"removed {name}")
    say(f"{path}: {freed / 2**20:.1f} MiB freed")
    return 0


def _export(args: argparse.Namespace) -> int:
    if args.calibration and args.precision != "int8":
        raise RequestError(f"--calibration is for --precision int8, here it is {args.precision}; leave it out")

    from diffplugin.default_bundle import EMBEDDED, bundles_folder, set_latest
    from diffplugin.engines.base import BuildOptions
    from diffplugin.export.checkpoints import embedded_checkpoint, find
    from diffplugin.export.checkpoints.hub import base_path, clip_path
    from diffplugin.export.exporter import export_bundle
    from diffplugin.export.prebuild import parse_size

    log = (lambda line: None) if args.quiet else say
    given = [name for name in ("base", "clip", "plugins") if getattr(args, name)]
    if given and len(given) < 3:
        missing = ", ".join(f"--{name}" for name in ("base", "clip", "plugins") if name not in given)
        raise RequestError(
            f"--{', --'.join(given)} given without {missing}: a model needs all three, or none for the embedded one"
        )
    if given:
        base = base_path(args.base, offline=args.offline, log=log)
        clip = clip_path(args.clip, offline=args.offline, tokenizer=not base.is_dir(), log=log)
        checkpoint, cards, name = (
            find(base, clip, args.plugins, args.plugin),
            args.cards or args.plugins,
            args.plugins.resolve().parent.name,
        )
    else:
        checkpoint, cards, name = embedded_checkpoint(args.plugin)
    checkpoint = replace(checkpoint, tiny_vae=args.tiny_vae)
    started = time.monotonic()
    path = export_bundle(
        checkpoint,
        args.out or bundles_folder() / name,
        name=name,
        cards=cards,
        engine=args.engine,
        precision=args.precision,
        sizes=[parse_size(size) for size in args.size],
        validate=not args.no_validate,
        calibration=_pictures(args.calibration),
        options=BuildOptions(
            gpus=args.gpus,
            workspace=None if args.workspace is None else args.workspace * 2**20,
            weight_streaming=args.weight_streaming,
        ),
        log=log,
    )
    log(f"{path}: written in {time.monotonic() - started:.0f} s")
    if set_latest(path):
        log(f"dp-infer takes this bundle from now on; dp-infer --bundle {EMBEDDED}: the small model in the package")
    return _deliver(args, path)


def _deliver(args: argparse.Namespace, bundle: Path) -> int:
    """Write the requested outputs other than the bundle itself."""
    if args.triton_repo:
        _triton(bundle, args.triton_repo)
    if args.push_to:
        from diffplugin.export.push import push_bundle

        address = push_bundle(bundle, args.push_to, log=say)
        say(f"{args.push_to}: {address}")
    return 0


def _triton(bundle: Path, out: Path) -> int:
    from diffplugin.bundle import open_bundle
    from diffplugin.export.triton import write_repository

    names = write_repository(open_bundle(bundle), out)
    say(f"{out}: {len(names)} models; the loop is {names[0]}")
    return 0


def _pictures(folder: Path | None) -> list[Path]:
    """At most eight pictures of a folder, spread evenly over its names."""
    if folder is None:
        return []
    from diffplugin.runtime.cli.inputs import find_photos

    inputs = find_photos([str(folder)])
    found = [photo.path for photo in inputs.photos]
    if not found:
        raise RequestError(f"--calibration {folder}: {inputs.faults[0] if inputs.faults else 'none is read here'}")
    return found[:: -(-len(found) // CALIBRATION_PHOTOS)]


if __name__ == "__main__":
    from diffplugin.entry import export

    sys.exit(export())
