"""OpenAI's own client against ``/v1/images/edits``."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("openai", reason="needs the package openai")

import openai

from diffplugin.runtime.restorer import Restorer
from diffplugin.runtime.serve.settings import hashed
from tests.runtime.conftest import smooth_photo
from tests.runtime.serve.conftest import Running, photo_bytes, pixels_of

TOKEN = "t" * 32


@pytest.fixture
def client(serve: Callable[..., Running]) -> Iterator[object]:
    running = serve(tokens={hashed(TOKEN): "anna"})
    made = openai.OpenAI(base_url=f"{running.url}/v1", api_key=TOKEN, max_retries=0)
    yield made
    made.close()


def photo() -> io.BytesIO:
    file = io.BytesIO(photo_bytes())
    file.name = "photo.png"
    return file


def test_an_edit_is_a_restoration(client: Any, restorer: Restorer) -> None:
    answer = client.images.edit(model="diffplugin", image=photo(), prompt="rain", response_format="b64_json")
    made = pixels_of(base64.b64decode(answer.data[0].b64_json))
    np.testing.assert_array_equal(made, restorer.restore(smooth_photo(), "rain").array)


def test_strength_is_ours_and_goes_as_an_extra_field(client: Any, restorer: Restorer) -> None:
    answer = client.images.edit(
        image=photo(), prompt="rain", response_format="b64_json", extra_body={"strength": "0.5"}
    )
    made = pixels_of(base64.b64decode(answer.data[0].b64_json))
    np.testing.assert_array_equal(made, restorer.restore(smooth_photo(), "rain", strength=0.5).array)
    with pytest.raises(openai.UnprocessableEntityError, match=r"strength .very."):
        client.images.edit(image=photo(), prompt="rain", extra_body={"strength": "very"})


def test_several_results_fit_into_the_size(client: Any) -> None:
    answer = client.images.edit(model="fake", image=[photo()], prompt="dark", n=2, size="256x256", output_format="webp")
    sizes = [Image.open(io.BytesIO(base64.b64decode(one.b64_json))) for one in answer.data]
    assert [(one.size, one.format) for one in sizes] == [((256, 192), "WEBP")] * 2


def test_the_transparent_part_of_the_mask_is_restored(client: Any) -> None:
    rgba = np.full((48, 64, 4), 255, np.uint8)
    rgba[10:40, 20:50, 3] = 0
    mask = io.BytesIO()
    Image.fromarray(rgba).save(mask, "PNG")
    answer = client.images.edit(image=photo(), mask=("mask.png", mask.getvalue()), prompt="dark")
    made, before = pixels_of(base64.b64decode(answer.data[0].b64_json)), smooth_photo()
    outside = rgba[..., 3] == 255
    np.testing.assert_array_equal(made[outside], before[outside])
    assert (made[~outside] != before[~outside]).any()


def test_urls_need_no_token_but_their_signature(client: Any) -> None:
    answer = client.images.edit(image=photo(), prompt="rain", response_format="url")
    url = answer.data[0].url
    assert pixels_of(httpx.get(url, trust_env=False).content).shape == (48, 64, 3)
    assert httpx.get(url[:-1] + ("0" if url[-1] != "0" else "1"), trust_env=False).status_code == 404


def test_errors_are_openais(client: Any) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="size 'huge' is not understood"):
        client.images.edit(image=photo(), prompt="rain", size="huge")
    with pytest.raises(openai.NotFoundError, match="no bundle 'dall-e-9'"):
        client.images.edit(model="dall-e-9", image=photo(), prompt="rain")
    with pytest.raises(openai.UnprocessableEntityError, match="2 photos came"):
        client.images.edit(image=[photo(), photo()], prompt="rain")
    with pytest.raises(openai.APIStatusError) as refused:
        client.images.edit(image=("x.png", b"text"), prompt="rain")
    assert refused.value.status_code == 415 and refused.value.code == "unsupported"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").images.edit(image=photo(), prompt="rain")
    assert [one.id for one in client.models.list()] == ["fake"]
