"""One frame or page of a photo through the chain of its plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from diffplugin.runtime.execution.clock import Clock
from diffplugin.runtime.fine import AtFull, refined
from diffplugin.runtime.photos.carry import carry_change
from diffplugin.runtime.photos.mask import Mask, compose
from diffplugin.runtime.photos.photo import Photo
from diffplugin.runtime.photos.pixels import (
    Size,
    from_tensor,
    from_tensor_deep,
    reflected,
    resize,
    to_tensor,
    with_rgb,
    working_photo,
)
from diffplugin.runtime.photos.strength import Strength, chosen_strength, mixed
from diffplugin.runtime.planning.area import whole_area
from diffplugin.runtime.planning.plan import Plan, Stage
from diffplugin.runtime.planning.tiles import Tile
from diffplugin.runtime.sampling.start_noise import normal
from diffplugin.spec import Array, ModelDims

RunStage = Callable[[Stage, Array], Array]  # one plugin over an image [1,3,H,W] in [-1, 1], another one out


def restore_frame(
    photo: Photo,
    plan: Plan,
    run_stage: RunStage,
    *,
    size: Size,
    mask: Mask | None,
    strength: Strength,
    colour: bool,
    clock: Clock,
    at_full: AtFull | None = None,
) -> tuple[Photo, float]:
    """(the restored frame, its strength as a number).

    Args:
        size: the rule of the working size, as ``plan`` was made with it.
        mask: the rest stays identical; None: there is none.
        colour: a plugin of the chain may give a grey photo colours.
        at_full: the chain over pixels as they are, for a plan with ``fine`` pieces.
    """
    with clock("prepare"):
        resized = plan.carry != "picture"
        working: Any = resize(photo.levels, plan.working_size) if resized else working_photo(photo, size)
        inside = plan.area.clipped(*working.shape[:2])
        part = inside.cut(working.transpose(2, 0, 1)).transpose(1, 2, 0)
    part = _restore_part(part, inside, plan, run_stage)
    with clock("finish"):
        output = _output(photo, plan, working, part, inside, mask)
        if plan.fine and at_full is not None:
            factor = plan.area.width // plan.latent_size[0]
            pieces = [tile.scaled(factor) for tile in plan.fine]
            ratio = min(plan.input_size) / min(plan.working_size)
            output = refined(photo.levels, output, pieces, plan.border, ratio, at_full)
        restored = with_rgb(photo, output, colour=colour)
        if strength == 1:
            return restored, 1.0
        before: Any = resize(photo.levels, plan.output_size)
        used = chosen_strength(before, restored.levels, strength)
        return with_rgb(photo, mixed(before, restored.levels, used), colour=colour), used


def _restore_part(part: Any, inside: Tile, plan: Plan, run_stage: RunStage) -> Any:
    """The part of the working copy that runs, uint8 or uint16 [h, w, 3], after the chain.

    ``inside`` is its place in the working copy; what of the plan's area lies beyond the copy is its reflection. The
    release hands 8 bits from plugin to plugin; a photo of 16 bits keeps its 16.
    """
    area = plan.area.moved(-inside.top, -inside.left)
    levels = from_tensor if part.dtype == np.uint8 else from_tensor_deep
    for stage in plan.chain:
        image = to_tensor(reflected(part, area.top, area.left, area.height, area.width))
        image = run_stage(stage, image)  # in place of the one before: both are large
        part = levels(inside.moved(-plan.area.top, -plan.area.left).cut(image))
    return part


def _output(photo: Photo, plan: Plan, working: Any, part: Any, inside: Tile, mask: Mask | None) -> Any:
    """The photo at the size of the output with the restored part, uint8 or uint16 [H, W, 3]."""

    def enlarged(restored: Any) -> Any:
        if plan.carry == "picture":
            return resize(restored, plan.output_size)
        return carry_change(photo.levels, working, restored, guided=plan.carry == "guided")

    if mask is None:
        return enlarged(part)
    before: Any = resize(photo.levels, plan.output_size)
    return compose(before, part, (inside.top, inside.left), working, mask, enlarged)


def start_noise(plan: Plan, dims: ModelDims) -> Array:
    """The noise of the whole photo with its border, cut to the plan's area, [1,4,h,w]: a mask does not change what is
    restored inside it."""
    factor, border, (width, height) = dims.factor, plan.border, plan.latent_size
    place = Tile((plan.area.top + border) // factor, (plan.area.left + border) // factor, height, width)
    whole = whole_area(plan.working_size, border, factor)
    rows, columns = max(whole.height, place.top + height), max(whole.width, place.left + width)
    return np.ascontiguousarray(place.cut(normal(plan.seed, (1, dims.latent_channels, rows, columns))))
