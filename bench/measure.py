"""The coordinator: contenders in turn, a process per sample, every sample on disk before the next one starts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffplugin.bench.contenders import CONTENDERS, REFERENCES
from diffplugin.bench.environment import environment
from diffplugin.bench.models import Model
from diffplugin.bench.work import Work, write_inputs
from diffplugin.bundle import open_bundle
from diffplugin.errors import RequestError
from diffplugin.files import write_text

FORMAT = 1
SAMPLES, RESULTS, SCRATCH = "samples.jsonl", "results.json", "scratch"
Log = Callable[[str], None]
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One measurement: what, by whom, how often.

    Attributes:
        plugin: "" takes the bundle's first.
        baseline: contender that ratios are taken against.
        first: run the whole first picture cold too.
        threads: None: all usable cores.
        timeout: seconds that one sample may take.
    """

    model: Model
    work: Work
    steps: int
    rounds: int
    contenders: tuple[str, ...]
    baseline: str
    plugin: str = ""
    first: bool = False
    threads: int | None = None
    timeout: float = 3600

    @property
    def reference(self) -> str | None:
        """The float32 contender that the others' results are compared with."""
        return next((name for name in REFERENCES if name in self.contenders), None)

    def conditions(self) -> Record:
        """What must be the same for two results to be comparable, and for one to be resumed."""
        return {
            "model": self.model.title,
            "work": str(self.work),
            "steps": self.steps,
            "plugin": self.plugin or open_bundle(self.model.bundle).manifest.plugins[0],
            "threads": self.threads,
            "rounds": self.rounds,
            "baseline": self.baseline,
            "reference": self.reference,
            "first_picture": self.first,
        }


def worker(trial: Mapping[str, Any], timeout: float, module: str = "diffplugin.bench.worker") -> Record:
    """Run one trial in a process of its own; its result, or ``{"error": ...}`` without the machine's folders, beside
    what it had printed as a result by then.

    Args:
        module: what takes the trial; its last line on stdout is the result.
    """
    result = _worker(trial, timeout, module)
    if "error" in result:
        result["error"] = re.sub(r"(?<![\w.])/(?:[^\s:/]+/)+([^\s:/]+)", r"\1", result["error"])
    return result


def _worker(trial: Mapping[str, Any], timeout: float, module: str) -> Record:
    whole = dict(trial) | {"began": time.monotonic()}
    command = [sys.executable, "-m", module, json.dumps(whole)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as late:
        return _partial(late.stdout) | {"error": f"not finished after {timeout:g} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        result: Record = json.loads(lines[-1])
        return result
    last = (done.stderr.strip().splitlines() or [""])[-1]
    killed = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"exit status {done.returncode}"
    return {"error": f"{killed} {last}".strip()}


def _partial(output: bytes | str | None) -> dict[str, Any]:
    """The last result that a trial printed before it was stopped; empty: none."""
    text = output.decode(errors="replace") if isinstance(output, bytes) else output or ""
    for line in reversed(text.splitlines()):
        with suppress(ValueError):  # a library's line, or one that was cut off
            if isinstance(found := json.loads(line), dict):
                return found
    return {}


def order(contenders: Sequence[str], reference: str | None, round_: int) -> list[str]:
    """Contenders of one round: the reference first at first, since others read what it leaves; then turned on."""
    names = sorted(contenders, key=lambda name: name != reference)
    turn = round_ % len(names)
    return names[turn:] + names[:turn]


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def prepare(bench: Bench, name: str, log: Log) -> Record:
    """Plain exports and compiled models of one contender, so that what is measured is a second start."""
    contender = CONTENDERS[name]
    trial = {"contender": name, "model": bench.model.spec, "threads": bench.threads}
    plugin = bench.conditions()["plugin"]
    if contender.peer:
        keys = ["clip_vision", f"tpb/{plugin}", "vae_encoder", f"scb/{plugin}", "unet"]
        keys.append(
            f"head/{plugin}" if open_bundle(bench.model.bundle).card(plugin).output == "head" else "vae_decoder"
        )
        for key in keys:
            made = worker(trial | {"kind": "export", "key": key}, bench.timeout)
            if "error" in made:
                return made
    size = (bench.work.width, bench.work.height)
    made = worker(trial | {"kind": "prepare", "size": size, "plugin": plugin}, bench.timeout)
    log(f"{name}: " + made.get("error", f"prepared, first start {made.get('prepare_s', 0):.1f} s"))
    return made


def run(bench: Bench, out: Path, *, resume: bool = False, prepared: bool = False, log: Log = print) -> Record:
    """Measure, appending each sample to ``out/samples.jsonl``; the result, also written to ``out/results.json``.

    Args:
        resume: go on where an interrupted run stopped; its failures are tried again.
        prepared: every contender's caches are filled already.

    Raises:
        RequestError: ``out`` has samples already, or samples of other conditions.
    """
    file = out / SAMPLES
    head: Record = {"format": FORMAT, "conditions": bench.conditions(), "environment": environment()}
    records = begin(file, head, resume=resume)
    inputs = write_inputs(out / SCRATCH, bench.work, head["conditions"]["plugin"])
    (out / SCRATCH / ".gitignore").write_text("*\n", encoding="utf-8")

    def keep(record: Record) -> None:
        records.append(record)
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")

    ready = {r["contender"] for r in records if r["kind"] == "prepare" and "error" not in r}
    for name in bench.contenders if not prepared else ():
        if name not in ready:
            keep({"kind": "prepare", "contender": name} | prepare(bench, name, log))
    failed = {r["contender"] for r in records if "error" in r}
    done = {(r["round"], r["contender"]) for r in records if r["kind"] == "sample" and "error" not in r}
    for round_ in range(bench.rounds):
        for name in order(bench.contenders, bench.reference, round_):
            if name in failed or (round_, name) in done:
                continue
            sample = _sample(bench, name, round_, inputs, out)
            keep({"kind": "sample", "round": round_, "contender": name} | sample)
            log(f"round {round_ + 1}/{bench.rounds} {name}: {_told(sample)}")
            if "error" in sample:
                failed.add(name)
    return finish(head, records, out)


def _sample(bench: Bench, name: str, round_: int, inputs: Sequence[Path], out: Path) -> Record:
    plugin = bench.conditions()["plugin"]
    scratch = out / SCRATCH
    targets = [scratch / f"{slug(name)}-{i}.png" if round_ == 0 else None for i in range(len(inputs))]
    pictures = [
        {"source": str(source), "plugin": plugin, "target": str(target) if target else None}
        for source, target in zip(inputs, targets, strict=True)
    ]
    probes = None if round_ else "write" if name == bench.reference else "read"
    trial = {
        "kind": "measure",
        "contender": name,
        "model": bench.model.spec,
        "steps": bench.steps,
        "threads": bench.threads,
        "pictures": pictures,
        "size": (bench.work.width, bench.work.height),
        "first": bench.first,
        "probe": str((scratch / "probe.npz").resolve()),
        "probes": probes,
    }
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    sample = worker(trial, bench.timeout) | {"load_before": load}
    reference = bench.reference
    if round_ == 0 and reference and "error" not in sample:
        references = [scratch / f"{slug(reference)}-{i}.png" for i in range(len(inputs))]
        if all(path.is_file() for path in references):
            sample["psnr_db"] = [_psnr(a, b) for a, b in zip(filter(None, targets), references, strict=True)]
    return sample


def _psnr(a: Path, b: Path) -> float:
    """dB between two 8-bit pictures; 99 for equal ones."""
    import numpy as np
    from PIL import Image

    from diffplugin.export.measures import psnr

    with Image.open(a) as one, Image.open(b) as other:
        return psnr(np.asarray(one.convert("RGB")), np.asarray(other.convert("RGB")))


def _told(sample: Record) -> str:
    if "error" in sample:
        return f"not run: {sample['error']}"
    contention = sample["contention"] or {}
    note = ", contended" if contention.get("contended") else ""
    return f"{sample['wall_s']:.2f} s, first step after {sample['first_step_s']:.1f} s{note}"


def begin(file: Path, head: Record, *, resume: bool) -> list[Record]:
    """Records of an interrupted run, without its failures; or none, and a new file."""
    if file.is_file() and not resume:
        raise RequestError(f"{file}: exists; add --resume to go on with it, or name another --out")
    if file.is_file():
        first, *lines = _whole_lines(file)
        if first["conditions"] != head["conditions"]:
            other = [k for k, v in head["conditions"].items() if first["conditions"].get(k) != v]
            raise RequestError(f"{file}: holds samples of other conditions ({', '.join(other)}); name another --out")
        records = [record for record in lines if "error" not in record]
    else:
        records = []
        file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, "".join(json.dumps(record) + "\n" for record in (head, *records)))
    return records


def _whole_lines(file: Path) -> list[Record]:
    """Records of a file whose last line an interrupt may have cut."""
    records = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    if not records or "conditions" not in records[0]:
        raise RequestError(f"{file}: no samples of dp-bench; name another --out")
    return records


def finish(head: Record, records: Sequence[Record], out: Path) -> Record:
    """Write ``out/results.json`` and return it."""
    result = dict(head) | {
        "prepared": [_without(r, "kind") for r in records if r["kind"] == "prepare"],
        "samples": [_without(r, "kind") for r in records if r["kind"] == "sample"],
    }
    write_text(out / RESULTS, json.dumps(result, indent=1) + "\n")
    return result


def _without(record: Record, key: str) -> Record:
    return {name: value for name, value in record.items() if name != key}


def read_results(path: Path) -> Record:
    """A result, from its file or its folder.

    Raises:
        RequestError: there is none, or it is of another format.
    """
    file = path / RESULTS if path.is_dir() else path
    try:
        result: Record = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise RequestError(f"{file}: not a JSON file") from None
    if not isinstance(result, dict) or result.get("format") != FORMAT or "samples" not in result:
        raise RequestError(f"{file}: no result of dp-bench of format {FORMAT}")
    return result
