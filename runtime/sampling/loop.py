"""The denoising loop, for every sampler and every plugin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from diffplugin.errors import Cancelled, NotFinite, RequestError, ShapeMismatch
from diffplugin.plugins.cards import Start
from diffplugin.runtime.sampling.samplers import StepTable

Array = NDArray[Any]


def sample(
    table: StepTable,
    denoise: Callable[[int, Array], Array],
    noise: Array,
    cond: Array,
    *,
    start: Start,
    renoise_from_t: int,
    cancelled: Callable[[], bool] | None = None,
    on_step: Callable[[int, Array, Array], None] | None = None,
) -> Array:
    """From noise to the final latent, scaled, float32 of the shape of ``noise``.

    Args:
        table: the sampler (``schedule.step_table``).
        denoise: (step index, latents) -> model output, float32 [1,4,h,w] both. It must not write into the latents.
        noise: standard normal float32 [1,4,h,w].
        cond: scaled latent of the input picture, float32 [1,4,h,w].
        start: "noised_input": the first step starts from the noised ``cond``, and at every later step with
            t >= ``renoise_from_t`` the latents are *replaced* by the noised ``cond`` while the sampler's history goes
            on, as the release does. "input": the first step starts from ``cond`` without noise, scaled as if it had
            some. "noise": pure noise. With these two the latents are never replaced.
        renoise_from_t: in training timesteps (960 in the release).
        cancelled: called before each step.
        on_step: called with (step index, latents that entered the model, its output).

    Raises:
        Cancelled: ``cancelled`` returned True.
        NotFinite: a model output has a NaN or an infinity; names the step.
        ShapeMismatch: noise, cond and model output differ in shape.
        RequestError: unknown ``start``.
    """
    if cond.shape != noise.shape:
        raise ShapeMismatch(f"sampler: cond is {cond.shape}, expected {noise.shape} like the noise")
    steps = len(table)
    latents = noise
    last = x0_1 = x0_2 = noise  # history of one and two steps ago: weighted 0, so not read, until it exists
    for i in range(steps):
        if cancelled is not None and cancelled():
            raise Cancelled(f"cancelled before step {i + 1} of {steps}")
        latents = _weighted(_entering(table, i, start, renoise_from_t), (latents, cond, noise))
        output = denoise(i, latents)
        _check(output, noise.shape, f"step {i + 1} of {steps} (t = {table.t[i]:g})")
        if on_step is not None:
            on_step(i, latents, output)
        x0 = _weighted(table.denoise[i], (latents, output))
        last = _weighted(table.correct[i], (last, latents, x0, x0_1, x0_2))
        latents = _weighted(table.predict[i], (last, x0, x0_1))
        x0_1, x0_2 = x0, x0_1
    return latents


def step_weights(table: StepTable, i: int, start: Start, renoise_from_t: float) -> Array:
    """Weights of step ``i`` of a loop, float32 [13], for the graph ``step`` (:func:`diffplugin.spec.graph_specs`).

    Start (latents, cond, noise), denoise (x, output), correct (last, x, x0, previous x0, the x0 before), predict
    (c, x0, previous x0): with them the graph does what :func:`sample` does at this step. The first step
    takes its latents from the noise; it reads no history, so any finite numbers may be there.

    Args:
        start, renoise_from_t: as :func:`sample` takes them.
    """
    entering = _entering(table, i, start, renoise_from_t)
    return np.concatenate((entering, table.denoise[i], table.correct[i], table.predict[i])).astype(np.float32)


def _entering(table: StepTable, i: int, start: Start, renoise_from_t: float) -> tuple[float, float, float]:
    """The start rule: weights of (latents, cond, noise) in what enters the model at step ``i``."""
    if start == "noised_input" and (i == 0 or table.t[i] >= renoise_from_t):
        return 0.0, float(table.alpha[i]), float(table.sigma[i])
    if start not in get_args(Start):
        raise RequestError(f"start is {start!r}, expected one of {', '.join(get_args(Start))}")
    if i > 0:
        return 1.0, 0.0, 0.0
    return (0.0, float(table.alpha[i]), 0.0) if start == "input" else (0.0, 0.0, 1.0)


def _weighted(weights: Sequence[float] | Array, arrays: Sequence[Array]) -> Array:
    """Sum of weight x array in float32; a single array of weight 1 is returned without a copy."""
    terms = [(np.float32(weight), array) for weight, array in zip(weights, arrays, strict=True) if weight]
    if len(terms) == 1 and terms[0][0] == 1:
        return terms[0][1]
    total = np.zeros((), np.float32)
    for k, (weight, array) in enumerate(terms):
        product = np.multiply(array, weight, dtype=np.float32)
        total = np.add(total, product, out=total) if k else product
    return total


def _check(output: Array, shape: tuple[int, ...], where: str) -> None:
    if output.shape != shape:
        raise ShapeMismatch(f"{where}: the model's output is {output.shape}, expected {shape} like the noise")
    if not np.isfinite(output).all():
        count = int(np.count_nonzero(~np.isfinite(output)))
        raise NotFinite(
            f"{where}: the model's output has {count} of {output.size} values that are NaN or infinite; "
            "try a higher precision (fp32) or another engine"
        )
