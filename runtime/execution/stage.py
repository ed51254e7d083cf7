"""One plugin over one picture, whole or in pieces: encode, denoise, decode or let the plugin's head make the change."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from diffplugin.errors import NotFinite
from diffplugin.runtime.execution.residual import changed_image, residual_output
from diffplugin.runtime.execution.run import Run
from diffplugin.runtime.planning.plan import Stage
from diffplugin.runtime.planning.tiles import Tile, blend, blend_weights
from diffplugin.runtime.sampling.loop import sample
from diffplugin.runtime.sampling.samplers import StepTable
from diffplugin.spec import RESIDUALS, Array, TensorSpec

if TYPE_CHECKING:
    from diffplugin.runtime.execution.device_loop import DeviceLoop


def restore_stage(
    run: Run,
    stage: Stage,
    image: Array,
    *,
    table: StepTable,
    time: Array,
    tokens: Array,
    device: DeviceLoop | None = None,
) -> Array:
    """One plugin: picture [1,3,H,W] in [-1, 1] in, picture out (nominally in that range; clipped to it if
    the output is a change of the input).

    UNet and SCB see one piece of the global latents at a time; the model outputs are blended and the sampler updates
    the whole latent, so that pieces never drift apart (arXiv:2302.08113).

    Args:
        table: of ``stage.steps`` steps.
        time: sinusoidal features of the steps [n, F].
        tokens: the plugin's TPB output for the original picture [1,256,D].
        device: runs the whole stage; None: graph by graph from the host.

    Raises:
        Cancelled: the caller stopped the run.
        NotFinite: a model output, or the picture, has a NaN or an infinity, or the picture is empty.
    """
    restored = None
    if device is not None:
        with run.clock("device"):
            restored = device.restore(run, stage, image, table=table, time=time, tokens=tokens)
        if restored is not None and stage.output == "residual":  # the loop keeps its latents to itself
            restored = _changed(stage, image, restored, decode(run, encode(run, image)))
        elif restored is not None and stage.output == "head":
            restored = changed_image(image, restored)
    if restored is None:
        restored = _from_host(run, stage, image, table, time, tokens)
    check_restored(restored, image, f"{stage.plugin}, {run.pool.builder.name} at {run.pool.precision}")
    return restored


def _from_host(run: Run, stage: Stage, image: Array, table: StepTable, time: Array, tokens: Array) -> Array:
    """:func:`restore_stage` graph by graph."""
    plugin = stage.plugin
    cond = encode(run, image, tiny=stage.tiny)
    run.seen(plugin, "tokens", tokens)
    run.seen(plugin, "cond", cond)

    def on_step(i: int, latents: Array, output: Array) -> None:
        run.seen(plugin, "latents", latents, i)
        run.seen(plugin, "eps", output, i)

    with run.clock("sampler"):
        latents = sample(
            table,
            _denoiser(run, stage, table, time, tokens, cond),
            run.noise,
            cond,
            start=stage.start,
            renoise_from_t=stage.renoise_from_t,
            cancelled=run.cancelled,
            on_step=on_step,
        )
    run.seen(plugin, "z0", latents)
    if stage.output == "head":
        return changed_image(image, change(run, plugin, image, latents, cond))
    restored = decode(run, latents, tiny=stage.tiny)
    if stage.output != "residual":
        return restored
    return _changed(stage, image, restored, decode(run, cond, tiny=stage.tiny))


def _changed(stage: Stage, image: Array, restored: Array, reconstructed: Array) -> Array:
    return residual_output(image, restored, reconstructed, stage.coring, stage.coring_peak)


def encode(run: Run, image: Array, *, tiny: bool = False) -> Array:
    """Scaled latent [1,4,h,w] of a picture [1,3,H,W] in [-1, 1], piece by piece."""
    return _piecewise(run, "tiny_encoder" if tiny else "vae_encoder", image)


def decode(run: Run, latents: Array, *, tiny: bool = False) -> Array:
    """Picture [1,3,H,W] of scaled latents [1,4,h,w], piece by piece."""
    return _piecewise(run, "tiny_decoder" if tiny else "vae_decoder", latents)


def change(run: Run, plugin: str, image: Array, latents: Array, cond: Array) -> Array:
    """What a plugin's head adds to the image: [1,3,H,W] of image [1,3,H,W] and scaled latents [1,4,h,w], piece by
    piece."""
    return _piecewise(run, f"head/{plugin}", image, latents, cond)


def _piecewise(run: Run, key: str, *arrays: Array) -> Array:
    """A graph of one output over the pieces of its inputs; sides are latent sides, or those of the picture."""
    spec = run.pool.bundle.spec(key)
    leaving = spec.outputs[0]

    def scale(tensor: TensorSpec) -> int:
        return run.factor if "H" in tensor.axes else 1

    def one(tile: Tile) -> Array:
        run.check_cancelled()
        inputs = {
            tensor.name: np.ascontiguousarray(tile.scaled(scale(tensor)).cut(array))
            for tensor, array in zip(spec.inputs, arrays, strict=True)
        }
        return run.pool.run(key, inputs, run.clock)[leaving.name]

    if len(run.tiles) == 1:
        return one(run.tiles[0])
    enlarged = scale(leaving)
    h, w = (side // scale(spec.inputs[0]) * enlarged for side in arrays[0].shape[-2:])
    placed = [tile.scaled(enlarged) for tile in run.tiles]
    grid = None if run.grid is None else [tile.scaled(enlarged) for tile in run.grid]
    shape = (1, int(leaving.axes[1]), h, w)
    return blend((one(tile) for tile in run.tiles), placed, blend_weights(placed, h, w, grid), shape)


@dataclass
class _Kept:
    """Data that one piece keeps between steps, for one stage of one run.

    Attributes:
        deep: feature [1, C1, h, w] of the last whole UNet run, if the next step uses it; None: the next step runs the
            whole UNet.
        timeless: residual_0, if the SCB's residuals are shared.
        anchors: residual_1 and residual_2 of the last one or two steps at which the SCB ran.
    """

    deep: Array | None = None
    timeless: dict[str, Array] = field(default_factory=dict)
    anchors: dict[int, tuple[Array, ...]] = field(default_factory=dict)


def _denoiser(
    run: Run, stage: Stage, table: StepTable, time: Array, tokens: Array, cond: Array
) -> Callable[[int, Array], Array]:
    """The model as the sampler calls it: (step, latents [1,4,h,w]) -> output [1,4,h,w]. Steps come in order.

    The SCB reads no latents, so all its steps could run at once; one by one needs the least memory, and on a CPU a
    batch saves no operations.
    """
    plugin = stage.plugin
    height, width = cond.shape[-2:]
    weights = blend_weights(run.tiles, height, width, run.grid) if len(run.tiles) > 1 else []
    kept = {tile: _Kept() for tile in run.tiles}

    def one(i: int, tile: Tile, latents: Array) -> Array:
        run.check_cancelled()
        mine = kept[tile]

        def scb(step: int) -> dict[str, Array]:
            inputs = {"time": time[step : step + 1], "tokens": tokens, "cond": np.ascontiguousarray(tile.cut(cond))}
            return run.pool.run(f"scb/{plugin}", inputs, run.clock)

        residuals = _residuals(i, stage.scb_steps, table.t, mine, scb)
        for name in RESIDUALS:
            run.seen(plugin, name, residuals[name], i)
        unet = {"latents": np.ascontiguousarray(tile.cut(latents)), "time": time[i : i + 1], "tokens": tokens}
        unet |= residuals
        if mine.deep is None:
            made = run.pool.run("unet", unet, run.clock)
        else:
            deep = {"deep": mine.deep}
            made = deep | run.pool.run("unet_shallow", unet | deep, run.clock)
        again = i + 1 < stage.steps and i + 1 not in stage.full_steps
        mine.deep = made["deep"] if again else None
        run.tick(plugin)
        return made["eps"]

    def denoise(i: int, latents: Array) -> Array:
        if not weights:
            return one(i, run.tiles[0], latents)
        return blend((one(i, tile, latents) for tile in run.tiles), run.tiles, weights, latents.shape)

    return denoise


def _residuals(
    i: int, scb_steps: Sequence[int], t: Array, kept: _Kept, scb: Callable[[int], dict[str, Array]]
) -> dict[str, Array]:
    """The SCB's residuals at step ``i``: computed if the SCB runs at every step, else interpolated between its nearest
    runs.

    residual_1 and residual_2 change with the timestep, little but not smoothly: linear interpolation between every
    second of 20 steps leaves 2 to 4 % on the embedded plugins. residual_0 does not depend on it.

    Args:
        scb_steps: steps at which the SCB runs, rising; the last step among them.
        t: timesteps of the steps [n].
        scb: runs it for a step; called when its residuals are first needed.
    """
    if len(scb_steps) == len(t):
        return scb(i)
    place = bisect_left(scb_steps, i)
    after = scb_steps[place]
    before = after if after == i else scb_steps[place - 1]
    kept.anchors = {step: anchor for step, anchor in kept.anchors.items() if step in (before, after)}
    for step in (before, after):
        if step not in kept.anchors:
            made = scb(step)
            kept.timeless.setdefault(RESIDUALS[0], made[RESIDUALS[0]])
            kept.anchors[step] = tuple(made[name] for name in RESIDUALS[1:])
    share = np.float32(0 if before == after else (t[before] - t[i]) / (t[before] - t[after]))
    pairs = zip(kept.anchors[before], kept.anchors[after], strict=True)
    mixed = (near if share == 0 else near + share * (far - near) for near, far in pairs)
    return kept.timeless | dict(zip(RESIDUALS[1:], mixed, strict=True))


_MIN_STD = 1 / 8  # of one 8-bit level
_ROWS = 64


def check_restored(image: Array, source: Array, where: str) -> None:
    """Check a restored picture, so that a black picture is never returned silently.

    Args:
        image: restored picture [1,3,H,W].
        source: the source picture; if it is flat, the result may be flat.
        where: plugin, engine and precision, for the message.

    Raises:
        NotFinite: a value is NaN or infinite, or the picture is constant although its source is not. Constant means
            after clipping to [-1, 1] and rounding to 8 bits, as the user would see it.
    """
    bad = image.size - sum(int(np.isfinite(image[:, :, y : y + _ROWS]).sum()) for y in range(0, image.shape[2], _ROWS))
    if bad:
        raise NotFinite(f"{where}: {bad} of {image.size} values of the picture are NaN or infinite; try precision fp32")
    mean, std = _levels(image)
    if std < _MIN_STD <= _levels(source)[1]:
        level = mean / 127.5 - 1
        raise NotFinite(f"{where}: the picture is constant ({level:.3f} everywhere, clipped); try precision fp32")


def _levels(image: Array) -> tuple[float, float]:
    """(mean, standard deviation) of the 8-bit levels of a picture; row by row, since a picture may be large."""
    total = squares = 0.0
    for y in range(0, image.shape[2], _ROWS):
        levels = np.rint((np.clip(image[:, :, y : y + _ROWS], -1, 1) + 1) * 127.5)
        total += float(levels.sum(dtype=np.float64))
        squares += float(np.square(levels, dtype=np.float64).sum())
    mean = total / image.size
    return mean, max(0.0, squares / image.size - mean * mean) ** 0.5
