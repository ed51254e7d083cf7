"""Recipes: every number of a plugin's training, by the released script's name where it has one.

``paper`` is the released training step (arXiv:2403.00644, Eq. 3); ``small`` is what the embedded model's plugins were
trained with (docs/training.md). A recipe's numbers are defaults: each is an option of ``dp-train plugin``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from diffplugin.errors import RequestError

SD_WIDTHS = (320, 640, 1280, 1280)  # of Stable Diffusion 1.x
Precision = Literal["no", "fp16", "bf16"]
LrScheduler = Literal["constant", "constant_with_warmup", "cosine", "linear"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a plugin learns.

    Attributes:
        resolution: side of the training pictures in pixels.
        train_batch_size: pictures of one process and one micro step.
        gradient_accumulation_steps: micro steps of one step of the optimiser.
        max_train_steps: steps of the optimiser; None: from ``num_train_epochs``.
        num_train_epochs: passes over the pairs, where ``max_train_steps`` is None.
        scale_lr: the rate is ``learning_rate`` x batch x accumulation x processes.
        lr_warmup_steps: of every scheduler but ``constant``.
        max_grad_norm: TPB and SCB are clipped each on its own in ``paper``, together in ``small``.
        mixed_precision: of the learning branches; the frozen networks are held in it. None: as ``accelerate`` says.
        use_data_aug: random crops and flips as released (:mod:`.stream`); without: resized to a square.
        load_weights_from_unet: the new SCB begins as a copy of the base's first block.
        ema_decay: exponential average of the weights, kept in place of the last ones; None: no average.
        eq3: the published objective; without: the small model's (:class:`diffplugin.plugins.train.plugin.Times`).
        crop: side of the window of ``resolution`` to train on; 0: all of it. Only without ``eq3``.
        views: random views of every pair that are encoded once, only without ``eq3``, or with cached latents; of a
            change head: views in all.
        start_share, noised_share, least_t: the small model's timesteps; None: from the card.
        weighted: the latent's error counts as it shows in the picture.
        harder_share: of the samples that are degraded on the fly: by the harder family (:mod:`.harder`); with ``eq3``
            not of faces, which have the release's own degradation.
        clean_share: of all samples: the input is the ground truth, so that a plugin leaves clean pictures alone.
        dataloader_num_workers: processes that read, decode and augment pairs.
    """

    name: str
    eq3: bool
    resolution: int
    train_batch_size: int
    gradient_accumulation_steps: int = 1
    max_train_steps: int | None = None
    num_train_epochs: int = 1
    learning_rate: float
    scale_lr: bool = False
    lr_scheduler: LrScheduler = "constant"
    lr_warmup_steps: int = 0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 1e-2
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    mixed_precision: Precision | None = None
    gradient_checkpointing: bool = False
    use_data_aug: bool = False
    load_weights_from_unet: bool = False
    ema_decay: float | None = None
    seed: int = 42
    dataloader_num_workers: int = 4
    checkpointing_steps: int = 500
    validation_steps: int = 500
    crop: int = 0
    views: int = 4
    start_share: float | None = None
    noised_share: float | None = None
    least_t: int = 250
    weighted: bool = False
    harder_share: float = 0.0
    clean_share: float = 0.0

    def rate(self, processes: int) -> float:
        """The rate of the optimiser with so many processes."""
        pictures = self.train_batch_size * self.gradient_accumulation_steps * processes
        return self.learning_rate * (pictures if self.scale_lr else 1)

    def steps(self, pairs: int, processes: int) -> int:
        """Steps of the optimiser over so many pairs."""
        if self.max_train_steps is not None:
            return self.max_train_steps
        pictures = self.train_batch_size * self.gradient_accumulation_steps * processes
        return max(self.num_train_epochs * -(-pairs // pictures), 1)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a plugin is trained beside its recipe.

    ``variant``: "released", or an ablation (:data:`.variants.VARIANTS`), which is written as a plugin too where the
    released layout can hold it. ``loss``: "latent" (Eq. 3, or the small recipe's), or "picture", to finish a plugin
    (:func:`.plugin.picture_loss`). ``restart``: states made from other inputs are removed.
    """

    recipe: Recipe
    variant: str = "released"
    loss: str = "latent"
    trackers: tuple[str, ...] = ("tensorboard",)
    cache_latents: bool = False
    restart: bool = False
    dry_run: bool = False


PAPER = Recipe(
    name="paper",
    eq3=True,
    resolution=512,
    train_batch_size=16,  # times four GPUs: the paper's 64
    num_train_epochs=100,
    learning_rate=1e-5,
    scale_lr=True,
)
SMALL = Recipe(
    name="small",
    eq3=False,
    resolution=256,
    train_batch_size=8,
    max_train_steps=1000,
    learning_rate=6e-4,
    lr_scheduler="cosine",
    lr_warmup_steps=100,
    adam_beta2=0.98,
    adam_weight_decay=0.0,
    ema_decay=0.99,
    mixed_precision="bf16",
    load_weights_from_unet=True,
    seed=0,
    dataloader_num_workers=0,
    checkpointing_steps=250,
    validation_steps=250,
    weighted=True,
    harder_share=0.25,
    clean_share=0.2,
)
RECIPES: Mapping[str, Recipe] = {"paper": PAPER, "small": SMALL}
HEAD = replace(  # of a change head
    SMALL,
    name="head",
    train_batch_size=16,
    crop=128,
    max_train_steps=2500,
    views=2000,
    learning_rate=1e-3,
    adam_weight_decay=1e-4,
    ema_decay=0.998,
    checkpointing_steps=500,
    validation_steps=500,
    harder_share=0.35,
    clean_share=0.12,
)
DISTILL = replace(SMALL, name="distill", learning_rate=3e-4)  # of a student, which begins as its teacher
_LEAST: dict[str, float] = {
    **dict.fromkeys(("resolution", "train_batch_size", "gradient_accumulation_steps", "max_train_steps"), 1),
    **dict.fromkeys(("num_train_epochs", "checkpointing_steps", "validation_steps", "views"), 1),
    **dict.fromkeys(("lr_warmup_steps", "dataloader_num_workers", "crop", "seed", "least_t", "adam_weight_decay"), 0),
    **dict.fromkeys(("start_share", "noised_share", "ema_decay", "adam_beta1", "adam_beta2"), 0),
    **dict.fromkeys(("harder_share", "clean_share"), 0),
    **dict.fromkeys(("learning_rate", "adam_epsilon", "max_grad_norm"), 1e-30),
}
_SHARES = ("start_share", "noised_share", "ema_decay", "adam_beta1", "adam_beta2", "harder_share", "clean_share")


def default_recipe(widths: Sequence[int]) -> Recipe:
    """``paper`` over a base of Stable Diffusion's widths, ``small`` over any other."""
    return PAPER if tuple(widths) == SD_WIDTHS else SMALL


def recipe(name: str | None, widths: Sequence[int], overrides: Mapping[str, Any]) -> Recipe:
    """The recipe of that name (None: the base's own), with what the user set.

    Raises:
        RequestError: a number out of its range; all of them at once.
    """
    return overridden(RECIPES[name] if name else default_recipe(widths), overrides)


def overridden(given: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """A recipe with what the user set (None: nothing).

    Raises:
        RequestError: a number out of its range; all of them at once.
    """
    chosen = replace(given, **{k: v for k, v in overrides.items() if v is not None})
    faults = []
    for key, least in _LEAST.items():
        value = getattr(chosen, key)
        if value is not None and (not least <= value or (key in _SHARES and value > 1)):
            bound = f"{least} to 1" if key in _SHARES else f"{least:g} or more"
            faults.append(f"--{key.replace('_', '-')} is {value:g}, expected {bound}")
    if faults:
        raise RequestError("; ".join(faults))
    return chosen


def describe(chosen: Recipe) -> dict[str, Any]:
    """The recipe as plain values, for the record of a training."""
    return asdict(chosen)


def option_types() -> dict[str, tuple[type, tuple[str, ...]]]:
    """Field -> (type, choices) of every number that may be set from outside."""
    hints = get_type_hints(Recipe)
    found = {}
    for field in fields(Recipe):
        if field.name in ("name", "eq3"):
            continue
        kinds = [kind for kind in (get_args(hints[field.name]) or (hints[field.name],)) if kind is not type(None)]
        choices = tuple(c for kind in kinds for c in (get_args(kind) or ((kind,) if isinstance(kind, str) else ())))
        found[field.name] = (str if choices else kinds[0], choices)
    return found
