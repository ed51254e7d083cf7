"""Tables 3 and 4 of the paper and its data set study: plugins trained, exported where they can be, and scored."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import diffplugin
from diffplugin.errors import RequestError
from diffplugin.export.checkpoints import Checkpoint, embedded_checkpoint, find
from diffplugin.export.exporter import export_bundle
from diffplugin.plugins.train import (
    data,
    evaluate,
    features,
    inversion,
    metrics,
    paper,
    plugin,
    settings,
    tasks,
    validation,
)
from diffplugin.plugins.train.ablation_tables import DESIGN, INVERSION_STEPS, PLACES, SIZES, TRAIN_STEPS, Score
from diffplugin.plugins.train.common import Pixels
from diffplugin.plugins.train.degradations import degrade
from diffplugin.runtime.sampling.noise_schedule import NoiseSchedule


def run(args: argparse.Namespace) -> tuple[str, Any]:
    """(Markdown, numbers) of one table."""
    return Study(args).table()


@dataclasses.dataclass(frozen=True)
class Trained:
    """Where a variant was written, and what it makes of the test photos in PyTorch (table 4 alone)."""

    place: Path | None
    made: list[Pixels]


def _place(trained: Trained) -> Path:
    if trained.place is None:
        raise RequestError("this variant has no released layout")
    return trained.place


class Study:
    """One table over plugins: its photos, its trainings, and what came of them."""

    def __init__(self, args: argparse.Namespace) -> None:
        if args.threads:
            torch.set_num_threads(args.threads)
        self.args = args
        self.ours = args.base is None
        if (args.base is None) != (args.clip is None):
            raise RequestError("--base and --clip belong together: name both, or none for the embedded checkpoint")
        whole = embedded_checkpoint([])[0] if self.ours else Checkpoint(args.base, args.clip, {}, None)
        self.read: Checkpoint = Checkpoint(whole.base, whole.clip, {}, None)
        widths = self.read.config("unet").get("block_out_channels", ())
        steps = args.train_steps or TRAIN_STEPS[args.table]
        self.recipe = settings.recipe(None, widths, {"max_train_steps": steps, "crop": 128 if self.ours else None})
        self.photos = evaluate.test_photos(args.work, self.recipe.resolution, args.count)
        if not self.photos:
            raise RequestError(
                f"{args.work}: no test photos of {self.recipe.resolution} pixels; run dp-train photos first"
            )
        self.extract: features.Extractor | None = features.open_extractor(args.features) if args.features else None
        self.tasks: list[str] = args.tasks or (["desnow", "dehaze"] if args.table == "design" else ["desnow"])
        self.work: Path = args.out / "work"
        self._link_photos(args.work)

    def _link_photos(self, source: Path) -> None:
        """The trainings have a work folder of their own, with the photos of the other one."""
        self.work.mkdir(parents=True, exist_ok=True)
        if not (self.work / "photos.json").exists():
            shutil.copyfile(source / "photos.json", self.work / "photos.json")
            (self.work / "photos").symlink_to((source / "photos").resolve(), target_is_directory=True)

    def table(self) -> tuple[str, Any]:
        """(Markdown, numbers)."""
        make = {"design": self._design, "places": self._places, "dataset-size": self._sizes}[self.args.table]
        rows: dict[str, dict[str, Score]] = {}
        for task in self.tasks:
            for name, score in make(task).items():
                rows.setdefault(name, {})[task] = score
        heads = [f"{task} PSNR, dB | SSIM | FID / KID x 100" for task in self.tasks]
        lines = [f"| {' | '.join(['', *heads, 'paper: FID'])} |", "|---" * (3 * len(self.tasks) + 2) + "|"]
        given = {task: self._score(self._degraded(task)) for task in self.tasks}
        for name, scores in {"input": given, **rows}.items():
            cells = [str(scores[task]) if scores.get(task) else "– | – | –" for task in self.tasks]
            lines.append(f"| {name} | {' | '.join(cells)} | {self._paper(name)} |")
        values = {
            name: {task: {"psnr": s.psnr, "ssim": s.ssim, **s.sets} for task, s in scores.items() if s}
            for name, scores in {"input": given, **rows}.items()
        }
        return "\n".join(lines), values

    def _paper(self, name: str) -> str:
        if name in paper.TABLE_3 and self.args.table == "design":
            return " / ".join(f"{value:.2f}" for value in paper.TABLE_3[name])
        if name in paper.TABLE_4:
            return f"{paper.TABLE_4[name][0]:.2f}"
        return "–"

    def _degraded(self, task: str) -> list[Pixels]:
        return [degrade(p, task, evaluate.SEED + i) for i, p in enumerate(self.photos)]

    def _score(self, made: Sequence[Pixels]) -> Score:
        found = evaluate.scores(made, self.photos)
        sets: dict[str, float] = {}
        if self.extract is not None:
            real, other = (np.stack([self.extract(p) for p in pictures]) for pictures in (self.photos, made))
            sets = metrics.fid_kid(real, other)
        return Score(found.psnr, found.ssim, sets)

    def _design(self, task: str) -> dict[str, Score]:
        """Table 3."""
        wanted = self.args.rows or list(DESIGN)
        places: dict[str, Path] = {}
        for name in wanted:
            variant = DESIGN[name]
            if variant == "tpb-fixed-scb":
                first = _place(self._train(task, "reconstruction"))
                places[variant] = _place(self._train(task, variant, start=first))
            elif variant and variant not in places:
                places[variant] = _place(self._train(task, variant))
        made = self._through_engines(task, places)
        found = {}
        for name in wanted:
            variant = DESIGN[name]
            if name == "inversion + editing":
                if task not in inversion.DESCRIPTIONS:
                    continue
                texts = inversion.text_tokens(self.read, inversion.DESCRIPTIONS[task])
                found[name] = self._score(self._inverted(task, None, (texts[:1], texts[1:])))
            elif name == "TPB + inversion":
                found[name] = self._score(self._inverted(task, places[variant], None))
            else:
                found[name] = self._score(made[variant])
        return found

    def _places(self, task: str) -> dict[str, Score]:
        """Table 4; a bundle's UNet takes residuals at D-1 alone, so the others are scored in PyTorch, and so is D-1."""
        stages = len(self.read.config("unet")["block_out_channels"])
        wanted = self.args.rows or [place for place in PLACES if int(place[2]) <= stages]
        return {place: self._score(self._train(task, "released" if place == "D-1" else place).made) for place in wanted}

    def _sizes(self, task: str) -> dict[str, Score]:
        """Photos to learn from: the paper's from under 500 to over 50,000."""
        found = {}
        for size in (*(self.args.sizes or SIZES), None):
            place = _place(self._train(task, "released", limit=size))
            made = self._through_engines(task, {"released": place})["released"]
            found[f"{size} photos" if size else "all photos"] = self._score(made)
        return found

    def _through_engines(self, task: str, places: Mapping[str, Path]) -> dict[str, list[Pixels]]:
        """Export the variants' plugins and restore the degraded photos with the bundle; variant -> pictures."""
        if not places:
            return {}
        tree = next(iter(places.values())).parent
        names = {variant: place.name for variant, place in places.items()}
        checkpoint = find(self.read.base, self.read.clip, tree, list(dict.fromkeys(names.values())))
        out = tree.parent.parent / "bundle"
        shutil.rmtree(out, ignore_errors=True)
        checkpoint = dataclasses.replace(checkpoint, selector=None)
        export_bundle(checkpoint, out, name="ablation", cards=tree.parent, precision="fp32", validate=False)
        bad = self._degraded(task)
        with diffplugin.load(out, precision="fp32", threads=self.args.threads) as restorer:
            return {
                variant: [restorer.restore(p, plugins=[name], tile="off").array for p in bad]
                for variant, name in names.items()
            }

    def _inverted(self, task: str, place: Path | None, texts: tuple[torch.Tensor, torch.Tensor] | None) -> list[Pixels]:
        read = dataclasses.replace(self.read, plugins={task: place} if place else {})
        model = plugin.from_checkpoint(read, task if place else None)
        vae = self.read.autoencoder()
        return inversion.restore(model.eval(), vae, self._degraded(task), steps=INVERSION_STEPS, texts=texts)

    def _train(self, task: str, variant: str, *, start: Path | None = None, limit: int | None = None) -> Trained:
        """Train one variant, in a work folder of its own where photos are limited."""
        read = dataclasses.replace(self.read, plugins={task: start} if start else {})
        folder = self.work / (f"limit{limit}" if limit else "all")
        _link(self.work, folder)
        card = tasks.choose_card(task, None, ours=self.ours)
        outcome = tasks.train(
            task,
            data.Data(work=folder, pairs=None, root=None, degradation=task, shown=2, limit=limit),
            settings.Settings(recipe=self.recipe, variant=variant, trackers=()),
            read,
            card=card,
            start=start,
        )
        made: list[Pixels] = []
        if outcome is not None and self.args.table == "places":
            schedule = NoiseSchedule.from_config(self.read.config("scheduler"))
            made = validation.restore(outcome.model, self.read.autoencoder(), schedule, self._degraded(task), card)
        return Trained(outcome.place if outcome else None, made)


def _link(work: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("photos.json", "photos"):
        if not (folder / name).exists():
            (folder / name).symlink_to((work / name).resolve())
