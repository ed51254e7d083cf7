"""``dp-train``: photos, the small base, Task-Plugins and the Plugin-Selector; every part resumes after a kill."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from diffplugin.command import DONE, Parser, add_common_options, execute, path, positive
from diffplugin.errors import MissingDependency, RequestError
from diffplugin.plugins.train import distill_cli, head_cli, plugin_cli
from diffplugin.plugins.train.shared_options import add_photo_folders

STAGES = ("autoencoder", "decoder", "pool", "denoiser")
# of the recipe for the embedded model; a stage's --steps overrides its own
STEPS = {
    "autoencoder": 9500,
    "decoder": 4000,
    "pool": 24,
    "denoiser": 9000,
    "plugin": 1000,
    "diagnosis": 5000,
    "selector": 20_000,
    "head": 2500,
    "tiny-vae": 8000,
}
VIEWS = 2000  # that a head learns from
SAMPLES = 10_000  # pictures that the diagnosis learns from
# plugins that the recipe finishes on pictures: steps and rate; one that does much already forgets it at a high rate
FINISHED = {"deblur": (1200, "8e-4")}
FINISHED |= dict.fromkeys(("derain", "desnow", "demoire"), (400, "3e-4"))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="dp-train", description=__doc__)
    add_common_options(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shared = Parser(add_help=False)
    shared.add_argument("--work", type=path, required=True, metavar="DIR", help="photos, training states and results")
    shared.add_argument("--threads", type=positive, default=1, metavar="N", help="CPU threads (default: 1)")
    common = Parser(add_help=False, parents=[shared])
    common.add_argument(
        "--steps",
        type=positive,
        metavar="N",
        help="steps (shards, for the pool); each part has its own default",
    )
    common.add_argument("--mixed-precision", default="bf16", choices=("no", "bf16"), help="default: bf16")

    more = Parser(add_help=False)
    add_photo_folders(more, "folder of further photographs with an index.csv (file,licence,author,source,split)")
    photos = "fetch freely licensed photographs (Debian, Ubuntu)"
    commands.add_parser("photos", parents=[common, more], help=photos)
    base = commands.add_parser("base", parents=[common], help="the small base: autoencoder, pool, denoiser")
    base.add_argument("--stage", choices=STAGES, action="append", help="only this stage; repeatable (default: all)")
    base.add_argument("--start", type=path, metavar="DIR", help="checkpoint folder to begin with")

    plugin = commands.add_parser("plugin", parents=[shared], help="one Task-Plugin over a frozen base (paper Eq. 3)")
    plugin_cli.add_plugin(plugin)
    few = "a plugin of one, two or four steps, from one of many"
    distill_cli.add_distill(commands.add_parser("distill", parents=[shared], help=few))
    head = commands.add_parser("head", parents=[shared], help="a plugin's change head, which takes the decoder's place")
    head_cli.add_head(head)
    selector = commands.add_parser("selector", parents=[shared], help="the selector, for the plugins that are there")
    plugin_cli.add_selector(selector)

    diagnosis = commands.add_parser("diagnosis", parents=[common], help="the network that sees what a photo needs")
    diagnosis.add_argument("--samples", type=positive, metavar="N", help="pictures to learn from (default: 10000)")
    add_photo_folders(diagnosis, "photographs with an index.csv, as for photos, here at their full size")
    diagnosis.add_argument(
        "--restart", action="store_true", help="remove a state made from other inputs, and begin anew"
    )
    tiny = commands.add_parser("tiny-vae", parents=[common], help="a tiny autoencoder, distilled from a base's own")
    tiny.add_argument("--base", metavar="DIR|HUB-ID", help="diffusers folder (default: WORK/checkpoint/base)")
    tiny.add_argument("--out", type=path, metavar="DIR", help="folder to write (default: WORK/tiny_vae)")
    tiny.add_argument("--width", type=positive, default=64, metavar="N", help="channels (default: 64, as TAESD)")
    tiny.add_argument("--blocks", type=positive, default=3, metavar="N", help="blocks a level (default: 3, as TAESD)")
    tiny.add_argument("--restart", action="store_true", help="remove a state made from other inputs, and begin anew")

    milestone = commands.add_parser("milestone", parents=[common], help="the base so far, as a folder for --start")
    milestone.add_argument("--out", type=path, required=True, metavar="DIR", help="checkpoint folder to write")

    recipe = commands.add_parser("recipe", parents=[common, more], help="everything for the embedded model, in order")
    recipe.add_argument(
        "--scale", type=float, default=1.0, metavar="X", help="part of each stage's steps, to see it run (default: 1)"
    )
    recipe.add_argument("--tasks", nargs="+", metavar="TASK", help="plugins to train (default: all eight)")
    return parser


def _photos(args: argparse.Namespace) -> None:
    from diffplugin.plugins.train import photos

    found = photos.fetch(args.work, args.add)
    print(f"{len(found)} photos in {args.work / 'photos'}, licences in {args.work / 'LICENCES.txt'}")


def _base(args: argparse.Namespace) -> None:
    from diffplugin.plugins.train import recipe
    from diffplugin.plugins.train.degradations import DEGRADATIONS

    work = recipe.Work(root=args.work, precision=args.mixed_precision)
    if args.start is not None:
        recipe.adopt(work, args.start)
    # what a checkpoint to begin with brings along is not trained anew
    for stage in args.stage or (STAGES if args.start is None else STAGES[2:]):
        steps = args.steps or STEPS[stage]
        if stage == "autoencoder":
            recipe.train_autoencoder(work, steps)
        elif stage == "decoder":
            recipe.refine_decoder(work, steps)
        elif stage == "pool":
            recipe.make_pool(work, steps, tuple(DEGRADATIONS))
        else:
            recipe.train_denoiser(work, steps, tuple(DEGRADATIONS), args.start)


def _diagnosis(args: argparse.Namespace) -> None:
    from diffplugin.plugins.train import diagnosis

    steps, samples = args.steps or STEPS["diagnosis"], SAMPLES if args.samples is None else args.samples
    diagnosis.train(
        args.work,
        steps=steps,
        samples=samples,
        folders=args.add,
        precision=args.mixed_precision,
        restart=args.restart,
    )


def _tiny_vae(args: argparse.Namespace) -> None:
    from diffplugin.export.checkpoints.hub import base_path
    from diffplugin.plugins.train import tiny_vae

    base = args.work / "checkpoint/base" if args.base is None else base_path(args.base, offline=False, log=print)
    out = args.out or args.work / "tiny_vae"
    tiny_vae.train(
        args.work,
        base,
        out,
        steps=args.steps or STEPS["tiny-vae"],
        width=args.width,
        blocks=args.blocks,
        precision=args.mixed_precision,
        restart=args.restart,
    )
    print(f"{out}: dp-export --tiny-vae takes it into a bundle, for --quality fast")


def _milestone(args: argparse.Namespace) -> None:
    from diffplugin.plugins.train import recipe

    print("\n".join(recipe.milestone(recipe.Work(root=args.work), args.out)))


def _recipe(args: argparse.Namespace) -> None:
    """The embedded model's own settings: the parsers' defaults, the generic plugin as every plugin's start."""
    from diffplugin.plugins.train.degradations import DEGRADATIONS

    if not 0 < args.scale <= 1:
        raise RequestError(f"--scale is {args.scale:g}, expected more than 0 and at most 1")
    every = ["--work", str(args.work), "--threads", str(args.threads)]
    shared = [*every, "--mixed-precision", args.mixed_precision]
    pretrained = args.work / "checkpoint/pre-trained"

    def steps(count: int) -> list[str]:
        return ["--steps", str(args.steps or max(round(args.scale * count), 1))]

    added = [word for place in args.add for word in ("--add", str(place))]
    if not (args.work / "photos.json").exists():
        _run(["photos", *shared, *added])
    for stage in STAGES:
        _run(["base", *shared, "--stage", stage, *steps(STEPS[stage])])
    for task in args.tasks or DEGRADATIONS:
        plugin = ["plugin", task, *shared, "--recipe", "small", "--crop", "128"]
        _run([*plugin, "--start", str(args.work / "checkpoint/generic"), *steps(STEPS["plugin"])])
        if task in FINISHED:
            count, rate = FINISHED[task]
            finish = ["--start", str(pretrained / task), "--loss", "picture", "--lr", rate]
            _run([*plugin, *finish, *steps(count)])
        views = max(round(args.scale * VIEWS), 1) if args.steps is None else min(args.steps * 4, VIEWS)
        _run(["head", task, *shared, "--views", str(views), *steps(STEPS["head"])])
    _run(["selector", *every, *steps(STEPS["selector"])])
    # few steps see few samples
    samples = round(args.scale * SAMPLES) if args.steps is None else min(args.steps * 20, SAMPLES)
    _run(["diagnosis", *shared, *steps(STEPS["diagnosis"]), "--samples", str(max(samples, 1)), *added])


_COMMANDS = {
    "photos": _photos,
    "base": _base,
    "plugin": plugin_cli.run_plugin,
    "distill": distill_cli.run_distill,
    "head": head_cli.run_head,
    "selector": plugin_cli.run_selector,
    "diagnosis": _diagnosis,
    "tiny-vae": _tiny_vae,
    "milestone": _milestone,
    "recipe": _recipe,
}


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    return _parser().parse_args([_dashes(word) for word in (sys.argv[1:] if argv is None else argv)])


def _run_parsed(args: argparse.Namespace) -> int:
    if args.command != "photos":
        _prepare(args.threads)
    _COMMANDS[args.command](args)
    return DONE


def _run(argv: Sequence[str]) -> None:
    """One stage of a recipe."""
    _run_parsed(_parse(argv))


def _dashes(word: str) -> str:
    """The released script's options have underscores: ``--train_batch_size`` is ``--train-batch-size``."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``dp-train``; returns the exit code (:mod:`diffplugin.command`)."""
    return execute("dp-train", _parse, _run_parsed, argv)


def _prepare(threads: int) -> None:
    try:
        import accelerate  # noqa: F401
        import torch
    except ImportError as error:
        raise MissingDependency(f"dp-train needs {error.name}: pip install 'diffplugin[train]'") from None
    torch.set_num_threads(threads)


if __name__ == "__main__":
    raise SystemExit(main())
