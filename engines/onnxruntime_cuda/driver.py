"""CUDA with one stream for all engines of ONNX Runtime."""

from __future__ import annotations

import threading
from typing import Any

from diffplugin.engines.cuda import CudaDriver


class OneStream(CudaDriver):
    """``engines.device.Driver`` with one stream for all users; a capture uses it alone.

    Attributes:
        lock: held while work is given to the stream.
    """

    def __init__(self, runtime: Any = None, device: int = 0) -> None:
        super().__init__(runtime, device)
        self.lock = threading.RLock()
        self._stream: int | None = None
        self._users = 0

    def _call(self, name: str, *arguments: Any) -> Any:
        with self.lock:
            return super()._call(name, *arguments)

    def open_stream(self) -> int:
        with self.lock:
            if self._stream is None:
                self._stream = super().open_stream()
            self._users += 1
            return self._stream

    def close_stream(self, stream: int) -> None:
        with self.lock:
            self._users -= 1
            if not self._users:
                self._stream = None
                super().close_stream(stream)

    def begin_capture(self, stream: int) -> None:
        self.lock.acquire()
        try:
            super().begin_capture(stream)
        except BaseException:
            self.lock.release()
            raise

    def end_capture(self, stream: int) -> int:
        try:
            return super().end_capture(stream)
        finally:
            self.lock.release()
