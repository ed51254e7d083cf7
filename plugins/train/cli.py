"""``dp-train``: photos, the small base, Task-Plugins and the Plugin-Selector; every part resumes after a kill."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diffplugin.errors import DiffPluginError, MissingDependency, RequestError

STAGES = ("autoencoder", "decoder", "pool", "denoiser")
# of the recipe for the embedded model; a stage's --steps overrides its own
STEPS = {"autoencoder": 9500, "decoder": 4000, "pool": 24, "denoiser": 9000, "plugin": 1000, "selector": 8000}
FINISHED = {"deblur": 1200}  # plugins that the recipe finishes on pictures, and in how many steps


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dp-train", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--work", type=Path, required=True, metavar="DIR", help="photos, training states and results")
    common.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="steps (shards, for the pool); each part has its own default",
    )
    common.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1)")
    common.add_argument("--precision", default="bf16", choices=("fp32", "bf16"), help="default: bf16")

    commands.add_parser("photos", parents=[common], help="fetch freely licensed photographs (Debian, Ubuntu)")
    base = commands.add_parser("base", parents=[common], help="the small base: autoencoder, pool, denoiser")
    base.add_argument("--stage", choices=STAGES, action="append", help="only this stage; repeatable (default: all)")
    base.add_argument("--start", type=Path, metavar="DIR", help="checkpoint folder to begin with")

    plugin = commands.add_parser("plugin", parents=[common], help="one Task-Plugin over a frozen base (paper Eq. 3)")
    plugin.add_argument("task", help="id of the plugin, for example derain")
    plugin.add_argument("--base", type=Path, metavar="DIR", help="diffusers folder (default: WORK/checkpoint/base)")
    plugin.add_argument("--clip", type=Path, metavar="DIR", help="CLIP folder (default: WORK/checkpoint/clip)")
    plugin.add_argument("--pairs", type=Path, metavar="CSV", help="pairs as released (default: WORK's photos)")
    plugin.add_argument("--root", type=Path, metavar="DIR", help="where the CSV's relative paths start")
    plugin.add_argument("--degradation", metavar="TASK", help="degrade photos as for this task (default: the id)")
    plugin.add_argument("--card", type=Path, metavar="TOML", help="plugin card (default: the shipped one of that id)")
    plugin.add_argument("--start", type=Path, metavar="DIR", help="folder with tpb.pt and scb/ to begin with")
    plugin.add_argument("--side", type=int, default=256, metavar="N", help="side of training pictures (default: 256)")
    plugin.add_argument("--crop", type=int, metavar="N", help="side of the part of them to train on (default: all)")
    plugin.add_argument("--views", type=int, default=4, metavar="N", help="random views of every pair (default: 4)")
    plugin.add_argument("--batch", type=int, default=8, metavar="N", help="pictures a step (default: 8)")
    plugin.add_argument("--lr", type=float, default=6e-4, metavar="X", help="peak rate (default: 6e-4; SD 1.4: 1e-5)")
    plugin.add_argument(
        "--variant",
        default="released",
        choices=("released", "scb", "tpb", "encoder"),
        help="for ablations: one branch alone, or residuals that enter on the way down; scored, but not written",
    )
    plugin.add_argument(
        "--loss",
        default="latent",
        choices=("latent", "picture"),
        help="latent: Eq. 3; picture: PSNR of what the decoder makes of it, to finish a plugin (--start)",
    )
    plugin.add_argument("--plain", action="store_true", help="squared error of the latent, unweighted (the paper's)")
    plugin.add_argument("--every", type=int, default=250, metavar="N", help="steps between states and reports")

    selector = commands.add_parser("selector", parents=[common], help="the selector, for the plugins that are there")
    selector.add_argument("--base", type=Path, metavar="DIR", help="diffusers folder (default: WORK/checkpoint/base)")
    selector.add_argument("--clip", type=Path, metavar="DIR", help="CLIP folder (default: WORK/checkpoint/clip)")
    selector.add_argument("--tasks", nargs="+", metavar="TASK", help="plugins (default: all under WORK/checkpoint)")
    selector.add_argument("--heads-only", action="store_true", help="frozen text encoder, paper Eq. 6")

    milestone = commands.add_parser("milestone", parents=[common], help="the base so far, as a folder for --start")
    milestone.add_argument("--out", type=Path, required=True, metavar="DIR", help="checkpoint folder to write")

    recipe = commands.add_parser("recipe", parents=[common], help="everything for the embedded model, in order")
    recipe.add_argument(
        "--scale", type=float, default=1.0, metavar="X", help="part of each stage's steps, to see it run (default: 1)"
    )
    recipe.add_argument("--tasks", nargs="+", metavar="TASK", help="plugins to train (default: all eight)")
    return parser


def _photos(args: argparse.Namespace) -> None:
    from diffplugin.plugins.train import photos

    found = photos.fetch(args.work)
    print(f"{len(found)} photos in {args.work / 'photos'}, licences in {args.work / 'LICENCES.txt'}")


def _base(args: argparse.Namespace) -> None:
    from diffplugin.plugins.train import recipe
    from diffplugin.plugins.train.degradations import DEGRADATIONS

    work = recipe.Work(root=args.work, precision=args.precision)
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


def _plugin(args: argparse.Namespace) -> None:
    from diffplugin.plugins.train import tasks

    outcome = tasks.train(
        args.task,
        tasks.Data(
            work=args.work,
            pairs=args.pairs,
            root=args.root,
            degradation=args.degradation or args.task,
            side=args.side,
            views=args.views,
        ),
        tasks.Settings(
            steps=args.steps or STEPS["plugin"],
            batch=args.batch,
            peak=args.lr,
            variant=args.variant,
            loss=args.loss,
            plain=args.plain,
            precision=args.precision,
            every=args.every,
            crop=args.crop or args.side,
        ),
        base=args.base,
        clip=args.clip,
        card=args.card,
        start=args.start,
    )
    print(f"{args.task}: {outcome}")


def _selector(args: argparse.Namespace) -> None:
    from diffplugin.plugins.train import tasks

    tasks.train_selector(
        args.work,
        steps=args.steps or STEPS["selector"],
        base=args.base,
        clip=args.clip,
        wanted=args.tasks,
        train_text=not args.heads_only,
    )


def _milestone(args: argparse.Namespace) -> None:
    from diffplugin.plugins.train import recipe

    print("\n".join(recipe.milestone(recipe.Work(root=args.work), args.out)))


def _recipe(args: argparse.Namespace) -> None:
    """The embedded model's own settings: the parsers' defaults, the generic plugin as every plugin's start."""
    from diffplugin.plugins.train.degradations import DEGRADATIONS

    if not 0 < args.scale <= 1:
        raise RequestError(f"--scale is {args.scale:g}, expected more than 0 and at most 1")
    shared = ["--work", str(args.work), "--threads", str(args.threads), "--precision", args.precision]
    pretrained = args.work / "checkpoint/pre-trained"

    def steps(count: int) -> list[str]:
        return ["--steps", str(args.steps or max(round(args.scale * count), 1))]

    if not (args.work / "photos.json").exists():
        _run(["photos", *shared])
    for stage in STAGES:
        _run(["base", *shared, "--stage", stage, *steps(STEPS[stage])])
    for task in args.tasks or DEGRADATIONS:
        plugin = ["plugin", task, *shared, "--crop", "128"]
        _run([*plugin, "--start", str(args.work / "checkpoint/generic"), *steps(STEPS["plugin"])])
        if task in FINISHED:
            finish = ["--start", str(pretrained / task), "--loss", "picture", "--lr", "8e-4"]
            _run([*plugin, *finish, *steps(FINISHED[task])])
    _run(["selector", *shared, *steps(STEPS["selector"])])


_COMMANDS = {
    "photos": _photos,
    "base": _base,
    "plugin": _plugin,
    "selector": _selector,
    "milestone": _milestone,
    "recipe": _recipe,
}


def _run(argv: Sequence[str]) -> None:
    args = _parser().parse_args(argv)
    if args.command != "photos":
        _prepare(args.threads)
    _COMMANDS[args.command](args)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``dp-train``; 0, or 1 after one line that says what was wrong."""
    try:
        _run(sys.argv[1:] if argv is None else argv)
    except DiffPluginError as error:
        print(f"dp-train: {error}", file=sys.stderr)
        return 1
    return 0


def _prepare(threads: int) -> None:
    try:
        import accelerate  # noqa: F401
        import torch
    except ImportError as error:
        raise MissingDependency(f"dp-train needs {error.name}: pip install 'diffplugin[train]'") from None
    if threads < 1:
        raise RequestError(f"--threads is {threads}, expected 1 or more")
    torch.set_num_threads(threads)


if __name__ == "__main__":
    raise SystemExit(main())
