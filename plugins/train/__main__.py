"""``python -m diffplugin.plugins.train STAGE --work FOLDER``: the recipe of the embedded model, stage by stage.

Every stage resumes from what it left in ``FOLDER/run``. Order: photos, vae, pool, base, plugin (once per task),
selector, export, evaluate.
"""

from __future__ import annotations

import argparse
import copy
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from diffplugin.plugins.train.plugin import Denoiser

TASKS = ("derain", "desnow", "lowlight", "dehaze")


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


def decoder(args: argparse.Namespace) -> None:
    from diffplugin.plugins.train import autoencoder, common

    train, val = (common.load_photos(args.work, split) for split in ("train", "val"))
    model = autoencoder.load_final(args.work / "run/vae_final.pt")
    autoencoder.refine_decoder(model, train, val, args.work / "run/decoder.pt", steps=args.steps or 1200)
    halved = {name: value.half() for name, value in model.state_dict().items()}
    common.save_state(args.work / "run/vae_refined.pt", {"model": halved})


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

    steps = args.steps or 1250
    stages = (
        plugins.Stage(until=int(steps * 0.45), pictures=4, crops=3, side=16),
        plugins.Stage(until=steps, pictures=3, crops=2, side=32),
    )
    model = plugins.Denoiser(module.CONFIGS)
    plugins.fit(
        model,
        Pool(args.work / "pool", args.tasks),
        args.work / "run/base.pt",
        stages,
        peak=1.5e-3,
        train_base=True,
        drop=0.1,
    )


def _denoiser(args: argparse.Namespace, *, tuned: bool = True) -> Denoiser:
    """The denoiser with the weights so far, and the loss weighted by what errors show in the picture."""
    from diffplugin.plugins.train import autoencoder, common
    from diffplugin.plugins.train import base as module
    from diffplugin.plugins.train import plugin as plugins

    model = plugins.load_averaged(plugins.Denoiser(module.CONFIGS), _base(args) if tuned else args.work / "run/base.pt")
    clean = common.load_photos(args.work, "train")[::20]
    views = [common.random_view(p, 128, np.random.default_rng(i)) for i, p in enumerate(clean)]
    vae = autoencoder.load_final(args.work / "run/vae_final.pt")
    model.metric = autoencoder.pixel_metric(vae, [common.to_tensor(v[None]) for v in views])
    return model


def _shipped(args: argparse.Namespace) -> list[str]:
    """The tasks asked for that have a trained plugin: only they are selected, written and measured."""
    found = [task for task in args.tasks if (args.work / f"run/plugin_{task}.pt").exists()]
    if not found:
        raise SystemExit(
            f"{args.work}/run: no plugin_<task>.pt of {', '.join(args.tasks)}; train one first (stage plugin)"
        )
    return found


def _base(args: argparse.Namespace) -> Path:
    tuned: Path = args.work / "run/base_tuned.pt"
    return tuned if tuned.exists() else args.work / "run/base.pt"


def tune(args: argparse.Namespace) -> None:
    from diffplugin.plugins.train import plugin as plugins
    from diffplugin.plugins.train.pool import Pool

    stage = plugins.Stage(until=args.steps or 240, pictures=4, crops=2, side=32)
    plugins.fit(
        _denoiser(args, tuned=False),
        Pool(args.work / "pool", args.tasks),
        args.work / "run/base_tuned.pt",
        (stage,),
        peak=7e-4,
        train_base=True,
        first_share=0.7,
        decay=0.98,
        name="tune",
    )


def plugin(args: argparse.Namespace) -> None:
    from diffplugin.plugins.train import plugin as plugins
    from diffplugin.plugins.train.pool import Pool

    steps = args.steps or 250
    for task in args.tasks:
        model = _denoiser(args)
        stages = (plugins.Stage(until=steps, pictures=4, crops=2, side=32),)
        plugins.fit(
            model,
            Pool(args.work / "pool", [task]),
            args.work / f"run/plugin_{task}.pt",
            stages,
            peak=6e-4,
            train_base=False,
            first_share=0.75,
            name=task,
        )


def _rows(args: argparse.Namespace, shards: int) -> Tensor:
    """Max-pooled TPB tokens [pictures, plugins, D] of degraded pool pictures, for the selector."""
    import torch

    from diffplugin.plugins.train import base as module
    from diffplugin.plugins.train import plugin as plugins
    from diffplugin.plugins.train import pool as pools

    pool = pools.Pool(args.work / "pool", args.tasks)
    model = plugins.Denoiser(module.CONFIGS)
    branches = []
    for task in _shipped(args):
        plugins.load_averaged(model, _base(args), _state(args, task))
        branches.append(copy.deepcopy(model.tpb))
    rows = []
    with torch.no_grad():
        for _, _, small, _ in list(pool.shards.values())[:shards]:
            # every picture under one degradation, in turn; some of them would be clean in life, most not
            chosen = np.stack([small[i % len(small), i] for i in range(small.shape[1])])
            patches = model.vision(pools.clip_pixels(chosen))
            rows.append(torch.stack([branch(patches).amax(dim=1) for branch in branches], dim=1))
    return torch.cat(rows)


def _state(args: argparse.Namespace, task: str) -> Path:
    path: Path = args.work / f"run/plugin_{task}.pt"
    return path


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

    rows = _rows(args, 4)
    config = selectors.text_config(tokenizer.get_vocab(), module.TOKEN_WIDTH)
    path = args.work / "run/selector.pt"
    model = selectors.fit(rows[8:], encode, config, _shipped(args), path, steps=args.steps or 1500)
    print("held-out ZTA", selectors.accuracy(model.eval(), rows[:8], encode, _shipped(args)))
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
    refined = args.work / "run/vae_refined.pt"  # the same latents, a better decoder
    vae = autoencoder.load_final(refined if refined.exists() else args.work / "run/vae_final.pt")
    model = plugins.load_averaged(plugins.Denoiser(module.CONFIGS), _base(args))
    layout.write_base(
        args.out,
        {**module.CONFIGS, "text": config},
        unet=model.unet.state_dict(),
        vae=vae,
        vision=model.vision.state_dict(),
        text=chosen.text.state_dict(),
    )
    layout.write_selector(args.out, chosen.heads.state_dict())
    for task in _shipped(args):
        plugins.load_averaged(model, _base(args), _state(args, task))
        card = dataclasses.replace(cards.shipped_cards()[task], licence=module.LICENCE, **module.CARDS[task])
        layout.write_plugin(
            args.out,
            task,
            module.SCB,
            tpb=model.tpb.state_dict(),
            scb=model.scb.state_dict(),
            card=cards.card_to_toml(card),
        )
    for folder in (args.out / "pre-trained").iterdir():
        if folder.name not in (*_shipped(args), "plugin_selector"):
            shutil.rmtree(folder)
            (args.out / "cards" / f"{folder.name}.toml").unlink(missing_ok=True)
    size = sum(f.stat().st_size for f in args.out.rglob("*") if f.is_file())
    print(f"{args.out}: {', '.join(_shipped(args))}, {size / 2**20:.1f} MiB")


def evaluate(args: argparse.Namespace) -> None:
    """The table of docs/embedded-model.md, from the checkpoint as shipped; contact sheets go to ``run/``."""
    from PIL import Image

    from diffplugin.plugins import cards
    from diffplugin.plugins.train import evaluate as module

    clean, found = module.test_photos(args.work, args.size), cards.registry(args.out)
    print(module.HEAD)
    rows = []
    for task in _shipped(args):
        model, vae, schedule = module.released(args.out, task)
        card = found[task]
        for steps in dict.fromkeys((card.steps_first, *([args.steps] if args.steps else []))):
            sheet: list[np.ndarray] = []
            rows.append(module.measure(model, vae, schedule, task, clean, steps=steps, start=card.start, keep=sheet))
            print(rows[-1].line(), flush=True)
            picture = Image.fromarray(np.concatenate(sheet[:: max(len(sheet) // 8, 1)], axis=1))
            picture.save(args.work / f"run/sheet_{task}_{steps}_{args.size}.jpg")
    module.write_rows(args.work / f"run/rows_{args.size}.json", rows)


STAGES = {
    "tune": tune,
    "decoder": decoder,
    "evaluate": evaluate,
    "selector": selector,
    "export": export,
    "photos": photos,
    "vae": vae,
    "pool": pool,
    "base": base,
    "plugin": plugin,
}


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
