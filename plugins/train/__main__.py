"""``python -m diffplugin.plugins.train STAGE --work FOLDER``: the recipe of the embedded model, stage by stage.

Every stage resumes from what it left in ``FOLDER/run``. Order: photos, vae, pool, base, plugin (once per task),
selector, export, evaluate.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

TASKS = ("derain", "desnow", "lowlight", "dehaze", "highlight")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m diffplugin.plugins.train", description=__doc__)
    parser.add_argument("stage", choices=sorted(STAGES))
    parser.add_argument("--work", type=Path, required=True, help="photos, pools and training states go here")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="tasks to train, default: %(default)s")
    parser.add_argument("--steps", type=int, help="training steps of this stage (each has its own default)")
    parser.add_argument("--shards", type=int, default=40, help="shards of the pool (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "embedded", help="checkpoint folder")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--size", type=int, default=256, help="evaluate: side of the test crops (default: %(default)s)")
    return parser.parse_args()


def photos(args: argparse.Namespace) -> None:
    from diffplugin.plugins.train import photos as module

    found = module.fetch(args.work)
    print(f"{len(found)} photos in {args.work / 'photos'}, licences in {args.work / 'LICENCES.txt'}")


def vae(args: argparse.Namespace) -> None:
    from diffplugin.plugins.train import autoencoder, common

    train, val = (common.load_photos(args.work, split) for split in ("train", "val"))
    model = autoencoder.train(train, val, args.work / "run/vae.pt", steps=args.steps or 2000)
    autoencoder.finish(model, train, args.work / "run/vae_final.pt")


def pool(args: argparse.Namespace) -> None:
    from diffplugin.plugins.train import autoencoder, common
    from diffplugin.plugins.train import pool as module

    model = autoencoder.load_final(args.work / "run/vae_final.pt")
    clean = common.load_photos(args.work, "train")
    for number in range(args.shards):
        if not (args.work / f"pool/shard{number:03d}").exists():
            module.write_shard(args.work / "pool", number, clean[number % 4 :: 4], args.tasks, model)
            print(f"shard {number}", flush=True)


def base(args: argparse.Namespace) -> None:
    from diffplugin.plugins.train import base as module
    from diffplugin.plugins.train import plugin as plugins
    from diffplugin.plugins.train.pool import Pool

    steps = args.steps or 2400
    stages = (
        plugins.Stage(until=int(steps * 0.45), pictures=4, crops=3, side=16),
        plugins.Stage(until=steps, pictures=3, crops=2, side=32),
    )
    model = plugins.Denoiser(module.CONFIGS)
    plugins.fit(
        model, Pool(args.work / "pool", args.tasks), args.work / "run/base.pt", stages, peak=1.5e-3, train_base=True,
        drop=0.1,
    )  # fmt: skip


def plugin(args: argparse.Namespace) -> None:
    from diffplugin.plugins.train import base as module
    from diffplugin.plugins.train import plugin as plugins
    from diffplugin.plugins.train.pool import Pool

    steps = args.steps or 400
    for task in args.tasks:
        model = plugins.load_averaged(plugins.Denoiser(module.CONFIGS), args.work / "run/base.pt")
        stages = (plugins.Stage(until=steps, pictures=3, crops=2, side=32),)
        plugins.fit(
            model, Pool(args.work / "pool", [task]), args.work / f"run/plugin_{task}.pt", stages, peak=6e-4,
            train_base=False, name=task,
        )  # fmt: skip


def _rows(args: argparse.Namespace, shards: int) -> Tensor:
    """Max-pooled TPB tokens [pictures, plugins, D] of degraded pool pictures, for the selector."""
    import torch

    from diffplugin.plugins.train import base as module
    from diffplugin.plugins.train import plugin as plugins
    from diffplugin.plugins.train import pool as pools

    pool = pools.Pool(args.work / "pool", args.tasks)
    model = plugins.Denoiser(module.CONFIGS)
    branches = []
    for task in args.tasks:
        plugins.load_averaged(model, args.work / "run/base.pt", _state(args, task))
        branches.append(copy.deepcopy(model.tpb))
    rows = []
    with torch.no_grad():
        for _, _, small, _ in list(pool.shards.values())[:shards]:
            # every picture under one degradation, in turn; some of them would be clean in life, most not
            chosen = np.stack([small[i % len(small), i] for i in range(small.shape[1])])
            patches = model.vision(pools.clip_pixels(chosen))
            rows.append(torch.stack([branch(patches).amax(dim=1) for branch in branches], dim=1))
    return torch.cat(rows)


def _state(args: argparse.Namespace, task: str) -> Path | None:
    path: Path = args.work / f"run/plugin_{task}.pt"
    return path if path.exists() else None


def selector(args: argparse.Namespace) -> None:
    from diffplugin.export.tokenizer import build_tokenizer
    from diffplugin.plugins.train import base as module
    from diffplugin.plugins.train import corpus, layout
    from diffplugin.plugins.train import photos as fetcher
    from diffplugin.plugins.train import selector as selectors

    if not (args.out / "base/tokenizer/vocab.json").exists():
        texts = [r.text for r in corpus.corpus(8000, 0, held=False)] + fetcher.english_words(args.work)[::4]
        layout.write_tokenizer(args.out, *selectors.train_tokenizer(texts))
    tokenizer = build_tokenizer(args.out / "base/tokenizer")

    def encode(texts: list[str]) -> Tensor:
        import torch

        return torch.tensor([e.ids for e in tokenizer.encode_batch(texts)])

    rows = _rows(args, 1 if args.steps == 100 else 4)
    config = selectors.text_config(tokenizer.get_vocab(), module.TOKEN_WIDTH)
    path = args.work / "run/selector.pt"
    model = selectors.fit(rows[8:], encode, config, args.tasks, path, steps=args.steps or 1500)
    print("held-out ZTA", selectors.accuracy(model.eval(), rows[:8], encode, args.tasks))
    layout.write_json(args.work / "run/text_config.json", config)


def export(args: argparse.Namespace) -> None:
    import dataclasses
    import json

    from diffplugin.plugins import cards
    from diffplugin.plugins.train import autoencoder, common, layout
    from diffplugin.plugins.train import base as module
    from diffplugin.plugins.train import plugin as plugins
    from diffplugin.plugins.train import selector as selectors

    config = json.loads((args.work / "run/text_config.json").read_text())
    chosen = selectors.Selector(config)
    state = common.load_state(args.work / "run/selector.pt")
    if state is None:
        raise SystemExit(f"{args.work}/run/selector.pt: train the selector first (stage selector)")
    chosen.load_state_dict(state["model"])
    vae = autoencoder.load_final(args.work / "run/vae_final.pt")
    model = plugins.load_averaged(plugins.Denoiser(module.CONFIGS), args.work / "run/base.pt")
    layout.write_base(
        args.out, {**module.CONFIGS, "text": config}, unet=model.unet.state_dict(), vae=vae,
        vision=model.vision.state_dict(), text=chosen.text.state_dict(),
    )  # fmt: skip
    layout.write_selector(args.out, chosen.heads.state_dict())
    for task in args.tasks:
        plugins.load_averaged(model, args.work / "run/base.pt", _state(args, task))
        card = dataclasses.replace(cards.shipped_cards()[task], licence=module.LICENCE, **module.CARDS[task])
        layout.write_plugin(
            args.out, task, module.SCB, tpb=model.tpb.state_dict(), scb=model.scb.state_dict(),
            card=cards.card_to_toml(card),
        )  # fmt: skip
    size = sum(f.stat().st_size for f in args.out.rglob("*") if f.is_file())
    print(f"{args.out}: {', '.join(args.tasks)}, {size / 2**20:.1f} MiB")


STAGES = {"selector": selector, "export": export, "photos": photos, "vae": vae, "pool": pool, "base": base, "plugin": plugin}


def main() -> None:
    """Run one stage."""
    args = _arguments()
    if args.stage != "photos":
        import torch

        torch.set_num_threads(args.threads)
        torch.manual_seed(0)
    STAGES[args.stage](args)


if __name__ == "__main__":
    main()
