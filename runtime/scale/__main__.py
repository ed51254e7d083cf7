"""``python -m diffplugin.runtime.scale ray IN OUT REQUEST``: a folder of photos over a Ray cluster."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from diffplugin.command import DONE, FAILED, Parser, add_common_options, execute, positive, print_error, say
from diffplugin.runtime.options import RestoreOptions
from diffplugin.runtime.scale.ray_data import restore_folder
from diffplugin.runtime.scale.recipe import Recipe

PROG = "python -m diffplugin.runtime.scale"


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = Parser(prog=PROG, description="Restore photos on many machines.")
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="ENGINE")
    ray = kinds.add_parser("ray", help="a folder or an object store over a Ray cluster, by Ray Data")
    ray.add_argument("source", metavar="IN", help="folder of photos: a path, s3://…, gs://…, or what else fsspec reads")
    ray.add_argument("target", metavar="OUT", help="folder of the results; what is done there is not done again")
    ray.add_argument("prompt", nargs="?", metavar="REQUEST", help="what to do, in words")
    ray.add_argument("--plugin", action="append", default=[], metavar="ID", help="run this plugin (repeatable)")
    ray.add_argument("--steps", type=positive, metavar="N")
    ray.add_argument("--seed", type=int, default=42, metavar="N")
    ray.add_argument("--bundle", metavar="FOLDER", help="on every machine; default: the model in the package")
    ray.add_argument("--engine", default="auto", metavar="NAME")
    ray.add_argument("--precision", default="auto", metavar="NAME")
    ray.add_argument("--quality", default="exact", metavar="NAME")
    ray.add_argument(
        "--workers", type=positive, default=1, metavar="N", help="actors, each with a restorer (default: 1)"
    )
    ray.add_argument("--cpus", type=positive, default=1, metavar="N", help="of each worker (default: 1)")
    ray.add_argument("--gpus", type=float, default=0, metavar="N", help="of each worker (default: 0)")
    ray.add_argument("--address", help="of the cluster, such as auto; default: a new one on this machine")
    add_common_options(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Restore the folder; returns 1 if a photo failed."""
    options = RestoreOptions(prompt=args.prompt, plugins=args.plugin or None, steps=args.steps, seed=args.seed)
    recipe = Recipe(
        bundle=args.bundle, engine=args.engine, precision=args.precision, quality=args.quality, threads=args.cpus
    )
    done = failed = 0
    records = restore_folder(
        args.source,
        args.target,
        options,
        recipe,
        workers=args.workers,
        cpus=args.cpus,
        gpus=args.gpus,
        address=args.address,
        log=say,
    )
    for record in records:
        if "error" in record:
            failed += 1
            print_error(PROG, record["error"])
        else:
            done += 1
            say(f"{record['target']} ({', '.join(record['plugins']) or 'left as it is'}, {record['seconds']:.1f} s)")
    say(f"{done} restored, {failed} failed")
    return FAILED if failed else DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (``diffplugin.command``)."""
    return execute(PROG, build_parser().parse_args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
