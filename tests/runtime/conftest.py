"""A bundle of NumPy functions: every graph does something that a test can predict."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from diffplugin.bundle import Bundle
from diffplugin.engines.base import OnnxBuilder
from diffplugin.export.tokenizer import write_tokenizer
from diffplugin.manifest import Diagnosed, GraphEntry, Manifest
from diffplugin.plugins.cards import card_to_toml, shipped_cards
from diffplugin.runtime.restorer import Restorer
from diffplugin.runtime.sampling.noise_schedule import NoiseSchedule
from diffplugin.runtime.sampling.time_features import sinusoidal
from diffplugin.spec import Array, ModelDims
from tests.engines.fake_engine import FakeEngine

if TYPE_CHECKING:
    from diffplugin.runtime.execution.device_loop import DeviceLoop
    from tests.engines.fake_driver import FakeDriver
    from tests.engines.fake_tensorrt import FakeTensorRt

Function = Callable[[Mapping[str, Array]], dict[str, Array]]

WORDS = ("rain", "dark", "blur")  # the selector picks the plugin of the same place for each
PLUGINS = {"derain": 0.2, "lowlight": -0.4, "deblur": 0.1}  # what each adds to the latent of the picture
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
DIMS = ModelDims(
    factor=8,
    latent_channels=4,
    residual_channels=4,
    deep_channels=6,
    time_features=2,
    tokens=3,
    token_width=8,
    vision_width=3,
    vision_size=16,
    context=8,
    native_latent=16,
)


def _pool(image: Array) -> Array:
    """Latent of a picture: means of 8x8 pixels, and their mean over the colours as a fourth channel."""
    _, _, height, width = image.shape
    small = image.reshape(1, 3, height // 8, 8, width // 8, 8).mean((3, 5))
    return np.concatenate((small, small.mean(1, keepdims=True)), 1).astype(np.float32)


def _grow(latents: Array) -> Array:
    return np.ascontiguousarray(latents[:, :3].repeat(8, 2).repeat(8, 3))


class FakeModel(OnnxBuilder):
    """Engines of one bundle. ``swap`` another function in for a graph; ``loads`` and ``runs`` count.

    The SCB hands the UNet ``cond`` plus the plugin's number, and the UNet finds the noise that leads there: a run
    ends at the input's latent plus that number, whatever the steps and the noise.
    """

    name = "fake"
    concurrent = True

    def __init__(self) -> None:
        self.functions: dict[str, Function] = {}
        self.engines: dict[str, FakeEngine] = {}
        self.loads: list[str] = []
        alphas = NoiseSchedule.from_config(SCHEDULER).alphas_cumprod
        self._alpha, self._sigma = np.sqrt(alphas), np.sqrt(1 - alphas)
        self._features = sinusoidal(np.arange(1000), DIMS.time_features, flip_sin_to_cos=True, freq_shift=0)

    def swap(self, key: str, function: Function) -> None:
        self.functions[key] = function

    def runs(self, key: str) -> int:
        return self.engines[key].runs if key in self.engines else 0

    def unavailable_reason(self) -> str | None:
        return None

    def version(self) -> str:
        return "1"

    def device(self) -> str:
        return "numpy"

    def precisions(self) -> tuple[str, ...]:
        return ("fp32",)

    def load(self, bundle: Bundle, key: str, *, precision: str, threads: int | None, cache: Path | None) -> FakeEngine:
        self.loads.append(key)
        function = self.functions.get(key) or self._function(key)
        self.engines[key] = FakeEngine(bundle.spec(key), function)
        return self.engines[key]

    def _function(self, key: str) -> Function:
        kind, _, plugin = key.partition("/")
        place = list(PLUGINS).index(plugin) if plugin else 0
        functions: dict[str, Function] = {
            "clip_vision": lambda x: {"patches": np.full((1, 3, 3), x["pixels"].mean(), np.float32)},
            "tpb": lambda x: {"tokens": np.full((1, 3, 8), place + x["patches"].mean(), np.float32)},
            "clip_text": lambda x: {"pooled": _said(x["ids"])},
            "selector": _scores,
            "diagnosis": _diagnosis,
            "vae_encoder": lambda x: {"cond": _pool(x["image"])},
            "vae_decoder": lambda x: {"image": _grow(x["latents"])},
            "head": lambda x: {"change": _grow(x["latents"] - x["cond"])},
            "scb": lambda x: _residuals(x, PLUGINS[plugin]),
            "unet": lambda x: {"eps": self.towards(x, x["residual_1"]), "deep": _deep(x)},
            "unet_shallow": lambda x: {"eps": self.towards(x, x["residual_1"])},
        }
        return functions[kind]

    def towards(self, inputs: Mapping[str, Array], goal: Array) -> Array:
        """The noise that is in the latents if they were made from ``goal``."""
        t = int(np.abs(self._features - inputs["time"]).sum(1).argmin())
        return np.asarray((inputs["latents"] - self._alpha[t] * goal) / self._sigma[t], np.float32)


def _said(ids: Array) -> Array:
    """Which of ``WORDS`` the request contains, [1, 8]."""
    return np.array([[float(_ID[word] in ids) for word in WORDS] + [0.0] * 5], np.float32)


def _scores(inputs: Mapping[str, Array]) -> dict[str, Array]:
    said = inputs["text"][0, : len(WORDS)]
    return {"scores": np.array([[*(said - 0.5), 0.1 if said.any() else 0.9]], np.float32)}


# What the diagnosis knows: more than the bundle's plugins, as in a bundle with some of the eight.
DIAGNOSED = ("derain", "desnow", "lowlight", "dehaze", "deblur", "highlight", "face", "demoire")


def _diagnosis(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """A dark photo needs light, a red one has rain and snow, any other nothing."""
    red, green, _ = inputs["views"][0].mean((1, 2))
    needed = {"lowlight": green < -0.35, "derain": red > green + 0.3, "desnow": red > green + 0.3}
    logits = [[2.0 if needed.get(task) else -3.0 for task in DIAGNOSED]]
    return {"logits": np.array(logits, np.float32), "strengths": np.full((1, len(DIAGNOSED)), 0.6, np.float32)}


def _residuals(inputs: Mapping[str, Array], add: float) -> dict[str, Array]:
    count = inputs["time"].shape[0]
    goal = np.repeat(inputs["cond"] + np.float32(add), count, 0)
    return {"residual_0": inputs["cond"], "residual_1": goal, "residual_2": goal}


def _deep(inputs: Mapping[str, Array]) -> Array:
    """Feature of a whole run, [1, 6, h, w]: the mean of its latents, so that a test knows where it comes from."""
    _, _, height, width = inputs["latents"].shape
    return np.full((1, DIMS.deep_channels, height, width), inputs["latents"].mean(), np.float32)


def _vocabulary() -> tuple[dict[str, int], list[str]]:
    """BPE tokens and merges in which each of ``WORDS`` is one token."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        joined = parts[0]
        for part in parts[1:]:
            merges.append(f"{joined} {part}")
            joined += part
            tokens.append(joined)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(dict.fromkeys(tokens))}, merges


_ID = {word: _vocabulary()[0][f"{word}</w>"] for word in WORDS}


@pytest.fixture(scope="session")
def fake_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cards and tokenizer of the fake bundle."""
    folder = tmp_path_factory.mktemp("fake")
    vocabulary, merges = _vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    write_tokenizer(folder, folder / "tokenizer.json", DIMS.context)
    for plugin in PLUGINS:
        (folder / "plugins" / plugin).mkdir(parents=True)
        card = card_to_toml(shipped_cards()[plugin])
        (folder / "plugins" / plugin / "card.toml").write_text(card, encoding="utf-8")
    return folder


@pytest.fixture
def fake_bundle(fake_folder: Path) -> Bundle:
    kinds = ("clip_text", "clip_vision", "selector", "diagnosis", "vae_encoder", "unet", "unet_shallow", "vae_decoder")
    keys = (*kinds, *(f"{kind}/{plugin}" for plugin in PLUGINS for kind in ("tpb", "scb", "head")))
    manifest = Manifest(
        created_with="test",
        name="fake",
        source={},
        dims=DIMS,
        scheduler=SCHEDULER,
        time_embedding={"flip_sin_to_cos": True, "freq_shift": 0},
        clip={"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
        graphs={key: GraphEntry(file="-", sha256="-", weights_bytes=1000) for key in keys},
        plugins=tuple(PLUGINS),
        selector=True,
        diagnosis=tuple(Diagnosed(task=task, threshold=0.5) for task in DIAGNOSED),
    )
    return Bundle(fake_folder, manifest)


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def restorer(fake_bundle: Bundle, model: FakeModel) -> Restorer:
    return Restorer(fake_bundle, model, "fp32", reason="as asked")


@pytest.fixture
def on_device(device_bundle: Bundle, driver: FakeDriver, library: FakeTensorRt) -> Iterator[Restorer]:
    """The embedded model on the fake device; at the end nothing may be left there."""
    from tests.engines.fake_tensorrt import FakeTensorRtBuilder

    with Restorer(device_bundle, FakeTensorRtBuilder(driver, library), "fp32", reason="as asked") as made:
        yield made
    assert driver.live() == {}


@pytest.fixture(scope="session")
def plain(device_bundle: Bundle) -> Iterator[Restorer]:
    """The same model by the plain loop."""
    from diffplugin.engines.onnxruntime import OnnxRuntimeBuilder

    with Restorer(device_bundle, OnnxRuntimeBuilder(), "fp32", threads=1) as made:
        yield made


def smooth_photo(height: int = 48, width: int = 64, seed: int = 0) -> Array:
    """Smooth, as photographs are."""
    coarse = np.random.default_rng(seed).integers(30, 220, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return np.ascontiguousarray(coarse.repeat(8, 0).repeat(8, 1)[:height, :width])


def device_of(restorer: Restorer) -> DeviceLoop:
    """The loop on a restorer's device; it must have one."""
    assert restorer.device is not None
    return restorer.device


def block_photo(height: int = 64, width: int = 80, *, seed: int = 0) -> Array:
    """Blocks of 8x8 pixels that the fake autoencoder keeps, uint8 in the middle of the range."""
    blocks = np.random.default_rng(seed).integers(90, 150, (-(-height // 8), -(-width // 8), 3), np.uint8)
    return blocks.repeat(8, 0).repeat(8, 1)[:height, :width].copy()


def expected_pixels(rgb: Array, *plugins: str) -> Array:
    """``rgb`` after the plugins: each adds its number to the pixels in [-1, 1], rounded to 8 bits between them."""
    for plugin in plugins:
        rgb = np.rint(np.clip(rgb.astype(np.float64) + PLUGINS[plugin] * 127.5, 0, 255))
    return rgb.astype(np.uint8)


def largest_difference(found: Array, expected: Array) -> int:
    return int(np.abs(found.astype(int) - expected.astype(int)).max())
