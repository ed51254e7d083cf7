"""uvicorn with a timeout for clients that never finish their headers, and a stop that does not raise the signal
again.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol


def patient_protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's HTTP protocol that closes a connection whose next request is not complete to the end of its headers
    within ``seconds``. (uvicorn limits the silence between requests only.)"""

    class PatientProtocol(H11Protocol):
        _patience: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_watching()
            super().connection_lost(exc)

        def _idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _watch(self) -> None:
            if not self._idle():
                self._stop_watching()
            elif self._patience is None and not self.transport.is_closing():
                self._patience = self.loop.call_later(seconds, self._end)

        def _stop_watching(self) -> None:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None

        def _end(self) -> None:
            self._patience = None
            if self._idle():
                self.transport.abort()

    return PatientProtocol


class PatientServer(uvicorn.Server):
    """uvicorn's server, which ends without raising the signal again that ended it.

    Attributes:
        stopped: ``time.monotonic()`` when it was told to stop, or None.
    """

    def __init__(self, config: uvicorn.Config, stop_accepting: Callable[[], None]) -> None:
        super().__init__(config)
        self._stop_accepting = stop_accepting
        self.stopped: float | None = None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.stopped = time.monotonic()
        self._stop_accepting()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # only there can signals be listened to
            yield
            return
        before: dict[int, Any] = {one: signal.signal(one, self.handle_exit) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)
