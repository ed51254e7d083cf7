"""A driver whose device is the host's memory. It records every call, and finds what a real device would not tell.

Work given to a stream waits until the stream is synchronised, as late as a real one may run it; memory is full of NaN
until it is written; every access must lie in one live allocation. Capture records the work, a launch gives it to the
stream again; memory that an executable graph uses cannot be freed before it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffplugin.engines.device import ALIGNMENT
from diffplugin.errors import DeviceMemoryFull, EngineError
from diffplugin.spec import Array

Work = Callable[[], None]
NO_FAULT = -1


@dataclass
class _Graph:
    work: list[Work] = field(default_factory=list)
    addresses: set[int] = field(default_factory=set)


class FakeDriver:
    """``engines.device.Driver``.

    Args:
        size: bytes of the device's memory.

    Attributes:
        calls: every call in order: (name, its arguments but arrays, its result).
    """

    def __init__(self, size: int = 2**32) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._size = size
        self._blocks: dict[int, tuple[Array, int, int]] = {}  # address -> (memory, offset, bytes)
        self._streams: dict[int, list[Work]] = {}
        self._captures: dict[int, tuple[_Graph, int]] = {}  # stream -> (what is recorded, thread)
        self._graphs: dict[int, _Graph] = {}
        self._executables: dict[int, _Graph] = {}
        self._faults: dict[str, int] = {}
        self._next = 1
        self._lock = threading.RLock()

    # what tests ask

    def fail(self, name: str, after: int = 0) -> None:
        """The call of this name after ``after`` more of them fails, once."""
        self._faults[name] = after

    def live(self) -> dict[str, int]:
        """What has been made and not been given back; empty: nothing leaks."""
        kinds: dict[str, Sized] = {"memory": self._blocks, "streams": self._streams, "graphs": self._graphs}
        kinds |= {"executables": self._executables, "captures": self._captures}
        return {kind: len(made) for kind, made in kinds.items() if made}

    def used(self) -> int:
        return sum(size for _, _, size in self._blocks.values())

    def names(self) -> list[str]:
        return [call[0] for call in self.calls]

    def counted(self) -> Counter[str]:
        return Counter(self.names())

    # what fake libraries use

    def note(self, name: str, *facts: Any) -> None:
        """Record a call of a library that works on this device. Raises EngineError where a fault waits for it."""
        with self._lock:
            self._check_fault(name)
            self.calls.append((name, *facts))

    def view(self, address: int, shape: tuple[int, ...], dtype: Any) -> Array:
        """The array at an address; it must lie in one live allocation."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        with self._lock:
            for start, (memory, offset, length) in self._blocks.items():
                if start <= address and address + size <= start + length:
                    begin = offset + address - start
                    return np.asarray(memory[begin : begin + size].view(dtype).reshape(shape))
        raise AssertionError(f"{size} bytes at {address:#x} are in no live allocation")

    def submit(self, stream: int, work: Work, addresses: Iterable[int] = ()) -> bool:
        """Give work that uses these addresses to a stream, or to the graph that is captured from it (True)."""
        with self._lock:
            assert stream in self._streams, f"no stream {stream}"
            if stream not in self._captures:
                self._streams[stream].append(work)
                return False
            graph, thread = self._captures[stream]
            assert thread == threading.get_ident(), "work of another thread while a stream is captured"
            graph.work.append(work)
            graph.addresses |= set(addresses)
            return True

    # the protocol

    def memory(self) -> tuple[int, int]:
        return self._size - self.used(), self._size

    def malloc(self, size: int) -> int:
        self._not_capturing("malloc")
        with self._lock:
            assert size > 0, "empty allocation"
            try:
                self._check_fault("malloc")
            except EngineError as error:
                raise DeviceMemoryFull(str(error)) from None
            if self.used() + size > self._size:
                raise DeviceMemoryFull(f"{size} bytes of {self._size - self.used()} free")
            memory = np.full(size + ALIGNMENT, 0xFF, np.uint8)
            offset = -memory.ctypes.data % ALIGNMENT
            address = int(memory.ctypes.data) + offset
            self._blocks[address] = (memory, offset, size)
            self.calls.append(("malloc", size, address))
            return address

    def free(self, address: int) -> None:
        self._not_capturing("free")
        with self._lock:
            assert address in self._blocks, f"{address:#x} is not allocated"
            assert not any(self._streams.values()), "memory is freed while work waits"
            self._check_fault("free")
            end = address + self._blocks[address][2]
            stale = [e for e, graph in self._executables.items() if any(address <= a < end for a in graph.addresses)]
            assert not stale, f"memory is freed that the executables {stale} use"
            self._blocks.pop(address)[0][:] = 0xFF
            self.calls.append(("free", address))

    def upload(self, address: int, array: Array, stream: int) -> None:
        self._not_capturing("upload")
        self.note("upload", address, array.nbytes)
        assert array.flags.c_contiguous
        staged = array.copy()
        self.submit(stream, lambda: self.view(address, staged.shape, staged.dtype).__setitem__(..., staged))

    def download(self, array: Array, address: int, stream: int) -> None:
        self._not_capturing("download")
        self.note("download", address, array.nbytes)
        assert array.flags.c_contiguous
        self.submit(stream, lambda: array.__setitem__(..., self.view(address, array.shape, array.dtype)))

    def open_stream(self) -> int:
        self.note("open_stream")
        with self._lock:
            stream = self._handle()
            self._streams[stream] = []
        return stream

    def close_stream(self, stream: int) -> None:
        with self._lock:
            assert not self._streams.pop(stream), "a stream is closed while work waits in it"
            self.calls.append(("close_stream", stream))

    def synchronize(self, stream: int) -> None:
        self._not_capturing("synchronize")
        with self._lock:
            self.calls.append(("synchronize", stream))
            work, self._streams[stream] = self._streams[stream], []
            self._check_fault("synchronize")
        for one in work:
            one()

    def begin_capture(self, stream: int) -> None:
        self.note("begin_capture", stream)
        with self._lock:
            assert stream not in self._captures
            assert not self._streams[stream], "capture begins while work waits"
            self._captures[stream] = (_Graph(), threading.get_ident())

    def end_capture(self, stream: int) -> int:
        with self._lock:
            recorded, thread = self._captures.pop(stream)
            assert thread == threading.get_ident()
            self._check_fault("end_capture")
            graph = self._handle()
            self._graphs[graph] = recorded
            self.calls.append(("end_capture", stream, graph))
            return graph

    def instantiate(self, graph: int) -> int:
        self.note("instantiate", graph)
        with self._lock:
            executable = self._handle()
            self._executables[executable] = self._graphs[graph]
        return executable

    def launch(self, executable: int, stream: int) -> None:
        self.note("launch", executable)
        for work in self._executables[executable].work:
            self.submit(stream, work)

    def destroy_graph(self, graph: int) -> None:
        with self._lock:
            del self._graphs[graph]
            self.calls.append(("destroy_graph", graph))

    def destroy_executable(self, executable: int) -> None:
        with self._lock:
            del self._executables[executable]
            self.calls.append(("destroy_executable", executable))

    def _handle(self) -> int:
        self._next += 1
        return self._next

    def _check_fault(self, name: str) -> None:
        left = self._faults.get(name, NO_FAULT)
        if left == 0:
            del self._faults[name]
            raise EngineError(f"{name}: made to fail")
        if left > 0:
            self._faults[name] = left - 1

    def _not_capturing(self, name: str) -> None:
        """Calls that end a capture on a real device."""
        with self._lock:
            mine = any(thread == threading.get_ident() for _, thread in self._captures.values())
        assert not mine, f"{name} while this thread captures"
