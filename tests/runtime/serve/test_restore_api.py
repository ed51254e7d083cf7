"""``POST /v1/restore`` as clients see it: the photo comes back in the same answer."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffplugin.runtime.restorer import Restorer
from tests.runtime.conftest import PLUGINS, smooth_photo
from tests.runtime.serve.conftest import Running, photo_bytes, pixels_of

Serve = Callable[..., Running]


def test_restore_answers_with_the_restorers_very_pixels(serve: Serve, restorer: Restorer) -> None:
    answer = serve().post(data={"prompt": "rain", "seed": "7"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["diffplugin-plugins"] == "derain"
    assert json.loads(answer.headers["diffplugin-plan"])["seed"] == 7
    assert "unet;dur=" in answer.headers["server-timing"]
    expected = restorer.restore(smooth_photo(), "rain", seed=7).array
    np.testing.assert_array_equal(pixels_of(answer.content), expected)


def test_restore_as_json(serve: Serve) -> None:
    answer = serve().post(headers={"Accept": "application/json"}).json()
    assert answer["state"] == "done" and answer["selection"]["chosen"] == ["derain"]
    assert pixels_of(base64.b64decode(answer["image"])).shape == (48, 64, 3)


FORMATS = [("JPEG", "jpeg"), ("WEBP", "webp"), ("GIF", "gif"), ("PPM", "png")]


@pytest.mark.parametrize(("form", "media"), FORMATS)
def test_the_result_has_the_inputs_format(serve: Serve, form: str, media: str) -> None:
    assert serve().post(photo=photo_bytes(form=form)).headers["content-type"] == f"image/{media}"


def test_a_result_that_is_gone_is_not_found(serve: Serve, tmp_path: Path) -> None:
    running = serve()
    job = running.post().headers["diffplugin-job"]
    (file,) = (tmp_path / "state/results").iterdir()
    file.unlink()
    answer = running.get(f"/v1/jobs/{job}/result")
    assert (answer.status_code, answer.json()["kind"]) == (404, "not-found")


def test_metadata_go_through(serve: Serve) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    answer = serve().post(photo=photo_bytes(form="JPEG", exif=exif))
    assert Image.open(io.BytesIO(answer.content)).getexif()[0x010F] == "Maker"


def test_a_request_that_selects_nothing_is_refused_with_examples(serve: Serve) -> None:
    running, words = serve(), {"prompt": "nothing of this kind"}
    answer = running.post(data=words)
    problem = answer.json()
    assert (answer.status_code, problem["kind"]) == (422, "nothing-selected")
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["detail"].startswith(
        "nothing selected: understood was nothing that one of the 3 plugins does; near it: "
    )
    assert problem["selection"]["chosen"] == [] and set(problem["selection"]["scores"]) == {*PLUGINS, "null"}
    assert all(f'"{example}"' in problem["detail"] for example in problem["examples"].values()) and problem["examples"]
    queued = running.post("/v1/jobs", data=words).json()
    failed = running.wait(queued["id"], "failed")
    assert failed["problem"]["kind"] == "nothing-selected"
    assert running.get(f"/v1/jobs/{queued['id']}/result").status_code == 422
    assert running.post("/v1/plan", data=words).json()["plugins"] == []


def test_options_reach_the_restorer(serve: Serve, restorer: Restorer) -> None:
    running = serve()
    answer = running.post(
        data={"plugins": "deblur,lowlight", "steps": "3", "sampler": "ddim", "size": "96x80", "format": "webp"}
    )
    assert answer.status_code == 200, answer.text
    plan = json.loads(answer.headers["diffplugin-plan"])
    assert [stage["plugin"] for stage in plan["chain"]] == ["deblur", "lowlight"]
    assert (plan["sampler"], plan["working_size"], plan["chain"][0]["steps"]) == ("ddim", [96, 80], 3)
    assert answer.headers["content-type"] == "image/webp"


def test_strength_keeps_a_part_of_the_change(serve: Serve) -> None:
    running = serve()
    before, after, half = (
        pixels_of(running.post(data={"plugins": "lowlight", "strength": s}).content).astype(float)
        for s in ("0", "1", "0.5")
    )
    np.testing.assert_array_equal(before, smooth_photo())
    assert np.abs(after - before).max() > 20
    np.testing.assert_allclose(half, (before + after) / 2, atol=0.51)
    answer = running.post(data={"plugins": "lowlight", "strength": "auto"})
    assert 0 <= float(answer.headers["diffplugin-strength"]) <= 1


def test_a_mask_leaves_the_rest_alone(serve: Serve) -> None:
    mask = np.zeros((48, 64), np.uint8)
    mask[10:30, 20:40] = 255
    written = io.BytesIO()
    Image.fromarray(mask).save(written, "PNG")
    running = serve()
    for extra in (
        {"files": {"mask": ("m.png", written.getvalue())}},
        {"data": {"plugins": "lowlight", "region": "20,10,20,20"}},
    ):
        options: dict[str, Any] = {"data": {"plugins": "lowlight"}} | extra
        made = pixels_of(running.post(**options).content)
        np.testing.assert_array_equal(made[mask == 0], smooth_photo()[mask == 0])
        assert np.abs(made[mask > 0].astype(int) - smooth_photo()[mask > 0]).max() > 20


def test_a_mask_is_for_one_page(serve: Serve) -> None:
    pages = io.BytesIO()
    Image.fromarray(smooth_photo()).save(pages, "TIFF", save_all=True, append_images=[Image.fromarray(smooth_photo())])
    answer = serve().post(photo=pages.getvalue(), data={"plugins": "lowlight", "region": "0,0,20,20"})
    assert answer.status_code == 422 and answer.json()["detail"].startswith("photo.png: 2 pages, but a mask or region")
