"""Finds everything that can be wrong with a checkpoint before any work, and reports it at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from diffplugin.errors import CheckpointError
from diffplugin.export.checkpoints import configs, weights
from diffplugin.export.checkpoints.checkpoint import BASE_PARTS, Checkpoint
from diffplugin.export.tokenizer import build_tokenizer, end_and_largest
from diffplugin.runtime.sampling.noise_schedule import defaulted_settings, sampler_settings

OLD_EOS = 2  # configs written before the ids were fixed say so; the text ends at the highest id then


def check_checkpoint(checkpoint: Checkpoint) -> list[str]:
    """Read every config, the tokenizer, and the names, shapes, types and values of all weights.

    Returns:
        Notes for the user, one line each: ignored settings, and the choice made if there were several.

    Raises:
        CheckpointError: naming every fault at once.
    """
    faults: list[str] = []
    parts = checkpoint.parts()
    for part in (*(part for part in parts if part.partition("/")[0] in configs.TABLES), "preprocessor", "scheduler"):
        with _collected(faults):
            checkpoint.config(part)
    for check in (_dims, _preprocessor, _tokenizer):
        with _collected(faults):
            check(checkpoint)
    for part in parts:
        with _collected(faults):
            _weights(checkpoint, part)
    if faults:
        raise CheckpointError("; ".join(dict.fromkeys(faults)))
    return list(_notes(checkpoint))


@contextmanager
def _collected(faults: list[str]) -> Iterator[None]:
    try:
        yield
    except CheckpointError as error:
        faults.append(str(error))


def _dims(checkpoint: Checkpoint) -> None:
    _ = checkpoint.dims


def _preprocessor(checkpoint: Checkpoint) -> None:
    config = checkpoint.preprocessor()
    wanted = checkpoint.vision_config["image_size"]
    wrong = [
        f"{checkpoint.config_file('preprocessor')}: {key} is {config[key]}, the vision encoder takes {wanted}"
        for key in ("size", "crop_size")
        if config[key] not in (None, wanted)
    ]
    if wrong:
        raise CheckpointError("; ".join(wrong))


def _tokenizer(checkpoint: Checkpoint) -> None:
    """Check the tokenizer by itself and against the text encoder's config."""
    folder = checkpoint.tokenizer
    build_tokenizer(folder)
    end, largest = end_and_largest(folder)
    config = checkpoint.config("text_encoder")
    eos = config["eos_token_id"]
    if largest >= config["vocab_size"]:
        raise CheckpointError(
            f"{folder}: has ids up to {largest}, the text encoder's vocab_size is {config['vocab_size']}"
        )
    if eos == OLD_EOS and end != largest:
        raise CheckpointError(
            f"{folder}: ends a text with id {end}, but the highest is {largest}, which the text encoder takes for the "
            f"end: its eos_token_id is {OLD_EOS}"
        )
    if eos not in (OLD_EOS, end):
        raise CheckpointError(f"{folder}: ends a text with id {end}, the text encoder's eos_token_id is {eos}")


def _weights(checkpoint: Checkpoint, part: str) -> None:
    path = checkpoint.source(part).main
    network, tensors, faults = checkpoint.misfits(part)
    if faults:
        kind = part.partition("/")[0]
        absent = configs.defaulted(kind, checkpoint.raw_config(part)) if kind in configs.TABLES else {}
        more = f"; its config lacks {_listed(absent)}" if absent and not checkpoint.single else ""
        raise CheckpointError(weights.line(path, network, faults) + more)
    if faults := weights.not_finite(network, tensors):
        raise CheckpointError(weights.line(path, network, faults))


def _notes(checkpoint: Checkpoint) -> Iterator[str]:
    for part in (part for part in checkpoint.parts() if part.partition("/")[0] in configs.TABLES):
        absent = configs.defaulted(part.partition("/")[0], checkpoint.raw_config(part))
        if absent and not (checkpoint.single and part in BASE_PARTS):
            yield f"{checkpoint.config_file(part)}: lacks {_listed(absent)}, taken from the library"
    scheduler, path = checkpoint.raw_config("scheduler"), checkpoint.config_file("scheduler")
    if absent := defaulted_settings(scheduler):
        yield f"{path}: lacks {_listed(absent)}, taken from the library's {scheduler.get('_class_name')}"
    if ignored := sampler_settings(scheduler):
        yield (
            f"{path}: {', '.join(ignored)} ignored: of a sampler, and the sampler is chosen when a photo is restored"
        )
    if checkpoint.single:
        yield f"{checkpoint.base}: holds no tokenizer; taken from {checkpoint.tokenizer}"
    if checkpoint.averaged:
        yield f"{checkpoint.base}: holds the unet twice; taking the moving averages, as the published folders do"


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} (default {value})" for key, value in settings.items())
