"""Tables 3 and 4 of the paper and its data set study: plugins trained, exported where they can be, and scored."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
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
from diffplugin.plugins import cards
from diffplugin.plugins.cards import PluginCard
from diffplugin.plugins.train import (
    data,
    evaluate,
    features,
    inversion,
    layout,
    metrics,
    paper,
    plugin,
    settings,
    tasks,
    validation,
)
from diffplugin.plugins.train.ablation_tables import (
    DESIGN,
    INVERSION_STEPS,
    PAPER_HEADS,
    PLACES,
    SIZES,
    TRAIN_STEPS,
    Score,
    cells,
)
from diffplugin.plugins.train.common import Pixels
from diffplugin.plugins.train.degradations import degrade
from diffplugin.runtime.sampling.noise_schedule import NoiseSchedule


def run(args: argparse.Namespace) -> tuple[str, Any]:
    """(Markdown, numbers) of one table."""
    return Study(args).table()


Rows = dict[str, dict[str, list[Score]]]  # row -> task -> a score of each seed


@dataclasses.dataclass(frozen=True)
class Trained:
    """Where a variant was written (None: it has no released layout), how large it is in millions of parameters, and
    what it makes of the test photos in PyTorch (table 4 alone)."""

    place: Path | None
    parameters: float
    made: list[Pixels]


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
        crop = args.crop or (128 if self.ours else None)
        own = {"max_train_steps": steps, "validation_steps": steps, "crop": crop, "train_batch_size": args.batch}
        recipe = settings.recipe(None, widths, own)
        warmup = min(recipe.lr_warmup_steps, steps // 5)
        self.recipe = dataclasses.replace(recipe, lr_warmup_steps=warmup)
        self.photos = evaluate.test_photos(args.work, self.recipe.resolution, args.count)
        if not self.photos:
            raise RequestError(
                f"{args.work}: no test photos of {self.recipe.resolution} pixels; run dp-train photos first"
            )
        self.extract: features.Extractor | None = features.open_extractor(args.features) if args.features else None
        self.tasks: list[str] = args.tasks or (["desnow", "dehaze"] if args.table == "design" else ["desnow"])
        self.cards = {task: self._card(task) for task in self.tasks}
        self.seeds = range(args.seeds)
        self.parameters: dict[str, float] = {}
        self.work: Path = args.out / "work"

    def _card(self, task: str) -> PluginCard:
        """As the paper's ablation samples: from random noise, which keeps nothing of the input."""
        card = tasks.choose_card(task, None, ours=self.ours)
        steps = self.args.steps or card.steps_first
        return dataclasses.replace(card, start="noise", first_t=999, output="decoded", steps_first=steps)

    def table(self) -> tuple[str, Any]:
        """(Markdown, numbers)."""
        make = {"design": self._design, "places": self._places, "dataset-size": self._sizes}[self.args.table]
        given = {task: [self._score(self._degraded(task))] for task in self.tasks}
        rows: Rows = {"input": given, **make()}
        heads = [f"{task} PSNR, dB | SSIM | FID / KID x 100" for task in self.tasks]
        heads += ["parameters, millions"] * bool(self.parameters)
        columns = 3 * len(self.tasks) + bool(self.parameters) + 2
        lines = [f"| {' | '.join(['', *heads, PAPER_HEADS[self.args.table]])} |", "|---" * columns + "|"]
        for name, scores in rows.items():
            found = [cells(scores[task]) if scores.get(task) else "– | – | –" for task in self.tasks]
            if self.parameters:
                found.append(f"{self.parameters[name]:.3f}" if name in self.parameters else "–")
            lines.append(f"| {name} | {' | '.join(found)} | {self._paper(name)} |")
        values = {
            name: {task: [{"psnr": s.psnr, "ssim": s.ssim, **s.sets} for s in by_seed] for task, by_seed in row.items()}
            for name, row in rows.items()
        }
        return "\n".join(lines), values

    def _paper(self, name: str) -> str:
        if name in paper.TABLE_3 and self.args.table == "design":
            return " / ".join(f"{value:.2f}" for value in paper.TABLE_3[name])
        if name in paper.TABLE_4:
            return " / ".join(f"{value:.2f}" for value in paper.TABLE_4[name])
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

    def _design(self) -> Rows:
        """Table 3."""
        wanted = self.args.rows or list(DESIGN)
        places: dict[str, Path] = {}
        for task, seed in itertools.product(self.tasks, self.seeds):
            for variant in dict.fromkeys(DESIGN[name] for name in wanted if DESIGN[name]):
                start = self._written(task, "reconstruction", seed) if variant == "tpb-fixed-scb" else None
                places[_name(task, variant, seed)] = self._written(task, variant, seed, start=start)
        made = self._through_engines(places)
        rows: Rows = {name: {} for name in wanted}
        for name, task in itertools.product(wanted, self.tasks):
            if name == "inversion + editing":
                if task in inversion.DESCRIPTIONS:
                    rows[name][task] = [self._score(self._edited(task))]
                continue
            names = [_name(task, DESIGN[name], seed) for seed in self.seeds]
            inverted = name == "TPB + inversion"
            pictures = (self._inverted(task, places[own]) if inverted else made[own] for own in names)
            rows[name][task] = [self._score(found) for found in pictures]
        return rows

    def _places(self) -> Rows:
        """Table 4; a bundle's UNet takes residuals at D-1 alone, so the others are scored in PyTorch, and so is D-1."""
        stages = len(self.read.config("unet")["block_out_channels"])
        wanted = self.args.rows or [place for place in PLACES if int(place[2]) <= stages]
        rows: Rows = {place: {task: [] for task in self.tasks} for place in wanted}
        for place, task, seed in itertools.product(wanted, self.tasks, self.seeds):
            trained = self._train(task, "released" if place == "D-1" else place, seed)
            rows[place][task].append(self._score(trained.made))
            self.parameters[place] = trained.parameters
        return rows

    def _sizes(self) -> Rows:
        """Photos to learn from: the paper's from under 500 to over 50,000."""
        sizes = {f"{size} photos" if size else "all photos": size for size in (*(self.args.sizes or SIZES), None)}
        places = {
            _name(task, f"{size or 'all'}", seed): self._written(task, "released", seed, limit=size)
            for task, seed, size in itertools.product(self.tasks, self.seeds, sizes.values())
        }
        made = self._through_engines(places)
        return {
            row: {
                task: [self._score(made[_name(task, f"{size or 'all'}", seed)]) for seed in self.seeds]
                for task in self.tasks
            }
            for row, size in sizes.items()
        }

    def _through_engines(self, places: Mapping[str, Path]) -> dict[str, list[Pixels]]:
        """Export all variants as plugins of one bundle, and restore the degraded photos with it; name -> pictures."""
        if not places:
            return {}
        tree, out = self.work / f"plugins-{self.args.table}", self.work / f"bundle-{self.args.table}"
        for folder in (tree, out):
            shutil.rmtree(folder, ignore_errors=True)
        for name, place in places.items():
            shutil.copytree(place, tree / "pre-trained" / name)
            card = cards.load_card(place / "card.toml")
            own = dataclasses.replace(card, id=name, title=f"{card.title} ({name})", aliases=(), order=cards.LAST)
            layout.write_lines(tree / "pre-trained" / name / "card.toml", cards.card_to_toml(own))
        read = find(self.read.base, self.read.clip, tree / "pre-trained", list(places))
        read = dataclasses.replace(read, selector=None)
        export_bundle(read, out, name="ablation", precision="fp32", validate=False)
        with diffplugin.load(out, precision="fp32", threads=self.args.threads) as restorer:
            return {
                name: [
                    restorer.restore(p, plugins=[name], tile="off").array for p in self._degraded(name.split("-")[0])
                ]
                for name in places
            }

    def _edited(self, task: str) -> list[Pixels]:
        """Inversion + editing."""
        texts = inversion.text_tokens(self.read, inversion.DESCRIPTIONS[task])
        return self._invert(task, self.read, (texts[:1], texts[1:]))

    def _inverted(self, task: str, place: Path) -> list[Pixels]:
        """TPB + inversion."""
        return self._invert(task, dataclasses.replace(self.read, plugins={task: place}), None)

    def _invert(self, task: str, read: Checkpoint, texts: tuple[torch.Tensor, torch.Tensor] | None) -> list[Pixels]:
        model = plugin.from_checkpoint(read, task if read.plugins else None)
        vae = self.read.autoencoder()
        bf16 = self.recipe.mixed_precision == "bf16"
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return inversion.restore(model.eval(), vae, self._degraded(task), steps=INVERSION_STEPS, texts=texts)

    def _written(
        self, task: str, variant: str, seed: int, *, start: Path | None = None, limit: int | None = None
    ) -> Path:
        place = self._train(task, variant, seed, start=start, limit=limit).place
        if place is None:
            raise RequestError(f"{variant}: this variant has no released layout")
        return place

    def _train(
        self, task: str, variant: str, seed: int, *, start: Path | None = None, limit: int | None = None
    ) -> Trained:
        """Train one variant, or find it trained, in a work folder of its own for every seed and number of photos."""
        read = dataclasses.replace(self.read, plugins={task: start} if start else {})
        outcome = tasks.train(
            task,
            data.Data(work=self._folder(seed, limit), pairs=None, root=None, degradation=task, shown=0, limit=limit),
            settings.Settings(recipe=dataclasses.replace(self.recipe, seed=seed), variant=variant, trackers=()),
            read,
            card=self.cards[task],
            start=start,
        )
        if outcome is None:
            raise RequestError(f"{variant}: not trained")
        made: list[Pixels] = []
        if self.args.table == "places":
            schedule = NoiseSchedule.from_config(self.read.config("scheduler"))
            vae, model = self.read.autoencoder(), outcome.model
            made = validation.restore(model, vae, schedule, self._degraded(task), self.cards[task])
        own = (*outcome.model.tpb.parameters(), *outcome.model.scb.parameters())
        return Trained(outcome.place, sum(p.numel() for p in own) / 1e6, made)

    def _folder(self, seed: int, limit: int | None) -> Path:
        """A work folder with the photos of ``--work``, and latents made from as many of them before."""
        name = f"{limit or 'all'}"
        folder = self.work / (f"{name}-seed{seed}" if seed else name)
        folder.mkdir(parents=True, exist_ok=True)
        sources = [self.args.work / "photos.json", self.args.work / "photos"]
        if limit is None:
            sources += self.args.work.glob("pool*")
        if seed:
            sources += (self.work / name).glob("pool-*")
        for source in sources:
            if not (folder / source.name).exists():
                (folder / source.name).symlink_to(source.resolve())
        return folder


def _name(task: str, variant: str, seed: int) -> str:
    return f"{task}-{variant}-seed{seed}"
