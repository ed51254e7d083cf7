"""Encodings of a photo and a request: prompt tokens of the plugins, scores of the selector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from diffplugin.errors import RequestError
from diffplugin.runtime.execution.clock import Clock
from diffplugin.runtime.execution.engine_pool import EnginePool
from diffplugin.runtime.photos.pixels import clip_pixels
from diffplugin.runtime.photos.read import Photo
from diffplugin.runtime.request.spelling import Speller, read_speller
from diffplugin.runtime.request.tokenizer import fits_context, load_tokenizer, token_ids
from diffplugin.spec import Array

if TYPE_CHECKING:
    import tokenizers


class Encoders:
    """The CLIP graphs, the plugins' TPBs and the selector of one bundle."""

    def __init__(self, pool: EnginePool) -> None:
        self._pool = pool
        self._manifest = pool.bundle.manifest
        self._tokenizer: tokenizers.Tokenizer | None = None
        self._null_text: Array | None = None
        self._speller: Speller | None = None

    def tokens(self, photo: Photo, plugins: Iterable[str], clock: Clock) -> dict[str, Array]:
        """Prompt tokens [1,256,D] of each plugin for the *original* picture, whatever its working size."""
        clip = self._manifest.clip
        pixels = clip_pixels(photo.rgb, self._manifest.dims.vision_size, clip["mean"], clip["std"])
        patches = self._pool.run("clip_vision", {"pixels": pixels}, clock)["patches"]
        return {
            plugin: self._pool.run(f"tpb/{plugin}", {"patches": patches}, clock)["tokens"]
            for plugin in dict.fromkeys(plugins)
        }

    def scores(self, prompt: str, tokens: Mapping[str, Array], plugins: Sequence[str], clock: Clock) -> Array:
        """Selector scores [1, p + 1] of a request, in the order of ``plugins``, ``null`` last.

        Raises:
            RequestError: the bundle has no selector.
        """
        if not self._manifest.selector:
            known = ", ".join(plugins)
            raise RequestError(f"this bundle has no selector to read a request with: name a plugin ({known})")
        text = self._text(self._read(prompt), clock)
        if self._null_text is None:  # two threads may both compute it: the same numbers
            self._null_text = self._text(" ", clock)
        stacked = np.concatenate([tokens[plugin] for plugin in plugins])
        inputs = {"text": text, "plugin_tokens": stacked, "null_text": self._null_text}
        return self._pool.run("selector", inputs, clock)["scores"]

    def fits_context(self, prompt: str) -> bool:
        """Whether the whole request fits into the text encoder."""
        return fits_context(self._words(), self._read(prompt))

    def _read(self, prompt: str) -> str:
        """The request with its typing errors repaired, where the bundle lists its words."""
        if not self._manifest.words:
            return prompt
        if self._speller is None:
            self._speller = read_speller(self._pool.bundle.file(self._manifest.words))
        return self._speller.repaired(prompt, self._manifest.dims.context)

    def _words(self) -> tokenizers.Tokenizer:
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._pool.bundle.file(self._manifest.tokenizer))
        return self._tokenizer

    def _text(self, text: str, clock: Clock) -> Array:
        """Pooled text embedding [1, D]."""
        ids = token_ids(self._words(), text, self._manifest.dims.context)
        return self._pool.run("clip_text", {"ids": ids}, clock)["pooled"]
