"""A bundle's graphs in ncnn's own form, for sides of any length, converted by pnnx from traced networks."""

from __future__ import annotations

import importlib.util
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from diffplugin.bundle import graph_files
from diffplugin.engines.ncnn import folder_name
from diffplugin.errors import EngineError
from diffplugin.export.graphs import graph_keys, kind_of, module_for
from diffplugin.export.onnx import example_inputs
from diffplugin.integrity import sha256
from diffplugin.manifest import GraphEntry
from diffplugin.plugins.networks.attention import Attention
from diffplugin.shapes import Range
from diffplugin.spec import GraphSpec, graph_specs

if TYPE_CHECKING:
    from diffplugin.export.checkpoints import Checkpoint

KINDS = ("vae_encoder", "scb", "unet", "unet_shallow", "vae_decoder", "head")
# pnnx takes a side that is the same in both examples for fixed: no two levels of these latent sides (h, w) are alike.
_EXAMPLES = ((11, 26), (24, 17))
_PROOF = (17, 30)  # latent sides of the comparison, beside those of dp-export --size


def pnnx_missing() -> str | None:
    """None if graphs can be converted here, else the reason and the remedy."""
    if importlib.util.find_spec("pnnx") is None:
        return "graphs for ncnn are made by the package pnnx; pip install 'diffplugin[ncnn-export]'"
    return None


def proof_size(factor: int) -> tuple[Range, Range]:
    """(width, height) in pixels of a further comparison: a side that was taken for fixed, or for the other one, would
    be wrong there."""
    return Range.of(_PROOF[1] * factor), Range.of(_PROOF[0] * factor)


def export_ncnn(checkpoint: Checkpoint, folder: Path, log: Callable[[str], None]) -> dict[str, GraphEntry]:
    """Write ``ncnn-VERSION/`` below a bundle's folder: graphs of :data:`KINDS`, one network in memory at a time.

    Raises:
        EngineError: pnnx cannot convert a graph.
    """
    specs, entries = graph_specs(checkpoint.dims), dict[str, GraphEntry]()
    for key in graph_keys(checkpoint):
        if (kind := kind_of(key)) in KINDS:
            log(f"ncnn {key}")
            module, path = module_for(checkpoint, key), folder / folder_name() / f"{key}.param"
            convert(module, specs[kind], path, factor=checkpoint.dims.factor)
            weights = sum(p.numel() * 4 for p in module.parameters())
            name = path.relative_to(folder).as_posix()
            entries[key] = GraphEntry(file=name, sha256=sha256(*graph_files(path)), weights_bytes=weights)
    return entries


def convert(module: nn.Module, spec: GraphSpec, path: Path, *, factor: int) -> None:
    """Write ``module`` as ``path`` (.param) and its weights beside it (.bin), with the spec's names. Weights are stored
    as float16 if that is exact.

    Raises:
        EngineError: pnnx cannot convert it.
    """
    import pnnx

    _silence_zeros(module)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent.resolve()) as scratch:  # pnnx writes files beside its source
        source, made, weights = Path(scratch) / "graph.pt", Path(scratch) / "made.param", path.with_suffix(".bin")
        examples = [_example(spec, sides, factor) for sides in _EXAMPLES]
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # sides that the tracer sees as numbers: pnnx finds them out
            traced = torch.jit.trace(module, examples[0], check_trace=False)  # type: ignore[no-untyped-call]
        traced.save(str(source))
        one, other = (",".join(_described(tensor) for tensor in example) for example in examples)
        half = int(all(torch.equal(p, p.half().float()) for p in module.parameters() if p.dim() > 1))
        command = [pnnx.EXEC_PATH, str(source), f"inputshape={one}", f"inputshape2={other}", f"fp16={half}"]
        command += [f"ncnnparam={made}", f"ncnnbin={weights.resolve()}"]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        if done.returncode or not made.is_file() or not weights.is_file():
            said = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
            raise EngineError(f"{spec.graph}: pnnx cannot convert it (exit code {done.returncode}; {said[-1]})")
        path.write_text(_named(made.read_text(encoding="utf-8"), spec), encoding="utf-8")


def _example(spec: GraphSpec, sides: tuple[int, int], factor: int) -> tuple[Tensor, ...]:
    h, w = sides
    inputs = example_inputs(spec, {"h": h, "w": w, "H": h * factor, "W": w * factor, "n": 1})
    return tuple(torch.from_numpy(inputs[t.name]) for t in spec.inputs)


def _described(tensor: Tensor) -> str:
    """As pnnx takes it: ``[1,4,11,26]f32``."""
    return f"[{','.join(map(str, tensor.shape))}]f32"


def _named(param: str, spec: GraphSpec) -> str:
    """pnnx's ``in0``, ``out0``, … by the spec's names."""
    names = {f"in{i}": t.name for i, t in enumerate(spec.inputs)}
    names |= {f"out{i}": t.name for i, t in enumerate(spec.outputs)}
    lines = [" ".join(names.get(word, word) for word in line.split()) for line in param.splitlines()]
    return "\n".join(lines) + "\n"


class _Nothing(nn.Module):
    """An attention whose output weights are zero."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return x * 0


def _silence_zeros(module: nn.Module) -> None:
    """As ``export.simplify.drop_zero_terms``: an attention that was never trained computes nothing."""
    for block in list(module.modules()):
        for name, child in block.named_children():
            if isinstance(child, Attention) and not any(p.any() for p in child.to_out.parameters()):
                setattr(block, name, _Nothing())
