"""What one plugin learns from, in each recipe's form: streamed pairs, kept latents, or a pool of views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffplugin.errors import RequestError
from diffplugin.plugins.networks.vae import Autoencoder
from diffplugin.plugins.train import cache, common, eq3, layout, pairs, photos, pool, record
from diffplugin.plugins.train.degradations import DEGRADATIONS, degrade, released_face
from diffplugin.plugins.train.settings import Recipe
from diffplugin.plugins.train.sources import Files, Hub, check_sizes, open_source, split
from diffplugin.plugins.train.stream import Batches, Pairs

Held = tuple[list[common.Pixels], list[common.Pixels]]
VALIDATION_SEED = 5000
_CACHE_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class Data:
    """The user's choice: ``pairs`` (:func:`.sources.open_source`), or the photos of ``work`` degraded.

    Attributes:
        root: where a CSV's relative paths start.
        degradation: task whose degradation is applied on the fly to photos, and to rows whose input is the truth.
        shown: pictures that curves are made of; 0: none.
        limit: pairs to learn from at most.
    """

    work: Path
    pairs: str | None
    root: Path | None
    degradation: str
    shown: int = 4
    limit: int | None = None


@dataclass(frozen=True)
class Opened:
    """Pairs by number: ``kept`` to learn from, ``held`` for curves and scores; ``degrade`` makes inputs on the fly."""

    source: Files | Hub
    kept: Sequence[int]
    held: Sequence[int]
    degrade: pairs.Degrade | None

    def squares(self, side: int, count: int) -> Held:
        """(inputs, ground truths) of the first held-out pairs, resized to squares, always the same."""
        shown = Pairs(self.source, self.held[:count], side, degrade=self.degrade, seed=VALIDATION_SEED)
        found = [shown.pixels((0, i)) for i in range(len(shown))]
        return [given for given, _ in found], [truth for _, truth in found]


def degradation(name: str, *, released: bool, harder: float = 0.0) -> pairs.Degrade | None:
    """What is done to a picture on the fly for a task; None where there is nothing of that name.

    ``released``: faces as the release degrades them, else as the small model's recipe does, a share ``harder`` by the
    harder family.
    """
    if name == "face" and released:
        return released_face
    if name not in DEGRADATIONS:
        return None

    mix = pairs.Mix(harder=harder)

    def apply(pixels: common.Pixels, rng: np.random.Generator) -> common.Pixels:
        return mix.degrade(pixels, name, rng)

    return apply


def open_pairs(data: Data, *, released: bool, harder: float = 0.0) -> Opened:
    """The pairs that ``data`` names, or the photos of its work folder as rows whose input is the truth.

    ``released``, ``harder``: as :func:`degradation` takes them.

    Raises:
        RequestError: no pairs, no photos, or rows whose input is the truth and no degradation of that name.
    """
    applied = degradation(data.degradation, released=released, harder=harder)
    if data.pairs is not None:
        source = open_source(data.pairs, data.root)
        kept, held = split(len(source))
    else:
        by_split = {name: [p.file for p in photos.load(data.work, name)] for name in ("train", "val")}
        files = by_split["train"] + by_split["val"]
        source = Files([(file, file) for file in files], data.work / "photos")
        kept = list(range(len(by_split["train"])))
        held = list(range(len(kept), len(files))) or kept[:1]
    same = next((i for i in range(len(source)) if source.same(i)), None)
    if same is not None and applied is None:
        raise RequestError(
            f"{data.pairs or data.work} row {same + 1}: input and ground truth are one file, and there is no "
            f"degradation {data.degradation!r} ({', '.join(DEGRADATIONS)}); name one with --degradation, or give pairs"
        )
    return Opened(source, kept[: data.limit], held, applied)


def check(opened: Opened) -> None:
    """Raises:
    ImageError: pairs of two sizes or files that are no pictures, counted and named, before any training.
    """
    check_sizes(opened.source)


def remember(data: Data, task: str) -> None:
    """Note in the work folder where a task's pictures are: the selector learns from them too."""
    if data.pairs is not None:
        place = Path(data.pairs).expanduser()
        where = str(place.resolve()) if place.exists() else data.pairs
        root = str(data.root.resolve()) if data.root else None
        layout.write_json(
            data.work / f"pairs/{task}.json", {"pairs": where, "root": root, "degradation": data.degradation}
        )


def streamed(opened: Opened, recipe: Recipe) -> tuple[Pairs, Batches]:
    """The pairs to learn from and the loader over them, as the recipe says."""
    found = Pairs(
        opened.source,
        opened.kept,
        recipe.resolution,
        augment=recipe.use_data_aug,
        degrade=opened.degrade,
        clean=recipe.clean_share,
        seed=recipe.seed,
    )
    return found, Batches(found, recipe.train_batch_size, workers=recipe.dataloader_num_workers, seed=recipe.seed)


def cached(
    folder: Path, found: Pairs, objective: eq3.Published, recipe: Recipe, key: dict[str, object], *, restart: bool
) -> cache.Cached:
    """Latents and CLIP features on disk, made where they are missing (:mod:`.cache`)."""
    views = recipe.views if recipe.use_data_aug or found.degrade is not None or found.clean else 1
    record.claim(folder, key | {"views": views}, restart=restart)
    cache.write(folder, found, objective, views=views, batch=_CACHE_BATCH, workers=recipe.dataloader_num_workers)
    return cache.Cached(folder, recipe.train_batch_size, views=views, seed=recipe.seed)


def pooled(
    data: Data, task: str, opened: Opened, recipe: Recipe, vae: Autoencoder, key: dict[str, object], *, restart: bool
) -> tuple[Path, Held]:
    """The small recipe's folder of shards (made where missing), and held-out (inputs, ground truths)."""
    side = recipe.resolution
    mix = pairs.Mix(harder=recipe.harder_share, clean=recipe.clean_share)
    key = key | {"views": recipe.views, "harder_share": mix.harder, "clean_share": mix.clean}
    if data.pairs is not None:
        folder = data.work / "pairs" / task
        record.claim(folder, key | own_degradation(data, task), restart=restart)
        for number in range(recipe.views):
            if not (folder / f"shard{number:03d}").exists():
                rows = pairs.views_of(
                    opened.source, opened.kept, data.degradation, number, side, opened.degrade, mix.clean
                )
                pool.write_rows(folder, number, rows, len(opened.kept), [data.degradation], vae, side=side)
        shown = pairs.views_of(opened.source, opened.held[: data.shown], data.degradation, 10**6, side, opened.degrade)
        found = [(row.bad[data.degradation], row.clean) for row in shown]
        return folder, ([bad for bad, _ in found], [clean for _, clean in found])
    folder = data.work / "pool"
    if data.limit is not None or not pool.covers(folder, data.degradation, side // vae_factor(vae)):
        folder = data.work / f"pool-{data.degradation}-{side}"
        record.claim(folder, key | {"limit": data.limit}, restart=restart)
        originals = None
        for number in range(recipe.views):
            if not (folder / f"shard{number:03d}").exists():
                originals = originals or common.load_photos(data.work, "train")[: data.limit]
                views = pairs.synthetic(originals, [data.degradation], number, side, mix)
                pool.write_shard(folder, number, views, vae, side=side)
    clean = [common.centre(p, side) for p in common.load_photos(data.work, "val")[::2]]
    return folder, degraded(clean, data.degradation, VALIDATION_SEED)


def own_degradation(data: Data, task: str) -> dict[str, object]:
    """The entry of a key for inputs that are degraded as another task's; none as usual."""
    return {} if data.degradation == task else {"degradation": data.degradation}


def drawn(data: Data, opened: Opened, recipe: Recipe) -> pairs.Draw:
    """Pairs to finish a plugin on, in ever new views."""
    side, mix = recipe.resolution, pairs.Mix(harder=recipe.harder_share, clean=recipe.clean_share)
    if data.pairs is None:
        return pairs.degraded(common.load_photos(data.work, "train"), data.degradation, side, mix)
    return pairs.filed(opened.source, opened.kept, side, opened.degrade, mix.clean)


def degraded(clean: list[common.Pixels], task: str, seed: int) -> Held:
    """(inputs, ground truths): pictures degraded for a task."""
    return [degrade(c, task, seed + i) for i, c in enumerate(clean)], clean


def vae_factor(vae: Autoencoder) -> int:
    """Pixels of a side of one latent pixel."""
    return int(2 ** (len(vae.encoder.down_blocks) - 1))
