"""The peers: the released networks in PyTorch, the whole loop on its device, as a careful user would write it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffplugin.bench.gpu_acceptance.trial import SEED, DevicePeak, Trial, interleaved, photograph
from diffplugin.bench.peers import TimeTable
from diffplugin.bench.peers_torch import plain_module
from diffplugin.bundle import Bundle, open_bundle
from diffplugin.export.checkpoints import Checkpoint
from diffplugin.export.measures import psnr
from diffplugin.runtime.execution.residual import changed_image, residual_output
from diffplugin.runtime.photos.pixels import clip_pixels, from_tensor, reflected, to_tensor
from diffplugin.runtime.sampling.noise_schedule import NoiseSchedule
from diffplugin.runtime.sampling.samplers import step_table
from diffplugin.runtime.sampling.start_noise import normal

Stages = dict[str, float]


class TorchPipeline:
    """One plugin over one picture without leaving the device between image and picture.

    Args:
        device: "cuda" or "cpu".
        half: float16 weights and activations in channels-last memory; the sampler's arithmetic stays float32.
        compiled: by ``torch.compile``.
    """

    def __init__(self, checkpoint: Checkpoint, bundle: Bundle, plugin: str, device: str, *, half: bool, compiled: bool):
        torch.backends.cudnn.benchmark = True
        self._manifest, self._card = bundle.manifest, bundle.card(plugin)
        self._device, self._dtype = device, torch.float16 if half else torch.float32
        times = TimeTable(bundle.manifest)

        def network(key: str) -> Any:
            module = plain_module(checkpoint, key, times).to(device, self._dtype)
            if half:
                module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            return torch.compile(module, dynamic=False) if compiled else module

        keys = {"vision": "clip_vision", "tpb": f"tpb/{plugin}", "scb": f"scb/{plugin}"}
        keys |= {key: key for key in ("vae_encoder", "unet", "vae_decoder")}
        keys |= {"head": f"head/{plugin}"} if self._card.output == "head" else {}
        self._networks = {name: network(key) for name, key in keys.items()}

    @torch.inference_mode()
    def restore(self, photo: Any, steps: int, seed: int = SEED, stages: Stages | None = None) -> Any:
        """uint8 [H,W,3] -> the same; sides are multiples of 8. It runs with the border that ours gets. ``stages`` takes
        seconds per network, each waited for: for measurements of their own, since waiting costs time."""
        manifest = self._manifest
        clip = clip_pixels(photo, manifest.dims.vision_size, manifest.clip["mean"], manifest.clip["std"])
        tokens = self._run("tpb", stages, self._run("vision", stages, self._enter(clip)))
        border, (height, width) = manifest.dims.border, photo.shape[:2]
        image = to_tensor(reflected(photo, -border, -border, height + 2 * border, width + 2 * border))
        cond = self._run("vae_encoder", stages, self._enter(image)).float()
        noise = torch.from_numpy(normal(seed, tuple(cond.shape))).to(self._device)
        latents = self._loop(steps, tokens, cond, noise, stages)
        if self._card.output == "head":
            change = self._run("head", stages, self._enter(image), self._half(latents), self._half(cond))
            made = changed_image(image, change.float().cpu().numpy())
            return from_tensor(made[..., border : border + height, border : border + width])
        made = self._run("vae_decoder", stages, self._half(latents)).float().cpu().numpy()
        if self._card.output == "residual":
            own = self._run("vae_decoder", stages, self._half(cond)).float().cpu().numpy()
            made = residual_output(image, made, own, self._card.coring, self._card.coring_peak)
        return from_tensor(made[..., border : border + height, border : border + width])

    def _loop(self, steps: int, tokens: Tensor, cond: Tensor, noise: Tensor, stages: Stages | None) -> Tensor:
        """``runtime.sampling.loop.sample`` with UniPC, on the device."""
        table = step_table("unipc", NoiseSchedule.from_config(self._manifest.scheduler), steps, self._card.first_t)
        latents = last = x0_1 = x0_2 = noise
        half_cond = self._half(cond)
        for i in range(steps):
            t = torch.full((1,), float(table.t[i]), device=self._device)
            if self._card.start == "noised_input" and (i == 0 or table.t[i] >= self._card.renoise_from_t):
                latents = float(table.alpha[i]) * cond + float(table.sigma[i]) * noise
            elif self._card.start == "input" and i == 0:
                latents = float(table.alpha[i]) * cond
            residuals = self._run("scb", stages, t, tokens, half_cond)
            eps = self._run("unet", stages, self._half(latents), t, tokens, *residuals).float()
            x0 = _weighted(table.denoise[i], latents, eps)
            last = _weighted(table.correct[i], last, latents, x0, x0_1, x0_2)
            latents = _weighted(table.predict[i], last, x0, x0_1)
            x0_1, x0_2 = x0, x0_1
        return latents

    def _run(self, name: str, stages: Stages | None, *inputs: Tensor) -> Any:
        if stages is None:
            return self._networks[name](*inputs)
        began = time.perf_counter()
        made = self._networks[name](*inputs)
        synchronize(self._device)
        stages[name] = stages.get(name, 0.0) + time.perf_counter() - began
        return made

    def _enter(self, array: Any) -> Tensor:
        return self._half(torch.from_numpy(array).to(self._device))

    def _half(self, tensor: Tensor) -> Tensor:
        tensor = tensor.to(self._dtype)
        # eager float32 stays channels-first: PyTorch's GroupNorm loses three digits in the other layout
        last = self._dtype == torch.float16 and tensor.ndim == 4
        return tensor.contiguous(memory_format=torch.channels_last) if last else tensor


def _weighted(weights: Any, *tensors: Tensor) -> Tensor:
    terms = [float(weight) * tensor for weight, tensor in zip(weights, tensors, strict=True) if weight]
    return sum(terms[1:], terms[0])


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def where() -> tuple[str, Callable[[], int] | None]:
    """(device, bytes that are free there): the GPU where PyTorch has one, else the processor."""
    if torch.cuda.is_available():
        return "cuda", lambda: int(torch.cuda.mem_get_info()[0])
    return "cpu", None


def measure(trial: Trial, *, compiled: bool) -> dict[str, Any]:
    """As ``parts.measure``, and how far the picture is from the one that ours left. On a processor: float32."""
    device, free = where()
    model = trial.measured()
    bundle = open_bundle(model.bundle)
    plugin = bundle.manifest.plugins[0]
    photo = photograph(trial, plugin)
    made: list[Any] = []
    with DevicePeak(free) as peak:
        checkpoint = model.checkpoint()
        pipeline = TorchPipeline(checkpoint, bundle, plugin, device, half=device == "cuda", compiled=compiled)

        def once() -> float:
            began = time.perf_counter()
            made[:] = [pipeline.restore(photo, trial.steps)]
            return time.perf_counter() - began

        load_s, first = trial.since(), once()
        first_picture_s, second = trial.since(), once()
        taken = interleaved({"loop": once}, trial.rounds)
        stages: Stages = {}
        pipeline.restore(photo, trial.steps, stages=stages)
    ours = None
    if trial.picture.is_file():
        with Image.open(trial.picture) as image:
            ours = psnr(made[0], np.asarray(image.convert("RGB")))
    return {
        "device": device,
        "torch": torch.__version__,
        "load_s": load_s,
        "first_picture_s": first_picture_s,
        "first_restore_s": first,
        "second_restore_s": second,
        "picture_s": taken,
        "stages_s": stages,
        "steps": trial.steps,
        "device_bytes": peak.bytes,
        "psnr_to_ours_db": ours,
    }
