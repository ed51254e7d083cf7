"""The options of a request for one photo: complete, checked once, frozen. Every interface takes this object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypedDict, get_args

from diffplugin.errors import RequestError
from diffplugin.plugins.cards import MIN_WORK_SIZE, TRAIN_STEPS
from diffplugin.plugins.general_wishes import AUTO, is_general
from diffplugin.runtime.photos.pixels import Size, check_size
from diffplugin.runtime.photos.strength import Strength, check_strength
from diffplugin.runtime.sampling.samplers import SAMPLERS
from diffplugin.runtime.sampling.start_noise import check_seed

Sampler = Literal["unipc", "dpmpp_2m", "ddim", "euler"]
OutputSize = Literal["input", "working"]
Tiling = Literal["auto", "off"] | int
WorkSize = Literal["auto", "full"] | int
MAX_PLUGINS = 32  # in one chain, four times all that there are
MAX_CHARACTERS = 2000  # far beyond the 75 tokens that CLIP reads: not a request but an accident


class OptionFields(TypedDict, total=False):
    """Fields of :class:`RestoreOptions` as keywords."""

    prompt: str | None
    plugins: Sequence[str] | None
    seed: int
    steps: int | None
    sampler: Sampler
    size: Size
    tile: Tiling
    work_size: WorkSize
    output_size: OutputSize
    strength: Strength


@dataclass(frozen=True, kw_only=True)
class RestoreOptions:
    """A request for one photo.

    Attributes:
        prompt: the request in words; the selector chooses plugins for it. "auto", "" or None: the photo itself says
            what it needs. It is not read if ``plugins`` are named.
        plugins: ids or aliases, run in this order.
        seed: of the start noise; the same numbers as ``torch.Generator("cpu").manual_seed(seed)``.
        steps: of the first plugin, 1 to 1000; None: its card's (20 as released), or fewer if the quality sets fewer.
            Later plugins take at most 3.
        sampler: unipc (released), ddim, dpmpp_2m or euler.
        size: working size: "native", "released", N or (width, height) (``runtime.photos.pixels.working_size``).
        tile: "auto", "off" or the side of a piece in pixels (``runtime.planning.plan.make_plan``).
        work_size: with ``size="native"``: an int restores a copy with this short side in pixels where the photo is
            larger, and carries the change to the photo, which keeps its detail; "full": the photo itself; "auto": as
            the quality and the plugins' cards decide.
        output_size: "input": the input's size; "working": the size in which it was restored.
        strength: how much of the whole chain's change the result keeps, 0 to 1: input + strength x change. "auto": the
            largest that newly clips at most 5 % of the pixels (``runtime.photos.strength``).

    Raises:
        RequestError: every fault of the request that can be found without a bundle and a photo, in one line.
    """

    prompt: str | None = None
    plugins: Sequence[str] | None = None
    seed: int = 42
    steps: int | None = None
    sampler: Sampler = "unipc"
    size: Size = "native"
    tile: Tiling = "auto"
    work_size: WorkSize = "auto"
    output_size: OutputSize = "input"
    strength: Strength = 1.0

    def __post_init__(self) -> None:
        plugins = (self.plugins,) if isinstance(self.plugins, str) else self.plugins
        object.__setattr__(self, "plugins", None if plugins is None else tuple(plugins))
        faults = [fault for check in self._checks() if (fault := _fault(check))]
        if faults:
            raise RequestError("; ".join(faults))
        if plugins is None:
            object.__setattr__(self, "prompt", validate_prompt(self.prompt or AUTO))

    @property
    def automatic(self) -> bool:
        """The photo itself says which plugins run: there are no words, or none that name anything to restore."""
        return self.plugins is None and self.prompt is not None and is_general(self.prompt)

    def _checks(self) -> Sequence[Callable[[], None]]:
        return (
            self._check_wish,
            lambda: check_seed(self.seed),
            lambda: check_steps(self.steps),
            lambda: _check_choice("sampler", self.sampler, tuple(SAMPLERS)),
            lambda: check_size(self.size),
            lambda: check_tiling(self.tile),
            self._check_work_size,
            lambda: check_strength(self.strength),
            lambda: _check_choice("output size", self.output_size, get_args(OutputSize)),
        )

    def _check_wish(self) -> None:
        if self.plugins is None:
            validate_prompt(self.prompt or AUTO)
        elif not self.plugins:
            raise RequestError("plugins is empty: name at least one, or leave it out and give a request")
        elif len(self.plugins) > MAX_PLUGINS:
            raise RequestError(f"{len(self.plugins)} plugins are named, expected at most {MAX_PLUGINS}")

    def _check_work_size(self) -> None:
        work = self.work_size
        if work in ("auto", "full"):
            return
        if isinstance(work, bool) or not isinstance(work, int) or work < MIN_WORK_SIZE:
            raise RequestError(
                f"work size {work!r} is not understood; expected auto, full or a short side of at least "
                f"{MIN_WORK_SIZE} pixels"
            )
        if self.size != "native":
            raise RequestError(f"work size {work} and size {self.size} exclude each other; leave one out")


def complete_options(request: str | RestoreOptions | None, fields: OptionFields) -> RestoreOptions:
    """Options from words or options; ``fields`` replace theirs.

    Raises:
        RequestError: as :class:`RestoreOptions`.
    """
    if isinstance(request, RestoreOptions):
        return replace(request, **fields) if fields else request
    return RestoreOptions(**fields) if request is None else RestoreOptions(**({"prompt": request} | fields))


def validate_prompt(prompt: str) -> str:
    """``prompt`` without outer white space and without bytes that are not text; "auto" if it is empty.

    Raises:
        RequestError: signs without words, or too long for a request.
    """
    text = prompt.strip().encode("utf-8", "replace").decode() or AUTO
    if not any(character.isalnum() for character in text):
        raise RequestError(
            f'the request {text[:20]!r} has no words; say what to do, for example "remove the blur", name a plugin, or '
            f"write {AUTO}"
        )
    if len(text) > MAX_CHARACTERS:
        raise RequestError(f"the request has {len(text)} characters, at most {MAX_CHARACTERS} are read: say it shorter")
    return text


def check_tiling(tile: object, least: int = 1) -> None:
    """Raises:
    RequestError: not "auto", "off" or a side of at least ``least`` pixels.
    """
    if tile in ("auto", "off"):
        return
    if isinstance(tile, bool) or not isinstance(tile, int) or tile < least:
        raise RequestError(f"tile {tile!r} is not understood; expected auto, off or a side of at least {least} pixels")


def check_steps(steps: int | None) -> None:
    """Raises:
    RequestError: not None and not an integer of 1 to 1000.
    """
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= TRAIN_STEPS):
        raise RequestError(f"steps is {steps!r}, expected 1 to {TRAIN_STEPS}")


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise RequestError(f"{name} {value!r} does not exist; choose one of {', '.join(choices)}")


def _fault(check: Callable[[], None]) -> str | None:
    try:
        check()
    except RequestError as error:
        return str(error)
    return None
