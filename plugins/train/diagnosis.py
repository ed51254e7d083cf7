"""Training of the diagnosis: from photographs to ``checkpoint/pre-trained/diagnosis``, which dp-export takes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from diffplugin.errors import RequestError
from diffplugin.plugins.networks.diagnosis import Diagnosis
from diffplugin.plugins.train import layout, loop, photos, record
from diffplugin.plugins.train.common import read_pixels
from diffplugin.plugins.train.diagnosis_samples import TASKS, draw
from diffplugin.plugins.train.diagnosis_thresholds import calibrate, choose_thresholds
from diffplugin.plugins.train.loop import Precision

CONFIG: dict[str, Any] = {
    "tasks": list(TASKS),
    "widths": [16, 32, 64, 128],
    "blocks": [1, 1, 2],
    "statistics": 48,
    "hidden": 128,
}
HELD_OUT = 0.12  # samples of held-out photographs, of one that is learned from
BATCH = 40
_SHARD = 500  # samples of a file
_PIECES = 2  # of each size that a step sees of a picture, of the four
# How often a picture is drawn: what is hard to see, more often. The calibration afterwards takes it back out.
_OFTEN = {
    "derain": 1.0,
    "desnow": 1.3,
    "lowlight": 0.8,
    "dehaze": 0.9,
    "deblur": 3.0,
    "highlight": 2.5,
    "face": 2.0,
    "demoire": 1.3,
}
_CLEAN_OFTEN = 0.9
_VISIBLE = 0.02  # strength below which a degradation is not there to be judged
Log = Callable[[str], None]
Shard = tuple[NDArray[np.uint8], NDArray[np.float32]]  # views [n, 9, 128, 128, 3]; wanted and strengths [n, 2, tasks]


def train(
    work: Path,
    *,
    steps: int,
    samples: int,
    folders: Sequence[Path] = (),
    precision: Precision = "bf16",
    restart: bool = False,
    log: Log = print,
) -> dict[str, float]:
    """Train or resume; writes ``work/checkpoint/pre-trained/diagnosis``.

    Args:
        samples: pictures made to learn from; kept in ``work/diagnosis`` (0.4 MB each).
        folders: photographs with an index (``photos.read_index``) that are also seen at their full size.
        restart: a state made from other photographs, samples or another network is removed.

    Returns:
        Shares of held-out samples whose tasks were all found, and no others: clean, with one degradation, with two.

    Raises:
        RequestError: no photographs, a number out of its range, or a state of another training.
    """
    if samples < 1:
        raise RequestError(f"--samples is {samples}, expected 1 or more")
    learn, held = _files(work, folders)
    place, state = work / "diagnosis", work / "run/diagnosis.pt"
    record.claim(state, _inputs(learn, samples), restart=restart)
    shards = make(learn, place / "train", samples, seed=0, log=log)
    kept = make(held, place / "held", max(round(samples * HELD_OUT), 1), seed=1, log=log)
    torch.manual_seed(0)
    objective = Objective(shards)
    plan = loop.TrainingArguments(steps=steps, peak=3e-3, warmup=80, ema=0.995, weight_decay=0.02, precision=precision)
    loop.fit(objective, plan, state, name="diagnosis")
    _settle_norms(objective)
    model = Diagnosis(CONFIG).eval()
    model.load_state_dict(objective.model.folded())
    return finish(model, kept, work / "checkpoint/pre-trained/diagnosis", log)


def _inputs(learn: Sequence[Path], samples: int) -> dict[str, Any]:
    """What a state must have been made from to be gone on with."""
    photographs = {"number": len(learn), "names and sizes": record.text_key(json.dumps(_photographs(learn)))}
    return {"network": CONFIG, "samples": samples, "photographs": photographs}


def finish(model: Diagnosis, kept: Sequence[Shard], out: Path, log: Log = print) -> dict[str, float]:
    """Calibrate the probabilities, choose the thresholds on held-out samples, and write the folder."""
    logits, labels = answers(model, kept)
    temperature = calibrate(logits, labels[:, 0])
    with torch.no_grad():
        for parameter in model.logits.parameters():
            parameter.div_(temperature)
    thresholds, found = choose_thresholds(logits / temperature, labels[:, 0], TASKS)
    layout.write_json(out / "config.json", CONFIG | {"thresholds": thresholds})
    layout.write_tensors(out / "model.safetensors", model.state_dict())
    log(
        f"temperature {temperature:.2f}; thresholds "
        + ", ".join(f"{t} {v}" for t, v in zip(TASKS, thresholds, strict=True))
    )
    log("right set of held-out samples: " + ", ".join(f"{kind} {share:.3f}" for kind, share in found.items()))
    return found


class Objective(nn.Module):
    """Which tasks, from all views together and from each alone; how strong, where there is something."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        super().__init__()
        self.shards = [(views, labels, cumulative_chances(labels)) for views, labels in shards]
        self.model = Diagnosis(CONFIG, norm=True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.each = nn.Linear(self.model.features, len(TASKS))

    def forward(self, step: int, rng: np.random.Generator) -> Tensor:
        views, labels = self._batch(rng)
        wanted, strengths = labels[:, 0], labels[:, 1]
        features = self.model.encode(views)
        alone = self.each(features).float().reshape(len(labels), -1, len(TASKS))
        logits, found = self.model.decide(features, _PIECES)
        loss = functional.binary_cross_entropy_with_logits(logits.float(), wanted)
        loss = loss + 0.7 * functional.binary_cross_entropy_with_logits(alone, wanted[:, None].expand_as(alone))
        there = (strengths > _VISIBLE).float()
        off = (there * (found.float() - strengths) ** 2).sum() / there.sum().clamp(min=1)
        total: Tensor = loss + 0.5 * off
        return total

    def _batch(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        rows, labels = [], []
        for _ in range(BATCH):
            views, of, cumulative = self.shards[int(rng.integers(len(self.shards)))]
            i = min(int(np.searchsorted(cumulative, rng.random(), side="right")), len(views) - 1)
            pieces = np.concatenate(([0], 1 + rng.permutation(4)[:_PIECES], 5 + rng.permutation(4)[:_PIECES]))
            seen = views[i][pieces]
            rows.append(seen[:, :, ::-1] if rng.random() < 0.5 else seen)
            labels.append(of[i])
        return to_views(np.concatenate(rows)), torch.from_numpy(np.stack(labels))


def cumulative_chances(labels: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cumulative chances of the pictures of a shard to be drawn, from their labels [n, 2, tasks]."""
    there = labels[:, 1] > _VISIBLE
    often = np.where(there.any(axis=1), (there * np.array([_OFTEN[t] for t in TASKS])).max(axis=1), _CLEAN_OFTEN)
    return np.cumsum(often / often.sum(), dtype=np.float64)


def to_views(pixels: NDArray[np.uint8]) -> Tensor:
    """[n, 128, 128, 3] -> float32 [n, 3, 128, 128] in [-1, 1], as ``runtime.request.views.views`` gives them."""
    images = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def answers(model: Diagnosis, shards: Sequence[Shard]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Logits [n, tasks] and labels [n, 2, tasks] of all samples."""
    found = [
        model(to_views(views[i : i + 20].reshape(-1, *views.shape[2:])))[0].numpy()
        for views, _ in shards
        for i in range(0, len(views), 20)
    ]
    return np.concatenate(found).astype(np.float64), np.concatenate([labels for _, labels in shards])


def make(files: Sequence[Path], folder: Path, count: int, *, seed: int, log: Log = print) -> list[Shard]:
    """Samples of these photographs in files of 500, made where they are missing, too few, or of other photographs."""
    note, names = folder / "photographs.json", _photographs(files)
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != names:
        log(f"{folder}: made of other photographs, so made again")
        shutil.rmtree(folder)
    layout.write_json(note, names)
    shards = []
    for number, first in enumerate(range(0, count, _SHARD)):
        views, labels = folder / f"{number:03d}-views.npy", folder / f"{number:03d}-labels.npy"
        size = min(_SHARD, count - first)
        if not labels.exists() or len(np.load(labels)) < size:
            rng = np.random.default_rng((seed, number))
            drawn = [draw(read_pixels(files[int(rng.integers(len(files)))]), rng) for _ in range(size)]
            _save(views, np.stack([one.views for one in drawn]))
            _save(labels, np.stack([np.stack((one.wanted, one.strengths)) for one in drawn]))
            log(f"samples {first + size}/{count} in {folder}")
        shards.append((np.load(views, mmap_mode="r")[:size], np.load(labels)[:size]))
    return shards


def _save(path: Path, values: NDArray[Any]) -> None:
    def write(part: Path) -> None:
        with part.open("wb") as file:  # given a name, NumPy would put .npy behind it
            np.save(file, values)

    layout.place(path, write)


def _files(work: Path, folders: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """(photographs to learn from, photographs held out): of the training split nine of ten, and the rest."""
    learn = [work / "photos" / p.file for p in photos.load(work, "train")]
    held = [work / "photos" / p.file for p in photos.load(work, "val")]
    for folder in folders:
        rows = photos.read_index(folder)
        learn += [folder / row["file"] for row in rows if row["split"] == "train"]
        held += [folder / row["file"] for row in rows if row["split"] == "val"]
    held += [path for path in learn if _tenth(path)]
    learn = [path for path in learn if not _tenth(path)]
    if not learn or not held:
        raise RequestError(f"{work}: {len(learn)} photographs to learn from and {len(held)} to hold out, expected some")
    return learn, held


def _photographs(files: Sequence[Path]) -> list[list[Any]]:
    """Names and sizes in bytes: what tells one set of photographs from another."""
    return [[file.name, file.stat().st_size] for file in files]


def _tenth(path: Path) -> bool:
    # a photograph may be there twice, at two sizes, and must then be on the same side
    name = path.stem.rpartition("_")[2]
    return int(hashlib.sha256(name.encode()).hexdigest()[:4], 16) % 10 == 0


@torch.no_grad()
def _settle_norms(objective: Objective, batches: int = 12) -> None:
    """Statistics of the norms for the averaged weights, which no step has run."""
    norms = [module for module in objective.model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
    objective.model.train()
    for number in range(batches):
        objective(0, np.random.default_rng((7, number)))
    objective.model.eval()
