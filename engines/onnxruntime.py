"""ONNX Runtime on the CPU: the default."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffplugin.engines.base import Engine, OnnxBuilder, check_names, check_precision, one_line
from diffplugin.engines.onnxruntime_install import broken_reason
from diffplugin.engines.pages import keepers
from diffplugin.engines.threads import engine_threads
from diffplugin.errors import EngineError, EngineNotLoaded
from diffplugin.spec import Array, GraphSpec

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle

_log = logging.getLogger("diffplugin")
CPU = "CPUExecutionProvider"
# Blocking the channels of convolutions copies their weights. It makes the VAE a fifth faster and the full-width UNet,
# whose weights then leave the mapped file (3.3 instead of 1.1 GB, loading 5 times as long), not at all.
_BLOCKED_UP_TO = 512 * 2**20


class OnnxRuntimeEngine(Engine):
    """One session. Sessions are safe to run from several threads.

    Args:
        weights_bytes: size of the graph's weights as float32.

    Raises:
        EngineNotLoaded: the file cannot be loaded.
        BundleDamaged: the file's tensors do not match the contract.
    """

    name = "onnxruntime"
    parallel = True

    def __init__(
        self,
        spec: GraphSpec,
        path: Path,
        threads: int,
        *,
        weights_bytes: int = 0,
        precision: str = "fp32",
    ) -> None:
        import onnxruntime as ort

        super().__init__(spec, precision)
        try:
            options = _options(ort, threads)
            if weights_bytes <= _ARENA_UP_TO and _arena.holds(ort):
                options.add_session_config_entry("session.use_env_allocators", "1")
                options.enable_cpu_mem_arena = True
            self._session: Any = ort.InferenceSession(
                path,
                options,
                providers=[CPU],
                disabled_optimizers=["NchwcTransformer"] if weights_bytes > _BLOCKED_UP_TO else None,
            )
        except Exception as error:  # the library raises a dozen kinds for one fact
            raise EngineNotLoaded(f"{path}: ONNX Runtime cannot load it ({one_line(error)})") from None
        self._outputs = [t.name for t in spec.outputs]
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        check_names(spec, path, (i.name for i in inputs), (o.name for o in outputs))

    def _run(self, inputs: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))
        except Exception as error:
            raise EngineError(f"{self.spec.graph}: ONNX Runtime failed ({one_line(error)})") from None

    def _release(self) -> None:
        self._session = None


class _Pool:
    """The threads that all sessions of this process share if each would have many: 15 sessions of 64 would be 945.

    ONNX Runtime has one such pool, of one size, from its first use to the end of the process. Its threads spin between
    two operators, which cannot be turned off and takes cores from other work (on two busy cores 1.6 times the processor
    time). So sessions of few threads have their own threads, and so do sessions with another number of threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._size: int | None = None

    def holds(self, ort: Any, threads: int) -> bool:
        """Whether sessions of this many threads share the pool; the first call decides its size."""
        if threads <= _OWN_POOLS_UP_TO:
            return False
        with self._lock:
            if self._size is None:
                try:
                    ort.set_global_thread_pool_sizes(threads, 1)
                    self._size = threads
                except Exception as error:  # not in this version, or another user of the library has made one
                    _log.debug("ONNX Runtime shares no threads between sessions: %s", one_line(error))
                    self._size = 0
            return self._size == threads


_OWN_POOLS_UP_TO = 8
_pool = _Pool()


class _Arena:
    """Memory of small graphs, which run one after the other: what one has freed serves the next, at 512x512 a tenth of
    a restoration's time. An arena of each session's own would keep as much for each. Large graphs have none: it doubles
    what they need.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: bool | None = None

    def holds(self, ort: Any) -> bool:
        """Whether there is one; the first call makes it."""
        with self._lock:
            if self._made is None:
                try:
                    cpu = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
                    # no limit; extended by powers of two, whose rests join again: photos of many sizes leave few gaps
                    ort.create_and_register_allocator(cpu, ort.OrtArenaCfg(0, 0, -1, -1))
                    keepers.append(self.give_back)
                    self._made = True
                except Exception as error:  # not in this version, or another user of the library has made one
                    _log.debug("ONNX Runtime shares no memory between sessions: %s", one_line(error))
                    self._made = False
            return self._made

    def give_back(self) -> None:
        """Return to the system what no session uses now: only a run can ask for it."""
        import onnxruntime as ort

        options, run = ort.SessionOptions(), ort.RunOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.use_env_allocators", "1")
        run.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        try:
            session = ort.InferenceSession(_IDENTITY, options, providers=[CPU])
            session.run(None, {"x": np.zeros(1, np.float32)}, run)
        except Exception as error:  # there may be too little memory even for that; whoever closes goes on
            _log.debug("ONNX Runtime keeps its memory: %s", one_line(error))


_ARENA_UP_TO = 48 * 2**20  # bytes of weights: all of the embedded model, of Stable Diffusion a plugin's TPB
# the smallest graph: y = Identity(x), float32 [1], opset 13
_IDENTITY = (
    b'\x08\x07:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
_arena = _Arena()


def _options(ort: Any, threads: int) -> Any:
    """Session options. All graph optimisations are on by default, and external weights stay a mapped file: one copy in
    memory.
    """
    options = ort.SessionOptions()
    if _pool.holds(ort, threads):
        options.use_per_session_threads = False
        options.add_session_config_entry("session.force_spinning_stop", "1")  # when a run is over
    else:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # spinning threads win nothing between the large operators here, and cost other processes their cores
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # an arena doubles what a large decoder needs and keeps it: 2.0 instead of 1.1 GB at 512x512, for the same time
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False  # it would take a run's memory in one piece, beside what the arena has
    return options


class OnnxRuntimeBuilder(OnnxBuilder):
    name = "onnxruntime"
    concurrent = True

    def unavailable_reason(self) -> str | None:
        return broken_reason()

    def version(self) -> str:
        import onnxruntime  # not from the package's metadata: several packages bring this module

        return str(onnxruntime.__version__)

    def device(self) -> str:
        return "cpu"

    def precisions(self) -> tuple[str, ...]:
        return ("fp32",)

    def load(
        self, bundle: Bundle, key: str, *, precision: str, threads: int | None, cache: Path | None
    ) -> OnnxRuntimeEngine:
        check_precision(self, precision)
        count = engine_threads(threads)
        with bundle.reading(key) as path:
            return OnnxRuntimeEngine(
                bundle.spec(key),
                path,
                count,
                weights_bytes=bundle.graph(key).weights_bytes,
            )
