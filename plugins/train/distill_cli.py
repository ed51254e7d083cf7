"""``dp-train distill``: its options."""

from __future__ import annotations

import argparse

from diffplugin.command import path, positive
from diffplugin.plugins.train import plugin_cli

STEPS = (1, 2, 4)  # that a student may have
# numbers of a recipe that a student's training takes
_NUMBERS = (
    *("resolution", "crop", "train_batch_size", "gradient_accumulation_steps", "max_train_steps", "learning_rate"),
    *("lr_scheduler", "lr_warmup_steps", "max_grad_norm", "ema_decay", "mixed_precision", "gradient_checkpointing"),
    *("harder_share", "clean_share", "seed", "checkpointing_steps", "validation_steps"),
)


def add_distill(parser: argparse.ArgumentParser) -> None:
    """Everything of ``dp-train distill``."""
    from diffplugin.plugins.train.settings import DISTILL

    parser.add_argument("task", help="id of the plugin, for example derain")
    parser.add_argument(
        "--steps", type=int, choices=STEPS, default=1, help="of the sampler, that the student is to run (default: 1)"
    )
    parser.add_argument(
        "--teacher", type=path, metavar="DIR", help="plugin folder (default: WORK/checkpoint/pre-trained/TASK)"
    )
    parser.add_argument("--teacher-steps", type=positive, metavar="N", help="default: steps_first of its card")
    parser.add_argument(
        "--card", type=path, metavar="TOML", help="the teacher's card (default: beside it, else the shipped one)"
    )
    parser.add_argument(
        "--out", type=path, metavar="DIR", help="tree of plugins to write DIR/TASK into (default: WORK/distilled)"
    )
    parser.add_argument(
        "--truth-share", type=float, default=0.0, metavar="X", help="of the loss: to the ground truth (default: 0)"
    )
    parser.add_argument(
        "--samples",
        type=positive,
        default=0,
        metavar="N",
        help="batches that the teacher restores once and that are kept in memory (default: every step has a new one)",
    )
    plugin_cli.add_model(parser)
    plugin_cli.add_pairs(parser)
    plugin_cli.add_numbers(parser, _NUMBERS, (DISTILL,), taken=("--steps",))


def run_distill(args: argparse.Namespace) -> None:
    """``dp-train distill``."""
    from diffplugin.export.checkpoints import Checkpoint
    from diffplugin.plugins.train import distill, settings, tasks

    chosen = plugin_cli.data_of(args)
    recipe = settings.overridden(settings.DISTILL, {field: getattr(args, field) for field in _NUMBERS})
    tree = args.work / "checkpoint"
    folder = args.teacher or tree / "pre-trained" / args.task
    beside = folder / "card.toml"
    card = tasks.choose_card(args.task, args.card or (beside if beside.exists() else None), ours=False)
    teacher, student = distill.cards_of(card, teacher_steps=args.teacher_steps, steps=args.steps)
    base, clip = plugin_cli.local_model(args)
    outcome = distill.train(
        args.task,
        chosen,
        settings.Settings(
            recipe=recipe,
            trackers=plugin_cli.trackers_of(args),
            restart=args.restart,
        ),
        Checkpoint(base or tree / "base", clip or tree / "clip", {args.task: folder}, None),
        (args.out or args.work / "distilled") / args.task,
        teacher=teacher,
        student=student,
        truth=args.truth_share,
        samples=args.samples,
        log=lambda line: print(line, flush=True),
    )
    if outcome is not None:
        print(f"{args.task}: {outcome}")
