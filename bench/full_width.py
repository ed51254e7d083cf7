"""A checkpoint of Stable Diffusion 1.4's full widths with random weights, in the released layouts.

Nothing may be learned from its pictures; time and memory are those of the real model. About 5 GB, and as much again
for the bundle:

    python -m diffplugin.bench.full_width DIR
    dp-export --base DIR/base --clip DIR/clip --plugins DIR/pre-trained --out DIR/bundle
    python -m diffplugin.bench.full_width DIR --measure onnxruntime

The last one runs a 512x512 picture and prints peak memory, and the time of a step in the loop beside that of the bare
engines, interleaved.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffplugin.export.exporter import embedded_folder

UNET: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
}
SCB = UNET | {"block_out_channels": [320], "down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": []}
VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
TEXT: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "eos_token_id": 2,
}
VISION: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
}
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}


def _write(folder: Path, config: Mapping[str, Any], name: str = "config.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(config, indent=1), encoding="utf-8")
    return folder


def make(out: Path, *, plugins: tuple[str, ...] = ("deblur",), seed: int = 0) -> None:
    """Write the checkpoint; weights are PyTorch's initial ones, so activations stay finite."""
    import torch
    from safetensors.torch import save_file

    from diffplugin.plugins.networks.clip import TextEncoder, VisionEncoder
    from diffplugin.plugins.networks.taskplugin import SelectorHeads, SpatialComplementBranch, TaskPromptBranch
    from diffplugin.plugins.networks.unet import UNet
    from diffplugin.plugins.networks.vae import Autoencoder

    torch.manual_seed(seed)
    base, embedded = out / "base", embedded_folder()
    shutil.copytree(embedded / "base" / "tokenizer", base / "tokenizer", dirs_exist_ok=True)
    vocabulary = len(json.loads((base / "tokenizer" / "vocab.json").read_text(encoding="utf-8")))
    _write(base / "scheduler", SCHEDULER, "scheduler_config.json")
    save_file(UNet(UNET).state_dict(), _write(base / "unet", UNET) / "diffusion_pytorch_model.safetensors")
    save_file(Autoencoder(VAE).state_dict(), _write(base / "vae", VAE) / "diffusion_pytorch_model.safetensors")
    text = TEXT | {"vocab_size": vocabulary}
    save_file(TextEncoder(text).state_dict(), _write(base / "text_encoder", text) / "model.safetensors")
    save_file(VisionEncoder(VISION).state_dict(), _write(out / "clip", VISION) / "model.safetensors")
    shutil.copy(embedded / "clip" / "preprocessor_config.json", out / "clip")
    for plugin in plugins:
        folder = out / "pre-trained" / plugin
        scb = _write(folder / "scb", SCB)
        torch.save(SpatialComplementBranch(SCB).state_dict(), scb / "diffusion_pytorch_model.bin")
        torch.save({"model": TaskPromptBranch(1024, 768).state_dict()}, folder / "tpb.pt")
    selector = out / "pre-trained" / "plugin_selector"
    selector.mkdir(parents=True, exist_ok=True)
    torch.save({"model": SelectorHeads(768, 768).state_dict()}, selector / "PromptTunner.pt")


def measure(bundle: Path, engine: str, *, steps: int = 2, rounds: int = 3) -> dict[str, Any]:
    """Peak resident memory, and seconds per step of the loop and of the engines alone, as medians of ``rounds``.

    On Linux the peak counts pages of mapped weight files too, which the system takes back when it needs them.
    """
    import resource
    import statistics
    import time

    import diffplugin
    from diffplugin.export.onnx import example_inputs
    from diffplugin.export.parity import test_picture
    from diffplugin.runtime.pool import Clock, EnginePool

    picture = test_picture(512, 512)
    with diffplugin.load(bundle, engine=engine) as restorer:
        plugin = next(iter(restorer.cards))
        began = time.perf_counter()
        first = restorer.restore(picture, plugins=[plugin], steps=steps)
        first_picture = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        pool: EnginePool = restorer._pool
        specs = {key: pool.bundle.spec(key) for key in ("unet", f"scb/{plugin}")}
        bare, loop = [], []
        for _ in range(rounds):
            clock = Clock()
            for key, spec in specs.items():
                pool.run(key, example_inputs(spec, {"h": 64, "w": 64, "n": 1}), clock)
            bare.append(sum(clock.seconds.values()))
            timings = restorer.restore(picture, plugins=[plugin], steps=steps).timings
            loop.append(sum(timings.get(stage, 0.0) for stage in ("unet", "scb", "sampler")) / steps)
    return {
        "engine": first.plan.engine,
        "precision": first.plan.precision,
        "peak_memory_gib": round(peak, 2),
        "first_picture_s": round(first_picture, 1),
        "step_s": round(statistics.median(loop), 2),
        "bare_step_s": round(statistics.median(bare), 2),
        "ratio": round(statistics.median(loop) / statistics.median(bare), 3),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="A full-width checkpoint with random weights, and what it costs to run."
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--measure", metavar="ENGINE", help="run OUT/bundle on this engine")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.out / "bundle", args.measure), indent=1))
    else:
        make(args.out)
