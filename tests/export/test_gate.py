"""Engines built ahead are run and compared before a bundle is put in place."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffplugin.bundle import Bundle, open_bundle
from diffplugin.engines.base import BuildOptions, BuildResult
from diffplugin.engines.onnxruntime import OnnxRuntimeBuilder
from diffplugin.errors import ParityError
from diffplugin.export import exporter
from diffplugin.export.checkpoints import embedded_checkpoint
from diffplugin.export.prebuild import parse_size
from diffplugin.shapes import Profile
from diffplugin.spec import Array

pytestmark = pytest.mark.slow


class Ahead(OnnxRuntimeBuilder):
    """Engines built ahead that are ONNX Runtime's sessions; one graph may be ``broken``, or the device away."""

    name = "ahead"

    def __init__(self, broken: str = "", absent: str | None = None) -> None:
        super().__init__()
        self.broken, self.absent = broken, absent
        self.built: list[str] = []
        self.validating = True
        self.ran: list[tuple[str, tuple[int, ...]]] = []

    def unavailable_reason(self) -> str | None:
        return self.absent

    def build(
        self, bundle: Bundle, key: str, *, precision: str, profile: Profile, out: Path, options: BuildOptions
    ) -> BuildResult:
        self.validating = False  # what is loaded from here on is an engine that was built
        out.mkdir(parents=True)
        file = out / "engine.bin"
        shutil.copyfile(bundle.graph_file(key, precision), file)
        self.built.append(key)
        return BuildResult(files=(file,), report={})

    def load(self, bundle: Bundle, key: str, *, precision: str, threads: int | None, cache: Path | None) -> Any:
        engine = super().load(bundle, key, precision=precision, threads=threads, cache=cache)
        if self.validating:
            return engine
        run = engine.run

        def ran(inputs: Mapping[str, Array]) -> dict[str, Array]:
            self.ran.append((key, next(iter(inputs.values())).shape))
            found = run(inputs)
            return {name: value + np.float32(0.5) if key == self.broken else value for name, value in found.items()}

        engine.run = ran  # type: ignore[method-assign]
        return engine


def export(builder: Ahead, out: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str]]:
    monkeypatch.setattr(exporter, "choose_builder", lambda *_: (builder, "fp32", "test"))
    checkpoint, cards, name = embedded_checkpoint(["derain"])
    lines: list[str] = []

    sizes = [parse_size("128")]
    made = exporter.export_bundle(checkpoint, out, name=name, cards=cards, sizes=sizes, log=lines.append)
    return made, lines


def test_every_engine_is_run_at_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = Ahead()
    made, lines = export(builder, tmp_path / "bundle", monkeypatch)
    assert {key for key, _ in builder.ran} == set(builder.built) and "unet" in builder.built
    assert ("vae_encoder", (1, 3, 128, 128)) in builder.ran, builder.ran
    manifest = open_bundle(made).manifest
    assert manifest.parity["engines"]["compared"] and manifest.parity["engines"]["largest_relative_error"] <= 1e-4
    assert sum(line.startswith("engine of ") for line in lines) == len(builder.built)
    assert manifest.parity["kept_db"]["derain"][0] >= 20, "and the purpose check ran"


def test_a_broken_engine_stops_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParityError, match="scb/derain"):
        export(Ahead(broken="scb/derain"), tmp_path / "bundle", monkeypatch)
    assert not (tmp_path / "bundle").exists(), "nothing is put in place"


def test_engines_for_elsewhere_are_said_to_be_unproved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = Ahead(absent="no such device here")
    made, lines = export(builder, tmp_path / "bundle", monkeypatch)
    assert builder.ran == [] and open_bundle(made).manifest.parity["engines"]["compared"] is False
    assert "engines were built and not run: no such device here" in lines
