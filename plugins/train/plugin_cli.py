"""``dp-train plugin`` and ``dp-train selector``: their options, by the released script's names where it has them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffplugin.command import path
from diffplugin.errors import RequestError

if TYPE_CHECKING:
    from diffplugin.plugins.train.data import Data
    from diffplugin.plugins.train.settings import Recipe

# options of a recipe under an older or shorter name
_SHORT = {
    "train_batch_size": ("--batch",),
    "learning_rate": ("--lr",),
    "resolution": ("--side",),
    "max_train_steps": ("--steps",),
    "checkpointing_steps": ("--every",),
}
_HELP = {
    "resolution": "side of training pictures, pixels",
    "train_batch_size": "pictures of a process and micro step",
    "gradient_accumulation_steps": "micro steps of a step",
    "max_train_steps": "steps of the optimiser",
    "num_train_epochs": "passes over the pairs, where --max-train-steps is not given",
    "learning_rate": "rate",
    "scale_lr": "multiply the rate by batch, accumulation and processes, as released",
    "lr_scheduler": "course of the rate",
    "lr_warmup_steps": "steps of a warm-up (not with constant)",
    "adam_beta1": "AdamW",
    "adam_beta2": "AdamW",
    "adam_weight_decay": "AdamW",
    "adam_epsilon": "AdamW",
    "max_grad_norm": "largest norm of gradients",
    "mixed_precision": "of the learning branches; the base is held in it",
    "gradient_checkpointing": "less memory, a third more time",
    "use_data_aug": "random crops and flips, as released",
    "load_weights_from_unet": "a new SCB begins as a copy of the base's first block",
    "ema_decay": "keep an exponential average of the weights with this decay, and take it in the end",
    "seed": "of everything random",
    "dataloader_num_workers": "processes that read and augment pairs",
    "checkpointing_steps": "steps between saved states",
    "validation_steps": "steps between curves and validation pictures",
    "crop": "side of the part of a picture to train on; 0: all (recipe small)",
    "views": "random views of every pair that are kept as latents (recipe small, --cache-latents)",
    "start_share": "share of timesteps where sampling starts (recipe small)",
    "noised_share": "share of later timesteps whose latent is noised from the input (recipe small)",
    "least_t": "below this timestep, none is (recipe small)",
    "weighted": "errors of the latent count as they show in the picture (recipe small)",
    "harder_share": "share of photos degraded on the fly by the harder family",
    "clean_share": "share of samples whose input is the ground truth: clean pictures stay as they are",
}


def add_model(parser: argparse.ArgumentParser) -> None:
    """Base and CLIP."""
    base = ("--base", "--pretrained-model-name-or-path")
    parser.add_argument(*base, metavar="DIR|HUB-ID", help="diffusers folder (default: WORK/checkpoint/base)")
    clip = ("--clip", "--clip-path")
    parser.add_argument(*clip, metavar="DIR|HUB-ID", help="CLIP folder (default: WORK/checkpoint/clip)")
    parser.add_argument("--offline", action="store_true", help="take hub ids from the local cache only")


def add_pairs(parser: argparse.ArgumentParser) -> None:
    """What a plugin learns from, and what is shown of it."""
    parser.add_argument(
        "--pairs",
        "--train-data-file-list",
        metavar="CSV|DIR|HUB-ID",
        help="CSV as released, a folder with target/ and input/, or a data set of the hub (default: WORK's photos)",
    )
    parser.add_argument("--root", "--data-root", type=path, metavar="DIR", help="where the CSV's relative paths start")
    parser.add_argument("--degradation", metavar="TASK", help="degrade photos as for this task (default: the id)")
    parser.add_argument("--report-to", default="tensorboard", choices=("tensorboard", "wandb", "none"))
    parser.add_argument(
        "--validation-pictures",
        type=int,
        default=4,
        metavar="N",
        help="held-out pairs for curves and the final score (default: 4)",
    )
    parser.add_argument("--restart", action="store_true", help="remove a state made from other inputs, and begin anew")


def add_numbers(
    parser: argparse.ArgumentParser, chosen: Iterable[str], recipes: Sequence[Recipe], taken: Sequence[str] = ()
) -> None:
    """Options for these fields of a recipe; the help shows the defaults of ``recipes``. Short names in ``taken`` mean
    something else in this command."""
    from diffplugin.plugins.train.settings import option_types

    numbers = parser.add_argument_group("recipe", f"defaults: {' / '.join(recipe.name for recipe in recipes)}")
    types = option_types()
    for field in chosen:
        kind, choices = types[field]
        values = [getattr(recipe, field) for recipe in recipes]
        shown = " / ".join("–" if value is None else f"{value}" for value in values)
        text = f"{_HELP[field]} ({shown})"
        names = (f"--{field.replace('_', '-')}", *(name for name in _SHORT.get(field, ()) if name not in taken))
        if kind is bool:
            numbers.add_argument(*names, action=argparse.BooleanOptionalAction, default=None, help=text)
        elif choices:
            numbers.add_argument(*names, choices=choices, help=text)
        else:
            numbers.add_argument(*names, type=kind, metavar="N" if kind is int else "X", help=text)


def add_plugin(parser: argparse.ArgumentParser) -> None:
    """Everything of ``dp-train plugin``."""
    from diffplugin.plugins.train.settings import PAPER, RECIPES, SMALL, option_types

    parser.add_argument("task", help="id of the plugin, for example derain")
    add_model(parser)
    add_pairs(parser)
    parser.add_argument("--card", type=path, metavar="TOML", help="plugin card (default: the shipped one of that id)")
    parser.add_argument("--start", type=path, metavar="DIR", help="folder with tpb.pt and scb/ to begin with")
    parser.add_argument(
        "--recipe",
        choices=tuple(RECIPES),
        help="paper: Eq. 3 as released; small: the embedded model's (default: paper over Stable Diffusion's widths)",
    )
    parser.add_argument(
        "--loss",
        default="latent",
        choices=("latent", "picture"),
        help="latent: the recipe's; picture: PSNR of what the decoder makes of it, to finish a plugin",
    )
    parser.add_argument("--variant", default="released", metavar="NAME", help="an ablation: see dp-eval ablation")
    parser.add_argument(
        "--cache-latents", action="store_true", help="encode all pairs once, and keep latents and CLIP features on disk"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would run and how much memory it takes")
    add_numbers(parser, option_types(), (PAPER, SMALL))


def add_selector(parser: argparse.ArgumentParser) -> None:
    """Everything of ``dp-train selector``."""
    add_model(parser)
    parser.add_argument("--start", type=Path, metavar="DIR", help="checkpoint folder whose selector to begin with")
    parser.add_argument("--restart", action="store_true", help="remove a state made from other inputs, and begin anew")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="plugins (default: all under WORK/checkpoint)")
    parser.add_argument("--heads-only", action="store_true", help="frozen text encoder, paper Eq. 6 (for SD 1.4)")
    parser.add_argument("--steps", "--max-train-steps", type=int, metavar="N", help="default: 20000")
    parser.add_argument(
        "--batch",
        "--train-batch-size",
        type=int,
        dest="train_batch_size",
        metavar="N",
        help="texts of a step (default: 64; heads only: 8, one positive and seven negatives)",
    )
    parser.add_argument(
        "--lr", "--learning-rate", type=float, dest="learning_rate", metavar="X", help="default: 3e-3; heads only: 1e-5"
    )
    parser.add_argument(
        "--lr-scheduler", choices=("constant", "cosine", "linear"), help="default: cosine; heads only: constant"
    )
    parser.add_argument("--negatives", type=int, metavar="N", help="negative texts of a positive one (default: 7)")
    parser.add_argument("--temperature", type=float, metavar="X", help="tau of Eq. 6 (default: 0.07)")
    parser.add_argument("--images-per-task", type=int, metavar="N", help="default: 400 in all; heads only: 5000")
    parser.add_argument("--seed", type=int, metavar="N", help="default: 0")


def local_model(args: argparse.Namespace) -> tuple[Path | None, Path | None]:
    """(base, CLIP) as folders; hub ids are fetched or taken from the cache.

    Raises:
        CheckpointError: neither a folder nor a hub id that is there.
    """
    from diffplugin.export.checkpoints.hub import base_path, clip_path

    base = None if args.base is None else base_path(args.base, offline=args.offline, log=print)
    clip = None if args.clip is None else clip_path(args.clip, offline=args.offline, log=print)
    return base, clip


def data_of(args: argparse.Namespace) -> Data:
    """What :func:`add_pairs` took.

    Raises:
        RequestError: a negative number of pictures.
    """
    from diffplugin.plugins.train.data import Data

    if args.validation_pictures < 0:
        raise RequestError(f"--validation-pictures is {args.validation_pictures}, expected 0 or more")
    return Data(
        work=args.work,
        pairs=args.pairs,
        root=args.root,
        degradation=args.degradation or args.task,
        shown=args.validation_pictures,
    )


def trackers_of(args: argparse.Namespace) -> tuple[str, ...]:
    """Where curves and pictures go."""
    return () if args.report_to == "none" else (args.report_to,)


def run_plugin(args: argparse.Namespace) -> None:
    """``dp-train plugin``."""
    from diffplugin.export.checkpoints import Checkpoint
    from diffplugin.plugins.train import settings, tasks, variants

    chosen = data_of(args)
    if args.variant not in variants.VARIANTS:
        raise RequestError(f"--variant {args.variant}: expected one of {', '.join(variants.VARIANTS)}")
    base, clip = local_model(args)
    tree = args.work / "checkpoint"
    start = {args.task: args.start} if args.start else {}
    read = Checkpoint(base or tree / "base", clip or tree / "clip", start, None)
    card = tasks.choose_card(args.task, args.card, ours=base is None and args.pairs is None)
    recipe = settings.recipe(
        args.recipe,
        read.config("unet").get("block_out_channels", ()),
        {field: getattr(args, field) for field in settings.option_types()},
    )
    outcome = tasks.train(
        args.task,
        chosen,
        settings.Settings(
            recipe=recipe,
            variant=args.variant,
            loss=args.loss,
            trackers=trackers_of(args),
            cache_latents=args.cache_latents,
            restart=args.restart,
            dry_run=args.dry_run,
        ),
        read,
        card=card,
        start=args.start,
        log=lambda line: print(line, flush=True),
    )
    if outcome is not None:
        print(f"{args.task}: {outcome}")


def run_selector(args: argparse.Namespace) -> None:
    """``dp-train selector``."""
    from diffplugin.plugins.train import selector_options, selector_training

    base, clip = local_model(args)
    names = ("train_batch_size", "learning_rate", "lr_scheduler", "negatives", "temperature", "images_per_task", "seed")
    given: dict[str, Any] = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    preset = selector_options.PAPER if args.heads_only else {}
    steps = 20_000 if args.steps is None else args.steps
    options = selector_options.Options(steps=steps, heads_only=args.heads_only, **(preset | given))
    selector_training.train(
        args.work, options, base=base, clip=clip, wanted=args.tasks, start=args.start, restart=args.restart
    )
