"""The plugins of a plan, one after the other: over images, and over pixels at full size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from diffplugin.manifest import Manifest
from diffplugin.runtime.execution.device_loop import DeviceLoop
from diffplugin.runtime.execution.run import Run
from diffplugin.runtime.execution.stage import restore_stage
from diffplugin.runtime.fine import Levels
from diffplugin.runtime.photos.pixels import from_tensor, from_tensor_deep, to_tensor
from diffplugin.runtime.planning.plan import Plan, Stage
from diffplugin.runtime.planning.tiles import Tile
from diffplugin.runtime.progress import RunCounter
from diffplugin.runtime.sampling.noise_schedule import NoiseSchedule
from diffplugin.runtime.sampling.samplers import step_table
from diffplugin.runtime.sampling.start_noise import normal
from diffplugin.runtime.sampling.time_features import time_features
from diffplugin.spec import Array


@dataclass(frozen=True, kw_only=True)
class Stages:
    """What the stages of one frame run with.

    Attributes:
        tokens: prompt tokens [1,256,D] of each plugin of the plan.
        device: runs a stage as a whole where the plan's loop is "device" and nobody observes; None: there is none.
    """

    run: Run
    plan: Plan
    tokens: Mapping[str, Array]
    manifest: Manifest
    schedule: NoiseSchedule
    device: DeviceLoop | None
    counter: RunCounter

    def __call__(self, stage: Stage, image: Array) -> Array:
        """One plugin over an image [1,3,H,W] in [-1, 1], another one out."""
        self.counter.begin(stage.plugin)
        table = step_table(self.plan.sampler, self.schedule, stage.steps, stage.first_t)
        return restore_stage(
            self.run,
            stage,
            image,
            table=table,
            time=time_features(table.t, self.manifest),
            tokens=self.tokens[stage.plugin],
            device=self.device if self.plan.loop == "device" and self.run.observe is None else None,
        )

    def at_full(self, pixels: Levels) -> Levels:
        """The chain over uint8 or uint16 [h, w, 3] as they are, whose sides are multiples of the autoencoder's
        factor."""
        dims = self.manifest.dims
        height, width = (side // dims.factor for side in pixels.shape[:2])
        noise = normal(self.plan.seed, (1, dims.latent_channels, height, width))
        piece = replace(self.run, tiles=(Tile(0, 0, height, width),), grid=None, noise=noise)
        self.counter.expect(sum(stage.steps for stage in self.plan.chain))
        levels = from_tensor if pixels.dtype == np.uint8 else from_tensor_deep
        for stage in self.plan.chain:
            pixels = levels(replace(self, run=piece)(stage, to_tensor(pixels)))
        return pixels
