"""The change head: what it is at first, what it takes, and which sides it accepts."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the extra [export]")

from diffplugin.plugins.networks.head import ChangeHead

CONFIG = {"factor": 4, "latent_channels": 4, "widths": [8, 8, 8], "blocks": [1, 1, 1]}


def _inputs(height: int, width: int, factor: int = 4) -> list[Any]:
    sides = [(3, height * factor, width * factor), (4, height, width), (4, height, width)]
    return [torch.randn(1, *shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(sides)]


def _trained(config: dict[str, object]) -> ChangeHead:
    """With weights in every layer."""
    torch.manual_seed(0)
    head = ChangeHead(config).eval()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return head


def test_a_new_one_changes_nothing() -> None:
    assert not ChangeHead(CONFIG)(*_inputs(8, 6)).any()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 12), (11, 13)])
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_the_change_is_as_large_as_the_image(factor: int, height: int, width: int) -> None:
    image, *latents = _inputs(height, width, factor)
    with torch.no_grad():
        assert _trained(CONFIG | {"factor": factor})(image, *latents).shape == image.shape


def test_it_sees_the_image_the_latents_and_their_difference() -> None:
    head, inputs = _trained(CONFIG), _inputs(8, 8)
    with torch.no_grad():
        made = head(*inputs)
        for i in range(3):
            other = [x + 0.5 if place == i else x for place, x in enumerate(inputs)]
            assert not torch.allclose(head(*other), made), f"input {i} has no effect"
