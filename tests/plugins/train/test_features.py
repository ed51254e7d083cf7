"""Feature vectors: the documented Inception file's contract, CLIP's, and networks that give none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from diffplugin.errors import CheckpointError
from diffplugin.plugins.train import features, metrics

RNG = np.random.default_rng(0)
A = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)


class Inception(nn.Module):
    """With the interface of NVIDIA's ``inception-2015-12-05.pt``: features on request, else class probabilities."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 6, 7, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.output = nn.Linear(6, 1008)

    def forward(self, img: Tensor, return_features: bool = False, use_fp16: bool = False) -> Tensor:
        x = self.body((img.float() - 128) / 128)
        if return_features:
            return x  # type: ignore[no-any-return]
        return self.output(x).softmax(dim=1)  # type: ignore[no-any-return]


class Layered(Inception):
    """As that file is made inside: ``layers`` are the features of pictures in -1..1."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = self.body


def script(network: nn.Module, path: Path) -> Path:
    torch.jit.script(network).save(str(path))  # type: ignore[no-untyped-call]
    return path


@pytest.mark.parametrize("kind", [Inception, Layered])
def test_features_and_not_probabilities(kind: type[Inception], tmp_path: Path) -> None:
    """Without asking, the documented file gives a softmax: FID 2.8e-6 where the truth was 17.99."""
    network = kind()
    extract = features.open_extractor(script(network, tmp_path / "inception-2015-12-05.pt"))
    image = torch.from_numpy(features.clean_resized(A, 299).transpose(2, 0, 1)[None].copy())
    with torch.no_grad():
        want = network(image, return_features=True)[0].numpy()
    assert np.allclose(extract(A), want, atol=1e-5), np.abs(extract(A) - want).max()
    dark = [
        np.stack([extract((p * s).astype(np.uint8)) for p in RNG.integers(0, 256, (20, 30, 30, 3))]) for s in (1, 0.4)
    ]
    found = metrics.fid_kid(*dark)["fid"]
    with torch.no_grad():
        soft = [network(torch.from_numpy(RNG.random((20, 3, 299, 299), np.float32)) * s).numpy() for s in (255, 102)]
    assert found > 100 * metrics.fid_kid(soft[0][:, :8], soft[1][:, :8])["fid"], "features tell the sets apart"


def test_resizing_is_clean_fids() -> None:
    """Bicubic with antialiasing, in float32, clipped: four times smaller, a checkerboard becomes grey."""
    board = np.kron(np.indices((40, 40)).sum(0) % 2, np.ones((2, 2)))[..., None].repeat(3, -1).astype(np.uint8) * 255
    small = features.clean_resized(board, 20)
    assert small.dtype == np.float32 and small.shape == (20, 20, 3)
    assert abs(small[5:15, 5:15] - 127.5).max() < 1, "aliased"
    up = features.clean_resized(A, 299)
    assert up.min() >= 0 and up.max() <= 255 and not np.array_equal(up, up.round()), "not quantised"
    channel = Image.fromarray(A[..., 1].astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC)
    assert np.array_equal(up[..., 1], np.asarray(channel).clip(0, 255))


class Bad(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        torch.manual_seed(0)
        self.map = nn.Conv2d(3, 4, 3)
        self.classes = nn.Linear(3, 1000)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3))
        if self.kind == "softmax":
            return (means[:, :2] / 50).softmax(dim=1)
        if self.kind == "logits":
            return self.classes(means)  # type: ignore[no-any-return]
        if self.kind == "maps":
            return self.map(x)  # type: ignore[no-any-return]
        return torch.zeros(len(x), 5)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("softmax", "returns 2 probabilities, expected features"),
        ("logits", "returns 1000 class scores, expected features"),
        ("maps", r"returns maps \(1, 4, 297, 297\)"),
        ("constant", "returns the same 5 value"),
    ],
)
def test_networks_without_features_are_refused(kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        features.open_extractor(script(Bad(kind), tmp_path / "net.pt"))


def test_no_network(tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"no network")
    with pytest.raises(CheckpointError, match="neither a TorchScript network nor a CLIP folder"):
        features.open_extractor(tmp_path / "broken.pt")
    pytest.importorskip("transformers")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="no CLIP vision network with projection"):
        features.open_extractor(tmp_path / "folder")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_clip_features_are_the_projected_embedding(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, projection_dim=12
    )
    network = transformers.CLIPVisionModelWithProjection(config).eval()
    network.save_pretrained(tmp_path)
    extract = features.open_extractor(tmp_path)
    short = 224 / 40
    photo = Image.fromarray(A).resize((int(60 * short), 224), Image.Resampling.BICUBIC)
    left = (photo.width - 224) // 2
    pixels = np.asarray(photo.crop((left, 0, left + 224, 224)), dtype=np.float32) / 255
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    image = torch.from_numpy(((pixels - mean) / deviation).transpose(2, 0, 1)[None].astype(np.float32))
    with torch.no_grad():
        want = network(image).image_embeds[0].numpy()
    found = extract(A)
    assert found.shape == (12,) and np.allclose(found, want, atol=1e-4), np.abs(found - want).max()
