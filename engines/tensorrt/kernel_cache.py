"""Kernels that TensorRT-RTX compiles for this GPU when an engine first runs, kept between processes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from diffplugin.engines.compiled_cache import read_blob, trim, write_blob

_log = logging.getLogger("diffplugin")


class KernelCache:
    """The compiled kernels of one engine. The library itself refuses those of another GPU, version or driver.

    Args:
        file: the file that keeps them; None: they are not kept.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._cache: Any = None
        self._size = 0

    def attach(self, config: Any) -> None:
        """Let contexts of a runtime configuration use and fill it. Does nothing if the library compiles ahead of
        time.
        """
        if self._file is None or not hasattr(config, "create_runtime_cache"):
            return
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            blob = read_blob(self._file)
            if blob is not None and self._cache.deserialize(blob):
                self._size = blob.size
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Save newly compiled kernels; if the cache cannot be written, only time is lost at the next start."""
        if self._file is None or self._cache is None:
            return
        content = self._cache.serialize()
        compiled = memoryview(content if content is not None else b"")
        if compiled.nbytes in (0, self._size):
            return
        try:
            write_blob(self._file, compiled)
            trim(self._file.parent)
            self._size = compiled.nbytes
        except OSError as error:
            _log.warning("%s: compiled kernels not kept (%s)", self._file.parent, error.strerror or error)
