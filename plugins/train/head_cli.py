"""``dp-train head``: its options."""

from __future__ import annotations

import argparse

from diffplugin.command import path
from diffplugin.plugins.train import plugin_cli

# numbers of a recipe that a head's training takes
_NUMBERS = (
    *("resolution", "crop", "views", "train_batch_size", "max_train_steps", "learning_rate", "lr_scheduler"),
    *("lr_warmup_steps", "max_grad_norm", "ema_decay", "mixed_precision", "harder_share", "clean_share", "seed"),
    *("checkpointing_steps", "validation_steps"),
)


def add_head(parser: argparse.ArgumentParser) -> None:
    """Everything of ``dp-train head``."""
    from diffplugin.plugins.train.settings import HEAD

    parser.add_argument("task", help="id of a plugin that is trained already")
    parser.add_argument(
        "--plugin", type=path, metavar="DIR", help="its folder (default: WORK/checkpoint/pre-trained/TASK)"
    )
    plugin_cli.add_model(parser)
    plugin_cli.add_pairs(parser)
    plugin_cli.add_numbers(parser, _NUMBERS, (HEAD,))


def run_head(args: argparse.Namespace) -> None:
    """``dp-train head``."""
    from diffplugin.export.checkpoints import Checkpoint
    from diffplugin.plugins.train import change_head, settings

    chosen = plugin_cli.data_of(args)
    recipe = settings.overridden(settings.HEAD, {field: getattr(args, field) for field in _NUMBERS})
    tree = args.work / "checkpoint"
    place = args.plugin or tree / "pre-trained" / args.task
    base, clip = plugin_cli.local_model(args)
    change_head.train(
        args.task,
        chosen,
        settings.Settings(
            recipe=recipe,
            trackers=plugin_cli.trackers_of(args),
            restart=args.restart,
        ),
        Checkpoint(base or tree / "base", clip or tree / "clip", {args.task: place}, None),
    )
    print(f"{args.task}: {place / 'head'}, and the card beside it")
