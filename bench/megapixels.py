"""Whole photos of up to 48 megapixels, from file to file: time, memory and quality in one row, with the floor.

A process per sample: what a user pays, start, reading and writing included. The photos are a freely licensed one,
enlarged to a megapixel at most and mirrored beyond, so that detail stays as fine; degraded for the plugin as
``dp-train`` does, with the clean one as truth.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffplugin.bench import classic, floor, measure
from diffplugin.bench.arithmetic import products
from diffplugin.bench.contenders import CONTENDERS
from diffplugin.bench.environment import environment
from diffplugin.bench.models import Model
from diffplugin.bench.work import Pixels, Work, clean_photos, degraded, fitted, parse_work
from diffplugin.bundle import open_bundle
from diffplugin.errors import RequestError
from diffplugin.files import write_text
from diffplugin.plugins.cards import find_card

PLAIN = "diffplugin ort f32"  # the exact path that pictures are compared with
DEFAULTS = (PLAIN, "diffplugin ort balanced", "diffplugin bf16", "diffplugin balanced bf16", *classic.FILTERS)
FORMAT = 1
SAMPLES = "samples.jsonl"
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Megapixels:
    """What is measured: each contender or classic filter on each photo, in turn, ``rounds`` times.

    Attributes:
        plugin: of every photo, and the degradation that it undoes.
        photo: a file to restore as it is, without truth, in place of the synthetic ones; ``works`` has its size.
    """

    model: Model
    works: tuple[Work, ...]
    plugin: str
    contenders: tuple[str, ...]
    rounds: int = 1
    threads: int | None = None
    timeout: float = 3600
    photo: Path | None = None

    def conditions(self) -> Record:
        return {
            "model": self.model.title,
            "works": [str(work) for work in self.works],
            "plugin": self.plugin,
            "contenders": list(self.contenders),
            "rounds": self.rounds,
            "threads": self.threads,
            "photo": self.photo.name if self.photo else "",
        }


def parse_size(text: str) -> Work:
    """``12`` megapixels at 4:3, or ``512x512``.

    Raises:
        RequestError: neither, or not within 0.01 to 100 megapixels.
    """
    if "x" in text:
        return parse_work(text)
    if not re.fullmatch(r"\d+(\.\d+)?", text) or not 0.01 <= float(text) <= 100:
        raise RequestError(f"size {text!r}: expected megapixels from 0.01 to 100, or WxH such as 512x512")
    width = round(math.sqrt(float(text) * 1e6 * 4 / 3))
    return Work(width, round(width * 3 / 4))


def size_of(photo: Path) -> Work:
    """The size of a file's photo.

    Raises:
        ImageError: it cannot be read.
    """
    from diffplugin.runtime.photos.read import read_photo

    return Work(*read_photo(photo).size)


def checked_plugin(model: Model, name: str) -> str:
    """The plugin's id; "" is the bundle's first.

    Raises:
        RequestError: the bundle has none of this name.
    """
    cards = open_bundle(model.bundle).cards()
    return find_card(name, cards).id if name else next(iter(cards))


def photo_of(work: Work) -> Pixels:
    """A clean photo of that size, uint8 [H, W, 3]."""
    base = dict(clean_photos())
    photo = base.get("moose", base["coffee"])
    scale = min(1.0, math.sqrt(1e6 / (work.width * work.height)))
    part = fitted(photo, max(1, round(work.width * scale)), max(1, round(work.height * scale)))
    more = [(0, work.height - part.shape[0]), (0, work.width - part.shape[1]), (0, 0)]
    return np.pad(part, more, mode="symmetric")


def run(bench: Megapixels, out: Path, *, resume: bool = False, log: Callable[[str], None] = print) -> Record:
    """Measure, each sample on disk before the next one starts; the result, also in ``out/results.json``.

    Raises:
        RequestError: ``out`` has samples already, or samples of other conditions.
    """
    head = {"format": FORMAT, "conditions": bench.conditions(), "environment": environment()}
    file, scratch = out / SAMPLES, out / measure.SCRATCH
    records = measure.begin(file, head, resume=resume)
    scratch.mkdir(exist_ok=True)
    (scratch / ".gitignore").write_text("*\n", encoding="utf-8")
    done = {(r["work"], r["round"], r["contender"]) for r in records}
    for work in bench.works:
        wanted = [(n, name) for n in range(bench.rounds) for name in measure.order(bench.contenders, PLAIN, n)]
        missing = [(n, name) for n, name in wanted if (str(work), n, name) not in done]
        if not missing:
            continue
        files = _inputs(bench, work, scratch)
        for name in dict.fromkeys(name for _, name in missing):
            _fill_caches(bench, work, name, log)
        for n, name in missing:
            record = {"work": str(work), "round": n, "contender": name} | _sample(bench, work, name, files, scratch)
            log(f"{work} {name}: {_told(record)}")
            records.append(record)
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
    result = head | {"samples": records, "floor": _floor(bench, records)}
    write_text(out / measure.RESULTS, json.dumps(result, indent=1) + "\n")
    return result


def _told(record: Record) -> str:
    return str(record.get("error") or f"{record['cpu_s']:.1f} CPU s, {record['wall_s']:.1f} s")


def _floor(bench: Megapixels, records: Sequence[Record]) -> Record:
    """What the gap is taken against: the arithmetic of every graph that ran, and the rate of each engine that ran."""
    bundle = open_bundle(bench.model.bundle)
    graphs: dict[str, int] = {}
    engines: dict[str, tuple[str, str]] = {}
    for record in records:
        for entry in record.get("runs", ()):
            name = graph_name(entry)
            graphs[name] = graphs.get(name) or sum(p.macs for p in products(bundle, entry["key"], entry["sizes"]))
        precision = CONTENDERS[record["contender"]].precision if record["contender"] in CONTENDERS else ""
        if record.get("engine") in floor.ENGINES and precision in ("fp32", "bf16"):
            engines[f"{record['engine']} {precision}"] = (record["engine"], precision)
    widths = floor.main_widths(bundle, ("vae_encoder", "unet", "vae_decoder")) if engines else []
    return {"macs": graphs, "rates": {name: floor.rates(*engine, widths) for name, engine in engines.items()}}


def graph_name(entry: Mapping[str, Any]) -> str:
    """Of one graph at one size, in ``floor.macs``."""
    return " ".join([entry["key"], *(f"{axis}={size}" for axis, size in sorted(entry["sizes"].items()))])


def _inputs(bench: Megapixels, work: Work, scratch: Path) -> tuple[Path, Path | None]:
    """(photo to restore, its truth)."""
    from PIL import Image

    if bench.photo is not None:
        return bench.photo, None
    files = scratch / f"{work}-{bench.plugin}.png", scratch / f"{work}.png"
    if not all(file.is_file() for file in files):
        clean = photo_of(work)
        Image.fromarray(clean).save(files[1], compress_level=1)
        Image.fromarray(degraded(clean, bench.plugin, 7000)).save(files[0], compress_level=1)
    return files


def _fill_caches(bench: Megapixels, work: Work, name: str, log: Callable[[str], None]) -> None:
    """Compiled models and plain exports, so that what is measured is a second start."""
    if name in CONTENDERS and (CONTENDERS[name].peer or CONTENDERS[name].engine == "openvino"):
        one = measure.Bench(
            model=bench.model,
            work=work,
            steps=1,
            rounds=1,
            contenders=(name,),
            baseline=name,
            plugin=bench.plugin,
            threads=bench.threads,
            timeout=bench.timeout,
        )
        measure.prepare(one, name, log)


def _sample(bench: Megapixels, work: Work, name: str, files: tuple[Path, Path | None], scratch: Path) -> Record:
    source, truth = files
    target = (scratch / f"{work}-{bench.plugin}-{measure.slug(name)}.png").resolve()
    trial: Record = {"source": str(source.resolve()), "target": str(target)}
    if name in classic.FILTERS:
        trial["filter"] = name
    else:
        trial |= {"contender": name, "model": bench.model.spec, "plugin": bench.plugin, "threads": bench.threads}
    made = measure.worker(trial, bench.timeout, "diffplugin.bench.picture")
    if "error" in made:
        return made
    exact = scratch / f"{work}-{bench.plugin}-{measure.slug(PLAIN)}.png"
    if exact.is_file() and name != PLAIN:
        made["psnr_exact_db"] = picture_psnr(target, exact)
    if truth is not None:
        made |= {"psnr_db": picture_psnr(target, truth), "psnr_input_db": picture_psnr(source, truth)}
    if name != PLAIN:
        target.unlink()
    return made


def picture_psnr(a: Path, b: Path) -> float:
    """dB between two 8-bit pictures of one size; 99 for equal ones. A strip at a time: 48 megapixels stay small."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # files of this run
    with Image.open(a) as one, Image.open(b) as other:
        x, y = (np.asarray(image.convert("RGB")) for image in (one, other))
    strips = range(0, len(x), 256)
    error = sum(float(np.square(x[i : i + 256] - y[i : i + 256].astype(np.float64)).sum()) for i in strips) / x.size
    return 99.0 if error == 0 else min(99.0, 10 * math.log10(255**2 / error))
