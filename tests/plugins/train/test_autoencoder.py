"""The autoencoder's helpers, at toy size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffplugin.plugins.train import autoencoder

CONFIG = {**autoencoder.CONFIG, "block_out_channels": [4, 4, 8]}


def test_whitening_changes_latents_and_no_picture() -> None:
    torch.manual_seed(0)
    model = autoencoder.build(CONFIG).requires_grad_(False)
    images = [torch.rand(1, 3, 32, 32) * 2 - 1 for _ in range(6)]
    before = model.decode(model.encode(images[0]))
    autoencoder.whiten(model, images)
    rows = torch.cat([model.encode(i).permute(0, 2, 3, 1).flatten(0, 2) for i in images])
    assert torch.allclose(rows.mean(0), torch.zeros(4), atol=1e-3), rows.mean(0)
    assert torch.allclose(torch.cov(rows.T), torch.eye(4), atol=1e-2), torch.cov(rows.T)
    error = (model.decode(model.encode(images[0])) - before).abs().max()
    assert error < 1e-4, float(error)


def test_principal_components_are_white() -> None:
    images = torch.rand(4, 3, 32, 32).cumsum(-1)
    mean, rows = autoencoder.principal_components(images)
    found = (autoencoder.patches(images).permute(0, 2, 3, 1).flatten(0, 2) - mean) @ rows.T
    assert torch.allclose(torch.cov(found.T), torch.eye(4), atol=1e-2), torch.cov(found.T)


def photos() -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, 255, (70, 70, 3), dtype=np.uint8) for i in range(2)]


def test_the_reference_channel_dominates_the_statistics() -> None:
    """With it, group normalisation divides a dark picture and its bright double by nearly the same number."""
    torch.manual_seed(0)
    plain, steady = autoencoder.build(CONFIG), autoencoder.build(CONFIG)
    steady.load_state_dict(plain.state_dict())
    autoencoder.add_reference(steady, level=64.0)
    image = torch.rand(1, 3, 32, 32)
    ratios = []
    for model in (plain, steady):
        seen: list[torch.Tensor] = []
        norm = model.get_submodule("encoder.down_blocks.0.resnets.0.norm1")
        norm.register_forward_hook(lambda m, i, o, seen=seen: seen.append(o))
        with torch.no_grad():
            for scale in (0.25, 0.5):
                model.moments(image * scale)
        a, b = (value[:, 1:] - value[:, 1:].mean((2, 3), keepdim=True) for value in seen)
        ratios.append(float(b.std() / a.std()))
    assert ratios[1] == pytest.approx(2, abs=0.05), ratios
    assert ratios[0] < 1.8, "the plain network loses some of the brightness; else this test shows nothing"


@pytest.mark.parametrize("kind", ["all", "decoder"])
def test_losses_learn_what_they_should(kind: str) -> None:
    torch.manual_seed(0)
    model = autoencoder.build(CONFIG)
    rng = np.random.default_rng(0)
    if kind == "all":
        objective: torch.nn.Module = autoencoder.Reconstruction(model, photos(), steps=10, batch=4, side=16)
        shapes = [objective.images(step, rng).shape for step in (0, 9)]  # type: ignore[operator]
        assert shapes == [(4, 3, 16, 16), (1, 3, 32, 32)], "larger crops in the end"
    else:
        objective = autoencoder.Decoding(model, photos(), batch=2, side=16)
    objective(0, rng).backward()
    touched = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    expected = {"decoder", "post_quant_conv"} | ({"encoder", "quant_conv"} if kind == "all" else set())
    assert touched == expected, touched


def test_nothing_stays_behind_on_the_processor() -> None:
    """On the meta device, as on a GPU, an operation on tensors of two devices fails."""
    for objective in (
        autoencoder.Reconstruction(autoencoder.build(CONFIG), photos(), steps=4, batch=2, side=16),
        autoencoder.Decoding(autoencoder.build(CONFIG), photos(), batch=2, side=16),
    ):
        loss = objective.to("meta")(0, np.random.default_rng(0))
        assert loss.device.type == "meta" and loss.shape == ()


def test_report_shows_psnr_and_a_pair() -> None:
    torch.manual_seed(0)
    found = autoencoder.quality(autoencoder.build(CONFIG).requires_grad_(False), photos(), side=32)(1)
    assert set(found) == {"psnr", "picture"} and found["picture"].shape == (32, 64, 3)  # type: ignore[union-attr]


def test_pixel_metric_weighs_channels_by_what_shows() -> None:
    torch.manual_seed(0)
    model = autoencoder.build(CONFIG).requires_grad_(False)
    model.post_quant_conv.weight[:, 0] *= 20  # the first channel now moves the picture most
    metric = autoencoder.pixel_metric(model, [torch.rand(1, 3, 32, 32) * 2 - 1 for _ in range(2)])
    assert torch.allclose(metric, metric.T, atol=1e-5) and abs(metric.trace().item() - 4) < 1e-4
    assert torch.linalg.eigvalsh(metric).min() >= 0.14, "the floor keeps every channel in the loss"
    assert metric.diagonal().argmax() == 0, metric.diagonal()
