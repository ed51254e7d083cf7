"""The denoising loop, for every sampler and every plugin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from diffplugin.errors import Cancelled, NotFinite, RequestError, ShapeMismatch
from diffplugin.runtime.sampling.samplers import StepTable

Array = NDArray[Any]


def sample(
    table: StepTable,
    denoise: Callable[[int, Array], Array],
    noise: Array,
    cond: Array,
    *,
    start: Literal["noised_input", "input", "noise"],
    renoise_from_t: int,
    progress: Callable[[int, int], None] | None = None,
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
            some. "noise": pure noise. Neither is ever replaced.
        renoise_from_t: in training timesteps (960 in the release).
        progress: called after each step with (steps done, steps in all).
        cancelled: asked before each step.
        on_step: called with (step index, latents that entered the model, its output).

    Raises:
        Cancelled: ``cancelled`` said so.
        NotFinite: a model output has a NaN or an infinity; names the step.
        ShapeMismatch: noise, cond and model output differ in shape.
        RequestError: unknown ``start``.
    """
    _check_start(start)
    if cond.shape != noise.shape:
        raise ShapeMismatch(f"sampler: cond is {cond.shape}, expected {noise.shape} like the noise")
    steps = len(table)
    latents = noise
    last = x0_1 = x0_2 = noise  # history of one and two steps ago: weighted 0, so not read, until it exists
    for i in range(steps):
        if cancelled is not None and cancelled():
            raise Cancelled(f"cancelled before step {i + 1} of {steps}")
        if start == "noised_input" and (i == 0 or table.t[i] >= renoise_from_t):
            latents = _weighted((table.alpha[i], table.sigma[i]), (cond, noise))
        elif start == "input" and i == 0:
            latents = _weighted((table.alpha[i],), (cond,))
        output = denoise(i, latents)
        _check(output, noise.shape, f"step {i + 1} of {steps} (t = {table.t[i]:g})")
        if on_step is not None:
            on_step(i, latents, output)
        x0 = _weighted(table.denoise[i], (latents, output))
        last = _weighted(table.correct[i], (last, latents, x0, x0_1, x0_2))
        latents = _weighted(table.predict[i], (last, x0, x0_1))
        x0_1, x0_2 = x0, x0_1
        if progress is not None:
            progress(i + 1, steps)
    return latents


def step_weights(table: StepTable, i: int, start: str, renoise_from_t: float) -> Array:
    """Weights of step ``i`` of a loop, float32 [13], for the graph ``step`` (:func:`diffplugin.spec.graph_specs`).

    Start (latents, cond, noise), denoise (x, output), correct (last, x, x0, previous x0, the x0 before), predict
    (c, x0, previous x0): with them the graph does what :func:`sample` does at this step. The first step
    takes its latents from the noise; it reads no history, so any finite numbers may stand there.

    Args:
        start, renoise_from_t: as :func:`sample` takes them.

    Raises:
        RequestError: unknown ``start``.
    """
    _check_start(start)
    mixed = (1.0, 0.0, 0.0)
    if start == "noised_input" and (i == 0 or table.t[i] >= renoise_from_t):
        mixed = (0.0, table.alpha[i], table.sigma[i])
    elif start == "input" and i == 0:
        mixed = (0.0, table.alpha[i], 0.0)
    elif i == 0:
        mixed = (0.0, 0.0, 1.0)
    return np.concatenate((mixed, table.denoise[i], table.correct[i], table.predict[i])).astype(np.float32)


def _check_start(start: str) -> None:
    if start not in ("noised_input", "input", "noise"):
        raise RequestError(f"start is {start!r}, expected 'noised_input', 'input' or 'noise'")


def _weighted(weights: Sequence[float] | Array, arrays: Sequence[Array]) -> Array:
    """Sum of weight x array in float32; a lone array of weight 1 comes back as it is, not copied."""
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
