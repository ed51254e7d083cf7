"""ncnn on processors: Winograd convolutions in float32, or tensors stored as bfloat16.

A bundle has its graphs in ncnn's own form besides (``dp-export --engine ncnn``): those that see the photo, where the
time is spent. What belongs to the request (CLIP, the selector, the diagnosis, the TPB) has token ids and batches, which
that form lacks, and runs in ONNX Runtime.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffplugin.engines.base import Engine, OnnxBuilder, check_names, check_precision, one_line
from diffplugin.engines.fastest import fastest_first
from diffplugin.engines.onnxruntime import OnnxRuntimeBuilder
from diffplugin.engines.threads import engine_threads
from diffplugin.errors import EngineError, EngineNotLoaded, EngineUnavailable
from diffplugin.spec import Array, GraphSpec

if TYPE_CHECKING:
    from diffplugin.bundle import Bundle
    from diffplugin.engines.base import EngineBuilder

NAME = "ncnn"
VARIANT = "ncnn"  # the bundle's graphs in ncnn's form; they serve every precision
_WAITING = "OMP_WAIT_POLICY"
_MEASURED, _SIDE = "vae_decoder", 96  # graph that tells the faster engine, latent pixels of a side


class NcnnEngine(Engine):
    """One graph for all sizes. A run has an extractor of its own, so several threads may run one engine.

    Args:
        path: the graph's ``.param``; its ``.bin`` stands beside it.
        precision: fp32, or bf16: weights and tensors are stored so, sums are float32.

    Raises:
        EngineNotLoaded: the files cannot be loaded.
        BundleDamaged: their tensors do not match the contract.
    """

    name = NAME
    parallel = True

    def __init__(self, spec: GraphSpec, path: Path, threads: int, precision: str = "fp32") -> None:
        super().__init__(spec, precision)
        self._library = _import()
        self._net: Any = self._library.Net()
        options = self._net.opt
        options.num_threads = threads
        options.openmp_blocktime = 0
        options.use_vulkan_compute = False
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
        options.use_bf16_packed = options.use_bf16_storage = precision == "bf16"
        if self._net.load_param(str(path)):
            raise EngineNotLoaded(f"{path}: ncnn {self._library.__version__} cannot read it; export the bundle again")
        inputs = self._net.input_names()
        # what no layer reads counts as an output: numbered parts of a split, and inputs that are not used
        outputs = [name for name in self._net.output_names() if not name.isdecimal() and name not in inputs]
        check_names(spec, path, inputs, outputs)
        if self._net.load_model(str(path.with_suffix(".bin"))):
            raise EngineNotLoaded(f"{path.with_suffix('.bin')}: ncnn cannot load these weights; export again")

    def _run(self, inputs: Mapping[str, Array], sizes: Mapping[str, int]) -> dict[str, Array]:
        made = [self._row(inputs, row) for row in range(sizes.get("n", 1))]
        return {
            t.name: np.stack([outputs[t.name] for outputs in (made if t.axes[0] == "n" else made[:1])])
            for t in self.spec.outputs
        }

    def _row(self, inputs: Mapping[str, Array], row: int) -> dict[str, Any]:
        """Outputs of one row of a batch, without its axis, which ncnn lacks."""
        extractor = self._net.create_extractor()
        for tensor in self.spec.inputs:
            array = np.ascontiguousarray(inputs[tensor.name][row if tensor.axes[0] == "n" else 0])
            # a copy: a first layer that works in place would write to the caller's array, or end the process
            extractor.input(tensor.name, self._library.Mat(array).clone())
        outputs = {}
        for tensor in self.spec.outputs:
            fault, outputs[tensor.name] = extractor.extract(tensor.name)
            if fault:
                why = "memory is short; use a smaller --tile" if fault == -100 else f"its error {fault}"
                raise EngineError(f"{self.spec.graph}: ncnn failed ({why})")
        return outputs

    def _release(self) -> None:
        self._net.clear()
        self._net = None


def _import() -> Any:
    """The library, whose threads sleep while they wait. Those of its OpenMP spin else, which on two busy cores cost 5.6
    instead of 0.2 processor seconds for a run of the UNet. OpenMP reads its setting while it is loaded; the user's own
    is kept."""
    if NAME in sys.modules or _WAITING in os.environ:
        import ncnn

        return ncnn
    os.environ[_WAITING] = "passive"
    try:
        import ncnn
    finally:
        del os.environ[_WAITING]
    return ncnn


def folder_name() -> str:
    """Folder of the graphs in a bundle. It has the library's version: one of half a year earlier loaded the same files
    and computed residuals that were 60 % off."""
    return f"{NAME}-{NcnnBuilder().version()}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


class NcnnBuilder(OnnxBuilder):
    name = NAME
    concurrent = True

    def unavailable_reason(self) -> str | None:
        try:
            _import()
        except ImportError as error:
            if isinstance(error, ModuleNotFoundError) and error.name == NAME:
                return "not installed; pip install 'diffplugin[ncnn]'"
            return f"the package ncnn cannot be imported ({one_line(error)}); pip install 'diffplugin[ncnn]'"
        if reason := OnnxRuntimeBuilder().unavailable_reason():
            return f"onnxruntime, which runs the request's graphs: {reason}"
        return None

    def version(self) -> str:
        return str(_import().__version__)

    def device(self) -> str:
        return "cpu"

    def precisions(self) -> tuple[str, ...]:
        return ("fp32", "bf16")

    def memory_shares(self, precision: str) -> tuple[float, float, float]:
        """Measured on the embedded model at 544x544. Winograd convolutions keep transformed weights, float32 also for
        bf16, and transform whole maps."""
        return 3.0, 1.5, 3.0

    def missing_variant(self, bundle: Bundle | None, precision: str) -> str | None:
        if bundle is None:
            return None
        graphs = bundle.manifest.variants.get(VARIANT)
        if not graphs:
            return f"{bundle.path}: has no graphs for ncnn; export it with dp-export --engine ncnn"
        made = max((graph.file.partition("/")[0].removeprefix(f"{NAME}-") for graph in graphs.values()), key=_numbers)
        if _numbers(self.version()) < _numbers(made):
            return (
                f"{bundle.path}: has graphs of ncnn {made}, which {self.version()} may compute wrongly; "
                "pip install -U 'diffplugin[ncnn]', or export it here with dp-export --engine ncnn"
            )
        return None

    def faster_than(self, other: EngineBuilder, bundle: Bundle) -> bool:
        """Whether it loads and runs the bundle's decoder faster in fp32, measured once for a bundle, a machine and
        both versions; True where the bundle has no decoder for it. Processors differ: with AVX512, where others are
        quick too, its Winograd convolutions do not make up for the time that their weights take at the start.

        Raises:
            DiffPluginError: one of the two cannot load it or run it.
        """
        if _MEASURED not in bundle.manifest.variants[VARIANT]:
            return True
        spec, made = bundle.spec(_MEASURED), bundle.manifest.variants[VARIANT][_MEASURED].file
        sizes = {"n": 1, "h": _SIDE, "w": _SIDE}
        latents = {t.name: np.zeros([sizes.get(a, a) for a in t.axes], np.float32) for t in spec.inputs}  # type: ignore
        builders = {builder.name: builder for builder in (self, other)}

        def runner(name: str) -> Callable[[], object]:
            def run() -> None:
                engine = builders[name].load(bundle, _MEASURED, precision="fp32", threads=None, cache=None)
                engine.run(latents)
                engine.close()

            run()  # what only a first one does, and every fault
            return run

        versions = " ".join(f"{builder.name} {builder.version()}" for builder in builders.values())
        content = bundle.manifest.files[made].sha256[:16]
        return fastest_first(f"{versions} {content}", tuple(builders), runner)[0] == self.name

    def load(self, bundle: Bundle, key: str, *, precision: str, threads: int | None, cache: Path | None) -> Engine:
        check_precision(self, precision)
        if reason := self.missing_variant(bundle, precision):
            raise EngineUnavailable(reason)
        if key not in bundle.manifest.variants[VARIANT]:
            return OnnxRuntimeBuilder().load(bundle, key, precision="fp32", threads=threads, cache=cache)
        count = engine_threads(threads)
        with bundle.reading(key, VARIANT) as path:
            return NcnnEngine(bundle.spec(key), path, count, precision)
