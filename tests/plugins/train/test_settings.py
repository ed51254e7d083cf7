"""Recipes: the paper's numbers are the default over Stable Diffusion's widths, and every number is an option."""

from __future__ import annotations

import pytest

from diffplugin.errors import RequestError
from diffplugin.plugins.train import cli, settings, tasks
from diffplugin.plugins.train.settings import PAPER, SMALL, Settings

SD = (320, 640, 1280, 1280)


def test_the_papers_recipe_is_the_default_over_stable_diffusions_widths() -> None:
    assert settings.recipe(None, SD, {}) == PAPER
    assert settings.recipe(None, [64, 96, 128], {}) == SMALL
    assert settings.recipe("small", SD, {}) == SMALL and settings.recipe("paper", (64,), {}) == PAPER
    assert settings.recipe(None, SD, {"seed": 7, "resolution": None}).seed == 7


def test_the_papers_recipe_reaches_the_optimiser_as_published() -> None:
    """Section 4.1: AdamW, constant 1e-5, batch 64 on four GPUs; beta, decay and scaling as the release sets them."""
    made = tasks.training_arguments(Settings(recipe=PAPER), steps=100, processes=4)
    assert made.betas == (0.9, 0.999) and made.weight_decay == 1e-2 and made.epsilon == 1e-8
    assert {made.rate(step) for step in (0, 1, 50, 99)} == {1e-5 * 64}, "constant, times batch and processes"
    assert made.ema is None and made.clip == 1.0 and made.clip_parts == ("model.tpb.", "model.scb.")
    assert PAPER.resolution == 512 and PAPER.eq3 and not PAPER.load_weights_from_unet
    assert PAPER.rate(1) == pytest.approx(1.6e-4)
    assert PAPER.steps(50_000, 4) == 100 * 782, "100 passes over the pairs, 64 a step"


def test_every_number_is_an_option_by_its_released_name() -> None:
    parse = cli._parse
    given: dict[str, object] = {}
    words = ["plugin", "derain", "--work", "w"]
    for name, (kind, choices) in settings.option_types().items():
        if kind is bool:
            words.append(f"--{name}")
            given[name] = True
        else:
            given[name] = choices[0] if choices else kind(3)
            words += [f"--{name}", str(given[name])]
    parsed = vars(parse(words))
    assert {name: parsed[name] for name in given} == given
    released = {
        *("resolution", "train_batch_size", "num_train_epochs", "max_train_steps", "gradient_accumulation_steps"),
        *("gradient_checkpointing", "learning_rate", "scale_lr", "lr_scheduler", "lr_warmup_steps", "adam_beta1"),
        *("adam_beta2", "adam_weight_decay", "adam_epsilon", "max_grad_norm", "mixed_precision", "use_data_aug"),
        *("load_weights_from_unet", "dataloader_num_workers", "checkpointing_steps", "validation_steps", "seed"),
    }
    assert released <= given.keys(), sorted(released - given.keys())
    unset = vars(parse(words[:4]))
    assert all(unset[name] is None for name in given), "what is not given is the recipe's"


def test_faults_are_named_at_once() -> None:
    with pytest.raises(RequestError, match=r"--resolution is 0, expected 1 or more; .*--adam-beta1 is 2, expected 0"):
        settings.recipe(None, SD, {"resolution": 0, "adam_beta1": 2.0})
